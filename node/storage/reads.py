"""What sessions, links and administrators look up: plain functions of a connection that return rows."""

from collections.abc import Generator
from contextlib import closing, suppress
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, bindparam, func, literal, or_, select

from federation.errors import ProtocolError
from federation.event import MESSAGE, peek_header
from federation.ids import User
from node.api import ApiError
from node.core import rows
from node.core.acts import places
from node.core.damage import NUMBER_MAX, REFUSALS, STAMP_MAX, is_stamp
from node.storage.damaged import Broken as Broken
from node.storage.damaged import Placed as Placed
from node.storage.damaged import each, gaps, made, placed
from node.storage.direct import Prepared
from node.storage.schema import TABLES

accounts, devices, invites, peers = (TABLES[r] for r in (rows.Account, rows.Device, rows.Invite, rows.Peer))
events, logs, items, facts = (TABLES[r] for r in (rows.StoredEvent, rows.LogHead, rows.Item, rows.Fact))
outbound, receipts, failures = (TABLES[r] for r in (rows.Outbound, rows.Receipt, rows.Failed))
aimed = TABLES[rows.Aimed]
conversations, standings, mailboxes = (TABLES[r] for r in (rows.Conversation, rows.Standing, rows.Mailbox))
STAMP_AHEAD_MAX = 86_400_000 << 16  # a day: of a stamp that nothing speaks for
MARKS_MAX = 3000  # read marks on a page of conversations
FEW = 64  # logs looked at for the newest stamp before all of them are
ABOUT_SHARE = 4  # a quarter of a page is for edits and the like of its messages
MESSAGE_BYTES = 1000  # at most what a message takes in JSON beside its body


def _one(connection: Connection, row: type, *where: Any) -> Any:
    found = connection.execute(select(TABLES[row]).where(*where)).first()
    return None if found is None else made(row, found)


def _all(connection: Connection, row: type, *where: Any, order: Any = None) -> list[Any]:
    query = select(TABLES[row]).where(*where)
    return each(row, connection.execute(query if order is None else query.order_by(order)))


def meta(connection: Connection, name: str) -> bytes | None:
    row = _one(connection, rows.Meta, TABLES[rows.Meta].c.name == name)
    return row.value if row else None


def newest_stamp(connection: Connection) -> int:
    """Where our clock goes on. A log's stamp is at most its newest event's: a damaged one must not end all sending."""
    best, unsure = 0, list[int]()  # of the latter the events are not here
    with closing(_by_stamp(connection)) as found:
        for stamp, header, column in found:
            said = [column] if is_stamp(column) else []
            with suppress(ProtocolError, TypeError):
                said.append(peek_header(header).stamp)
            if is_stamp(stamp) and not said:
                unsure.append(stamp)
            elif is_stamp(stamp) and stamp <= max(said):
                best = max(best, stamp)
                break
            best = max(best, min(said, default=0))
    return max([best, *(stamp for stamp in unsure if stamp <= best + STAMP_AHEAD_MAX)])


def _by_stamp(connection: Connection) -> Generator[Any]:
    """Logs with their newest events, damaged stamps first, then the newest. A few at first, which is mostly enough: to
    join and sort all of them takes a second for each 200 000."""
    first = (logs.c.stamp.between(0, STAMP_MAX).asc().nulls_first(), logs.c.stamp.desc(), logs.c.log)
    ranked = select(logs.c.log, logs.c.seq, logs.c.stamp).order_by(*first)
    for part in (ranked.limit(FEW), ranked.offset(FEW)):
        c = part.subquery().c
        with connection.execute(
            select(c.stamp, events.c.header, events.c.stamp)
            .outerjoin(events, and_(events.c.log == c.log, events.c.seq == c.seq))
            .order_by(c.stamp.between(0, STAMP_MAX).asc().nulls_first(), c.stamp.desc())
        ) as found:
            yield from found


def account(connection: Connection, local: str) -> rows.Account | None:
    return _one(connection, rows.Account, accounts.c.local == local)  # type: ignore[no-any-return]


def all_accounts(connection: Connection) -> list[rows.Account]:
    return _all(connection, rows.Account, order=accounts.c.local)


def device_by_token(connection: Connection, token_hash: bytes) -> tuple[rows.Device, rows.Account] | None:
    device = _one(connection, rows.Device, devices.c.token_hash == token_hash)
    if device is None or device.revoked_ms:
        return None
    owner = account(connection, device.local)
    return (device, owner) if owner is not None else None


def devices_of(connection: Connection, local: str) -> list[rows.Device]:
    return _all(
        connection, rows.Device, devices.c.local == local, devices.c.revoked_ms == 0, order=devices.c.created_ms
    )


def all_invites(connection: Connection) -> list[rows.Invite]:
    return _all(connection, rows.Invite, order=invites.c.created_ms)


def all_peers(connection: Connection) -> list[rows.Peer]:
    return _all(connection, rows.Peer, order=peers.c.node)


def heal(connection: Connection, peer: bytes) -> rows.Heal | None:
    return _one(connection, rows.Heal, TABLES[rows.Heal].c.peer == peer)  # type: ignore[no-any-return]


def mailbox(connection: Connection, local: str) -> rows.Mailbox:
    row: rows.Mailbox | None = _one(connection, rows.Mailbox, mailboxes.c.local == local)
    return row or rows.Mailbox(local, 0, 0)


PLACE = (logs.c.conversation, logs.c.origin, logs.c.incarnation)
# Made once: to build a statement costs more than to run it.
_MESSAGES = Prepared(
    select(items.c.position, items.c.log, items.c.seq, *PLACE, *events.c)
    .outerjoin(events, and_(events.c.log == items.c.log, events.c.seq == items.c.seq))
    .outerjoin(logs, logs.c.log == items.c.log)
    .where(items.c.local == bindparam("local"), items.c.position > bindparam("after"), items.c.position <= NUMBER_MAX)
    .order_by(items.c.position)
    .limit(bindparam("count"))
)
_AT = Prepared(
    select(literal(0), events.c.log, events.c.seq, *PLACE, *events.c)
    .outerjoin(logs, logs.c.log == events.c.log)
    .where(events.c.log == bindparam("log"), events.c.seq == bindparam("seq"))
)
_FACTS = Prepared(
    select(facts)
    .where(facts.c.local == bindparam("local"), facts.c.position > bindparam("after"), facts.c.position <= NUMBER_MAX)
    .order_by(facts.c.position)
    .limit(bindparam("count"))
)


def feed(
    connection: Connection, local: str, after: int, limit: int, bytes_max: int
) -> tuple[list[Placed | Broken | rows.Fact], int, bool]:
    """The mailbox past `after`, in order and bounded; the position up to which nothing is left out; whether more is
    there. What is damaged stands in its place as such."""
    values = {"local": local, "after": after, "count": limit}
    # A position that is no number has no place in the feed.
    read = [row for row in _MESSAGES(connection, **values) if type(row[0]) is int]
    found: list[Placed | Broken | rows.Fact] = [_placed(row) for row in read]
    for row in _FACTS(connection, **values):
        if type(row[2]) is int:
            found.append(made(rows.Fact, row) or Broken(row[2], "damaged"))
    found.sort(key=lambda item: item.position)
    more = len(found) >= limit
    size = 0
    for count, item in enumerate(found[:limit]):
        size += 300 if isinstance(item, Broken) else _weight(item)
        if size > bytes_max and count:
            found, more = found[:count], True
            break
    found = found[:limit]
    return found, found[-1].position if found else after, more


def _weight(item: Placed | rows.Fact) -> int:
    return len(item.event.body or b"") + 300 if isinstance(item, Placed) else len(item.item)


def _placed(values: Any) -> Placed | Broken:
    """Position, log, seq, PLACE, and an event's row."""
    return placed(values[0], values[2], values[3:6], values[6:])


class Page(NamedTuple):
    """A page of a conversation, oldest first, in the one order of PROTOCOL.md 4.10."""

    page: list[Placed | Broken]
    more: bool  # before it
    about: list[Placed]  # edits and the like of its messages that come after it
    receipts: list[rows.Receipt]  # what senders need to see
    failed: list[rows.Failed]


def history(
    connection: Connection, node: bytes, conversation: bytes, before: bytes | None, limit: int, bytes_max: int
) -> Page:
    """A page back from an event."""
    stands = or_(events.c.refused.not_in(REFUSALS), events.c.refused.is_(None))
    query = (
        select(literal(0), events.c.log, events.c.seq, *PLACE, *events.c)
        .outerjoin(logs, logs.c.log == events.c.log)
        .where(events.c.conversation == conversation, stands, events.c.stamp.between(0, STAMP_MAX))
    )
    order = (events.c.stamp, *(func.coalesce(c, literal(b"")) for c in PLACE[1:]), events.c.seq)
    if before is not None:
        at = connection.execute(
            select(*order)
            .outerjoin(logs, logs.c.log == events.c.log)
            .where(events.c.event == before, events.c.conversation == conversation)
        ).first()
        if at is None:  # another conversation's place means nothing here
            raise ApiError("not_found", "no such message in this conversation")
        query = query.where(_less(order, tuple(at)))
    page: list[Placed | Broken] = []
    more, size, room = False, 0, bytes_max - bytes_max // ABOUT_SHARE
    for item in map(_placed, connection.execute(query.order_by(*(c.desc() for c in order)).limit(limit + 1))):
        size += _size(item)
        if more := len(page) == limit or (size > room and bool(page)):
            break
        page.append(item)
    about = _about(connection, page, bytes_max // ABOUT_SHARE)
    page.reverse()
    page = gaps(connection, page, before is None)
    known = {p.event.log for p in (*page, *about) if isinstance(p, Placed)}
    marks = _all(connection, rows.Receipt, receipts.c.log.in_(known)) if known else []
    failed = _all(connection, rows.Failed, failures.c.log.in_(known)) if known else []
    return Page(page, more, about, _shown(connection, node, conversation, marks), failed)


def _size(item: Placed | Broken) -> int:
    """In JSON."""
    return MESSAGE_BYTES + (4 * len(item.event.body or b"") // 3 + 4 if isinstance(item, Placed) else 0)


def _about(connection: Connection, page: list[Placed | Broken], bytes_max: int) -> list[Placed]:
    """What people did to the messages of a page, in order, as far as it is not on it itself. Where that is too much,
    what was done first to the oldest messages is left out."""
    here = [p for p in page if isinstance(p, Placed)]
    messages = [p.event for p in here if p.event.kind == MESSAGE]
    if not messages:
        return []
    c, known = aimed.c, {(p.event.log, p.event.seq) for p in here}
    query = select(aimed).where(c.target.in_([m.event for m in messages]), c.conversation == messages[0].conversation)
    acts: dict[bytes, list[tuple[bytes, int]]] = {}
    for row in each(rows.Aimed, connection.execute(query)):
        acts.setdefault(row.target, []).extend(reversed(places(row.edits + row.marks)))
    found: list[Placed] = []
    size = 0
    for place in (place for m in messages for place in acts.get(m.event, ()) if place not in known):
        item = next(map(_placed, _AT(connection, log=place[0], seq=place[1])), None)
        if isinstance(item, Placed):
            size += _size(item)
            if size > bytes_max:
                break
            found.append(item)
    return sorted(found, key=lambda p: (p.event.stamp, p.origin, p.incarnation, p.event.seq))


def _shown(connection: Connection, node: bytes, conversation: bytes, found: list[rows.Receipt]) -> list[rows.Receipt]:
    """Receipts as others may see them: a user of `node` who did not accept the conversation shows no sign of life."""
    query = select(standings.c.local).where(standings.c.conversation == conversation, standings.c.state != "open")
    closed = {(node, local) for (local,) in connection.execute(query)}
    return [r._replace(delivered=0, read=0, missing=b"") if (r.node, r.local) in closed else r for r in found]


def _less(columns: Any, values: tuple[Any, ...]) -> Any:
    """Columns < values as one row comparison, spelled out so that the index on the first is used."""
    terms = []
    for i, column in enumerate(columns):
        terms.append(and_(*(c == v for c, v in zip(columns[:i], values[:i], strict=True)), column < values[i]))
    return and_(columns[0] <= values[0], or_(*terms))


def event_by_id(
    connection: Connection, event: bytes, member: User | None = None
) -> tuple[Placed, rows.Conversation] | None:
    """An event with its conversation. With `member` only one of theirs: to anybody else it is as if it were not there,
    in the work it takes too. One that is damaged is not there either."""
    query = (
        select(literal(0), events.c.log, events.c.seq, *PLACE, *events.c)
        .outerjoin(logs, logs.c.log == events.c.log)
        .where(events.c.event == event)
    )
    if member is not None:
        c = conversations.c
        first = and_(c.node_a == member.node, c.local_a == member.local)
        second = and_(c.node_b == member.node, c.local_b == member.local)
        query = query.join(conversations, c.conversation == events.c.conversation).where(or_(first, second))
    found = connection.execute(query).first()
    if found is None:
        return None
    item = _placed(found)
    if isinstance(item, Broken):
        return None
    row = _one(connection, rows.Conversation, conversations.c.conversation == item.event.conversation)
    return (item, row) if row is not None else None


def progress(
    connection: Connection, node: bytes, log: bytes
) -> tuple[list[rows.Receipt], list[rows.Failed], list[rows.Outbound], rows.LogHead | None]:
    """All that is known of one log's way to others."""
    head = _one(connection, rows.LogHead, logs.c.log == log)
    marks = _all(connection, rows.Receipt, receipts.c.log == log)
    return (
        _shown(connection, node, head.conversation, marks) if head is not None else marks,
        _all(connection, rows.Failed, failures.c.log == log),
        _all(connection, rows.Outbound, outbound.c.log == log),
        head,
    )


def conversation_of(connection: Connection, local: str, conversation: bytes) -> rows.Conversation | None:
    """A conversation in which this user stands; with nobody in it where its own row is damaged."""
    query = (
        select(conversations)
        .join(standings, standings.c.conversation == conversations.c.conversation)
        .where(standings.c.local == local, standings.c.conversation == conversation)
    )
    found = connection.execute(query).first()
    if found is None:
        return None
    return made(rows.Conversation, found) or rows.Conversation(conversation, "", b"", "", b"", "")


def standings_of(
    connection: Connection, node: bytes, local: str, requests_only: bool, after: bytes, limit: int
) -> tuple[list[tuple[rows.Standing, rows.Conversation | None]], dict[bytes, list[tuple[bytes, bytes, int]]], bool]:
    """A page of a user's conversations by id; their own read marks in these, newest logs first; whether more follow.

    There is no conversation where its own row is damaged. A page ends before the conversation whose marks would be
    too many; one with too many alone loses the oldest.
    """
    query = (
        select(*standings.c, *conversations.c)
        .join(conversations, conversations.c.conversation == standings.c.conversation)
        .where(standings.c.local == local, standings.c.conversation > after)
        .order_by(standings.c.conversation)
        .limit(limit + 1)
    )
    if requests_only:
        query = query.where(standings.c.state == "request")
    width = len(standings.c)
    read = connection.execute(query).all()
    pairs = [(made(rows.Standing, v[:width]), made(rows.Conversation, v[width:])) for v in read[:limit]]
    page = [(s, c) for s, c in pairs if s is not None]
    left = len(read) - limit
    query = (
        select(logs.c.conversation, logs.c.origin, logs.c.incarnation, receipts.c.read)
        .join(receipts, receipts.c.log == logs.c.log)
        .where(
            logs.c.conversation.in_([s.conversation for s, _ in page]),
            receipts.c.local == local,
            receipts.c.node == node,
            receipts.c.read > 0,
        )
        .order_by(logs.c.conversation, logs.c.stamp.desc())
        .limit(MARKS_MAX + 1)
    )
    marks: dict[bytes, list[tuple[bytes, bytes, int]]] = {}
    found = connection.execute(query).all()
    for conversation, *mark in found:
        if type(mark[0]) is type(mark[1]) is bytes and type(mark[2]) is int and mark[2] <= NUMBER_MAX:
            marks.setdefault(conversation, []).append(tuple(mark))
    if len(found) > MARKS_MAX:
        page, left = [p for p in page if p[0].conversation < conversation] or page[:1], 1
    return page, marks, left > 0


def logs_of(connection: Connection, conversation: bytes) -> list[rows.LogHead]:
    return _all(connection, rows.LogHead, logs.c.conversation == conversation)


def quarantined(connection: Connection) -> list[rows.Quarantine]:
    table = TABLES[rows.Quarantine]
    return _all(connection, rows.Quarantine, order=table.c.at_ms)


def quarantine_size(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(TABLES[rows.Quarantine])).scalar_one())

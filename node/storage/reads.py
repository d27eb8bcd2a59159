"""What sessions, links and administrators look up: plain functions of a connection that return rows."""

from collections.abc import Mapping, Set
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, bindparam, func, or_, select

from federation import wire
from federation.ids import User
from node.api import ApiError
from node.core import rows
from node.storage.direct import Prepared
from node.storage.schema import TABLES

accounts, devices, invites, peers = (TABLES[r] for r in (rows.Account, rows.Device, rows.Invite, rows.Peer))
events, logs, items, facts = (TABLES[r] for r in (rows.StoredEvent, rows.LogHead, rows.Item, rows.Fact))
outbound, receipts, failures = (TABLES[r] for r in (rows.Outbound, rows.Receipt, rows.Failed))
conversations, standings, mailboxes = (TABLES[r] for r in (rows.Conversation, rows.Standing, rows.Mailbox))
BATCH_BYTES_MAX = 1 << 20
LOGS_MAX = 64  # logs of one peer looked at together
MARKS_MAX = 3000  # read marks on a page of conversations
MESSAGE_BYTES = 1000  # at most what a message takes in JSON beside its body
END = b"\xff" * 33  # past every log key


class Placed(NamedTuple):
    """An event with the log it stands in, and its place in a mailbox (0 outside one)."""

    position: int
    origin: bytes
    incarnation: bytes
    event: rows.StoredEvent


def _one(connection: Connection, row: type, *where: Any) -> Any:
    found = connection.execute(select(TABLES[row]).where(*where)).first()
    return None if found is None else row._make(found)  # type: ignore[attr-defined]


def _all(connection: Connection, row: type, *where: Any, order: Any = None) -> list[Any]:
    query = select(TABLES[row]).where(*where)
    found = connection.execute(query if order is None else query.order_by(order))
    return [row._make(values) for values in found]  # type: ignore[attr-defined]


def meta(connection: Connection, name: str) -> bytes | None:
    row = _one(connection, rows.Meta, TABLES[rows.Meta].c.name == name)
    return row.value if row else None


def newest_stamp(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.max(logs.c.stamp), 0))).scalar_one())


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


def mailbox(connection: Connection, local: str) -> rows.Mailbox:
    row: rows.Mailbox | None = _one(connection, rows.Mailbox, mailboxes.c.local == local)
    return row or rows.Mailbox(local, 0, 0)


# Made once: to build a statement costs more than to run it.
_MESSAGES = Prepared(
    select(items.c.position, logs.c.origin, logs.c.incarnation, *events.c)
    .join(events, and_(events.c.log == items.c.log, events.c.seq == items.c.seq))
    .join(logs, logs.c.log == items.c.log)
    .where(items.c.local == bindparam("local"), items.c.position > bindparam("after"))
    .order_by(items.c.position)
    .limit(bindparam("count"))
)
_FACTS = Prepared(
    select(facts)
    .where(facts.c.local == bindparam("local"), facts.c.position > bindparam("after"))
    .order_by(facts.c.position)
    .limit(bindparam("count"))
)


def feed(
    connection: Connection, local: str, after: int, limit: int, bytes_max: int
) -> tuple[list[Placed | rows.Fact], int, bool]:
    """The mailbox past `after`, in order and bounded; the position up to which nothing is left out; whether more is
    there."""
    values = {"local": local, "after": after, "count": limit}
    found: list[Placed | rows.Fact] = [_placed(row) for row in _MESSAGES(connection, **values)]
    found += [rows.Fact._make(row) for row in _FACTS(connection, **values)]
    found.sort(key=lambda item: item.position)
    more = len(found) >= limit
    size = 0
    for count, item in enumerate(found[:limit]):
        size += len(item.event.body or b"") + 300 if isinstance(item, Placed) else len(item.item)
        if size > bytes_max and count:
            found, more = found[:count], True
            break
    found = found[:limit]
    return found, found[-1].position if found else after, more


def _placed(values: Any) -> Placed:
    return Placed(values[0], values[1], values[2], rows.StoredEvent._make(values[3:]))


def history(
    connection: Connection, node: bytes, conversation: bytes, before: bytes | None, limit: int, bytes_max: int
) -> tuple[list[Placed], bool, list[rows.Receipt], list[rows.Failed]]:
    """A page back from an event, oldest first, in the one order of PROTOCOL.md 4.10; whether more is before it; with
    what senders need to see."""
    query = (
        select(logs.c.seq * 0, logs.c.origin, logs.c.incarnation, *events.c)
        .join(logs, logs.c.log == events.c.log)
        .where(events.c.conversation == conversation, events.c.refused == "")
    )
    order = (events.c.stamp, logs.c.origin, logs.c.incarnation, events.c.seq)
    if before is not None:
        at = connection.execute(
            select(*order)
            .join(logs, logs.c.log == events.c.log)
            .where(events.c.event == before, events.c.conversation == conversation)
        ).first()
        if at is None:  # another conversation's place means nothing here
            raise ApiError("not_found", "no such message in this conversation")
        query = query.where(_less(order, tuple(at)))
    page: list[Placed] = []
    more, size = False, 0
    for placed in map(_placed, connection.execute(query.order_by(*(c.desc() for c in order)).limit(limit + 1))):
        size += MESSAGE_BYTES + 4 * len(placed.event.body or b"") // 3 + 4
        if more := len(page) == limit or (size > bytes_max and bool(page)):
            break
        page.append(placed)
    page.reverse()
    known = {p.event.log for p in page}
    marks = _all(connection, rows.Receipt, receipts.c.log.in_(known)) if known else []
    failed = _all(connection, rows.Failed, failures.c.log.in_(known)) if known else []
    return page, more, _shown(connection, node, conversation, marks), failed


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
    in the work it takes too."""
    query = (
        select(logs.c.seq * 0, logs.c.origin, logs.c.incarnation, *events.c)
        .join(logs, logs.c.log == events.c.log)
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
    placed = _placed(found)
    row = _one(connection, rows.Conversation, conversations.c.conversation == placed.event.conversation)
    return (placed, row) if row is not None else None


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
    """A conversation in which this user stands."""
    query = (
        select(conversations)
        .join(standings, standings.c.conversation == conversations.c.conversation)
        .where(standings.c.local == local, standings.c.conversation == conversation)
    )
    found = connection.execute(query).first()
    return None if found is None else rows.Conversation._make(found)


def standings_of(
    connection: Connection, node: bytes, local: str, requests_only: bool, after: bytes, limit: int
) -> tuple[list[tuple[rows.Standing, rows.Conversation]], dict[bytes, list[tuple[bytes, bytes, int]]], bool]:
    """A page of a user's conversations by id; their own read marks in these, newest logs first; whether more follow.

    A page ends before the conversation whose marks would be too many; one with too many alone loses the oldest.
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
    found = [(rows.Standing._make(v[:width]), rows.Conversation._make(v[width:])) for v in connection.execute(query)]
    page = found[:limit]
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
    read = connection.execute(query).all()
    for conversation, *mark in read:
        marks.setdefault(conversation, []).append(tuple(mark))
    if len(read) > MARKS_MAX:
        page = [p for p in page if p[0].conversation < conversation] or page[:1]
    return page, marks, len(page) < len(found)


def logs_of(connection: Connection, conversation: bytes) -> list[rows.LogHead]:
    return _all(connection, rows.LogHead, logs.c.conversation == conversation)


_UNACKED = Prepared(
    select(*outbound.c, *logs.c, *conversations.c)
    .join(logs, logs.c.log == outbound.c.log)
    .join(conversations, conversations.c.conversation == logs.c.conversation)
    .where(
        outbound.c.peer == bindparam("peer"),
        outbound.c.acked < outbound.c.head,
        outbound.c.log > bindparam("after"),
        outbound.c.log <= bindparam("upto"),
    )
    .order_by(outbound.c.log)
    .limit(LOGS_MAX)
)
_RUN = Prepared(
    select(events)
    .where(events.c.log == bindparam("log"), events.c.seq > bindparam("after"))
    .order_by(events.c.seq)
    .limit(bindparam("count"))
)


class Unacked(NamedTuple):
    """A log that a peer did not acknowledge to its end."""

    outbound: rows.Outbound
    head: rows.LogHead
    conversation: rows.Conversation


def unacked(connection: Connection, peer: bytes, after: bytes, upto: bytes = END) -> list[Unacked]:
    """A page of them by log key, past `after` and up to `upto`."""
    a, b = len(outbound.c), len(outbound.c) + len(logs.c)
    found = _UNACKED(connection, peer=peer, after=after, upto=upto)
    return [
        Unacked(rows.Outbound._make(v[:a]), rows.LogHead._make(v[a:b]), rows.Conversation._make(v[b:])) for v in found
    ]


class Run(NamedTuple):
    """What to send of one log."""

    of: Unacked
    after: int
    events: list[rows.StoredEvent]


def pending(
    connection: Connection,
    peer: bytes,
    turn: bytes,
    sent: Mapping[bytes, int],
    resting: Set[bytes],
    events_max: int,
    bytes_max: int,
) -> tuple[list[Run], bytes, bool]:
    """What to send to a peer next: a fair share of each log that has something past `sent` and does not rest.

    Logs take turns by key, from past `turn` on and once around. Returns the runs, whose turn it was last, and
    whether more could be sent at once if there were room.
    """
    ready: list[Unacked] = []
    for start, upto in ((turn, END), (b"", turn)):
        while True:  # past pages of logs that rest or are on their way: none of them holds up the ones behind it
            page = unacked(connection, peer, start, upto)
            ready += [u for u in page if u.head.log not in resting and sent.get(u.head.log, 0) < u.outbound.head]
            if page:
                turn = start = page[-1].head.log
            full = len(page) == LOGS_MAX
            if ready or not full:
                break
        if full:
            break  # the next look goes on from here
    share = max(1, min(events_max // max(1, len(ready)), wire.EVENTS_MAX))
    runs: list[Run] = []
    more = False
    for u in ready:
        if events_max <= 0 or bytes_max <= 0:
            return runs, runs[-1].of.head.log, True
        after = max(u.outbound.acked, sent.get(u.head.log, 0))
        found = log_run(connection, u.head.log, after, min(share, events_max))
        if found:
            runs.append(Run(u, after, found))
            events_max -= len(found)
            bytes_max -= sum(len(e.header) + len(e.body or b"") for e in found)
            more = more or found[-1].seq < u.outbound.head
    return runs, turn, more or full


def log_run(connection: Connection, log: bytes, after: int, limit: int) -> list[rows.StoredEvent]:
    """Events of one log past a number, in order, at most about half of BATCH_BYTES_MAX of them."""
    size = 0
    found: list[rows.StoredEvent] = []
    for values in _RUN(connection, log=log, after=after, count=limit):
        event = rows.StoredEvent._make(values)
        size += len(event.header) + len(event.body or b"") + 100
        if size > BATCH_BYTES_MAX // 2 and found:
            break
        found.append(event)
    return found

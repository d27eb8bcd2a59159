"""What is read from tables is looked at before it is believed: damaged rows are mended, left out or named."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, func, select, union

from federation.event import Header, Signed, event_id, is_lost, lost_event
from federation.ids import EVENT_ID_BYTES
from node.core import damage, rows
from node.core.log import waiting
from node.storage.schema import NAMES, TABLES

events, logs = TABLES[rows.StoredEvent], TABLES[rows.LogHead]
quarantine, outbound = TABLES[rows.Quarantine], TABLES[rows.Outbound]
items, facts, devices = TABLES[rows.Item], TABLES[rows.Fact], TABLES[rows.Device]
R = TypeVar("R", bound=tuple[Any, ...])
Found = Callable[[str, str], None]  # told the table, and the damaged fields
_found: ContextVar[Found | None] = ContextVar("found", default=None)


@contextmanager
def telling(found: Found) -> Iterator[None]:
    """Tell of each damaged row that is read meanwhile."""
    token = _found.set(found)
    try:
        yield
    finally:
        _found.reset(token)


def made(row: type[R], values: Sequence[Any]) -> R | None:
    """The row, mended where that is safe; none where it cannot be used."""
    mended, bad = damage.mend(row, values)
    if bad and (tell := _found.get()) is not None:
        tell(NAMES[row], ", ".join(bad))
    return mended


def each(row: type[R], found: Any) -> list[R]:
    """Those of many rows that can be used."""
    return [good for values in found if (good := made(row, values)) is not None]


class Placed(NamedTuple):
    """An event with the log it stands in, and its place in a mailbox (0 outside one)."""

    position: int
    origin: bytes
    incarnation: bytes
    event: rows.StoredEvent
    header: Header


class Broken(NamedTuple):
    """The place of one that cannot be shown, or of a run of them; parts that nothing tells are empty or 0."""

    position: int
    why: str  # api.Damaged
    conversation: bytes = b""
    origin: bytes = b""
    incarnation: bytes = b""
    seq: int = 0
    upto: int = 0
    event: bytes = b""


def placed(position: int, seq: Any, head: Sequence[Any], values: Sequence[Any]) -> Placed | Broken:
    """An event as joined: `head` is (conversation, origin, incarnation) of its log's row, `values` its own row."""
    event = made(rows.StoredEvent, values) if values[0] is not None else None
    if event is not None and not event.refused:
        header = damage.opened(event)
        assert header is not None  # else it would not have been made
        return Placed(position, header.origin, header.incarnation, event, header)
    conversation, origin, incarnation = (part if type(part) is bytes else b"" for part in head)
    number = seq if type(seq) is int and 0 < seq <= damage.NUMBER_MAX else 0
    why = "damaged" if values[0] is not None else "missing"
    if event is not None:
        why = "lost"
    name = values[2] if type(values[2]) is bytes and len(values[2]) == EVENT_ID_BYTES else b""
    return Broken(position, why, conversation, origin, incarnation, number, number, name)


def gaps(connection: Connection, page: list[Placed | Broken], newest: bool) -> list[Placed | Broken]:
    """The page with a mark before the next event, or at its end, wherever numbers of a log are missing.

    `newest`: nothing of the conversation comes after this page, so that each log must reach its head.
    """
    spans: dict[bytes, list[int]] = {}
    for item in page:
        if isinstance(item, Placed):
            spans.setdefault(item.event.log, []).append(item.event.seq)
    for log, seqs in spans.items():
        low, high = min(seqs), max(seqs)
        head = connection.execute(select(logs).where(logs.c.log == log)).first()
        known = made(rows.LogHead, head) if head is not None else None
        last = max(high, known.seq) if known is not None and newest else high
        there = and_between(log, max(1, low - 1), last)
        (count,) = connection.execute(select(func.count()).select_from(events).where(*there)).one()
        if count != last - max(1, low - 1) + 1:
            page = _marked(connection, page, log, low, last)
    return page


def and_between(log: bytes, low: int, high: int) -> tuple[Any, ...]:
    return events.c.log == log, events.c.seq >= low, events.c.seq <= high


def _marked(
    connection: Connection, page: list[Placed | Broken], log: bytes, low: int, last: int
) -> list[Placed | Broken]:
    first = next(i for i in page if isinstance(i, Placed) and i.event.log == log)
    query = select(func.max(events.c.seq)).where(events.c.log == log, events.c.seq < low)
    before = connection.execute(query).scalar()
    before = before if type(before) is int else 0
    found = connection.execute(select(events.c.seq).where(*and_between(log, low, last)).order_by(events.c.seq))
    numbers = [before, *(seq for (seq,) in found), last + 1]
    out = list(page)
    for a, b in pairwise(numbers):
        if b > a + 1:
            query = select(quarantine.c.seq).where(quarantine.c.log == log, quarantine.c.seq == a + 1)
            why = "quarantined" if connection.execute(query).first() is not None else "missing"
            mark = Broken(0, why, first.event.conversation, first.origin, first.incarnation, a + 1, b - 1)
            at = next(
                (i for i, p in enumerate(out) if isinstance(p, Placed) and p.event.log == log and p.event.seq >= b),
                len(out),
            )
            out.insert(at, mark)
    return out


def run(connection: Connection, head: rows.LogHead, after: int, found: Sequence[Any], upto: int) -> list[Signed]:
    """The events of our log past `after` up to `upto` for a link: `found` are the rows that are there.

    In place of each that is damaged or missing stands its mark (PROTOCOL.md 4.13).
    """
    good = {e.seq: e for values in found if (e := made(rows.StoredEvent, values)) is not None}
    if len(good) == upto - after:  # nothing is missing
        return [Signed(e.header, e.signature, e.body) for _, e in sorted(good.items())]
    out: list[Signed] = []
    for seq in range(after + 1, upto + 1):
        event = good.get(seq)
        out.append(
            Signed(event.header, event.signature, event.body)
            if event is not None
            else lost_event(_id(connection, head, seq, good))
        )
    return out


def _id(connection: Connection, head: rows.LogHead, seq: int, good: dict[int, rows.StoredEvent]) -> bytes:
    """The id of a lost event: what comes after it names it."""
    if seq == head.seq:
        return head.head
    after = good.get(seq + 1)
    if after is None:
        values = connection.execute(select(events).where(*and_between(head.log, seq + 1, seq + 1))).first()
        after = made(rows.StoredEvent, values) if values is not None else None
    header = damage.opened(after) if after is not None and not after.refused else None
    return (header.previous if header is not None else None) or bytes(32)


# --- rows that only sum up others -----------------------------------------------------------------------------------
def rebuilt(connection: Connection, row: type, key: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """One of REBUILT again from what it sums up; none where there is nothing."""
    again: tuple[Any, ...] | None = _REBUILD[row](connection, *key)
    return again


def _log_head(connection: Connection, log: bytes) -> rows.LogHead | None:
    query = select(events).where(events.c.log == log, events.c.seq <= damage.NUMBER_MAX).order_by(events.c.seq.desc())
    newest: Any = None
    origin: Header | None = None
    stamp = 0
    for values in connection.execute(query.limit(64)):
        newest = newest or values
        event = made(rows.StoredEvent, values)
        if event is not None and not event.refused and (header := damage.opened(event)) is not None:
            origin, stamp = header, header.stamp
            break
    if origin is None:
        return None
    event = rows.StoredEvent._make(newest)
    signed = Signed(event.header, event.signature, event.body)
    head = event.header if is_lost(signed) else event_id(event.header) if event.refused else event.event
    held = connection.execute(
        select(quarantine.c.seq, quarantine.c.event).where(quarantine.c.log == log).order_by(quarantine.c.seq.desc())
    ).first()
    seq = event.seq
    if held is not None and held[0] > seq:
        seq, head = held
    return rows.LogHead(log, origin.conversation, origin.origin, origin.incarnation, seq, head, stamp)


def _mailbox(connection: Connection, local: str) -> rows.Mailbox | None:
    (a,) = connection.execute(
        select(func.max(items.c.position)).where(items.c.local == local, items.c.position <= damage.NUMBER_MAX)
    ).one()
    (b,) = connection.execute(
        select(func.max(facts.c.position)).where(facts.c.local == local, facts.c.position <= damage.NUMBER_MAX)
    ).one()
    position = max((n for n in (a, b) if type(n) is int), default=0)
    if not position:
        return None
    (acked,) = connection.execute(
        select(func.max(devices.c.acked)).where(devices.c.local == local, devices.c.acked <= position)
    ).one()
    (count,) = connection.execute(
        select(func.count()).where(
            items.c.local == local,
            items.c.position > (acked if type(acked) is int else 0),
            items.c.position <= position,
        )
    ).one()
    return rows.Mailbox(local, position, count)


def with_mail(connection: Connection, locals: list[str]) -> set[str]:
    """Which of these users have something in a mailbox; in one statement however many they are."""
    query = union(*(select(table.c.local).where(table.c.local.in_(locals)) for table in (items, facts)))
    return {local for (local,) in connection.execute(query)}


def _outbound(connection: Connection, peer: bytes, log: bytes) -> rows.Outbound | None:
    """Nothing acknowledged: what the peer has it acknowledges again."""
    found = connection.execute(select(logs).where(logs.c.log == log)).first()
    head = (made(rows.LogHead, found) if found is not None else None) or _log_head(connection, log)
    query = select(outbound.c.given_up).where(outbound.c.peer == peer, outbound.c.log == log)
    gone = connection.execute(query).scalar()
    given_up = gone if type(gone) is int and head is not None and 0 <= gone <= head.seq else 0
    return rows.Outbound(peer, log, head.seq, 0, 0, given_up) if head is not None else None


def _destination(connection: Connection, peer: bytes) -> rows.Destination:
    query = select(outbound).where(outbound.c.peer == peer, outbound.c.acked < outbound.c.head)
    queues = each(rows.Outbound, connection.execute(query))
    return rows.Destination(peer, sum(map(waiting, queues)), sum(queue.bytes for queue in queues))


_REBUILD: dict[type, Callable[..., Any]] = {
    rows.LogHead: _log_head, rows.Mailbox: _mailbox, rows.Outbound: _outbound, rows.Destination: _destination,
}  # fmt: skip
REBUILT = frozenset(_REBUILD)

"""`roost verify`: the whole store looked at page by page, each page over one snapshot, so that a running node goes on.

A page is a plain function of a connection that gives what it found and where to go on.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, func, inspect, or_, select, text

from federation import wire
from federation.errors import ProtocolError
from federation.event import Event, Signed, event_id, is_lost, signature_holds
from federation.identity import check_chain, decode_chain, event_keys
from federation.ids import Log
from node import coding
from node.core import acts, damage, rows
from node.storage.schema import NAMES, TABLES

PAGE = 200  # rows; of events each costs a signature


class Finding(NamedTuple):
    """One thing that is not as it should be; `kind` is a key of MEANINGS, `where` names the row."""

    table: str
    kind: str
    where: str


# What it means, and what to do.
RESTORE = "restore a backup (`roost restore`), or live with the loss: everything else works"
MEANINGS: dict[str, tuple[str, str]] = {
    "structure": ("the database's own structure is damaged", "stop the node and restore a backup: `roost restore`"),
    "checksum": ("the database server found pages whose checksum is wrong", "look at its log, restore a backup"),
    "row": ("a row is damaged: it is mended where that is safe, else it counts as not there", RESTORE),
    "key": ("a row has no usable key: nothing finds it", RESTORE),
    "event": ("a message or receipt is damaged: people see that it is, peers are told that it is lost", RESTORE),
    "signature": ("an event is not signed by its node's key: peers refuse it", RESTORE),
    "chain": ("an event does not follow the one before it in its log", RESTORE),
    "gap": ("events of a log are missing: people see the gap, peers are told that they are lost", RESTORE),
    "head": ("a log's head is not its newest event; it is made again when its number is needed", RESTORE),
    "item": ("a place in a mailbox leads to no event: its reader sees that something is missing", RESTORE),
    "position": ("a mailbox counts less than it holds; it is counted again when a message comes", RESTORE),
    "fact": ("a receipt or state in a mailbox cannot be read; the next change replaces it", "nothing"),
    "queue": ("a queue does not agree with its log; the next message to that node mends it",
              "write to somebody on that node"),
    "count": ("a counter is wrong: a bound acts too early or too late", "nothing; it follows the next changes"),
    "orphan": ("a row belongs to something that is not here", RESTORE),
    "quarantine": ("events wait in quarantine", "`roost quarantine list`, then `replay` or `drop`"),
    "store": ("the store does not say whose it is", RESTORE),
}  # fmt: skip
HARMLESS = frozenset({"quarantine"})  # told, and no damage


class Place(NamedTuple):
    """Where the scan goes on: what is scanned, past which key, and what of events the next one must follow."""

    step: int = 0
    key: tuple[Any, ...] | None = None
    log: Any = None
    seq: int = 0
    event: bytes = b""


class Seen(NamedTuple):
    findings: list[Finding]
    rows: int
    next: Place | None  # none: all was looked at


def integrity(connection: Connection) -> list[Finding]:
    """What the database says of itself."""
    if connection.dialect.name == "sqlite":
        said = [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check(20)"))]
        # What is in the columns is looked at row by row.
        said = [line for line in said if line != "ok" and " value in " not in line]
        return [Finding("(all)", "structure", line) for line in said]
    query = "SELECT coalesce(checksum_failures, 0) FROM pg_stat_database WHERE datname = current_database()"
    found = [Finding("(all)", "checksum", f"{n} pages") for (n,) in connection.execute(text(query)) if n]
    if connection.execute(text("SELECT 1 FROM pg_extension WHERE extname = 'amcheck'")).first() is not None:
        for table in NAMES.values():
            for index in inspect(connection).get_indexes(table):
                try:
                    with connection.begin_nested():
                        connection.execute(text("SELECT bt_index_check(CAST(:i AS regclass))"), {"i": index["name"]})
                except Exception as error:
                    found.append(Finding(table, "structure", f"index {index['name']}: {str(error)[:200]}"))
    return found


def page(connection: Connection, node: bytes, chain: bytes, at: Place) -> Seen:
    """The next rows. `node` and `chain` are this node's own."""
    row = list(NAMES)[at.step]
    table, width = TABLES[row], rows.KEYS[row]
    key = list(table.columns)[:width]
    query = select(table).where(*(column.is_not(None) for column in key)).order_by(*key).limit(PAGE)
    if at.key is not None:
        query = query.where(_past(key, at.key))
    values = [tuple(found) for found in connection.execute(query)]
    look = _Look(connection, node, chain, row)
    findings: list[Finding] = []
    if at.key is None:
        (none,) = connection.execute(
            select(func.count()).select_from(table).where(or_(*(column.is_(None) for column in key)))
        ).one()
        findings += [Finding(NAMES[row], "key", f"{none} rows")] if none else []
    whole: list[Any] = []
    for found in values:
        made, bad = damage.mend(row, found)
        if bad and row is not rows.StoredEvent:
            findings.append(Finding(NAMES[row], "row", f"{_name(found[:width])}: {', '.join(bad)}"))
        if made is not None and not bad:
            whole.append(made)
    last = len(values) < PAGE
    if row is rows.StoredEvent:
        more, following = look.events(values, at, last)
        findings += more
    else:
        findings += look.others(whole)
        following = Place(at.step)
    if not last:
        return Seen(findings, len(values), following._replace(key=values[-1][:width]))
    return Seen(findings, len(values), Place(at.step + 1) if at.step + 1 < len(NAMES) else None)


def _past(key: Sequence[Any], values: Sequence[Any]) -> Any:
    """Keys after these values, spelled out so that the index is used."""
    terms = [
        and_(*(c == v for c, v in zip(key[:i], values[:i], strict=True)), column > values[i])
        for i, column in enumerate(key)
    ]
    return and_(key[0] >= values[0], or_(*terms))


def _name(key: Sequence[Any]) -> str:
    return " ".join(part.hex()[:16] if isinstance(part, bytes) else str(part)[:40] for part in key)


class _Look:
    """One page of one table, with what belongs to it."""

    def __init__(self, connection: Connection, node: bytes, chain: bytes, row: type) -> None:
        self._connection, self._node, self._chain, self._row = connection, node, chain, row
        self._keys: dict[bytes, tuple[bytes, ...]] = {}

    def _found(self, kind: str, where: str) -> Finding:
        return Finding(NAMES[self._row], kind, where)

    # --- events -------------------------------------------------------------------------------------------------------
    def events(self, values: list[tuple[Any, ...]], at: Place, last: bool) -> tuple[list[Finding], Place]:
        """Hash, signature, and the one before; where a log ends, its head."""
        out: list[Finding] = []
        log, seq, event = at.log, at.seq, at.event
        for found in values:
            here, number = found[0], found[1]
            if here != log:
                out += self._end(log, seq, event)
                log, seq, event = here, 0, b""
            if type(number) is not int or type(here) is not bytes:
                out.append(self._found("event", _name(found[:2])))
                continue
            if number != seq + 1:
                more, event = self._gap(log, seq, number)
                out += more
            made, _ = damage.mend(rows.StoredEvent, found)
            seq = number
            if made is None:
                out.append(self._found("event", _name(found[:2])))
                event = b""  # what follows can only be believed
                continue
            out += self._event(made, event)
            event = _id(made)
        if last:
            out += self._end(log, seq, event)
        return out, Place(at.step, None, log, seq, event)

    def _event(self, row: rows.StoredEvent, before: bytes) -> list[Finding]:
        header = damage.opened(row)
        if row.refused or header is None:
            return []
        where = _name(row[:2])
        if (before and header.previous != before) or (row.seq == 1 and header.previous is not None):
            return [self._found("chain", where)]
        keys = self._keys_of(header.origin)
        whole = Event(row.event, header, Signed(row.header, row.signature, None))
        if keys and not any(signature_holds(whole, key) for key in keys):
            return [self._found("signature", where)]
        return []

    def _keys_of(self, origin: bytes) -> tuple[bytes, ...]:
        """Of a node that was removed nothing is known, and nothing can be said."""
        if origin not in self._keys:
            peers = TABLES[rows.Peer]
            chain = self._chain if origin == self._node else None
            if chain is None:
                chain = self._connection.execute(select(peers.c.chain).where(peers.c.node == origin)).scalar()
            try:
                decoded = decode_chain(chain or b"")
                check_chain(decoded)
                self._keys[origin] = event_keys(decoded)
            except (ProtocolError, TypeError):
                self._keys[origin] = ()
        return self._keys[origin]

    def _gap(self, log: bytes, seq: int, number: int) -> tuple[list[Finding], bytes]:
        """What is between two numbers: in quarantine, or missing. The id before `number`, as far as it is known."""
        held = TABLES[rows.Quarantine]
        query = select(held.c.seq, held.c.event).where(held.c.log == log, held.c.seq > seq, held.c.seq < number)
        there = {s: event for s, event in self._connection.execute(query)}
        missing = number - seq - 1 - len(there)
        out = [self._found("gap", f"{log.hex()[:16]} {seq + 1} to {number - 1}")] if missing else []
        return out, there.get(number - 1, b"")

    def _end(self, log: Any, seq: int, event: bytes) -> list[Finding]:
        if type(log) is not bytes:
            return []
        heads = TABLES[rows.LogHead]
        head = self._connection.execute(select(heads.c.seq, heads.c.head).where(heads.c.log == log)).first()
        if head is None:
            return [self._found("head", f"{_name((log,))} has no head")]
        if type(head[0]) is int and head[0] > seq:
            out, before = self._gap(log, seq, head[0] + 1)
            return out if before or out else [self._found("head", _name((log, seq)))]
        return [self._found("head", _name((log, seq)))] if head[0] != seq or (event and head[1] != event) else []

    # --- the other tables ---------------------------------------------------------------------------------------------
    def others(self, whole: list[Any]) -> list[Finding]:
        look: Callable[[list[Any]], Iterator[Finding]] | None = getattr(self, f"_{NAMES[self._row]}", None)
        return list(look(whole)) if look is not None else []

    def _exist(self, row: type, keys: list[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
        """Which of these keys have a row."""
        table = TABLES[row]
        columns = list(table.columns)[: rows.KEYS[row]]
        found: set[tuple[Any, ...]] = set()
        for key in set(keys):
            where = (column == part for column, part in zip(columns, key, strict=True))
            if self._connection.execute(select(*columns).where(*where)).first() is not None:
                found.add(key)
        return found

    def _lead(self, whole: list[Any], row: type, key: Callable[[Any], tuple[Any, ...]], kind: str) -> Iterator[Finding]:
        there = self._exist(row, [key(r) for r in whole])
        for r in whole:
            if key(r) not in there:
                yield self._found(kind, _name(r[: rows.KEYS[self._row]]))

    def _meta(self, whole: list[rows.Meta]) -> Iterator[Finding]:
        values = {row.name: row.value for row in whole}
        if values.get("node") != self._node:
            yield self._found("store", "node")
        if len(values.get("store", b"")) != 16:
            yield self._found("store", "store")

    def _accounts(self, whole: list[rows.Account]) -> Iterator[Finding]:
        blocks = TABLES[rows.Block]
        query = select(blocks.c.local, func.count()).where(blocks.c.local.in_([r.local for r in whole]))
        there: dict[str, int] = dict(self._connection.execute(query.group_by(blocks.c.local)).tuples())
        for r in whole:
            if r.blocks != there.get(r.local, 0):
                yield self._found("count", f"{_name(r[:1])}: says {r.blocks}, {there.get(r.local, 0)} are blocked")

    def _blocks(self, whole: list[rows.Block]) -> Iterator[Finding]:
        yield from self._lead([r for r in whole if r.local], rows.Account, lambda r: (r.local,), "orphan")

    def _devices(self, whole: list[rows.Device]) -> Iterator[Finding]:
        yield from self._lead(whole, rows.Account, lambda r: (r.local,), "orphan")

    def _standings(self, whole: list[rows.Standing]) -> Iterator[Finding]:
        yield from self._lead(whole, rows.Account, lambda r: (r.local,), "orphan")
        yield from self._lead(whole, rows.Conversation, lambda r: (r.conversation,), "orphan")

    def _logs(self, whole: list[rows.LogHead]) -> Iterator[Finding]:
        """A log with events is looked at with them; this is about the others."""
        here = self._exist(rows.StoredEvent, [(r.log, r.seq) for r in whole])
        held = self._exist(rows.Quarantine, [(r.log, r.seq) for r in whole])
        for r in whole:
            if r.seq and (r.log, r.seq) not in here | held:
                yield self._found("gap", f"{_name((r.log,))} up to {r.seq}")

    def _own_logs(self, whole: list[rows.OwnLog]) -> Iterator[Finding]:
        keys = {r: (Log(r.conversation, self._node, r.incarnation).key,) for r in whole}
        yield from self._lead(whole, rows.LogHead, keys.__getitem__, "orphan")

    def _sent_keys(self, whole: list[rows.SentKey]) -> Iterator[Finding]:
        yield from self._lead(whole, rows.StoredEvent, lambda r: (r.log, r.seq), "orphan")

    def _mailboxes(self, whole: list[rows.Mailbox]) -> Iterator[Finding]:
        for r in whole:
            for table in (TABLES[rows.Item], TABLES[rows.Fact]):
                query = select(func.max(table.c.position)).where(
                    table.c.local == r.local, table.c.position <= damage.NUMBER_MAX
                )
                newest = self._connection.execute(query).scalar()
                if (type(newest) is int and newest > r.position) or r.items > r.position:
                    yield self._found("position", r.local)

    def _items(self, whole: list[rows.Item]) -> Iterator[Finding]:
        here = self._exist(rows.StoredEvent, [(r.log, r.seq) for r in whole])
        held = self._exist(rows.Quarantine, [(r.log, r.seq) for r in whole])
        for r in whole:
            if (r.log, r.seq) not in here | held:
                yield self._found("item", _name(r[:2]))
        boxes = self._exist(rows.Mailbox, [(r.local,) for r in whole])
        for local in sorted({r.local for r in whole} - {key[0] for key in boxes}):
            yield self._found("position", local)

    def _facts(self, whole: list[rows.Fact]) -> Iterator[Finding]:
        for r in whole:
            try:
                coding.decode_item(r.item, r.position)
            except ValueError:
                yield self._found("fact", _name(r[:2]))

    def _outbound(self, whole: list[rows.Outbound]) -> Iterator[Finding]:
        logs = TABLES[rows.LogHead]
        for r in whole:
            head = self._connection.execute(select(logs.c.seq).where(logs.c.log == r.log)).scalar()
            if type(head) is not int or not r.acked <= r.head <= head:
                yield self._found("queue", _name(r[:2]))
        boxes = self._exist(rows.Destination, [(r.peer,) for r in whole])
        for peer in sorted({r.peer for r in whole} - {key[0] for key in boxes}):
            yield self._found("count", _name((peer,)))

    def _destinations(self, whole: list[rows.Destination]) -> Iterator[Finding]:
        queue = TABLES[rows.Outbound]
        for r in whole:
            query = select(queue).where(queue.c.peer == r.peer, queue.c.acked < queue.c.head)
            queues = [made for v in self._connection.execute(query) if (made := damage.mend(rows.Outbound, v)[0])]
            waits = sum(max(0, q.head - max(q.acked, q.given_up)) for q in queues)
            if waits != r.waiting:
                yield self._found("count", f"{_name(r[:1])}: says {r.waiting}, {waits} wait")

    def _receipts(self, whole: list[rows.Receipt]) -> Iterator[Finding]:
        yield from self._lead(whole, rows.LogHead, lambda r: (r.log,), "orphan")

    def _failures(self, whole: list[rows.Failed]) -> Iterator[Finding]:
        yield from self._lead(whole, rows.LogHead, lambda r: (r.log,), "orphan")

    def _aimed(self, whole: list[rows.Aimed]) -> Iterator[Finding]:
        leads = {r: acts.places(r.edits + r.marks) for r in whole}
        there = self._exist(rows.StoredEvent, [place for of in leads.values() for place in of])
        for r, of in leads.items():
            if not there.issuperset(of):
                yield self._found("orphan", _name(r[:4]))

    def _quarantine(self, whole: list[rows.Quarantine]) -> Iterator[Finding]:
        for r in whole:
            try:
                segment = wire.decode_segment(r.segment)
            except ProtocolError:
                yield self._found("row", f"{_name(r[:2])}: segment")
                continue
            damaged = len(segment.events) != 1 or event_id(segment.events[0].header) != r.event
            yield self._found("row" if damaged else "quarantine", _name(r[:2]))

    def _quarantine_sizes(self, whole: list[rows.QuarantineSize]) -> Iterator[Finding]:
        held = TABLES[rows.Quarantine]
        for r in whole:
            query = select(func.count(), func.coalesce(func.sum(func.length(held.c.segment)), 0))
            count, size = self._connection.execute(query.where(held.c.peer == r.peer)).one()
            if (count, int(size)) != (r.events, r.size_bytes):
                yield self._found("count", _name(r[:1]))


def _id(row: rows.StoredEvent) -> bytes:
    """What the next event names as the one before it; empty where that is not known."""
    if not row.refused:
        return row.event
    signed = Signed(row.header, row.signature, None)
    return row.header if is_lost(signed) else event_id(row.header)

"""What the store knows of its own lives: whose it is, how often it was opened, whether it is an old copy."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, delete, func, or_, select, update

from federation.identity import SIGNATURE_BYTES
from federation.wire import Newest
from node.core import rows
from node.core.damage import LOST
from node.core.heal import HELD, HELD_STAMP
from node.storage.damaged import each, made, rebuilt
from node.storage.reads import meta, newest_stamp
from node.storage.schema import TABLES
from node.witness import Witness, judge

logs, events, outbound = TABLES[rows.LogHead], TABLES[rows.StoredEvent], TABLES[rows.Outbound]
conversations = TABLES[rows.Conversation]
metas, devices, invites = TABLES[rows.Meta], TABLES[rows.Device], TABLES[rows.Invite]
NEWEST_MAX = 16  # logs looked at for an event that is not damaged
LIFE, RESTORED, STORE, NODE = "life", "restored", "store", "node"


class Begun(NamedTuple):
    """What a start finds."""

    store: bytes  # incarnation of the store
    held: str  # why this is an old copy; empty: it is none
    restored: int  # stamp of the last restore
    life: int  # number of this start


class WrongNode(Exception):
    """The store belongs to another identity: under this one nothing in it would hold."""


def begin(
    connection: Connection,
    node: bytes,
    incarnation: bytes,
    store: bytes,
    watched: bool,
    witness: Witness | None,
    copied_from: str,
) -> Begun:
    """The first transaction of a process life. `store` is used where the store has no incarnation yet; `watched`
    says whether a witness file is kept, `witness` what it said before; `copied_from` names the folder that this one
    is a copy of. Raises `WrongNode`."""
    found = meta(connection, STORE)
    if found is None:
        found = store
        _put(connection, STORE, store)
        _put(connection, NODE, node)
    elif meta(connection, NODE) != node:
        raise WrongNode
    last = meta(connection, LIFE) or b""
    number, known = int.from_bytes(last[:8], "big"), last[8:]
    held = (meta(connection, HELD) or b"").decode(errors="replace")
    if watched and not held:
        held = judge(witness, number, known, newest_stamp(connection))
        if copied_from:
            held = f"this folder is a copy of {copied_from}, which is still there: one node runs from one of them"
    if held:
        _put(connection, HELD, held.encode())
    number = max(number, witness.life if witness else 0) + 1
    _put(connection, LIFE, number.to_bytes(8, "big") + incarnation)
    return Begun(found, held, int.from_bytes((meta(connection, RESTORED) or b"")[:8], "big"), number)


def accept(connection: Connection, store: bytes, stamp: int, now_ms: int) -> int:
    """The loss is accepted: what was revoked since the copy must not revive. The restore stamp, at least `stamp`."""
    stamp = max(stamp, int.from_bytes(meta(connection, HELD_STAMP) or b"", "big") + 1)
    connection.execute(update(devices).where(devices.c.revoked_ms == 0).values(revoked_ms=now_ms))
    unused = and_(invites.c.used_by == "", invites.c.revoked_ms == 0)
    connection.execute(update(invites).where(unused).values(revoked_ms=now_ms))
    connection.execute(delete(metas).where(metas.c.name.in_((HELD, HELD_STAMP))))
    _put(connection, STORE, store)
    _put(connection, RESTORED, stamp.to_bytes(8, "big"))
    return stamp


def hold(connection: Connection, reason: str) -> None:
    """Mark a store that nobody opened yet."""
    _put(connection, HELD, reason.encode())


def _put(connection: Connection, name: str, value: bytes) -> None:
    connection.execute(delete(metas).where(metas.c.name == name))
    connection.execute(metas.insert(), [{"name": name, "value": value}])


def owner(connection: Connection) -> bytes:
    """The node whose store this is; nothing for an empty one."""
    return meta(connection, NODE) or b""


def counts(connection: Connection) -> dict[str, int]:
    """How much there is, to be compared with a copy."""
    of = {"users": rows.Account, "events": rows.StoredEvent, "peers": rows.Peer}
    return {
        word: int(connection.execute(select(func.count()).select_from(TABLES[row])).scalar_one())
        for word, row in of.items()
    }


# --- what a restored node and its peers compare -----------------------------------------------------------------------
def newest(connection: Connection, origin: bytes) -> Newest | None:
    """Of the origin's own events, the one with the highest stamp that is here."""
    query = (
        select(*events.c)
        .join(logs, and_(logs.c.log == events.c.log, logs.c.seq == events.c.seq))
        .where(logs.c.origin == origin)
        .order_by(logs.c.stamp.desc())
        .limit(NEWEST_MAX)
    )
    for event in each(rows.StoredEvent, connection.execute(query)):
        if len(event.signature) == SIGNATURE_BYTES and event.refused != LOST:
            return Newest(event.header, event.signature)
    return None


def log_seq(connection: Connection, log: bytes) -> int:
    found = connection.execute(select(logs).where(logs.c.log == log)).first()
    head = made(rows.LogHead, found) if found is not None else None
    if head is None:  # lost or damaged, which is not yet an older copy: its events say how far it is
        head = rebuilt(connection, rows.LogHead, (log,))  # type: ignore[assignment]
    return head.seq if head is not None else 0


Marks = list[tuple[bytes, int]]  # log keys, ascending, and a number in each


def logs_of(connection: Connection, origin: bytes, after: bytes, upto: bytes, limit: int) -> Marks:
    """How far the logs of an origin are here."""
    query = select(logs.c.log, logs.c.seq).where(logs.c.origin == origin, logs.c.log > after, logs.c.log <= upto)
    return _marks(connection, query.order_by(logs.c.log), limit)


def kept_logs(connection: Connection, origin: bytes, notices: bytes, after: bytes, upto: bytes, limit: int) -> Marks:
    """How far the logs of an origin are here that can be given back to it: whose conversation is known. Where the
    first message was refused already, it is not, and neither is what was said."""
    query = (
        select(logs.c.log, logs.c.seq)
        .outerjoin(conversations, conversations.c.conversation == logs.c.conversation)
        .where(logs.c.origin == origin, logs.c.log > after, logs.c.log <= upto)
        .where(or_(conversations.c.kind.is_not(None), logs.c.conversation == notices))
    )
    return _marks(connection, query.order_by(logs.c.log), limit)


def shared_logs(connection: Connection, node: bytes, peer: bytes, after: bytes, upto: bytes, limit: int) -> Marks:
    """How far our own logs are that the peer must get."""
    return _marks(connection, _shared(logs.c.seq, node, peer, after, upto), limit)


def acked_logs(connection: Connection, node: bytes, peer: bytes, after: bytes, upto: bytes, limit: int) -> Marks:
    """How far the peer acknowledged our own logs."""
    return _marks(connection, _shared(outbound.c.acked, node, peer, after, upto), limit)


def _shared(number: Any, node: bytes, peer: bytes, after: bytes, upto: bytes) -> Any:
    return (
        select(outbound.c.log, number)
        .join(logs, logs.c.log == outbound.c.log)
        .where(outbound.c.peer == peer, logs.c.origin == node, outbound.c.log > after, outbound.c.log <= upto)
        .order_by(outbound.c.log)
    )


def _marks(connection: Connection, query: Any, limit: int) -> Marks:
    return [(log, int(number)) for log, number in connection.execute(query.limit(limit))]

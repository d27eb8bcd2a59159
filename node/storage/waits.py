"""What waits for other nodes, and how full the store's bounded parts are."""

from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, case, func, select

from node.core import rows
from node.core.damage import NUMBER_MAX
from node.storage.schema import TABLES

events, logs, outbound = TABLES[rows.StoredEvent], TABLES[rows.LogHead], TABLES[rows.Outbound]
conversations, mailboxes, receipts = TABLES[rows.Conversation], TABLES[rows.Mailbox], TABLES[rows.Receipt]
LOGS_MAX = 64  # logs looked at together
GIVE_UP_MAX = 256  # messages of one log given up in one transaction
_DONE = case((outbound.c.given_up > outbound.c.acked, outbound.c.given_up), else_=outbound.c.acked)


class Waiting(NamedTuple):
    """What waits for a peer: events, bytes (about), and when the oldest was accepted (ms since 1970)."""

    events: int
    bytes: int
    oldest_ms: int


def waiting(connection: Connection) -> dict[bytes, Waiting]:
    """Per peer for which anything waits."""
    first = and_(events.c.log == outbound.c.log, events.c.seq == _DONE + 1)
    query = (
        select(
            outbound.c.peer,
            func.sum(outbound.c.head - _DONE),
            func.sum(outbound.c.bytes),
            func.min(events.c.arrived_ms),
        )
        .join(events, first, isouter=True)
        .where(outbound.c.acked < outbound.c.head, outbound.c.given_up < outbound.c.head)
        .where(outbound.c.head <= NUMBER_MAX, outbound.c.acked >= 0, outbound.c.bytes.between(0, NUMBER_MAX))
        .group_by(outbound.c.peer)
    )
    found = connection.execute(query)
    return {peer: Waiting(*map(_number, values)) for peer, *values in found if type(peer) is bytes}


def _number(value: Any) -> int:
    """What a sum over damaged rows says counts for nothing."""
    return max(0, int(value)) if isinstance(value, int | Decimal) else 0


def overdue(connection: Connection, peer: bytes | None, before_ms: int) -> list[tuple[bytes, bytes, int]]:
    """Direct messages that wait for a peer (or any) since before then: peer, log, last number; a few logs at once.

    Not what a restored peer gets again: its own events, and those of ours that it had acknowledged.
    """
    first = and_(events.c.log == outbound.c.log, events.c.seq == _DONE + 1, events.c.arrived_ms < before_ms)
    query = (
        select(outbound.c.peer, outbound.c.log, _DONE)
        .join(events, first)
        .join(logs, logs.c.log == outbound.c.log)
        .join(conversations, conversations.c.conversation == logs.c.conversation)
        .outerjoin(receipts, and_(receipts.c.log == outbound.c.log, receipts.c.node == outbound.c.peer))
        .where(outbound.c.acked < outbound.c.head, outbound.c.given_up < outbound.c.head)
        .where(conversations.c.kind == "direct", logs.c.origin != outbound.c.peer)
        .where(func.coalesce(receipts.c.sent, 0) <= _DONE)
        .limit(LOGS_MAX)
    )
    found = connection.execute(query if peer is None else query.where(outbound.c.peer == peer)).all()
    out = []
    for node, log, done in found:
        old = (
            select(events.c.seq)
            .where(events.c.log == log, events.c.seq > done, events.c.arrived_ms < before_ms)
            .order_by(events.c.seq)
            .limit(GIVE_UP_MAX)
        )
        out.append((node, log, max(connection.execute(old).scalars())))
    return out


def totals(connection: Connection) -> dict[str, int]:
    """The fullest mailbox and queue, the longest block list, and how much evidence is kept: for `roost status`."""
    d, q, evidence = TABLES[rows.Destination], TABLES[rows.QuarantineSize], TABLES[rows.Evidence]
    query = select(
        select(func.coalesce(func.max(mailboxes.c["items"]), 0)).scalar_subquery(),
        select(func.coalesce(func.max(mailboxes.c.bytes), 0)).scalar_subquery(),
        select(func.coalesce(func.max(d.c.waiting), 0)).scalar_subquery(),
        select(func.coalesce(func.max(d.c.bytes), 0)).scalar_subquery(),
        select(func.coalesce(func.max(q.c.events), 0)).scalar_subquery(),
        select(func.coalesce(func.max(q.c.size_bytes), 0)).scalar_subquery(),
        select(func.count()).select_from(evidence).scalar_subquery(),
        select(func.coalesce(func.max(TABLES[rows.Account].c.blocks), 0)).scalar_subquery(),
    )
    names = (
        "mailbox messages",
        "mailbox bytes",
        "waiting events",
        "waiting bytes",
        "held events",
        "held bytes",
        "evidence",
        "blocks",
    )
    return dict(zip(names, map(_number, connection.execute(query).one()), strict=True))

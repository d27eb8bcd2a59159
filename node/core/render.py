"""Stored rows as what a client sees."""

from collections.abc import Callable, Iterable

from federation.event import THREAD, UNDO, Header, stamp_ms
from federation.ids import User, to_text
from node import api
from node.core import rows
from node.core.log import members, unpack

Address = Callable[[bytes, str], str]


def message(
    origin: bytes,
    incarnation: bytes,
    event: rows.StoredEvent,
    header: Header,
    address: Address,
    position: int = 0,
    state: str = "",
    reason: str = "",
) -> api.Message:
    """One event, with its header as it was opened when it was read."""
    return api.Message(
        event=to_text(event.event),
        conversation=to_text(event.conversation),
        origin=to_text(origin),
        log=to_text(incarnation),
        seq=event.seq,
        sender=address(origin, event.sender),
        device=to_text(event.device),
        stamp=stamp_ms(event.stamp),
        order=api.order(event.stamp),
        kind=event.kind,
        format=header.body_format,
        body=event.body,
        target=to_text(header.target) if header.target else None,
        thread=to_text(thread) if (thread := header.ext.get(THREAD)) else None,
        undo=UNDO in header.ext,
        late=bool(event.late),
        position=position,
        state=state,
        reason=reason,
    )


def damaged(
    why: str, conversation: bytes = b"", origin: bytes = b"", incarnation: bytes = b"", seq: int = 0, upto: int = 0,
    event: bytes = b"", position: int = 0,
) -> api.Damaged:  # fmt: skip
    """What cannot be shown, as far as anything is known of it."""
    return api.Damaged(
        why, to_text(conversation), to_text(origin), to_text(incarnation), seq, upto, to_text(event), position
    )


def recipients(
    conversation: rows.Conversation,
    sender: User,
    event: rows.StoredEvent,
    receipts: Iterable[rows.Receipt],
    failed: Iterable[rows.Failed],
    address: Address,
) -> tuple[api.Recipient, ...]:
    """The state of one event at every other member."""
    marks = {(r.node, r.local): r for r in receipts if r.log == event.log}
    lost = {(f.node, f.local): f for f in failed if (f.log, f.seq) == (event.log, event.seq)}
    out = []
    for member in members(conversation):
        if member == sender and len(members(conversation)) > 1:
            continue
        mark, failure = marks.get(member), lost.get(member)
        if failure is not None:
            reason = f"{failure.code}: {failure.reason}"
            out.append(api.Recipient(address(*member), "failed", failure.at_ms, reason))
        elif mark is not None and mark.read >= event.seq:
            out.append(api.Recipient(address(*member), "read", mark.read_ms))
        elif mark is not None and mark.delivered >= event.seq and event.seq not in unpack(mark.missing):
            out.append(api.Recipient(address(*member), "delivered", mark.delivered_ms))
        elif mark is not None and mark.sent >= event.seq:
            out.append(api.Recipient(address(*member), "sent", mark.sent_ms))
        else:
            out.append(api.Recipient(address(*member), "accepted", event.arrived_ms))
    return tuple(out)


def device(row: rows.Device, this: bytes = b"") -> api.DeviceState:
    return api.DeviceState(
        to_text(row.device), row.name, row.created_ms, row.seen_ms, bool(row.revoked_ms), row.device == this
    )

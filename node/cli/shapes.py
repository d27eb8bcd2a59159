"""The objects and lines that scripts and people read: one function a shape, used by every command."""

from typing import Any

from node.cli.output import clock, safe
from node.client.model import DAMAGED, Change, Message

KINDS = ("message", "state", "request", "device")


def message_object(m: Message) -> dict[str, Any]:
    """A message in `tail` and `pipe`."""
    return {
        "kind": "message", "id": m.id, "conversation": m.conversation, "from": m.sender, "text": m.text,
        "stamp": m.stamp, "device": m.device, "origin": m.origin, "log": m.log, "seq": m.seq, "late": m.late,
        "reply_to": m.reply_to, "mine": m.mine, "damaged": m.kind == DAMAGED,
    }  # fmt: skip


def change_object(change: Change) -> dict[str, Any] | None:
    """A change in `tail` and `pipe`; none for what only a screen needs."""
    if change.kind == "message" and change.message:
        return message_object(change.message)
    if change.kind == "state" and change.message:
        m = change.message
        return {
            "kind": "state", "id": m.id, "conversation": m.conversation, "state": m.state, "reason": m.reason,
            "key": m.key,
        }  # fmt: skip
    if change.kind == "request" and change.conversation:
        return {"kind": "request", "conversation": change.conversation.id, "from": change.conversation.title}
    if change.kind == "device":
        return {"kind": "device", "device": change.device, "detail": change.detail}
    return None


def change_text(change: Change) -> str:
    """A change for people."""
    if change.kind == "message" and change.message:
        return history_text(change.message)
    if change.kind == "state" and change.message:
        reason = f" ({safe(change.message.reason)})" if change.message.reason else ""
        return f"{safe(change.message.id or change.message.key)} is {change.message.state}{reason}"
    if change.kind == "request" and change.conversation:
        return f"{safe(change.conversation.title)} wants to write: roost accept {safe(change.conversation.id)}"
    return f"device {safe(change.device)} {safe(change.detail)}"


def history_object(m: Message) -> dict[str, Any]:
    """A message in `history`."""
    return {
        "id": m.id, "conversation": m.conversation, "origin": m.origin, "log": m.log, "seq": m.seq,
        "from": m.sender, "device": m.device, "stamp": m.stamp, "kind": m.kind, "text": m.text, "state": m.state,
        "reason": m.reason, "reply_to": m.reply_to,
    }  # fmt: skip


def history_text(m: Message) -> str:
    """A message for people, on one line."""
    if m.kind == DAMAGED:
        return f"{clock(m.stamp)}  {safe(m.text)}"
    state = f"  [{m.state}{': ' + safe(m.reason) if m.reason else ''}]" if m.state else ""
    return f"{clock(m.stamp)}  {safe(m.sender)}: {safe(m.text)}{state}"


def sent_object(m: Message, to: str) -> dict[str, Any]:
    """The answer to one `send`."""
    return {
        "id": m.id, "conversation": m.conversation, "state": m.state, "key": m.key, "to": to,
        "origin": m.origin, "log": m.log, "seq": m.seq, "stamp": m.stamp, "reason": m.reason,
    }  # fmt: skip

"""The objects and lines that scripts and people read: one function a shape, used by every command."""

from typing import Any

from node.cli.output import clock, safe
from node.client.model import DAMAGED, Change, Message

QUOTE_CHARS_MAX = 40
KINDS = ("message", "update", "state", "request", "device")


def message_object(m: Message) -> dict[str, Any]:
    """A message in `tail` and `pipe`."""
    return {
        "kind": "message", "id": m.id, "conversation": m.conversation, "from": m.sender, "text": m.text,
        "stamp": m.stamp, "device": m.device, "origin": m.origin, "log": m.log, "seq": m.seq, "late": m.late,
        "reply_to": m.reply_to, "mine": m.mine, "damaged": m.kind == DAMAGED, "mentions_me": m.mentions_me,
    } | _folded(m)  # fmt: skip


def _folded(m: Message) -> dict[str, Any]:
    """What was done to a message."""
    return {
        "thread": m.thread, "edited": m.edited, "deleted": m.deleted, "pinned": m.pinned, "replies": m.replies,
        "reactions": {r.emoji: list(r.by) for r in m.reactions},
    }  # fmt: skip


def update_object(m: Message, act: Message) -> dict[str, Any]:
    """What somebody did to a message, which is given as it stands now."""
    return {
        "kind": "update", "what": act.kind, "by": act.sender, "act": act.id, "emoji": _emoji(act), "undo": act.undo,
        "id": m.id, "conversation": m.conversation, "from": m.sender, "text": m.text, "stamp": act.stamp,
    } | _folded(m)  # fmt: skip


def _emoji(act: Message) -> str:
    return act.text if act.kind == "reaction" else ""


def act_object(act: Message, target: str) -> dict[str, Any]:
    """The answer to one `edit`, `delete`, `react`, `pin` or `unpin`."""
    return {
        "id": act.id, "kind": act.kind, "target": target, "conversation": act.conversation, "state": act.state,
        "key": act.key, "reason": act.reason,
    }  # fmt: skip


def change_object(change: Change) -> dict[str, Any] | None:
    """A change in `tail` and `pipe`; none for what only a screen needs."""
    if change.kind == "message" and change.message:
        return message_object(change.message)
    if change.kind == "update" and change.message and change.act:
        return update_object(change.message, change.act)
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
    if change.kind == "update" and change.message and change.act:
        return update_text(change.message, change.act)
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
        "reason": m.reason, "reply_to": m.reply_to, "mentions_me": m.mentions_me,
    } | _folded(m)  # fmt: skip


def history_text(m: Message) -> str:
    """A message for people, on one line."""
    if m.kind == DAMAGED:
        return f"{clock(m.stamp)}  {safe(m.text)}"
    state = f"  [{m.state}{': ' + safe(m.reason) if m.reason else ''}]" if m.state else ""
    if m.deleted:
        return f"{clock(m.stamp)}  {safe(m.sender)}: (deleted){state}"
    answers = f"(to {safe(m.quote.sender)}: {safe(_short(m.quote.text))}) " if m.quote else ""
    more = "  (edited)" * bool(m.edited) + f"  (pinned by {safe(m.pinned)})" * bool(m.pinned)
    more += "".join(f"  {safe(r.emoji)} {len(r.by)}" for r in m.reactions)
    more += f"  ({m.replies} in its thread)" if m.replies else ""
    return f"{clock(m.stamp)}  {safe(m.sender)}: {answers}{safe(m.text)}{more}{state}"


def _short(text: str) -> str:
    return text if len(text) <= QUOTE_CHARS_MAX else text[: QUOTE_CHARS_MAX - 3] + "..."


def update_text(m: Message, act: Message) -> str:
    """What somebody did to a message, for people."""
    who, what = safe(act.sender), safe(_short(m.text))
    said = {
        "edit": f"edited: {safe(m.text)}",
        "delete": f"deleted a message of {safe(m.sender)}",
        "reaction": f"{'took back' if act.undo else 'reacted'} {safe(act.text)} on: {what}",
        "pin": f"pinned: {what}",
        "unpin": f"unpinned: {what}",
    }
    return f"{clock(act.stamp)}  * {who} {said[act.kind]}"


def sent_object(m: Message, to: str) -> dict[str, Any]:
    """The answer to one `send`."""
    return {
        "id": m.id, "conversation": m.conversation, "state": m.state, "key": m.key, "to": to,
        "origin": m.origin, "log": m.log, "seq": m.seq, "stamp": m.stamp, "reason": m.reason,
    }  # fmt: skip

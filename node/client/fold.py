"""What a message is once all that was done to it is taken into account (PROTOCOL.md 4.16 to 4.18).

Pure: the same events give the same result, in whatever order they came.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from node.client.model import ACTS, Edit, Message, Quote, Reaction

QUOTE_CHARS_MAX = 200
_LAST = 1 << 63  # what is only queued here comes after all that has a place in the order
_AS_BYTES = str.maketrans("234567", "{|}~\x7f\x80")  # base32 puts its digits after its letters


class Folded(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What others and edits add to a message; kept beside it."""

    text: str | None = None  # instead of its own
    deleted: bool = False
    edited: int = 0
    edits: tuple[Edit, ...] = ()
    reactions: tuple[Reaction, ...] = ()
    pinned: str = ""
    quote: Quote | None = None
    replies: int = 0


NOTHING = Folded()


def fold(message: Message, acts: Iterable[Message], answers: Message | None = None, replies: int = 0) -> Folded:
    """`message` as it was sent; its `acts` in any order; the message that it answers, as it stands."""
    every = sorted((a for a in acts if a.kind in ACTS and a.conversation == message.conversation), key=_place)
    own = [a for a in every if author(a) == author(message)]
    if message.deleted or any(a.kind == "delete" for a in own):
        return Folded("", True, replies=replies)
    edits = [a for a in own if a.kind == "edit"]
    said = (Edit(message.text, message.stamp), *(Edit(a.text, a.stamp) for a in edits))
    return Folded(
        text=said[-1].text if edits else None,
        edited=said[-1].stamp if edits else 0,
        edits=said if edits else (),
        reactions=_reactions(every),
        pinned=_pinned(every),
        quote=quoted(answers) if answers is not None else None,
        replies=replies,
    )


def quoted(message: Message) -> Quote:
    """What an answer to it shows."""
    return Quote(message.sender, message.text[:QUOTE_CHARS_MAX], message.deleted)


def apply(message: Message, folded: Folded) -> Message:
    """The message as it stands."""
    if folded is NOTHING:
        return message
    return msgspec.structs.replace(
        message,
        text=message.text if folded.text is None else folded.text,
        deleted=message.deleted or folded.deleted,
        edited=folded.edited,
        edits=folded.edits,
        reactions=folded.reactions,
        pinned=folded.pinned,
        quote=folded.quote,
        replies=folded.replies,
    )


def _place(message: Message) -> tuple[int, str, str, int, str]:
    """PROTOCOL.md 4.10."""
    order = message.order if message.id is not None else _LAST
    origin, log = message.origin.translate(_AS_BYTES), message.log.translate(_AS_BYTES)
    return order, origin, log, message.seq, message.key


def author(message: Message) -> tuple[str, str]:
    """Who did it; an address may change its node's name, and a node its address."""
    return ("", "") if message.mine else (message.origin, message.sender.rpartition("@")[0])


def _reactions(acts: list[Message]) -> tuple[Reaction, ...]:
    standing: dict[tuple[str, tuple[str, str]], Message] = {}
    for act in acts:
        if act.kind == "reaction":
            key = act.text, author(act)
            standing.pop(key, None)
            if not act.undo:
                standing[key] = act
    by_emoji: dict[str, list[Message]] = {}
    for (emoji, _), act in standing.items():
        by_emoji.setdefault(emoji, []).append(act)
    return tuple(
        Reaction(emoji, tuple(a.sender for a in of), any(a.mine for a in of)) for emoji, of in by_emoji.items()
    )


def _pinned(acts: list[Message]) -> str:
    last = next((a for a in reversed(acts) if a.kind in ("pin", "unpin")), None)
    return last.sender if last is not None and last.kind == "pin" else ""


@lru_cache(16)
def _mention(address: str) -> re.Pattern[str]:
    local, _, node = address.partition("@")
    name, where = re.escape(local), re.escape(node)
    return re.compile(rf"(?<![\w.@-])@{name}(?:@{where}(?![\w-])(?!\.\w)|(?![\w@-])(?!\.\w))", re.IGNORECASE)


def mentions(text: str, address: str) -> bool:
    """Whether a text names this user: `@name` or `@name@node`."""
    return "@" in text and _mention(address).search(text) is not None

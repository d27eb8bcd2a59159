"""Edits, deletions, reactions and pins: whose they may be, and what becomes of bodies (PROTOCOL.md 4.15 to 4.19).

A node reads no body: that an edit replaces a text is for clients to show. What it does itself is to refuse what
is certainly not theirs to change, and to drop every body that a deletion is about, whichever of them came first.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from federation.errors import ProtocolError
from federation.event import ACTS, DELETE, EDIT, MESSAGE, Event, Header, Signed, event_id, peek_header
from federation.ids import User
from node.core import rows
from node.core.view import Key, View

OF_ONE_MAX = 256  # edits, reactions and pins of one person on one message
LOG_BYTES = rows.PLACE_BYTES - 8


class Deed(NamedTuple):
    """Somebody does something to an event of this conversation."""

    conversation: bytes
    kind: str
    target: bytes
    actor: User


def may_edit(actor: User, author: User) -> bool:
    """Nobody puts words into somebody else's mouth."""
    return actor == author


def may_delete(view: View, conversation: bytes, actor: User, author: User) -> bool:
    """In a direct conversation only who wrote it; the one place to ask for more."""
    return actor == author


def came(view: View, events: Iterable[Signed]) -> None:
    """Ask for all that `settle` and `refusal` will look at, in a few rounds however many events a peer sent.

    Nothing of them was checked yet.
    """
    deeds: list[Deed] = []
    own: list[Key] = []
    for signed in events:
        with suppress(ProtocolError):
            h, event = peek_header(signed.header), event_id(signed.header)
            if h.kind in ACTS and h.target is not None:
                deeds.append(Deed(h.conversation, h.kind, h.target, User(h.origin, h.sender)))
            elif h.kind == MESSAGE:
                own.append((rows.Aimed, (event, h.conversation, h.origin, h.sender)))
    want(view, deeds, own)


def want(view: View, deeds: Sequence[Deed], more: Sequence[Key] = ()) -> None:
    """Ask for what these look at: each step needs the answers of the one before."""
    view.want(
        *more,
        *((rows.Place, (d.target,)) for d in deeds),
        *((rows.Aimed, (d.target, d.conversation, *d.actor)) for d in deeds if d.kind in ACTS),
    )
    places_ = [p for d in deeds if (p := view.get(rows.Place, d.target)) is not None]
    view.want(*((rows.StoredEvent, (p.log, p.seq)) for p in places_), *((rows.LogHead, (p.log,)) for p in places_))
    authors = {d: found[1] for d in deeds if (found := target(view, d.conversation, d.target)) is not None}
    view.want(*((rows.Aimed, (d.target, d.conversation, *author)) for d, author in authors.items()))


def target(view: View, conversation: bytes, event: bytes) -> tuple[rows.StoredEvent, User] | None:
    """A message of this conversation and who wrote it. One of another conversation is as if it were not there."""
    place = view.get(rows.Place, event)
    if place is None or place.conversation != conversation:
        return None
    found, head = view.get(rows.StoredEvent, place.log, place.seq), view.get(rows.LogHead, place.log)
    if found is None or head is None or found.kind != MESSAGE:
        return None
    return found, User(head.origin, found.sender)


def refusal(view: View, header: Header) -> str:
    """The code with which an act that came from elsewhere is refused; empty if it stands."""
    if header.kind not in ACTS or header.target is None:
        return ""
    me = User(header.origin, header.sender)
    found = target(view, header.conversation, header.target)
    if found is not None and not allowed(view, header.conversation, header.kind, me, found[1]):
        return "not_yours"
    return "too_many" if is_full(view, header.conversation, header.kind, header.target, me) else ""


def allowed(view: View, conversation: bytes, kind: str, actor: User, author: User) -> bool:
    """Whether an act on this author's message counts."""
    if kind == EDIT:
        return may_edit(actor, author)
    return kind != DELETE or may_delete(view, conversation, actor, author)


def is_full(view: View, conversation: bytes, kind: str, event: bytes, me: User) -> bool:
    """Whether one person did as much to a message as anybody may; a deletion always finds room."""
    row = view.get(rows.Aimed, event, conversation, *me)
    return kind != DELETE and row is not None and len(row.edits + row.marks) >= OF_ONE_MAX * rows.PLACE_BYTES


def is_deleted(view: View, conversation: bytes, event: bytes, author: User) -> bool:
    row = view.get(rows.Aimed, event, conversation, *author)
    return row is not None and bool(row.deleted)


def settle(view: View, event: Event, ours: bool) -> bytes | None:
    """The body to keep of an event that is being stored. `ours`: it was signed just now."""
    header, body = event.header, event.signed.body
    me = User(header.origin, header.sender)
    if header.kind == MESSAGE:
        return None if not ours and is_deleted(view, header.conversation, event.id, me) else body
    if header.kind not in ACTS or header.target is None:
        return body
    found = target(view, header.conversation, header.target)
    author = found[1] if found is not None else me  # the deletion of what is not here counts only if it is theirs
    of = header.target, header.conversation
    row = view.get(rows.Aimed, *of, *author) or rows.Aimed(*of, *author, 0, b"", b"")
    if header.kind == DELETE:
        if allowed(view, header.conversation, DELETE, me, author):
            view.put(row._replace(deleted=1))
            gone = [(found[0].log, found[0].seq)] if found is not None else []
            for log, seq in [*gone, *places(row.edits)]:  # the message, and what it was before and after edits
                view.put(rows.Drop(log, seq))
        return body
    mine = view.get(rows.Aimed, *of, *me) or rows.Aimed(*of, *me, 0, b"", b"")
    place = header.log.key + header.seq.to_bytes(8, "big")
    if header.kind != EDIT:
        view.put(mine._replace(marks=mine.marks + place))
        return body
    view.put(mine._replace(edits=mine.edits + place))
    return None if row.deleted or mine.deleted else body


def places(raw: bytes) -> list[tuple[bytes, int]]:
    """Where acts stand that a row lists."""
    return [
        (raw[i : i + LOG_BYTES], int.from_bytes(raw[i + LOG_BYTES : i + rows.PLACE_BYTES], "big"))
        for i in range(0, len(raw), rows.PLACE_BYTES)
    ]

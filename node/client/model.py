"""What a program or a screen gets from the SDK: messages, conversations, states, lights."""

from typing import Literal

import msgspec

State = Literal["", "queued", "accepted", "sent", "delivered", "read", "failed", "void"]
DAMAGED = "damaged"  # kind of what stands for messages that the node cannot show
STATES: tuple[State, ...] = ("queued", "accepted", "sent", "delivered", "read")  # in the order they are reached


ACTS = ("edit", "delete", "reaction", "pin", "unpin")  # kinds of events that are about a message (PROTOCOL.md 4.15)


class Edit(msgspec.Struct, frozen=True, array_like=True):
    """What a message said from some moment on."""

    text: str
    stamp: int  # ms since 1970


class Reaction(msgspec.Struct, frozen=True, array_like=True):
    """One emoji on a message."""

    emoji: str
    by: tuple[str, ...]  # addresses, the first to use it first
    mine: bool = False  # I am one of them


class Quote(msgspec.Struct, frozen=True, array_like=True):
    """What a message answers."""

    sender: str
    text: str
    deleted: bool = False


class Message(msgspec.Struct, frozen=True):
    """One message as this device knows it, with all that was done to it.

    An act, which only `state` and `update` changes give, has the same fields: its kind, its target in `reply_to`.
    """

    id: str | None  # event id; none while it is only queued here
    key: str  # stable from the first moment: the key that a message was sent with here, else made from its id
    conversation: str
    sender: str  # address
    device: str
    text: str
    stamp: int  # ms since 1970
    mine: bool
    state: State = ""  # of own messages; empty for others'
    reason: str = ""  # why it failed
    late: bool = False  # arrived after newer ones were already here
    order: int = 0  # whole signed stamp
    kind: str = "message"
    origin: str = ""
    log: str = ""
    seq: int = 0
    reply_to: str | None = None
    thread: str | None = None  # id of the first message of the thread that it belongs to
    undo: bool = False  # of a reaction: it is taken back
    deleted: bool = False  # its text is gone for ever
    edited: int = 0  # when the text became what it is, ms; 0: never edited
    edits: tuple[Edit, ...] = ()  # all that it said, in order; empty when it was never edited
    reactions: tuple[Reaction, ...] = ()
    pinned: str = ""  # who pinned it
    quote: Quote | None = None  # what it answers, where that is here
    replies: int = 0  # messages in the thread that began with it
    mentions_me: bool = False


class Conversation(msgspec.Struct, frozen=True):
    """A conversation for a list."""

    id: str  # the other's address until the node took the first message
    title: str  # the other member's address
    unread: int = 0
    last_text: str = ""
    last_stamp: int = 0
    request: bool = False
    read_upto: int = 0  # stamp of the newest message known to be read, ms
    mentions: int = 0  # unread messages that name this user


class Lights(msgspec.Struct, frozen=True):
    """The two connections a person wants to see."""

    me: Literal["up", "down", "connecting"] = "connecting"  # this device to its node
    me_since: int = 0  # ms since 1970; of up, or of not being up
    peers: dict[str, tuple[str, int]] = {}  # node name -> (up, down or connecting; since)
    reason: str = ""  # why not up, or why up but not over QUIC


class Typing(msgspec.Struct, frozen=True):
    """Somebody types, or does not any more."""

    conversation: str
    who: str  # address
    on: bool


class Presence(msgspec.Struct, frozen=True):
    """Whether a contact is there, as far as they show it."""

    conversation: str
    who: str  # address
    state: Literal["online", "away", "offline"]


class Change(msgspec.Struct, frozen=True):
    """Something to redraw or to print. A consumer may see the same one twice; ids and keys stay.

    `typing` and `presence` pass by: no store has them, and `Client.events` gives them to who asks for these kinds only.
    """

    kind: Literal["message", "state", "update", "conversation", "request", "device", "lights", "typing", "presence"]
    message: Message | None = None  # for message, state and update: as it is now
    conversation: Conversation | None = None
    device: str = ""
    detail: str = ""
    sign: Typing | Presence | None = None
    act: Message | None = None  # for update: the edit, deletion, reaction or pin that changed the message

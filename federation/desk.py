"""What stewards say to each other, and what each keeps on its desk (PROTOCOL.md 11.11). Pure."""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import msgspec

from federation import control
from federation.control import Certified, Cut, Group, Index, NodeId, Proposed, Term, Vouched
from federation.event import Hash, Seq
from federation.identity import NodeKey, Signature
from federation.roster import Tip


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    group: Group


class Propose(_Message, tag="propose", frozen=True):
    """To the stewards; a removal goes to every node of the group (PROTOCOL.md 11.9)."""

    proposed: Proposed


class Rejected(_Message, tag="rejected", frozen=True):
    """To the proposer's node: it will not become an entry."""

    proposal: Hash
    code: Annotated[str, msgspec.Meta(max_length=32)]
    reason: Annotated[str, msgspec.Meta(max_length=200)]


class Campaign(_Message, tag="campaign", frozen=True):
    """I want to lead `term`; term 0, to every node of the group: I only ask what you hold, and say what I do."""

    term: Term
    index: Seq  # of the newest certified entry of the sender
    tip: Hash  # and its hash: of two branches (11.9) both may be as long


class Promise(_Message, tag="promise", frozen=True):
    """No older term counts for me any more, and this is the newest entry that I signed; term 0: the answer to 0."""

    term: Term
    promised: Term
    index: Seq
    tip: Hash
    signed_term: Term
    signed: Annotated[bytes, msgspec.Meta(max_length=control.ENTRY_BYTES_MAX)]


class Ask(_Message, tag="ask", frozen=True):
    """Sign this entry."""

    term: Term
    entry: Annotated[bytes, msgspec.Meta(max_length=control.ENTRY_BYTES_MAX)]


class Vote(_Message, tag="vote", frozen=True):
    term: Term
    index: Seq
    entry: Hash
    signature: Signature


class Nay(_Message, tag="nay", frozen=True):
    """Not in this term: a higher one was promised."""

    promised: Term


class Tally(_Message, tag="tally", frozen=True):
    """Are you there, and how far are the logs of this user's node at yours?"""

    proposal: Hash
    node: NodeId


class Tallied(_Message, tag="tallied", frozen=True):
    proposal: Hash
    cuts: Annotated[tuple[Cut, ...], msgspec.Meta(max_length=control.CUTS_MAX)]


class Want(_Message, tag="want", frozen=True):
    """Send me the entries after `index` (0: I have none)."""

    index: Index


class News(_Message, tag="entry", frozen=True):
    """A certified entry."""

    certified: Certified


Message = Propose | Rejected | Campaign | Promise | Ask | Vote | Nay | Tally | Tallied | Want | News


class Waiting(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    proposed: Proposed
    since_ms: int


class Heard(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node: NodeId
    promise: Promise


class Told(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node: NodeId
    cuts: tuple[Cut, ...]


class Desk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a node keeps for one group, beside the log."""

    promised: Term = 0
    signed_term: Term = 0
    signed: bytes = b""  # the newest entry that this node signed
    amnesia: bool = False  # restored from a copy: it may have signed what it does not know
    waiting: tuple[Waiting, ...] = ()
    # as a leader, or one who wants to be
    term: Term = 0  # that it campaigns for or leads
    leads: bool = False
    heard: tuple[Heard, ...] = ()
    asked: bytes = b""  # the entry that it asks for
    votes: tuple[Vouched, ...] = ()
    told: tuple[Told, ...] = ()
    since_ms: int = 0  # of the last step forward
    restored_ms: int = 0  # when the copy began to ask
    said_ms: int = 0  # when this node last said how far the log is


class To(NamedTuple):
    node: bytes
    message: Message


class Done(NamedTuple):
    """An entry was certified here."""

    certified: Certified


Output = To | Done


class Place(NamedTuple):
    """Where a step happens."""

    me: bytes
    key: NodeKey
    now_ms: int
    tip: Tip
    heads: Callable[[bytes], tuple[Cut, ...]]  # of a node's logs of this group here


_encoder = msgspec.msgpack.Encoder()
_desk = msgspec.msgpack.Decoder(Desk)
_message: "msgspec.msgpack.Decoder[Message]" = msgspec.msgpack.Decoder(Message)


def encode_desk(desk: Desk) -> bytes:
    return _encoder.encode(desk)


def decode_desk(raw: bytes) -> Desk:
    return _desk.decode(raw) if raw else Desk()


def read_message(raw: bytes) -> Message:
    """Decode strictly. `ProtocolError` (PROTOCOL.md 11.11)."""
    value: Message = control.strictly(_message, raw, "a message about a group", "11.11")
    return value


def restored(desk: Desk, now_ms: int) -> Desk:
    """The desk of a copy (PROTOCOL.md 11.8): nothing that was under way goes on, and nothing is signed as yet."""
    return Desk(
        promised=desk.promised, signed_term=desk.signed_term, signed=desk.signed, waiting=desk.waiting,
        amnesia=True, restored_ms=now_ms,
    )  # fmt: skip

"""Link frames between two nodes, MessagePack, one tagged struct each (PROTOCOL.md 5).

A frame's length is checked by the channel before a byte of it is kept; here its shape is.
"""

from typing import Annotated, Literal

import msgspec

from federation.errors import ProtocolError
from federation.event import HEADER_BYTES_MAX, Seq, Signed
from federation.identity import ADDRESSES_MAX, Chain, Signature
from federation.ids import (
    CONVERSATION_ID_BYTES,
    INCARNATION_BYTES,
    LOCAL_NAME_CHARS_MAX,
    LOG_KEY_BYTES,
    NODE_ID_BYTES,
)

ALPN = "roost-node/1"
VERSION = 1
NONCE_BYTES = 32
SEGMENTS_MAX = 256
EVENTS_MAX = 256
RECEIPTS_MAX = 512
EXCEPTIONS_MAX = 64
REASON_CHARS_MAX = 200
RECALLED_MAX = 256  # logs in one recall
EPHEMERALS_MAX = 256  # in one frame
HOLDS_MS_MAX = 3_600_000  # of one

Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Conversation = Annotated[bytes, msgspec.Meta(min_length=CONVERSATION_ID_BYTES, max_length=CONVERSATION_ID_BYTES)]
Incarnation = Annotated[bytes, msgspec.Meta(min_length=INCARNATION_BYTES, max_length=INCARNATION_BYTES)]
NodeId = Annotated[bytes, msgspec.Meta(min_length=NODE_ID_BYTES, max_length=NODE_ID_BYTES)]
LogKey = Annotated[bytes, msgspec.Meta(min_length=LOG_KEY_BYTES, max_length=LOG_KEY_BYTES)]
Reason = Annotated[str, msgspec.Meta(max_length=REASON_CHARS_MAX)]
Local = Annotated[str, msgspec.Meta(max_length=LOCAL_NAME_CHARS_MAX)]


class Frame(msgspec.Struct, frozen=True, tag_field="t", forbid_unknown_fields=True):
    pass


class Offer(Frame, tag="offer", frozen=True):
    """First frame each way: versions and a nonce; nothing in it is believed yet (PROTOCOL.md 3.1)."""

    version_min: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    version_max: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    nonce: Nonce


class Hello(Frame, tag="hello", frozen=True):
    """Second frame each way: who we are, proved over this very channel (PROTOCOL.md 3.2)."""

    chain: Chain
    name: Annotated[str, msgspec.Meta(max_length=253)]
    incarnation: Incarnation
    role: Literal["server", "client"]
    proof: Signature
    addresses: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=260)], ...], msgspec.Meta(max_length=ADDRESSES_MAX)
    ]
    to: NodeId | None = None  # the node we meant to reach; none when only an address was known


class Newest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Header and signature of an event of the other side: proof that it made it (PROTOCOL.md 10.1)."""

    header: Annotated[bytes, msgspec.Meta(max_length=HEADER_BYTES_MAX)]
    signature: Signature


class Standing(Frame, tag="standing", frozen=True):
    """Third frame each way, and again when it changes: what we hold of the other (PROTOCOL.md 3.4)."""

    state: Literal["accepted", "pending", "blocked"]
    newest: Newest | None = None


class Segment(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A run of one log, in order and without a hole (PROTOCOL.md 5.2)."""

    conversation: Conversation
    origin: NodeId
    incarnation: Incarnation
    first: Seq
    members: Annotated[
        tuple[tuple[NodeId, Local], ...], msgspec.Meta(max_length=2)
    ]  # proves a direct conversation's id
    events: Annotated[tuple[Signed, ...], msgspec.Meta(min_length=1, max_length=EVENTS_MAX)]

    @property
    def size_bytes(self) -> int:
        """Headers and bodies: what windows count (PROTOCOL.md 5.5)."""
        return sum(len(event.header) + len(event.body or b"") for event in self.events)


class Events(Frame, tag="events", frozen=True):
    segments: Annotated[tuple[Segment, ...], msgspec.Meta(min_length=1, max_length=SEGMENTS_MAX)]


# What `refused` may say why (PROTOCOL.md 5.4). Any other code means the verdict alone.
REFUSALS = frozenset(
    {"unknown_user", "declined", "unknown_kind", "bad_event", "bad_body", "bad_notices", "bad_signature", "clock"}
    | {"not_member", "equivocation", "not_yours", "too_many"}
)


class Verdict(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What became of one event that was not simply stored (PROTOCOL.md 5.4).

    `refused` is final and lets the log advance; `later` pauses this log only, and it is offered again.
    """

    seq: Seq
    verdict: Literal["refused", "later"]
    code: Annotated[str, msgspec.Meta(max_length=32)]
    reason: Reason = ""


class LogAck(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything of this log up to `seq` is committed and fsynced at the sender of this frame (PROTOCOL.md 5.3)."""

    conversation: Conversation
    origin: NodeId
    incarnation: Incarnation
    seq: Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
    verdicts: Annotated[tuple[Verdict, ...], msgspec.Meta(max_length=EVENTS_MAX)] = ()


class Acks(Frame, tag="acks", frozen=True):
    logs: Annotated[tuple[LogAck, ...], msgspec.Meta(min_length=1, max_length=SEGMENTS_MAX)]


class Recall(Frame, tag="recall", frozen=True):
    """A restored node says how far logs are at it, all in a range of log keys (PROTOCOL.md 10.2)."""

    whose: Literal["mine", "yours"]
    after: Annotated[bytes, msgspec.Meta(max_length=LOG_KEY_BYTES)]  # empty: from the first
    upto: LogKey
    logs: Annotated[tuple[tuple[LogKey, Seq], ...], msgspec.Meta(max_length=RECALLED_MAX)]


class Recalled(Frame, tag="recalled", frozen=True):
    """The answer: what was lost is queued again; `lacking` logs of the range had something (PROTOCOL.md 10.2)."""

    upto: LogKey
    lacking: Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]


class Probe(Frame, tag="probe", frozen=True):
    """What does this node look like from there? (PROTOCOL.md 5.13)."""

    at_ms: Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]


class Probed(Frame, tag="probed", frozen=True):
    """The answer: the time there, and which of the asker's addresses could be called; no reason where one could."""

    at_ms: Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
    calls: Annotated[
        tuple[tuple[Annotated[str, msgspec.Meta(max_length=260)], Reason], ...], msgspec.Meta(max_length=ADDRESSES_MAX)
    ]


class Ephemeral(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A sign of life of a local user of the sending node, to the other members of a conversation (PROTOCOL.md 5.14)."""

    conversation: Conversation
    sender: Local
    kind: Literal["typing", "idle", "online", "away", "offline"]
    holds_ms: Annotated[int, msgspec.Meta(ge=0, le=HOLDS_MS_MAX)]  # unless the next one comes


class Ephemerals(Frame, tag="ephemerals", frozen=True):
    """What may be lost: nobody stores it or answers it."""

    signs: Annotated[tuple[Ephemeral, ...], msgspec.Meta(min_length=1, max_length=EPHEMERALS_MAX)]


class Ping(Frame, tag="ping", frozen=True):
    number: Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]


class Pong(Frame, tag="pong", frozen=True):
    number: Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]


class Goodbye(Frame, tag="goodbye", frozen=True):
    """The last frame: why this side closes; `code` `restart` asks for an early return."""

    code: Annotated[str, msgspec.Meta(max_length=32)]
    reason: Reason = ""


class Receipt(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Watermarks of one member over one log; merged by maximum (PROTOCOL.md 6.2)."""

    conversation: Conversation
    incarnation: Incarnation  # a log of the node that the notice goes to
    member: Local
    delivered: Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
    read: Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
    missing: Annotated[
        tuple[Seq, ...], msgspec.Meta(max_length=EXCEPTIONS_MAX)
    ] = ()  # at or below delivered, not opened
    at_ms: Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)] = 0


class Notices(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The body of a `notices` event (PROTOCOL.md 6.1)."""

    receipts: Annotated[tuple[Receipt, ...], msgspec.Meta(max_length=RECEIPTS_MAX)] = ()


AnyFrame = (
    Offer | Hello | Standing | Events | Acks | Recall | Recalled | Probe | Probed | Ephemerals | Ping | Pong | Goodbye
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyFrame] = msgspec.msgpack.Decoder(AnyFrame)
_notices = msgspec.msgpack.Decoder(Notices)
_segment = msgspec.msgpack.Decoder(Segment)


def encode(frame: AnyFrame | Notices) -> bytes:
    return _encoder.encode(frame)


def decode(raw: bytes) -> AnyFrame:
    """One frame, or `ProtocolError` for anything else (PROTOCOL.md 5.1)."""
    try:
        frame = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("bad_frame", f"a link frame cannot be read: {str(error)[:120]!r}", "5.1") from None
    if _encoder.encode(frame) != raw:  # a key twice, keys in another order, a number written long
        raise ProtocolError("bad_frame", "a link frame has a second encoding", "5.1")
    return frame


def encode_segment(segment: Segment) -> bytes:
    """A segment alone, to be kept."""
    return _encoder.encode(segment)


def decode_segment(raw: bytes) -> Segment:
    """One that was kept; `ProtocolError` where it is damaged."""
    try:
        return _segment.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("bad_frame", f"a segment cannot be read: {str(error)[:120]!r}", "5.2") from None


def decode_notices(raw: bytes) -> Notices:
    try:
        notices = _notices.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("bad_notices", f"a notices body cannot be read: {str(error)[:120]!r}", "6.1") from None
    if _encoder.encode(notices) != raw:
        raise ProtocolError("bad_notices", "a notices body has a second encoding", "6.1")
    return notices

"""One signed record of a conversation, as exact bytes (PROTOCOL.md 4).

The bytes that were signed are the bytes that are stored and passed on. A reader verifies the bytes it
received and then refuses them unless encoding again gives the same bytes: one encoding per value.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import msgspec

from federation.errors import AddressError, ProtocolError
from federation.identity import SIGNATURE_BYTES, NodeKey, Signature, verify
from federation.ids import (
    CONVERSATION_ID_BYTES,
    DEVICE_ID_BYTES,
    EVENT_ID_BYTES,
    INCARNATION_BYTES,
    LOCAL_NAME_CHARS_MAX,
    NODE_ID_BYTES,
    Log,
    check_local_name,
    digest,
)

BODY_BYTES_MAX = 64 << 10
HEADER_BYTES_MAX = 8 << 10
OPENED_MAX = 1024  # headers that are kept open: each is looked at by the link, by the feed, and when it is shown
MEDIA_MAX = 32
EXT_KEYS_MAX = 16
STAMP_LOGICAL_BITS = 16
SEQ_MAX = (1 << 53) - 1

Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Seq = Annotated[int, msgspec.Meta(ge=1, le=SEQ_MAX)]
Stamp = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Short = Annotated[str, msgspec.Meta(max_length=32, pattern=r"^[a-z0-9._/-]*\Z")]  # `$` would let a line end through

MESSAGE = "message"
NOTICES = "notices"
EDIT, DELETE, REACTION, PIN, UNPIN = "edit", "delete", "reaction", "pin", "unpin"
ACTS = (EDIT, DELETE, REACTION, PIN, UNPIN)  # each about one message, its target (PROTOCOL.md 4.15)
KINDS = (MESSAGE, *ACTS, NOTICES)  # what this version acts on; another is refused politely (PROTOCOL.md 4.7)
THREAD, UNDO = "thread", "undo"  # keys of `ext` (PROTOCOL.md 4.15)
REACTION_BYTES_MAX = 32  # one emoji, however many joined marks it has
TEXT = "text"
BODY_FORMATS = (TEXT, NOTICES)  # the registry of PROTOCOL.md 4.8; encryption adds entries, a node reads none of them


class Predecessor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """In a log's first record: the log this node kept before, and that log's last number (PROTOCOL.md 4.4)."""

    incarnation: Annotated[bytes, msgspec.Meta(min_length=INCARNATION_BYTES, max_length=INCARNATION_BYTES)]
    seq: Seq


class Media(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    hash: Hash
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=SEQ_MAX)]


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything about an event but its body. Field order is the wire order (PROTOCOL.md 4.2)."""

    version: Literal[1]
    conversation: Annotated[bytes, msgspec.Meta(min_length=CONVERSATION_ID_BYTES, max_length=CONVERSATION_ID_BYTES)]
    origin: Annotated[bytes, msgspec.Meta(min_length=NODE_ID_BYTES, max_length=NODE_ID_BYTES)]
    incarnation: Annotated[bytes, msgspec.Meta(min_length=INCARNATION_BYTES, max_length=INCARNATION_BYTES)]
    seq: Seq
    previous: Hash | None  # id of the log's event before this; none at seq 1
    after: Predecessor | None  # only at seq 1
    sender: Annotated[str, msgspec.Meta(max_length=LOCAL_NAME_CHARS_MAX)]  # local name at the origin; empty: the node
    device: Annotated[bytes, msgspec.Meta(max_length=DEVICE_ID_BYTES)]  # sender's device; empty: the node
    stamp: Stamp  # hybrid logical clock: 48 bits of ms since 1970, 16 bits of counter
    control: Hash | None  # the group's control entry it was sent under; none in direct conversations
    kind: Short
    target: Annotated[bytes, msgspec.Meta(min_length=EVENT_ID_BYTES, max_length=EVENT_ID_BYTES)] | None
    manifest: Hash | None  # key manifest of the body's encryption
    body_format: Short
    body_hash: Hash
    body_bytes: Annotated[int, msgspec.Meta(ge=0, le=BODY_BYTES_MAX)]
    media: Annotated[tuple[Media, ...], msgspec.Meta(max_length=MEDIA_MAX)] = ()
    expires_ms: Annotated[int, msgspec.Meta(ge=0, le=SEQ_MAX)] | None = None
    ext: Annotated[
        dict[Short, Annotated[bytes, msgspec.Meta(max_length=1024)]], msgspec.Meta(max_length=EXT_KEYS_MAX)
    ] = {}

    @property
    def log(self) -> Log:
        return Log(self.conversation, self.origin, self.incarnation)


class Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An event as it travels: exact header bytes, the origin's signature, and the body unless it was dropped."""

    header: Annotated[bytes, msgspec.Meta(max_length=HEADER_BYTES_MAX)]
    signature: Signature
    body: Annotated[bytes, msgspec.Meta(max_length=BODY_BYTES_MAX)] | None


class Event(NamedTuple):
    """A signed event together with what its header says, so that check and use see the same object."""

    id: bytes
    header: Header
    signed: Signed


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Header)


def event_id(header: bytes) -> bytes:
    """The id of an event: the hash of its exact header bytes (PROTOCOL.md 4.3)."""
    return _event_id(header) if len(header) <= HEADER_BYTES_MAX else digest("event", header)


@lru_cache(OPENED_MAX)
def _event_id(header: bytes) -> bytes:
    return digest("event", header)


def body_hash(body: bytes) -> bytes:
    return digest("body", body)


def sign_event(header: Header, body: bytes, key: NodeKey) -> Event:
    """Encode and sign an event of our own."""
    raw = _encoder.encode(header)
    return Event(event_id(raw), header, Signed(raw, key.sign("event", raw), body))


def read_event(signed: Signed) -> Event:
    """Decode strictly; says nothing yet of the signature. `ProtocolError` (PROTOCOL.md 4.2 to 4.6)."""
    header = decode_header(signed.header)
    if signed.body is not None and (
        len(signed.body) != header.body_bytes or body_hash(signed.body) != header.body_hash
    ):
        raise ProtocolError("bad_body", "the body is not the one the header names", "4.6")
    return Event(event_id(signed.header), header, signed)


@lru_cache(OPENED_MAX)
def peek_header(raw: bytes) -> Header:
    """A header whose hash is known to be right: it was checked when it was taken. `ProtocolError` if it is none."""
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("bad_event", f"the event header cannot be read: {str(error)[:120]!r}", "4.2") from None


def lost_event(event: bytes) -> Signed:
    """What stands for an event that its origin lost: nothing but its id (PROTOCOL.md 4.13)."""
    return Signed(event, bytes(SIGNATURE_BYTES), None)


def is_lost(signed: Signed) -> bool:
    """No header is as short as an id."""
    return len(signed.header) == EVENT_ID_BYTES and signed.body is None


def decode_header(raw: bytes) -> Header:
    if len(raw) > HEADER_BYTES_MAX:
        raise ProtocolError("bad_event", f"an event header is at most {HEADER_BYTES_MAX} bytes", "4.2")
    header = peek_header(raw)
    if _encoder.encode(header) != raw:
        raise ProtocolError("bad_event", "the event header has a second encoding", "4.2")
    first = header.seq == 1
    if (header.previous is None) != first or (header.after is not None and not first):
        raise ProtocolError("bad_event", "only a log's first event has no previous one", "4.4")
    if header.after is not None and header.after.incarnation == header.incarnation:
        raise ProtocolError("bad_event", "a log cannot be its own predecessor", "4.4")
    if len(header.device) not in (0, DEVICE_ID_BYTES) or (header.device and not header.sender):
        raise ProtocolError("bad_event", "a device id has 16 bytes, and only a user has one", "4.2")
    if (header.kind in (MESSAGE, *ACTS) and not header.sender) or (header.kind == NOTICES and header.sender):
        raise ProtocolError("bad_event", "messages are from users, notices from nodes", "4.7")
    if header.kind in (MESSAGE, *ACTS):
        problem = act_problem(header.kind, header.target, header.body_format, header.body_bytes, header.ext)
        if problem:
            raise ProtocolError("bad_event", problem, "4.15")
    if header.sender:
        try:
            check_local_name(header.sender)
        except AddressError as error:
            raise ProtocolError("bad_event", str(error), "1.3") from None
    return header


def act_problem(kind: str, target: bytes | None, body_format: str, body_bytes: int, ext: Mapping[str, bytes]) -> str:
    """What is wrong with a message, or with an act on one, as far as a header tells; empty if nothing is."""
    thread, undo = ext.get(THREAD), ext.get(UNDO)
    if kind in ACTS and target is None:
        return f"an event of kind {kind} names its target"
    if thread is not None and (kind != MESSAGE or len(thread) != EVENT_ID_BYTES):
        return "only a message is in a thread, which is the id of an event"
    if undo is not None and (kind != REACTION or undo):
        return "only a reaction is taken back, and `undo` is empty"
    if kind in (DELETE, PIN, UNPIN) and body_bytes:
        return f"an event of kind {kind} has an empty body"
    if kind == REACTION and body_format == TEXT and not 1 <= body_bytes <= REACTION_BYTES_MAX:
        return f"a reaction has 1 to {REACTION_BYTES_MAX} bytes"
    return ""


def signature_holds(event: Event, origin_key: bytes) -> bool:
    """Whether the origin's key signed these header bytes (PROTOCOL.md 4.5)."""
    return verify(origin_key, "event", event.signed.header, event.signed.signature)


def next_stamp(now_ms: int, last: int) -> int:
    """The hybrid logical clock's next value after `last` (PROTOCOL.md 4.9)."""
    return max(now_ms << STAMP_LOGICAL_BITS, last + 1)


def stamp_ms(stamp: int) -> int:
    """The wall-clock part of a stamp, ms since 1970."""
    return stamp >> STAMP_LOGICAL_BITS

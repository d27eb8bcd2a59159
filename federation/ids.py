"""Names for things: node ids, users, addresses, conversations, logs, events (PROTOCOL.md 1).

Ids are raw bytes on links and in the store, and lower-case base32 (RFC 4648, no padding) wherever a person
or a JSON client may see them, so that a double click selects one and case never matters.
"""

import base64
import hashlib
import re
from functools import lru_cache
from typing import NamedTuple

import idna

from federation.errors import AddressError

NODE_ID_BYTES = 32
EVENT_ID_BYTES = 32
CONVERSATION_ID_BYTES = 32
INCARNATION_BYTES = 16
DEVICE_ID_BYTES = 16
LOG_KEY_BYTES = 16
CACHED_MAX = 8192  # the standard library's base32 costs more than a signature; ids repeat all the time
LOCAL_NAME_CHARS_MAX = 64
DOMAIN_CHARS_MAX = 253

_LOCAL = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def digest(domain: str, *parts: bytes) -> bytes:
    """SHA-256 over a domain tag and length-prefixed parts, so that no two uses can be confused (PROTOCOL.md 1.1)."""
    h = _begun(domain).copy()
    for part in parts:
        h.update(len(part).to_bytes(4, "big") + part)
    return h.digest()


@lru_cache(64)
def _begun(domain: str) -> "hashlib._Hash":
    return hashlib.sha256(f"roost/{domain}/1\0".encode())


@lru_cache(CACHED_MAX)
def to_text(raw: bytes) -> str:
    """Raw id bytes to the text form (PROTOCOL.md 1.2)."""
    return base64.b32encode(raw).decode().rstrip("=").lower()


def from_text(text: str, size_bytes: int) -> bytes:
    """The text form back to exactly `size_bytes` bytes; `ValueError` for anything else (one text per id)."""
    if not text.isascii():
        raise ValueError(f"{text[:80]!r} is not an id: ids are plain letters and digits")
    try:
        raw = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except ValueError:
        raise ValueError(f"{text[:80]!r} is not an id") from None
    if len(raw) != size_bytes or to_text(raw) != text.lower():
        raise ValueError(f"{text[:80]!r} is not an id of {size_bytes} bytes")
    return raw


def check_local_name(name: str) -> str:
    """A user's local name in the one accepted spelling, or `AddressError` (PROTOCOL.md 1.3)."""
    if not _LOCAL.fullmatch(name) or ".." in name:
        raise AddressError(
            f"user name {name[:80]!r} is not allowed: use 1 to {LOCAL_NAME_CHARS_MAX} of a-z 0-9 . _ -, "
            "beginning and ending with a letter or digit"
        )
    return name


@lru_cache(CACHED_MAX)
def check_domain(name: str) -> str:
    """A node's name as lower-case A-labels, or `AddressError` (PROTOCOL.md 1.4, RFC 5890 section 2.3.2.1).

    A name is refused rather than repaired: U-labels, capitals and look-alike dots never become another name.
    """
    labels = name.split(".")
    if not name or len(name) > DOMAIN_CHARS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise AddressError(
            f"node name {name[:80]!r} is not allowed: write lower-case letters, digits and hyphens between dots "
            "(international names in their xn-- form)"
        )
    for label in labels:
        if label[2:4] == "--" and not _is_a_label(label):
            raise AddressError(f"node name {name[:80]!r}: {label!r} is not a valid xn-- label")
    return name


def _is_a_label(label: str) -> bool:
    try:
        return idna.alabel(idna.ulabel(label)).decode() == label
    except (idna.IDNAError, UnicodeError):
        return False


class Address(NamedTuple):
    """`alice@lab.example`: a user's local name and the name of the node that holds the mailbox."""

    local: str
    node: str

    def __str__(self) -> str:
        return f"{self.local}@{self.node}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        local, at, node = text.partition("@")
        if not at:
            raise AddressError(f"{text[:80]!r} is not an address: write NAME@NODE, for example alice@lab.example")
        return cls(check_local_name(local), check_domain(node))


class User(NamedTuple):
    """A person to the protocol: the id of their node and a local name that is never given to a second person."""

    node: bytes
    local: str


class Log(NamedTuple):
    """The events of one conversation from one process life of one node (PROTOCOL.md 4.1)."""

    conversation: bytes
    origin: bytes
    incarnation: bytes

    @property
    def key(self) -> bytes:
        """A short key for rows, 16 bytes; the full log stands in the `logs` table beside it."""
        return _log_key(*self)


@lru_cache(CACHED_MAX)
def _log_key(conversation: bytes, origin: bytes, incarnation: bytes) -> bytes:
    return digest("log", conversation, origin, incarnation)[:LOG_KEY_BYTES]


@lru_cache(CACHED_MAX)
def direct_conversation(a: User, b: User) -> bytes:
    """The id both sides derive on their own, so that both may start at once (PROTOCOL.md 1.6)."""
    first, second = sorted((a, b))
    return digest("direct", first.node, first.local.encode(), second.node, second.local.encode())


def notice_conversation(a: bytes, b: bytes) -> bytes:
    """The conversation of two nodes that carries their notices (PROTOCOL.md 1.7)."""
    return digest("notices", *sorted((a, b)))

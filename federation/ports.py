"""What federation needs from its host: small protocols, each with an in-line twin for the simulator.

Nothing in this module does anything. A host (the node, a client, the simulator) hands objects of these
shapes to the shells; the pure modules never see them.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

FRAME_BYTES_MAX = 1 << 20  # largest frame on any channel; a longer announced length is refused unread
HELLO_BYTES_MAX = 64 << 10  # each way, what a stranger may make us hold; the longest frame until the channel is trusted


class Binding(NamedTuple):
    """What ties a channel to its TLS session, for the signed hello (PROTOCOL.md 3)."""

    kind: Literal["quic", "tcp", "memory"]
    key_hash: bytes  # SHA-256 of the TLS server's SubjectPublicKeyInfo, 32 bytes
    exporter: bytes  # RFC 8446 section 7.5 exporter of the session, 32 bytes; empty over TCP


class ChannelClosed(Exception):
    """The other side is gone or the channel broke; `str()` says why, for a person."""


class Channel(Protocol):
    """Whole frames both ways, ordered and reliable until it closes, with real back-pressure."""

    @property
    def binding(self) -> Binding: ...

    @property
    def remote(self) -> str:
        """Where the other side is, for people: `192.0.2.7:7701` or `memory`."""
        ...

    @property
    def why(self) -> str:
        """Why it is not the first choice of transport, for people; empty where it is."""
        ...

    async def send(self, *frames: bytes) -> None:
        """Hand over frames in one write; returns once the backlog is below its bound.

        Raises `ChannelClosed`. Frames are at most FRAME_BYTES_MAX long.
        """
        ...

    async def recv(self) -> Sequence[bytes]:
        """All whole frames at hand, at least one; an empty sequence is a clean end. Raises `ChannelClosed`."""
        ...

    def trust(self) -> None:
        """The other side is known (the link is up, the client logged in): from HELLO_BYTES_MAX to the full windows."""
        ...

    async def close(self, reason: str = "") -> None:
        """Deliver what was sent, say goodbye, wait briefly for the other side, release everything."""
        ...


class Clock(Protocol):
    """Time and chance, given so that the simulator can give its own."""

    def monotonic_ms(self) -> int: ...

    def wall_ms(self) -> int: ...

    def chance(self) -> float: ...

    def random(self, size: int) -> bytes: ...

"""A channel inside one process: embedded clients and the simulator's links use it in place of a socket."""

import asyncio
from collections import deque
from collections.abc import Sequence

from federation.ports import FRAME_BYTES_MAX, Binding, ChannelClosed

BACKLOG_BYTES_MAX = 256 << 10


class _Pipe:
    """One direction: frames sent and not yet received, bounded by bytes."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.bytes = 0
        self.ended = False
        self.broken = ""
        self.changed = asyncio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class MemoryChannel:
    """One end of `pair()`; a `ports.Channel`."""

    why = ""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, binding: Binding) -> None:
        self._in, self._out = incoming, outgoing
        self.binding = binding
        self.remote = "memory"

    async def send(self, *frames: bytes) -> None:
        for frame in frames:
            assert len(frame) <= FRAME_BYTES_MAX
            self._check(self._out)
            self._out.frames.append(frame)
            self._out.bytes += len(frame)
        self._out.wake()
        while self._out.bytes > BACKLOG_BYTES_MAX:
            await self._out.changed.wait()
            self._check(self._out)

    async def recv(self) -> Sequence[bytes]:
        while not self._in.frames:
            if self._in.broken:
                raise ChannelClosed(self._in.broken)
            if self._in.ended:
                return []
            await self._in.changed.wait()
        frames = list(self._in.frames)
        self._in.frames.clear()
        self._in.bytes = 0
        self._in.wake()
        return frames

    def _check(self, pipe: _Pipe) -> None:
        if pipe.broken or pipe.ended:
            raise ChannelClosed(pipe.broken or "closed")

    def trust(self) -> None:
        """Nothing to lift: both ends are ours."""

    async def close(self, reason: str = "") -> None:
        self._out.ended = True
        self._in.broken = self._in.broken or reason or "closed here"
        self._out.wake()
        self._in.wake()

    def cut(self, reason: str = "connection lost") -> None:
        """Break both directions at once, undelivered frames and all: what a pulled plug looks like."""
        for pipe in (self._in, self._out):
            pipe.frames.clear()
            pipe.bytes = 0
            pipe.broken = reason
            pipe.wake()


def pair(key_hash: bytes = bytes(32), exporter: bytes = bytes(32)) -> tuple[MemoryChannel, MemoryChannel]:
    """Two connected ends with one binding: the dialling side and the accepting side."""
    there, back = _Pipe(), _Pipe()
    binding = Binding("memory", key_hash, exporter)
    return MemoryChannel(back, there, binding), MemoryChannel(there, back, binding)

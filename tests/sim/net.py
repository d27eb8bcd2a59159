"""The network between simulated nodes: latency, cut and half-open links, partitions.

A channel is the product's own `MemoryChannel` whose frames arrive later. Lost frames are never followed by later
ones on the same channel: as over QUIC, a link is in order and whole until it breaks.
"""

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

from federation import wire
from federation.memory import MemoryChannel, _Pipe
from federation.ports import Binding, Channel, ChannelClosed

if TYPE_CHECKING:
    from tests.sim.world import Host, World

BINDING = Binding("memory", bytes(32), bytes(32))


class SimChannel(MemoryChannel):
    """One end of a link; `dropped` is the half-open case: this end's frames vanish and nobody is told."""

    def __init__(self, net: "Net", life: Any, incoming: _Pipe, outgoing: _Pipe, names: tuple[str, str]) -> None:
        super().__init__(incoming, outgoing, BINDING)
        self._net, self.life, self.names = net, life, names
        self.remote = names[1]
        self.dropped = False
        self._flying = 0  # bytes that did not arrive
        self._free_at = 0.0  # frames do not overtake each other

    async def send(self, *frames: bytes) -> None:
        self._check(self._out)
        if self._in.broken:
            raise ChannelClosed(self._in.broken)
        for frame in frames:
            self._net.world.note_frame(self.names, "drops" if self.dropped else "sends", frame)
        self._flying += sum(map(len, frames))
        if not self.dropped:
            self._later(self._deliver, frames)
        while self._flying + self._out.bytes > self._net.world.plan.backlog:
            await self._out.changed.wait()
            self._check(self._out)
            if self._in.broken:
                raise ChannelClosed(self._in.broken)

    def _later(self, call: Any, *args: Any) -> None:
        loop = asyncio.get_running_loop()
        # Strictly later than the one before: timers of one moment have no order among them.
        self._free_at = max(self._free_at + 1e-6, loop.time() + self._net.latency())
        loop.call_at(self._free_at, call, *args)

    def _deliver(self, frames: tuple[bytes, ...]) -> None:
        if self._out.broken or self._out.ended or self.dropped:
            return
        for frame in frames:
            self._net.world.note_frame(self.names, "brings", frame)
            self._flying -= len(frame)
        self._out.frames.extend(frames)
        self._out.bytes += sum(map(len, frames))
        self._out.wake()

    async def close(self, reason: str = "") -> None:
        self._in.broken = self._in.broken or reason or "closed here"
        self._in.wake()
        self._out.wake()
        if not self.dropped and not self._out.broken:
            self._later(self._end)

    def _end(self) -> None:
        if not self.dropped:
            self._out.ended = True
            self._out.wake()


class Net:
    """Who can reach whom. Every pair of ends is remembered until a node's life ends."""

    def __init__(self, world: "World", chance: Random) -> None:
        self.world, self._chance = world, chance
        self.slow_s = chance.choice((0.005, 0.05, 0.4))
        self.apart: set[frozenset[str]] = set()
        self.links: list[tuple[SimChannel, SimChannel]] = []

    def latency(self) -> float:
        return self._chance.uniform(0.1, 1.0) * self.slow_s

    def dialler(self, host: "Host", life: Any) -> Any:
        """The `dial` of one node life."""

        async def dial(address: str, timeout: float) -> Channel:
            await asyncio.sleep(self.latency())
            other = self.world.by_address[address]
            if frozenset((host.name, other.name)) in self.apart:
                await asyncio.sleep(min(timeout, self._chance.choice((0.1, 2.0, 8.0))))
                raise ChannelClosed("no route")
            if other.life is None or not other.life.up:
                raise ChannelClosed("refused")
            return self._connect(host, life, other)

        return dial

    def _connect(self, host: "Host", life: Any, other: "Host") -> SimChannel:
        there, back = _Pipe(), _Pipe()
        ours = SimChannel(self, life, back, there, (host.name, other.name))
        theirs = SimChannel(self, other.life, there, back, (other.name, host.name))
        self.links.append((ours, theirs))
        self.world.note(host.name, f"connects to {other.name}")
        other.life.spawn(other.life.node.service.accept(theirs))
        return ours

    def _between(self, a: str, b: str) -> list[tuple[SimChannel, SimChannel]]:
        return [pair for pair in self.links if {a, b} == set(pair[0].names)]

    def cut(self, a: str, b: str) -> None:
        for pair in self._between(a, b):
            pair[0].cut()

    def half_open(self, a: str, b: str) -> None:
        """From now on nothing of `a` reaches `b` on the links that exist."""
        for pair in self._between(a, b):
            for end in pair:
                end.dropped = end.dropped or end.names[0] == a

    def part(self, a: str, b: str, silent: bool) -> None:
        """No new link, and the old ones break: at once, or silently."""
        self.apart.add(frozenset((a, b)))
        if silent:
            self.half_open(a, b)
            self.half_open(b, a)
        else:
            self.cut(a, b)

    def heal(self) -> None:
        self.apart.clear()

    def drop_life(self, life: Any) -> None:
        """A process died: its sockets with it."""
        for pair in self.links:
            if life in (pair[0].life, pair[1].life):
                pair[0].cut("the other process died")
        self.links = [pair for pair in self.links if life not in (pair[0].life, pair[1].life)]


def spell(raw: bytes) -> tuple[str, list[tuple[bytes, int, int]]]:
    """A link frame for people, and which events it is about: (conversation + incarnation, first, last)."""
    frame = wire.decode(raw)
    if isinstance(frame, wire.Events):
        runs = [(s.conversation + s.incarnation, s.first, s.first + len(s.events) - 1) for s in frame.segments]
        return "events " + " ".join(f"{i.hex()[64:70]}:{a}..{b}" for i, a, b in runs), runs
    if isinstance(frame, wire.Acks):
        said = [f"{k.incarnation.hex()[:6]}<={k.seq}{''.join(f' {v.verdict}:{v.code}' for v in k.verdicts)}"
                for k in frame.logs]  # fmt: skip
        return "acks " + " ".join(said), [(k.conversation + k.incarnation, k.seq, k.seq) for k in frame.logs]
    return type(frame).__name__.lower() + (f" {frame.code}" if isinstance(frame, wire.Goodbye) else ""), []

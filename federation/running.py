"""One link with its channel: a reader, a sender, and the clock. `service` decides which links there are."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import suppress
from typing import NamedTuple, Protocol

from federation import link as machine
from federation import wire
from federation.errors import ProtocolError
from federation.identity import Identity
from federation.ids import Log
from federation.link import Link, Standing
from federation.passing import Passing
from federation.ports import Channel, ChannelClosed, Clock

log = logging.getLogger("roost.federation")
HELD, HELD_TEXT = "held", "that node was restored from an old copy, and waits for its administrator"
RECEIVING_EVENTS_MAX = 4096  # events of one peer in memory; a window is at most a part of it
RECEIVING_BYTES_MAX = 32 << 20  # the same in bytes
RECALLS_MAX = 2  # of a peer, unanswered; it may have one
GOODBYE_S = 1.0  # longest wait for room behind a goodbye


class Known(NamedTuple):
    """A peer as the host knows it."""

    node: bytes
    name: str
    state: Standing
    addresses: tuple[str, ...]


class Look(NamedTuple):
    """What a link may send next: `events` and `bytes` at most, of each log past `sent` and of none that rests."""

    turn: bytes  # as the last look returned it; empty at first
    sent: Mapping[Log, int]
    resting: Set[Log]
    events: int
    bytes: int
    new: bool  # the last look saw the end: what is there now came just then


class Found(NamedTuple):
    """Segments to send; whose turn it was last; whether there was more than the look allowed."""

    segments: Sequence[wire.Segment]
    turn: bytes
    more: bool


class Host(Protocol):
    """What federation needs from the node."""

    def known(self) -> Sequence[Known]: ...

    async def meet(self, identity: Identity, hello: wire.Hello, remote: str) -> Standing:
        """`remote` is where the channel says that it comes from: it bounds where the hello's hints may lead."""
        ...

    async def pending(self, peer: bytes, look: Look) -> Found:
        """What the peer did not acknowledge; logs take turns, so that none starves another."""
        ...

    async def receive(self, peer: bytes, segment: wire.Segment) -> wire.LogAck: ...

    async def acked(self, peer: bytes, ack: wire.LogAck) -> int:
        """Store it; the number up to which the log is acknowledged from now on."""
        ...

    async def newest(self, peer: bytes) -> wire.Newest | None:
        """The newest event of the peer's own that is held here (PROTOCOL.md 10.1)."""
        ...

    async def shown(self, peer: bytes, newest: wire.Newest) -> bool:
        """Whether all is well with our store, seeing that the peer holds this event of ours."""
        ...

    def restored(self) -> bool:
        """Whether events of our own may be lost here."""

    async def recalled(self, peer: bytes, recall: wire.Recall) -> wire.Recalled:
        """Queue for a restored peer what it lost (PROTOCOL.md 10.2)."""
        ...

    async def heal(self, peer: bytes, ask: "Ask") -> None:
        """The link is up: after a restore, get back from the peer what was lost; else nothing."""

    def passed(self, peer: bytes, signs: Sequence[wire.Ephemeral]) -> None: ...

    def light(self, peer: bytes, state: str, since_ms: int) -> None: ...


Ask = Callable[[wire.Recall], Awaitable[wire.Recalled]]


class Owner(Protocol):
    """What a link needs from the service."""

    held: bool

    def admit(self, running: "Running") -> bool: ...

    def reset(self, peer: bytes) -> None: ...

    async def call_back(self, peer: bytes, addresses: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Call what the peer's hello gives (PROTOCOL.md 5.13)."""

    @property
    def refused(self) -> Counter[str]:
        """How often a bound was met, by its name."""


class Running:
    """One link from its first frame to its end."""

    def __init__(self, service: Owner, channel: Channel, state: Link, host: Host, clock: Clock) -> None:
        self._service, self._channel, self.state, self._host, self._clock = service, channel, state, host, clock
        self.wake = asyncio.Event()
        self._ended = ""
        self._more = True  # the last look left something out
        self._acks: asyncio.Queue[wire.LogAck] = asyncio.Queue()
        self._receiving: asyncio.Queue[wire.Segment] = asyncio.Queue()
        self._waiting_events = self._waiting_bytes = 0
        self._beats: dict[type, wire.AnyFrame] = {}  # the newest ping and pong that did not leave
        self._beat = asyncio.Event()
        self._asked: asyncio.Queue[wire.Recall] = asyncio.Queue(RECALLS_MAX)
        self._answer_due: asyncio.Future[wire.Recalled] | None = None
        self._probes: asyncio.Queue[int] = asyncio.Queue(1)  # our time at each; one at once
        self._probed: asyncio.Future[wire.Probed] | None = None
        self._asked_ms = 0
        self.passing = Passing(channel, service.refused)
        self._came_up = asyncio.Event()
        self._sooner = asyncio.Event()  # the clock is to be looked at before what was the next time
        self.since_ms = clock.wall_ms()

    @property
    def transport(self) -> str:
        """What carries the link and, where that is not the first choice, why; for people."""
        kind, why = self._channel.binding.kind, self._channel.why
        return f"{kind} ({why})" if why else kind

    @property
    def waiting_events(self) -> int:
        """Events that came and are not stored yet."""
        return self._waiting_events

    @property
    def recalls(self) -> int:
        """Questions of a restored peer without an answer yet."""
        return self._asked.qsize()

    async def run(self) -> str:
        work = (self._read(), self._send(), self._tick(), self._answer(), self._settle(), self._pulse(),
                self._heal(), self._give_back(), self._look_back(), self.passing.run())  # fmt: skip
        tasks = [asyncio.ensure_future(w) for w in work]
        try:
            await self._carry(self.state.start())
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except ChannelClosed as error:
            self._ended = self._ended or str(error)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await self._channel.close(self._ended)
            if self._probed is not None and not self._probed.done():
                self._probed.set_exception(ChannelClosed(self._ended or "closed"))
                self._probed.exception()  # perhaps nobody waits any more
        for result in results:
            if isinstance(result, ProtocolError):
                self._ended = str(result)
                log.warning("link with %s refused: %s", self._channel.remote, result)
            elif isinstance(result, ChannelClosed):
                self._ended = self._ended or str(result)
            elif isinstance(result, Exception):
                raise result
        return self._ended or "closed"

    async def _read(self) -> None:
        while frames := await self._channel.recv():
            for raw in frames:
                try:
                    if not await self._carry(self.state.feed(wire.decode(raw), self._clock.monotonic_ms())):
                        return
                except ProtocolError as error:
                    await self._channel.send(wire.encode(wire.Goodbye(error.code, str(error)[:200])))
                    raise
        self._ended = self._ended or "the other side closed the link"

    async def _carry(self, outputs: Sequence[machine.Output]) -> bool:
        """Carry out outputs; false when the link is over. Frames of one batch leave in one write."""
        frames: list[bytes] = []
        for out in outputs:
            match out:
                case machine.Send(wire.Ping() | wire.Pong() as frame):
                    self._beats[type(frame)] = frame
                    self._beat.set()
                case machine.Send(frame):
                    frames.append(wire.encode(frame))
                case machine.Arrived(segment):
                    self._take(segment)
                case machine.Passed(signs):
                    self._host.passed(self._peer, signs)
                case machine.Acked(ack):
                    self._acks.put_nowait(ack)  # one for each segment on its way, which the window bounds
                    if self._more:
                        self.wake.set()
                case machine.Shown(newest):
                    if await self._host.shown(self._peer, newest):
                        await self._carry(self.state.looked())
                    else:
                        await self.finish(HELD, HELD_TEXT)
                case machine.Asked(recall):
                    if self._asked.full():
                        self._service.refused["recalls"] += 1
                        raise ProtocolError("overrun", "a recall before the last one was answered", "10.2")
                    self._asked.put_nowait(recall)
                case machine.Probing():
                    if self._probes.full():
                        self._service.refused["probes"] += 1
                        raise ProtocolError("overrun", "a probe before the last one was answered", "5.13")
                    self._probes.put_nowait(self._clock.wall_ms())
                case machine.Probed(probed):
                    if self._probed is None or self._probed.done():
                        raise ProtocolError("bad_frame", "the answer to a probe that was not sent", "5.13")
                    self._probed.set_result(probed)
                case machine.Answered(recalled):
                    if self._answer_due is None or self._answer_due.done():
                        raise ProtocolError("bad_frame", "the answer to a recall that was not asked", "10.2")
                    self._answer_due.set_result(recalled)
                case machine.Up():
                    self._came_up.set()
                    self.state.takes_home = self._host.restored()
                    self._channel.trust()  # a stranger who only knocked stays within the pre-hello memory
                    self.since_ms = self._clock.wall_ms()
                    self._service.reset(self._peer)
                    self._host.light(self._peer, "up", self.since_ms)
                    self.wake.set()
                case machine.Met(identity, hello):
                    await self._met(identity, hello)
                case machine.Close(code, reason):
                    self._ended = reason or code
        if frames:
            await self._channel.send(*frames)
        return not self._ended

    def _take(self, segment: wire.Segment) -> None:
        """Queue what arrived for the next commit; a peer that ignores its window is cut off (PROTOCOL.md 5.5)."""
        self._waiting_events += len(segment.events)
        self._waiting_bytes += segment.size_bytes
        if self._waiting_events > RECEIVING_EVENTS_MAX or self._waiting_bytes > RECEIVING_BYTES_MAX:
            self._service.refused["overrun"] += 1
            raise ProtocolError("overrun", "more unacknowledged events than any window allows", "5.5")
        self._receiving.put_nowait(segment)

    @property
    def _peer(self) -> bytes:
        assert self.state.peer is not None
        return self.state.peer.node

    async def _met(self, identity: Identity, hello: wire.Hello) -> None:
        self._sooner.set()  # what was waited for was the deadline of the hello
        standing = await self._host.meet(identity, hello, self._channel.remote)
        if self._service.held:  # since this link began
            await self.finish(HELD, HELD_TEXT)
            return
        if not self._service.admit(self):
            self._ended = "another link of this pair stays"
            await self._channel.send(wire.encode(wire.Goodbye("duplicate", self._ended)))
            return
        await self._carry(self.state.stand(standing, await self._newest(standing)))

    async def _newest(self, standing: Standing) -> wire.Newest | None:
        return await self._host.newest(self._peer) if standing == "accepted" else None

    async def restand(self, standing: Standing) -> None:
        try:
            if self.state.ours in (None, standing):
                return
            newest = await self._newest(standing)
            if not await self._carry(self.state.stand(standing, newest)):
                await self._channel.close(self._ended)
        except ChannelClosed:
            pass  # its own reader notices

    async def _answer(self) -> None:
        """Store what arrived, many segments in one commit; acknowledge after it (PROTOCOL.md 5.3)."""
        while True:
            segments = [await self._receiving.get()]
            while not self._receiving.empty() and len(segments) < wire.SEGMENTS_MAX:
                segments.append(self._receiving.get_nowait())
            acks = await asyncio.gather(*(self._host.receive(self._peer, s) for s in segments))
            self._waiting_events -= sum(len(s.events) for s in segments)
            self._waiting_bytes -= sum(s.size_bytes for s in segments)
            await self._channel.send(wire.encode(wire.Acks(tuple(acks))))

    async def _send(self) -> None:
        """The log is the queue: read past what was acknowledged or is on its way, as far as the window allows."""
        turn = b""
        while True:
            await self.wake.wait()
            self.wake.clear()
            new, self._more = not self._more, True  # until a look says that it saw the end
            if not (room := self.state.room()):
                if self.state.up:
                    self._service.refused["resting" if self.state.space() and self.state.paused else "window"] += 1
                continue  # an acknowledgement wakes us
            self.state.forget_settled()
            resting = self.state.resting(self._clock.monotonic_ms())
            look = Look(turn, dict(self.state.sent), resting, room, self.state.space(), new)
            segments, turn, self._more = await self._host.pending(self._peer, look)
            if segments:
                await self._carry(self.state.sending(segments, self._clock.monotonic_ms()))
            if self._more and self.state.room():
                self.wake.set()

    async def _settle(self) -> None:
        """Store what the peer acknowledged, all that came together in one commit."""
        while True:
            acks = [await self._acks.get()]
            while not self._acks.empty():
                acks.append(self._acks.get_nowait())
            held = await asyncio.gather(*(self._host.acked(self._peer, ack) for ack in acks))
            for ack, acked in zip(acks, held, strict=True):
                self.state.settled(ack, acked)

    async def _tick(self) -> None:
        while True:
            now = self._clock.monotonic_ms()
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.001, (self.state.wake_at() - now) / 1000)):
                    await self._sooner.wait()
            if not await self._carry(self.state.tick(self._clock.monotonic_ms())):
                return
            self.wake.set()

    async def _pulse(self) -> None:
        """Pings and their answers. Whoever reads, or watches the clock, must not wait for room: two nodes with much
        to say would wait for each other."""
        while True:
            await self._beat.wait()
            self._beat.clear()
            beats, self._beats = self._beats, {}
            await self._channel.send(*map(wire.encode, beats.values()))

    async def _heal(self) -> None:
        """After a restore: what the peer has of us comes back."""
        while True:
            await self._came_up.wait()
            self._came_up.clear()
            await self._host.heal(self._peer, self._ask)

    async def _ask(self, recall: wire.Recall) -> wire.Recalled:
        self._answer_due = asyncio.get_running_loop().create_future()
        await self._channel.send(wire.encode(recall))
        return await self._answer_due

    async def _give_back(self) -> None:
        """The peer was restored: what it lost goes out again (PROTOCOL.md 10.2)."""
        while True:
            recall = await self._asked.get()
            recalled = await self._host.recalled(self._peer, recall)
            self.state.recalled()
            self.wake.set()
            await self._channel.send(wire.encode(recalled))

    async def probe(self) -> tuple[int, wire.Probed]:
        """Ask the peer what we look like from there: by how many ms its clock is ahead of ours, about, and its answer.

        One at a time, so a call while another waits gets that one's answer. Raises `ChannelClosed`.
        """
        if self._probed is None or self._probed.done():
            self._probed = asyncio.get_running_loop().create_future()
            self._asked_ms = self._clock.wall_ms()
            await self._channel.send(wire.encode(wire.Probe(self._asked_ms)))
        probed = await asyncio.shield(self._probed)
        return probed.at_ms - self._asked_ms, probed

    async def _look_back(self) -> None:
        """The peer asks what it looks like from here."""
        while True:
            at_ms = await self._probes.get()
            assert self.state.hello is not None
            calls = await self._service.call_back(self._peer, self.state.hello.addresses)
            await self._channel.send(wire.encode(wire.Probed(at_ms, calls)))

    async def finish(self, code: str, reason: str) -> None:
        """Goodbye from our side."""
        self._ended = self._ended or reason
        with suppress(ChannelClosed):
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._channel.send(wire.encode(wire.Goodbye(code, reason)))
            await self._channel.close(reason)

"""The shell of federation: dials peers that have work, accepts calls, keeps one link per pair of nodes."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from federation import wire
from federation.link import Link, Settings, Us
from federation.peers import Backoff, keep_dialled_by_us
from federation.ports import Channel, ChannelClosed, Clock
from federation.running import HELD, HELD_TEXT, Host, Known, Running

log = logging.getLogger("roost.federation")
DIAL_TIMEOUT_S = 8.0
CALL_BACK_S, CALL_BACK_EVERY_MS = 3.0, 60_000  # for a peer that asks whether it can be called
IDLE_LOOK_MS = 15_000  # a lost hint costs at most this much delay

Dial = Callable[[str, float], Awaitable[Channel]]


class Service:
    """Owns every link of one node. `stop` says goodbye and ends `run`."""

    def __init__(self, us: Us, host: Host, clock: Clock, dial: Dial | None, settings: Settings, cap_ms: int) -> None:
        self.us, self._host, self._clock, self._dial = us, host, clock, dial
        self._settings, self._cap_ms = settings, cap_ms
        self.links: dict[bytes, Running] = {}
        self.backoffs: dict[bytes, Backoff] = {}
        self.refused: Counter[str] = Counter()  # how often a bound was met, by its name
        self._dialling: set[bytes] = set()
        self._called_back: dict[bytes, int] = {}  # when, monotonic ms; peers that asked
        self._calling_back = False
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.held = False  # an old copy: no link until its administrator accepts it (PROTOCOL.md 10.1)

    def use(self, dial: Dial) -> None:
        """From now on peers can be called."""
        self._dial = dial
        self._wake.set()

    @property
    def can_call(self) -> bool:
        return self._dial is not None

    # --- hints --------------------------------------------------------------------------------------------------------
    def poke(self, peer: bytes) -> None:
        """There may be work for this peer."""
        running = self.links.get(peer)
        if running is not None:
            running.wake.set()
        else:
            self._wake.set()

    def peers_changed(self) -> None:
        """An administrator changed something: links follow at once, and nobody waits out a back-off."""
        states = {k.node: k.state for k in self._host.known()}
        for node, running in list(self.links.items()):
            self._spawn(running.restand(states.get(node, "blocked")))
        for backoff in self.backoffs.values():
            backoff.reset()
        self.backoffs = {node: backoff for node, backoff in self.backoffs.items() if node in states}
        self._wake.set()

    def flush(self, peer: bytes) -> None:
        """Somebody wants what waits for this peer to be tried now: no back-off, and no log that rests."""
        self.reset(peer)
        running = self.links.get(peer)
        if running is not None:
            running.state.paused.clear()
        self.poke(peer)

    def _spawn(self, work: "Awaitable[None]") -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Future[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a link ended by a bug: %r", task.exception(), exc_info=task.exception())

    # --- dialling -----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Dial every accepted peer that has no link, each on its own back-off."""
        while not self._stopping:
            now = self._clock.monotonic_ms()
            soonest = now + IDLE_LOOK_MS
            for peer in self._host.known():
                if self._dial is None or self.held or peer.state != "accepted" or not peer.addresses:
                    continue
                if peer.node in self.links or peer.node in self._dialling:
                    continue
                backoff = self.backoffs.setdefault(peer.node, Backoff(self._cap_ms))
                if backoff.next_ms > now:
                    soonest = min(soonest, backoff.next_ms)
                    continue
                self._dialling.add(peer.node)
                self._spawn(self._call(peer))
            self._wake.clear()
            with suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it swallows a cancellation that meets a wake-up.
                async with asyncio.timeout(max(0.001, (soonest - now) / 1000)):
                    await self._wake.wait()

    async def _call(self, peer: Known) -> None:
        assert self._dial is not None
        reason = ""
        self._host.light(peer.node, "connecting", self._clock.wall_ms())
        try:
            for address in peer.addresses:
                try:
                    channel = await self._dial(address, DIAL_TIMEOUT_S)
                except (ChannelClosed, OSError) as error:
                    reason = f"{address}: {error}"
                    continue
                reason, met = await self._run_link(channel, dialled=True, expect=peer.node)
                if met:
                    break
                reason = f"{address}: {reason}"  # another node's, or nobody's who speaks: the next may be right
        finally:
            self._dialling.discard(peer.node)
            if peer.node not in self.links:
                self._lost(peer.node, reason)
                self._host.light(peer.node, "down", self._clock.wall_ms())
            self._wake.set()

    async def accept(self, channel: Channel) -> None:
        """Serve a call until it ends."""
        if self._stopping:
            await channel.close("the node is stopping")
            return
        if self.held:
            with suppress(ChannelClosed):
                await channel.send(wire.encode(wire.Goodbye(HELD, HELD_TEXT)))
                await channel.close(HELD_TEXT)
            return
        await self._run_link(channel, dialled=False, expect=None)

    async def _run_link(self, channel: Channel, dialled: bool, expect: bytes | None) -> tuple[str, bool]:
        """Why the link ended, for people, and whether the other side had proved who it is."""
        nonce, now = self._clock.random(wire.NONCE_BYTES), self._clock.monotonic_ms()
        state = Link(self.us, channel.binding, dialled, nonce, now, self._settings, expect)
        running = Running(self, channel, state, self._host, self._clock)
        try:
            return await running.run(), state.peer is not None
        finally:
            peer = state.peer.node if state.peer else None
            if peer is not None and self.links.get(peer) is running:
                del self.links[peer]
                self._host.light(peer, "down", self._clock.wall_ms())
                # Else two nodes whose links break at once would call each other without a pause.
                if not dialled and state.ours == "accepted":
                    self._lost(peer, "the link ended")
            self._wake.set()

    def admit(self, running: Running) -> bool:
        """One link per pair: keep this one, or say that the other one stays (PROTOCOL.md 3.5)."""
        assert running.state.peer is not None
        peer = running.state.peer.node
        if not running.state.dialled:
            self.reset(peer)
        old = self.links.get(peer)
        if old is not None:
            same_life = (
                old.state.hello is not None
                and running.state.hello is not None
                and (old.state.hello.incarnation == running.state.hello.incarnation)
            )
            by_us = keep_dialled_by_us(self.us.node, peer)
            if same_life and old.state.dialled == by_us and running.state.dialled != by_us:
                return False
            self._spawn(old.finish("replaced", "a newer link of this pair is in use"))
        self.links[peer] = running
        return True

    async def call_back(self, peer: bytes, addresses: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Call what a peer's hello gives and hang up: each with why it failed, empty where it did not. Nothing when
        one was called back just before (PROTOCOL.md 5.13)."""
        now = self._clock.monotonic_ms()
        recent = {node: at for node, at in self._called_back.items() if now - at < CALL_BACK_EVERY_MS}
        self._called_back = recent
        if self._dial is None or self._calling_back or peer in recent:
            self.refused["call backs"] += 1
            return ()
        recent[peer], self._calling_back = now, True
        try:
            return tuple(zip(addresses, await asyncio.gather(*map(self._reaches, addresses)), strict=True))
        finally:
            self._calling_back = False

    async def _reaches(self, address: str) -> str:
        assert self._dial is not None
        try:
            channel = await self._dial(address, CALL_BACK_S)
        except (ChannelClosed, OSError) as error:
            return (str(error) or type(error).__name__)[: wire.REASON_CHARS_MAX]
        await channel.close("only looked")
        return ""

    def _lost(self, peer: bytes, reason: str) -> None:
        backoff = self.backoffs.setdefault(peer, Backoff(self._cap_ms))
        backoff.failed(self._clock.monotonic_ms(), self._clock.chance(), reason)

    def reset(self, peer: bytes) -> None:
        """The peer called or accepts us (PROTOCOL.md 5.8); one that turns us away is called ever less often."""
        if peer in self.backoffs:
            self.backoffs[peer].reset()

    async def hold(self) -> None:
        """End every link, and make none until `release`."""
        self.held = True
        await asyncio.gather(*(r.finish(HELD, HELD_TEXT) for r in list(self.links.values())))

    def release(self) -> None:
        self.held = False
        self.peers_changed()

    async def stop(self) -> None:
        """Say goodbye on every link and leave no task behind."""
        self._stopping = True
        self._wake.set()
        await asyncio.gather(*(r.finish("restart", "the node is stopping") for r in list(self.links.values())))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

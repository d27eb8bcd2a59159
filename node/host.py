"""The node as federation sees it: looks things up, and submits what arrived (`federation.running.Host`)."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import msgspec

from federation import wire
from federation.errors import AddressError
from federation.event import Signed
from federation.identity import Identity, encode_chain, split_host_port
from federation.ids import Log, to_text
from federation.link import Standing
from federation.ports import ChannelClosed, Clock
from federation.reach import Reach, may_call, reach_from
from federation.running import Found, Known, Look
from node.api import ApiError
from node.config import Limits
from node.core.bucket import Buckets
from node.core.context import Context
from node.core.heal import TakeBack
from node.core.peers import STRANGERS, MeetPeer
from node.core.progress import PeerAcked
from node.core.quarantine import TRIES, Isolate
from node.core.receive import Receive
from node.directory import addresses
from node.healing import Healing
from node.storage import outgoing
from node.storage.writer import StoreFailed

log = logging.getLogger("roost.node")

if TYPE_CHECKING:
    from node.directory import Directory
    from node.storage.writer import Store

BURST_S = 10  # seconds of a rate that may come at once
HOLD_BACK_MS = 1_000  # a peer's events wait so long at most for their turn
HELLOS_PER_S, HELLOS_MAX = 1, 30  # of one node
PAUSED_MAX = 16_384
TELL_AGAIN_S = 1.0  # between tries to store an acknowledgement
POISON = ("failed", "damaged")  # refusals that tell of this node, and not of the event
TRIED_MAX = 4096
STRANGERS_MAX = 1024  # nodes that no administrator decided on: a key costs nothing, and `open` ones are called


class Host(Healing):
    def __init__(
        self,
        store: "Store",
        context: Context,
        directory: "Directory",
        light: Callable[[bytes, str, int], None],
        hold: Callable[[str, int], Awaitable[None]],
        clock: Clock,
        limits: Limits,
        passed: Callable[[bytes, Sequence[wire.Ephemeral]], None],
    ) -> None:
        super().__init__(store, context, hold)
        self._directory, self._clock = directory, clock
        self.light, self.passed = light, passed
        rate = limits.peer_events_per_second
        self.rates = Buckets(rate, rate * BURST_S)  # of peers, in events
        self._turns: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self.hellos = Buckets(HELLOS_PER_S, HELLOS_MAX)
        self.refused: Counter[str] = Counter()  # by the code of `later`, and of what never came so far
        self.retrying = 0  # acknowledgements that were not stored yet
        self.tries: dict[tuple[bytes, int], int] = {}  # of events that could not be processed; oldest first
        self.failures = 0  # times that happened
        self.paused: dict[Log, str] = {}  # why a log waits at a peer, for `roost why`; oldest first

    def known(self) -> Sequence[Known]:
        return [
            Known(peer.node, peer.name, standing(peer.state), addresses(peer))
            for peer in self._directory.peers.values()
        ]

    async def meet(self, identity: Identity, hello: wire.Hello, remote: str) -> Standing:
        taken, peers = self._directory.node_of(hello.name), self._directory.peers
        if identity.node not in peers and sum(p.state in STRANGERS for p in peers.values()) >= STRANGERS_MAX:
            self.refused["strangers"] += 1
            return "blocked"
        if self.hellos.take(identity.node, 1, self._clock.monotonic_ms()):
            self.refused["hellos"] += 1
            raise ChannelClosed("it calls too often")
        reach = reach_from(remote)
        hints = tuple(address for address in hello.addresses if _is_hint(address, reach))
        try:
            peer = await self._store.submit(
                MeetPeer(identity.node, hello.name, encode_chain(hello.chain), hints, taken, reach)
            )
        except (ApiError, StoreFailed) as error:
            if isinstance(error, ApiError) and not error.retry:
                return "blocked"
            known = peers.get(identity.node)
            if isinstance(error, ApiError) and known is not None and known.chain == encode_chain(hello.chain):
                return standing(known.state)  # the disk is full: nothing new of it, and what waits can go
            raise ChannelClosed(f"the hello was not stored: {error}") from None  # it calls again
        return standing(peer.state)

    async def pending(self, peer: bytes, look: Look) -> Found:
        sent = {log.key: seq for log, seq in look.sent.items()}
        resting = {log.key for log in look.resting}
        few = len(sent) + len(resting) < outgoing.LOGS_MAX  # to look past
        runs, turn, more = await self._store.read(
            outgoing.pending, peer, look.turn, sent, resting, look.events, look.bytes, hot=look.new and few
        )
        return Found([_segment(run) for run in runs], turn, more)

    async def receive(self, peer: bytes, segment: wire.Segment) -> wire.LogAck:
        if not await self._may_come(peer, len(segment.events)):
            self.refused["peer events"] += 1
            ack = _later(segment, "rate_limited", "this node takes no more from yours for a while")
        else:
            own = segment.origin == self._context.node
            try:
                ack = await (self._take_back(peer, segment) if own else self._receive(peer, segment))
            except StoreFailed as error:
                raise ChannelClosed(f"the store failed: {error}") from None
        self.refused.update(v.code for v in ack.verdicts)
        return ack

    async def _may_come(self, peer: bytes, events: int) -> bool:
        """Hold a fast peer back; one that its window does not hold back either is told to come later."""
        until = self._clock.monotonic_ms() + HOLD_BACK_MS
        turn = self._turns.setdefault(peer, asyncio.Lock())  # none of its segments may overtake another
        async with turn:
            while wait := self.rates.take(peer, events, now := self._clock.monotonic_ms()):
                if now + wait > until:
                    return False
                await asyncio.sleep(wait / 1000)
            return True

    async def _receive(self, peer: bytes, segment: wire.Segment) -> wire.LogAck:
        """What cannot be processed pauses its own log only, and in the end goes into quarantine (PROTOCOL.md 4.14)."""
        notices = not segment.members  # nobody waits for them
        try:
            ack: wire.LogAck = await self._store.submit(Receive(peer, segment), later=notices)
            return ack
        except ApiError as error:  # full or busy: the peer keeps it and offers it again
            if error.code not in POISON:
                return _later(segment, error.code, error.message)
            reason = error.message
        except StoreFailed:
            raise
        except Exception as error:  # a bug, or a damaged row that nobody thought of
            log.error("an event of %s cannot be processed", to_text(peer), exc_info=error)
            reason = f"{type(error).__name__}: {error}"
        if len(segment.events) > 1:
            return await self._one_by_one(peer, segment)
        place = Log(segment.conversation, segment.origin, segment.incarnation).key, segment.first
        tries = self.tries.pop(place, 0) + 1
        self.failures += 1
        if tries >= TRIES:
            try:
                isolated: wire.LogAck = await self._store.submit(Isolate(peer, segment, reason, tries))
                return isolated
            except ApiError as error:  # full, or the bug is in the log itself
                reason = error.message
        self.tries[place] = tries
        while len(self.tries) > TRIED_MAX:
            del self.tries[next(iter(self.tries))]
        return _later(segment, "failed", reason)

    async def _take_back(self, peer: bytes, segment: wire.Segment) -> wire.LogAck:
        """Our own log, lost here (PROTOCOL.md 10.3): nothing of it is ever refused for good."""
        try:
            ack: wire.LogAck = await self._store.submit(TakeBack(peer, segment), later=not segment.members)
            return ack
        except ApiError as error:
            return _later(segment, error.code, error.message)
        except StoreFailed:
            raise
        except Exception as error:
            log.error("an event of our own cannot be taken back from %s", to_text(peer), exc_info=error)
            return _later(segment, "failed", f"{type(error).__name__}: {error}")

    async def _one_by_one(self, peer: bytes, segment: wire.Segment) -> wire.LogAck:
        """Find the one: what is before it is taken, what is after it waits."""
        verdicts: list[wire.Verdict] = []
        upto = 0
        for number, event in enumerate(segment.events):
            one = msgspec.structs.replace(segment, first=segment.first + number, events=(event,))
            ack = await self._receive(peer, one)
            verdicts += ack.verdicts
            if ack.seq < one.first:
                break
            upto = ack.seq
        return wire.LogAck(segment.conversation, segment.origin, segment.incarnation, upto, tuple(verdicts))

    async def acked(self, peer: bytes, ack: wire.LogAck) -> int:
        of = Log(ack.conversation, ack.origin, ack.incarnation)
        self.paused.pop(of, None)
        for verdict in ack.verdicts:
            if verdict.verdict == "later":
                self.paused[of] = f"{verdict.code}: {verdict.reason}"
        if len(self.paused) > PAUSED_MAX:
            del self.paused[next(iter(self.paused))]
        while True:
            try:
                acked: int = await self._store.submit(PeerAcked(peer, ack), later=True)
                return acked
            except ApiError as error:
                if error.code in POISON:
                    return ack.seq  # one log's damage is no reason to end the link; on the next one it is offered again
                if not error.retry:
                    raise ChannelClosed(f"the acknowledgement was not stored: {error}") from None  # it is offered again
            except StoreFailed as error:
                raise ChannelClosed(f"the acknowledgement was not stored: {error}") from None
            except Exception as error:
                log.error("an acknowledgement of %s cannot be processed", to_text(peer), exc_info=error)
                self.failures += 1
                return ack.seq
            # No room or no time now. A new link would only bring the same again; on this one the window holds it back.
            self.refused["acknowledgements"] += 1
            self.retrying += 1
            try:
                await asyncio.sleep(TELL_AGAIN_S)
            finally:
                self.retrying -= 1


def _later(segment: wire.Segment, code: str, reason: str) -> wire.LogAck:
    """Nothing of it was taken; where the log is, the other side knows."""
    verdict = wire.Verdict(segment.first, "later", code, reason[: wire.REASON_CHARS_MAX])
    return wire.LogAck(segment.conversation, segment.origin, segment.incarnation, 0, (verdict,))


def _segment(run: outgoing.Run) -> wire.Segment:
    head, c = run.of.head, run.of.conversation
    given_up = max(0, run.of.outbound.given_up - run.after)  # of these, the first so many
    bare = (Signed(event.header, event.signature, None) for event in run.events[:given_up])
    return wire.Segment(
        head.conversation, head.origin, head.incarnation, run.after + 1,
        ((c.node_a, c.local_a), (c.node_b, c.local_b)) if c.kind == "direct" else (),
        (*bare, *run.events[given_up:]),
    )  # fmt: skip


def _is_hint(address: str, reach: Reach) -> bool:
    """A hello's other addresses are useless (PROTOCOL.md 3.2). A name is looked at when it is called."""
    try:
        host, _ = split_host_port(address)
    except AddressError:
        return False
    try:
        ip_address(host)
    except ValueError:
        return True
    return may_call(host, reach)


def standing(state: str) -> Standing:
    """What the other side may know of a peer's state here."""
    if state in ("accepted", "open"):
        return "accepted"
    return "blocked" if state == "blocked" else "pending"

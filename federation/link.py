"""One link between two nodes as a state machine: hello, standing, windows, acknowledgements, pings (PROTOCOL.md 3, 5).

Pure: `feed(frame, now_ms)` and `tick(now_ms)` give outputs for the shell to carry out; `wake_at()` says when to
tick next. Times are monotonic ms.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from federation import wire
from federation.errors import AddressError, ProtocolError
from federation.identity import Chain, Identity, NodeKey, check_chain, hello_bytes, verify
from federation.ids import Log, check_domain
from federation.ports import FRAME_BYTES_MAX, Binding

HELLO_DEADLINE_MS = 10_000
LATER_MS = 30_000  # how long a log that was told `later` rests
PACE_FIRST_BYTES = 32 << 10  # may be on the way before anything is known of the line: a usual burst leaves as one
PACE_MIN_BYTES = 8 << 10  # may be on the way on the slowest line
PACE_SLOW_MS, PACE_FAST_MS = (
    1500,
    750,
)  # to an acknowledgement: from the one on fewer bytes go ahead, below the other more
RESTING_MAX = 4096  # logs that do at once; then nothing is sent until one may go on
EVENT_BYTES = 100  # at most what an event takes on the wire beside header and body
SEGMENT_BYTES = 400  # the same of a segment beside its events


class Settings(NamedTuple):
    """What the configuration says of links."""

    ping_ms: int = 10_000
    dead_after_ms: int = 30_000
    window_events: int = 256
    window_bytes: int = 4 << 20


class Us(NamedTuple):
    """What our hello says."""

    chain: Chain
    key: NodeKey
    node: bytes
    name: str
    incarnation: bytes
    addresses: tuple[str, ...]


class Send(NamedTuple):
    frame: wire.AnyFrame


class Met(NamedTuple):
    """The other side proved who it is; the shell answers with `stand`."""

    identity: Identity
    hello: wire.Hello


class Up(NamedTuple):
    """Both sides accept each other: events may flow."""


class Shown(NamedTuple):
    """The other side shows our newest event that it holds; the shell looks for it, then says `looked`."""

    newest: wire.Newest


class Asked(NamedTuple):
    recall: wire.Recall


class Answered(NamedTuple):
    recalled: wire.Recalled


class Probing(NamedTuple):
    probe: wire.Probe


class Probed(NamedTuple):
    probed: wire.Probed


class Passed(NamedTuple):
    """Signs of life, said in passing."""

    signs: tuple[wire.Ephemeral, ...]


class Arrived(NamedTuple):
    segment: wire.Segment


class Acked(NamedTuple):
    ack: wire.LogAck


class Close(NamedTuple):
    """The link is over; `code` and `reason` for the other side and for people."""

    code: str
    reason: str


Output = Send | Met | Shown | Up | Arrived | Acked | Asked | Answered | Probing | Probed | Passed | Close
Standing = Literal["accepted", "pending", "blocked"]


class Link:
    """`dialled` says whether we called; the side that was called is the server of the hello."""

    def __init__(
        self,
        us: Us,
        binding: Binding,
        dialled: bool,
        nonce: bytes,
        now_ms: int,
        settings: Settings,
        expect: bytes | None,
    ) -> None:
        self._us, self._binding, self._nonce, self._settings = us, binding, nonce, settings
        self.dialled, self._expect = dialled, expect
        self._theirs: wire.Offer | None = None
        self.peer: Identity | None = None
        self.hello: wire.Hello | None = None
        self.ours: Standing | None = None
        self.their_standing: Standing | None = None
        self.up = False
        self.takes_home = False  # we were restored: our own lost events may come
        self._looking = False  # at what the other side showed: until then nothing flows
        self.closed = False
        self._deadline = now_ms + HELLO_DEADLINE_MS
        self._heard = self._pinged = now_ms
        self._pings = 0
        self.sent: dict[Log, int] = {}  # number after which to go on, per log on its way
        self._settled: dict[Log, int] = {}  # of these the store knows where to go on
        self._flight: dict[Log, list[tuple[int, int, int]]] = {}  # (events, bytes, when) per segment on its way
        self._pace = PACE_FIRST_BYTES  # bytes that the line carries in about a second, as far as we know
        self._slowed_ms = now_ms
        self._events = self._bytes = 0
        self.paused: dict[Log, tuple[int, str]] = {}  # until when, and why

    # --- what happens -------------------------------------------------------------------------------------------------
    def start(self) -> list[Output]:
        return [Send(wire.Offer(wire.VERSION, wire.VERSION, self._nonce))]

    def feed(self, frame: wire.AnyFrame, now_ms: int) -> list[Output]:
        """Raises `ProtocolError`; the shell then closes with its code."""
        self._heard = now_ms
        match frame:
            case wire.Offer():
                return self._offer(frame)
            case wire.Hello():
                return self._hello(frame)
            case wire.Goodbye():
                self.closed = True
                return [Close(frame.code, frame.reason)]
        if self.peer is None:
            raise ProtocolError("bad_frame", "nothing but offer and hello comes before the proof", "3.6")
        match frame:
            case wire.Standing():
                self.their_standing = frame.state
                if frame.newest is not None and frame.state == "accepted":
                    self._looking = True
                    return [Shown(frame.newest)]
                return self._maybe_up()
            case wire.Ping():
                return [Send(wire.Pong(frame.number))]
            case wire.Pong():
                return []
        if not self.up:
            raise ProtocolError("not_accepted", "nothing flows until both sides accept", "3.4")
        if isinstance(frame, wire.Events):
            return [Arrived(segment) for segment in self._check(frame)]
        if isinstance(frame, wire.Recall):
            return [Asked(frame)]
        if isinstance(frame, wire.Recalled):
            return [Answered(frame)]
        if isinstance(frame, wire.Probe):
            return [Probing(frame)]
        if isinstance(frame, wire.Probed):
            return [Probed(frame)]
        if isinstance(frame, wire.Ephemerals):
            return [Passed(frame.signs)]
        return [out for ack in frame.logs for out in self._acked(ack, now_ms)]

    def _offer(self, frame: wire.Offer) -> list[Output]:
        if self._theirs is not None:
            raise ProtocolError("bad_frame", "a second offer", "3.1")
        if not frame.version_min <= wire.VERSION <= frame.version_max:
            raise ProtocolError("bad_version", f"no common version; this node speaks {wire.VERSION}", "9.1")
        self._theirs = frame
        role: Literal["server", "client"] = "client" if self.dialled else "server"
        proof = self._us.key.sign("hello", hello_bytes(role, self._binding, self._nonce, frame.nonce))
        us = self._us
        return [Send(wire.Hello(us.chain, us.name, us.incarnation, role, proof, us.addresses, self._expect))]

    def _hello(self, frame: wire.Hello) -> list[Output]:
        if self._theirs is None or self.peer is not None:
            raise ProtocolError("bad_frame", "a hello out of turn", "3.2")
        role: Literal["server", "client"] = "server" if self.dialled else "client"
        identity = check_chain(frame.chain)
        proof = hello_bytes(role, self._binding, self._theirs.nonce, self._nonce)
        if frame.role != role or not verify(identity.key, "hello", proof, frame.proof):
            raise ProtocolError("bad_proof", "the hello is not proved over this channel", "3.2")
        if self._expect is not None and identity.node != self._expect:
            raise ProtocolError("wrong_node", "another node's key answered at this address", "3.2")
        if identity.node == self._us.node or (frame.to is not None and frame.to != self._us.node):
            raise ProtocolError("wrong_node", "the hello was meant for another node", "3.2")
        try:
            check_domain(frame.name)
        except AddressError as error:
            raise ProtocolError("bad_frame", str(error), "1.4") from None
        self.peer, self.hello = identity, frame
        return [Met(identity, frame)]

    def looked(self) -> list[Output]:
        """What was shown is known here, or will be healed: events may flow."""
        self._looking = False
        return self._maybe_up()

    def stand(self, state: Standing, newest: wire.Newest | None = None) -> list[Output]:
        """Our side's decision on the peer, at the hello and whenever it changes; `newest` of its events is shown."""
        if state == self.ours:
            return []
        self.ours = state
        if state == "blocked":
            self.closed = True
            return [Send(wire.Standing(state)), Close("blocked", "this node does not link with yours")]
        return [Send(wire.Standing(state, newest)), *self._maybe_up()]

    def _maybe_up(self) -> list[Output]:
        if self.their_standing == "blocked":
            self.closed = True
            return [Close("blocked", "that node does not link with this one")]
        up = self.ours == self.their_standing == "accepted" and not self._looking
        if up == self.up:
            return []
        self.up = up
        return [Up()] if up else []

    def _check(self, frame: wire.Events) -> tuple[wire.Segment, ...]:
        assert self.peer is not None
        for segment in frame.segments:
            home = self.takes_home and segment.origin == self._us.node  # PROTOCOL.md 10.3
            if segment.origin != self.peer.node and not home:
                raise ProtocolError("not_member", "a log of a third node, in no group of ours", "5.9")
        return frame.segments

    # --- sending ------------------------------------------------------------------------------------------------------
    def room(self) -> int:
        """How many more events may be on their way (PROTOCOL.md 5.5)."""
        if not self.space() or not self.up or len(self.paused) >= RESTING_MAX:
            return 0
        return max(0, self._settings.window_events - self._events)

    @property
    def on_the_way(self) -> int:
        """Events sent and not acknowledged."""
        return self._events

    def space(self) -> int:
        """The same in bytes; one segment may go over it. On a slow line little is under way, so that what is new
        does not wait behind it."""
        return max(0, min(self._settings.window_bytes, self._pace) - self._bytes)

    def _learn(self, size: int, sent_ms: int, now_ms: int) -> None:
        """Adapt the pace to the time that `size` bytes took; what left before we slowed down says nothing new."""
        took = now_ms - sent_ms
        if took >= PACE_SLOW_MS and sent_ms >= self._slowed_ms:
            self._pace, self._slowed_ms = max(PACE_MIN_BYTES, self._pace // 2), now_ms
        elif took < PACE_FAST_MS and 2 * self._bytes >= self._pace:
            self._pace = min(self._settings.window_bytes, self._pace + size)

    def sending(self, segments: Sequence[wire.Segment], now_ms: int) -> list[Output]:
        """Segments go out now, in frames that fit; the numbers stay on the books until they are acknowledged."""
        frames: list[list[wire.Segment]] = []
        frame_bytes = FRAME_BYTES_MAX
        for s in segments:
            size = s.size_bytes
            log = Log(s.conversation, s.origin, s.incarnation)
            last = s.first + len(s.events) - 1
            self.sent[log] = last
            self._flight.setdefault(log, []).append((len(s.events), size, now_ms))
            self._events += len(s.events)
            self._bytes += size
            wire_bytes = SEGMENT_BYTES + size + EVENT_BYTES * len(s.events)
            if frame_bytes + wire_bytes > FRAME_BYTES_MAX - SEGMENT_BYTES:
                frames.append([])
                frame_bytes = 0
            frames[-1].append(s)
            frame_bytes += wire_bytes
        return [Send(wire.Events(tuple(frame))) for frame in frames]

    def _acked(self, ack: wire.LogAck, now_ms: int) -> list[Output]:
        log = Log(ack.conversation, ack.origin, ack.incarnation)
        flight = self._flight.get(log)
        if not flight:
            raise ProtocolError("bad_ack", "an acknowledgement of what was not sent", "5.3")
        events, size, sent_ms = flight.pop(0)  # one acknowledgement answers one segment, in order
        self._learn(size, sent_ms, now_ms)
        self._events -= events
        self._bytes -= size
        later = next((v for v in ack.verdicts if v.verdict == "later"), None)
        if later is not None:
            self.paused[log] = (now_ms + LATER_MS, f"{later.code}: {later.reason}")
        if not flight:
            del self._flight[log]
            self.sent[log] = ack.seq  # what is still unacknowledged is read again from here
        else:
            # Beyond what this link sent: an earlier one brought it, and its acknowledgement was lost.
            self.sent[log] = max(self.sent[log], ack.seq)
        return [Acked(ack)]

    def settled(self, ack: wire.LogAck, acked: int) -> None:
        """The acknowledgement is stored, and the log is acknowledged up to `acked`."""
        log = Log(ack.conversation, ack.origin, ack.incarnation)
        if log not in self._flight and self.sent.get(log) == ack.seq:
            self.sent[log] = self._settled[log] = acked

    def forget_settled(self) -> None:
        """Before the store is read: what it knows need not be remembered. A read that began earlier may be older."""
        for log, acked in self._settled.items():
            if log not in self._flight and self.sent.get(log) == acked:
                del self.sent[log]
        self._settled.clear()

    def resting(self, now_ms: int) -> frozenset[Log]:
        """The logs that wait because the peer said `later`."""
        self.paused = {log: pause for log, pause in self.paused.items() if pause[0] > now_ms}
        return frozenset(self.paused)

    def recalled(self) -> None:
        """The peer says what it has: no log rests, and where nothing is on its way the store knows where to go on."""
        self.paused.clear()
        self.sent = {log: seq for log, seq in self.sent.items() if log in self._flight}
        self._settled.clear()

    # --- time ---------------------------------------------------------------------------------------------------------
    def wake_at(self) -> int:
        if self.peer is None:
            return self._deadline
        times = [self._pinged + self._settings.ping_ms, self._heard + self._settings.dead_after_ms]
        return min(times + [until for until, _ in self.paused.values()])

    def tick(self, now_ms: int) -> list[Output]:
        if self.peer is None:
            return self._over("timeout", "no proof of identity in time") if now_ms >= self._deadline else []
        self.resting(now_ms)
        if now_ms - self._heard >= self._settings.dead_after_ms:
            return self._over("dead", "no sign of life")
        if now_ms - self._pinged >= self._settings.ping_ms:
            self._pinged = now_ms
            self._pings += 1
            return [Send(wire.Ping(self._pings))]
        return []

    def _over(self, code: str, reason: str) -> list[Output]:
        self.closed = True
        return [Close(code, reason)]

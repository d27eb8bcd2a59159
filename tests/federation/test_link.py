"""The link as a pure state machine: proofs, standing, windows, acknowledgements, time. No loop, no channel."""

from collections import deque

import msgspec
import pytest

from federation import wire
from federation.errors import ProtocolError
from federation.event import Signed
from federation.identity import NodeKey, check_chain, new_chain
from federation.ids import Log
from federation.link import (
    HELLO_DEADLINE_MS,
    LATER_MS,
    PACE_FAST_MS,
    PACE_FIRST_BYTES,
    PACE_MIN_BYTES,
    PACE_SLOW_MS,
    Acked,
    Arrived,
    Close,
    Link,
    Met,
    Output,
    Send,
    Settings,
    Standing,
    Up,
    Us,
)
from federation.ports import FRAME_BYTES_MAX, Binding

SETTINGS = Settings()
BINDING = Binding("quic", b"k" * 32, b"e" * 32)


def us(number: int) -> Us:
    key = NodeKey(bytes([number]) * 32)
    chain = new_chain(key, NodeKey(bytes([number + 100]) * 32).public, bytes(32))
    node = check_chain(chain).node
    return Us(chain, key, node, f"n{number}.test", bytes([number]) * 16, ("192.0.2.1:7701",))


A, B, C = us(1), us(2), us(3)


class Two:
    """A dials B; `now` is their clock. Frames cross as bytes, everything else is kept in `seen`."""

    def __init__(
        self,
        standings: tuple[Standing | None, Standing | None] = ("accepted", "accepted"),
        settings: Settings = SETTINGS,
        bindings: tuple[Binding, Binding] = (BINDING, BINDING),
        who: tuple[Us, Us] = (A, B),
        expect: bytes | None = None,
    ) -> None:
        self.now = 1000
        self.way: deque[tuple[int, list[Output]]] = deque()
        self.standings = standings
        self.links = (
            Link(who[0], bindings[0], True, b"a" * 32, self.now, settings, expect),
            Link(who[1], bindings[1], False, b"b" * 32, self.now, settings, None),
        )
        self.a, self.b = self.links
        self.seen: tuple[list[Output], list[Output]] = ([], [])

    def greet(self) -> "Two":
        first, second = self.a.start(), self.b.start()
        self.way.extend(((0, first), (1, second)))
        self.carry(0, [])
        return self

    def carry(self, side: int, outputs: list[Output]) -> None:
        """Carry out these outputs of one side and all that follows, in the order in which a channel would."""
        self.way.append((side, outputs))
        while self.way:
            side, outputs = self.way.popleft()
            for out in outputs:
                if isinstance(out, Send):
                    frame = wire.decode(wire.encode(out.frame))
                    self.way.append((1 - side, self.links[1 - side].feed(frame, self.now)))
                    continue
                self.seen[side].append(out)
                standing = self.standings[side]
                if isinstance(out, Met) and standing is not None:
                    self.way.append((side, self.links[side].stand(standing)))

    def count(self, side: int, kind: type) -> int:
        return sum(isinstance(out, kind) for out in self.seen[side])


def log_of(number: int = 0, origin: Us = A) -> Log:
    return Log(bytes([number]) * 32, origin.node, origin.incarnation)


def segment(first: int = 1, count: int = 1, body_bytes: int = 10, log: Log | None = None) -> wire.Segment:
    events = tuple(Signed(b"h", bytes(64), b"x" * (body_bytes - 1)) for _ in range(count))
    return wire.Segment(*(log or log_of()), first, (), events)


def ack(seq: int, log: Log | None = None, later: bool = False) -> wire.Acks:
    verdicts = (wire.Verdict(seq + 1, "later", "mailbox_full", "full"),) if later else ()
    return wire.Acks((wire.LogAck(*(log or log_of()), seq, verdicts),))


def refused(code: str, rule: str) -> "pytest.RaisesExc[ProtocolError]":
    return pytest.RaisesExc(ProtocolError, check=lambda e: (e.code, e.rule) == (code, rule))


NAMES = ["", "A.test", "\u0430lice.test", "a.test\x1b[2J", "a.test\n", "a b", "a..test", "xn--a.test", "x" * 64]


# --- the hello --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_out_of_the_grammar_never_reaches_a_screen_or_a_log(name: str) -> None:
    with refused("bad_frame", "1.4"):
        Two(who=(A._replace(name=name), B)).greet()


def test_both_sides_prove_themselves_and_events_may_flow() -> None:
    two = Two(expect=B.node).greet()
    for side, other in ((0, B), (1, A)):
        met = two.seen[side][0]
        assert isinstance(met, Met)
        assert met.identity.node == other.node
        assert met.hello.name == other.name
        assert two.seen[side][1:] == [Up()]
    assert two.a.room() == Settings().window_events


@pytest.mark.parametrize(
    "theirs",
    [
        BINDING._replace(exporter=b"f" * 32),
        BINDING._replace(key_hash=b"l" * 32),
        BINDING._replace(kind="tcp"),
    ],
    ids=["exporter", "key", "kind"],
)
def test_a_proof_from_another_channel_is_refused(theirs: Binding) -> None:
    with refused("bad_proof", "3.2"):
        Two(bindings=(BINDING, theirs)).greet()


def hello_of(who: Us, *, dialled: bool, own: bytes, other: bytes, to: bytes | None = None) -> wire.Hello:
    link = Link(who, BINDING, dialled, own, 0, Settings(), to)
    [out] = link.feed(wire.Offer(1, 1, other), 0)
    assert isinstance(out, Send)
    assert isinstance(out.frame, wire.Hello)
    return out.frame


def waiting_for_hello(expect: bytes | None = None, dialled: bool = False) -> Link:
    link = Link(B, BINDING, dialled, b"b" * 32, 0, Settings(), expect)
    link.feed(wire.Offer(1, 1, b"a" * 32), 0)
    return link


def test_a_hello_of_another_session_is_refused() -> None:
    fresh = hello_of(A, dialled=True, own=b"a" * 32, other=b"b" * 32)
    assert isinstance(waiting_for_hello().feed(fresh, 0)[0], Met)
    for own, other in ((b"a", b"c"), (b"c", b"b")):
        with refused("bad_proof", "3.2"):
            waiting_for_hello().feed(hello_of(A, dialled=True, own=own * 32, other=other * 32), 0)


def test_anothers_proof_is_refused() -> None:
    stolen = hello_of(A, dialled=True, own=b"a" * 32, other=b"b" * 32)
    mine = hello_of(C, dialled=True, own=b"a" * 32, other=b"b" * 32)
    with refused("bad_proof", "3.2"):
        waiting_for_hello().feed(msgspec.structs.replace(mine, chain=stolen.chain), 0)


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_reflected_hello_is_refused(role: str) -> None:
    link = Link(B, BINDING, False, b"b" * 32, 0, Settings(), None)
    [out] = link.feed(wire.Offer(1, 1, b"b" * 32), 0)  # our own nonce comes back, so only the role tells the two apart
    assert isinstance(out, Send)
    assert isinstance(out.frame, wire.Hello)
    with refused("bad_proof", "3.2"):
        link.feed(msgspec.structs.replace(out.frame, role=role), 0)


def test_a_caller_in_the_called_sides_role_is_refused() -> None:
    with refused("bad_proof", "3.2"):
        waiting_for_hello().feed(hello_of(A, dialled=False, own=b"a" * 32, other=b"b" * 32), 0)


def test_another_node_at_the_address_is_refused() -> None:
    answer = hello_of(A, dialled=False, own=b"a" * 32, other=b"b" * 32)
    assert isinstance(waiting_for_hello(A.node, dialled=True).feed(answer, 0)[0], Met)
    with refused("wrong_node", "3.2"):
        waiting_for_hello(C.node, dialled=True).feed(answer, 0)


def test_a_hello_for_another_node_is_refused() -> None:
    for to, good in ((None, True), (B.node, True), (C.node, False)):
        hello = hello_of(A, dialled=True, own=b"a" * 32, other=b"b" * 32, to=to)
        if good:
            assert isinstance(waiting_for_hello().feed(hello, 0)[0], Met)
        else:
            with refused("wrong_node", "3.2"):
                waiting_for_hello().feed(hello, 0)


def test_a_node_does_not_link_with_itself() -> None:
    with refused("wrong_node", "3.2"):
        Two(who=(A, A)).greet()


def test_no_common_version_is_refused() -> None:
    link = Link(B, BINDING, False, b"b" * 32, 0, Settings(), None)
    with refused("bad_version", "9.1"):
        link.feed(wire.Offer(wire.VERSION + 1, wire.VERSION + 5, b"a" * 32), 0)


EARLY: list[wire.AnyFrame] = [
    wire.Standing("accepted"),
    wire.Ping(1),
    wire.Pong(1),
    wire.Events((segment(),)),
    ack(1),
]


@pytest.mark.parametrize("frame", EARLY, ids=lambda frame: type(frame).__name__)
def test_nothing_comes_before_the_proof(frame: wire.AnyFrame) -> None:
    link = Link(B, BINDING, False, b"b" * 32, 0, Settings(), None)
    with refused("bad_frame", "3.6"):
        link.feed(frame, 0)
    link.feed(wire.Offer(1, 1, b"a" * 32), 0)
    with refused("bad_frame", "3.6"):
        link.feed(frame, 0)


def test_offer_and_hello_come_once_and_in_turn() -> None:
    hello = hello_of(A, dialled=True, own=b"a" * 32, other=b"b" * 32)
    with refused("bad_frame", "3.2"):
        Link(B, BINDING, False, b"b" * 32, 0, Settings(), None).feed(hello, 0)
    link = waiting_for_hello()
    with refused("bad_frame", "3.1"):
        link.feed(wire.Offer(1, 1, b"c" * 32), 0)
    link.feed(hello, 0)
    with refused("bad_frame", "3.2"):
        link.feed(hello, 0)


# --- standing ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ours", ["accepted", "pending", None])
@pytest.mark.parametrize("theirs", ["accepted", "pending", None])
def test_events_flow_only_when_both_accept(ours: Standing | None, theirs: Standing | None) -> None:
    two = Two(standings=(ours, theirs)).greet()
    up = ours == theirs == "accepted"
    assert two.count(0, Up) == two.count(1, Up) == up
    assert bool(two.a.room()) == bool(two.b.room()) == up
    if up:
        two.carry(0, two.a.sending([segment()], two.now))
        assert two.seen[1][-1] == Arrived(segment())
    else:
        with refused("not_accepted", "3.4"):
            two.b.feed(wire.Events((segment(),)), two.now)
        with refused("not_accepted", "3.4"):
            two.b.feed(ack(1), two.now)


def test_a_later_acceptance_brings_the_link_up_once() -> None:
    two = Two(standings=("accepted", "pending")).greet()
    two.carry(1, two.b.stand("accepted"))
    two.carry(1, two.b.stand("accepted"))
    assert two.count(0, Up) == two.count(1, Up) == 1


@pytest.mark.parametrize("side", [0, 1])
def test_a_blocked_peer_is_told_and_both_sides_close(side: int) -> None:
    standings: list[Standing] = ["accepted", "accepted"]
    standings[side] = "blocked"
    two = Two(standings=(standings[0], standings[1])).greet()
    for link, seen in zip(two.links, two.seen, strict=True):
        assert [out.code for out in seen if isinstance(out, Close)] == ["blocked"]
        assert link.closed
        assert not link.up


def test_a_peer_can_be_blocked_while_events_flow() -> None:
    two = Two().greet()
    two.carry(0, two.a.stand("blocked"))
    for seen in two.seen:
        assert [out.code for out in seen if isinstance(out, Close)] == ["blocked"]


def test_a_goodbye_closes_with_its_code() -> None:
    two = Two().greet()
    assert two.a.feed(wire.Goodbye("restart", "back soon"), two.now) == [Close("restart", "back soon")]
    assert two.a.closed


# --- the window -------------------------------------------------------------------------------------------------------
def test_the_window_counts_events_and_an_acknowledgement_releases_them() -> None:
    two = Two(settings=Settings(window_events=10)).greet()
    two.carry(0, two.a.sending([segment(1, 4)], two.now))
    two.carry(0, two.a.sending([segment(5, 3), segment(1, 2, log=log_of(1))], two.now))
    assert two.a.room() == 1
    assert two.a.sent == {log_of(): 7, log_of(1): 2}
    two.carry(1, [Send(ack(4))])
    assert two.a.room() == 5
    assert two.a.sent[log_of()] == 7
    two.carry(1, [Send(ack(7)), Send(ack(2, log_of(1)))])
    assert two.a.room() == 10
    assert two.count(0, Acked) == 3


def test_the_window_counts_bytes() -> None:
    two = Two(settings=Settings(window_bytes=1000)).greet()
    two.carry(0, two.a.sending([segment(1, 1, 600)], two.now))
    assert two.a.room() == 255
    assert two.a.space() == 400
    two.carry(0, two.a.sending([segment(2, 1, 400)], two.now))
    assert two.a.room() == 0
    assert two.a.space() == 0
    two.carry(1, [Send(ack(1))])
    assert two.a.room() == 255
    assert two.a.space() == 600


def test_as_much_is_on_the_way_as_the_line_carries_in_about_a_second() -> None:
    two, seq = Two().greet(), 0

    def fill(took_ms: int) -> int:
        """Fill the line, and be answered so much later; how much it was."""
        nonlocal seq
        size = two.a.space()
        two.carry(0, two.a.sending([segment(seq + 1, 4, size // 4)], two.now))
        assert two.a.space() == 0
        two.now += took_ms
        seq += 4
        two.carry(1, [Send(ack(seq))])
        return size

    assert [fill(10) for _ in range(3)] == [PACE_FIRST_BYTES << n for n in range(3)]
    slow = (PACE_SLOW_MS, 32), (PACE_SLOW_MS, 16), (PACE_SLOW_MS, 8), (PACE_SLOW_MS, 4), (PACE_SLOW_MS * 9, 2)
    for took, then in ((PACE_FAST_MS, 32), *slow, (PACE_SLOW_MS, 1), (0, 1), (0, 2), (0, 4)):
        assert fill(took) == PACE_MIN_BYTES * then, took


def test_what_left_before_the_pace_fell_does_not_lower_it_again() -> None:
    two = Two().greet()
    for seq in (1, 2, 3):
        two.carry(0, two.a.sending([segment(seq, 1, 20_000)], two.now))
    two.a._pace = 8 * PACE_MIN_BYTES
    two.now += PACE_SLOW_MS
    two.carry(1, [Send(ack(1)), Send(ack(2)), Send(ack(3))])
    assert two.a.space() == 4 * PACE_MIN_BYTES


def test_a_batch_larger_than_a_frame_leaves_in_several() -> None:
    two = Two(settings=Settings(window_bytes=100 << 20)).greet()
    segments = [segment(1, 10, 60_000, log_of(n)) for n in range(5)]
    outputs = two.a.sending(segments, two.now)
    frames = [out.frame for out in outputs if isinstance(out, Send)]
    assert all(len(wire.encode(frame)) <= FRAME_BYTES_MAX for frame in frames)
    assert [s for frame in frames if isinstance(frame, wire.Events) for s in frame.segments] == segments


def test_later_pauses_only_its_own_log_and_for_a_while() -> None:
    two = Two().greet()
    two.carry(0, two.a.sending([segment(1, 3), segment(1, 1, log=log_of(1))], two.now))
    two.carry(1, [Send(ack(1, later=True)), Send(ack(1, log_of(1)))])
    assert log_of() in two.a.resting(two.now)
    assert log_of(1) not in two.a.resting(two.now)
    assert "mailbox_full" in two.a.paused[log_of()][1]
    assert two.a.sent.get(log_of(), 0) <= 1  # the rest of it is offered again
    assert two.a.room() == Settings().window_events
    assert log_of() in two.a.resting(two.now + LATER_MS - 1)
    assert log_of() not in two.a.resting(two.now + LATER_MS)


def test_what_was_sent_behind_a_paused_event_is_offered_again() -> None:
    two = Two().greet()
    two.carry(0, two.a.sending([segment(1, 2)], two.now))
    two.carry(0, two.a.sending([segment(3, 2)], two.now))
    two.carry(1, [Send(ack(1, later=True)), Send(ack(1, later=True))])
    assert two.a.sent.get(log_of(), 0) <= 1


@pytest.mark.parametrize(
    "frame",
    [ack(1, log_of(1)), ack(1, log_of(0, C))],
    ids=["another conversation", "another origin"],
)
def test_an_unknown_acknowledgement_is_refused(frame: wire.Acks) -> None:
    two = Two().greet()
    two.carry(0, two.a.sending([segment(1, 3)], two.now))
    with refused("bad_ack", "5.3"):
        two.a.feed(frame, two.now)


def test_an_acknowledgement_may_be_past_what_this_link_carried() -> None:
    """An earlier link brought more, and its answers were lost; to refuse them would end every later link too."""
    two = Two().greet()
    two.carry(0, two.a.sending([segment(1, 2)], two.now))
    two.carry(0, two.a.sending([segment(3, 2)], two.now))
    two.carry(1, [Send(ack(9))])
    assert two.a.sent[log_of()] == 9
    two.carry(1, [Send(ack(9))])
    two.a.settled(ack(9).logs[0], 9)
    two.a.forget_settled()
    assert not two.a.sent


def test_a_peer_that_acknowledges_more_than_the_log_has_is_believed_up_to_its_end() -> None:
    two = Two().greet()
    two.carry(0, two.a.sending([segment(1, 2)], two.now))
    two.carry(1, [Send(ack(1 << 50))])
    two.a.settled(ack(1 << 50).logs[0], 2)
    assert two.a.sent == {log_of(): 2}


def test_a_settled_log_is_remembered_until_the_store_is_read_anew() -> None:
    """A read that began before the commit would offer again what the peer has."""
    two = Two().greet()
    two.carry(0, two.a.sending([segment(1, 2)], two.now))
    two.carry(1, [Send(ack(2))])
    two.a.settled(ack(2).logs[0], 2)
    assert two.a.sent == {log_of(): 2}
    two.carry(0, two.a.sending([segment(3, 1)], two.now))
    two.a.forget_settled()
    assert two.a.sent == {log_of(): 3}  # more is on its way


def test_a_second_acknowledgement_of_one_segment_is_refused() -> None:
    two = Two().greet()
    two.carry(0, two.a.sending([segment(1, 3)], two.now))
    two.a.feed(ack(3), two.now)
    with refused("bad_ack", "5.3"):
        two.a.feed(ack(3), two.now)


def test_a_third_nodes_log_is_refused() -> None:
    two = Two().greet()
    third = segment(log=log_of(0, C))
    with refused("not_member", "5.9"):
        two.b.feed(wire.Events((segment(), third)), two.now)
    assert two.b.feed(wire.Events((segment(),)), two.now) == [Arrived(segment())]


# --- time -------------------------------------------------------------------------------------------------------------
def test_a_hello_has_a_deadline() -> None:
    link = Link(B, BINDING, False, b"b" * 32, 500, Settings(), None)
    link.feed(wire.Offer(1, 1, b"a" * 32), 9000)  # words do not buy time
    assert link.wake_at() == 500 + HELLO_DEADLINE_MS
    assert link.tick(500 + HELLO_DEADLINE_MS - 1) == []
    [out] = link.tick(500 + HELLO_DEADLINE_MS)
    assert isinstance(out, Close)
    assert out.code == "timeout"
    assert link.closed


def test_a_quiet_link_is_pinged_and_answers() -> None:
    two = Two(settings=Settings(ping_ms=100, dead_after_ms=350)).greet()
    start = two.now
    assert two.a.wake_at() == start + 100
    assert two.a.tick(start + 99) == []
    assert two.a.tick(start + 100) == [Send(wire.Ping(1))]
    assert two.a.wake_at() == start + 200
    assert two.a.tick(start + 200) == [Send(wire.Ping(2))]
    assert two.b.feed(wire.Ping(2), start + 200) == [Send(wire.Pong(2))]
    assert two.a.feed(wire.Pong(2), start + 240) == []


def test_a_silent_peer_is_dead_and_a_talking_one_is_not() -> None:
    two = Two(settings=Settings(ping_ms=100, dead_after_ms=350)).greet()
    start = two.now
    two.a.feed(wire.Pong(1), start + 100)
    assert not any(isinstance(out, Close) for out in two.a.tick(start + 449))
    [out] = two.a.tick(start + 450)
    assert isinstance(out, Close)
    assert out.code == "dead"


def test_a_tick_always_leaves_the_next_one_in_the_future() -> None:
    """Else the shell would spin."""
    two = Two(standings=(None, "accepted")).greet()  # the host still thinks about the peer
    for now in range(two.now, two.now + 3 * HELLO_DEADLINE_MS, 1000):
        two.b.feed(wire.Ping(1), now)
        two.a.feed(wire.Ping(1), now)
        two.a.tick(now)
        assert two.a.wake_at() > now
    two = Two(settings=Settings(ping_ms=50_000, dead_after_ms=100_000)).greet()
    two.carry(0, two.a.sending([segment()], two.now))
    two.carry(1, [Send(ack(0, later=True))])
    until = two.now + LATER_MS
    assert two.a.wake_at() == until
    two.a.tick(until)
    assert two.a.wake_at() > until

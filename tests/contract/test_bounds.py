"""The store's bounds in bytes, what a peer may make us keep unasked, and what is given up."""

from federation.event import Header, Signed, body_hash, sign_event
from federation.ids import Log, User, direct_conversation, notice_conversation
from federation.wire import LogAck, Notices, Receipt, Segment, encode
from node.api import ApiError
from node.core import rows
from node.core.bucket import NAMES_MAX, Buckets
from node.core.heal import GiveBack, Rewind
from node.core.people import AddDevice
from node.core.progress import Acknowledge, GiveUp, PeerAcked
from node.core.quota import FORGIVEN_MS
from node.core.receive import Receive
from node.storage import outgoing, reads, waits
from tests.contract.bench import NOW_MS, Bench, Far

BODY = bytes(10_000)


async def refusal(bench: Bench, key: str, to: User) -> str:
    try:
        await bench.do(bench.send(key, to, BODY))
    except ApiError as error:
        return error.code
    return ""


def codes(ack: LogAck) -> list[tuple[int, str, str]]:
    return [(v.seq, v.verdict, v.code) for v in ack.verdicts]


async def test_a_mailbox_is_full_by_bytes_until_a_device_fetches(bench: Bench) -> None:
    far = Far()
    bench.context.mailbox_bytes_max = 35_000
    await bench.people("alice", "bob")
    await bench.befriend(far)
    await bench.do(AddDevice(b"b" * 16, "bob", "phone", b"b" * 32, b"s" * 32))
    segment = far.segment(bench.user("bob"), [BODY] * 9)
    ack = await bench.do(Receive(far.node, segment))
    assert (ack.seq, codes(ack)) == (4, [(5, "later", "mailbox_full")])
    assert await refusal(bench, "k", bench.user("bob")) == "mailbox_full"
    box = await bench.get(rows.Mailbox, "bob")
    assert (box.items, box.bytes) == (4, sum(len(e.header) + len(BODY) for e in segment.events[:4]))
    await bench.do(Acknowledge("bob", b"b" * 16, box.position, ()))
    assert (await bench.get(rows.Mailbox, "bob"))[2:] == (0, 0)
    assert (await bench.do(Receive(far.node, segment))).seq == 8


async def test_what_waits_for_a_peer_is_bounded_by_bytes_before_anything_is_accepted(bench: Bench) -> None:
    far = Far()
    bench.context.waiting_bytes_max = 25_000
    await bench.people("alice")
    await bench.befriend(far)
    to = User(far.node, "bob")
    assert [await refusal(bench, f"k{n}", to) for n in range(4)] == ["", "", "", "destination_backlogged"]
    assert bench.store.refused["destination_backlogged"] == 1
    log = bench.context_log(direct_conversation(bench.user("alice"), to))
    await bench.do(PeerAcked(far.node, LogAck(*log, 2)))
    there = await bench.get(rows.Destination, far.node)
    assert there.waiting == 1
    assert 10_000 < there.bytes < 11_000
    assert [await refusal(bench, f"l{n}", to) for n in range(3)] == ["", "", "destination_backlogged"]
    await bench.do(PeerAcked(far.node, LogAck(*log, 5)))
    assert await bench.get(rows.Destination, far.node) == rows.Destination(far.node, 0, 0), "exact when it is empty"


async def test_refused_events_cost_the_peer_its_quota_until_it_is_forgiven(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    segment = far.segment(bench.user("nobody"), [b"x"] * 9)
    bench.context.peer_quota = sum(len(e.header) + len(e.signature) for e in segment.events[:3]) + 100
    ack = await bench.do(Receive(far.node, segment))
    assert codes(ack) == [
        *((n, "refused", "unknown_user") for n in (1, 2, 3)), (4, "later", "rate_limited")
    ]  # fmt: skip
    assert ack.seq == 3
    fine = await bench.do(Receive(far.node, far.segment(bench.user("alice"), [b"x"], sender="carol")))
    assert codes(fine) == [(1, "later", "rate_limited")], "a new conversation is kept unasked too"
    bench.now_ms += FORGIVEN_MS
    ack = await bench.do(Receive(far.node, segment))
    assert (ack.seq, codes(ack)[-1]) == (6, (7, "later", "rate_limited"))
    bench.now_ms -= 2 * FORGIVEN_MS  # a clock that goes back forgives nothing
    assert (await bench.do(Receive(far.node, segment))).seq == 6


async def test_a_conversation_that_was_accepted_costs_no_quota(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    first = far.segment(bench.user("alice"), [BODY] * 9)
    await bench.do(Receive(far.node, first))
    spent = (await bench.get(rows.Peer, far.node)).used
    assert 0 < spent < 2 * len(BODY), "the first message and its conversation"


def notices(bench: Bench, far: Far, receipts: list[Receipt], count: int) -> Segment:
    """So many notices events with the same news."""
    conversation = notice_conversation(bench.context.node, far.node)
    body = encode(Notices(tuple(receipts)))
    previous, signed = None, []
    for seq in range(1, count + 1):
        header = Header(
            version=1, conversation=conversation, origin=far.node, incarnation=far.incarnation, seq=seq,
            previous=previous, after=None, sender="", device=b"", stamp=(NOW_MS << 16) + seq, control=None,
            kind="notices", target=None, manifest=None, body_format="notices", body_hash=body_hash(body),
            body_bytes=len(body), expires_ms=None,
        )  # fmt: skip
        made = sign_event(header, body, far.key)
        signed.append(made.signed)
        previous = made.id
    return Segment(conversation, far.node, far.incarnation, 1, (), tuple(signed))


async def test_notices_without_news_cost_quota_and_news_is_free(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    sent = await bench.do(bench.send("k", User(far.node, "bob")))
    conversation = direct_conversation(bench.user("alice"), User(far.node, "bob"))
    news = [Receipt(conversation, bench.context.incarnation, "bob", sent.seq, 0, (), 5)]
    ack = await bench.do(Receive(far.node, notices(bench, far, news, 1)))
    assert ack.seq == 1
    assert (await bench.get(rows.Peer, far.node)).used == 0
    bench.context.peer_quota = 1_500
    ack = await bench.do(Receive(far.node, notices(bench, far, news, 9)))
    assert 1 < ack.seq < 9
    assert codes(ack) == [(ack.seq + 1, "later", "rate_limited")]


async def test_what_is_given_up_has_failed_and_frees_its_place(bench: Bench) -> None:
    far = Far()
    bench.context.waiting_max = 3
    await bench.people("alice")
    await bench.befriend(far)
    to = User(far.node, "bob")
    assert [await refusal(bench, f"k{n}", to) for n in range(4)] == ["", "", "", "destination_backlogged"]
    bench.now_ms += 1000
    ((peer, log, last),) = await bench.store.read(waits.overdue, None, bench.now_ms)
    assert (peer, last) == (far.node, 3)
    assert await bench.store.read(waits.overdue, None, NOW_MS) == [], "not so old"
    assert await bench.store.read(waits.overdue, b"x" * 32, bench.now_ms) == [], "another peer's"
    assert await bench.do(GiveUp(peer, log, last, "expired", "for so long")) == 3
    assert await bench.do(GiveUp(peer, log, last, "expired", "for so long")) == 0
    assert [(await bench.get(rows.Failed, log, n, *to)).code for n in (1, 2, 3)] == ["expired"] * 3
    assert await bench.store.read(waits.waiting) == {}
    assert await bench.get(rows.Destination, far.node) == rows.Destination(far.node, 0, 0)
    assert [await refusal(bench, f"l{n}", to) for n in range(2)] == ["", ""]
    runs, *_ = await bench.store.read(outgoing.pending, far.node, b"", {}, set(), 99, 1 << 20)
    assert len(runs[0].events) == 5, "a log has no gaps: the peer gets their headers"
    key = Log(direct_conversation(bench.user("alice"), to), bench.context.node, bench.context.incarnation)
    await bench.do(PeerAcked(far.node, LogAck(*key, 2)))
    assert (await bench.get(rows.Destination, far.node)).waiting == 2, "what was given up is not counted down again"
    await bench.do(PeerAcked(far.node, LogAck(*key, 5)))
    assert await bench.get(rows.Destination, far.node) == rows.Destination(far.node, 0, 0)


async def test_an_event_that_comes_first_without_its_body_is_kept_and_not_delivered(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    whole = far.segment(bench.user("alice"), [b"one", b"two"])
    one, two = whole.events
    ack = await bench.do(Receive(far.node, Segment(*(_parts(whole)), (Signed(one.header, one.signature, None), two))))
    assert (ack.seq, ack.verdicts) == (2, ())
    found, *_ = await bench.store.read(reads.feed, "alice", 0, 100, 1 << 20)
    assert [i.event.body for i in found if isinstance(i, reads.Placed)] == [b"two"]


def _parts(segment: Segment) -> tuple[bytes, bytes, bytes, int, tuple[tuple[bytes, str], ...]]:
    return segment.conversation, segment.origin, segment.incarnation, segment.first, segment.members


def test_a_bucket_gives_a_burst_and_then_its_rate() -> None:
    buckets = Buckets(10, 20)
    assert [buckets.take("a", 1, 0) for _ in range(20)] == [0] * 20
    assert buckets.take("a", 1, 0) == 101
    assert buckets.take("b", 1, 0) == 0, "each has its own"
    assert buckets.take("a", 1, 101) == 0
    assert buckets.take("a", 500, 101) > 1000
    assert buckets.take("a", 500, 60_000) == 0, "more than a burst costs a burst"
    assert buckets.take("a", 1, 0) > 0, "time does not go back"


def test_buckets_are_bounded_and_forget_who_is_quiet() -> None:
    buckets = Buckets(10, 20)
    buckets.take("spent", 20, 0)
    for n in range(2 * NAMES_MAX):
        buckets.take(str(n), 1, 100 + n)
    assert len(buckets) <= NAMES_MAX


async def expire(bench: Bench, peer: bytes | None = None) -> int:
    found = await bench.store.read(waits.overdue, peer, bench.now_ms)
    return sum(await bench.all(*(GiveUp(to, of, last, "expired", "nobody took it") for to, of, last in found)))


async def test_what_goes_back_to_a_restored_peer_never_expires(bench: Bench) -> None:
    """Its own events are nobody's here to give up, and without their bodies they would be lost for good."""
    far = Far()
    await bench.people("alice", "bob")
    await bench.befriend(far)
    segment = far.segment(bench.user("alice"), [b"1", b"2"])
    await bench.do(Receive(far.node, segment))
    key = Log(segment.conversation, segment.origin, segment.incarnation).key
    await bench.do(GiveBack(far.node, {key: 0}))
    bench.now_ms += 365 * 86_400_000
    assert await bench.store.read(waits.overdue, None, bench.now_ms) == []
    assert await bench.do(GiveUp(far.node, key, 2, "expired", "nobody took it")) == 0
    assert await bench.get(rows.Mailbox, "bob") is None
    (run,), _, _ = await bench.store.read(outgoing.pending, far.node, b"", {}, set(), 64, 1 << 20)
    assert (run.of.outbound.given_up, [e.body for e in run.events]) == (0, [b"1", b"2"])


async def test_what_a_restored_peer_once_took_has_not_failed(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    to = User(far.node, "bob")
    for n in range(3):
        await bench.do(bench.send(f"k{n}", to))
    log = bench.context_log(direct_conversation(bench.user("alice"), to))
    await bench.do(PeerAcked(far.node, LogAck(*log, 2)))
    await bench.do(Rewind(far.node, {log.key: 0}))
    bench.now_ms += 365 * 86_400_000
    assert await expire(bench) == 0
    assert await bench.get(rows.Failed, log.key, 1, far.node, "bob") is None
    await bench.do(PeerAcked(far.node, LogAck(*log, 2)))  # it has them again: the third may fail
    assert await expire(bench) == 1
    assert await bench.get(rows.Failed, log.key, 3, far.node, "bob") is not None

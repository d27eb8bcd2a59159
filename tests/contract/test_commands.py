"""The message's way through the real store: each command, alone and many at once."""

from typing import Any

import pytest

from federation.event import event_id
from federation.ids import Log, User, direct_conversation, notice_conversation
from federation.wire import LogAck, Receipt, Segment, Verdict, decode_notices
from node.api import ApiError, Done
from node.core import rows
from node.core.peers import ChangePeer
from node.core.people import AddAccount, AddDevice, AddInvite, ChangeAccount, ChangeDevice, RevokeInvite
from node.core.progress import Acknowledge, Consent, PeerAcked, Seen
from node.core.receive import Receive
from node.storage import reads
from tests.contract.bench import DEVICE, NOW_MS, Bench, Far, Put


def log_of(bench: Bench, segment: Segment) -> Log:
    return Log(segment.conversation, segment.origin, segment.incarnation)


def codes(ack: LogAck) -> list[tuple[int, str, str]]:
    return [(v.seq, v.verdict, v.code) for v in ack.verdicts]


async def waiting(bench: Bench) -> dict[bytes, int]:
    return await bench.store.read(reads.waiting)


async def test_send_stores_all_of_it_in_one_commit(bench: Bench) -> None:
    await bench.people("alice", "bob")
    before = bench.store.commits
    sent = await bench.do(bench.send("k", bench.user("bob"), b"hi"))
    assert bench.store.commits == before + 1
    feeds = [await bench.store.read(reads.feed, who, 0, 100, 1 << 20) for who in ("alice", "bob")]
    bodies = [[i.event.body for i in items if isinstance(i, reads.Placed)] for items, _ in feeds]
    assert bodies == [[b"hi"], [b"hi"]]
    again = await bench.do(bench.send("k", bench.user("bob"), b"hi"))
    assert again == sent
    with pytest.raises(ApiError) as other:
        await bench.do(bench.send("k", bench.user("bob"), b"ho"))
    assert other.value.code == "conflict"
    assert (await bench.get(rows.Mailbox, "bob")).items == 1


async def test_the_same_key_twice_in_one_batch(bench: Bench) -> None:
    await bench.people("alice", "bob")
    one, two, other = await bench.all(
        bench.send("k", bench.user("bob")), bench.send("k", bench.user("bob")), bench.send("k", bench.user("alice"))
    )
    assert one == two
    assert other.code == "conflict"
    assert (await bench.get(rows.Mailbox, "bob")).items == 1


async def test_a_declined_sender_is_told_and_nothing_is_delivered(bench: Bench) -> None:
    await bench.people("alice", "bob")
    await bench.do(bench.send("1", bench.user("bob")))
    conversation = direct_conversation(bench.user("alice"), bench.user("bob"))
    await bench.do(Consent("bob", conversation, False, ()))
    with pytest.raises(ApiError) as refused:
        await bench.do(bench.send("2", bench.user("bob")))
    assert refused.value.code == "declined"
    assert (await bench.get(rows.Mailbox, "bob")).items == 1


async def test_a_remote_send_waits_until_acknowledged(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    to = User(far.node, "bob")
    sent = await bench.all(*(bench.send(f"k{n}", to) for n in range(5)))
    assert [s.seq for s in sent] == [1, 2, 3, 4, 5]
    assert await waiting(bench) == {far.node: 5}
    log = Log(direct_conversation(bench.user("alice"), to), bench.context.node, bench.context.incarnation)
    assert await bench.do(PeerAcked(far.node, LogAck(*log, 3))) == 3
    assert await waiting(bench) == {far.node: 2}
    assert await bench.do(PeerAcked(far.node, LogAck(*log, 2))) == 3  # never back
    assert await bench.do(PeerAcked(far.node, LogAck(*log, 99))) == 5  # never past our own head
    assert await waiting(bench) == {}
    assert await bench.get(rows.Destination, far.node) == rows.Destination(far.node, 0)
    assert (await bench.get(rows.Receipt, log.key, far.node, "bob")).sent == 5


async def test_a_peer_that_lost_its_store_is_sent_it_again(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    to = User(far.node, "bob")
    await bench.all(*(bench.send(f"k{n}", to) for n in range(5)))
    log = Log(direct_conversation(bench.user("alice"), to), bench.context.node, bench.context.incarnation)
    await bench.do(PeerAcked(far.node, LogAck(*log, 5)))
    await bench.do(PeerAcked(far.node, LogAck(*log, 1, (Verdict(3, "later", "gap", "have 1"),))))
    assert await waiting(bench) == {far.node: 4}
    assert (await bench.get(rows.Destination, far.node)).waiting == 4


@pytest.mark.parametrize("count", [1, 64])
async def test_every_refused_event_is_shown_as_failed(bench: Bench, count: int) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    to = User(far.node, "nobody")
    await bench.all(*(bench.send(f"k{n}", to) for n in range(count)))
    log = Log(direct_conversation(bench.user("alice"), to), bench.context.node, bench.context.incarnation)
    verdicts = tuple(Verdict(n, "refused", "unknown_user", "no such user") for n in range(1, count + 1))
    assert await bench.do(PeerAcked(far.node, LogAck(*log, count, verdicts))) == count
    _, failed, _, _ = await bench.store.read(reads.progress, bench.context.node, log.key)
    assert sorted((f.seq, f.code, f.reason) for f in failed) == [
        (n, "unknown_user", "no such user") for n in range(1, count + 1)
    ]
    assert await waiting(bench) == {}


async def test_backlogged_destination_refuses_before_accept(bench: Bench) -> None:
    far = Far()
    bench.context.waiting_max = 3
    await bench.people("alice")
    await bench.befriend(far)
    outcomes = await bench.all(*(bench.send(f"k{n}", User(far.node, "bob")) for n in range(5)))
    assert [getattr(o, "code", "ok") for o in outcomes] == ["ok"] * 3 + ["destination_backlogged"] * 2
    assert await waiting(bench) == {far.node: 3}


async def test_receive_delivers_once_and_acknowledges(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    segment = far.segment(bench.user("alice"), [b"%d" % n for n in range(40)])
    ack = await bench.do(Receive(far.node, segment))
    assert (ack.seq, ack.verdicts) == (40, ())
    again = await bench.all(Receive(far.node, segment), Receive(far.node, segment))  # the answer was lost
    assert [(getattr(a, "seq", a), a.verdicts) for a in again] == [(40, ())] * 2
    assert (await bench.get(rows.Mailbox, "alice")).items == 40
    found, _ = await bench.store.read(reads.feed, "alice", 0, 100, 1 << 20)
    assert [i.event.body for i in found if isinstance(i, reads.Placed)] == [b"%d" % n for n in range(40)]


async def test_a_hole_waits_and_a_stranger_waits(bench: Bench) -> None:
    far, stranger = Far(), Far(b"g", "g.test")
    await bench.people("alice")
    await bench.befriend(far)
    ack = await bench.do(Receive(far.node, far.segment(bench.user("alice"), [b"x"], first=3)))
    assert (ack.seq, codes(ack)) == (0, [(3, "later", "gap")])
    ack = await bench.do(Receive(stranger.node, stranger.segment(bench.user("alice"), [b"x"])))
    assert (ack.seq, codes(ack)) == (0, [(1, "later", "not_accepted")])
    assert await bench.get(rows.Mailbox, "alice") is None


async def test_a_full_mailbox_pauses_the_log(bench: Bench) -> None:
    far = Far()
    bench.context.mailbox_items_max = 2
    await bench.people("alice")
    await bench.befriend(far)
    ack = await bench.do(Receive(far.node, far.segment(bench.user("alice"), [b"1", b"2", b"3"])))
    assert (ack.seq, codes(ack)) == (2, [(3, "later", "mailbox_full")])


async def test_unknown_and_deleted_users_are_refused_for_good(bench: Bench) -> None:
    far = Far()
    await bench.people("gone")
    await bench.do(ChangeAccount("gone", state="deleted"))
    await bench.befriend(far)
    for name in ("gone", "never"):
        ack = await bench.do(Receive(far.node, far.segment(bench.user(name), [b"1", b"2"])))
        assert (ack.seq, codes(ack)) == (2, [(1, "refused", "unknown_user"), (2, "refused", "unknown_user")])


async def test_forged_events_are_refused_and_the_log_goes_on(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    good = far.segment(bench.user("alice"), [b"1", b"2", b"3"])
    signed = list(good.events)
    signed[1] = type(signed[1])(signed[1].header, bytes(64), signed[1].body)
    bad = Segment(good.conversation, good.origin, good.incarnation, 1, good.members, tuple(signed))
    ack = await bench.do(Receive(far.node, bad))
    assert (ack.seq, codes(ack)) == (3, [(2, "refused", "bad_signature")])
    assert (await bench.get(rows.Mailbox, "alice")).items == 2


async def test_one_event_under_two_numbers_ends_no_log(bench: Bench) -> None:
    """A replay under another number is refused like any other bad event; it must not break the batch."""
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    good = far.segment(bench.user("alice"), [b"1"])
    twice = Segment(good.conversation, good.origin, good.incarnation, 1, good.members, good.events * 2)
    for _ in range(2):  # and the verdict is final
        ack = await bench.do(Receive(far.node, twice))
        assert ack.seq == 2
    assert (await bench.get(rows.Mailbox, "alice")).items == 1


async def test_two_events_under_one_number_are_kept_as_evidence(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    one, two = (far.segment(bench.user("alice"), [body]) for body in (b"1", b"2"))
    await bench.do(Receive(far.node, one))
    bench.hints.clear()
    ack = await bench.do(Receive(far.node, two))
    assert ack.seq == 1
    kept = await bench.get(rows.Evidence, event_id(two.events[0].header))
    assert (kept.seq, kept.header) == (1, two.events[0].header)
    assert ("evidence", far.node) in bench.hints
    stored = await bench.get(rows.StoredEvent, log_of(bench, one).key, 1)
    assert stored.body == b"1"


async def acknowledge(bench: Bench, local: str) -> Any:
    """What a session does when the device acknowledges everything."""
    found, position = await bench.store.read(reads.feed, local, 0, 1000, 1 << 24)
    seqs: dict[Log, int] = {}
    for item in found:
        if isinstance(item, reads.Placed) and (item.origin, item.event.sender) != (bench.context.node, local):
            log = Log(item.event.conversation, item.origin, item.incarnation)
            seqs[log] = max(seqs.get(log, 0), item.event.seq)
    return await bench.do(Acknowledge(local, DEVICE, position, tuple(Seen(log, seq) for log, seq in seqs.items())))


@pytest.mark.parametrize("count", [1, 40])
async def test_one_acknowledgement_over_many_local_conversations(bench: Bench, count: int) -> None:
    names = [f"u{n}" for n in range(count)]
    await bench.people("bob", *names)
    await bench.all(*(bench.send(f"k{n}", bench.user("bob"), sender=n) for n in names))
    assert await acknowledge(bench, "bob") == Done()
    for name in names:
        log = Log(direct_conversation(bench.user("bob"), bench.user(name)), bench.context.node, b"i" * 16)
        assert (await bench.get(rows.Receipt, log.key, bench.context.node, "bob")).delivered == 1


@pytest.mark.parametrize("count", [1, 40])
async def test_one_acknowledgement_over_many_nodes_tells_each_once(bench: Bench, count: int) -> None:
    fars = [Far(bytes([n + 97 if n < 20 else n + 28]), f"n{n}.test") for n in range(count)]
    await bench.people("alice")
    for far in fars:
        await bench.befriend(far)
    await bench.all(*(Receive(far.node, far.segment(bench.user("alice"), [b"1", b"2"])) for far in fars))
    assert await acknowledge(bench, "alice") == Done()
    assert await waiting(bench) == {far.node: 1 for far in fars}
    conversation = notice_conversation(bench.context.node, fars[-1].node)
    head = (await bench.store.read(reads.logs_of, conversation))[0]
    (event,) = await bench.store.read(reads.log_run, head.log, 0, 10)
    (receipt,) = decode_notices(event.body or b"").receipts
    assert (receipt.member, receipt.delivered, receipt.incarnation) == ("alice", 2, fars[-1].incarnation)


@pytest.mark.parametrize("count", [1, 40])
async def test_receipts_for_many_users_in_one_notices_event(bench: Bench, count: int) -> None:
    from federation.event import Header, body_hash, sign_event
    from federation.wire import Notices, encode

    far = Far()
    names = [f"u{n}" for n in range(count)]
    await bench.people(*names)
    await bench.befriend(far)
    to = User(far.node, "bob")
    await bench.all(*(bench.send(f"k{n}", to, sender=n) for n in names))
    conversations = [direct_conversation(bench.user(n), to) for n in names]
    signed, previous = [], None
    for seq, conversation in enumerate(conversations, 1):  # one event each, and all at once in the last
        many = conversations if seq == count else [conversation]
        body = encode(Notices(tuple(Receipt(c, bench.context.incarnation, "bob", 1, 1, (), NOW_MS) for c in many)))
        header = Header(
            version=1, conversation=notice_conversation(bench.context.node, far.node), origin=far.node,
            incarnation=far.incarnation, seq=seq, previous=previous, after=None, sender="", device=b"",
            stamp=(NOW_MS << 16) + seq, control=None, kind="notices", target=None, manifest=None,
            body_format="notices", body_hash=body_hash(body), body_bytes=len(body), expires_ms=None,
        )  # fmt: skip
        event = sign_event(header, body, far.key)
        signed.append(event.signed)
        previous = event.id
    members = tuple(sorted(((bench.context.node, ""), (far.node, ""))))
    segment = Segment(header.conversation, far.node, far.incarnation, 1, members, tuple(signed))
    ack = await bench.do(Receive(far.node, segment))
    assert (ack.seq, ack.verdicts) == (count, ())
    for conversation in conversations:
        log = Log(conversation, bench.context.node, bench.context.incarnation)
        assert (await bench.get(rows.Receipt, log.key, far.node, "bob")).read == 1


async def test_consent_lets_held_back_receipts_go(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.do(ChangeAccount("alice", requests="everyone"))
    await bench.befriend(far)
    segment = far.segment(bench.user("alice"), [b"1", b"2"])
    await bench.do(Receive(far.node, segment))
    assert (await bench.get(rows.Standing, segment.conversation, "alice")).state == "request"
    await acknowledge(bench, "alice")
    assert await waiting(bench) == {}
    assert await bench.do(Consent("alice", segment.conversation, True, (log_of(bench, segment).key,))) == Done()
    assert await waiting(bench) == {far.node: 1}
    with pytest.raises(ApiError) as unknown:
        await bench.do(Consent("alice", b"?" * 32, True, ()))
    assert unknown.value.code == "not_found"


async def test_devices_and_invites(bench: Bench) -> None:
    await bench.people("alice", "bob")
    await bench.do(AddDevice(b"1" * 16, "alice", "phone", b"t" * 32, b"s" * 32))
    assert (await bench.store.read(reads.device_by_token, b"t" * 32))[1].local == "alice"
    with pytest.raises(ApiError):
        await bench.do(ChangeDevice("bob", b"1" * 16, revoke=True))  # somebody else's
    await bench.do(ChangeDevice("alice", b"1" * 16, name="tablet"))
    assert [d.name for d in await bench.store.read(reads.devices_of, "alice")] == ["tablet"]
    await bench.do(ChangeDevice("alice", b"1" * 16, revoke=True))
    assert await bench.store.read(reads.device_by_token, b"t" * 32) is None
    for code in (b"a", b"b", b"c"):
        await bench.do(AddInvite(code * 32, NOW_MS + 1000))
    await bench.do(RevokeInvite(b"b" * 32))
    one, two, revoked = await bench.all(
        AddAccount("one", "", b"a" * 32), AddAccount("two", "", b"a" * 32), AddAccount("three", "", b"b" * 32)
    )
    assert (one.local, two.code, revoked.code) == ("one", "bad_invite", "bad_invite")
    bench.now_ms += 1001
    assert (await bench.all(AddAccount("late", "", b"c" * 32)))[0].code == "bad_invite"


async def test_nodes_without_a_free_name_can_all_knock(bench: Bench) -> None:
    """Strangers that call themselves what is taken have no name here; there may be many."""
    await bench.do(Put((rows.Peer(b"1" * 32, "", "pending", "", b"", 0, 0),)))
    assert await bench.do(Put((rows.Peer(b"2" * 32, "", "pending", "", b"", 0, 0),))) == "put"
    await bench.do(ChangePeer(b"3" * 32, "accepted", "x.test", ("h:1",)))
    with pytest.raises(ApiError) as taken:
        await bench.do(ChangePeer(b"4" * 32, "accepted", "x.test", ("h:1",), b"3" * 32))
    assert taken.value.code == "conflict"

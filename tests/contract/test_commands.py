"""The message's way through the real store: each command, alone and many at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from federation.event import decode_header
from federation.identity import Chain, NodeKey, encode_chain, rotate
from federation.ids import INCARNATION_BYTES, Log, User, direct_conversation, from_text, notice_conversation, to_text
from federation.wire import LogAck, Receipt, Segment, Verdict, decode_notices
from node.api import ApiError, Done
from node.core import rows
from node.core.context import Context
from node.core.peers import ChangePeer, MeetPeer
from node.core.people import AddAccount, AddDevice, AddInvite, ChangeAccount, ChangeDevice, RevokeInvite
from node.core.progress import Acknowledge, Consent, PeerAcked, Seen, receipts_arrived
from node.core.receive import Receive
from node.core.view import Key, View
from node.storage import outgoing, reads, waits
from tests.contract.bench import DEVICE, NOW_MS, Bench, Far, Put


def log_of(bench: Bench, segment: Segment) -> Log:
    return Log(segment.conversation, segment.origin, segment.incarnation)


async def waiting(bench: Bench) -> dict[bytes, int]:
    return {peer: found.events for peer, found in (await bench.store.read(waits.waiting)).items()}


async def test_send_stores_all_of_it_in_one_commit(bench: Bench) -> None:
    await bench.people("alice", "bob")
    before = bench.store.commits
    sent = await bench.do(bench.send("k", bench.user("bob"), b"hi"))
    assert bench.store.commits == before + 1
    feeds = [await bench.store.read(reads.feed, who, 0, 100, 1 << 20) for who in ("alice", "bob")]
    bodies = [[i.event.body for i in items if isinstance(i, reads.Placed)] for items, *_ in feeds]
    assert bodies == [[b"hi"], [b"hi"]]
    again = await bench.do(bench.send("k", bench.user("bob"), b"hi"))
    assert again == sent
    with pytest.raises(ApiError) as other:
        await bench.do(bench.send("k", bench.user("bob"), b"ho"))
    assert other.value.code == "conflict"
    assert (await bench.get(rows.Mailbox, "bob")).items == 1


async def test_when_it_expires_is_part_of_what_a_key_stands_for(bench: Bench) -> None:
    await bench.people("alice", "bob")
    sent = await bench.do(bench.send("k", bench.user("bob"), expires_ms=5))
    assert await bench.do(bench.send("k", bench.user("bob"), expires_ms=5)) == sent
    for other in (None, 0, 6):
        with pytest.raises(ApiError) as refused:
            await bench.do(bench.send("k", bench.user("bob"), expires_ms=other))
        assert refused.value.code == "conflict"


async def test_a_peer_cannot_say_that_a_message_is_void(bench: Bench) -> None:
    """`void` is a state of its own, and a peer's code is shown to the sender."""
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    to = User(far.node, "bob")
    for number in (1, 2):
        await bench.do(bench.send(f"k{number}", to))
    log = bench.context_log(direct_conversation(bench.user("alice"), to))
    verdicts = (Verdict(1, "refused", "void", "so there"), Verdict(2, "refused", "declined", "no"))
    await bench.do(PeerAcked(far.node, LogAck(*log, 2, verdicts)))
    kept = [await bench.get(rows.Failed, log.key, seq, far.node, "bob") for seq in (1, 2)]
    assert [(row.code, row.reason) for row in kept] == [("refused", "so there"), ("declined", "no")]


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


@pytest.mark.parametrize("to", ["far", "bob", "alice"])
async def test_a_full_mailbox_of_the_sender_refuses_the_send(bench: Bench, to: str) -> None:
    """What one sends is in one's own mailbox too, for one's other devices."""
    far = Far()
    bench.context.mailbox_items_max = 3
    await bench.people("alice", "bob")
    await bench.befriend(far)
    await bench.do(AddDevice(DEVICE, "alice", "phone", b"t" * 32, b"s" * 32))
    await bench.do(AddDevice(b"b" * 16, "bob", "phone", b"b" * 32, b"s" * 32))
    whom = User(far.node, "bob") if to == "far" else bench.user(to)
    for life in range(3):  # and so on, for as long as devices fetch
        for n in range(3):
            await bench.do(bench.send(f"{life}-{n}", whom))
        with pytest.raises(ApiError, match="their devices" if to == "bob" else "your devices") as full:
            await bench.do(bench.send("over", whom))
        assert full.value.code == "mailbox_full"
        assert (await bench.do(bench.send(f"{life}-0", whom))).seq == 3 * life + 1, "a repeat is answered all the same"
        for local, device in (("alice", DEVICE), ("bob", b"b" * 16)):
            box = await bench.get(rows.Mailbox, local)
            if box is not None:
                await bench.do(Acknowledge(local, device, box.position, ()))


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


async def acknowledge(bench: Bench, local: str) -> Any:
    """What a session does when the device acknowledges everything."""
    found, position, _ = await bench.store.read(reads.feed, local, 0, 1000, 1 << 24)
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
    (event,) = await bench.store.read(outgoing.log_run, head, 0, 10)
    (receipt,) = decode_notices(event.body or b"").receipts
    assert (receipt.member, receipt.delivered, receipt.incarnation) == ("alice", 2, fars[-1].incarnation)


async def test_the_first_acknowledgement_after_a_restart_tells_every_node(bench: Bench) -> None:
    """To each there is an earlier log that the new one names."""
    fars = [Far(bytes([n + 97]), f"n{n}.test") for n in range(12)]
    await bench.people("alice")
    for far in fars:
        await bench.befriend(far)
    await bench.all(*(Receive(far.node, far.segment(bench.user("alice"), [b"1"])) for far in fars))
    assert await acknowledge(bench, "alice") == Done()
    await bench.reopen()
    bench.context.incarnation = b"j" * INCARNATION_BYTES
    await bench.all(
        *(Receive(far.node, far.segment(User(bench.context.node, "alice"), [b"1"], sender="carol")) for far in fars)
    )
    assert await acknowledge(bench, "alice") == Done()
    assert await waiting(bench) == {far.node: 2 for far in fars}


async def test_many_consents_of_one_batch_need_no_more_rounds_than_one(bench: Bench) -> None:
    fars = [Far(bytes([n + 97]), f"n{n}.test") for n in range(12)]
    await bench.people("alice")
    await bench.do(ChangeAccount("alice", requests="everyone"))
    for far in fars:
        await bench.befriend(far)
    segments = [far.segment(bench.user("alice"), [b"1"]) for far in fars]
    await bench.all(*(Receive(s.origin, s) for s in segments))
    await acknowledge(bench, "alice")
    await bench.reopen()
    before = bench.store.commits
    await bench.all(*(Consent("alice", s.conversation, True, (log_of(bench, s).key,)) for s in segments))
    assert bench.store.commits == before + 1
    assert await waiting(bench) == {far.node: 1 for far in fars}


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
    segment = Segment(header.conversation, far.node, far.incarnation, 1, (), tuple(signed))
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


async def test_the_logs_of_a_peer_take_turns(bench: Bench) -> None:
    """A share each; a log that rests, or one with very much, starves nobody."""
    far = Far()
    names = [f"u{n}" for n in range(100)]
    await bench.people(*names)
    await bench.befriend(far)
    await bench.all(*(bench.send(f"{n}-{i}", User(far.node, "bob"), sender=n) for n in names for i in range(3)))
    keys = sorted(bench.context_log(direct_conversation(bench.user(n), User(far.node, "bob"))).key for n in names)
    sent: dict[bytes, int] = {}
    resting, turn, more = set(keys[:70]), b"", True
    while more:
        runs, turn, more = await bench.store.read(outgoing.pending, far.node, turn, sent, resting, 40, 1 << 20)
        assert sum(len(run.events) for run in runs) <= 40
        for run in runs:
            numbers = [decode_header(e.header).seq for e in run.events]
            assert numbers == list(range(run.after + 1, run.after + 1 + len(run.events)))
            sent[run.of.head.log] = numbers[-1]
    assert sent == dict.fromkeys(keys[70:], 3)
    runs, _, more = await bench.store.read(outgoing.pending, far.node, b"", {}, set(), 64, 1 << 20)
    assert [len(run.events) for run in runs] == [1] * 64
    assert more
    (run, *_), _, _ = await bench.store.read(outgoing.pending, far.node, runs[-1].of.head.log, {}, set(), 64, 1 << 20)
    assert run.of.head.log > runs[-1].of.head.log


async def test_a_stolen_old_key_does_not_take_a_node_over(bench: Bench) -> None:
    far, thief, new = Far(), NodeKey(b"t" * 32), NodeKey(b"n" * 32)
    stolen = rotate(far.chain, thief.public, far.key, "signing")
    await bench.befriend(far)

    async def meet(chain: Chain) -> None:
        await bench.do(MeetPeer(far.node, far.name, encode_chain(chain), (), far.node))

    await meet(honest := rotate(far.chain, new.public, far.key, "signing"))
    for chain in (far.chain, stolen, rotate(stolen, thief.public, thief, "signing")):
        with pytest.raises(ApiError, match="key chain"):
            await meet(chain)
    assert (await bench.get(rows.Peer, far.node)).chain == encode_chain(honest)
    await meet(saved := rotate(far.chain, new.public, NodeKey(b"F" * 32), "recovery"))
    assert (await bench.get(rows.Peer, far.node)).chain == encode_chain(saved)


async def test_a_strangers_claim_to_a_name_gives_way_to_the_administrator(bench: Bench) -> None:
    squatter, far = Far(b"s", "far.test"), Far()
    claim = MeetPeer(squatter.node, "far.test", encode_chain(squatter.chain), ("h:1",))
    assert (await bench.do(claim)).name == "far.test"
    added = await bench.do(ChangePeer(far.node, "accepted", "far.test", ("h:1",), squatter.node))
    assert (added.name, added.state) == ("far.test", "accepted")
    assert (await bench.get(rows.Peer, squatter.node)).name == ""
    again = MeetPeer(squatter.node, "far.test", encode_chain(squatter.chain), ("h:1",), far.node)
    assert (await bench.do(again)).name == ""


async def test_a_node_cannot_be_called_like_another_nodes_id(bench: Bench) -> None:
    far = Far()
    met = await bench.do(MeetPeer(far.node, to_text(b"v" * 32), encode_chain(far.chain), ()))
    assert met.name == ""


async def test_only_later_with_gap_makes_a_log_be_offered_again(bench: Bench) -> None:
    """Else a peer would have everything sent to it again for each of its small answers, without a pause."""
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    sent = await bench.do(bench.send("k", User(far.node, "bob")))
    log = bench.context_log(from_text(sent.conversation, 32))
    await bench.do(PeerAcked(far.node, LogAck(*log, 1)))
    assert await bench.do(PeerAcked(far.node, LogAck(*log, 0, (Verdict(1, "refused", "gap"),)))) == 1


async def test_a_receipt_about_notices_is_ignored(bench: Bench) -> None:
    """Their members are two nodes: there is no user to show it to."""
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    await bench.do(Receive(far.node, far.segment(bench.user("alice"), [b"1"])))
    await acknowledge(bench, "alice")
    receipt = Receipt(notice_conversation(bench.context.node, far.node), bench.context.incarnation, "", 1, 1)
    await bench.do(Told(far.node, (receipt,)))
    assert await bench.get(rows.Mailbox, "") is None


@dataclass(frozen=True)
class Told:
    peer: bytes
    receipts: tuple[Receipt, ...]

    def keys(self, context: Context) -> Iterable[Key]:
        return ()

    def decide(self, view: View, context: Context) -> None:
        receipts_arrived(view, context, self.peer, self.receipts)


@pytest.mark.parametrize("others", [0, 2 * outgoing.LOGS_MAX])
async def test_what_was_written_in_an_earlier_life_is_sent_first(bench: Bench, others: int) -> None:
    """Logs have no order of their own: a later life's message would arrive before what it answers."""
    far = Far()
    await bench.people("alice", *(f"u{n}" for n in range(others)))
    await bench.befriend(far)
    bob = User(far.node, "bob")
    lives = [bytes([n]) * INCARNATION_BYTES for n in (9, 3, 7, 1)]
    for life in lives:
        bench.context.incarnation = life
        await bench.all(*(bench.send(f"{life[0]}-{n}", bob) for n in range(2)))
    await bench.all(*(bench.send(f"k{n}", bob, sender=f"u{n}") for n in range(others)))
    conversation = direct_conversation(bench.user("alice"), bob)
    sent: dict[bytes, int] = {}
    order: list[bytes] = []
    turn, more = b"", True
    while more:
        runs, turn, more = await bench.store.read(outgoing.pending, far.node, turn, sent, set(), 16, 1 << 20)
        for run in runs:
            sent[run.of.head.log] = run.after + len(run.events)
            if run.of.head.conversation == conversation:
                order += [run.of.head.incarnation] * len(run.events)
    assert order == [life for life in lives for _ in range(2)]
    assert len(sent) == len(lives) + others
    resting = {Log(conversation, bench.context.node, lives[0]).key}
    held, _, _ = await bench.store.read(outgoing.pending, far.node, b"", {}, resting, 1024, 1 << 20)
    assert conversation not in {run.of.head.conversation for run in held}

"""A peer's segments through the real store: taken once, refused for good, paused, or kept as evidence."""

import msgspec
import pytest

from federation.event import Signed, event_id
from federation.identity import Chain, NodeKey, check_chain, rotate
from federation.ids import Log
from federation.wire import LogAck, Segment
from node.core import rows
from node.core.log import unpack
from node.core.people import AddDevice, ChangeAccount
from node.core.progress import Acknowledge, Seen
from node.core.receive import Receive
from node.storage import reads
from tests.contract.bench import NOW_MS, Bench, Far, Put


def codes(ack: LogAck) -> list[tuple[int, str, str]]:
    return [(v.seq, v.verdict, v.code) for v in ack.verdicts]


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
    found, *_ = await bench.store.read(reads.feed, "alice", 0, 100, 1 << 20)
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


async def test_what_a_device_acknowledged_does_not_fill_the_mailbox(bench: Bench) -> None:
    """A user of many years is never refused for what was fetched long ago; a lost device does not matter."""
    far = Far()
    bench.context.mailbox_items_max = 3
    await bench.people("alice")
    await bench.befriend(far)
    for device in (b"1", b"2"):
        await bench.do(AddDevice(device * 16, "alice", "phone", device * 32, b"s" * 32))
    bodies = [b"%d" % n for n in range(9)]
    whole = far.segment(bench.user("alice"), bodies)

    async def offer(first: int) -> int:
        rest = whole.events[first - 1 :]
        segment = Segment(whole.conversation, whole.origin, whole.incarnation, first, whole.members, rest)
        ack: LogAck = await bench.do(Receive(far.node, segment))
        assert codes(ack) == [(ack.seq + 1, "later", "mailbox_full")]
        return ack.seq

    async def acknowledge(device: bytes, position: int) -> None:
        await bench.do(Acknowledge("alice", device * 16, position, ()))

    assert await offer(1) == 3
    head = (await bench.get(rows.Mailbox, "alice")).position
    await acknowledge(b"1", head - 1)
    assert await offer(4) == 5, "all but the newest were fetched"
    head = (await bench.get(rows.Mailbox, "alice")).position
    await acknowledge(b"2", 1)  # the slow device changes nothing
    assert await offer(6) == 5
    await acknowledge(b"2", head)
    await acknowledge(b"1", head)  # twice is once
    assert await offer(6) == 8


async def test_unknown_and_deleted_users_are_refused_for_good(bench: Bench) -> None:
    far = Far()
    await bench.people("gone")
    await bench.do(ChangeAccount("gone", state="deleted"))
    await bench.befriend(far)
    for name in ("gone", "never"):
        ack = await bench.do(Receive(far.node, far.segment(bench.user(name), [b"1", b"2"])))
        assert (ack.seq, codes(ack)) == (2, [(1, "refused", "unknown_user"), (2, "refused", "unknown_user")])


@pytest.mark.parametrize("ahead_ms", [3_600_000, (1 << 47) - 1 - NOW_MS], ids=["accepted", "refused"])
async def test_a_stamp_from_the_future_is_not_where_our_clock_goes_on(bench: Bench, ahead_ms: int) -> None:
    """Else one event of a peer would end all sending here at the next start."""
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    segment = far.segment(bench.user("alice"), [b"1"], stamp=(NOW_MS + ahead_ms) << 16)
    assert (await bench.do(Receive(far.node, segment))).seq == 1
    await bench.do(bench.send("k", bench.user("alice")))
    assert await bench.store.read(reads.newest_stamp) == bench.context.last_stamp == NOW_MS << 16


async def test_the_newest_stamp_is_found_behind_many_that_nothing_speaks_for(bench: Bench) -> None:
    await bench.people("alice")
    await bench.do(bench.send("k", bench.user("alice")))
    wild = [
        rows.LogHead(bytes([n]) * 16, bytes(32), bytes(32), bytes(16), 1, bytes(32), (1 << 62) + n) for n in range(200)
    ]
    await bench.do(Put(tuple(wild)))
    assert await bench.store.read(reads.newest_stamp) == bench.context.last_stamp


async def test_what_was_refused_does_not_set_our_clock_back(bench: Bench) -> None:
    """The witness file has seen the stamp before it (`node.witness`): the store would look like an old copy."""
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    segment = far.segment(bench.user("alice"), [b"1", b"2"])
    await bench.do(Receive(far.node, msgspec.structs.replace(segment, events=segment.events[:1])))
    before = await bench.store.read(reads.newest_stamp)
    assert before > NOW_MS << 16
    noise = Signed(b"no header", bytes(64), None)
    ack = await bench.do(Receive(far.node, msgspec.structs.replace(segment, first=2, events=(noise,))))
    assert codes(ack) == [(2, "refused", "bad_event")]
    assert await bench.store.read(reads.newest_stamp) == before


async def test_a_long_key_chain_is_checked_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check costs a signature per rotation, in the one thread that everybody's writes wait for."""
    far, checked = Far(b"r"), list[Chain]()
    for number in range(3):
        key = NodeKey(bytes([number]) * 32)
        far.chain, far.key = rotate(far.chain, key.public, far.key, "signing"), key
    await bench.people("alice")
    await bench.befriend(far)
    monkeypatch.setattr("node.core.receive.check_chain", lambda chain: checked.append(chain) or check_chain(chain))
    for sender in ("bob", "ben"):
        ack = await bench.do(Receive(far.node, far.segment(bench.user("alice"), [b"1"], sender)))
        assert (ack.seq, ack.verdicts) == (1, ())
    assert len(checked) <= 1


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
    assert (ack.seq, codes(ack)) == (1, [(1, "refused", "equivocation")])
    kept = await bench.get(rows.Evidence, event_id(two.events[0].header))
    assert (kept.seq, kept.header) == (1, two.events[0].header)
    assert ("evidence", far.node) in bench.hints
    stored = await bench.get(rows.StoredEvent, Log(one.conversation, one.origin, one.incarnation).key, 1)
    assert stored.body == b"1"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
async def test_what_one_device_opened_no_other_makes_missing_again(bench: Bench, order: tuple[int, ...]) -> None:
    """Delivered means that any device opened it; what became of a message never goes back."""
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    segment = far.segment(bench.user("alice"), [b"1", b"2", b"3", b"4"])
    await bench.do(Receive(far.node, segment))
    log = Log(segment.conversation, far.node, far.incarnation)
    told = (Seen(log, 2), Seen(log, 3, missing=(1, 3)), Seen(log, 4, missing=(2, 3)))
    for n in order:
        await bench.do(Acknowledge("alice", bytes([n]) * 16, 0, (told[n],)))
    receipt = await bench.get(rows.Receipt, log.key, bench.context.node, "alice")
    assert (receipt.delivered, unpack(receipt.missing)) == (4, (3,))


async def test_a_device_that_says_nothing_of_older_messages_opens_none(bench: Bench) -> None:
    """An acknowledgement is of what came since the one before; a read mark opens nothing that was not opened."""
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    segment = far.segment(bench.user("alice"), [b"%d" % n for n in range(6)])
    await bench.do(Receive(far.node, segment))
    log = Log(segment.conversation, far.node, far.incarnation)
    for seen in (Seen(log, 2, missing=(2,)), Seen(log, 4, since=2), Seen(log, read=5, since=5)):
        await bench.do(Acknowledge("alice", b"1" * 16, 0, (seen,)))
    receipt = await bench.get(rows.Receipt, log.key, bench.context.node, "alice")
    assert (receipt.delivered, receipt.read, unpack(receipt.missing)) == (5, 5, (2,))
    await bench.do(Acknowledge("alice", b"2" * 16, 0, (Seen(log, 3),)))
    receipt = await bench.get(rows.Receipt, log.key, bench.context.node, "alice")
    assert unpack(receipt.missing) == (), "another device opened it"


@pytest.mark.parametrize(("rotations", "code"), [(1, ""), (7, ""), (8, "bad_signature")])
async def test_what_was_signed_before_a_rotation_still_stands(bench: Bench, rotations: int, code: str) -> None:
    """A message may wait for longer than a key lives (PROTOCOL.md 4.5)."""
    far = Far()
    await bench.people("alice")
    segment = far.segment(bench.user("alice"), [b"old"])
    for number in range(rotations):
        key = NodeKey(bytes([number]) * 32)
        far.chain, far.key = rotate(far.chain, key.public, far.key, "signing"), key
    await bench.befriend(far)
    ack = await bench.do(Receive(far.node, segment))
    assert [v.code for v in ack.verdicts] == ([code] if code else [])
    previous = event_id(segment.events[0].header)
    ack = await bench.do(Receive(far.node, far.segment(bench.user("alice"), [b"new"], first=2, previous=previous)))
    assert (ack.seq, ack.verdicts) == (2, ())

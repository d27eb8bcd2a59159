"""A lost event has no signature (PROTOCOL.md 4.13): what a peer may say was lost, whose it may be, how much of it."""

from typing import Any

import msgspec
import pytest

from federation.event import event_id, lost_event
from federation.ids import User, direct_conversation
from federation.wire import LogAck, Segment
from node.core import rows
from node.core.heal import TakeBack
from node.core.receive import Receive
from node.storage import reads
from tests.contract.bench import NOW_MS, Bench, Far


def codes(ack: LogAck) -> list[tuple[int, str, str]]:
    return [(v.seq, v.verdict, v.code) for v in ack.verdicts]


def lost(segment: Segment, first: int, count: int, **more: Any) -> Segment:
    marks = tuple(lost_event(bytes([n % 256]) * 32) for n in range(count))
    return msgspec.structs.replace(segment, first=first, events=marks, **more)


async def broken(bench: Bench, local: str = "alice") -> int:
    found, *_ = await bench.store.read(reads.feed, local, 0, 1000, 1 << 20)
    return sum(isinstance(item, reads.Broken) for item in found)


async def begun(bench: Bench) -> tuple[Far, Segment]:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    segment = far.segment(bench.user("alice"), [b"1"])
    assert (await bench.do(Receive(far.node, segment))).seq == 1
    return far, segment


async def test_what_a_peer_lost_costs_it_its_quota(bench: Bench) -> None:
    far, segment = await begun(bench)
    cost = len(lost_event(bytes(32)).header) + 64
    bench.context.peer_quota = (await bench.get(rows.Peer, far.node)).used + 3 * cost
    ack = await bench.do(Receive(far.node, lost(segment, 2, 200)))
    assert (ack.seq, codes(ack)[3:]) == (4, [(5, "later", "rate_limited")])
    assert await broken(bench) == 3


async def test_what_a_peer_lost_fills_no_mailbox_beyond_its_bound(bench: Bench) -> None:
    far, segment = await begun(bench)
    bench.context.mailbox_items_max = 4
    ack = await bench.do(Receive(far.node, lost(segment, 2, 200)))
    assert (ack.seq, codes(ack)[3:]) == (4, [(5, "later", "mailbox_full")])
    assert (await bench.get(rows.Mailbox, "alice")).items == 4


async def test_a_peer_loses_nothing_in_other_peoples_conversations(bench: Bench) -> None:
    _, segment = await begun(bench)
    third = Far(b"t", "third.test")
    await bench.befriend(third)
    for members in (segment.members, ()):
        told = lost(segment, 1, 1, origin=third.node, members=members)
        ack = await bench.do(Receive(third.node, told))
        assert codes(ack) == [(1, "refused", "not_member")]
    assert await broken(bench) == 0


async def test_a_peer_that_finds_what_it_lost_is_no_liar(bench: Bench) -> None:
    """Its administrator restored a backup in which the event is whole: that is what `verify` advises."""
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    whole = far.segment(bench.user("alice"), [b"1"])
    id_ = event_id(whole.events[0].header)
    await bench.do(Receive(far.node, msgspec.structs.replace(whole, events=(lost_event(id_),))))
    ack = await bench.do(Receive(far.node, whole))
    assert (ack.seq, codes(ack)) == (1, [(1, "refused", "lost")])
    assert await bench.get(rows.Evidence, id_) is None


@pytest.mark.parametrize("where", ["this life", "another's conversation", "nobody's conversation"])
async def test_a_peer_does_not_say_what_a_restored_node_lost_anywhere_else(bench: Bench, where: str) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    bench.context.restored = (NOW_MS + 1) << 16
    members = tuple(sorted((bench.user("alice"), User(far.node, "bob"))))
    conversation, incarnation, first = direct_conversation(*members), b"o" * 16, 1
    if where == "this life":
        await bench.do(bench.send("k", User(far.node, "bob")))
        incarnation, first = bench.context.incarnation, 2
    elif where == "another's conversation":
        members = tuple(sorted((bench.user("alice"), User(b"t" * 32, "carol"))))
        conversation = direct_conversation(*members)
    else:
        conversation = b"c" * 32
    told = Segment(conversation, bench.context.node, incarnation, first, members, (lost_event(bytes(32)),) * 9)
    ack = await bench.do(TakeBack(far.node, told))
    assert (ack.seq, [v.verdict for v in ack.verdicts]) == (first - 1, ["later"])


async def test_a_restored_node_takes_so_many_lost_events_of_its_own_as_the_quota_allows(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    bench.context.restored = (NOW_MS + 1) << 16
    members = tuple(sorted((bench.user("alice"), User(far.node, "bob"))))
    bench.context.peer_quota = 3 * 96
    told = Segment(
        direct_conversation(*members), bench.context.node, b"o" * 16, 1, members, (lost_event(bytes(32)),) * 9
    )
    ack = await bench.do(TakeBack(far.node, told))
    assert (ack.seq, codes(ack)) == (3, [(4, "later", "rate_limited")])

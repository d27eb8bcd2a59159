"""Block lists through the real store: refused for good, no sign of life, and everything back when it is taken back."""

from typing import Any

import pytest

from federation.ids import Log, User
from node.api import ApiError
from node.core import rows
from node.core.blocks import BLOCKS_MAX, ChangeBlock
from node.core.people import AddDevice, ChangeAccount
from node.core.progress import Acknowledge, Consent, Seen
from node.core.receive import Receive
from node.storage import blocks
from tests.contract.bench import DEVICE, Bench, Far
from tests.contract.test_receive import codes


async def ready(bench: Bench) -> Far:
    far = Far()
    await bench.people("alice", "carol")
    await bench.befriend(far)
    await bench.do(AddDevice(DEVICE, "alice", "phone", b"t" * 32, b"s" * 32))
    return far


@pytest.mark.parametrize("local", ["alice", ""], ids=["a user", "the node"])
@pytest.mark.parametrize("whole", [False, True], ids=["one", "all of a node"])
async def test_a_blocked_senders_messages_are_refused_for_good(bench: Bench, local: str, whole: bool) -> None:
    if whole and not local:
        return  # that is a blocked peer
    far = await ready(bench)
    alice, bob = bench.user("alice"), User(far.node, "" if whole else "bob")
    await bench.do(ChangeBlock(local, bob, True))
    first = far.segment(alice, [b"1"])
    ack = await bench.do(Receive(far.node, first))
    assert (ack.seq, codes(ack)) == (1, [(1, "refused", "declined")])
    assert await bench.get(rows.Standing, first.conversation, "alice") is None, "a request never appears"
    other = await bench.do(Receive(far.node, far.segment(bench.user("carol"), [b"1"])))
    assert (codes(other) == []) == bool(local), "of a user only for that user, of the node for everybody"
    await bench.do(ChangeBlock(local, bob, False))
    assert codes(await bench.do(Receive(far.node, first))) == [(1, "refused", "declined")], "what was said is final"
    far.incarnation = b"2" * 16
    assert codes(await bench.do(Receive(far.node, far.segment(alice, [b"2"])))) == []


async def test_nothing_goes_to_whom_one_blocked(bench: Bench) -> None:
    far = await ready(bench)
    bob = User(far.node, "bob")
    await bench.do(bench.send("k1", bob))
    await bench.do(ChangeBlock("alice", bob, True))
    sends: Any = await bench.all(bench.send("k2", bob), bench.send("k3", User(far.node, "ben")))
    assert (sends[0].code, getattr(sends[1], "seq", None)) == ("blocked", 1)
    await bench.do(ChangeBlock("alice", bob, False))
    assert (await bench.do(bench.send("k2", bob))).seq == 2


async def test_a_block_between_users_of_one_node(bench: Bench) -> None:
    await bench.people("alice", "bob")
    await bench.do(ChangeBlock("bob", bench.user("alice"), True))
    for sender, to, code in (("alice", "bob", "declined"), ("bob", "alice", "blocked")):
        with pytest.raises(ApiError) as refused:
            await bench.do(bench.send("k", bench.user(to), sender=sender))
        assert refused.value.code == code
    assert await bench.get(rows.Mailbox, "bob") is None
    await bench.do(bench.send("k", bench.user("bob"), sender="bob"))


async def test_no_receipt_goes_to_whom_one_blocked(bench: Bench) -> None:
    """And none goes back when the block ends: the next one says it."""
    far = await ready(bench)
    segment = far.segment(bench.user("alice"), [b"1", b"2"])
    log = Log(segment.conversation, far.node, far.incarnation)
    await bench.do(Receive(far.node, segment))
    await bench.do(Acknowledge("alice", DEVICE, 0, (Seen(log, 1),)))

    async def told() -> int:
        return sum(hint.kind == "peer" for hint in bench.hints)

    before = await told()
    assert before == 1
    await bench.do(ChangeBlock("alice", User(far.node, ""), True))
    await bench.do(Acknowledge("alice", DEVICE, 9, (Seen(log, 2, read=2),)))
    assert await told() == before
    assert (await bench.get(rows.Receipt, log.key, bench.context.node, "alice")).delivered == 1
    assert (await bench.get(rows.Device, DEVICE)).acked == 9, "the feed goes on"
    await bench.do(ChangeBlock("alice", User(far.node, ""), False))
    await bench.do(Acknowledge("alice", DEVICE, 9, (Seen(log, 2),)))
    assert await told() == before + 1


async def test_whoever_is_blocked_does_not_wait_for_an_answer(bench: Bench) -> None:
    far = await ready(bench)
    await bench.do(ChangeAccount("alice", requests="everyone"))
    segments = [far.segment(bench.user("alice"), [b"1"], sender=who) for who in ("bob", "ben")]
    for segment in segments:
        await bench.do(Receive(far.node, segment))
    for target, left in ((User(far.node, "bob"), 1), (User(far.node, ""), 0)):
        asked = tuple(await bench.store.read(blocks.asked, "alice", target))
        assert len(asked) == 1
        await bench.do(ChangeBlock("alice", target, True, asked))
        states = [(await bench.get(rows.Standing, s.conversation, "alice")).state for s in segments]
        assert states.count("request") == left
    with pytest.raises(ApiError) as refused:
        await bench.do(Consent("alice", segments[0].conversation, True, ()))
    assert refused.value.code == "blocked"
    assert [(b.other, b.local) for b in await bench.store.read(blocks.of, "alice")] == [("", "alice"), ("bob", "alice")]


async def test_what_cannot_be_blocked_and_how_many_can(bench: Bench) -> None:
    far = await ready(bench)
    me = bench.context.node
    for local, other, on, code in (
        ("alice", User(me, "alice"), True, "bad_request"), ("alice", User(me, ""), True, "bad_request"),
        ("", User(me, "alice"), True, "bad_request"), ("alice", User(far.node, "bob"), False, "not_found"),
        ("nobody", User(far.node, "bob"), True, "bad_token"),
    ):  # fmt: skip
        with pytest.raises(ApiError) as refused:
            await bench.do(ChangeBlock(local, other, on))
        assert refused.value.code == code
    some: list[Any] = await bench.all(
        *(ChangeBlock("alice", User(far.node, f"u{n}"), True) for n in (1, 1, *range(2, BLOCKS_MAX + 2)))
    )
    assert [getattr(s, "code", "") for s in some] == [""] * (BLOCKS_MAX + 1) + ["too_large"]
    assert (await bench.get(rows.Account, "alice")).blocks == BLOCKS_MAX
    await bench.do(ChangeBlock("alice", User(far.node, "u1"), False))
    assert (await bench.get(rows.Account, "alice")).blocks == BLOCKS_MAX - 1


async def test_who_blocks_nobody_costs_nothing_to_look_up(bench: Bench) -> None:
    await bench.people("alice", "bob")
    with bench.counting() as seen:
        await bench.do(bench.send("k", bench.user("bob")))
    assert not [s for s in seen if "blocks" in s]

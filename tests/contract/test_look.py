"""Decisions over a read, on both databases: what `hearers` gets, in a number of statements that does not grow."""

from federation.ids import User, direct_conversation
from node.core.blocks import ChangeBlock
from node.core.ephemeral import Said, hearers
from node.core.people import AddAccount, ChangeAccount
from node.storage.look import contacts, look
from tests.contract.bench import Bench, Far


async def test_who_hears_of_many_in_a_few_statements(bench: Bench) -> None:
    far = Far()
    names = [f"u{n}" for n in range(40)]
    await bench.people("alice", *names)
    await bench.befriend(far)
    alice = bench.user("alice")
    people = [*map(bench.user, names), *(User(far.node, name) for name in names)]
    await bench.all(*(bench.send(f"k{n}", to) for n, to in enumerate(people)))
    said = [Said(alice, direct_conversation(alice, to)) for to in people]
    counts = []
    for some in (said[:1], said):
        with bench.counting() as seen:
            found = await bench.store.read(look, hearers, bench.context, some)
        counts.append(len(seen))
        assert found == [(to,) for to in people[: len(some)]]
    assert counts[1] <= counts[0] + 1
    theirs = [Said(to, of.conversation) for to, of in zip(people, said, strict=True)]
    assert await bench.store.read(look, hearers, bench.context, theirs) == [(alice,)] * 80
    swapped = [Said(people[n - 1], of.conversation) for n, of in enumerate(said)]
    assert await bench.store.read(look, hearers, bench.context, swapped) == [()] * 80, "in others' conversations nobody"
    assert len(await bench.store.read(contacts, ["alice", "u1", "nobody"])) == 81
    assert len(await bench.store.read(contacts, ["alice", "u1"], far.node)) == 40


async def test_who_is_disabled_blocked_or_not_accepted_neither_hears_nor_is_heard(bench: Bench) -> None:
    far = Far()
    await bench.people("alice", "open", "disabled", "blocks", "blocked")
    await bench.do(AddAccount("asked", ""))
    await bench.do(ChangeAccount("asked", requests="everyone"))
    await bench.befriend(far)
    alice = bench.user("alice")
    people = [*map(bench.user, ("open", "disabled", "blocks", "blocked", "asked")), User(far.node, "out")]
    await bench.all(*(bench.send(f"k{n}", to) for n, to in enumerate(people)))
    await bench.do(ChangeAccount("disabled", state="disabled"))
    await bench.do(ChangeBlock("blocks", alice, True))
    await bench.do(ChangeBlock("alice", bench.user("blocked"), True))
    await bench.do(ChangeBlock("", User(far.node, "out"), True))
    mine = [Said(alice, direct_conversation(alice, to)) for to in people]
    theirs = [Said(to, of.conversation) for to, of in zip(people, mine, strict=True)]
    for said, first in ((mine, people[0]), (theirs, alice)):
        found = await bench.store.read(look, hearers, bench.context, said)
        assert found == [(first,), (), (), (), (), ()]

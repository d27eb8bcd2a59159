"""A disk without room: refused by name, nothing half written, reads go on, and it works again once there is room."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from federation import link, wire
from federation.identity import check_chain
from federation.ports import ChannelClosed
from node import api, keys
from node.admin import AdminError, call
from node.api import ApiError
from node.core.people import AddAccount
from node.node import Node
from node.storage.writer import StoreFailed
from tests.node.helpers import Client, befriend, connect, two_nodes

BODY = bytes(60_000)


async def limit_pages(node: Node, more: int | None) -> None:
    """Let the store grow by so many pages, for SQLite then says the same as without room on the disk."""

    def work(connection: object) -> None:
        run = connection.exec_driver_sql  # type: ignore[attr-defined]
        (pages,) = run("PRAGMA page_count").one()
        run(f"PRAGMA max_page_count = {1 << 30 if more is None else pages + more}").close()

    await node._runner.write(work)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Node, Node, Client, Client]]:
    async with two_nodes(tmp_path) as (a, b):
        await befriend(a, b)
        yield a, b, await connect(a, "alice"), await connect(b, "bob")


async def test_sends_are_refused_by_name_and_the_rest_goes_on(pair: tuple[Node, Node, Client, Client]) -> None:
    a, _, alice, bob = pair
    kept = [await alice.send("bob@b.test", b"before")]
    await bob.message(b"before")
    await limit_pages(a, 60)

    async def fill() -> None:
        for n in range(100):
            kept.append(await alice.send("bob@b.test", BODY, f"big{n}"))

    async def hire() -> None:
        for n in range(100):  # small rows find a place on a page that has room
            await call(a.config, "user.add", {"name": f"carol{n}", "password": "p" * 1000})

    with pytest.raises(ApiError) as full:
        await fill()
    assert (full.value.code, full.value.retry) == ("storage_full", True)
    assert 1 < len(kept) < 100
    history = await alice.ask(api.GetHistory, "bob@b.test")
    assert [m.event for m in history.messages] == [sent.event for sent in kept][-len(history.messages) :]
    with pytest.raises(AdminError, match="disk is full") as refused:
        await hire()
    assert refused.value.code == "storage_full"
    assert not a.failed.done()
    status = await call(a.config, "status", {})
    assert status["clients"] == 1
    await limit_pages(a, None)
    again = await alice.send("bob@b.test", BODY, f"big{len(kept) - 1}")  # the one that was refused
    assert again.seq == kept[-1].seq + 1
    await bob.item(lambda item: isinstance(item, api.Message) and item.event == again.event)


async def test_what_another_node_sends_waits_there_for_room(
    pair: tuple[Node, Node, Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "LATER_MS", 100)
    _, b, alice, bob = pair
    first = await alice.send("bob@b.test", b"before")
    await bob.message(b"before")
    await limit_pages(b, 8)
    sent = await alice.send("bob@b.test", BODY)
    async with asyncio.timeout(20):
        while "storage_full" not in (await alice.ask(api.GetWhy, sent.event)).hops[-1].detail:
            await alice.ask(api.Ping)
    assert (await alice.ask(api.GetState, sent.event)).to[0].state == "accepted"
    assert [m.event for m in (await bob.ask(api.GetHistory, "alice@a.test")).messages] == [first.event]
    assert not b.failed.done()
    await limit_pages(b, None)
    await bob.message(BODY)


async def test_what_was_fetched_while_the_disk_was_full_is_told_when_it_has_room(
    pair: tuple[Node, Node, Client, Client],
) -> None:
    """An acknowledgement has no answer, so nobody repeats it: and its sender would wait for `delivered` for ever."""
    _, b, alice, bob = pair
    bob.acks = False
    first = await alice.send("bob@b.test", b"first")
    await bob.message(b"first")
    await limit_pages(b, 0)
    await bob.tell(api.Ack(bob.items[-1].position))
    await bob.ask(api.Ping)
    with pytest.raises(ApiError, match="disk is full"):  # and so is what shares the transaction with it
        await b.store.submit(AddAccount("carol", "p" * 100_000))
    await limit_pages(b, None)
    await alice.state(first.event, "delivered")


async def test_a_peer_that_calls_while_nothing_can_be_stored_is_not_told_that_it_is_blocked(
    pair: tuple[Node, Node, Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, *_ = pair
    stranger = keys.create(a.config.data_path / "stranger")
    for error in (ApiError("storage_full", "full"), StoreFailed("broken")):

        async def refuse(command: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(b.store, "submit", refuse)
        for chain in (a.us.chain, stranger.chain):
            hello = wire.Hello(chain, a.us.name, a.us.incarnation, "client", bytes(64), (), b.us.node)
            if isinstance(error, ApiError) and chain == a.us.chain:  # what is known of it is enough to go on
                assert await b.host.meet(check_chain(chain), hello, "memory") == "accepted"
                continue
            with pytest.raises(ChannelClosed):
                await b.host.meet(check_chain(chain), hello, "memory")
    monkeypatch.undo()

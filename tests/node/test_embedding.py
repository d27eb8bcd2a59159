"""A node inside another program: leaves nothing behind, fails without taking the program along, has neighbours."""

import asyncio
import gc
import itertools
import os
import socket
import sqlite3
import threading
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from node.admin import call
from node.api import ApiError
from node.client import Change, Client
from node.errors import NodeError, NodeFailed
from node.node import Node
from tests.node.helpers import befriend, config, listening

LIVES = 100


def held() -> dict[str, Any]:
    """What this process holds now."""
    gc.collect()  # SQLAlchemy's and aiohttp's closed objects lie in cycles
    return {
        "tasks": len(asyncio.all_tasks()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": len(os.listdir("/proc/self/fd")),
    }


async def arrival(news: AsyncIterator[Change], text: str) -> Change:
    async with asyncio.timeout(20):
        async for change in news:
            if change.message is not None and change.message.text == text:
                return change
    raise AssertionError(f"{text!r} did not arrive")


async def test_a_hundred_lives_leave_nothing(tmp_path: Path) -> None:
    settings = listening(tmp_path)
    assert settings.listen_at is not None

    async def life(number: int) -> None:
        async with Node.open(settings) as node:
            alice = await node.client("alice")
            sent = await alice.send("alice@a.test", f"life {number}")
            await alice.wait(sent.key, "accepted", 20)

    async with Node.open(settings) as node:
        await node.create_user("alice")
    await life(0)
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)  # the loop's own pool is not the node's
    before = held()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for number in range(1, LIVES + 1):
            await life(number)
        assert held() == before
    assert [str(w.message) for w in seen if issubclass(w.category, ResourceWarning)] == []
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections of the port may linger
            taken.bind(settings.listen_at)
    async with Node.open(settings) as node:
        alice = await node.client("alice")
        assert [device.this for device in await alice.devices()] == [True]
        history = await alice.history("alice@a.test", LIVES + 10)
        assert [m.text for m in history] == [f"life {n}" for n in range(LIVES + 1)]


def break_disk(node: Node) -> None:
    def fail() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    node._runner._writer.commit = fail  # type: ignore[attr-defined]


async def test_a_failed_store_is_told_by_every_call_and_the_program_goes_on(tmp_path: Path) -> None:
    settings = listening(tmp_path)
    heartbeat = itertools.count()
    async with Node.open(settings) as node:
        await node.create_user("alice")
        alice = await node.client("alice")
        safe = await alice.send("alice@a.test", "safe")
        await alice.wait(safe.key, "accepted", 20)
        break_disk(node)
        with pytest.raises(NodeFailed, match="disk I/O error"):
            await node.create_user("bob")
        assert node.failed.done()
        with pytest.raises(NodeFailed):
            await node.create_user("carol")
        with pytest.raises(NodeFailed):
            await node.client("alice", "another device")
        with pytest.raises(NodeFailed):
            async with asyncio.timeout(20):
                await node.stopped()
        news = alice.events(("message",))
        with pytest.raises(NodeFailed):
            await arrival(news, "what never comes")
        with pytest.raises(NodeFailed):
            await alice.send("alice@a.test", "late")
        with pytest.raises(NodeFailed):
            await alice.history("alice@a.test")
        next(heartbeat)
    assert next(heartbeat) == 1  # leaving the body raised nothing
    async with Node.open(settings) as node:
        await node.create_user("bob")
        alice = await node.client("alice")
        assert [m.text for m in await alice.history("alice@a.test")] == ["safe"]


async def test_a_message_on_its_way_when_the_store_fails_is_sent_by_the_next_life(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)) as node:
        await node.create_user("alice")
        alice = await node.client("alice")
        await alice.devices()  # connected
        break_disk(node)
        sent = await alice.send("alice@a.test", "on its way")
        with pytest.raises(NodeFailed):
            await alice.wait(sent.key, "accepted", 20)
    async with Node.open(config(tmp_path)) as node:
        alice = await node.client("alice")
        assert (await alice.wait(sent.key, "accepted", 20)).id
        assert [m.text for m in await alice.history("alice@a.test")] == ["on its way"]


async def test_what_people_wrote_is_not_in_the_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with Node.open(config(tmp_path)) as node:
        await node.create_user("alice")
        alice = await node.client("alice")
        await alice.devices()  # connected
        outside = sqlite3.connect(tmp_path / "a.test" / "roost.db")
        outside.execute("DROP TABLE events")
        outside.close()
        sent = await alice.send("alice@a.test", "for alice only")
        with pytest.raises(NodeFailed) as failed:
            await alice.wait(sent.key, "accepted", 20)
        assert str(failed.value) == "the store failed: no such table: events; nothing accepted before is lost"
    assert "no such table" in caplog.text
    assert "for alice only" not in caplog.text


async def test_a_client_sets_its_profile(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)) as node:
        await node.create_user("alice")
        alice = await node.client("alice")
        assert await alice.display_name() == ""
        with pytest.raises(ApiError, match="display_name: Expected `str` of length <= 80"):
            await alice.set_profile("x" * 81)
        await alice.set_profile("Alice Liddell")
        await alice.set_profile(requests="everyone")
        assert await alice.display_name() == "Alice Liddell"
        (user,) = await call(node.config, "user.list", {})
        assert user["display_name"] == "Alice Liddell"


async def test_a_closed_node_says_so(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)) as node:
        await node.create_user("alice")
    with pytest.raises(NodeError, match="closed"):
        await node.create_user("bob")
    with pytest.raises(NodeError, match="closed"):
        await node.client("alice")


async def test_three_nodes_of_one_process_write_to_each_other(tmp_path: Path) -> None:
    people = {"alice": "a.test", "bob": "b.test", "carol": "c.test"}
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(Node.open(listening(tmp_path, name))) for name in people.values()]
        await befriend(*nodes)
        clients: dict[str, Client] = {}
        for node, user in zip(nodes, people, strict=True):
            await node.create_user(user)
            clients[user] = await node.client(user)
        news = {user: client.events(("message",)) for user, client in clients.items()}
        sent = {}
        for sender, to in itertools.permutations(people, 2):
            sent[sender, to] = await clients[sender].send(f"{to}@{people[to]}", f"{sender} to {to}")
        for to in people:
            texts = set()
            while len(texts) < 2:
                async with asyncio.timeout(20):
                    message = (await anext(news[to])).message
                assert message is not None
                assert message.text == f"{message.sender.partition('@')[0]} to {to}"
                texts.add(message.text)
                await clients[to].mark_read(message)
        for (sender, _), message in sent.items():
            await clients[sender].wait(message.key, "read", 20)
        assert len({m.conversation for c in clients.values() for m in await conversation_of(c)}) == 3


async def conversation_of(client: Client) -> list[Any]:
    return [page[0] for c in await client.conversations() if (page := await client.messages(c.id))]

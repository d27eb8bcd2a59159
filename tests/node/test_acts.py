"""Edits, deletions, reactions, pins and answers between people on two nodes, through the SDK."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from federation.ids import from_text
from node.api import ApiError
from node.client import Client, Message
from node.client.model import Quote, Reaction
from node.node import Node
from node.storage import reads
from tests.node.helpers import befriend, listening

WAIT_S = 30.0
ALICE, BOB = "alice@a.test", "bob@b.test"


async def until(client: Client, conversation: str, holds: Callable[[list[Message]], bool]) -> list[Message]:
    """The conversation as this device has it, once it is so."""
    screen = client.changes()
    async with asyncio.timeout(WAIT_S):
        while not holds(found := await client.messages(conversation)):
            await anext(screen)
    await screen.aclose()
    return found


async def body(node: Node, event: str | None) -> bytes | None:
    found = await node.store.read(reads.event_by_id, from_text(event or "", 32))
    assert found is not None
    stored: bytes | None = found[0].event.body
    return stored


async def test_both_ways_on_all_devices_and_after_a_restart(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(Node.open(listening(tmp_path, "a.test")))
        b = await stack.enter_async_context(Node.open(listening(tmp_path, "b.test")))
        for node, name in ((a, "alice"), (b, "bob")):
            await node.create_user(name)
        await befriend(a, b)
        alice, phone, bob = await a.client("alice"), await a.client("alice", "phone"), await b.client("bob")
        sent = await alice.wait((await alice.send(BOB, "helo bob")).key, "sent", WAIT_S)
        talk = sent.conversation
        (theirs,) = await until(bob, ALICE, lambda found: len(found) == 1)
        answer = await bob.reply(theirs, "hello @alice")
        await bob.react(theirs, "+1")
        await bob.pin(theirs)
        await until(alice, talk, lambda found: len(found) == 2 and bool(found[0].pinned))
        edited = await alice.edit(sent, "hello bob")
        await alice.wait(edited.key, "sent", WAIT_S)
        for client in (alice, phone, bob):
            first, second = await until(client, talk, lambda found: len(found) == 2 and found[0].text == "hello bob")
            assert (first.text, first.pinned) == ("hello bob", BOB)
            assert first.reactions == (Reaction("+1", (BOB,), client is bob),)
            assert [e.text for e in first.edits] == ["helo bob", "hello bob"]
            await until(client, talk, lambda found: found[1].quote == Quote(ALICE, "hello bob"))
            assert second.mentions_me is (client is not bob)
            assert [m.id for m in await client.pinned(talk)] == [sent.id]
        (listed,) = await phone.conversations()
        assert (listed.unread, listed.mentions, listed.last_text) == (1, 1, "hello @alice")

        with pytest.raises(ApiError) as refused:
            await bob.edit(theirs, "I owe bob money")
        assert refused.value.code == "not_yours"
        failed = await bob.wait((await bob.delete(theirs)).key, "sent", WAIT_S)
        assert (failed.state, failed.reason) == ("failed", "only who wrote a message may delete it")
        assert await body(a, sent.id) == b"helo bob"

        await phone.delete(first)
        for client in (alice, phone, bob):
            first, _ = await until(client, talk, lambda found: found[0].deleted)
            assert (first.text, first.edits, first.reactions) == ("", (), ())
            assert [m.deleted for m in await client.history(talk)] == [True, False]
        for node in (a, b):
            assert [await body(node, id) for id in (sent.id, edited.id or "") if id] == [None] * (1 + bool(edited.id))
        assert (await bob.wait(answer.key, "accepted", WAIT_S)).state != "failed"
    async with Node.open(listening(tmp_path, "a.test")) as again:
        fresh = await again.client("alice", "tablet")
        first, second = await fresh.history(talk)
        assert (first.deleted, first.text, second.text) == (True, "", "hello @alice")
        assert (second.quote, second.mentions_me) == (Quote(ALICE, "", True), True)


async def test_what_was_edited_before_it_left_arrives_edited(tmp_path: Path) -> None:
    """The peer is away: what is deleted meanwhile never leaves; what was edited comes with its edit."""
    async with Node.open(listening(tmp_path, "a.test")) as a:
        await a.create_user("alice")
        async with Node.open(listening(tmp_path, "b.test")) as b:
            await b.create_user("bob")
            await befriend(a, b)
            bob = await b.client("bob")
            alice = await a.client("alice")
            await alice.wait((await alice.send(BOB, "hello")).key, "sent", WAIT_S)
            await until(bob, ALICE, lambda found: len(found) == 1)
        kept = await alice.wait((await alice.send(BOB, "keep thsi")).key, "accepted", WAIT_S)
        secret = await alice.wait((await alice.send(BOB, "a secret")).key, "accepted", WAIT_S)
        await alice.edit(kept, "keep this")
        gone = await alice.delete(secret)
        await alice.wait(gone.key, "accepted", WAIT_S)
        async with Node.open(listening(tmp_path, "b.test")) as b:
            await alice.wait(gone.key, "sent", WAIT_S)
            bob = await b.client("bob")
            found = await until(bob, ALICE, lambda found: len(found) == 2 and found[1].text == "keep this")
            assert [m.text for m in found] == ["hello", "keep this"]
            assert await body(b, secret.id) is None

"""Typing and presence: who hears of them, who does not, and what a flood of them costs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from federation import wire
from federation.ids import User, direct_conversation
from node import api, ephemerals
from node.admin import call
from node.api import ApiError
from node.config import Federation
from node.core.ephemeral import ACTIVE_MS, PRESENCE_MS, REFRESH_MS
from node.node import Node
from node.storage.look import look
from node.system import System
from tests.node.helpers import WAIT_S, Client, again, befriend, config, connect, listening, two_nodes


@asynccontextmanager
async def talking(folder: Path, **more: str) -> AsyncIterator[tuple[Node, Node, Client, Client, str]]:
    """alice@a.test and bob@b.test have a conversation that both accepted."""
    async with two_nodes(folder, **more) as (a, b):
        await befriend(a, b)
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        sent = await alice.send("bob@b.test", b"hi")
        await bob.message(b"hi")
        yield a, b, alice, bob, sent.conversation


async def looked(node: Node, what: Callable[[], bool]) -> None:
    """Until the node looked at what came: `what` says so."""
    async with asyncio.timeout(WAIT_S):
        while not what():
            await node.store.read(lambda connection: None)


def taken(node: Node) -> list[int]:
    """Grows by one each time that the node has decided about what a peer said."""
    times: list[int] = []
    take = node.ephemerals._take

    async def noted(peer: bytes) -> None:
        await take(peer)
        times.append(len(times))

    node.ephemerals._take = noted  # type: ignore[method-assign]
    return times


async def test_typing_crosses_a_link_and_is_stored_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with talking(tmp_path) as (a, b, alice, bob, conversation):
        written: list[str] = []
        for node in (a, b):
            monkeypatch.setattr(node.store, "submit", _noting(node.store.submit, written))
        await alice.ask(api.Typing, conversation)
        assert await bob.sign("typing") == api.Ephemeral(conversation, "alice@a.test", "typing", 6000)
        await alice.ask(api.Typing, "bob@b.test", on=False)
        assert (await bob.sign("idle")).holds == 0
        await bob.ask(api.Typing, conversation)
        assert (await alice.sign("typing")).who == "bob@b.test"
        assert set(written) <= {"Acknowledge", "PeerAcked", "Receive"}, "of the message before"


def _noting(submit: Callable[..., Any], written: list[str]) -> Callable[..., Any]:
    def noted(command: Any, later: bool = False) -> Any:
        written.append(type(command).__name__)
        return submit(command, later)

    return noted


async def test_typing_between_users_of_one_node(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)) as node:
        for name in ("alice", "bob", "carol"):
            await node.create_user(name, "pw")
        alice, bob, carol = [await connect(node, name) for name in ("alice", "bob", "carol")]
        sent = await alice.send("bob@a.test", b"hi")
        await bob.ask(api.Typing, sent.conversation)
        assert (await alice.sign("typing")).who == "bob@a.test"
        with pytest.raises(ApiError) as refused:
            await carol.ask(api.Typing, sent.conversation)
        assert refused.value.code == "not_found"
        await carol.ask(api.Typing, "bob@a.test")  # nothing was said yet: nobody hears it
        await alice.ask(api.Typing, sent.conversation)
        assert (await bob.sign("typing")).who == "alice@a.test"
        await bob.ask(api.Ping)
        assert bob.signs == carol.signs == []


async def test_a_request_gives_no_sign_of_life_either_way(tmp_path: Path) -> None:
    async with two_nodes(tmp_path, policy_b="open") as (a, b):
        await call(a.config, "peer.add", {"link": str(b.link)})
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        await alice.ask(api.SetPresence, "online")
        await bob.ask(api.SetPresence, "online")
        sent = await alice.send("bob@b.test", b"hello?")
        await bob.message(b"hello?")
        times = taken(b)
        await alice.ask(api.Typing, sent.conversation)
        await bob.ask(api.Typing, sent.conversation)
        await looked(b, lambda: bool(times))
        await bob.ask(api.Ping)
        assert alice.signs == bob.signs == []
        await bob.ask(api.Accept, sent.conversation)
        assert (await alice.sign("online", "typing")).kind == "online", "that bob is there, now"
        assert (await bob.sign("online", "typing")).kind == "online", "and alice, since nobody knew of her"
        await alice.ask(api.Typing, sent.conversation)
        await bob.sign("typing")


@pytest.mark.parametrize("who", ["alice@a.test", "a.test"])
async def test_who_is_blocked_hears_nothing_and_is_not_heard(tmp_path: Path, who: str) -> None:
    async with talking(tmp_path) as (_, b, alice, bob, conversation):
        await bob.ask(api.Block, who)
        times = taken(b)
        await alice.ask(api.Typing, conversation)
        await looked(b, lambda: bool(times))
        await bob.ask(api.SetPresence, "online")
        await bob.ask(api.Typing, conversation)
        await alice.ask(api.Ping)
        assert alice.signs == bob.signs == []
        failed = await alice.state((await alice.send("bob@b.test", b"hello?")).event, "failed")
        assert failed.reason.startswith("declined: ")
        with pytest.raises(ApiError) as refused:
            await bob.send("alice@a.test", b"x")
        assert refused.value.code == "blocked"
        assert [b.who for b in (await bob.ask(api.GetBlocks)).blocks] == [who]
        await bob.ask(api.Unblock, who)
        await bob.ask(api.Typing, conversation)
        assert (await alice.sign("online", "typing")).who == "bob@b.test"
        again_ = await alice.send("bob@b.test", b"again")
        await bob.message(b"again")
        await alice.state(again_.event, "delivered")
        assert not [i for i in bob.items if isinstance(i, api.Message) and i.body == b"hello?"]


async def test_the_administrator_blocks_a_user_of_another_node_for_all(tmp_path: Path) -> None:
    async with talking(tmp_path) as (_, b, alice, bob, _):
        await call(b.config, "block.add", {"who": "alice@a.test"})
        assert [row["who"] for row in await call(b.config, "block.list", {})] == ["alice@a.test"]
        await alice.state((await alice.send("bob@b.test", b"x")).event, "failed")
        with pytest.raises(ApiError, match="blocked"):
            await bob.send("alice@a.test", b"x")
        assert (await bob.ask(api.GetBlocks)).blocks == (), "it is not bob's word"
        await call(b.config, "block.remove", {"who": "alice@a.test"})
        await bob.send("alice@a.test", b"y")
        await alice.message(b"y")


async def test_presence_follows_the_devices_and_reaches_contacts_only(tmp_path: Path) -> None:
    async with talking(tmp_path) as (_, b, alice, bob, conversation):
        await b.create_user("carol", "pw")
        carol = await connect(b, "carol")
        await carol.ask(api.SetPresence, "online")
        await bob.ask(api.SetPresence, "online")
        seen = await alice.sign("online")
        assert (seen.conversation, seen.who, seen.holds) == (conversation, "bob@b.test", 600_000)
        second = await again(b, bob)
        await second.ask(api.SetPresence, "away")
        await bob.ask(api.SetPresence, "away")
        await alice.sign("away")
        await bob.channel.close()
        await second.channel.close()
        assert (await alice.sign("offline")).holds == 0
        assert carol.signs == alice.signs == []


async def test_a_device_that_comes_hears_who_is_there(tmp_path: Path) -> None:
    async with talking(tmp_path) as (a, _, alice, bob, _):
        await a.create_user("ann", "pw")
        ann = await connect(a, "ann")
        await ann.send("alice@a.test", b"hello")
        await alice.message(b"hello")
        for client in (ann, bob):
            await client.ask(api.SetPresence, "online")
        for _ in range(2):
            await alice.sign("online")
        phone = await again(a, alice)
        await phone.ask(api.SetPresence, "away")
        assert {(await phone.sign("online")).who for _ in range(2)} == {"ann@a.test", "bob@b.test"}


async def test_who_shows_nothing_of_himself_is_offline(tmp_path: Path) -> None:
    async with talking(tmp_path) as (_, _, alice, bob, conversation):
        await bob.ask(api.SetPresence, "online")
        await alice.sign("online")
        await bob.ask(api.SetProfile, presence="nobody")
        await alice.sign("offline")
        await bob.ask(api.Typing, conversation)
        await bob.ask(api.SetPresence, "away")
        await alice.ask(api.SetPresence, "online")
        await bob.sign("online")
        assert alice.signs == [], "and types unseen"
        await bob.ask(api.SetProfile, presence="contacts")
        assert (await alice.sign("online", "away")).kind == "away"


async def test_nobody_is_there_while_their_node_is_not(tmp_path: Path) -> None:
    a_config = listening(tmp_path, "a.test")
    async with Node.open(listening(tmp_path, "b.test")) as b:
        await b.create_user("bob", "pw")
        async with Node.open(a_config) as a:
            await a.create_user("alice", "pw")
            await befriend(a, b)
            alice, bob = await connect(a, "alice"), await connect(b, "bob")
            sent = await alice.send("bob@b.test", b"hi")
            await bob.message(b"hi")
            await bob.ask(api.SetPresence, "online")
            await alice.ask(api.SetPresence, "online")
            await bob.sign("online")
            await alice.sign("online")
        assert (await bob.sign("offline")).conversation == sent.conversation
        assert len(b.ephemerals.presences) == 0
        async with Node.open(a_config) as a:
            alice = await again(a, alice)
            await alice.ask(api.SetPresence, "online")
            await bob.sign("online")
            await alice.sign("online")  # without a word of bob


class Later(System):
    """A clock that the test moves on."""

    ahead_ms = 0

    def monotonic_ms(self) -> int:
        return super().monotonic_ms() + self.ahead_ms


async def test_presence_ages_is_told_again_and_ends(tmp_path: Path) -> None:
    clocks = Later(), Later()
    a_config, b_config = listening(tmp_path, "a.test"), listening(tmp_path, "b.test")
    async with Node.open(a_config, system=clocks[0]) as a, Node.open(b_config, system=clocks[1]) as b:
        await a.create_user("alice", "pw")
        await b.create_user("bob", "pw")
        await befriend(a, b)
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        await alice.send("bob@b.test", b"hi")
        await bob.message(b"hi")
        await bob.ask(api.SetPresence, "online")
        await alice.sign("online")

        async def later(node: Node, clock: Later, ms: int) -> None:
            clock.ahead_ms += ms
            node.ephemerals._wake.set()  # it looks by itself every few seconds

        await later(b, clocks[1], REFRESH_MS)
        assert (await alice.sign("online", "away")).kind == "online", "told again: the first may have been dropped"
        await later(b, clocks[1], ACTIVE_MS - REFRESH_MS)
        await alice.sign("away")
        await later(a, clocks[0], PRESENCE_MS)
        await alice.sign("offline")
        assert len(a.ephemerals.presences) == 0


async def test_a_peer_speaks_of_its_own_users_in_conversations_that_are_theirs(tmp_path: Path) -> None:
    async with talking(tmp_path) as (a, b, _, bob, _):
        await b.create_user("carol", "pw")
        carol = await connect(b, "carol")
        of = direct_conversation(User(b.us.node, "bob"), User(b.us.node, "carol"))
        await bob.send("carol@b.test", b"hi")
        times = taken(b)
        for sender in ("bob", "carol", "alice", "nobody", "x" * 64):
            b.ephemerals.arrived(a.us.node, [wire.Ephemeral(of, sender, "typing", 6000)])
        b.ephemerals.arrived(a.us.node, [wire.Ephemeral(bytes(32), "alice", "online", 6000)])
        await looked(b, lambda: bool(times) and not b.ephemerals.pending)
        await bob.ask(api.Ping)
        await carol.ask(api.Ping)
        assert bob.signs == carol.signs == []
        assert len(b.ephemerals.presences) == 0


async def test_a_flood_costs_drops_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ephemerals, "PENDING_MAX", 100)
    async with talking(tmp_path) as (a, b, alice, bob, _):
        looks: list[int] = []
        read = b.store.read

        async def counted(*args: object, **more: object) -> object:
            looks.append(1) if args[0] is look else None
            return await read(*args, **more)  # type: ignore[arg-type]

        times = taken(b)
        monkeypatch.setattr(b.store, "read", counted)
        for number in range(300):
            signs = [wire.Ephemeral(n.to_bytes(32, "big"), f"u{number}", "typing", 1) for n in range(256)]
            b.ephemerals.arrived(a.us.node, signs)
        assert b.ephemerals.pending == 100
        assert b.ephemerals.refused["peers"] > 70_000
        await looked(b, lambda: bool(times))
        assert len(looks) == 1
        await alice.send("bob@b.test", b"not delayed")
        await bob.message(b"not delayed")


async def test_who_types_without_end_is_told_on_a_few_times_a_second(tmp_path: Path) -> None:
    async with talking(tmp_path) as (a, _, alice, _, conversation):
        for _ in range(60):
            await alice.ask(api.Typing, conversation)
        assert a.ephemerals.refused["typing"] >= 30


def signs_of(signs: Sequence[api.Ephemeral]) -> list[str]:
    return [sign.kind for sign in signs]


async def test_a_session_that_takes_nothing_gets_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from node import session as sessions

    monkeypatch.setattr(sessions, "SIGNS_MAX", 2)
    async with Node.open(config(tmp_path, federation=Federation())) as node:
        await node.create_user("alice", "pw")
        alice = await connect(node, "alice")
        (session,) = node.sessions["alice"]
        for kind in ("typing", "idle", "online", "away"):
            session.pass_on(api.Ephemeral("c", "bob@b.test", kind, 1))  # type: ignore[arg-type]
        session.pass_on(api.Ephemeral("d", "bob@b.test", "typing", 1))
        await alice.ask(api.Ping)
        assert signs_of(alice.signs) == ["idle", "away"]
        assert node.refusals["signs of life"] == 1

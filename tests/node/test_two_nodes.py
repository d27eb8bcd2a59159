"""Two nodes over real QUIC: delivered once, refused with a reason, waiting with an explanation."""

import asyncio
from pathlib import Path

import pytest

from federation.identity import NodeKey, NodeLink, check_chain, new_chain
from federation.ids import to_text
from node import api
from node.admin import AdminError, call
from node.api import ApiError
from node.client import NodeKeyError
from node.client import connect as dial_node
from node.config import Federation
from node.node import Node
from tests.node.helpers import again, befriend, config, connect, listening, two_nodes


async def test_a_message_and_its_receipts_cross(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (a, b):
        await befriend(a, b)
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        sent = await alice.send("bob@b.test", b"hi")
        got = await bob.message(b"hi")
        assert (got.event, got.sender, got.origin, got.log) == (sent.event, "alice@a.test", sent.origin, sent.log)
        assert (await alice.state(sent.event, "delivered")).address == "bob@b.test"
        await bob.ask(api.Read, got.conversation, (api.Mark(got.origin, got.log, got.seq),))
        await alice.state(sent.event, "read")
        back = await bob.send("alice@a.test", b"ho")
        assert (await alice.message(b"ho")).conversation == sent.conversation == back.conversation
        histories = [await who.ask(api.GetHistory, sent.conversation) for who in (alice, bob)]
        assert [[m.event for m in h.messages] for h in histories] == [[sent.event, back.event]] * 2
        assert {(light.node, light.state) for light in alice.lights} >= {("b.test", "up")}


async def test_an_offline_node_gets_it_once_when_it_is_back(tmp_path: Path) -> None:
    a_config, b_config = listening(tmp_path, "a.test"), listening(tmp_path, "b.test")
    async with Node.open(a_config) as a:
        await a.create_user("alice", "pw")
        async with Node.open(b_config) as b:
            await b.create_user("bob", "pw")
            await befriend(a, b)
            alice, bob = await connect(a, "alice"), await connect(b, "bob")
            first = await alice.send("bob@b.test", b"first")
            await bob.message(b"first")
            await alice.state(first.event, "delivered")
        late = [await alice.send("bob@b.test", b"%d" % n) for n in range(20)]
        why = await alice.ask(api.GetWhy, late[-1].event)
        assert "bob@b.test: accepted" in why.summary
        assert [h.what for h in why.hops][-1] == "waiting"
        assert "19 of this conversation wait before it" in why.hops[-1].detail
        assert (await alice.ask(api.GetState, late[-1].event)).to[0].state == "accepted"
        status = await call(a_config, "status", {})
        assert [(p["name"], p["link"], p["waiting"]) for p in status["peers"]] == [("b.test", "down", 20)]
        async with Node.open(b_config) as b:
            bob = await again(b, bob)
            await bob.message(b"19")
            await alice.state(late[-1].event, "delivered")
            bodies = [i.body for i in bob.items if isinstance(i, api.Message)]
            assert bodies == [b"%d" % n for n in range(20)]
            history = await bob.ask(api.GetHistory, "alice@a.test")
            assert len(history.messages) == 21


async def test_why_names_a_peer_that_does_not_answer(tmp_path: Path) -> None:
    a_config, b_config = listening(tmp_path, "a.test"), listening(tmp_path, "b.test")
    async with Node.open(b_config) as b:
        link = str(b.link)
    async with Node.open(a_config) as a:
        await a.create_user("alice", "pw")
        await call(a_config, "peer.add", {"link": link})
        alice = await connect(a, "alice")
        sent = await alice.send("bob@b.test", b"anyone?")
        why = await alice.ask(api.GetWhy, sent.event)
        assert why.hops[-1].what == "waiting"
        assert "b.test" in why.hops[-1].detail or "no link" in why.hops[-1].detail
        assert (await call(a_config, "why", {"event": sent.event}))["event"] == sent.event
        while not [light for light in alice.lights if light.state == "down"]:
            await alice.pump()
        why = await alice.ask(api.GetWhy, sent.event)
        assert "b.test does not answer" in why.hops[-1].detail
        assert "next try in" in why.hops[-1].detail or "it is called now" in why.hops[-1].detail


@pytest.mark.parametrize("count", [1, 12])
async def test_an_unknown_user_over_there_is_a_failure_with_its_reason(tmp_path: Path, count: int) -> None:
    async with two_nodes(tmp_path) as (a, b):
        await call(a.config, "peer.add", {"link": str(b.link)})
        alice = await connect(a, "alice")
        sent = [await alice.send("nobody@b.test", b"%d" % n) for n in range(count)]
        await call(b.config, "peer.add", {"link": str(a.link)})  # all of it is offered at once
        for one in sent:
            failed = await alice.state(one.event, "failed")
            assert failed.reason == "unknown_user: b.test has no user nobody"
        item = await alice.item(lambda i: isinstance(i, api.Failure) and i.event == sent[-1].event)
        assert (item.code, item.member) == ("unknown_user", "nobody@b.test")
        await alice.send("bob@b.test", b"still works")
        await (await connect(b, "bob")).message(b"still works")


async def test_a_stranger_under_policy_open_asks_first(tmp_path: Path) -> None:
    async with two_nodes(tmp_path, policy_b="open") as (a, b):
        await call(a.config, "peer.add", {"link": str(b.link)})
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        sent = await alice.send("bob@b.test", b"hello?")
        got = await bob.message(b"hello?")
        await bob.ask(api.Read, got.conversation, (api.Mark(got.origin, got.log, got.seq),))
        (asked,) = (await bob.ask(api.GetConversations, requests_only=True)).conversations
        assert asked.state == "request"
        await alice.state(sent.event, "sent")
        more = await alice.send("bob@b.test", b"are you there?")
        await bob.message(b"are you there?")
        await alice.state(more.event, "sent")
        assert not [i for i in alice.items if isinstance(i, api.Watermark) and i.delivered]
        await bob.ask(api.Accept, asked.conversation)
        await alice.state(sent.event, "read")
        await alice.state(more.event, "delivered")


async def test_a_declined_sender_elsewhere_gets_a_failure(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (a, b):
        await befriend(a, b)
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        await bob.ask(api.SetProfile, requests="everyone")
        first = await alice.send("bob@b.test", b"hello?")
        await bob.message(b"hello?")
        await bob.ask(api.Decline, first.conversation)
        second = await alice.send("bob@b.test", b"please")
        assert (await alice.state(second.event, "failed")).reason.startswith("declined: ")
        assert (await alice.ask(api.GetState, first.event)).to[0].state == "sent"
        assert [m.body for m in (await bob.ask(api.GetHistory, first.conversation)).messages] == [b"hello?"]


async def test_a_pending_peer_gets_nothing_until_it_is_accepted(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (a, b):
        await call(a.config, "peer.add", {"link": str(b.link)})
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        sent = await alice.send("bob@b.test", b"hi")
        while not b.directory.peers:  # the knock
            await bob.ask(api.Ping)
        assert [(p["name"], p["state"]) for p in await call(b.config, "peer.list", {})] == [("a.test", "pending")]
        assert (await alice.ask(api.GetState, sent.event)).to[0].state == "accepted"
        await call(b.config, "peer.accept", {"node": "a.test"})
        await bob.message(b"hi")


async def test_a_blocked_peer(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (a, b):
        await befriend(a, b)
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        await alice.send("bob@b.test", b"hi")
        await bob.message(b"hi")
        await call(b.config, "peer.block", {"node": "a.test"})
        with pytest.raises(ApiError) as refused:
            await bob.send("alice@a.test", b"x")
        assert refused.value.code == "blocked"
        held = await alice.send("bob@b.test", b"held")
        while a.service.links:
            await alice.ask(api.Ping)
        assert (await alice.ask(api.GetState, held.event)).to[0].state == "accepted"
        assert not [i for i in bob.items if isinstance(i, api.Message) and i.body == b"held"]
        await call(b.config, "peer.accept", {"node": "a.test"})
        await bob.message(b"held")


async def test_policy_block_turns_strangers_away(tmp_path: Path) -> None:
    async with two_nodes(tmp_path, policy_b="block") as (a, b):
        await call(a.config, "peer.add", {"link": str(b.link)})
        alice = await connect(a, "alice")
        sent = await alice.send("bob@b.test", b"hi")
        while not [light for light in alice.lights if light.state == "down"]:
            await alice.pump()
        assert await call(b.config, "peer.list", {}) == []
        assert (await alice.ask(api.GetState, sent.event)).to[0].state == "accepted"


async def test_a_name_stays_bound_to_its_key(tmp_path: Path) -> None:
    other = check_chain(new_chain(NodeKey(b"o" * 32), NodeKey(b"p" * 32).public, b"q" * 32)).node
    async with two_nodes(tmp_path) as (a, b):
        await call(a.config, "peer.add", {"link": str(b.link)})
        for link in (NodeLink(other, "b.test", b.us.addresses), NodeLink(other, "a.test", b.us.addresses)):
            with pytest.raises(AdminError) as refused:
                await call(a.config, "peer.add", {"link": str(link)})
            assert refused.value.code == "conflict"
        await call(a.config, "peer.remove", {"node": "b.test"})
        await call(a.config, "peer.add", {"link": str(NodeLink(other, "b.test", b.us.addresses))})


async def test_another_key_under_a_known_name_and_port_gets_nothing(tmp_path: Path) -> None:
    settings = listening(tmp_path, "b.test")
    async with Node.open(listening(tmp_path, "a.test")) as a:
        await a.create_user("alice", "pw")
        async with Node.open(settings) as b:
            await b.create_user("bob", "pw")
            await befriend(a, b)
            link = b.link
        impostor = config(tmp_path / "elsewhere", "b.test", listen=settings.listen)
        async with Node.open(impostor) as other:
            await other.create_user("bob", "pw")
            await call(impostor, "peer.add", {"link": str(a.link)})
            alice, bob = await connect(a, "alice"), await connect(other, "bob")
            sent = await alice.send("bob@b.test", b"for the real one")
            async with asyncio.timeout(20):
                while "another node's key answered" not in (await alice.ask(api.GetWhy, sent.event)).hops[-1].detail:
                    await alice.pump()  # a light, before each try and after it
            (peer,) = (p for p in (await call(a.config, "status", {}))["peers"] if p["name"] == "b.test")
            assert (peer["node"], peer["link"]) == (to_text(link.node), "down")
            assert "another node's key answered" in peer["reason"]
            assert (await alice.ask(api.GetState, sent.event)).to[0].state == "accepted"
            with pytest.raises(AdminError, match="bound to another node's key") as refused:
                await call(a.config, "peer.add", {"link": str(other.link)})
            assert refused.value.code == "conflict"
            with pytest.raises(NodeKeyError, match="another node's key"):
                await dial_node(link)
            assert not [i for i in bob.items if isinstance(i, api.Message)]
        async with Node.open(settings) as b:
            bob = await connect(b, "bob")
            await bob.message(b"for the real one")


async def test_an_added_peer_is_known_at_once(tmp_path: Path) -> None:
    async with Node.open(listening(tmp_path, "a.test", federation=Federation())) as a:
        await a.create_user("alice", "pw")
        alice = await connect(a, "alice")
        for n in range(5):
            node = check_chain(new_chain(NodeKey(bytes([n]) * 32), NodeKey(b"p" * 32).public, b"q" * 32)).node
            await call(a.config, "peer.add", {"link": str(NodeLink(node, f"n{n}.test", ()))})
            await alice.send(f"bob@n{n}.test", b"x")
            await call(a.config, "peer.remove", {"node": f"n{n}.test"})
            with pytest.raises(ApiError, match=f"n{n}.test"):
                await alice.send(f"bob@n{n}.test", b"y")


async def test_whoever_answers_a_request_accepts_it_and_its_receipts_go_out(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (a, b):
        await befriend(a, b)
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        await bob.ask(api.SetProfile, requests="everyone")
        asked = await alice.send("bob@b.test", b"may I?")
        await bob.message(b"may I?")
        await bob.ask(api.Ping)
        await bob.send("alice@a.test", b"you may")
        await alice.message(b"you may")
        await alice.state(asked.event, "delivered")

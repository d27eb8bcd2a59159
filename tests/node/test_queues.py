"""What waits for other nodes: shown with the reason, tried now, given up."""

import asyncio
from pathlib import Path

import pytest

from federation import service
from node import api
from node.admin import AdminError, call
from node.config import Link
from node.directory import event_id
from node.node import Node
from tests.node.helpers import WAIT_S, befriend, config, connect, listening

DEAD = "roost://" + "a" * 51 + "a@dead.test?at=127.0.0.1:1"
SLOW = Link(backoff_cap_ms=3_600_000)


async def test_what_waits_is_listed_with_how_much_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "DIAL_TIMEOUT_S", 0.2)
    a_config = listening(tmp_path, link=SLOW)
    async with Node.open(a_config) as a:
        await a.create_user("alice", "pw")
        await call(a_config, "peer.add", {"link": DEAD})
        assert await call(a_config, "queue.list", {}) == []
        (nothing,) = await call(a_config, "queue.list", {"peer": "dead.test"})
        assert (nothing["waiting"], nothing["bytes"], nothing["oldest"], nothing["next_s"]) == (0, 0, 0, None)
        alice = await connect(a, "alice")
        sent = [await alice.send("bob@dead.test", b"x" * 1000) for _ in range(3)]
        while not [light for light in alice.lights if light.state == "down"]:
            await alice.pump()
        (queue,) = await call(a_config, "queue.list", {})
        assert (queue["peer"], queue["state"], queue["link"], queue["waiting"]) == ("dead.test", "accepted", "down", 3)
        assert 3000 < queue["bytes"] < 5000
        assert queue["oldest"] > 1_700_000_000_000
        assert "dead.test does not answer (127.0.0.1:1: " in queue["reason"]
        assert queue["next_s"] >= 0
        await call(a_config, "peer.block", {"node": "dead.test"})
        (queue,) = await call(a_config, "queue.list", {"peer": "dead.test"})
        assert (queue["reason"], queue["next_s"]) == ("dead.test is blocked here", None)
        why = await a.why(event_id(sent[2].event))
        assert why.hops[-1].detail == "dead.test is blocked here; 2 of this conversation wait before it"
    (queue,) = await call(a_config, "queue.list", {})
    assert queue["reason"] == "this node does not run"
    assert await call(a_config, "queue.flush", {}) == {"flushed": []}


async def test_flush_does_not_wait_for_the_back_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "IDLE_LOOK_MS", 3_600_000)
    a_config, b_config = listening(tmp_path, "a.test", link=SLOW), listening(tmp_path, "b.test", link=SLOW)
    async with Node.open(a_config) as a:
        await a.create_user("alice", "pw")
        async with Node.open(b_config) as b:
            await b.create_user("bob", "pw")
            await befriend(a, b)
        alice = await connect(a, "alice")
        sent = await alice.send("bob@b.test", b"hello")
        async with asyncio.timeout(WAIT_S):
            while b.us.node not in a.service.backoffs:
                await alice.ask(api.Ping)
        async with Node.open(config(tmp_path, "b.test", listen=b_config.listen, link=SLOW)) as b:
            b.service.held = True  # it does not call
            backoff = a.service.backoffs[b.us.node]
            backoff.next_ms = a.system.monotonic_ms() + 3_600_000  # as after many tries
            (queue,) = await call(a_config, "queue.list", {})
            assert 3_590 < queue["next_s"] <= 3_600
            b.service.held = False
            assert await call(a_config, "queue.flush", {"peer": "b.test"}) == {"flushed": ["b.test"]}
            await alice.state(sent.event, "sent")
            assert await call(a_config, "queue.list", {}) == []


async def test_what_is_given_up_has_failed_and_its_sender_sees_why(tmp_path: Path) -> None:
    a_config, b_config = listening(tmp_path, "a.test"), listening(tmp_path, "b.test")
    async with Node.open(a_config) as a:
        await a.create_user("alice", "pw")
        async with Node.open(b_config) as b:
            await b.create_user("bob", "pw")
            await befriend(a, b)
            alice, bob = await connect(a, "alice"), await connect(b, "bob")
            await alice.send("bob@b.test", b"first")
            await bob.message(b"first")
        late = [await alice.send("bob@b.test", b"late %d" % n) for n in range(5)]
        answer = await call(a_config, "queue.expire", {"peer": "b.test"})
        assert answer == {"peer": "b.test", "failed": 5, "left": 0}
        assert await call(a_config, "queue.expire", {"peer": "b.test"}) == {"peer": "b.test", "failed": 0, "left": 0}
        failure = await alice.item(lambda item: isinstance(item, api.Failure) and item.event == late[-1].event)
        assert (failure.code, failure.reason) == ("expired", "given up by the administrator of a.test")
        page = (await alice.ask(api.GetHistory, "bob@b.test")).messages
        assert [(m.body, m.state) for m in page[1:]] == [(b"late %d" % n, "failed") for n in range(5)]
        assert {m.reason for m in page[1:]} == {"expired: given up by the administrator of a.test"}
        assert page[0].reason == ""
        why = await a.why(event_id(late[0].event))
        assert why.summary == "bob@b.test: failed"
        assert [hop.what for hop in why.hops] == ["written", "accepted", "failed"]
        after = await alice.send("bob@b.test", b"after")
        async with Node.open(b_config) as b:
            bob = await connect(b, "bob")
            await bob.message(b"after")
            await alice.state(after.event, "delivered")
            page = (await bob.ask(api.GetHistory, "alice@a.test")).messages
            assert [m.body for m in page if m.body is not None] == [b"first", b"after"]


async def test_what_waits_for_a_removed_peer_can_be_given_up_by_its_id(tmp_path: Path) -> None:
    a_config = listening(tmp_path)
    async with Node.open(a_config) as a:
        await a.create_user("alice", "pw")
        await call(a_config, "peer.add", {"link": DEAD})
        alice = await connect(a, "alice")
        await alice.send("bob@dead.test", b"x")
        await call(a_config, "peer.remove", {"node": "dead.test"})
        (queue,) = await call(a_config, "queue.list", {})
        assert queue["state"] == "removed"
        with pytest.raises(AdminError, match=r"no peer 'dead\.test'"):
            await call(a_config, "queue.expire", {"peer": "dead.test"})
        assert (await call(a_config, "queue.expire", {"peer": queue["peer"]}))["failed"] == 1
        assert await call(a_config, "queue.list", {}) == []

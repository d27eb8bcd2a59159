"""Nodes that nobody knows: what they cost, and what they see and show."""

import asyncio
import itertools
from pathlib import Path

import pytest

from federation import wire
from federation.identity import Identity, NodeKey, check_chain, new_chain
from federation.link import Standing
from federation.peers import Backoff
from node import api
from node.admin import call
from node.config import Federation
from node.node import Node
from node.storage import reads
from tests.node.helpers import WAIT_S, config, connect

_numbers = itertools.count(1)


async def knock(node: Node, name: str, *addresses: str, remote: str = "8.8.4.4:9") -> tuple[Identity, Standing]:
    """What the link does when a node of a fresh key has proved itself, and what it does when it ends."""
    key = NodeKey(next(_numbers).to_bytes(32, "big"))
    chain = new_chain(key, key.public, bytes(32))
    identity = check_chain(chain)
    hello = wire.Hello(chain, name, bytes(16), "client", bytes(64), addresses)
    standing = await node.host.meet(identity, hello, remote)
    node.host.light(identity.node, "down", 0)
    return identity, standing


@pytest.mark.parametrize("policy", ["allowlist", "block"])
async def test_a_stranger_lights_nothing_on_users_screens(tmp_path: Path, policy: str) -> None:
    async with Node.open(config(tmp_path, federation=Federation(policy=policy))) as node:  # type: ignore[arg-type]
        await node.create_user("alice", "pw")
        alice = await connect(node, "alice")
        for number in range(3):
            await knock(node, f"n{number}.test")
        await alice.ask(api.Ping)
        assert not alice.lights
        assert not node.lights


async def test_strangers_fill_the_table_of_peers_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.host.STRANGERS_MAX", 3)
    async with Node.open(config(tmp_path)) as node:
        found = [await knock(node, f"n{number}.test") for number in range(3)]
        await node.peers_changed()
        assert (await knock(node, "late.test"))[1] == "blocked"
        await call(node.config, "peer.accept", {"node": "n0.test"})
        assert (await knock(node, "later.test"))[1] == "pending"  # there is room again
        await node.peers_changed()
        assert [standing for _, standing in found] == ["pending"] * 3
        assert len(node.directory.peers) == 4


async def test_of_a_hellos_addresses_only_those_that_can_be_dialled_are_kept(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)) as node:
        stranger, _ = await knock(node, "n.test", "192.0.2.1:9 192.0.2.2:9", "nonsense", "192.0.2.3:9", "a:99999")
        await node.peers_changed()
        assert node.directory.peers[stranger.node].hints == "192.0.2.3:9"


async def test_a_hello_makes_no_other_peer_be_called_sooner(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)) as node:
        dead = node.service.backoffs[b"d" * 32] = Backoff(60_000)
        dead.failed(0, 0.5, "no answer")
        await knock(node, "n.test")
        async with asyncio.timeout(WAIT_S):
            while not node.directory.peers:  # the hello was noticed
                await node.store.read(reads.all_peers)
        assert dead.failures == 1
        await node.peers_changed()  # unlike what an administrator does
        assert dead.failures == 0

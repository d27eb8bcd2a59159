"""The pinned key: nothing is told to whoever is not the node of the link."""

import secrets

import pytest

from federation import identity
from federation.identity import NodeKey
from node.client import NodeKeyError, Unreachable, greet
from node.client.channels import connect
from tests.client.conftest import Open
from tests.client.fakenode import BOB, FakeNode


async def test_the_right_node_is_greeted(node: FakeNode) -> None:
    wire = await greet(node.dial(), node.link)
    assert wire.welcome.name == "a.test"
    await wire.close()


async def test_another_nodes_key_is_refused_with_words(node: FakeNode) -> None:
    link = node.link
    other = NodeKey(secrets.token_bytes(32))
    node.chain, node.proof_key = identity.new_chain(other, bytes(32), bytes(32)), other
    with pytest.raises(NodeKeyError, match=r"a\.test answered with another node's key.*do not log in"):
        await greet(node.dial(), link)


async def test_a_wrong_proof_is_refused(node: FakeNode) -> None:
    node.proof_key = NodeKey(secrets.token_bytes(32))
    with pytest.raises(NodeKeyError, match="could not prove its key"):
        await greet(node.dial(), node.link)


async def test_a_client_stops_at_a_wrong_key_and_says_so(node: FakeNode, open_client: Open) -> None:
    node.proof_key = NodeKey(secrets.token_bytes(32))
    client = await open_client()
    with pytest.raises(NodeKeyError):
        await client.devices()
    with pytest.raises(NodeKeyError):
        await client.send(BOB, "to whom?")
    with pytest.raises(NodeKeyError):
        await anext(client.events())
    assert client.lights.me == "down"
    assert "could not prove" in client.lights.reason


async def test_nobody_there_says_what_was_tried(node: FakeNode) -> None:
    link = node.link._replace(addresses=("127.0.0.1:1",))
    with pytest.raises(Unreachable, match=r"QUIC to 127\.0\.0\.1:1 .*WebSocket to 127\.0\.0\.1:1 .*Check that"):
        await connect(link)

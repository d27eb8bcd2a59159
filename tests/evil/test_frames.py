"""B3 and B17: frames that are none, lengths that are too long, and the right bytes at the wrong door."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from federation import wire
from federation.dialer import Dialer
from federation.identity import split_host_port
from federation.ports import ChannelClosed
from federation.quic import QuicChannel
from federation.websocket import LINK_PATH, dial_link
from node import api, coding
from node.core.peers import ChangePeer
from node.node import Node
from tests.evil import kit, nasty
from tests.evil.kit import OpenDoor, Peer
from tests.node.helpers import NONCE, WAIT_S, Client, listening

HELLO = api.Hello(1, 1, NONCE)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node.open(listening(tmp_path)) as node:
        await node.create_user("bob")
        yield node


@pytest.fixture
async def open_door(node: Node) -> AsyncIterator[OpenDoor]:
    async with kit.served(node) as open_door:
        yield open_door


async def works(node: Node) -> None:
    """Somebody else is served as ever."""
    _, token = await kit.device(node, "bob")
    client = await kit.client(node.connect_inside(), token=token)
    sent = await client.send("bob@a.test", b"still here")
    assert (await client.message(b"still here")).event == sent.event
    await client.channel.close()


async def refused(client: Client) -> str:
    goodbye = await client.ended()
    await client.channel.close()
    return goodbye.code if goodbye is not None else "closed"


@pytest.mark.parametrize("door", ["memory", "quic"])
@pytest.mark.parametrize("when", ["before the proof", "after it"])
async def test_b3_links(node: Node, open_door: OpenDoor, door: str, when: str) -> None:
    for number, (what, raw) in enumerate(nasty.LINK.items(), 100):  # each another node's: one may not call so often
        peer = Peer(await open_door(door, wire.ALPN), number)
        await node.store.submit(ChangePeer(peer.node, "accepted", peer.name))
        await node.peers_changed()
        if when == "after it":
            await peer.greet()
        if len(raw) > 65_000 and when != "after it":
            raw = raw[:65_000]
        await peer.raw(raw)
        assert await peer.end() == "bad_frame", what
        await peer.channel.close()
    await works(node)


async def test_b3_links_over_tcp(node: Node) -> None:
    for number, (what, raw) in enumerate(nasty.LINK.items(), 100):
        peer = Peer(await dial_link(str(node.config.listen), 10.0, "a test"), number)
        await peer.greet()
        await peer.raw(raw[:60_000])  # of a stranger no frame is longer
        assert await peer.end() == "bad_frame", what
        await peer.channel.close()
    await works(node)


@pytest.mark.parametrize("door", ["memory", "quic", "msgpack", "json"])
@pytest.mark.parametrize("logged_in", [False, True], ids=["stranger", "user"])
async def test_b3_clients(node: Node, open_door: OpenDoor, door: str, logged_in: bool) -> None:
    frames = nasty.JSON if door == "json" else nasty.MSGPACK
    for what, raw in frames.items():
        _, token = await kit.device(node, "bob")
        client = await kit.client(await open_door(door), door == "json", token if logged_in else "")
        if isinstance(client.channel, QuicChannel) and len(raw) > 65_000 and not logged_in:
            raw = raw[:65_000]  # more of a stranger's does not even fit the window
        try:
            await client.channel.send(raw)
        except UnicodeDecodeError:  # what is no text cannot be sent as such by this client
            await client.channel.close()
            continue
        assert await refused(client) == "bad_frame", what
    await works(node)


async def test_b3_text_that_is_no_unicode_ends_a_websocket(node: Node) -> None:
    """RFC 6455 section 8.1: aiohttp ends the connection before anybody of ours sees it."""
    async with aiohttp.ClientSession(f"http://{node.config.listen}") as http:
        socket = await http.ws_connect("/v1/ws")
        await socket._writer.send_frame(b'{"t":"ping","id":1,"x":"\xff"}', aiohttp.WSMsgType.TEXT)
        message = await asyncio.wait_for(socket.receive(), WAIT_S)
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        assert socket.close_code == aiohttp.WSCloseCode.INVALID_TEXT
    await works(node)


@pytest.mark.parametrize("alpn", [wire.ALPN, api.ALPN])
@pytest.mark.parametrize("length", nasty.LENGTHS)
@pytest.mark.parametrize("trusted", [False, True])
async def test_b3_a_length_is_refused_before_anything_is_held(
    node: Node, open_door: OpenDoor, alpn: str, length: str, trusted: bool
) -> None:
    channel = await open_door("quic", alpn)
    assert isinstance(channel, QuicChannel)
    if alpn == wire.ALPN:
        await Peer(channel).offer()
    else:
        _, token = await kit.device(node, "bob")
        await kit.client(channel, token=token if trusted else "", feed=False)
    tracemalloc.start()
    channel._quic.send_stream_data(channel.stream_id, nasty.LENGTHS[length].to_bytes(4, "big") + bytes(1000))
    channel._connection.schedule()
    with pytest.raises(ChannelClosed, match="longer than"):
        await kit.drain(channel)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 << 20
    await works(node)


@pytest.mark.parametrize("length", nasty.LENGTHS)
async def test_b3_a_length_over_tcp_is_refused_before_anything_is_held(node: Node, length: str) -> None:
    channel = await dial_link(str(node.config.listen), 10.0, "a test")
    peer = Peer(channel)
    await peer.offer()
    await channel._socket.send_bytes(nasty.LENGTHS[length].to_bytes(4, "big") + b"x")
    assert await peer.end() == "closed"
    await channel.close()
    await works(node)


# --- B17: the wrong door ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpn", ["roost-node/2", "roost-client/0", "h3", "http/1.1", "ROOST-NODE/1"])
async def test_b17_another_protocol_has_no_handshake(node: Node, alpn: str) -> None:
    async with Dialer() as dialer:
        with pytest.raises(ChannelClosed):
            await dialer.dial(split_host_port(node.config.listen or ""), alpn, WAIT_S)
    assert not node.connections
    await works(node)


async def test_b17_a_clients_token_is_worth_nothing_at_the_nodes_door(node: Node, open_door: OpenDoor) -> None:
    _, token = await kit.device(node, "bob")
    for frame in (HELLO, api.Auth(1, token), api.Send(1, "k", "bob@a.test", b"x"), api.Ping(1)):
        peer = Peer(await open_door("quic", wire.ALPN))
        await peer.raw(coding.MSGPACK.encode(frame))
        assert await peer.end() == "bad_frame"
        await peer.channel.close()
        peer = Peer(await dial_link(str(node.config.listen), 10.0, "a test"))
        await peer.raw(coding.MSGPACK.encode(frame))
        assert await peer.end() == "bad_frame"
        await peer.channel.close()
    assert not node.sessions


@pytest.mark.parametrize("door", ["quic", "msgpack", "memory"])
async def test_b17_a_link_does_not_begin_at_the_clients_door(node: Node, open_door: OpenDoor, door: str) -> None:
    for begin in ([wire.Offer(1, 1, bytes(32))], [HELLO, wire.Offer(1, 1, bytes(32))], [HELLO, wire.Ping(1)]):
        channel = await open_door(door)
        for frame in begin:
            raw = coding.MSGPACK.encode(frame) if isinstance(frame, api.Hello) else wire.encode(frame)
            await channel.send(raw)
        assert await refused(Client(channel)) == "bad_frame"
    assert not node.service.links


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/ws/", "/v1/node/", "/v1/admin", "/admin.sock", "/v1/ws/.."])
async def test_b17_there_is_nothing_at_other_paths(node: Node, path: str) -> None:
    async with aiohttp.ClientSession(f"http://{node.config.listen}") as http:
        answer = await http.get(path, allow_redirects=False)
        assert answer.status == 404, path
        answer.release()


@pytest.mark.parametrize("path", ["/v1/ws", LINK_PATH, "/health"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
async def test_b17_nothing_is_posted(node: Node, path: str, method: str) -> None:
    async with aiohttp.ClientSession(f"http://{node.config.listen}") as http:
        answer = await http.request(method, path)
        assert answer.status == 405
        answer.release()


@pytest.mark.parametrize("origin", ["null", "http://evil.test", "https://a.test", "http://127.0.0.1"])
async def test_b17_no_page_opens_a_link(node: Node, origin: str) -> None:
    async with aiohttp.ClientSession(f"http://{node.config.listen}") as http:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await http.ws_connect(LINK_PATH, headers={"Origin": origin})
        assert refusal.value.status == 403


async def test_b17_nothing_is_compressed(node: Node) -> None:
    """Whoever asks for it does not get it, and a frame that says it is compressed ends the connection."""
    async with aiohttp.ClientSession(f"http://{node.config.listen}") as http:
        for path in ("/v1/ws", LINK_PATH):
            socket = await http.ws_connect(path, compress=15)
            assert not socket.compress
            socket._writer.compress = 15
            await socket._writer.send_frame(b"x" * 1000, aiohttp.WSMsgType.BINARY, compress=15)
            async with asyncio.timeout(WAIT_S):
                while (await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                    pass  # a node's offer
            assert socket.close_code == aiohttp.WSCloseCode.PROTOCOL_ERROR
            await socket.close()

"""Links and clients where UDP does not get through (PROTOCOL.md 5.10)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from federation import calls, wire
from federation.dialer import Dialer
from federation.ports import FRAME_BYTES_MAX, HELLO_BYTES_MAX, ChannelClosed
from federation.websocket import LINK_PATH, MESSAGE_BYTES_MAX, dial_link
from node import api, coding
from node.admin import call
from node.client import connect as dial_node
from node.errors import BusyPort
from node.gateway import websocket
from node.node import Node
from tests.node.helpers import WAIT_S, befriend, connect, free_port, listening, two_nodes


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No datagram leaves, as behind a firewall that drops UDP. (tests/e2e has the same in a network namespace.)"""
    monkeypatch.setattr(Dialer, "send_datagrams", lambda self, datagrams: None)
    monkeypatch.setattr(calls, "HEAD_START_S", 0.1)
    monkeypatch.setattr("node.client.channels.QUIC_S", 0.1)
    yield monkeypatch
    monkeypatch.undo()


async def transports(*nodes: Node) -> list[str]:
    """What each node's status says of its one link, once it is up: of two that met, one is closed again."""
    async with asyncio.timeout(WAIT_S):
        while True:
            for node in nodes:
                (peer,) = node.directory.peers
                await up(node, peer)
            found = [(await call(node.config, "status", {}))["peers"][0]["transport"] for node in nodes]
            if all(found):
                return found


async def up(node: Node, peer: bytes) -> None:
    """Wait for the link."""
    changed, tell = asyncio.Event(), node.host.light

    def light(*args: Any) -> None:
        tell(*args)
        changed.set()

    node.host.light = light
    async with asyncio.timeout(WAIT_S):
        while not (peer in node.service.links and node.service.links[peer].state.up):
            changed.clear()
            await changed.wait()
    node.host.light = tell


@contextlib.asynccontextmanager
async def everywhere(folder: Path) -> AsyncIterator[Node]:
    """A node that listens on all addresses, and so speaks TLS, reached on this machine."""
    async with contextlib.AsyncExitStack() as stack:
        while True:
            port = free_port()
            config = listening(folder, "c.test")
            config = msgspec.structs.replace(config, listen=f"0.0.0.0:{port}", advertise=(f"127.0.0.1:{port}",))
            with contextlib.suppress(BusyPort):  # it was free on one address, a moment ago
                node = await stack.enter_async_context(Node.open(config))
                break
        await node.create_user("carol", "pw")
        yield node


async def test_a_link_without_udp_carries_messages_and_says_why(tmp_path: Path, blocked: pytest.MonkeyPatch) -> None:
    async with two_nodes(tmp_path) as (a, b):
        await befriend(a, b)
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        sent = [await alice.send("bob@b.test", b"%d" % n) for n in range(300)]
        await bob.message(b"299")
        await alice.state(sent[-1].event, "delivered")
        assert [i.body for i in bob.items if isinstance(i, api.Message)] == [b"%d" % n for n in range(300)]
        kinds = sorted(await transports(a, b))
        assert kinds[0] in ("tcp (no answer over QUIC in 0.1 s)", "tcp (the last call had no answer over QUIC)")
        assert kinds[1] == f"tcp ({websocket.WHY_TCP})"


async def test_the_longest_frames_pass(tmp_path: Path, blocked: pytest.MonkeyPatch) -> None:
    async with two_nodes(tmp_path) as (a, b):
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        await call(a.config, "peer.add", {"link": str(b.link)})
        sent = [await alice.send("bob@b.test", bytes([n]) * api.BODY_BYTES_MAX) for n in range(40)]
        await call(b.config, "peer.add", {"link": str(a.link)})
        await bob.message(bytes([39]) * api.BODY_BYTES_MAX)
        await alice.state(sent[-1].event, "delivered")
        assert len([i for i in bob.items if isinstance(i, api.Message)]) == 40


async def test_a_link_comes_back_to_quic_with_its_next_call(tmp_path: Path, blocked: pytest.MonkeyPatch) -> None:
    a_config, b_config = listening(tmp_path, "a.test"), listening(tmp_path, "b.test")
    async with Node.open(a_config) as a:
        async with Node.open(b_config) as b:
            await befriend(a, b)
            assert {t.partition(" ")[0] for t in await transports(a, b)} == {"tcp"}
        blocked.undo()
        for time in ("HEAD_START_S", "GRACE_S"):
            blocked.setattr(calls, time, WAIT_S)  # of a busy machine
        async with Node.open(b_config) as b:
            assert await transports(a, b) == ["quic", "quic"]


async def test_a_node_that_speaks_tls_is_reached_on_its_own_machine(
    tmp_path: Path, blocked: pytest.MonkeyPatch
) -> None:
    async with Node.open(listening(tmp_path)) as a, everywhere(tmp_path) as c:
        await befriend(a, c)
        assert {t.partition(" ")[0] for t in await transports(a, c)} == {"tcp"}
        found = await dial_node(c.link)
        assert found.channel.binding.kind == "tcp"
        assert found.channel.binding.key_hash != bytes(32)
        assert "QUIC to 127.0.0.1" in found.channel.why
        await found.close()


# --- strangers at the door --------------------------------------------------------------------------------------------
@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node.open(listening(tmp_path)) as node:
        yield node


def address(node: Node) -> str:
    assert node.config.listen is not None
    return node.config.listen


async def test_no_page_may_open_a_link(node: Node) -> None:
    async with aiohttp.ClientSession(f"http://{address(node)}") as http:
        for header in (f"http://{address(node)}", "null", "http://evil.test"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(LINK_PATH, headers={"Origin": header})
            assert refused.value.status == 403


async def test_a_client_at_the_door_of_nodes_is_refused_and_the_reverse(node: Node) -> None:
    channel = await dial_link(address(node), WAIT_S, "")
    await channel.send(coding.MSGPACK.encode(api.Hello(1, 1, bytes(32))))
    goodbye = await _goodbye(channel)
    assert goodbye is not None
    assert goodbye.code == "bad_frame"
    await channel.close()
    async with aiohttp.ClientSession(f"http://{address(node)}") as http:
        socket = await http.ws_connect("/v1/ws")
        await socket.send_bytes(wire.encode(wire.Offer(1, 1, bytes(32))))
        answer = coding.MSGPACK.from_node((await socket.receive(WAIT_S)).data)
        assert isinstance(answer, api.Error)
        assert answer.code == "bad_frame"
        await socket.close()


async def _goodbye(channel: object) -> wire.Goodbye | None:
    """The last frame before the end."""
    last = None
    with contextlib.suppress(ChannelClosed):
        async with asyncio.timeout(WAIT_S):
            while frames := await channel.recv():  # type: ignore[attr-defined]
                last = wire.decode(frames[-1])
    return last if isinstance(last, wire.Goodbye) else None


@pytest.mark.parametrize("length", [HELLO_BYTES_MAX + 1, FRAME_BYTES_MAX + 1, 2**32 - 1])
async def test_a_stranger_announces_a_long_frame(node: Node, length: int) -> None:
    channel = await dial_link(address(node), WAIT_S, "")
    await channel._socket.send_bytes(length.to_bytes(4, "big") + bytes(100))
    assert await _goodbye(channel) is None
    assert channel._socket.closed
    await channel.close()


async def test_a_message_over_its_bound_or_of_text_ends_the_link(node: Node) -> None:
    for send in ("long", "text"):
        channel = await dial_link(address(node), WAIT_S, "")
        socket = channel._socket
        assert isinstance(socket, aiohttp.ClientWebSocketResponse)
        await (socket.send_bytes(bytes(MESSAGE_BYTES_MAX + 1)) if send == "long" else socket.send_str("offer"))
        async with asyncio.timeout(WAIT_S):
            while (await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                pass  # the node's own offer
        assert socket.closed
        await channel.close()


async def test_the_places_of_strangers_are_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "STRANGERS_PER_ORIGIN_MAX", 2)
    first, second = [await dial_link(address(node), WAIT_S, "") for _ in range(2)]
    with pytest.raises(ChannelClosed, match="503"):
        await dial_link(address(node), WAIT_S, "")
    await first.close()
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(ChannelClosed):
                third = await dial_link(address(node), WAIT_S, "")
                break
    for channel in (second, third):
        await channel.close()


async def test_an_answer_that_leads_elsewhere_is_not_followed(node: Node) -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.path)
        raise web.HTTPFound(f"http://{address(node)}{LINK_PATH}")

    app = web.Application()
    app.router.add_get("/{any:.*}", elsewhere)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    with pytest.raises(ChannelClosed, match="elsewhere"):
        await dial_link(f"127.0.0.1:{runner.addresses[0][1]}", WAIT_S, "")
    assert asked == [LINK_PATH]
    await runner.cleanup()


async def test_a_hint_leads_no_further_over_tcp_than_over_quic(node: Node) -> None:
    host, _, port = address(node).rpartition(":")
    for place in (host, "localhost"):
        with pytest.raises(ChannelClosed, match="may not lead there"):
            await dial_link(f"{place}:{port}", WAIT_S, "", "private")
        await (await dial_link(f"{place}:{port}", WAIT_S, "", "loopback")).close()

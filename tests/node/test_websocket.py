"""The WebSocket door, as a browser and a bot use it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from federation.identity import split_host_port
from federation.ports import Binding, ChannelClosed
from node import api, coding
from node.api import ApiError
from node.gateway import websocket
from node.node import Node
from tests.node.helpers import WAIT_S, Client, Socket, listening


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node.open(listening(tmp_path)) as node:
        for name in ("alice", "ann"):
            await node.create_user(name, "pw")
        yield node


@pytest.fixture
async def http(node: Node) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://{node.config.listen}") as session:
        yield session


async def dial(http: aiohttp.ClientSession, text: bool) -> Client:
    socket = await http.ws_connect("/v1/ws")
    return await Client(Socket(socket, text), coding.JSON if text else coding.MSGPACK).hello()


@pytest.mark.parametrize("text", [True, False], ids=["json", "msgpack"])
async def test_login_send_and_feed(node: Node, http: aiohttp.ClientSession, text: bool) -> None:
    alice, ann = await dial(http, text), await dial(http, not text)
    assert alice.welcome.name == "a.test"
    for client, user in ((alice, "alice"), (ann, "ann")):
        await client.login(user)
        assert (await client.auth()).address == f"{user}@a.test"
    body = bytes(range(256))
    sent = await alice.send("ann@a.test", body)
    assert (await ann.message(body)).event == sent.event
    await alice.state(sent.event, "delivered")
    with pytest.raises(ApiError) as refused:
        await alice.send("nobody@a.test", b"x")
    assert refused.value.code == "unknown_user"
    for client in (alice, ann):
        await client.channel.close()


@pytest.mark.parametrize("text", [True, False], ids=["json", "msgpack"])
async def test_nonsense_ends_the_connection_with_a_reason(node: Node, http: aiohttp.ClientSession, text: bool) -> None:
    client = await dial(http, text)
    await client.channel.send(b'{"t": "no such frame"}')
    goodbye = await client.ended()
    assert goodbye is not None
    assert goodbye.code == "bad_frame"
    client = await Client(Socket(await http.ws_connect("/v1/ws"), text), client.codec).hello()  # the node goes on
    assert await client.ask(api.Ping) == api.Done()
    await client.channel.close()


async def test_the_first_frame_must_be_hello(node: Node, http: aiohttp.ClientSession) -> None:
    client = Client(Socket(await http.ws_connect("/v1/ws"), True), coding.JSON)
    await client.tell(api.Ping(1))
    goodbye = await client.ended()
    assert goodbye is not None
    assert goodbye.code == "bad_frame"
    client = Client(Socket(await http.ws_connect("/v1/ws"), True), coding.JSON)
    await client.tell(api.Hello(2, 9, b"n" * 32))
    goodbye = await client.ended()
    assert goodbye is not None
    assert goodbye.code == "bad_version"


@pytest.mark.parametrize("text", [True, False], ids=["json", "msgpack"])
async def test_the_longest_message_is_within_the_limit(node: Node, http: aiohttp.ClientSession, text: bool) -> None:
    alice = await dial(http, text)
    await alice.login("alice")
    await alice.auth()
    await alice.send("alice@a.test", bytes(api.BODY_BYTES_MAX), "k" * 64)
    await alice.channel.close()


async def test_a_frame_over_the_limit_ends_the_connection(node: Node, http: aiohttp.ClientSession) -> None:
    client = await dial(http, True)
    await client.channel.send(b" " * (api.CLIENT_FRAME_BYTES_MAX + 1))
    assert await client.ended() is None
    assert client.channel.socket.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG  # type: ignore[attr-defined]
    assert (await http.get("/health")).status == 200


async def test_b19_a_name_that_was_made_to_point_here_is_no_page_of_ours(
    node: Node, http: aiohttp.ClientSession
) -> None:
    """DNS rebinding: the browser believes the page and this node to be one site, and says so in Host and Origin."""
    port = str(node.config.listen).rpartition(":")[2]
    for name in ("evil.test", "127.0.0.1.evil.test", "localhost"):
        headers = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"}
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect("/v1/ws", headers=headers)
        assert refused.value.status == 403


@pytest.mark.parametrize(
    ("origin", "good"),
    [
        ("https://a.test", True),
        ("https://a.test.evil.test", False),
        ("ftp://{host}", False),
        ("{host}", False),
        ("http://evil.test", False),
        ("null", False),
        ("http://127.0.0.1", False),
        ("http://{host}.evil.test", False),
        ("http://{host}", True),
    ],
)
async def test_only_pages_of_this_site_may_connect(
    node: Node, http: aiohttp.ClientSession, origin: str, good: bool
) -> None:
    headers = {"Origin": origin.format(host=node.config.listen)}
    if good:
        await (await http.ws_connect("/v1/ws", headers=headers)).close()
        return
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await http.ws_connect("/v1/ws", headers=headers)
    assert refused.value.status == 403


async def test_health(node: Node, http: aiohttp.ClientSession) -> None:
    async with http.get("/health") as answer:
        assert (answer.status, await answer.json()) == (200, {"ok": True, "name": "a.test"})
    node._fail(RuntimeError("made up"))
    async with http.get("/health") as answer:
        assert answer.status == 503


async def test_a_node_that_stops_closes_its_sockets(tmp_path: Path) -> None:
    settings = listening(tmp_path)
    async with aiohttp.ClientSession(f"http://{settings.listen}") as http:
        async with asyncio.timeout(20), Node.open(settings):
            client = await dial(http, True)
        await client.ended()


@pytest.mark.parametrize("raw", [b"GET /v1/ws HTTP/1.1\r\n\r\n", b"\x00\xff" * 50, b"A" * 100_000])
async def test_what_is_no_http_is_answered_and_not_in_the_log(
    node: Node, caplog: pytest.LogCaptureFixture, raw: bytes
) -> None:
    assert node.config.listen_at is not None
    reader, writer = await asyncio.open_connection(*node.config.listen_at)
    async with asyncio.timeout(20):
        writer.write(raw)
        assert b"400 Bad Request" in await reader.readline()
    writer.close()
    assert caplog.text == ""


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
async def tcp(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[bytes], Awaitable[asyncio.StreamReader]]]:
    """A way to open a connection to the port and say something; with TLS even the handshake is not finished."""
    if request.param:
        monkeypatch.setattr("node.gateway.websocket.is_loopback", lambda host: False)
    writers: list[asyncio.StreamWriter] = []
    async with Node.open(listening(tmp_path)) as node:

        async def knock(said: bytes) -> asyncio.StreamReader:
            assert node.config.listen is not None
            reader, writer = await asyncio.open_connection(*split_host_port(node.config.listen))
            writers.append(writer)
            writer.write(said)
            return reader

        yield knock
        for writer in writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def ended(reader: asyncio.StreamReader) -> bool:
    with suppress(ConnectionError):
        async with asyncio.timeout(WAIT_S):
            assert await reader.read() == b""
    return True


@pytest.mark.parametrize("said", [b"", b"GET /health HTTP/1.1\r\nHost: a.test\r\nX-Slow: "], ids=["nothing", "some"])
async def test_a_connection_that_finishes_no_request_is_closed(
    tcp: Callable[[bytes], Awaitable[asyncio.StreamReader]], monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("node.gateway.websocket.HALF_OPEN_S", 0.1)
    assert await ended(await tcp(said))


async def test_connections_without_a_request_are_few_and_the_oldest_go_first(
    tcp: Callable[[bytes], Awaitable[asyncio.StreamReader]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.gateway.websocket.HALF_OPEN_MAX", 3)
    readers = [await tcp(b"") for _ in range(8)]
    for reader in readers[:5]:
        assert await ended(reader)
    assert not any(reader.at_eof() for reader in readers[5:])


async def test_slow_connections_keep_nobody_out(
    node: Node, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.gateway.websocket.HALF_OPEN_MAX", 2)
    clients = [await dial(http, False) for _ in range(4)]  # their requests are there: they are not counted
    for _ in range(4):
        _, writer = await asyncio.open_connection(*split_host_port(node.config.listen or ""))
        assert (await http.get("/health")).status == 200
        writer.close()
    for client in clients:
        assert await client.ask(api.Ping) == api.Done()
        await client.channel.close()


async def test_a_connection_takes_one_request(node: Node) -> None:
    reader, writer = await asyncio.open_connection(*split_host_port(node.config.listen or ""))
    writer.write(b"GET /health HTTP/1.1\r\nHost: a.test\r\n\r\n")
    async with asyncio.timeout(WAIT_S):
        assert b"Connection: close" in await reader.read()
    writer.close()


class Slow:
    """A socket whose client takes so many bytes between two looks at it."""

    def __init__(self, takes: int) -> None:
        self.left, self.takes = 0, takes
        self.taken = asyncio.Event()

    async def send_bytes(self, data: bytes) -> None:
        self.left += len(data)
        self.taken.clear()
        await self.taken.wait()

    def get_write_buffer_size(self) -> int:
        self.left = max(0, self.left - self.takes)
        if not self.left:
            self.taken.set()
        return self.left


@pytest.mark.parametrize("takes", [1, 0])
async def test_a_client_that_takes_a_little_is_not_dropped_in_the_middle_of_a_frame(
    monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    """On a line of 64 kbit/s one page takes longer than any deadline, and would be begun again for ever."""
    monkeypatch.setattr(websocket, "SEND_DEADLINE_S", 0.01)
    slow: Any = Slow(takes)
    channel = websocket.WebSocketChannel(slow, Binding("tcp", bytes(32), b""), "test", slow)
    async with asyncio.timeout(WAIT_S):
        if takes:
            await channel.send(bytes(10), bytes(20), bytes(5))
            return
        with pytest.raises(ChannelClosed, match="does not take data"):
            await channel.send(bytes(20))

"""B15: whoever takes all the time there is. Every deadline is total, and small here; nothing sleeps.

TLS that is not finished and requests that are not, one byte at a time or none, are in tests/node/test_websocket.py.
A client's WebSocket message that comes in fragments for ever holds its sender's own place and at most 128 KiB; before a
login its connection ends as below.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from federation import framing, wire
from federation.endpoint import Endpoint, TlsIdentity
from federation.framing import Cutter
from federation.ports import ChannelClosed
from federation.quic import QuicChannel
from federation.websocket import dial_link
from node import api, coding
from node.node import Node
from tests.evil import kit
from tests.evil.kit import Peer
from tests.node.helpers import NONCE, WAIT_S, listening

TLS = TlsIdentity.generate()
HELLO = coding.MSGPACK.encode(api.Hello(1, 1, NONCE))


def trickle(channel: QuicChannel, data: bytes) -> None:
    """Bytes of the stream, whatever they are worth as frames, each in a packet of its own."""
    for byte in data:
        channel._quic.send_stream_data(channel.stream_id, bytes([byte]))
        channel._connection._transmit()


def test_b15_a_long_frame_may_take_longer() -> None:
    """A thin line of 64 kbit/s needs two minutes for the longest one: that is no attack."""
    cutter = Cutter()
    cutter.feed(b"\x00")
    assert cutter.seconds == framing.FRAME_S == 60.0
    cutter.feed((1 << 20).to_bytes(4, "big")[1:])
    assert 64_000 / 8 * cutter.seconds > 2 * (1 << 20)
    cutter = Cutter()
    cutter.feed(b"\xff" * 4)
    assert cutter.seconds < 600


@pytest.fixture
async def inbox() -> AsyncIterator[tuple[Endpoint, "asyncio.Queue[QuicChannel]"]]:
    """An endpoint whose connections are looked at all the time; channels wait until somebody takes them."""
    queue: asyncio.Queue[QuicChannel] = asyncio.Queue()
    over = asyncio.Event()

    async def accept(alpn: str, channel: QuicChannel) -> None:
        channel.trust()
        await queue.put(channel)
        await over.wait()

    endpoint = await Endpoint.open("127.0.0.1", 0, TLS, accept, idle_s=0.35)
    yield endpoint, queue
    over.set()
    await endpoint.close()


@pytest.mark.parametrize("said", [b"\x00", b"\x00\x00\x10\x00", b"\x00\x00\x10\x00" + b"x" * 100], ids=len)
async def test_b15_a_pause_inside_a_frame_ends_the_connection(
    inbox: tuple[Endpoint, "asyncio.Queue[QuicChannel]"], monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(framing, "FRAME_S", 0.1)
    monkeypatch.setattr(framing, "FRAME_BYTES_PER_S", 1 << 30)
    endpoint, queue = inbox
    from federation.dialer import Dialer

    async with Dialer() as dialer:
        here = await dialer.dial(("127.0.0.1", endpoint.port), wire.ALPN)
        await here.send(b"whole")
        there = await queue.get()
        assert await there.recv() == [b"whole"]
        trickle(here, said)
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(ChannelClosed, match="too long to arrive"):
                await there.recv()


async def test_b15_a_reader_that_pauses_is_not_held_against_the_sender(
    inbox: tuple[Endpoint, "asyncio.Queue[QuicChannel]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is silence between frames. The clock of a frame runs only while somebody waits for it."""
    endpoint, queue = inbox
    from federation.dialer import Dialer

    async with Dialer() as dialer:
        here = await dialer.dial(("127.0.0.1", endpoint.port), wire.ALPN)
        await here.send(b"whole")
        there = await queue.get()
        assert await there.recv() == [b"whole"]
        looks, now = [], there._connection.now

        def look() -> None:
            looks.append(now())
            QuicChannel.look(there)

        monkeypatch.setattr(there, "look", look)
        monkeypatch.setattr(framing, "FRAME_S", 0.0)
        trickle(here, b"\x00\x00\x00")
        async with asyncio.timeout(WAIT_S):
            while there._fed_bytes < 9 + 3 or len(looks) < 3:  # nobody reads meanwhile
                await asyncio.get_running_loop().run_in_executor(None, lambda: None)
        monkeypatch.setattr(framing, "FRAME_S", 60.0)
        trickle(here, b"\x02ok")
        async with asyncio.timeout(WAIT_S):
            assert await there.recv() == [b"ok"]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node.open(listening(tmp_path)) as node:
        await node.create_user("bob")
        yield node


async def test_b15_a_pause_inside_a_frame_ends_a_link_over_tcp(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "FRAME_S", 0.1)
    monkeypatch.setattr(framing, "FRAME_BYTES_PER_S", 1 << 30)
    channel = await dial_link(str(node.config.listen), 10.0, "a test")
    peer = await Peer(channel).greet()
    assert peer.standing.state == "pending"
    for byte in b"\x00\x00\x01\x00xxxx":
        await channel._socket.send_bytes(bytes([byte]))
    with pytest.raises(ChannelClosed):
        await peer.until(wire.Goodbye)
    await channel.close()


Say = Callable[[Any], None]


@pytest.mark.parametrize("door", ["memory", "quic", "msgpack", "json"])
async def test_b15_a_client_that_says_no_hello_goes(node: Node, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.session.HELLO_DEADLINE_S", 0.1)
    async with kit.served(node) as open_door:
        channel = await open_door(door)
        if isinstance(channel, QuicChannel):
            trickle(channel, (len(HELLO).to_bytes(4, "big") + HELLO)[:-1])  # all but the last byte
        said = []
        async with asyncio.timeout(WAIT_S):
            with suppress(ChannelClosed, AssertionError):  # without a hello it is told in MessagePack
                while frames := await channel.recv():
                    said += frames
            await channel.close()
            while node.connections:
                await asyncio.get_running_loop().run_in_executor(None, lambda: None)
        assert door == "json" or [coding.MSGPACK.from_node(raw).code for raw in said] == ["too_slow"]  # type: ignore


@pytest.mark.parametrize("door", ["memory", "quic"])
@pytest.mark.parametrize("steps", [0, 1], ids=["nothing", "an offer"])
async def test_b15_a_peer_that_proves_nothing_goes(
    node: Node, door: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("federation.link.HELLO_DEADLINE_MS", 100)
    async with kit.served(node) as open_door:
        channel = await open_door(door, wire.ALPN)
        peer = Peer(channel)
        if steps:
            await peer.offer()
        elif isinstance(channel, QuicChannel):
            trickle(channel, b"\x00")
        assert await peer.end() == "closed"


async def test_b15_one_byte_at_a_time_is_only_slow(node: Node) -> None:
    """What is within its time is served like anything else."""
    async with kit.served(node) as open_door:
        channel = await open_door("quic")
        assert isinstance(channel, QuicChannel)
        trickle(channel, len(HELLO).to_bytes(4, "big") + HELLO)
        async with asyncio.timeout(WAIT_S):
            (welcome,) = await channel.recv()
        assert isinstance(coding.MSGPACK.from_node(welcome), api.Welcome)
        await channel.close()

"""Strangers on the UDP port: floods of handshakes, and datagrams of connections that nobody knows any more."""

import asyncio
import contextlib
import gc
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator, Iterator

import pytest
from aioquic.quic.connection import QuicConnection

from federation import endpoint as module
from federation.credit import configuration, reset_token
from federation.dialer import RESET_BYTES_MIN, Dialer
from federation.endpoint import Endpoint
from federation.ports import ChannelClosed
from federation.quic import QuicChannel
from tests.federation.test_quic import CLIENT, NODE, TLS, WAIT_S, Inbox, listening, receive

KEY = b"r" * 32


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was killed acknowledges no goodbye: nobody needs to wait for it here."""
    monkeypatch.setattr("federation.quic.DRAIN_S", 0.05)


@contextlib.contextmanager
def stranger(host: str, port: int) -> Iterator[socket.socket]:
    """A bare socket at an address of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        yield sock


def initials(count: int) -> list[bytes]:
    """First packets of as many real handshakes."""
    made = []
    for _ in range(count):
        quic = QuicConnection(configuration=configuration(is_client=True, alpns=[NODE], idle_s=60))
        quic.connect(("127.0.0.1", 1), now=0.0)
        made.append(quic.datagrams_to_send(now=0.0)[0][0])
    return made


async def flood(sock: socket.socket, datagrams: list[bytes], endpoint: Endpoint) -> None:
    """Send them all and wait until the endpoint has read them (the kernel drops none: they are paced by that)."""
    expected = endpoint.bytes_received
    for start in range(0, len(datagrams), 50):
        for data in datagrams[start : start + 50]:
            sock.send(data)
            expected += len(data)
        async with asyncio.timeout(WAIT_S):
            while endpoint.bytes_received < expected:  # noqa: ASYNC110
                await asyncio.sleep(0)
        with contextlib.suppress(BlockingIOError):
            while sock.recv(2048):
                pass


async def talk(endpoint: Endpoint, inbox: Inbox) -> QuicChannel:
    """A login in the midst of it."""
    async with Dialer() as dialer:
        async with asyncio.timeout(2.0):
            channel = await dialer.dial(("127.0.0.1", endpoint.port), CLIENT)
            await channel.send(b"hello")
            there = await inbox.next()
            assert await receive(there, 1) == [b"hello"]
        return channel


async def test_a_flood_of_handshakes_costs_a_bounded_place_and_nobody_their_login() -> None:
    inbox, knocks = Inbox(), initials(2000)
    async with listening(inbox) as endpoint:
        await talk(endpoint, inbox)  # what is loaded once is loaded
        with stranger("127.0.0.2", endpoint.port) as sock:
            await flood(sock, knocks[:200], endpoint)
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            await flood(sock, knocks[200:], endpoint)
            await talk(endpoint, inbox)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
        counters = endpoint.counters
        assert counters.half_open == module.RETRY_ABOVE + 1
        assert counters.retried >= 1800
        assert counters.bytes_sent < counters.bytes_received  # no amplifier
        assert grown < 1 << 20
        for connection in list(endpoint._half_open):  # their time is over
            endpoint._expire(connection)
        assert endpoint.counters.half_open == 0
        assert not endpoint._live or len(endpoint._live) <= 2  # the two that talked
        inbox.over.set()


async def test_noise_like_a_handshake_is_asked_for_its_address() -> None:
    inbox = Inbox()
    async with listening(inbox) as endpoint:
        with stranger("127.0.0.2", endpoint.port) as sock:
            noise = [
                b"\xc0\x00\x00\x00\x01\x08" + os.urandom(8) + b"\x00\x00\x44\x9e" + os.urandom(1182)
                for _ in range(1000)
            ]
            await flood(sock, noise, endpoint)
        assert endpoint.counters.retried > 500
        assert endpoint.counters.half_open == 0
        await talk(endpoint, inbox)
        inbox.over.set()


async def test_one_address_cannot_take_the_places_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_ABOVE", -1)
    monkeypatch.setattr(module, "HALF_OPEN_PER_ORIGIN_MAX", 3)
    inbox = Inbox()
    async with listening(inbox) as endpoint, Dialer() as greedy, Dialer() as other:
        where = ("127.0.0.1", endpoint.port)
        greedy._open(socket.AF_INET)
        monkeypatch.setattr(module, "origin", lambda remote: b"greedy" if remote == mine else b"other")
        mine = f"127.0.0.1:{greedy._sockets[socket.AF_INET].getsockname()[1]}"
        silent = [await greedy.dial(where, NODE) for _ in range(3)]
        with pytest.raises(ChannelClosed, match="no answer"):
            await greedy.dial(where, NODE, timeout=0.3)
        assert endpoint.counters.refused == endpoint.counters.crowded > 0
        channel = await other.dial(where, NODE)
        await channel.send(b"x")
        assert await receive(await inbox.next(), 1) == [b"x"]
        await silent[0].close()
        async with asyncio.timeout(WAIT_S):
            while len(endpoint._proved) > 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
        await greedy.dial(where, NODE)
        inbox.over.set()


# --- stateless reset --------------------------------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def restarted(key: bytes) -> AsyncIterator[tuple[QuicChannel, Endpoint]]:
    """A client's channel, and the endpoint that took the place of the killed one it was connected to."""
    inbox = Inbox()
    first = await Endpoint.open("127.0.0.1", 0, TLS, inbox, reset_key=KEY)
    async with Dialer() as dialer:
        channel = await dialer.dial(("127.0.0.1", first.port), NODE)
        await channel.send(b"hello")
        assert await receive(await inbox.next(), 1) == [b"hello"]
        port = first.port
        for sock in first._sockets.values():  # killed: not a word to anybody
            first._loop.remove_reader(sock)
            sock.close()
        first._sockets.clear()
        second = await Endpoint.open("127.0.0.1", port, TLS, inbox, reset_key=key)
        yield channel, second
        await second.close()
    inbox.over.set()
    await first.close()


async def test_a_peer_of_a_killed_node_learns_it_from_its_next_word() -> None:
    async with restarted(KEY) as (channel, second):
        await channel.send(b"are you there?")
        with pytest.raises(ChannelClosed, match="restarted"):
            async with asyncio.timeout(WAIT_S):
                await channel.recv()
        assert second.counters.resets == 1
        assert second.counters.bytes_sent < second.counters.bytes_received


async def test_a_reason_that_was_said_is_not_lost_to_a_reset() -> None:
    inbox = Inbox()
    async with listening(inbox) as endpoint, Dialer() as dialer:
        channel = await dialer.dial(("127.0.0.1", endpoint.port), NODE)
        await channel.send(b"hello")
        there = await inbox.next()
        there._connection.close("for a reason")
        await channel.send(b"still talking")
        channel._connection._transmit()  # at once: the goodbye and the reset that answers this come together
        with pytest.raises(ChannelClosed, match="for a reason"):
            await channel.recv()
        inbox.over.set()


async def test_who_has_not_the_key_ends_nothing() -> None:
    async with restarted(b"x" * 32) as (channel, second):
        await channel.send(b"are you there?")
        async with asyncio.timeout(WAIT_S):
            while not second.counters.resets:  # noqa: ASYNC110
                await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        assert channel._connection.closed is None


async def test_a_reset_from_elsewhere_is_nothing() -> None:
    inbox = Inbox()
    async with listening(inbox, reset_key=KEY) as endpoint, Dialer() as dialer:
        channel = await dialer.dial(("127.0.0.1", endpoint.port), NODE)
        await channel.send(b"hello")
        there = await inbox.next()
        token = channel._connection.quic.reset_token
        assert token == reset_token(KEY, there._connection.quic.host_cid)
        with stranger("127.0.0.2", dialer._sockets[socket.AF_INET].getsockname()[1]) as sock:
            sock.send(b"\x40" + os.urandom(30) + token)
        await channel.send(b"more")
        assert await receive(there, 2) == [b"hello", b"more"]
        dialer.stray(b"\x40" + os.urandom(30) + token, ("127.0.0.1", endpoint.port))
        with pytest.raises(ChannelClosed, match="restarted"):
            await channel.recv()
        inbox.over.set()


async def test_resets_are_shorter_than_what_they_answer_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESETS_PER_S_MAX", 5)
    sent: list[int] = []
    async with listening(Inbox()) as endpoint:
        monkeypatch.setattr(endpoint, "send_datagrams", lambda many: sent.extend(len(data) for data, _ in many))
        monkeypatch.setattr(endpoint._loop, "time", lambda: 1000.5)
        where = ("127.0.0.1", 9)
        for size in range(RESET_BYTES_MIN + 1):
            endpoint.stray(b"\x40" + bytes(max(0, size - 1)), where)
        assert sent == []  # an answer would not be shorter
        endpoint.stray(b"\x40" + bytes(RESET_BYTES_MIN), where)
        endpoint.stray(b"\x00" + bytes(1200), where)  # not QUIC
        endpoint.stray(b"\x40\x01" + bytes(1200), where)  # another worker's
        for _ in range(50):
            endpoint.stray(b"\x40" + bytes(1200), where)
        assert sent == [RESET_BYTES_MIN, *[module.RESET_BYTES_MAX] * 4]
        assert (endpoint.counters.resets, endpoint.counters.resets_refused) == (5, 46)


async def test_two_who_answer_each_other_stop() -> None:
    async with listening(Inbox()) as one, listening(Inbox()) as other:
        rounds = 0

        def answers(data: bytes, to: Endpoint) -> bytes:
            said: list[bytes] = []
            to.send_datagrams = lambda many: said.extend(d for d, _ in many)  # type: ignore[method-assign]
            to.stray(data[:1] + b"\x00" + data[2:], ("127.0.0.1", 9))
            return said[0] if said else b""

        data, ends = b"\x40" + bytes(1200), [one, other]
        while data := answers(data, ends[rounds % 2]):
            rounds += 1
        assert 0 < rounds <= module.RESET_BYTES_MAX - RESET_BYTES_MIN + 1

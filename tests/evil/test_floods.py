"""B13, B14, B16: what a stranger or a peer can make us hold or do below any frame.

Handshakes in numbers, Retry and the share of one address are in tests/federation/test_flood.py.
"""

import asyncio
import gc
import random
import tracemalloc
from typing import Any

import pytest
from aioquic.quic.connection import QuicConnection

from federation.credit import CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, STREAMS_MAX, configuration
from federation.dialer import Dialer
from federation.ports import HELLO_BYTES_MAX
from federation.quic import QuicChannel
from tests.federation.test_quic import NODE, WAIT_S, Inbox, Wire, listening, pair, receive

HELD_BYTES_MAX = 8 << 20
STREAMS = 1500


def held(quic: Any) -> int:
    """Bytes of streams that the connection keeps for somebody to read."""
    return sum(len(stream.receiver._buffer) for stream in quic._streams.values())


def sparse(channel: QuicChannel, stream_id: int, offset: int) -> None:
    """One byte at an offset, with nothing before it: whoever takes it allocates all of the gap."""
    quic = channel._quic
    quic.send_stream_data(stream_id, b"")
    sender = quic._streams[stream_id].sender
    sender._buffer_start = sender._buffer_stop = offset
    sender.write(b"x")
    sender.highest_offset = offset
    channel._connection.schedule()


def test_b14_sparse_bytes_of_a_trusted_peer_hold_no_more_than_its_window() -> None:
    wire = Wire()
    wire.server.trust()
    wire.client.send_stream_data(0, b"x")
    wire.run(20)
    most = 0
    for turn in range(4):
        for number in range(STREAMS_MAX):
            stream = wire.client._streams.get(4 * number)
            limit = stream.max_stream_data_remote if stream is not None else 64 << 10
            wire.write_sparse(4 * number, min(limit, STREAM_WINDOW_BYTES * (turn + 1)) - 1)
            most = max(most, wire.held())
    assert 64 << 10 < most <= CONNECTION_WINDOW_BYTES < HELD_BYTES_MAX


def test_b14_beyond_the_window_a_trusted_peer_is_cut_off() -> None:
    wire = Wire()
    wire.server.trust()
    wire.client.send_stream_data(0, b"x")
    wire.run(20)
    wire.client._streams[0].max_stream_data_remote = wire.client._remote_max_data = 1 << 40
    wire.write_sparse(0, CONNECTION_WINDOW_BYTES + 1)
    assert wire.server.ending is not None
    assert wire.held() <= CONNECTION_WINDOW_BYTES


@pytest.mark.parametrize("trusted", [False, True])
async def test_b14_sparse_bytes_on_streams_that_nobody_reads_end_the_connection(trusted: bool) -> None:
    """Other streams than the first are refused; what is spent on them in their gaps comes out of the same window."""
    async with pair(trusted) as (here, there):
        edge, most, tried = (STREAM_WINDOW_BYTES if trusted else HELLO_BYTES_MAX) - 1, 0, 0
        for stream_id in range(4, 4 * 400, 4):
            if here._connection.closed is not None:
                break
            sparse(here, stream_id, edge)
            tried += 1
            for _ in range(30):
                await asyncio.sleep(0)
                most = max(most, held(there._quic))
        assert there._connection.closed is not None
        assert tried > 1
        assert edge < most <= CONNECTION_WINDOW_BYTES < HELD_BYTES_MAX


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("fair", [True, False], ids=["within the limits", "beyond them"])
async def test_b16_floods_of_streams_leave_nothing(fair: bool, reset: bool) -> None:
    """Never more of them than the limit, reset or not, and none is remembered. Who takes more than that is cut off."""
    async with pair() as (here, there):
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        most, turns = 0, 0
        stream_id = 4
        if not fair:
            here._quic._remote_max_streams_bidi = 1 << 20
        while stream_id < 4 * STREAMS and turns < 20 * STREAMS and here._connection.closed is None:
            turns += 1
            await asyncio.sleep(0)
            most = max(most, len(there._quic._streams))
            if fair and stream_id // 4 >= here._quic._remote_max_streams_bidi:
                continue
            # One after the other each is over before the next: who breaks the limit opens more at once.
            for _ in range(1 if fair else STREAMS_MAX + 1):
                here._quic.send_stream_data(stream_id, b"x" * 100)
                if reset:
                    here._quic.reset_stream(stream_id, 1)
                stream_id += 4
            here._connection.schedule()
        assert 2 < most <= STREAMS_MAX
        assert len(there._quic._consumed) <= STREAMS_MAX
        if fair:
            await here.send(b"still here")
            assert await receive(there, 1) == [b"still here"]
        else:
            for _ in range(10_000):  # what was sent last may still be on its way
                if there._connection.closed is None:
                    await asyncio.sleep(0)
            assert there._connection.closed is not None
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert after - before < 4 << 20


def mutations(seed: int, count: int) -> list[bytes]:
    """Captured first flights with bits changed, bytes cut, versions that do not exist, tokens that nobody gave."""
    chance = random.Random(seed)
    made: list[bytes] = []
    captures: list[bytes] = []
    for _ in range(4):
        quic = QuicConnection(configuration=configuration(is_client=True, alpns=[NODE], idle_s=60))
        quic.connect(("127.0.0.1", 1), now=0.0)
        captures += [data for data, _ in quic.datagrams_to_send(now=0.0)]
    for _ in range(count):
        data = bytearray(chance.choice(captures))
        kind = chance.randrange(6)
        if kind == 0:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data = data[: chance.randrange(len(data))]
        elif kind == 2:
            data[1:5] = chance.randbytes(4)
        elif kind == 3:
            data[chance.randrange(40)] = chance.randrange(256)
        elif kind == 4:
            data[5:23] = chance.randbytes(18)
        else:
            data = bytearray(bytes([0xC0 | chance.randrange(64)]) + b"\x00\x00\x00\x01" + chance.randbytes(1195))
        made.append(bytes(data))
    return made


async def test_b13_mutated_captures_and_tiny_datagrams_do_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    inbox = Inbox()
    async with listening(inbox) as endpoint, Dialer() as dialer:
        import socket

        tracemalloc.start()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
            noise.connect(("127.0.0.1", endpoint.port))
            noise.setblocking(False)
            expected = endpoint.bytes_received
            chance = random.Random(1)
            tiny = [chance.randbytes(chance.randrange(1, 60)) for _ in range(20_000)]
            every = [*mutations(2, 1500), *tiny]
            for start in range(0, len(every), 50):
                for data in every[start : start + 50]:
                    noise.send(data)
                    expected += len(data)
                async with asyncio.timeout(WAIT_S):
                    while endpoint.bytes_received < expected:  # noqa: ASYNC110
                        await asyncio.sleep(0)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert after - before < 16 << 20
        channel = await dialer.dial(("127.0.0.1", endpoint.port), NODE)
        await channel.send(b"hello")
        assert await (await inbox.next()).recv() == [b"hello"]
        inbox.over.set()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []

"""The QUIC layer: framing, back-pressure, bounds against strangers, binding, clean and unclean ends."""

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aioquic import tls
from aioquic.quic import events
from aioquic.quic.packet import QuicStreamFrame

from federation import endpoint as endpoint_module
from federation.credit import GAPS_MAX, STREAM_WINDOW_BYTES, STREAMS_MAX, NodeQuic, configuration
from federation.dialer import Dialer
from federation.endpoint import Endpoint, TlsIdentity
from federation.ports import FRAME_BYTES_MAX, HELLO_BYTES_MAX, ChannelClosed
from federation.quic import BACKLOG_BYTES_MAX, QuicChannel
from federation.websocket import dial_link

NODE, CLIENT = "roost-node/1", "roost-client/1"
TLS = TlsIdentity.generate()
WAIT_S = 20.0  # no test waits this long unless something is broken


class Inbox:
    """An accept function that keeps each channel open until the test is over."""

    def __init__(self) -> None:
        self.channels: asyncio.Queue[tuple[str, QuicChannel]] = asyncio.Queue()
        self.over = asyncio.Event()

    async def __call__(self, alpn: str, channel: QuicChannel) -> None:
        await self.channels.put((alpn, channel))
        await self.over.wait()

    async def next(self) -> QuicChannel:
        return (await asyncio.wait_for(self.channels.get(), WAIT_S))[1]


@contextlib.asynccontextmanager
async def listening(
    accept: Callable[[str, QuicChannel], Awaitable[None]], host: str = "127.0.0.1", **options: object
) -> AsyncIterator[Endpoint]:
    endpoint = await Endpoint.open(host, 0, TLS, accept, **options)  # type: ignore[arg-type]
    try:
        yield endpoint
    finally:
        await endpoint.close()


@contextlib.asynccontextmanager
async def pair(trusted: bool = True) -> AsyncIterator[tuple[QuicChannel, QuicChannel]]:
    """A dialled and an accepted channel, after one frame from the dialler."""
    inbox = Inbox()
    async with listening(inbox) as endpoint, Dialer() as dialer:
        here = await dialer.dial(("127.0.0.1", endpoint.port), CLIENT)
        await here.send(b"hello")
        there = await inbox.next()
        assert await there.recv() == [b"hello"]
        if trusted:
            here.trust()
            there.trust()
        yield here, there
        inbox.over.set()


async def receive(channel: QuicChannel, count: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < count:
        got = await asyncio.wait_for(channel.recv(), WAIT_S)
        assert got, f"ended after {len(frames)} of {count} frames"
        frames += got
    return frames


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- frames -----------------------------------------------------------------------------------------------


async def test_frames_both_ways() -> None:
    async with pair() as (here, there):
        frames = [b"", b"a", os.urandom(100_000), b"last"]
        await here.send(*frames)
        assert await receive(there, 4) == frames
        await there.send(*frames)
        assert await receive(here, 4) == frames
        assert there.remote.startswith("127.0.0.1:")


async def test_largest_frame_passes_and_a_larger_one_is_refused_here() -> None:
    async with pair() as (here, there):
        largest = os.urandom(FRAME_BYTES_MAX)
        sending = asyncio.create_task(here.send(largest, b"after"))
        assert await receive(there, 2) == [largest, b"after"]
        await sending
        with pytest.raises(ValueError, match="at most"):
            await here.send(bytes(FRAME_BYTES_MAX + 1))


async def test_many_frames_share_datagrams() -> None:
    inbox = Inbox()
    async with listening(inbox) as endpoint, Dialer() as dialer:
        channel = await dialer.dial(("127.0.0.1", endpoint.port), NODE)
        before = dialer.bytes_sent
        await channel.send(*[b"x" * 16] * 1000)
        assert len(await receive(await inbox.next(), 1000)) == 1000
        assert dialer.bytes_sent - before < 1000 * 20 * 1.2  # 20 bytes each with its length; 1000 datagrams are 50
        inbox.over.set()


async def test_slow_reader_bounds_sender_and_receiver() -> None:
    async with pair() as (here, there):
        frame, count = os.urandom(64 << 10), 320  # 20 MiB
        most_sent = most_held = 0

        async def write() -> None:
            for _ in range(count):
                await here.send(frame)
            await here.close()

        writing = asyncio.create_task(write())
        taken = 0
        while frames := await asyncio.wait_for(there.recv(), WAIT_S):
            taken += len(frames)
            assert all(got == frame for got in frames)
            await turns(50)  # a slow reader: the sender has time to fill every window
            most_sent = max(most_sent, here._quic.backlog_bytes(0))
            most_held = max(most_held, there._fed_bytes - there._credited_bytes)
        await writing
        assert taken == count
        assert most_sent <= BACKLOG_BYTES_MAX + len(frame) + 4
        assert most_held <= STREAM_WINDOW_BYTES


async def test_reader_that_never_reads_stops_the_sender() -> None:
    async with pair() as (here, there):
        sending = asyncio.create_task(here.send(*[bytes(FRAME_BYTES_MAX)] * 4))
        await there._connection._loop.run_in_executor(None, lambda: None)
        while there._fed_bytes < STREAM_WINDOW_BYTES - 9:
            await turns(1)
        await turns(200)
        assert not sending.done()
        assert there._fed_bytes - there._credited_bytes <= STREAM_WINDOW_BYTES
        assert len(await receive(there, 4)) == 4
        await asyncio.wait_for(sending, WAIT_S)


# --- bounds against strangers -----------------------------------------------------------------------------


class Wire:
    """Two `NodeQuic` in memory; time moves only when nothing is left to deliver."""

    def __init__(self) -> None:
        self.now = 1.0
        self.client = NodeQuic(configuration(is_client=True, alpns=[NODE], idle_s=60))
        config = configuration(is_client=False, alpns=[NODE], idle_s=60)
        config.certificate, config.private_key = TLS.certificate, TLS.key
        cid = self.client.original_destination_connection_id
        self.server = NodeQuic(config, key_hash=TLS.key_hash, original_cid=cid, worker=7)
        self.events: list[events.QuicEvent] = []  # the server's
        self.client.connect(("192.0.2.1", 1), now=self.now)
        self.run(20)

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            for source, target in itertools.permutations((self.client, self.server)):
                if source.get_peer_address() is not None:
                    for data, _ in source.datagrams_to_send(now=self.now):
                        target.receive_datagram(data, ("192.0.2.1", 1), now=self.now)
            while (event := self.server.next_event()) is not None:
                self.events.append(event)
            self.now += 0.002
            for quic in (self.client, self.server):
                due = quic.get_timer()
                if due is not None and due <= self.now:
                    quic.handle_timer(self.now)

    def write_sparse(self, stream_id: int, offset: int, size: int = 1) -> None:
        """Send bytes in the middle of a stream, as far as the server's limits allow and beyond."""
        self.client.send_stream_data(stream_id, b"")
        sender = self.client._streams[stream_id].sender
        sender._buffer_start = sender._buffer_stop = offset
        sender.write(b"x" * size)
        sender.highest_offset = offset
        self.run(3)

    def held(self) -> int:
        return sum(len(stream.receiver._buffer) for stream in self.server._streams.values())


def test_stranger_with_sparse_bytes_holds_no_more_than_the_hello_bound() -> None:
    wire = Wire()
    for _ in range(30):
        limit = wire.client._streams[0].max_stream_data_remote if wire.client._streams else HELLO_BYTES_MAX
        wire.write_sparse(0, limit - 1)
    assert wire.server.ending is None
    assert HELLO_BYTES_MAX // 2 < wire.held() <= HELLO_BYTES_MAX
    wire.write_sparse(4, 1000)  # the connection's limit is used up: even a fresh stream gets nothing
    assert wire.held() <= HELLO_BYTES_MAX


def test_stranger_beyond_the_window_is_cut_off() -> None:
    wire = Wire()
    wire.client.send_stream_data(0, b"")
    wire.client._streams[0].max_stream_data_remote = wire.client._remote_max_data = 1 << 30
    wire.write_sparse(0, HELLO_BYTES_MAX)
    assert wire.server.ending is not None
    assert wire.held() <= HELLO_BYTES_MAX


def test_trust_opens_the_windows_and_credit_follows_reading() -> None:
    wire = Wire()
    wire.client.send_stream_data(0, bytes(3 << 20))
    wire.run(400)
    received = sum(len(e.data) for e in wire.events if isinstance(e, events.StreamDataReceived))
    assert received == HELLO_BYTES_MAX
    wire.server.trust()
    wire.run(400)
    received = sum(len(e.data) for e in wire.events if isinstance(e, events.StreamDataReceived))
    assert received == STREAM_WINDOW_BYTES
    wire.server.consume(0, received)
    wire.run(400)
    received = sum(len(e.data) for e in wire.events if isinstance(e, events.StreamDataReceived))
    assert received == 2 * STREAM_WINDOW_BYTES


def test_reset_stream_gives_its_credit_back() -> None:
    wire = Wire()
    for stream_id in range(0, 40, 4):
        wire.client.send_stream_data(stream_id, bytes(20_000))
        wire.run(30)
        wire.client.reset_stream(stream_id, 0)
        wire.run(5)
        resets = [event for event in wire.events if isinstance(event, events.StreamReset)]
        assert resets[-1].stream_id == stream_id
        wire.server.consume_all(stream_id)
        wire.run(5)
    assert wire.server._consumed_total == 200_000
    assert not wire.server._consumed


def test_fragments_are_bounded() -> None:
    wire = Wire()
    for index in range(GAPS_MAX + 2):
        wire.write_sparse(0, 1 + 2 * index)
        if wire.server.fragmented():
            break
    assert wire.server.fragmented()


@pytest.mark.parametrize("epoch", [tls.Epoch.INITIAL, tls.Epoch.ONE_RTT], ids=["before", "after"])
def test_fragments_of_the_handshake_are_bounded(epoch: tls.Epoch) -> None:
    """Each costs a walk over all others, and no handshake is needed to send them: 60 kB held a node for seconds."""
    wire = Wire()
    stream = wire.server._crypto_streams[epoch].receiver
    for index in range(GAPS_MAX + 1):
        assert not wire.server.fragmented()
        stream.handle_frame(QuicStreamFrame(data=b"x", offset=stream._buffer_start + 1 + 2 * index))
    assert wire.server.fragmented()


async def test_oversize_frame_closes_the_connection() -> None:
    async with pair() as (here, there):
        here._quic.send_stream_data(0, (FRAME_BYTES_MAX + 1).to_bytes(4, "big") + bytes(100))
        here._connection.schedule()
        with pytest.raises(ChannelClosed, match="longer than"):
            await asyncio.wait_for(there.recv(), WAIT_S)
        assert len(there._cutter) < 2000
        with pytest.raises(ChannelClosed, match="longer than"):
            await asyncio.wait_for(here.recv(), WAIT_S)


async def test_extra_streams_are_reset_and_the_channel_lives() -> None:
    async with pair() as (here, there):
        for stream_id in range(4, 4 * 3 * STREAMS_MAX, 4):
            here._quic.send_stream_data(stream_id, bytes(1000))
        here._connection.schedule()
        for _ in range(50):
            await here.send(b"ping")
            assert await receive(there, 1) == [b"ping"]
        assert len(there._quic._streams) <= STREAMS_MAX


async def test_datagrams_of_noise_do_no_harm() -> None:
    inbox = Inbox()
    async with listening(inbox) as endpoint, Dialer() as dialer:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
            noise.connect(("127.0.0.1", endpoint.port))
            initial = b"\xc0\x00\x00\x00\x01\x08" + bytes(8) + b"\x00\x00\x44\x9e"
            for head in (b"", b"\x00", b"\x80", b"\xc0", b"\xc0\x00\x00\x00\x01\xff", initial):
                noise.send(head)
                noise.send(head + os.urandom(1200 - len(head)))
        channel = await dialer.dial(("127.0.0.1", endpoint.port), NODE)
        await channel.send(b"still here")
        assert await receive(await inbox.next(), 1) == [b"still here"]
        assert endpoint.counters.half_open == 0
        inbox.over.set()


async def test_half_open_bound_retry_and_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "RETRY_ABOVE", 1)
    monkeypatch.setattr(endpoint_module, "HALF_OPEN_MAX", 4)
    monkeypatch.setattr(endpoint_module, "HALF_OPEN_S", 0.3)
    async with listening(Inbox()) as endpoint, Dialer() as dialer:
        where = ("127.0.0.1", endpoint.port)
        silent = [await dialer.dial(where, NODE) for _ in range(4)]  # the last two pass a Retry
        assert [c._quic._retry_count for c in silent] == [0, 0, 1, 1]
        assert endpoint.counters.half_open == 4
        with pytest.raises(ChannelClosed, match="no answer"):
            await dialer.dial(where, NODE, timeout=0.1)
        assert endpoint.counters.refused > 0
        for channel in silent:
            with pytest.raises(ChannelClosed, match="too slow"):
                await asyncio.wait_for(channel.recv(), WAIT_S)
        assert endpoint.counters.half_open == 0


async def test_each_protocol_has_its_own_bound() -> None:
    inbox = Inbox()
    async with listening(inbox, bounds={NODE: 1, CLIENT: 2}) as endpoint, Dialer() as dialer:

        async def knock(alpn: str) -> QuicChannel:
            channel = await dialer.dial(("127.0.0.1", endpoint.port), alpn)
            await channel.send(b"x")
            return channel

        clients = [await knock(CLIENT) for _ in range(2)]
        theirs = [await inbox.next() for _ in range(2)]
        with pytest.raises(ChannelClosed, match="too many"):
            await asyncio.wait_for((await knock(CLIENT)).recv(), WAIT_S)
        await knock(NODE)  # clients that fill their bound do not lock nodes out
        await inbox.next()
        with pytest.raises(ChannelClosed, match="too many"):
            await asyncio.wait_for((await knock(NODE)).recv(), WAIT_S)
        assert endpoint.counters.refused == 2
        await clients[0].close()
        while theirs[0]._connection.closed is None:
            await turns(1)
        inbox.over.set()  # their hosts let go
        while endpoint._accepts:
            await turns(1)
        await knock(CLIENT)
        await inbox.next()


# --- binding and connection ids ---------------------------------------------------------------------------


async def test_binding_is_equal_at_both_ends_and_new_per_session() -> None:
    async with pair() as (here, there):
        assert here.binding == there.binding
        assert here.binding.kind == "quic"
        assert here.binding.key_hash == TLS.key_hash
        assert len(here.binding.exporter) == 32
        first = here.binding.exporter
    async with pair() as (here, _):
        assert here.binding.exporter != first


async def test_relay_that_ends_tls_shows_in_the_binding() -> None:
    inbox = Inbox()
    async with listening(inbox) as target, Dialer() as dialer:

        async def relay(alpn: str, channel: QuicChannel) -> None:
            onward = await dialer.dial(("127.0.0.1", target.port), alpn)
            while frames := await channel.recv():
                await onward.send(*frames)

        relay_endpoint = await Endpoint.open("127.0.0.1", 0, TLS, relay)  # even with a stolen TLS key
        here = await dialer.dial(("127.0.0.1", relay_endpoint.port), NODE)
        await here.send(b"through")
        there = await inbox.next()
        assert await receive(there, 1) == [b"through"]
        assert here.binding.exporter != there.binding.exporter
        await relay_endpoint.close()
        inbox.over.set()


async def test_worker_is_the_first_byte_of_each_connection_id() -> None:
    inbox = Inbox()
    async with listening(inbox, worker=9) as endpoint, Dialer() as dialer:
        channel = await dialer.dial(("127.0.0.1", endpoint.port), NODE)
        await channel.send(b"x")
        there = await inbox.next()
        await turns(100)
        assert len(there._quic._host_cids) == 8
        assert {entry.cid[0] for entry in there._quic._host_cids} == {9}
        assert {entry.cid for entry in there._quic._host_cids} <= set(endpoint._connections)
        inbox.over.set()


async def test_wrong_alpn_is_refused() -> None:
    async with listening(Inbox()) as endpoint, Dialer() as dialer:
        with pytest.raises(ChannelClosed, match="ALPN"):
            await dialer.dial(("127.0.0.1", endpoint.port), "other/1")
        assert endpoint.counters.accepted == 0


async def test_nobody_there_is_told_in_words() -> None:
    async with Dialer() as dialer:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            with pytest.raises(ChannelClosed, match="no answer within"):
                await dialer.dial(silent.getsockname(), NODE, timeout=0.1)


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
async def test_a_name_that_no_name_server_can_be_asked_for_is_a_refusal(host: str) -> None:
    """The grammar of PROTOCOL.md 2.4 has more: a peer's hello may say it."""
    async with Dialer() as dialer:
        with pytest.raises(ChannelClosed, match="cannot find"):
            await dialer.dial((host, 7701), NODE, timeout=1)
    with pytest.raises(ChannelClosed):
        await dial_link(f"{host}:7701", 1, "")


@pytest.mark.parametrize(("host", "target"), [("::1", "::1"), ("::", "127.0.0.1"), ("::", "::1")])
async def test_ipv6_and_dual_stack(host: str, target: str) -> None:
    inbox = Inbox()
    async with listening(inbox, host) as endpoint, listening(inbox, "::") as other, Dialer() as dialer:
        for source in (dialer, other):
            channel = await source.dial((target, endpoint.port), NODE)
            await channel.send(b"x")
            assert await receive(await inbox.next(), 1) == [b"x"]
            assert channel.remote == (f"[{target}]" if ":" in target else target) + f":{endpoint.port}"
        inbox.over.set()


# --- ends -------------------------------------------------------------------------------------------------


async def test_close_delivers_everything_written() -> None:
    async with pair() as (here, there):

        async def write_and_close() -> None:
            for _ in range(32):
                await here.send(*[bytes(1000)] * 64)
            await here.close("done")

        closing = asyncio.create_task(write_and_close())
        assert len(await receive(there, 32 * 64)) == 32 * 64
        assert await asyncio.wait_for(there.recv(), WAIT_S) == []
        await asyncio.wait_for(closing, WAIT_S)
        while there._connection.closed is None:
            await turns(1)
        assert await there.recv() == []
        with pytest.raises(ChannelClosed):
            await there.send(b"late")
        with pytest.raises(ChannelClosed):
            await here.send(b"late")
        with pytest.raises(ChannelClosed):
            await here.recv()
        await there.close()
        await here.close()


async def test_frames_not_read_yet_survive_the_close() -> None:
    async with pair() as (here, there):
        await here.send(*[b"x"] * 100)
        await here.close()
        while there._connection.closed is None:
            await turns(1)
        assert len(await receive(there, 100)) == 100
        assert await there.recv() == []


async def test_end_inside_a_frame_is_an_error() -> None:
    async with pair() as (here, there):
        here._quic.send_stream_data(0, b"\x00\x00\x00\x09half", end_stream=True)
        here._connection.schedule()
        with pytest.raises(ChannelClosed, match="inside a frame"):
            await asyncio.wait_for(there.recv(), WAIT_S)


async def test_reset_is_not_a_clean_end() -> None:
    async with pair() as (here, there):
        here._quic.reset_stream(0, 1)
        here._connection.schedule()
        with pytest.raises(ChannelClosed, match="reset"):
            await asyncio.wait_for(there.recv(), WAIT_S)


async def test_abrupt_close_is_not_a_clean_end() -> None:
    async with pair() as (here, there):
        here._connection.close("power cut")
        with pytest.raises(ChannelClosed, match="power cut"):
            await asyncio.wait_for(there.recv(), WAIT_S)


async def test_peer_that_vanishes_is_noticed_and_keepalive_prevents_false_alarm() -> None:
    inbox = Inbox()
    async with listening(inbox, idle_s=0.5) as endpoint, Dialer(idle_s=0.5) as dialer:
        quiet = await dialer.dial(("127.0.0.1", endpoint.port), NODE)
        doomed = await dialer.dial(("127.0.0.1", endpoint.port), NODE)
        await quiet.send(b"quiet")
        quiet_there = await inbox.next()
        assert await receive(quiet_there, 1) == [b"quiet"]
        await doomed.send(b"doomed")
        doomed_there = await inbox.next()
        assert await receive(doomed_there, 1) == [b"doomed"]
        doomed._connection.closed = "killed"  # no goodbye, no answer: as if the power went
        with pytest.raises(ChannelClosed, match="Idle timeout"):
            await asyncio.wait_for(doomed_there.recv(), WAIT_S)
        await quiet.send(b"alive")
        assert await receive(quiet_there, 1) == [b"alive"]
        doomed._connection.closed = None
        doomed._connection.close()
        inbox.over.set()


async def test_exception_while_receiving_ends_only_that_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as (here, there), pair() as (other, other_there):
        monkeypatch.setattr(there, "feed", lambda *_: 1 / 0)
        await here.send(b"x")
        with pytest.raises(ChannelClosed, match="internal error"):
            await asyncio.wait_for(there.recv(), WAIT_S)
        await other.send(b"y")
        assert await receive(other_there, 1) == [b"y"]


async def test_accept_that_fails_ends_its_channel() -> None:
    async def accept(_: str, channel: QuicChannel) -> None:
        raise RuntimeError("bug of the host")

    async with listening(accept) as endpoint, Dialer() as dialer:
        channel = await dialer.dial(("127.0.0.1", endpoint.port), NODE)
        await channel.send(b"x")
        with pytest.raises(ChannelClosed, match="internal error"):
            await asyncio.wait_for(channel.recv(), WAIT_S)


# --- endpoint ---------------------------------------------------------------------------------------------


async def test_busy_port_is_an_oserror() -> None:
    async with listening(Inbox()) as endpoint:
        with pytest.raises(OSError, match="in use"):
            await Endpoint.open("127.0.0.1", endpoint.port, TLS, Inbox())


async def test_two_endpoints_dial_each_other_from_their_listening_ports() -> None:
    inboxes = Inbox(), Inbox()
    async with listening(inboxes[0]) as one, listening(inboxes[1]) as two:
        for source, target, inbox in ((one, two, inboxes[1]), (two, one, inboxes[0])):
            channel = await source.dial(("127.0.0.1", target.port), NODE)
            await channel.send(b"x")
            there = await inbox.next()
            assert there.remote == f"127.0.0.1:{source.port}"
            assert channel.remote == f"127.0.0.1:{target.port}"
        for inbox in inboxes:
            inbox.over.set()


async def test_open_and_close_leave_nothing_behind() -> None:
    async def echo(_: str, channel: QuicChannel) -> None:
        while frames := await channel.recv():
            await channel.send(*frames)

    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    tasks, open_files = asyncio.all_tasks(), files()
    for _ in range(50):
        async with listening(echo) as endpoint, Dialer() as dialer:
            channel = await dialer.dial(("127.0.0.1", endpoint.port), NODE)
            await channel.send(b"x")
            assert await receive(channel, 1) == [b"x"]
        assert not endpoint._connections
        assert not endpoint._live
        assert not dialer._connections
    assert asyncio.all_tasks() == tasks
    assert files() == open_files
    timers = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert not [timer for timer in timers if "federation" in repr(timer)]


def test_identity_survives_its_pem_form() -> None:
    again = TlsIdentity.from_pem(TLS.pem())
    assert again.key_hash == TLS.key_hash
    assert again.certificate == TLS.certificate

"""Our QUIC layer over aioquic's sans-io `QuicConnection`, shared by client and node.

It has what aioquic's asyncio wrapper lacks: credit follows what the application has read, a sender is really
held back, an end is clean only after a FIN, and closing delivers what was written. `NodeQuic` is the state
machine, `Connection` gives it timers and a way out, `QuicChannel` is `ports.Channel` over its one stream,
`Dialer` is a UDP endpoint that only dials.
"""

import asyncio
import hashlib
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from aioquic import tls
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import NetworkAddress, QuicConnection, QuicConnectionState
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from federation.ports import FRAME_BYTES_MAX, HELLO_BYTES_MAX, Binding, ChannelClosed

STREAM_WINDOW_BYTES = 1 << 20  # unread bytes a trusted peer may have at us on one stream
CONNECTION_WINDOW_BYTES = 4 << 20  # the same over all streams of a connection
BACKLOG_BYTES_MAX = 256 << 10  # written but not acknowledged; above it `send` waits
STREAMS_MAX = 16  # open at once by the peer; only the first carries a channel, the others are reset
GAPS_MAX = 1024  # separate pieces of one stream held out of order: each costs ~120 bytes whatever its size
DATAGRAM_BYTES = 1232  # IPv6's least MTU minus headers: fits every path, as we do not probe
RECEIVE_BYTES_MAX = 2048  # a longer datagram is cut and so dropped as undecryptable
READ_BATCH_MAX = 32  # datagrams read per wake-up, so that one socket cannot starve the loop
CID_BYTES = 8  # length of the connection ids we issue
SOCKET_BYTES = 4 << 20  # kernel buffer each way, as far as the system allows
IDLE_S = 60.0  # silence after which a connection is dead
KEEPALIVE_PART = 7  # checks per idle time; a ping leaves after 1 to 2 silent ones, so within 2/7 < 1/3 of it
DRAIN_S = 2.0  # longest wait for the peer's acknowledgement when closing
DIAL_S = 5.0  # default time to connect
REFUSED_STREAM = 1  # application error codes on the wire
BAD_FRAME = 2
EXPORTER_LABEL = b"EXPORTER-roost-hello"

logger = logging.getLogger(__name__)


def configuration(*, is_client: bool, alpns: list[str], idle_s: float) -> QuicConfiguration:
    """Settings of every Roost connection. Certificates are not judged: the signed hello proves identity."""
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=alpns,
        idle_timeout=idle_s,
        max_data=HELLO_BYTES_MAX,
        max_stream_data=HELLO_BYTES_MAX,
        max_datagram_size=DATAGRAM_BYTES,
        supported_versions=[QuicProtocolVersion.VERSION_1],
        verify_mode=ssl.CERT_NONE,
    )


class NodeQuic(QuicConnection):
    """A QUIC state machine with bounded memory, a TLS exporter and connection ids that name a worker.

    Pinned to aioquic 1.7 by these private names. Overridden: _update_traffic_key, _replenish_connection_ids,
    _write_connection_limits, _write_stream_limits. Read or set: _close_event, _close_pending,
    _crypto_streams, _handshake_confirmed, _handshake_done_pending, _host_cids, _is_client, _local_max_data,
    _local_initial_source_connection_id, _local_max_streams_bidi/_uni, _network_paths, _ping_pending,
    _probe_pending, _retire_connection_ids, _spaces, _state, _streams; tls._peer_certificate; receivers'
    _ranges and _stop_error_code, senders' _buffer_start and _buffer_stop.
    """

    def __init__(
        self,
        config: QuicConfiguration,
        *,
        worker: int = 0,
        key_hash: bytes = b"",
        original_cid: bytes | None = None,
        retry_cid: bytes | None = None,
    ) -> None:
        """`key_hash` is the server's own; the two ids come from a client's first packet."""
        super().__init__(
            configuration=config,
            original_destination_connection_id=original_cid,
            retry_source_connection_id=retry_cid,
        )
        self.exporter = b""  # RFC 8446 section 7.5, 32 bytes once the keys are there
        self._own_key_hash = key_hash
        self._worker = worker
        self._trusted = False
        self._consumed: dict[int, int] = {}  # stream id -> bytes the application took
        self._consumed_total = 0
        first = self._host_cids[0]
        first.cid = self.host_cid = self._local_initial_source_connection_id = bytes([worker]) + first.cid[1:]
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = STREAMS_MAX
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = 0

    @property
    def key_hash(self) -> bytes:
        """SHA-256 of the TLS server's SubjectPublicKeyInfo; empty on a client before the handshake."""
        certificate = self.tls._peer_certificate if self._is_client else None
        if certificate is None:
            return self._own_key_hash
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).digest()

    @property
    def ending(self) -> events.ConnectionTerminated | None:
        """Why the connection is over, as soon as either side says so; aioquic's event waits longer."""
        return self._close_event

    @property
    def begun(self) -> bool:
        """At least one packet of the peer was authentic."""
        return self._state != QuicConnectionState.FIRSTFLIGHT

    def backlog_bytes(self, stream_id: int) -> int:
        """Bytes written to the stream and not yet acknowledged."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender._buffer_start

    def delivered(self, stream_id: int) -> bool:
        """The peer has acknowledged everything written, FIN included."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.sender.is_finished

    def trust(self) -> None:
        """Lift the windows from the stranger's HELLO_BYTES_MAX to the full ones."""
        self._trusted = True

    def consume(self, stream_id: int, size: int) -> None:
        """The application took `size` bytes of the stream: the peer may send as many more."""
        self._consumed[stream_id] = self._consumed.get(stream_id, 0) + size
        self._consumed_total += size

    def consume_all(self, stream_id: int) -> None:
        """Nobody will read this stream: whatever the peer spent on it, gaps included, counts as taken."""
        if stream := self._streams.get(stream_id):
            self.consume(stream_id, stream.receiver.highest_offset - self._consumed.get(stream_id, 0))
            if stream.receiver.is_finished:
                del self._consumed[stream_id]

    def refuse_stream(self, stream_id: int) -> None:
        """Reset a stream of the peer that we have no use for."""
        self.consume_all(stream_id)
        stream = self._streams[stream_id]
        self.reset_stream(stream_id, REFUSED_STREAM)
        if not stream.receiver.is_finished and stream.receiver._stop_error_code is None:
            self.stop_stream(stream_id, REFUSED_STREAM)

    def fragmented(self) -> bool:
        """The peer makes us keep more separate pieces of a stream than loss explains."""
        return any(len(stream.receiver._ranges) > GAPS_MAX for stream in self._streams.values())

    def transmit_due(self, now: float) -> bool:
        """Something would be sent now. Building a packet only to find it empty is a third of receive cost."""
        ack_at = self._spaces[tls.Epoch.ONE_RTT].ack_at if self._handshake_confirmed else now
        return bool(
            (ack_at is not None and ack_at <= now)
            or self._close_pending
            or self._ping_pending
            or self._probe_pending
            or self._retire_connection_ids
            or self._handshake_done_pending
            or not self._crypto_streams[tls.Epoch.ONE_RTT].sender.buffer_is_empty
            or self._local_max_streams_bidi.value != self._local_max_streams_bidi.sent
            or self._connection_credit() != self._local_max_data.sent
            or any(self._stream_due(stream) for stream in self._streams.values())
            or any(path.remote_challenges or not path.is_validated for path in self._network_paths)
            or not all(cid.was_sent for cid in self._host_cids)
        )

    def _stream_due(self, stream: QuicStream) -> bool:
        sender, receiver = stream.sender, stream.receiver
        if stream.is_blocked:
            return False  # the peer does not let us open it yet: a word about it would break the protocol
        return (
            not sender.buffer_is_empty
            or sender.reset_pending
            or receiver.stop_pending
            or stream.is_finished
            or (not receiver.is_finished and self._stream_credit(stream) != stream.max_stream_data_local_sent)
        )

    def _connection_credit(self) -> int:
        window = CONNECTION_WINDOW_BYTES if self._trusted else HELLO_BYTES_MAX
        return self._raised(self._local_max_data.value, self._consumed_total + window)

    def _stream_credit(self, stream: QuicStream) -> int:
        window = STREAM_WINDOW_BYTES if self._trusted else HELLO_BYTES_MAX
        taken = self._consumed.get(stream.stream_id or 0, 0)
        return self._raised(stream.max_stream_data_local, taken + window)

    def _raised(self, limit: int, wanted: int) -> int:
        """Limits move in big steps, lest reading cost a datagram each time; a stranger's window is exact."""
        return wanted if wanted - limit >= (STREAM_WINDOW_BYTES // 2 if self._trusted else 1) else limit

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        limit = self._local_max_data
        limit.value = self._connection_credit()
        used, limit.used = limit.used, 0  # aioquic doubles the limit whenever half is used: switched off
        try:
            super()._write_connection_limits(builder=builder, space=space)
        finally:
            limit.used = used

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        if stream.receiver.is_finished or stream.is_blocked:
            return
        stream.max_stream_data_local = self._stream_credit(stream)
        if stream.max_stream_data_local == stream.max_stream_data_local_sent:
            return  # called for every stream and packet: the common case must be cheap
        highest, stream.receiver.highest_offset = stream.receiver.highest_offset, 0  # as above
        try:
            super()._write_stream_limits(builder=builder, space=space, stream=stream)
        finally:
            stream.receiver.highest_offset = highest

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        for entry in self._host_cids:
            if entry.cid[0] != self._worker:  # only just made: the older ones are marked already
                entry.cid = bytes([self._worker]) + entry.cid[1:]

    def _update_traffic_key(
        self, direction: tls.Direction, epoch: tls.Epoch, cipher_suite: tls.CipherSuite, secret: bytes
    ) -> None:
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)
        schedule = self.tls.key_schedule
        if epoch == tls.Epoch.ONE_RTT and not self.exporter and schedule is not None:
            # At the first 1-RTT key the transcript ends with the server's Finished, as the exporter needs.
            master, empty = schedule.derive_secret(b"exp master"), _digest(schedule.algorithm)
            size = schedule.algorithm.digest_size
            secret = tls.hkdf_expand_label(schedule.algorithm, master, EXPORTER_LABEL, empty, size)
            self.exporter = tls.hkdf_expand_label(schedule.algorithm, secret, b"exporter", empty, 32)


def _digest(algorithm: hashes.HashAlgorithm) -> bytes:
    return hashes.Hash(algorithm).finalize()


class Host(Protocol):
    """What a connection needs from the endpoint that owns it."""

    def send_datagrams(self, datagrams: Sequence[tuple[bytes, NetworkAddress]]) -> None: ...
    def cid_issued(self, cid: bytes, connection: "Connection") -> None: ...
    def cid_retired(self, cid: bytes) -> None: ...
    def opened(self, connection: "Connection") -> None: ...
    def ended(self, connection: "Connection") -> None: ...


class Connection:
    """One `NodeQuic` with a clock, timers and a way out: handles events, sends once per loop turn."""

    def __init__(self, quic: NodeQuic, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self.quic = quic
        self.alpn = ""  # negotiated, once ready
        self.channel: QuicChannel | None = None
        self.cids: list[bytes] = []  # under which the endpoint knows it
        self.closed: str | None = None  # why, for a person; None while it lives
        self.ready = asyncio.Event()  # handshake done or connection closed
        self._host = host
        self._loop = loop
        self._heard = False  # anything arrived since the last keepalive check
        self._turn_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._keepalive_s = quic.configuration.idle_timeout / KEEPALIVE_PART
        self._keepalive = loop.call_later(self._keepalive_s, self._on_keepalive)

    @property
    def remote(self) -> str:
        return address_text(self.quic.get_peer_address())

    def connect(self, addr: NetworkAddress) -> None:
        """Start a client's handshake; `ready` tells when it is over."""
        self.quic.connect(addr, now=self._loop.time())
        self._transmit()

    def open_channel(self) -> "QuicChannel":
        """The channel over our first stream; the peer learns of it with the first frame we send."""
        self.channel = QuicChannel(self, self.quic.get_next_available_stream_id())
        return self.channel

    def receive(self, data: bytes, addr: NetworkAddress) -> None:
        """Take in a datagram. Never raises: what a peer sends can only end its own connection."""
        self._heard = True
        self._guard(self._receive, data, addr)

    def schedule(self) -> None:
        """Send what is due at the end of this loop turn: many writes, one batch of datagrams."""
        if not self._turn_scheduled and self.closed is None:
            self._turn_scheduled = True
            self._loop.call_soon(self._guard, self._turn)

    def close(self, reason: str = "", code: int = QuicErrorCode.NO_ERROR) -> None:
        """Say goodbye and forget the connection at once; unsent data is lost. Safe to repeat."""
        if self.closed is None:
            self.quic.close(error_code=code, reason_phrase=reason[:200])
            self._end(reason or "closed by this side")

    def _guard(self, step: Callable[..., None], *args: object) -> None:
        if self.closed is not None:
            return
        try:
            step(*args)
        except Exception:  # a bug here or in aioquic must not take the endpoint down
            logger.exception("closing the connection with %s", self.remote)
            self.close("internal error", QuicErrorCode.INTERNAL_ERROR)

    def _receive(self, data: bytes, addr: NetworkAddress) -> None:
        self.quic.receive_datagram(data, addr, now=self._loop.time())
        self._handle_events()
        if self.quic.fragmented():
            self.close("stream too fragmented", QuicErrorCode.INTERNAL_ERROR)
        self.schedule()

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self.quic.ending is not None:
            ending = self.quic.ending
            self._end(ending.reason_phrase or f"closed by the other side (code {ending.error_code})")
            return
        if self.quic.transmit_due(self._loop.time()):
            self._transmit()
        else:
            self._arm()
        if self.channel is not None:
            self.channel.progressed()

    def _transmit(self) -> None:
        datagrams = self.quic.datagrams_to_send(now=self._loop.time())
        if datagrams:
            self._host.send_datagrams(datagrams)
        self._handle_events()  # sending issues connection ids
        self._arm()

    def _arm(self) -> None:
        due = self.quic.get_timer()
        if due is None or (self._timer is not None and self._timer.when() <= due):
            return  # an early timer just re-arms itself: cheaper than moving it with every packet
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._guard, self._on_timer, due)

    def _on_timer(self, when: float) -> None:
        self._timer = None
        now = max(when, self._loop.time())
        due = self.quic.get_timer()
        if due is not None and due <= now:
            self.quic.handle_timer(now)
            if self.quic.ending is None:
                self._transmit()
            self.schedule()
        else:
            self._arm()

    def _on_keepalive(self) -> None:
        if not self._heard and self.ready.is_set():
            self.quic.send_ping(0)
            self.schedule()
        self._heard = False
        self._keepalive = self._loop.call_later(self._keepalive_s, self._on_keepalive)

    def _handle_events(self) -> None:
        while self.closed is None and (event := self.quic.next_event()) is not None:
            match event:
                case events.StreamDataReceived():
                    self._on_data(event)
                case events.StreamReset(stream_id=stream_id):
                    self.quic.consume_all(stream_id)
                    self._lost(stream_id, "the other side reset the stream")
                case events.StopSendingReceived(stream_id=stream_id):
                    self._lost(stream_id, "the other side stopped reading")
                case events.ConnectionIdIssued(connection_id=cid):
                    self._host.cid_issued(cid, self)
                case events.ConnectionIdRetired(connection_id=cid):
                    self._host.cid_retired(cid)
                case events.HandshakeCompleted(alpn_protocol=alpn):
                    self.alpn = alpn or ""
                    self.ready.set()

    def _on_data(self, event: events.StreamDataReceived) -> None:
        if self.channel is None and event.stream_id == 0 and not self.quic.configuration.is_client:
            self.channel = QuicChannel(self, 0)
            self._host.opened(self)
        if self.channel is not None and event.stream_id == self.channel.stream_id:
            self.channel.feed(event.data, event.end_stream)
        else:
            self.quic.refuse_stream(event.stream_id)

    def _lost(self, stream_id: int, reason: str) -> None:
        if self.channel is not None and stream_id == self.channel.stream_id:
            self.close(reason)

    def _end(self, reason: str) -> None:
        """The last step of every life: nothing of the connection stays behind in loop or endpoint."""
        self.closed = reason
        try:
            # What aioquic keeps for its closing period is of no use: it would not even repeat the goodbye.
            if self.quic.begun:  # never answer noise
                self._host.send_datagrams(self.quic.datagrams_to_send(now=self._loop.time()))
        except Exception:  # the state may be what broke the connection
            logger.exception("goodbye to %s failed", self.remote)
        self._keepalive.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self.ready.set()
        if self.channel is not None:
            self.channel.fail(reason)
        self._host.ended(self)


class QuicChannel:
    """`ports.Channel` over one bidirectional stream: frames are a 4-byte big-endian length and bytes."""

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self.stream_id = stream_id
        self.binding = Binding("quic", connection.quic.key_hash, connection.quic.exporter)
        self._connection = connection
        self._quic = connection.quic
        self._ready: list[bytes] = []  # whole frames nobody took yet
        self._partial = bytearray()  # the start of the next frame
        self._fed_bytes = 0
        self._credited_bytes = 0  # of those, how many the peer may send again
        self._trusted = False
        self._receiving = False  # somebody waits in recv
        self._ended = False  # a clean FIN arrived
        self._closing = False
        self._failed: str | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._delivered = asyncio.Event()

    @property
    def remote(self) -> str:
        """Where the other side is now: it may move."""
        return self._connection.remote

    async def send(self, *frames: bytes) -> None:
        """Write frames; returns once less than BACKLOG_BYTES_MAX is unacknowledged.

        Raises `ChannelClosed`, now or while it waits; ValueError for a frame over FRAME_BYTES_MAX.
        """
        self._check_open()
        pieces: list[bytes] = []
        for frame in frames:
            if len(frame) > FRAME_BYTES_MAX:
                raise ValueError(f"frame of {len(frame)} bytes, at most {FRAME_BYTES_MAX} fit")
            pieces += (len(frame).to_bytes(4, "big"), frame)
        self._quic.send_stream_data(self.stream_id, b"".join(pieces))
        self._connection.schedule()
        while self._quic.backlog_bytes(self.stream_id) >= BACKLOG_BYTES_MAX:
            self._writable.clear()
            await self._writable.wait()
            self._check_open()

    async def recv(self) -> Sequence[bytes]:
        """Whole frames, at least one; [] is a clean end. Else `ChannelClosed`, after the frames at hand."""
        while not self._ready:
            if self._ended:
                return []
            self._check_open()
            self._credit_partial()
            self._readable.clear()
            self._receiving = True
            try:
                await self._readable.wait()
            finally:
                self._receiving = False
        frames, self._ready = self._ready, []
        self._credit(self._fed_bytes - len(self._partial))
        return frames

    def trust(self) -> None:
        """Lift the stranger's window (HELLO_BYTES_MAX) to the full ones."""
        self._trusted = True
        self._quic.trust()
        if self._receiving:
            self._credit_partial()
        self._connection.schedule()

    async def close(self, reason: str = "") -> None:
        """FIN, at most DRAIN_S for the acknowledgement of everything written, then the connection's end."""
        try:
            if self._failed is None and not self._closing:
                self._closing = True
                self._quic.send_stream_data(self.stream_id, b"", end_stream=True)
                self._ready, self._partial = [], bytearray()
                self._credit(self._fed_bytes)  # unread or still coming: a full window must not block the peer
                self._readable.set()
                self._writable.set()
                self._connection.schedule()
            async with asyncio.timeout(DRAIN_S):
                await self._delivered.wait()
        except TimeoutError:
            logger.info("%s did not acknowledge all within %s s", self.remote, DRAIN_S)
        finally:
            self._connection.close(reason)

    def feed(self, data: bytes, fin: bool) -> None:
        """Bytes from the stream, in order. Breaking the framing closes the connection."""
        self._fed_bytes += len(data)
        if self._closing:
            self._credit(self._fed_bytes)
            return
        if self._partial:
            self._partial += data
            if len(self._partial) < 4 + self._announced():
                data = b""  # unless the length is refused below, a long frame only grows
            else:
                data, self._partial = bytes(self._partial), bytearray()
        self._split(data)
        if self._announced() > FRAME_BYTES_MAX:
            self._connection.close(f"frame longer than {FRAME_BYTES_MAX} bytes", BAD_FRAME)
        elif fin and self._partial:
            self._connection.close("stream ended inside a frame", BAD_FRAME)
        elif fin:
            self._ended = True
        if self._receiving:
            self._credit_partial()
        if self._ready or self._ended:
            self._readable.set()

    def progressed(self) -> None:
        """After each turn of the connection: wake who waits for room or for the last acknowledgement."""
        if not self._writable.is_set() and self._quic.backlog_bytes(self.stream_id) < BACKLOG_BYTES_MAX:
            self._writable.set()
        if self._closing and self._quic.delivered(self.stream_id):
            self._delivered.set()

    def fail(self, reason: str) -> None:
        """The connection is gone: everybody who waits learns it."""
        if self._failed is None:
            self._failed = reason
        self._readable.set()
        self._writable.set()
        self._delivered.set()

    def _split(self, data: bytes) -> None:
        start, size = 0, len(data)
        while size - start >= 4:
            length = int.from_bytes(data[start : start + 4], "big")
            stop = start + 4 + length
            if length > FRAME_BYTES_MAX or stop > size:
                break
            self._ready.append(data[start + 4 : stop])
            start = stop
        self._partial += data[start:]

    def _announced(self) -> int:
        """Length of the frame being received; 0 while its header is incomplete."""
        return int.from_bytes(self._partial[:4], "big") if len(self._partial) >= 4 else 0

    def _credit(self, upto: int) -> None:
        if upto > self._credited_bytes and self._failed is None:
            self._quic.consume(self.stream_id, upto - self._credited_bytes)
            self._credited_bytes = upto
            self._connection.schedule()

    def _credit_partial(self) -> None:
        # A frame may be longer than the window: who waits for a trusted peer's frame takes its start.
        if self._trusted:
            self._credit(self._fed_bytes)

    def _check_open(self) -> None:
        if self._failed is not None or self._closing:
            raise ChannelClosed(self._failed or "closed by this side")


class Dialer:
    """A UDP endpoint that only dials: `async with Dialer() as d: await d.dial(("host", 7701), "alpn/1")`."""

    def __init__(self, *, idle_s: float = IDLE_S) -> None:
        """`idle_s`: silence after which a connection counts as dead."""
        self._loop = asyncio.get_running_loop()
        self._idle_s = idle_s
        self._worker = 0
        self._connections: dict[bytes, Connection] = {}  # by each connection id a peer may use for us
        self._sockets: dict[int, socket.socket] = {}  # by address family
        self._lookup_family = socket.AF_UNSPEC
        self._closed = False
        self._live: dict[Connection, None] = {}  # a set in order
        self.bytes_received = self.bytes_sent = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def dial(self, addr: tuple[str, int], alpn: str, timeout: float = DIAL_S) -> QuicChannel:
        """Connect within `timeout` seconds and open a channel, on which this side must speak first.

        Raises `ChannelClosed` when nobody answers, the other side refuses, or the name is unknown.
        """
        if self._closed:
            raise ChannelClosed("this endpoint is closed")
        where = address_text(addr)
        try:
            async with asyncio.timeout(timeout):
                targets = await self._resolve(addr)
        except (OSError, TimeoutError) as error:
            raise ChannelClosed(f"cannot find {where}: {error or 'no answer from DNS'}") from error
        reason = ""
        for family, target in targets:
            try:
                self._open(family)
                return await self._dial(target, alpn, timeout / len(targets))
            except (ChannelClosed, OSError) as error:
                reason = str(error)
        raise ChannelClosed(f"cannot connect to {where}: {reason}")

    async def close(self) -> None:
        """Close every channel (at most DRAIN_S), then the sockets."""
        self._closed = True
        connections = list(self._live)
        await asyncio.gather(*(c.channel.close("going away") for c in connections if c.channel))
        for connection in connections:
            connection.close("going away")
        for sock in self._sockets.values():
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()

    def send_datagrams(self, datagrams: Sequence[tuple[bytes, NetworkAddress]]) -> None:
        """Put datagrams on the wire; what the kernel does not take counts as lost and QUIC repeats it."""
        for data, addr in datagrams:
            sock = self._sockets.get(socket.AF_INET6 if len(addr) == 4 else socket.AF_INET)
            if sock is None:
                return
            try:
                self.bytes_sent += sock.sendto(data, addr)
            except OSError as error:
                logger.debug("to %s: %s", addr, error)

    def cid_issued(self, cid: bytes, connection: Connection) -> None:
        connection.cids.append(cid)
        self._connections[cid] = connection

    def cid_retired(self, cid: bytes) -> None:
        if connection := self._connections.pop(cid, None):
            connection.cids.remove(cid)

    def opened(self, connection: Connection) -> None:
        """Never called: only a listener's peers open channels."""

    def ended(self, connection: Connection) -> None:
        for cid in connection.cids:
            del self._connections[cid]
        connection.cids = []
        self._live.pop(connection, None)

    def stray(self, data: bytes, addr: NetworkAddress, sock: socket.socket) -> None:
        """A datagram of no known connection: not for one who only dials."""

    async def _dial(self, target: NetworkAddress, alpn: str, timeout: float) -> QuicChannel:
        config = configuration(is_client=True, alpns=[alpn], idle_s=self._idle_s)
        connection = self._begin(NodeQuic(config, worker=self._worker))
        try:
            connection.connect(target)
            async with asyncio.timeout(timeout):
                await connection.ready.wait()
        except TimeoutError:
            connection.close(f"no answer within {timeout:g} s")
        except BaseException:
            connection.close("dialing was given up")
            raise
        if connection.closed is None and connection.alpn != alpn:
            connection.close(f"the other side does not speak {alpn}")
        if connection.closed is not None:
            raise ChannelClosed(connection.closed)
        return connection.open_channel()

    def _begin(self, quic: NodeQuic) -> Connection:
        connection = Connection(quic, self, self._loop)
        self._live[connection] = None
        self.cid_issued(quic.host_cid, connection)
        return connection

    async def _resolve(self, addr: tuple[str, int]) -> list[tuple[int, NetworkAddress]]:
        """The first address of each family, those that need no name server without waiting."""
        flags = socket.AI_V4MAPPED if self._lookup_family == socket.AF_INET6 else 0
        kind, host, port = socket.SOCK_DGRAM, addr[0], addr[1]
        family = self._lookup_family
        try:
            found = socket.getaddrinfo(host, port, family, kind, 0, flags | socket.AI_NUMERICHOST)
        except socket.gaierror:
            found = await self._loop.getaddrinfo(host, port, family=family, type=kind, flags=flags)
        return list({family: target for family, _, _, _, target in reversed(found)}.items())

    def _open(self, family: int) -> None:
        """A socket of the family, on a free port. OSError if the host lacks the family."""
        if family not in self._sockets:
            self._listen(socket.socket(family, socket.SOCK_DGRAM), ("", 0))

    def _listen(self, sock: socket.socket, addr: NetworkAddress) -> None:
        try:
            sock.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(addr)
        except OSError:
            sock.close()
            raise
        self._sockets[sock.family] = sock
        self._loop.add_reader(sock, self._readable, sock)

    def _readable(self, sock: socket.socket) -> None:
        # asyncio's own transport reads one datagram per loop turn: reading several lets sends be batched
        for _ in range(READ_BATCH_MAX):
            try:
                data, addr = sock.recvfrom(RECEIVE_BYTES_MAX)
            except OSError:  # nothing left, or an ICMP error about an earlier send
                return
            self.bytes_received += len(data)
            # RFC 9000 section 17: a long header carries the id's length, ours are CID_BYTES
            long = data[:1] >= b"\x80"
            cid = data[6 : 6 + data[5]] if long and len(data) > 5 else data[1 : 1 + CID_BYTES]
            connection = self._connections.get(cid)
            if connection is not None:
                connection.receive(data, addr)
            elif not self._closed:
                self.stray(data, addr, sock)


def address_text(addr: NetworkAddress | None) -> str:
    """`192.0.2.7:7701`, `[2001:db8::1]:7701`; for people."""
    if addr is None:
        return "nowhere"
    host = str(addr[0]).removeprefix("::ffff:")
    return f"[{host}]:{addr[1]}" if ":" in host else f"{host}:{addr[1]}"

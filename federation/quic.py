"""A QUIC connection and its channel, shared by client and node.

It has what aioquic's asyncio wrapper lacks: credit follows what the application has read, a sender is really
held back, an end is clean only after a FIN, and closing delivers what was written. `credit.NodeQuic` is the state
machine, `Connection` gives it timers and a way out, `QuicChannel` is `ports.Channel` over its one stream;
`dialer.Dialer` is a UDP endpoint that only dials.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from aioquic.quic import events
from aioquic.quic.connection import NetworkAddress
from aioquic.quic.packet import QuicErrorCode

from federation.credit import NodeQuic
from federation.framing import Cutter, framed
from federation.identity import address_text
from federation.ports import FRAME_BYTES_MAX, HELLO_BYTES_MAX, Binding, ChannelClosed

BACKLOG_BYTES_MAX = 256 << 10  # written but not acknowledged; above it `send` waits
KEEPALIVE_PART = 7  # checks per idle time; a ping leaves after 1 to 2 silent ones, so within 2/7 < 1/3 of it
DRAIN_S = 2.0  # longest wait for the peer's acknowledgement when closing
BAD_FRAME = 2  # application error code on the wire

logger = logging.getLogger(__name__)


class Host(Protocol):
    """What a connection needs from the endpoint that owns it."""

    def send_datagrams(self, datagrams: Sequence[tuple[bytes, NetworkAddress]]) -> None: ...
    def cid_issued(self, cid: bytes, connection: "Connection") -> None: ...
    def cid_retired(self, cid: bytes) -> None: ...
    def reset_known(self, token: bytes, connection: "Connection") -> None: ...
    def opened(self, connection: "Connection") -> None: ...
    def ended(self, connection: "Connection") -> None: ...


class Connection:
    """One `NodeQuic` with a clock, timers and a way out: handles events, sends once per loop turn."""

    def __init__(self, quic: NodeQuic, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self.quic = quic
        self.alpn = ""  # negotiated, once ready
        self.channel: QuicChannel | None = None
        self.cids: list[bytes] = []  # under which the endpoint knows it
        self.reset_token = b""  # under which it knows the end of it
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

    def now(self) -> float:
        """The loop's clock, in seconds."""
        return self._loop.time()

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
        """Send what is due at the end of the next loop turn: many writes, one batch of datagrams.

        The next, since answers to what came in this one are often written there: that halves the packets of a
        conversation and costs no time that anybody could notice.
        """
        if not self._turn_scheduled and self.closed is None:
            self._turn_scheduled = True
            self._loop.call_soon(self._loop.call_soon, self._guard, self._turn)

    def close(self, reason: str = "", code: int = QuicErrorCode.NO_ERROR) -> None:
        """Say goodbye and forget the connection at once; unsent data is lost. Safe to repeat."""
        if self.closed is None:
            self.quic.close(error_code=code, reason_phrase=reason[:200])
            self._end(reason or "closed by this side")

    def forgotten(self) -> None:
        """The other side does not know this connection any more; it gets no answer (RFC 9000 section 10.3.1)."""
        if self.closed is None and self.quic.ending is None:  # else it said why
            self._end("the other side has forgotten this connection: it was restarted", quiet=True)

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

        if self.quic.reset_token != self.reset_token:  # the peer's connection id in use is another one
            self._host.reset_known(self.quic.reset_token, self)

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
        if self.channel is not None:
            self.channel.look()
        if self.closed is not None:
            return
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

    def _end(self, reason: str, quiet: bool = False) -> None:
        """The last step of every life: nothing of the connection stays behind in loop or endpoint."""
        self.closed = reason
        try:
            # What aioquic keeps for its closing period is of no use: it would not even repeat the goodbye.
            if self.quic.begun and not quiet:  # never answer noise
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
    """`ports.Channel` over one bidirectional stream."""

    why = ""

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self.stream_id = stream_id
        self.binding = Binding("quic", connection.quic.key_hash, connection.quic.exporter)
        self._connection = connection
        self._quic = connection.quic
        self._ready: list[bytes] = []  # whole frames nobody took yet
        self._cutter = Cutter()
        self._fed_bytes = 0
        self._credited_bytes = 0  # of those, how many the peer may send again
        self._trusted = False
        self._receiving = False  # somebody waits in recv
        self._since = 0.0  # when the frame being received began, or somebody began to wait for it
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
        """Write frames; returns once less than BACKLOG_BYTES_MAX (a stranger: HELLO_BYTES_MAX) is unacknowledged.

        Raises `ChannelClosed`, now or while it waits; ValueError for a frame over FRAME_BYTES_MAX.
        """
        self._check_open()
        self._quic.send_stream_data(self.stream_id, framed(frames))
        self._connection.schedule()
        while self._is_backlogged():
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
            self._since, self._receiving = self._connection.now(), True
            try:
                await self._readable.wait()
            finally:
                self._receiving = False
        frames, self._ready = self._ready, []
        self._credit(self._fed_bytes - len(self._cutter))
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
                self._ready = []
                self._cutter.clear()
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
        began = not self._cutter
        frames = self._cutter.feed(data)
        if frames or began:
            self._since = self._connection.now()
        self._ready += frames
        if self._cutter.announced > FRAME_BYTES_MAX:
            self._connection.close(f"frame longer than {FRAME_BYTES_MAX} bytes", BAD_FRAME)
        elif fin and self._cutter:
            self._connection.close("stream ended inside a frame", BAD_FRAME)
        elif fin:
            self._ended = True
        if self._receiving:
            self._credit_partial()
        if self._ready or self._ended:
            self._readable.set()

    def look(self) -> None:
        """From time to time: a frame that does not get whole ends the connection (PROTOCOL.md 5.12)."""
        if self._receiving and self._cutter and self._connection.now() - self._since > self._cutter.seconds:
            self._connection.close("a frame took too long to arrive", BAD_FRAME)

    def progressed(self) -> None:
        """After each turn of the connection: wake who waits for room or for the last acknowledgement."""
        if not self._writable.is_set() and not self._is_backlogged():
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

    def _credit(self, upto: int) -> None:
        if upto > self._credited_bytes and self._failed is None:
            self._quic.consume(self.stream_id, upto - self._credited_bytes)
            self._credited_bytes = upto
            self._connection.schedule()

    def _credit_partial(self) -> None:
        # A frame may be longer than the window: who waits for a trusted peer's frame takes its start.
        if self._trusted:
            self._credit(self._fed_bytes)

    def _is_backlogged(self) -> bool:
        most = BACKLOG_BYTES_MAX if self._trusted else HELLO_BYTES_MAX
        return self._quic.backlog_bytes(self.stream_id) >= most

    def _check_open(self) -> None:
        if self._failed is not None or self._closing:
            raise ChannelClosed(self._failed or "closed by this side")

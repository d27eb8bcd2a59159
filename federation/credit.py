"""aioquic's sans-io `QuicConnection` with application-tied credit, a TLS exporter and bounds (used by `quic`).

Credit follows what the application has read, so that a sender is really held back and a stranger can make us
hold little.
"""

import hashlib
import ssl

from aioquic import tls
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from federation.ports import HELLO_BYTES_MAX

STREAM_WINDOW_BYTES = 1 << 20  # unread bytes a trusted peer may have at us on one stream
CONNECTION_WINDOW_BYTES = 4 << 20  # the same over all streams of a connection
STREAMS_MAX = 16  # open at once by the peer; only the first carries a channel, the others are reset
GAPS_MAX = 1024  # separate pieces of one stream held out of order: each costs ~120 bytes, and time for the next one
DATAGRAM_BYTES = 1232  # IPv6's least MTU minus headers: fits every path, as we do not probe
REFUSED_STREAM = 1  # application error code on the wire
RESET_TOKEN_BYTES = 16
ACK_DELAY_S = 0.01  # aioquic says 1 ms; an answer of the application mostly takes longer, and can carry it
EXPORTER_LABEL = b"EXPORTER-roost-hello"


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
    _write_connection_limits, _write_stream_limits. Read or set: _ack_delay, _close_event, _close_pending,
    _crypto_streams, _handshake_confirmed, _handshake_done_pending, _host_cids, _is_client, _local_max_data,
    _local_initial_source_connection_id, _local_max_streams_bidi/_uni, _network_paths, _peer_cid, _ping_pending,
    _probe_pending, _retire_connection_ids, _spaces, _state, _streams; tls._peer_certificate; receivers'
    _ranges and _stop_error_code, senders' _buffer_start and _buffer_stop.
    """

    def __init__(
        self,
        config: QuicConfiguration,
        *,
        worker: int = 0,
        key_hash: bytes = b"",
        reset_key: bytes = b"",
        original_cid: bytes | None = None,
        retry_cid: bytes | None = None,
    ) -> None:
        """`key_hash` is the server's own, `reset_key` of whoever will answer for forgotten connections; the two ids
        come from a client's first packet."""
        super().__init__(
            configuration=config,
            original_destination_connection_id=original_cid,
            retry_source_connection_id=retry_cid,
        )
        self._ack_delay = ACK_DELAY_S
        self.exporter = b""  # RFC 8446 section 7.5, 32 bytes once the keys are there
        self._own_key_hash = key_hash
        self._worker, self._reset_key = worker, reset_key
        self._trusted = False
        self._consumed: dict[int, int] = {}  # stream id -> bytes the application took
        self._consumed_total = 0
        first = self._host_cids[0]
        first.cid = self.host_cid = self._local_initial_source_connection_id = bytes([worker]) + first.cid[1:]
        if reset_key and not config.is_client:
            first.stateless_reset_token = reset_token(reset_key, first.cid)
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
    def reset_token(self) -> bytes:
        """What the end of a datagram is that says that the peer forgot us (RFC 9000 section 10.3); empty: unknown."""
        return self._peer_cid.stateless_reset_token

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
        """The peer makes us keep more separate pieces of a stream, or of the handshake, than loss explains."""
        streams = (*self._streams.values(), *self._crypto_streams.values())
        return any(len(stream.receiver._ranges) > GAPS_MAX for stream in streams)

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
        before = len(self._host_cids)
        super()._replenish_connection_ids()
        for entry in self._host_cids[before:]:
            entry.cid = bytes([self._worker]) + entry.cid[1:]
            if self._reset_key:
                entry.stateless_reset_token = reset_token(self._reset_key, entry.cid)

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


def reset_token(key: bytes, cid: bytes) -> bytes:
    """The bytes that end a connection of ours (RFC 9000 section 10.3.2): nothing is kept, a restart gives the same."""
    return hashlib.blake2b(cid, key=key, digest_size=RESET_TOKEN_BYTES).digest()


def _digest(algorithm: hashes.HashAlgorithm) -> bytes:
    return hashes.Hash(algorithm).finalize()

"""The node's UDP endpoint: one socket that listens and dials, so that peers see our listening port as source.

Everything a stranger can make us hold has a bound here: connections, half-open ones, their time.
"""

import asyncio
import datetime
import hashlib
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Self

from aioquic._buffer import Buffer
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.connection import NetworkAddress
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from federation.credit import RESET_TOKEN_BYTES, NodeQuic, configuration, reset_token
from federation.dialer import CID_BYTES, IDLE_S, RESET_BYTES_MIN, Dialer
from federation.identity import address_text, origin
from federation.quic import Connection, QuicChannel

CONNECTIONS_MAX = 4096  # inbound ones of one protocol at once, unless the host says otherwise
HALF_OPEN_MAX = 256  # inbound ones without a handshake or a stream yet
HALF_OPEN_PER_ORIGIN_MAX = 32  # of these by one address that proved itself; others cannot use it up
HALF_OPEN_S = 10.0  # time for both
NOISE_PER_S_MAX = 64  # first packets without a handshake in them; from here on, as with RETRY_ABOVE
RESETS_PER_S_MAX = 100  # answers to datagrams of forgotten connections
RESET_BYTES_MAX = 40  # of such an answer
RETRY_ABOVE = 64  # half-open ones; from here on a stranger must first prove its address
BOUNDS = {"roost-node/1": CONNECTIONS_MAX, "roost-client/1": CONNECTIONS_MAX}
CERTIFICATE_YEARS = 30  # nobody checks it: the hello proves identity

logger = logging.getLogger(__name__)

Accept = Callable[[str, QuicChannel], Awaitable[None]]


@dataclass(frozen=True)
class TlsIdentity:
    """A certificate with its key; who we are is proved by the signed hello, this only carries TLS."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    key_hash: bytes  # SHA-256 of the SubjectPublicKeyInfo, 32 bytes

    @classmethod
    def generate(cls) -> Self:
        """A fresh P-256 key in a self-signed certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "roost")])
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(
            issuer_name=name,
            subject_name=name,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(days=1),  # clocks differ
            not_valid_after=now + datetime.timedelta(days=365 * CERTIFICATE_YEARS),
        )
        return cls.of(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def of(cls, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Self:
        """An identity from its parts."""
        spki = certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(certificate, key, hashlib.sha256(spki).digest())

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """The reverse of `pem()`. ValueError if it does not hold a certificate and an EC key."""
        key = serialization.load_pem_private_key(pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the TLS key is not an elliptic-curve key: generate a new one")
        return cls.of(x509.load_pem_x509_certificate(pem), key)

    def pem(self) -> bytes:
        """Certificate and key (not encrypted!) in one file, as `ssl.SSLContext.load_cert_chain` takes it."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self.certificate.public_bytes(serialization.Encoding.PEM) + key


@dataclass(frozen=True)
class Counters:
    """What passed through an endpoint since it opened."""

    accepted: int  # inbound channels
    refused: int  # inbound connections unanswered or ended at a bound, or dropped at the half-open deadline
    half_open: int  # inbound connections without a channel, now
    crowded: int  # of the refused, those whose address had its share of half-open connections
    retried: int  # strangers who were asked to prove their address first
    resets: int  # datagrams of forgotten connections that were answered
    resets_refused: int  # and those that were not: too many in one second
    bytes_received: int
    bytes_sent: int


class Endpoint(Dialer):
    """One UDP socket that listens and dials; `accept(alpn, channel)` runs in a task per inbound channel."""

    def __init__(
        self, tls: TlsIdentity, accept: Accept, bounds: Mapping[str, int], worker: int, idle_s: float, reset_key: bytes
    ) -> None:
        """Use `Endpoint.open`."""
        super().__init__(idle_s=idle_s)
        self._worker, self._reset_key = worker, reset_key or os.urandom(32)
        self._tls = tls
        self._accept = accept
        self._bounds = dict(bounds)
        self._served = Counter[str]()  # inbound channels by ALPN
        self._retry = QuicRetryTokenHandler()
        self._half_open: dict[Connection, asyncio.TimerHandle] = {}
        self._proved: dict[Connection, bytes] = {}  # those of them that passed a Retry, and where they are
        self._accepts: set[asyncio.Task[None]] = set()
        self._accepted = self._refused = self._crowded = self._retried = self._resets = self._resets_refused = 0
        self._second = self._noise = self._answered = 0  # of the current second

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        tls: TlsIdentity,
        accept: Accept,
        bounds: Mapping[str, int] = BOUNDS,
        worker: int = 0,
        idle_s: float = IDLE_S,
        reset_key: bytes = b"",
    ) -> Self:
        """Listen on `host` (`::` is IPv4 too) and `port` (0: any). OSError unchanged, as for a busy port.

        `bounds`: the ALPNs served, and how many inbound channels of each at once; one does not crowd out the other.
        A channel lives as long as its `accept` call: when that returns or raises, the channel is closed. With the
        same secret `reset_key` (at most 64 bytes) the next process here ends at once what this one leaves behind.
        """
        endpoint = cls(tls, accept, bounds, worker, idle_s, reset_key)
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, addr = found[0]
        endpoint._lookup_family = socket.AddressFamily(family)
        endpoint._listen(socket.socket(family, socket.SOCK_DGRAM), addr)
        return endpoint

    @property
    def port(self) -> int:
        """The UDP port we listen on and dial from."""
        return int(next(iter(self._sockets.values())).getsockname()[1])

    def served(self, alpn: str) -> int:
        """Inbound channels of a protocol, now."""
        return self._served[alpn]

    @property
    def counters(self) -> Counters:
        return Counters(
            self._accepted, self._refused, len(self._half_open), self._crowded, self._retried, self._resets,
            self._resets_refused,
            self.bytes_received, self.bytes_sent,
        )  # fmt: skip

    @property
    def of_one_origin(self) -> int:
        """The most half-open connections of one address that proved itself, now."""
        return max(Counter(self._proved.values()).values(), default=0)

    @property
    def resets_now(self) -> int:
        """Datagrams of forgotten connections answered in this second."""
        return self._this_second()._answered

    async def close(self) -> None:
        """Close every channel (at most DRAIN_S), end the accept tasks, release the socket."""
        await super().close()
        for task in self._accepts:
            task.cancel()
        await asyncio.gather(*self._accepts, return_exceptions=True)

    def stray(self, data: bytes, addr: NetworkAddress) -> None:
        """A datagram of no known connection: perhaps the first of a new one, or a late one of an old one."""
        if data[:1] < b"\x80":
            if not self.ended_by(data, addr):
                self._send_reset(data, addr)
            return
        if len(data) < SMALLEST_MAX_DATAGRAM_SIZE:
            return  # RFC 9000 section 14.1; answering less would amplify
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CID_BYTES)
        except ValueError:
            return
        if header.packet_type == QuicPacketType.VERSION_NEGOTIATION:
            return  # an answer could loop between two servers for ever
        if header.version != QuicProtocolVersion.VERSION_1:
            versions = [QuicProtocolVersion.VERSION_1]
            answer = encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=list(versions),
            )
            self.send_datagrams([(answer, addr)])
        elif header.packet_type == QuicPacketType.INITIAL:
            self._knock(header, data, addr)

    def opened(self, connection: Connection) -> None:
        """The first stream of an inbound connection is there: hand its channel over."""
        self._half_open.pop(connection).cancel()
        self._proved.pop(connection, None)
        if self._served[connection.alpn] >= self._bounds[connection.alpn]:
            self._refused += 1
            connection.close("too many connections; try again later")
            return
        self._served[connection.alpn] += 1
        self._accepted += 1
        task = self._loop.create_task(self._serve(connection))
        self._accepts.add(task)
        task.add_done_callback(self._accepts.discard)

    def ended(self, connection: Connection) -> None:
        super().ended(connection)
        if timer := self._half_open.pop(connection, None):
            timer.cancel()
        self._proved.pop(connection, None)

    async def _serve(self, connection: Connection) -> None:
        channel = connection.channel
        assert channel is not None
        try:
            await self._accept(connection.alpn, channel)
        except Exception:  # the host's bug ends one channel, not the endpoint
            logger.exception("serving %s failed", channel.remote)
            connection.close("internal error")
        finally:
            await channel.close()
            self._served[connection.alpn] -= 1

    def _knock(self, header: QuicHeader, data: bytes, addr: NetworkAddress) -> None:
        """A stranger's first packet: no answer at a bound, a Retry under load, else a new connection.

        Only who proved its address by a Retry (RFC 9000 section 8.1.2) is held to its share: anybody can write
        somebody else's address on a datagram.
        """
        original_cid, retry_cid, where = header.destination_cid, None, b""
        if header.token:
            try:
                original_cid = self._retry.validate_token(
                    address=addr, destination_cid=original_cid, token=header.token, now=self._loop.time()
                )
            except ValueError:
                self._refused += 1
                return
            retry_cid, where = header.destination_cid, origin(address_text(addr))
        elif len(self._half_open) - len(self._proved) > RETRY_ABOVE or self._this_second()._noise > NOISE_PER_S_MAX:
            self._retried += 1
            self._send_retry(header, addr)
            return
        crowded = where != b"" and list(self._proved.values()).count(where) >= HALF_OPEN_PER_ORIGIN_MAX
        if crowded or len(self._half_open) >= HALF_OPEN_MAX:
            self._refused += 1
            self._crowded += crowded
            return
        config = configuration(is_client=False, alpns=list(self._bounds), idle_s=self._idle_s)
        config.certificate, config.private_key = self._tls.certificate, self._tls.key
        quic = NodeQuic(
            config,
            worker=self._worker,
            key_hash=self._tls.key_hash,
            reset_key=self._reset_key,
            original_cid=original_cid,
            retry_cid=retry_cid,
        )
        connection = self._begin(quic)
        self.cid_issued(header.destination_cid, connection)
        self._half_open[connection] = self._loop.call_later(HALF_OPEN_S, self._expire, connection)
        if where:
            self._proved[connection] = where
        connection.receive(data, addr)
        if not quic.begun:
            self._this_second()._noise += 1
            connection.close("not a QUIC handshake")

    def _send_retry(self, header: QuicHeader, addr: NetworkAddress) -> None:
        source_cid = bytes([self._worker]) + os.urandom(CID_BYTES - 1)
        token = self._retry.create_token(
            address=addr,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=source_cid,
            now=self._loop.time(),
        )
        answer = encode_quic_retry(
            version=QuicProtocolVersion.VERSION_1,
            source_cid=source_cid,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )
        self.send_datagrams([(answer, addr)])

    def _send_reset(self, data: bytes, addr: NetworkAddress) -> None:
        """Tell the sender that its connection is gone (RFC 9000 section 10.3), so that a restart is noticed at once.

        Always shorter than what it answers, so two who answer each other soon stop, and nobody is flooded by us.
        """
        size = min(len(data) - 1, RESET_BYTES_MAX)
        cid = data[1 : 1 + CID_BYTES]
        if size < RESET_BYTES_MIN or not data[0] & 0x40 or cid[0] != self._worker:
            return
        if self._this_second()._answered >= RESETS_PER_S_MAX:
            self._resets_refused += 1
        else:
            self._answered += 1
            self._resets += 1
            head = bytearray(os.urandom(size - RESET_TOKEN_BYTES))
            head[0] = head[0] & 0x3F | 0x40  # as any packet with a short header
            self.send_datagrams([(bytes(head) + reset_token(self._reset_key, cid), addr)])

    def _this_second(self) -> Self:
        """With counters that begin anew each second."""
        if (second := int(self._loop.time())) != self._second:
            self._second, self._noise, self._answered = second, 0, 0
        return self

    def _expire(self, connection: Connection) -> None:
        self._refused += 1
        connection.close("too slow to open a channel")

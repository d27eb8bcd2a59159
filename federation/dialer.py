"""A UDP endpoint that only dials: what a client needs, and what the node's `endpoint.Endpoint` builds on."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Self

from aioquic.quic.connection import NetworkAddress

from federation.credit import RESET_TOKEN_BYTES, NodeQuic, configuration
from federation.identity import address_text
from federation.ports import ChannelClosed
from federation.quic import Connection, QuicChannel
from federation.reach import Reach, may_call
from federation.udp import Udp

RECEIVE_BYTES_MAX = 2048  # a longer datagram is dropped: none of ours is
READ_BATCH_MAX = 32  # datagrams after which a wake-up reads no more, so that one socket cannot starve the loop
RESET_BYTES_MIN = 5 + RESET_TOKEN_BYTES  # RFC 9000 section 10.3
CID_BYTES = 8  # length of the connection ids we issue
IDLE_S = 60.0  # silence after which a connection is dead
DIAL_S = 5.0  # default time to connect


class Dialer:
    """A UDP endpoint that only dials: `async with Dialer() as d: await d.dial(("host", 7701), "alpn/1")`."""

    def __init__(self, *, idle_s: float = IDLE_S) -> None:
        """`idle_s`: silence after which a connection counts as dead."""
        self._loop = asyncio.get_running_loop()
        self._idle_s = idle_s
        self._worker = 0
        self._connections: dict[bytes, Connection] = {}  # by each connection id a peer may use for us
        self._sockets: dict[int, Udp] = {}  # by address family
        self._lookup_family = socket.AF_UNSPEC
        self._closed = False
        self._live: dict[Connection, None] = {}  # a set in order
        self._forgotten_by: dict[bytes, Connection] = {}  # by the token that ends it
        self._reset_key = b""
        self.bytes_received = self.bytes_sent = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def dial(
        self, addr: tuple[str, int], alpn: str, timeout: float = DIAL_S, widest: Reach | None = None
    ) -> QuicChannel:
        """Connect within `timeout` seconds and open a channel, on which this side must speak first.

        With `widest` only addresses within that reach are called: what is looked up is checked, and exactly that is
        called. Raises `ChannelClosed` when nobody answers, the other side refuses, or the name is unknown.
        """
        if self._closed:
            raise ChannelClosed("this endpoint is closed")
        where = address_text(addr)
        try:
            async with asyncio.timeout(timeout):
                targets = await self._resolve(addr, widest)
        except (OSError, TimeoutError, UnicodeError) as error:  # the last: no name at all, such as `a..b`
            raise ChannelClosed(f"cannot find {where}: {error or 'no answer from DNS'}") from error
        reason = "" if targets else "a hint of a hello may not lead there"
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
        if not datagrams:
            return
        family = socket.AF_INET6 if len(datagrams[0][1]) == 4 else socket.AF_INET  # all of one connection
        if (udp := self._sockets.get(family)) is not None:
            self.bytes_sent += udp.send(datagrams)

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
            self._connections.pop(cid, None)  # its retirement may have come first
        connection.cids = []
        self._live.pop(connection, None)
        self._forgotten_by.pop(connection.reset_token, None)

    def reset_known(self, token: bytes, connection: Connection) -> None:
        self._forgotten_by.pop(connection.reset_token, None)
        connection.reset_token = token
        if token:
            self._forgotten_by[token] = connection

    def stray(self, data: bytes, addr: NetworkAddress) -> None:
        """A datagram of no known connection: for one who only dials, perhaps the end of one."""
        self.ended_by(data, addr)

    def ended_by(self, data: bytes, addr: NetworkAddress) -> bool:
        """Whether it was a stateless reset (RFC 9000 section 10.3.1), which has been heeded."""
        connection = self._forgotten_by.get(data[-RESET_TOKEN_BYTES:]) if len(data) >= RESET_BYTES_MIN else None
        if connection is None or connection.quic.get_peer_address() != addr:
            return False
        connection.forgotten()
        return True

    async def _dial(self, target: NetworkAddress, alpn: str, timeout: float) -> QuicChannel:
        config = configuration(is_client=True, alpns=[alpn], idle_s=self._idle_s)
        connection = self._begin(NodeQuic(config, worker=self._worker, reset_key=self._reset_key))
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

    async def _resolve(self, addr: tuple[str, int], widest: Reach | None = None) -> list[tuple[int, NetworkAddress]]:
        """The first allowed address of each family, those that need no name server without waiting."""
        flags = socket.AI_V4MAPPED if self._lookup_family == socket.AF_INET6 else 0
        kind, host, port = socket.SOCK_DGRAM, addr[0], addr[1]
        family = self._lookup_family
        try:
            found = socket.getaddrinfo(host, port, family, kind, 0, flags | socket.AI_NUMERICHOST)
        except socket.gaierror:
            found = await self._loop.getaddrinfo(host, port, family=family, type=kind, flags=flags)
        if widest is not None:
            found = [entry for entry in found if may_call(str(entry[4][0]), widest)]
        return list({family: target for family, _, _, _, target in reversed(found)}.items())

    def _open(self, family: int) -> None:
        """A socket of the family, on a free port. OSError if the host lacks the family."""
        if family not in self._sockets:
            self._listen(socket.socket(family, socket.SOCK_DGRAM), ("", 0))

    def _listen(self, sock: socket.socket, addr: NetworkAddress) -> None:
        self._sockets[sock.family] = udp = Udp(sock, addr)
        self._loop.add_reader(udp, self._readable, udp)

    def _readable(self, udp: Udp) -> None:
        # asyncio's own transport reads one datagram per loop turn: reading several lets sends be batched
        read = 0
        while read < READ_BATCH_MAX:
            try:
                datagrams, addr = udp.receive()
            except OSError:  # nothing left, or an ICMP error about an earlier send
                return
            read += len(datagrams)
            for data in datagrams:
                self._received(data, addr)

    def _received(self, data: bytes, addr: NetworkAddress) -> None:
        self.bytes_received += len(data)
        if len(data) > RECEIVE_BYTES_MAX:
            return
        # RFC 9000 section 17: a long header carries the id's length, ours are CID_BYTES
        long = data[:1] >= b"\x80"
        cid = data[6 : 6 + data[5]] if long and len(data) > 5 else data[1 : 1 + CID_BYTES]
        connection = self._connections.get(cid)
        if connection is not None:
            connection.receive(data, addr)
        elif not self._closed:
            self.stray(data, addr)

"""A UDP socket that sends and takes many datagrams in one call where Linux can (udp(7): UDP_SEGMENT, UDP_GRO)."""

import errno
import logging
import socket
import struct
import sys
from collections.abc import Iterator, Sequence

from aioquic.quic.connection import NetworkAddress

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104  # linux/udp.h; the socket module does not have them all
SEGMENTS_MAX = 64  # of one call, in every kernel that has it
BATCH_BYTES_MAX = 65_000  # one call is one datagram to the kernel until late
BUFFER_BYTES = 1 << 16
SOCKET_BYTES = 4 << 20  # kernel buffer each way, as far as the system allows
SIZE = struct.Struct("=H")
UNABLE = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP)  # of a way out that cannot cut what it is given
ANCILLARY_BYTES = socket.CMSG_SPACE(4) if hasattr(socket, "CMSG_SPACE") else 0

logger = logging.getLogger(__name__)


class Udp:
    """Takes over a socket and binds it; OSError, as for a busy port, after closing it."""

    def __init__(self, sock: socket.socket, addr: NetworkAddress) -> None:
        self._sock = sock
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
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
        self.takes_many, self.sends_many = _has(sock, UDP_GRO, 1), _has(sock, UDP_SEGMENT, 0)

    def fileno(self) -> int:
        return self._sock.fileno()

    def getsockname(self) -> NetworkAddress:
        name: NetworkAddress = self._sock.getsockname()
        return name

    def close(self) -> None:
        self._sock.close()

    def send(self, datagrams: Sequence[tuple[bytes, NetworkAddress]]) -> int:
        """Bytes that left; what the kernel does not take counts as lost, and QUIC repeats it."""
        sent = 0
        for batch, addr in batches(datagrams):
            if self.sends_many or len(batch) == 1:
                sent += self._send(batch, addr)
            else:
                sent += sum(self._send([data], addr) for data in batch)
        return sent

    def _send(self, batch: list[bytes], addr: NetworkAddress) -> int:
        try:
            if len(batch) == 1:
                return self._sock.sendto(batch[0], addr)
            size = (SOL_UDP, UDP_SEGMENT, SIZE.pack(len(batch[0])))
            return self._sock.sendmsg((b"".join(batch),), (size,), 0, addr)
        except BlockingIOError:
            return 0
        except OSError as error:
            logger.debug("to %s: %s", addr, error)
            if len(batch) > 1 and error.errno in UNABLE:  # the way out cannot
                self.sends_many = False
                return sum(self._send([data], addr) for data in batch)
            return 0

    def receive(self) -> tuple[list[bytes], NetworkAddress]:
        """The datagrams of one call, all of one sender. OSError: nothing there, or an ICMP error about a sending."""
        if not self.takes_many:
            data, addr = self._sock.recvfrom(BUFFER_BYTES)
            return [data], addr
        size, ancillary, _, addr = self._sock.recvmsg_into((self._buffer,), ANCILLARY_BYTES)
        for level, kind, value in ancillary:
            if level == SOL_UDP and kind == UDP_GRO:
                step = int.from_bytes(value[:4], sys.byteorder)
                return [bytes(self._view[at : min(at + step, size)]) for at in range(0, size, step)], addr
        return [bytes(self._view[:size])], addr


def batches(datagrams: Sequence[tuple[bytes, NetworkAddress]]) -> Iterator[tuple[list[bytes], NetworkAddress]]:
    """Runs to one address that one call can send: all of one size, but the last, which may be shorter."""
    batch: list[bytes] = []
    to: NetworkAddress = ()
    for data, addr in datagrams:
        size = len(batch[0]) if batch else 0
        fits = len(batch) < SEGMENTS_MAX and (len(batch) + 1) * size <= BATCH_BYTES_MAX
        if batch and (addr != to or not fits or len(data) > size or len(batch[-1]) < size):
            yield batch, to
            batch = []
        batch.append(data)
        to = addr
    if batch:
        yield batch, to


def _has(sock: socket.socket, option: int, value: int) -> bool:
    """Whether the kernel knows the option, which is set; no other system has it."""
    try:
        sock.setsockopt(SOL_UDP, option, value)
    except OSError:
        return False
    return sys.platform == "linux"

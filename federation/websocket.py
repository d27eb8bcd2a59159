"""WebSockets for where UDP does not get through: dialling one, and a link's channel over one (PROTOCOL.md 5.10)."""

import asyncio
import hashlib
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from federation.framing import Cutter, framed
from federation.identity import address_text, split_host_port
from federation.ports import FRAME_BYTES_MAX, HELLO_BYTES_MAX, Binding, ChannelClosed
from federation.reach import Reach, may_call

LINK_PATH = "/v1/node"
MESSAGE_BYTES_MAX = 64 << 10  # of one binary message of a link
SEGMENT_BYTES = 1024  # of TCP: what does not get through as QUIC, as it is too long, does so in these
CLOSE_S = 2.0  # longest wait for the other side's goodbye
PLAIN = bytes(32)  # the key hash where no TLS is spoken (PROTOCOL.md 3.2)


class Socket(Protocol):
    """What aiohttp's WebSockets of both sides have in common."""

    @property
    def close_code(self) -> int | None: ...

    async def receive(self) -> aiohttp.WSMessage: ...

    async def send_bytes(self, data: bytes) -> None: ...

    async def close(self, *, message: bytes = b"") -> bool: ...


class Dialled(NamedTuple):
    """An open WebSocket, where it leads, and what its hello is bound to; `release` after its end."""

    socket: aiohttp.ClientWebSocketResponse
    remote: str
    binding: Binding
    release: Callable[[], Awaitable[None]]


async def dial(
    host: str, port: int, path: str, timeout: float, message_bytes_max: int, widest: Reach | None = None
) -> Dialled:
    """Connect within `timeout` seconds, over TLS, or else in the clear where the host is this machine itself.

    `ChannelClosed` says why not. Certificates are not judged: the hello proves identity. A node that listens on this
    machine alone speaks no TLS, one that listens everywhere does, and its address does not tell which. With `widest`
    only addresses within that reach are called.
    """
    remote = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)

    def opened_for(where: aiohttp.AddrInfoType) -> socket.socket:
        """Checked here, what is checked is what is called."""
        if widest is not None and not may_call(str(where[4][0]), widest):
            raise OSError("a hint of a hello may not lead there")
        made = socket.socket(*where[:3])
        if not is_loopback(host) and hasattr(socket, "TCP_MAXSEG"):
            with suppress(OSError):  # a system that only tells it
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
        return made

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=opened_for), trace_configs=[trace])
    closing = aiohttp.ClientWSTimeout(ws_close=CLOSE_S)
    reason: object = ""
    try:
        async with asyncio.timeout(timeout):
            for scheme in ("wss", "ws") if is_loopback(host) else ("wss",):
                try:
                    opened = await session.ws_connect(
                        f"{scheme}://{remote}{path}", ssl=context, timeout=closing, max_msg_size=message_bytes_max + 1
                    )
                    key_hash = _key_hash(opened.get_extra_info("ssl_object")) if scheme == "wss" else PLAIN
                    remote = address_text(opened.get_extra_info("peername"))
                    return Dialled(opened, remote, Binding("tcp", key_hash, b""), session.close)
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    reason = getattr(error, "os_error", error)  # a connector's own text prints objects
                    if isinstance(error, aiohttp.WSServerHandshakeError):
                        reason = f"HTTP status {error.status}"
                        break  # TLS was spoken
    except TimeoutError:
        reason = f"no answer within {timeout:g} s"
    except BaseException:
        await session.close()
        raise
    await session.close()
    raise ChannelClosed(f"no WebSocket at {remote}: {reason or 'no answer'}")


async def dial_link(address: str, timeout: float, why: str, widest: Reach | None = None) -> "LinkChannel":
    """A channel to the node at HOST:PORT as by `dial`; `why`: for people, why not over QUIC."""
    host, port = split_host_port(address)
    found = await dial(host, port, LINK_PATH, timeout, MESSAGE_BYTES_MAX, widest)
    return LinkChannel(found.socket, found.remote, found.binding, why, found.release)


class LinkChannel:
    """A `ports.Channel`: the bytes of 5.1 in binary messages, cut anywhere, so that a message is never long."""

    def __init__(
        self,
        socket: Socket,
        remote: str,
        binding: Binding,
        why: str,
        release: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.remote, self.binding, self.why = remote, binding, why
        self.trusted = False
        self._socket, self._release = socket, release
        self._cutter = Cutter()
        self._sending = asyncio.Lock()  # frames of two senders must not mix
        self._broken = ""

    async def send(self, *frames: bytes) -> None:
        """Returns once the socket's buffer has room. Raises `ChannelClosed`."""
        data = framed(frames)
        async with self._sending:
            if self._broken:
                raise ChannelClosed(self._broken)
            self._broken = "a frame was sent in part"  # so it stays when this is cancelled half-way
            try:
                for start in range(0, len(data), MESSAGE_BYTES_MAX):
                    await self._socket.send_bytes(data[start : start + MESSAGE_BYTES_MAX])
            except (aiohttp.ClientError, OSError, RuntimeError) as error:
                self._broken = f"the WebSocket to {self.remote} broke: {error}"
                raise ChannelClosed(self._broken) from None
            self._broken = ""

    async def recv(self) -> Sequence[bytes]:
        """Whole frames, at least one; [] is a clean end, else `ChannelClosed`."""
        loop, deadline = asyncio.get_running_loop(), None
        while True:
            if self._cutter and deadline is None:
                deadline = loop.time() + self._cutter.seconds
            try:
                async with asyncio.timeout_at(deadline):
                    message = await self._socket.receive()
            except TimeoutError:
                raise ChannelClosed(f"a frame of {self.remote} took too long to arrive") from None
            if message.type is aiohttp.WSMsgType.BINARY:
                frames = self._cutter.feed(message.data)
                most = FRAME_BYTES_MAX if self.trusted else HELLO_BYTES_MAX
                if max([self._cutter.announced, *map(len, frames)]) > most:
                    raise ChannelClosed(f"{self.remote} sent a frame longer than {most} bytes")
                if frames:
                    return frames
            elif message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
                if self._socket.close_code == aiohttp.WSCloseCode.OK and not self._cutter:
                    return []
                raise ChannelClosed(f"the WebSocket of {self.remote} ended (code {self._socket.close_code})")
            elif message.type is aiohttp.WSMsgType.ERROR:
                raise ChannelClosed(f"the WebSocket of {self.remote} broke: {message.data}")
            else:
                raise ChannelClosed(f"{self.remote} sent a WebSocket message that is not binary")

    def trust(self) -> None:
        """From HELLO_BYTES_MAX a frame to FRAME_BYTES_MAX; before both, messages are short and few are read ahead."""
        self.trusted = True

    async def close(self, reason: str = "") -> None:
        self._broken = self._broken or reason or "closed here"
        try:
            async with asyncio.timeout(2 * CLOSE_S):  # the other side may read nothing any more
                await self._socket.close(message=reason.encode()[:120])
        except TimeoutError:
            pass
        finally:
            if self._release is not None:
                await self._release()


def is_loopback(host: str) -> bool:
    """Only this machine itself answers there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _refuse_redirect(*_: object) -> None:
    raise aiohttp.ClientError("the answer leads elsewhere")  # a peer must not choose whom we call


def _key_hash(tls: "ssl.SSLObject | None") -> bytes:
    """SHA-256 of the server's SubjectPublicKeyInfo; CERT_NONE still hands over the certificate in DER."""
    certificate = tls.getpeercert(binary_form=True) if tls is not None else None
    if not certificate:
        raise ValueError("the server showed no certificate")
    key = x509.load_der_x509_certificate(certificate).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()

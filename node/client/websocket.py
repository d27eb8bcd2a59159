"""`ports.Channel` over a WebSocket: the way in where UDP is blocked."""

import hashlib
import ipaddress
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING

from federation.ports import FRAME_BYTES_MAX, Binding, ChannelClosed

if TYPE_CHECKING:
    import aiohttp

PATH = "/v1/ws"
CLOSE_S = 2.0  # longest wait for the other side's goodbye


class WebSocketChannel:
    """One binary message a frame. aiohttp holds a sender back once its buffer is full."""

    def __init__(
        self,
        session: "aiohttp.ClientSession",
        socket: "aiohttp.ClientWebSocketResponse",
        binding: Binding,
        remote: str,
    ) -> None:
        self.binding, self.remote = binding, remote
        self._session, self._socket = session, socket

    async def send(self, *frames: bytes) -> None:
        try:
            for frame in frames:
                await self._socket.send_bytes(frame)
        except (ConnectionError, OSError, RuntimeError) as error:
            raise ChannelClosed(f"the WebSocket to {self.remote} broke: {error}") from None

    async def recv(self) -> Sequence[bytes]:
        import aiohttp

        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            return (message.data,)
        if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
            if self._socket.close_code in (1000, 1001):
                return ()
            raise ChannelClosed(f"{self.remote} closed the WebSocket ({self._socket.close_code})")
        if message.type is aiohttp.WSMsgType.ERROR:
            raise ChannelClosed(f"the WebSocket to {self.remote} broke: {message.data}")
        raise ChannelClosed(f"{self.remote} sent a WebSocket frame that is not binary")

    def trust(self) -> None:
        """Nothing to lift: aiohttp's own limit is one frame."""

    async def close(self, reason: str = "") -> None:
        try:
            await self._socket.close(message=reason.encode()[:120])
        finally:
            await self._session.close()


async def open_websocket(host: str, port: int, timeout: float) -> WebSocketChannel:
    """Dial; `ChannelClosed` when there is no WebSocket. Certificates are not judged: the hello proves identity."""
    import aiohttp

    plain = is_loopback(host)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    url = f"{'ws' if plain else 'wss'}://{where}{PATH}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    limit = aiohttp.ClientTimeout(total=timeout)
    closing = aiohttp.ClientWSTimeout(ws_close=CLOSE_S)
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_stay)
    session = aiohttp.ClientSession(timeout=limit, trace_configs=[trace])
    try:
        socket = await session.ws_connect(url, ssl=context, timeout=closing, max_msg_size=FRAME_BYTES_MAX, compress=0)
        key_hash = bytes(32) if plain else _key_hash(socket.get_extra_info("ssl_object"))
        return WebSocketChannel(session, socket, Binding("tcp", key_hash, b""), where)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        await session.close()
        reason = getattr(error, "os_error", error)  # a connector's own text prints objects
        raise ChannelClosed(f"no WebSocket at {where}: {reason or 'no answer'}") from None
    except BaseException:
        await session.close()
        raise


async def _stay(*_: object) -> None:
    """Only the address that was asked for is connected to: nobody's answer sends us elsewhere."""
    raise ValueError("it sends elsewhere, where no Roost node does")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key_hash(tls: "ssl.SSLObject | None") -> bytes:
    """SHA-256 of the server's SubjectPublicKeyInfo; CERT_NONE still hands over the certificate in DER."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    certificate = tls.getpeercert(binary_form=True) if tls is not None else None
    if not certificate:
        raise ValueError("the server showed no certificate")
    key = x509.load_der_x509_certificate(certificate).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()

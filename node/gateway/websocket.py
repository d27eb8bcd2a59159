"""HTTP and WebSocket on one TCP port: `/v1/ws` for clients, `/health` for load balancers."""

import asyncio
import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiohttp import WSMsgType, web

from federation.endpoint import TlsIdentity
from federation.ports import Binding, ChannelClosed
from node.api import CLIENT_FRAME_BYTES_MAX

if TYPE_CHECKING:
    from node.node import Node

SEND_DEADLINE_S = 30.0  # a client that takes nothing for so long is dropped
CLOSE_S = 2.0  # longest wait for the client's own goodbye
PLAIN = bytes(32)  # the TLS key hash where there is no TLS


class WebSocketChannel:
    """A `ports.Channel` over a WebSocket; the first frame decides between JSON text and MessagePack binary."""

    def __init__(self, socket: web.WebSocketResponse, binding: Binding, remote: str) -> None:
        self._socket, self.binding, self.remote = socket, binding, remote
        self.text = False

    async def recv(self) -> Sequence[bytes]:
        message = await self._socket.receive()
        if message.type is WSMsgType.TEXT:
            self.text = True
            return [str(message.data).encode()]
        if message.type is WSMsgType.BINARY:
            return [bytes(message.data)]
        if message.type is WSMsgType.ERROR:
            raise ChannelClosed(f"WebSocket error: {self._socket.exception()}")
        return []

    async def send(self, *frames: bytes) -> None:
        try:
            async with asyncio.timeout(SEND_DEADLINE_S):
                for frame in frames:
                    if self.text:
                        await self._socket.send_str(frame.decode())
                    else:
                        await self._socket.send_bytes(frame)
        except (TimeoutError, ConnectionError) as error:
            raise ChannelClosed(f"the client does not take data: {error}") from None

    def trust(self) -> None:
        """The frame limit is the same before and after login."""

    async def close(self, reason: str = "") -> None:
        await self._socket.close(message=reason.encode()[:120])


class WebDoor:
    """The TCP port: TLS with the node's own key, plain on loopback or behind a proxy only."""

    def __init__(self, node: "Node", tls: TlsIdentity) -> None:
        self._node, self._tls = node, tls
        self._runner: web.AppRunner | None = None
        self._sockets: set[web.WebSocketResponse] = set()
        self._key_hash = PLAIN

    async def open(self, host: str, port: int) -> None:
        """Raises `OSError` for a busy port."""
        app = web.Application()
        app.router.add_get("/v1/ws", self._ws)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
        await self._runner.setup()
        plain = self._node.config.tls.behind_proxy or _loopback(host)
        hashes = self._node.config.tls.proxy_key_hashes
        if self._node.config.tls.behind_proxy and hashes:
            self._key_hash = bytes.fromhex(hashes[0])
        elif not plain:
            self._key_hash = self._tls.key_hash
        context = None if plain else _server_tls(self._tls)
        await web.TCPSite(self._runner, host, port, ssl_context=context, reuse_address=True).start()

    async def _health(self, request: web.Request) -> web.Response:
        good = not self._node.failed.done()
        return web.json_response({"ok": good, "name": self._node.us.name}, status=200 if good else 503)

    async def _ws(self, request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is not None and origin.split("://")[-1] != request.host:
            raise web.HTTPForbidden(text="a page of another site may not connect here")
        limit = CLIENT_FRAME_BYTES_MAX
        socket = web.WebSocketResponse(timeout=CLOSE_S, heartbeat=30, max_msg_size=limit, compress=False)
        await socket.prepare(request)
        self._sockets.add(socket)
        channel = WebSocketChannel(socket, Binding("tcp", self._key_hash, b""), str(request.remote))
        try:
            await self._node.serve(channel, lambda: channel.text)
        finally:
            self._sockets.discard(socket)
            await socket.close()
        return socket

    async def close(self) -> None:
        for socket in list(self._sockets):
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _server_tls(tls: TlsIdentity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile() as file:  # the ssl module loads keys from files only; mode 0600
        file.write(tls.pem())
        file.flush()
        context.load_cert_chain(file.name)
    return context

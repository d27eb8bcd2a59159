"""HTTP and WebSocket on one TCP port: `/v1/ws` for clients, `/v1/node` for nodes, `/health` for load balancers."""

import asyncio
import logging
import socket
import ssl
import tempfile
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiohttp import WSMsgType, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestHandler as Handler

from federation.endpoint import CONNECTIONS_MAX, HALF_OPEN_MAX, HALF_OPEN_S, TlsIdentity
from federation.identity import address_text, origin
from federation.ports import Binding, ChannelClosed
from federation.websocket import LINK_PATH, MESSAGE_BYTES_MAX, PLAIN, LinkChannel, is_loopback
from node.api import CLIENT_FRAME_BYTES_MAX

if TYPE_CHECKING:
    from node.config import Config
    from node.node import Node

SEND_DEADLINE_S = 30.0  # a client that takes nothing for so long is dropped
STRANGERS_MAX = 1024  # links that are not up, most of them knocks
STRANGERS_PER_ORIGIN_MAX = 64  # of these from one address
BACKLOG = 4096  # connections that the kernel keeps until they are accepted: all clients at once after a restart
CLOSE_S = 2.0  # longest wait for the client's own goodbye
WHY_TCP = "the other node called over TCP: it had no answer over QUIC"
log = logging.getLogger("roost.web")


class WebSocketChannel:
    """A client's `ports.Channel`; the first frame decides between JSON text and MessagePack binary."""

    why = ""

    def __init__(
        self, socket: web.WebSocketResponse, binding: Binding, remote: str, transport: asyncio.WriteTransport
    ) -> None:
        self._socket, self.binding, self.remote, self._transport = socket, binding, remote, transport
        self.text = False
        self._ahead = 0  # bytes that were not written yet

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
        """A long frame may take long on a thin line: what counts is that some of it goes."""
        self._ahead += sum(map(len, frames))
        leaving, left = asyncio.ensure_future(self._leave(frames)), self._left()
        try:
            while not (await asyncio.wait([leaving], timeout=SEND_DEADLINE_S))[0]:
                before, left = left, self._left()
                if left >= before:
                    raise ChannelClosed("the client does not take data")
            leaving.result()
        except ConnectionError as error:
            raise ChannelClosed(f"the client does not take data: {error}") from None
        finally:
            leaving.cancel()

    def _left(self) -> int:
        return self._ahead + self._transport.get_write_buffer_size()

    async def _leave(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self._ahead -= len(frame)
            if self.text:
                await self._socket.send_str(frame.decode())
            else:
                await self._socket.send_bytes(frame)

    def trust(self) -> None:
        """The frame limit is the same before and after login."""

    async def close(self, reason: str = "") -> None:
        await self._socket.close(message=reason.encode()[:120])


class Tls(SSLProtocol):
    """One TLS connection. What asyncio reads at once is real memory for as long as the connection lives, 256 KiB each:
    two thirds of what an idle client held, and open to strangers before they said a word."""

    max_size = 16 << 10  # one TLS record


class WebDoor:
    """The TCP port: TLS with the node's own key, plain on loopback or behind a proxy only."""

    def __init__(self, node: "Node", tls: TlsIdentity) -> None:
        self._node, self._tls = node, tls
        self._runner: web.AppRunner | None = None
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._waiting: dict[Handler, asyncio.Task[None]] = {}  # connections without a request, oldest first
        self._origins = _origins(node.config)
        self._sockets: set[web.WebSocketResponse] = set()
        self._links: dict[LinkChannel, bytes] = {}  # and where each comes from
        self.links_refused = self.displaced = 0
        self._key_hash = PLAIN

    async def open(self, host: str, port: int) -> None:
        """Raises `OSError` for a busy port."""
        app = web.Application()
        app.router.add_get("/v1/ws", self._ws)
        app.router.add_get(LINK_PATH, self._link)
        app.router.add_get("/health", self._health)
        app.on_response_prepare.append(self._asked)
        self._runner = web.AppRunner(app, access_log=None, logger=log, handle_signals=False, shutdown_timeout=2.0)
        await self._runner.setup()
        plain = self._node.config.tls.behind_proxy or is_loopback(host)
        hashes = self._node.config.tls.proxy_key_hashes
        if self._node.config.tls.behind_proxy and hashes:
            self._key_hash = bytes.fromhex(hashes[0])
        elif not plain:
            self._key_hash = self._tls.key_hash
        context = None if plain else _server_tls(self._tls)
        loop = asyncio.get_running_loop()
        numeric = socket.AI_PASSIVE | socket.AI_NUMERICHOST
        try:  # a number needs no thread
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=numeric)
        except socket.gaierror:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, addr = found[0][0], found[0][4]
        self._listener = socket.create_server(
            addr, family=family, backlog=BACKLOG, dualstack_ipv6=family == socket.AF_INET6
        )
        self._listener.setblocking(False)
        self._accepting = self._node.own(self._accept(self._listener, self._runner.server, context), "TCP port")

    async def _accept(
        self, listener: socket.socket, server: Callable[[], Handler] | None, context: ssl.SSLContext | None
    ) -> None:
        """Let connections in; while too many wait for their request, the one that waits longest goes."""
        assert server is not None
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:  # out of files, perhaps
                log.error("cannot accept a connection: %s", error)
                await asyncio.sleep(1)
                continue
            if len(self._waiting) >= HALF_OPEN_MAX:
                next(iter(self._waiting.values())).cancel()
                self.displaced += 1
            handler = server()
            self._waiting[handler] = asyncio.ensure_future(self._admit(handler, connection, context))
            await asyncio.sleep(0)  # what was cancelled or begun here is so before the next one comes

    async def _admit(self, handler: Handler, connection: socket.socket, context: ssl.SSLContext | None) -> None:
        """From accept to the first request, which cancels this; all else that ends it ends the connection."""
        loop, transport = asyncio.get_running_loop(), None
        try:
            async with asyncio.timeout(HALF_OPEN_S):
                done = loop.create_future()
                protocol = handler if context is None else Tls(loop, handler, context, done, server_side=True)
                transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
                if context is not None:
                    await done
                await loop.create_future()
        except (TimeoutError, OSError):
            pass
        finally:
            if self._waiting.pop(handler, None) is not None and transport is not None:
                transport.abort()

    async def _asked(self, request: web.Request, response: web.StreamResponse) -> None:
        """The request is there. A connection takes one: the next would have to be waited for again."""
        response.headers.setdefault("Connection", "close")
        response.force_close()
        if (waiting := self._waiting.pop(request.protocol, None)) is not None:
            waiting.cancel()

    @property
    def links(self) -> int:
        """Of other nodes, now."""
        return len(self._links)

    @property
    def half_open(self) -> int:
        """Connections without a request, now."""
        return len(self._waiting)

    async def _health(self, request: web.Request) -> web.Response:
        good = not self._node.failed.done()
        return web.json_response({"ok": good, "name": self._node.us.name}, status=200 if good else 503)

    async def _ws(self, request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is not None and origin not in self._origins:
            raise web.HTTPForbidden(text="a page of another site may not connect here")
        limit = CLIENT_FRAME_BYTES_MAX + 1  # aiohttp takes less than its limit
        served = web.WebSocketResponse(timeout=CLOSE_S, heartbeat=30, max_msg_size=limit, compress=False)
        if not await _begun(served, request) or request.transport is None:
            return served
        binding = Binding("tcp", self._key_hash, b"")
        channel = WebSocketChannel(served, binding, self._remote(request), request.transport)
        with self._kept(served):
            await self._node.serve(channel, lambda: channel.text)
            await served.close()
        return served

    async def _link(self, request: web.Request) -> web.StreamResponse:
        """Another node calls, with the same bounds as over QUIC (PROTOCOL.md 5.10)."""
        if "Origin" in request.headers:
            raise web.HTTPForbidden(text="pages do not link with nodes")
        remote = self._remote(request)
        proxied = self._node.config.tls.behind_proxy
        where = origin(remote)
        strangers = [at for channel, at in self._links.items() if not channel.trusted]
        crowded = not proxied and strangers.count(where) >= STRANGERS_PER_ORIGIN_MAX
        if crowded or len(self._links) >= CONNECTIONS_MAX or len(strangers) >= STRANGERS_MAX:
            self.links_refused += 1
            raise web.HTTPServiceUnavailable(text="too many nodes are connected; try again later")
        served = web.WebSocketResponse(timeout=CLOSE_S, max_msg_size=MESSAGE_BYTES_MAX + 1, compress=False)
        channel = LinkChannel(served, remote, Binding("tcp", self._key_hash, b""), WHY_TCP)
        self._links[channel] = where
        try:
            if not await _begun(served, request):
                return served
            with self._kept(served):
                await self._node.service.accept(channel)
        finally:
            del self._links[channel]
        return served

    def _remote(self, request: web.Request) -> str:
        """Where the other side is; behind a proxy that cannot be seen."""
        proxied = self._node.config.tls.behind_proxy
        return "a proxy" if proxied else address_text(request.get_extra_info("peername"))

    @contextmanager
    def _kept(self, served: web.WebSocketResponse) -> Iterator[None]:
        self._sockets.add(served)
        try:
            yield
        finally:
            self._sockets.discard(served)

    async def close(self) -> None:
        tasks = [t for t in (self._accepting, *self._waiting.values()) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        for served in list(self._sockets):
            await served.close()
        if self._runner is not None:
            await self._runner.cleanup()


async def _begun(served: web.WebSocketResponse, request: web.Request) -> bool:
    """Answer the upgrade; false where whoever asked is gone already, which is nobody's error."""
    try:
        await served.prepare(request)
    except ConnectionResetError:
        return False
    return True


def _is_news(record: logging.LogRecord) -> bool:
    """What strangers send to the port instead of HTTP is answered, and no news to the operator."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


log.addFilter(_is_news)


def _origins(config: "Config") -> frozenset[str]:
    """The pages that may connect: those of this node's configured names. The request's own Host says nothing, since
    any name can be made to resolve to this machine while somebody's page is open (DNS rebinding)."""
    port = config.listen_at[1] if config.listen_at is not None else 0
    places = {config.name, f"{config.name}:{port}"}
    for hint in config.hints:
        host, _, at = hint.rpartition(":")
        places |= {hint, host} if at in ("80", "443") else {hint}
    return frozenset(f"{scheme}://{place}" for scheme in ("http", "https") for place in places)


def _server_tls(tls: TlsIdentity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile() as file:  # the ssl module loads keys from files only; mode 0600
        file.write(tls.pem())
        file.flush()
        context.load_cert_chain(file.name)
    return context

"""Opens what a node listens on: the UDP endpoint, the TCP port, the admin socket."""

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation import wire
from federation.calls import Caller
from federation.endpoint import CONNECTIONS_MAX, Endpoint, TlsIdentity
from federation.identity import split_host_port
from federation.ports import Channel
from federation.quic import QuicChannel
from federation.websocket import dial_link
from node import api
from node.admin import AdminSocket
from node.errors import BusyPort, CannotListen
from node.gateway.websocket import WebDoor

if TYPE_CHECKING:
    from node.node import Node


@dataclass
class Doors:
    """What a node listens on, and calls others with."""

    udp: Endpoint
    web: WebDoor | None
    admin: AdminSocket
    caller: Caller


async def open_doors(node: "Node") -> None:
    """Raises `CannotListen`. A node without `listen` still links out and still has its admin socket."""
    from node.node import REFUSED_MAX

    tls = TlsIdentity.generate()
    host, port = node.config.listen_at or ("127.0.0.1", 0)

    async def accept(alpn: str, channel: QuicChannel) -> None:
        if alpn == wire.ALPN:
            await node.service.accept(channel)
        elif alpn == api.ALPN:
            await node.serve(channel)

    try:
        bounds = {wire.ALPN: CONNECTIONS_MAX, api.ALPN: node.config.limits.sessions + REFUSED_MAX}
        endpoint = await Endpoint.open(host, port, tls, accept, bounds, reset_key=node.us.key.secret("reset"))
        node.on_close(endpoint.close)
        web = None
        if node.config.listen is not None:
            web = WebDoor(node, tls)
            node.on_close(web.close)
            await web.open(host, port)
    except OSError as error:
        kind = BusyPort if error.errno == errno.EADDRINUSE else CannotListen
        number = error.errno or 0  # below zero: of a name that does not resolve
        words = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise kind(f"cannot listen on {host}:{port}: {words}") from None

    async def dial(address: str, timeout: float) -> Channel:
        return await endpoint.dial(split_host_port(address), wire.ALPN, timeout, node.directory.reach(address))

    async def dial_tcp(address: str, timeout: float, why: str) -> Channel:
        return await dial_link(address, timeout, why, node.directory.reach(address))

    caller = Caller(dial, dial_tcp)
    admin = AdminSocket(node)
    node.doors = Doors(endpoint, web, admin, caller)
    await admin.open()
    node.on_close(admin.close)
    node.service.use(caller.dial)
    node.own(node.service.run(), "federation")

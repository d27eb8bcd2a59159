"""The way to a node: QUIC to every address of its link at once, and WebSocket when that does not answer."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from federation.identity import NodeLink, split_host_port
from federation.ports import ChannelClosed
from node import api
from node.client.errors import NodeKeyError, Unreachable
from node.client.wire import Wire, greet

PORT = 7701  # where a node listens when its link names no address
QUIC_S = 2.0  # without an answer in this time UDP counts as blocked
WEBSOCKET_S = 10.0
Want = Literal["auto", "quic", "websocket"]


async def connect(link: NodeLink, want: Want = "auto") -> Wire:
    """A checked connection to the node of the link, or `Unreachable` or `NodeKeyError`."""
    addresses = [split_host_port(text) for text in link.addresses] or [(link.name, PORT)]
    tried: list[str] = []
    if want in ("auto", "quic"):
        wire = await _quic(link, addresses, QUIC_S if want == "auto" else WEBSOCKET_S, tried)
        if wire is not None:
            return wire
    if want in ("auto", "websocket"):
        wire = await _websocket(link, addresses, tried)
        if wire is not None:
            return wire
    raise Unreachable(
        f"{link.name} does not answer. Tried {'; '.join(tried)}. "
        "Check that the node runs and that this machine may reach its port."
    )


async def _quic(link: NodeLink, addresses: list[tuple[str, int]], timeout: float, tried: list[str]) -> Wire | None:
    from federation.dialer import Dialer  # only here: an embedded client needs no QUIC

    dialer = Dialer()

    async def dial(host: str, port: int) -> Wire:
        return await greet(await dialer.dial((host, port), alpn=api.ALPN, timeout=timeout), link)

    try:
        wire = await _first(dial, addresses, "QUIC", tried)
    except BaseException:
        await dialer.close()
        raise
    if wire is None:
        await dialer.close()
    else:
        wire.release = dialer.close
    return wire


async def _websocket(link: NodeLink, addresses: list[tuple[str, int]], tried: list[str]) -> Wire | None:
    from node.client.websocket import open_websocket  # only here: aiohttp takes a while to load

    why = "; ".join(tried)

    async def dial(host: str, port: int) -> Wire:
        return await greet(await open_websocket(host, port, WEBSOCKET_S, why), link)

    return await _first(dial, addresses, "WebSocket", tried)


async def _first(
    dial: Callable[[str, int], Awaitable[Wire]],
    addresses: Sequence[tuple[str, int]],
    what: str,
    tried: list[str],
) -> Wire | None:
    """The first connection that works; a wrong key is told only when no other address is right."""
    tasks = {asyncio.ensure_future(dial(*address)): address for address in addresses}
    pending = set(tasks)
    impostor: NodeKeyError | None = None
    winner: Wire | None = None
    try:
        while pending and winner is None:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda t: addresses.index(tasks[t])):
                try:
                    wire = task.result()
                except NodeKeyError as error:
                    impostor = impostor or error
                except (ChannelClosed, Unreachable, api.ApiError) as error:
                    tried.append(f"{what} to {tasks[task][0]}:{tasks[task][1]} ({error})")
                else:
                    if winner is None:
                        winner = wire
                    else:
                        await wire.close("not needed")
    finally:
        for task in pending:
            task.cancel()
        for late in await asyncio.gather(*pending, return_exceptions=True):
            if isinstance(late, Wire):
                await late.close("not needed")
    if winner is None and impostor is not None:
        raise impostor
    return winner

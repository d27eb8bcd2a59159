"""`make bench`: what a federated message costs, and what an idle client holds. One process, so CPU is the sum of all.

Two nodes over loopback QUIC; clients speak raw client-protocol frames in process, and over QUIC and WebSocket where
they only sit there. Figures are for comparing one version with the next on one machine.
"""

import asyncio
import gc
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from federation.dialer import Dialer
from federation.identity import NodeKey, check_chain, decode_chain, split_host_port
from federation.ports import Channel
from node import admin, api, coding
from node.client.websocket import open_websocket
from node.config import Config
from node.node import Node
from node.storage import direct
from tests.bench.ports import free_port

SIGNING = NodeKey(b"bench".ljust(32))
BODY = b"x" * 200
MESSAGES = int(os.environ.get("MESSAGES", "2000"))
IDLE = int(os.environ.get("IDLE", "200"))
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
NONCE = b"n" * 32


class Peer:
    """A logged-in client over any channel: counts messages, acknowledges the feed, frees the window."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.replies: asyncio.Queue[api.Reply | api.Error] = asyncio.Queue()
        self.arrived: asyncio.Queue[int] = asyncio.Queue()
        self._number = 0

    @classmethod
    async def login(cls, channel: Channel, user: str, password: str) -> "Peer":
        self = cls(channel)
        await channel.send(coding.MSGPACK.encode(api.Hello(api.VERSION, api.VERSION, NONCE)))
        welcome = coding.MSGPACK.from_node((await channel.recv())[0])
        assert isinstance(welcome, api.Welcome)
        channel.trust()
        self.task = asyncio.ensure_future(self._read())
        node = check_chain(decode_chain(welcome.chain)).node
        proof = SIGNING.sign("device-login", api.login_bytes(node, welcome.nonce, user))
        reply = await self.ask(api.Login(1, user, password, "bench", SIGNING.public, proof))
        assert isinstance(reply.result, api.LoggedIn)
        await self.ask(api.Auth(2, reply.result.token))
        return self

    async def ask(self, request: api.Request) -> api.Reply:
        await self.channel.send(coding.MSGPACK.encode(request))
        reply = await self.replies.get()
        assert isinstance(reply, api.Reply), reply
        return reply

    async def _read(self) -> None:
        while frames := await self.channel.recv():
            for got in map(coding.MSGPACK.from_node, frames):
                if isinstance(got, api.Feed):
                    messages = sum(isinstance(item, api.Message) for item in got.items)
                    await self.channel.send(coding.MSGPACK.encode(api.Ack(got.items[-1].position)))
                    if messages:
                        self.arrived.put_nowait(messages)
                elif isinstance(got, api.Reply | api.Error):
                    self.replies.put_nowait(got)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.channel.close()


class Statements:
    """SQL statements of every store; an executemany is one."""

    def __init__(self) -> None:
        self.count = 0
        self._before = direct.run, direct.run_many
        event.listen(Engine, "before_cursor_execute", self._count)
        direct.run, direct.run_many = map(self._counted, self._before)

    def _count(self, *_: object) -> None:
        self.count += 1

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.count += 1
            return call(*args)

        return counted

    def close(self) -> None:
        event.remove(Engine, "before_cursor_execute", self._count)
        direct.run, direct.run_many = self._before


async def federated(a: Node, sender: Peer, receiver: Peer, to: str, window: int, count: int) -> tuple[str, ...]:
    """`count` messages from a to b, `window` of them sent and not yet arrived."""
    room = asyncio.Semaphore(window)

    async def arrivals() -> None:
        for_all = count
        while for_all > 0:
            arrived = await receiver.arrived.get()
            for_all -= arrived
            for _ in range(arrived):
                room.release()

    counted = Statements()
    commits = a.store.commits
    cpu, wall = time.process_time(), time.monotonic()
    arriving = asyncio.ensure_future(arrivals())
    for number in range(count):
        await room.acquire()
        send = api.Send(10 + number, f"w{window}-{number}", to, BODY)
        await sender.channel.send(coding.MSGPACK.encode(send))
    await arriving
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    counted.close()
    batches = a.store.commits - commits
    for _ in range(count):
        assert isinstance(await sender.replies.get(), api.Reply)
    return (
        f"federated send, window {window}",
        f"{count / wall:.0f} messages/s",
        f"{cpu / count * 1e6:.0f} us CPU a message (both nodes and clients)",
        f"{count / batches:.1f} messages and {counted.count / batches:.1f} statements (both nodes) a batch of a",
    )


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


async def idle(name: str, node: Node, open_channel: Callable[[], Awaitable[Channel]]) -> tuple[str, ...]:
    """Both ends live in this process: a client's figure holds its own half too."""
    peers = [await Peer.login(await open_channel(), "bob", "pw") for _ in range(5)]  # what only the first one costs
    before = resident_bytes()
    peers += [await Peer.login(await open_channel(), "bob", "pw") for _ in range(IDLE)]
    for peer in peers:
        await peer.ask(api.Ping(3))
    grown = resident_bytes() - before
    for peer in peers:
        await peer.close()
    return f"idle {name} client", f"{grown / IDLE / 1024:.0f} KiB (both ends)", f"{IDLE} clients", ""


async def measure() -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="roost-bench-"))
        nodes: list[Node] = []
        for name in "ab":
            config = Config(name=f"{name}.test", data_dir=f"{folder}/{name}", listen=f"127.0.0.1:{free_port()}")
            nodes.append(await stack.enter_async_context(Node.open(config, authenticate=_anybody)))
        a, b = nodes
        for one, other in ((a, b), (b, a)):
            await admin.call(one.config, "peer.add", {"link": str(other.link)})
        await a.create_user("alice")
        await b.create_user("bob")
        alice = await Peer.login(a.connect_inside(), "alice", "pw")
        bob = await Peer.login(b.connect_inside(), "bob", "pw")
        await federated(a, alice, bob, "bob@b.test", 8, 100)  # links up, caches warm
        for window in (1, 64):
            count = MESSAGES if window > 1 else max(10, MESSAGES // 10)
            lines.append(await federated(a, alice, bob, "bob@b.test", window, count))
        await bob.close()
        await alice.close()
        host, port = split_host_port(b.config.listen or "")
        dialer = await stack.enter_async_context(Dialer())
        lines.append(await idle("QUIC", b, lambda: dialer.dial((host, port), api.ALPN)))
        lines.append(await idle("WebSocket", b, lambda: open_websocket(host, port, 5.0)))
    return lines


async def _anybody(user: str, password: str) -> bool:
    return True  # Argon2 would be most of what a login costs here


def table(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


if __name__ == "__main__":
    sys.stdout.write(table(asyncio.run(measure())) + "\n")

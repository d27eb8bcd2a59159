"""Roost for the bench that compares chat servers (`make bench-peers`): two `roost serve`, raw WebSocket clients.

A session speaks the client protocol in MessagePack over plain WebSocket on loopback. What it does by hand, masking
and framing, is there to keep the driver cheap: it shares the machine with what it measures. As in the bench's
other adapters a session that nobody listens to asks for no feed; one that listens acknowledges what it gets.
"""

import asyncio
import base64
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from adapters.base import Adapter, Session  # noqa: E402 - the bench put its folder on the path

from federation.identity import NodeKey, check_chain, decode_chain  # noqa: E402
from node import admin, api, coding, config, config_file  # noqa: E402
from tests.bench.ports import free_port  # noqa: E402

PASSWORD = "a password of the bench"
SIGNING = NodeKey(b"bench".ljust(32))
NONCE = b"n" * 32
SETS = ["log.level=warning"]
REGISTER_PARALLEL = 4

BINARY, CLOSE, PING, PONG = 0x82, 8, 0x89, 0x8A
Token = dict[tuple[str, str], str]


def frame(head: int, payload: bytes) -> bytes:
    """A client's frame; the mask is zero, which is a mask too and costs nothing."""
    size = len(payload)
    if size < 126:
        return bytes((head, 0x80 | size)) + bytes(4) + payload
    if size < 1 << 16:
        return bytes((head, 0x80 | 126)) + size.to_bytes(2, "big") + bytes(4) + payload
    return bytes((head, 0x80 | 127)) + size.to_bytes(8, "big") + bytes(4) + payload


class RoostSession(Session, asyncio.Protocol):
    """One device on one connection."""

    def __init__(self) -> None:
        self.user = self.address = ""
        self.token = ""
        self._callback: Callable[[Any, Any], None] | None = None
        self._buffer = b""
        self._upgraded = False
        self._welcome: asyncio.Future[api.Welcome] = asyncio.get_running_loop().create_future()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._key = os.urandom(6).hex()
        self._sent = self._done = self._unsaid = 0
        self._ready: asyncio.Future[Any] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._idle = asyncio.Event()

    # --- bytes --------------------------------------------------------------------------------------------------------
    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key.encode() + b"\r\n\r\n"
        )
        self._write(api.Hello(api.VERSION, api.VERSION, NONCE))

    def connection_lost(self, error: Exception | None) -> None:
        for waiting in (self._welcome, *self._asked.values()):
            if not waiting.done():
                waiting.set_exception(ConnectionError("the node closed the connection"))
                waiting.exception()
        self._writable.set()
        self._idle.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _write(self, what: Any) -> None:
        self._transport.write(frame(BINARY, coding.MSGPACK.encode(what)))

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        start, end, done = 0, len(data), self._done
        if not self._upgraded:
            start = data.find(b"\r\n\r\n") + 4
            if start < 4:
                self._buffer = data
                return
            if b" 101 " not in data[:20]:
                self._transport.abort()
                return
            self._upgraded = True
        while end - start >= 2:
            size, skip = data[start + 1], 2
            if size >= 126:
                skip = 4 if size == 126 else 10
                size = int.from_bytes(data[start + 2 : start + skip], "big")
            if end - start < skip + size:
                break
            self._frame(data[start], data[start + skip : start + skip + size])
            start += skip + size
        self._buffer = data[start:]
        if self._unsaid:  # once for all that has come together
            self._write(api.Ack(self._unsaid))
            self._unsaid = 0
        if self._done > done:
            if self.on_ack:
                self.on_ack(self, self._done)
            if self._done == self._sent:
                self._idle.set()

    def _frame(self, head: int, payload: bytes) -> None:
        if head == BINARY:
            self._take(coding.MSGPACK.from_node(payload))
        elif head == PING:
            self._transport.write(frame(PONG, payload))
        elif head & 15 == CLOSE:
            self._transport.close()

    # --- frames -------------------------------------------------------------------------------------------------------
    def _take(self, got: api.FromNode) -> None:
        if isinstance(got, api.Feed):
            self._unsaid = got.items[-1].position
            if self._callback is not None:
                for item in got.items:
                    if isinstance(item, api.Message) and item.body and item.sender != self.address:
                        self._callback(self, item.body)
        elif isinstance(got, api.Reply):
            if isinstance(got.result, api.Accepted):
                self._done += 1
            else:
                self._asked.pop(got.id).set_result(got.result)
        elif isinstance(got, api.Error):
            if (asked := self._asked.pop(got.id, None)) is not None:
                asked.set_exception(RuntimeError(f"{got.code}: {got.message}"))
            else:
                print("  roost refuses:", got.code, got.message, flush=True)
        elif isinstance(got, api.Welcome):
            self._welcome.set_result(got)

    async def ask(self, make: Callable[[int], api.Request]) -> Any:
        number = next(self._ids)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self._write(make(number))
        return await future

    async def login(self, user: str, address: str, token: str) -> None:
        """Ends where the first use shows whether this connection wants a feed."""
        welcome = await self._welcome
        if not token:
            node = check_chain(decode_chain(welcome.chain)).node
            proof = SIGNING.sign("device-login", api.login_bytes(node, welcome.nonce, user))
            done = await self.ask(lambda n: api.Login(n, user, PASSWORD, "bench", SIGNING.public, proof))
            token = done.token
        self.user, self.token, self.address = user, token, address

    def auth(self, feed: bool) -> "asyncio.Future[Any]":
        if self._ready is None:
            number = next(self._ids)
            self._ready = self._asked[number] = asyncio.get_running_loop().create_future()
            self._write(api.Auth(number, self.token, feed=feed))
        return self._ready

    # --- the bench's contract -----------------------------------------------------------------------------------------
    @property
    def on_message(self) -> Any:
        return self._callback

    @on_message.setter
    def on_message(self, callback: Any) -> None:
        self._callback = callback
        if callback is not None:
            self.auth(True)

    async def send(self, to: str, body: str) -> None:
        if self._transport.is_closing():
            raise ConnectionError("the node closed the connection")
        if self._ready is None or not self._ready.done():
            await self.auth(False)
        number = next(self._ids)
        self._sent += 1
        self._write(api.Send(number, f"{self._key}{number}", to, body.encode()))
        if not self._writable.is_set():
            await self._writable.wait()

    async def group_send(self, room: str, body: str) -> None:
        raise NotImplementedError("this version has no groups")

    async def barrier(self) -> None:
        while self._done < self._sent and not self._transport.is_closing():
            self._idle.clear()
            await self._idle.wait()

    async def archive_ids(self, peers: Any = ()) -> set[str]:
        await self.auth(False)
        ids: set[str] = set()
        conversations: list[Any] = []
        more = True
        while more:
            after = conversations[-1].conversation if conversations else None
            some = await self.ask(lambda n, a=after: api.GetConversations(n, after=a, limit=api.PAGE_MAX))
            conversations, more = [*conversations, *some.conversations], some.more
        for conversation in conversations:
            before = None
            while True:
                page = await self.ask(
                    lambda n, c=conversation.conversation, b=before: api.GetHistory(n, c, b, api.PAGE_MAX)
                )
                ids.update(m.body[5:26].decode() for m in page.messages if m.body)
                if not page.more:
                    break
                before = page.messages[0].event
        return ids

    async def idle(self) -> None:
        self.on_message = lambda *_: None

    async def close(self) -> None:
        self._transport.close()


class Roost(Adapter):  # type: ignore[misc]
    name = "roost"

    def versions(self) -> dict[str, str]:
        return {"roost": version("roost"), "aioquic": version("aioquic"), "python": sys.version.split()[0]}

    def _folder(self, node: str) -> Path:
        return Path(self.workdir) / node

    async def prepare(self, nodes: Any = ("a", "b")) -> None:
        if self.storage != "sqlite":
            raise RuntimeError("roost is measured on sqlite")
        self._tokens: Token = {}
        self._ports = {node: free_port() for node in nodes}
        self._configs: dict[str, config.Config] = {}
        for node in nodes:
            listen = f"127.0.0.1:{self._ports[node]}"
            await self._roost("init", str(self._folder(node)), "--name", f"{node}.test", "--listen", listen)
            self._configs[node] = config_file.load(self._folder(node) / "node.yaml", SETS)
        links = {node: await admin.call(self._configs[node], "link", {}) for node in nodes}
        for node, other in itertools.permutations(nodes, 2):
            await admin.call(self._configs[node], "peer.add", {"link": links[other]})

    async def _roost(self, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "node", *arguments, cwd=ROOT, stdout=-3)
        if await process.wait():
            raise RuntimeError(f"roost {arguments[0]} failed")

    async def start_server(self, node: str) -> None:
        sets = itertools.chain.from_iterable(("--set", s) for s in SETS)
        with (self._folder(node) / "serve.log").open("ab") as log:
            self.procs[node] = [
                subprocess.Popen(  # noqa: ASYNC220
                    [sys.executable, "-m", "node", "serve", "-c", str(self._folder(node) / "node.yaml"), *sets],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            ]

    def address(self, user: str, node: str) -> str:
        return f"{user}@{node}.test"

    async def register(self, users: Any, node: str) -> None:
        """Over the admin socket, and only of the running node: `admin.call` would open the store of a stopped one."""
        waiting = iter(users)
        path = self._configs[node].data_path / config.SOCKET

        async def some() -> None:
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                for user in waiting:
                    args = {"name": user, "password": PASSWORD}
                    writer.write(msgspec.json.encode({"op": "user.add", "args": args}) + b"\n")
                    answer = msgspec.json.decode(await reader.readline() or b'{"ok": false, "code": "gone"}')
                    if not answer["ok"] and answer["code"] != "name_taken":
                        raise RuntimeError(str(answer))
            finally:
                writer.close()

        await asyncio.gather(*(some() for _ in range(REGISTER_PARALLEL)))

    async def connect(self, user: str, node: str, available: bool = True, acks: bool = False) -> RoostSession:
        """The first time a login with the password; from then on the same device comes back with its token."""
        loop = asyncio.get_running_loop()
        _, session = await loop.create_connection(RoostSession, "127.0.0.1", self._ports[node])
        try:
            await session.login(user, self.address(user, node), self._tokens.get((user, node), ""))
            if user == "probe":
                await session.auth(False)
        except BaseException:
            await session.close()
            raise
        self._tokens[user, node] = session.token
        return session

    async def link_offline(self, sender: Any, user: str, node: str) -> str:
        session = await self.connect(user, node)  # from now on a device that its mailbox waits for
        await session.auth(False)
        await session.close()
        return self.address(user, node)

    async def group_create_for(self, members: Any, name: str) -> str:
        raise NotImplementedError("this version has no groups")

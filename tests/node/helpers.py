"""Clients on raw frames, nodes on free ports, and waiting for what should happen."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from federation.identity import NodeKey, check_chain, decode_chain
from federation.ports import Binding, Channel, ChannelClosed
from node import api, coding
from node.admin import call
from node.config import Config, Federation, Link
from node.node import Node

WAIT_S = 20.0
DEVICE_KEY = NodeKey(b"k" * 32)
NONCE = b"n" * 32


def free_port() -> int:
    """Free for UDP and TCP alike, a moment ago."""
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            udp.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError):
                tcp.bind(udp.getsockname())
                return int(udp.getsockname()[1])
    raise RuntimeError("no free port")


def config(folder: Path, name: str = "a.test", **more: Any) -> Config:
    more.setdefault("link", Link(backoff_cap_ms=1000))
    return Config(name=name, data_dir=str(folder / name), **more)


def listening(folder: Path, name: str = "a.test", **more: Any) -> Config:
    return config(folder, name, listen=f"127.0.0.1:{free_port()}", **more)


class Client:
    """One connection; acknowledges its feed as it comes unless told not to."""

    def __init__(self, channel: Channel, codec: coding.Codec = coding.MSGPACK) -> None:
        self.channel, self.codec = channel, codec
        self.ids = itertools.count(1)
        self.items: list[Any] = []
        self.feeds: list[api.Feed] = []
        self.replies: dict[int, Any] = {}
        self.lights: list[api.PeerLight] = []
        self.signs: list[api.Ephemeral] = []
        self.goodbye: api.Goodbye | None = None
        self.closed = False
        self.acks = True
        self.welcome: api.Welcome
        self.token = ""
        self.device = ""

    async def hello(self) -> "Client":
        await self.tell(api.Hello(1, 1, NONCE))
        async with asyncio.timeout(WAIT_S):
            self.welcome = self.codec.from_node((await self.channel.recv())[0])  # type: ignore[assignment]
        assert isinstance(self.welcome, api.Welcome)
        return self

    async def tell(self, frame: Any) -> None:
        await self.channel.send(self.codec.encode(frame))

    async def pump(self) -> None:
        """Take what comes next."""
        try:
            async with asyncio.timeout(WAIT_S):
                frames = await self.channel.recv()
        except ChannelClosed:
            frames = []
        self.closed = not frames
        for raw in frames:
            frame = self.codec.from_node(raw)
            if isinstance(frame, api.Reply):
                self.replies[frame.id] = frame.result
            elif isinstance(frame, api.Error):
                self.replies[frame.id] = api.ApiError(frame.code, frame.message, frame.retry_after_ms)
            elif isinstance(frame, api.Feed):
                self.feeds.append(frame)
                self.items += frame.items
                if self.acks:
                    with contextlib.suppress(ChannelClosed):  # the node said goodbye; what it said before still counts
                        await self.tell(api.Ack(frame.items[-1].position))
            elif isinstance(frame, api.PeerLight):
                self.lights.append(frame)
            elif isinstance(frame, api.Ephemeral):
                self.signs.append(frame)
            elif isinstance(frame, api.Goodbye):
                self.goodbye = frame

    async def post(self, kind: Callable[..., Any], /, *args: Any, **named: Any) -> int:
        """Send a request and do not wait; gives its id."""
        number = next(self.ids)
        await self.tell(kind(number, *args, **named))
        return number

    async def answer(self, number: int) -> Any:
        async with asyncio.timeout(WAIT_S):
            while number not in self.replies:
                assert not self.closed, f"closed before the answer: {self.goodbye}"
                await self.pump()
        result = self.replies.pop(number)
        if isinstance(result, api.ApiError):
            raise result
        return result

    async def ask(self, kind: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        return await self.answer(await self.post(kind, *args, **named))

    async def item(self, wanted: Callable[[Any], bool]) -> Any:
        """The first feed item of that sort, from before or still to come."""
        async with asyncio.timeout(WAIT_S):
            while not (found := [i for i in self.items if wanted(i)]):
                assert not self.closed, f"closed: {self.goodbye}"
                await self.pump()
        return found[0]

    async def message(self, body: bytes) -> api.Message:
        found: api.Message = await self.item(lambda i: isinstance(i, api.Message) and i.body == body)
        return found

    async def sign(self, *kinds: str) -> api.Ephemeral:
        """The next sign of life of these kinds that comes after those that were taken."""
        async with asyncio.timeout(WAIT_S):
            while not (found := [sign for sign in self.signs if sign.kind in kinds]):
                assert not self.closed, f"closed: {self.goodbye}"
                await self.pump()
        self.signs.remove(found[0])
        return found[0]

    async def state(self, event: str, wanted: str) -> api.Recipient:
        """Ask until the one recipient is in that state; looks again whenever the feed moves."""
        async with asyncio.timeout(WAIT_S):
            while True:
                before = len(self.items)
                (to,) = (await self.ask(api.GetState, event)).to
                if to.state == wanted:
                    return to  # type: ignore[no-any-return]
                if len(self.items) == before:
                    await self.pump()

    async def ended(self) -> api.Goodbye | None:
        async with asyncio.timeout(WAIT_S):
            while not self.closed:
                await self.pump()
        return self.goodbye

    def login_bytes(self, user: str) -> bytes:
        return api.login_bytes(check_chain(decode_chain(self.welcome.chain)).node, self.welcome.nonce, user)

    async def login(self, user: str, password: str = "pw", name: str = "device") -> api.LoggedIn:
        proof = DEVICE_KEY.sign("device-login", self.login_bytes(user))
        made: api.LoggedIn = await self.ask(api.Login, user, password, name, DEVICE_KEY.public, proof)
        self.token, self.device = made.token, made.device
        return made

    async def register(self, invite: str, user: str, password: str = "pw") -> api.LoggedIn:
        proof = DEVICE_KEY.sign("device-login", self.login_bytes(user))
        made: api.LoggedIn = await self.ask(api.Register, invite, user, password, "d", DEVICE_KEY.public, proof)
        self.token = made.token
        return made

    async def auth(self, **more: Any) -> api.Ready:
        ready: api.Ready = await self.ask(api.Auth, self.token, **more)
        return ready

    async def send(self, to: str, body: bytes, key: str = "", **more: Any) -> api.Accepted:
        sent: api.Accepted = await self.ask(api.Send, key or f"k{next(self.ids)}", to, body, **more)
        return sent


class Socket:
    """The client's end of a WebSocket as a channel."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, text: bool) -> None:
        self.socket, self.text = socket, text
        self.binding = Binding("tcp", bytes(32), b"")
        self.remote = "test"

    async def send(self, *frames: bytes) -> None:
        for frame in frames:
            await (self.socket.send_str(frame.decode()) if self.text else self.socket.send_bytes(frame))

    async def recv(self) -> Sequence[bytes]:
        message = await self.socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            assert self.text
            return [str(message.data).encode()]
        if message.type is aiohttp.WSMsgType.BINARY:
            assert not self.text
            return [bytes(message.data)]
        return []

    def trust(self) -> None: ...

    async def close(self, reason: str = "") -> None:
        await self.socket.close()


async def stranger(node: Node) -> Client:
    """Connected inside and not logged in."""
    return await Client(node.connect_inside()).hello()


async def connect(node: Node, user: str, **more: Any) -> Client:
    """Logged in, with the feed running."""
    client = await stranger(node)
    await client.login(user)
    await client.auth(**more)
    return client


async def again(node: Node, before: Client, **more: Any) -> Client:
    """The same device on a new connection."""
    client = await stranger(node)
    client.token = before.token
    await client.auth(**more)
    return client


async def befriend(*nodes: Node) -> None:
    """Every administrator adds every other node."""
    for node in nodes:
        for other in nodes:
            if other is not node:
                await call(node.config, "peer.add", {"link": str(other.link)})


@contextlib.asynccontextmanager
async def two_nodes(folder: Path, policy_b: str = "allowlist", **more: Any) -> AsyncIterator[tuple[Node, Node]]:
    """a.test with alice and b.test with bob, over real QUIC."""
    b_config = listening(folder, "b.test", federation=Federation(policy=policy_b), **more)  # type: ignore[arg-type]
    async with Node.open(listening(folder, "a.test")) as a, Node.open(b_config) as b:
        await a.create_user("alice", "pw")
        await b.create_user("bob", "pw")
        yield a, b

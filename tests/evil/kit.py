"""A peer and a client that are driven by hand, frame by frame, and so can do everything that ours never do.

async with served(node) as open_door:                      # every door of the node, by name
    evil = await Peer(await open_door("quic", wire.ALPN)).greet()
    await evil.tell(wire.Events(...))                      # or evil.raw(b"...")
    assert (await evil.until(wire.Goodbye)).code == "..."
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import msgspec

from federation import wire
from federation.dialer import Dialer
from federation.event import Event, Header, Signed, body_hash, sign_event
from federation.identity import NodeKey, check_chain, hello_bytes, new_chain, split_host_port
from federation.ids import User, direct_conversation, notice_conversation
from federation.memory import pair
from federation.ports import Channel, ChannelClosed
from federation.websocket import dial_link
from node import api, coding
from node.core.people import AddDevice
from node.node import Node
from node.system import token_hash
from tests.node.helpers import DEVICE_KEY, Client, Socket

WAIT_S = 20.0
F = TypeVar("F")
OpenDoor = Callable[..., Awaitable[Channel]]
_tokens = itertools.count(1)


@asynccontextmanager
async def served(node: Node) -> AsyncIterator[OpenDoor]:
    """A way in through each door: `memory`, and with `listen` also `quic`; over TCP `json` and `msgpack` for clients,
    `tcp` for nodes."""
    tasks: set[asyncio.Future[Any]] = set()
    async with AsyncExitStack() as stack:

        async def open_door(door: str, alpn: str = api.ALPN) -> Channel:
            if door == "memory" and alpn == api.ALPN:
                return node.connect_inside()
            if door == "memory":
                ours, theirs = pair()
                tasks.add(asyncio.ensure_future(node.service.accept(theirs)))
                return ours
            assert node.config.listen is not None
            if door == "tcp":
                channel = await dial_link(node.config.listen, WAIT_S, "a test")
                stack.push_async_callback(channel.close)
                return channel
            where = split_host_port(node.config.listen)
            if door == "quic":
                dialer = await stack.enter_async_context(Dialer())
                return await dialer.dial(where, alpn, WAIT_S)
            http = await stack.enter_async_context(aiohttp.ClientSession(f"http://{node.config.listen}"))
            return Socket(await http.ws_connect("/v1/ws"), door == "json")

        yield open_door
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Peer:
    """One end of a link that says exactly what it is told to."""

    def __init__(self, channel: Channel, seed: int = 1, name: str = "", dialled: bool = True) -> None:
        self.channel, self.dialled = channel, dialled
        self.key = NodeKey(seed.to_bytes(32, "big"))
        self.chain = new_chain(self.key, NodeKey((seed + 1000).to_bytes(32, "big")).public, bytes(32))
        self.node = check_chain(self.chain).node
        self.name = name or f"evil{seed}.test"
        self.incarnation = seed.to_bytes(16, "big")
        self.nonce = seed.to_bytes(32, "big")
        self.frames: list[wire.AnyFrame] = []  # received and not yet asked for
        self.theirs: wire.Offer | None = None
        self.closed = False

    # --- frames -------------------------------------------------------------------------------------------------------
    async def raw(self, *frames: bytes) -> None:
        await self.channel.send(*frames)

    async def tell(self, *frames: wire.AnyFrame) -> None:
        await self.raw(*map(wire.encode, frames))

    async def until(self, *kinds: type[F]) -> F:
        """The next frame of one of these types; what came before it is dropped. Raises `ChannelClosed`."""
        async with asyncio.timeout(WAIT_S):
            while True:
                while self.frames:
                    frame = self.frames.pop(0)
                    if isinstance(frame, kinds):
                        return frame  # type: ignore[return-value]
                if not (got := await self.channel.recv()):
                    self.closed = True
                    raise ChannelClosed("ended")
                self.frames += map(wire.decode, got)

    async def end(self) -> str:
        """The code of the goodbye, or `closed` where the other side only went away."""
        try:
            return (await self.until(wire.Goodbye)).code
        except ChannelClosed:
            return "closed"

    # --- the beginning ------------------------------------------------------------------------------------------------
    async def offer(self) -> wire.Offer:
        await self.tell(wire.Offer(1, 1, self.nonce))
        self.theirs = await self.until(wire.Offer)
        return self.theirs

    def hello(self, signer: NodeKey | None = None, role: str = "", **changes: Any) -> wire.Hello:
        """Our hello; `changes` are made after it was signed."""
        assert self.theirs is not None
        said: Any = role or ("client" if self.dialled else "server")
        signed = hello_bytes(said, self.channel.binding, self.nonce, self.theirs.nonce)
        proof = (signer or self.key).sign("hello", signed)
        hello = wire.Hello(self.chain, self.name, self.incarnation, said, proof, ())
        return msgspec.structs.replace(hello, **changes)

    async def greet(self) -> "Peer":
        """Offer, hello and `accepted`, as an honest peer does; what the node thinks of us is in `standing`."""
        await self.offer()
        await self.tell(self.hello())
        self.standing = await self.until(wire.Standing)
        await self.tell(wire.Standing("accepted"))
        return self

    async def settle(self) -> None:
        """Everything said so far was read: the pong of a ping is back."""
        await self.tell(wire.Ping(77))
        await self.until(wire.Pong)

    # --- events -------------------------------------------------------------------------------------------------------
    def event(
        self, to: User, body: bytes = b"hi", sender: str = "eve", signer: NodeKey | None = None, **fields: Any
    ) -> Event:
        """A signed event of our log with `to`, whatever else `fields` say."""
        values: dict[str, Any] = {
            "version": 1, "conversation": direct_conversation(User(self.node, sender), to), "origin": self.node,
            "incarnation": self.incarnation, "seq": 1, "previous": None, "after": None, "sender": sender,
            "device": b"d" * 16, "stamp": 1_700_000_000_000 << 16, "control": None, "kind": "message", "target": None,
            "manifest": None, "body_format": "text", "body_hash": body_hash(body), "body_bytes": len(body),
        }  # fmt: skip
        return sign_event(Header(**(values | fields)), body, signer or self.key)

    def segment(self, to: User, *events: Event | Signed, sender: str = "eve", **changes: Any) -> wire.Segment:
        members = tuple(sorted((User(self.node, sender), to)))
        signed = tuple(e.signed if isinstance(e, Event) else e for e in events)
        conversation = direct_conversation(*members)
        segment = wire.Segment(conversation, self.node, self.incarnation, 1, members, signed)
        return msgspec.structs.replace(segment, **changes)

    def notices(self, other: bytes, *receipts: wire.Receipt, **fields: Any) -> wire.Segment:
        """Our notices to the node `other`."""
        body = wire.encode(wire.Notices(receipts))
        conversation = notice_conversation(self.node, other)
        values = {
            "conversation": conversation,
            "sender": "",
            "device": b"",
            "kind": "notices",
            "body_format": "notices",
        }
        event = self.event(User(other, ""), body, **(values | fields))
        return wire.Segment(conversation, self.node, self.incarnation, 1, (), (event.signed,))

    async def offer_events(self, *segments: wire.Segment) -> list[wire.LogAck]:
        """Send segments in one frame; their acknowledgements."""
        await self.tell(wire.Events(segments))
        acks: list[wire.LogAck] = []
        while len(acks) < len(segments):
            acks += (await self.until(wire.Acks)).logs
        return acks

    async def verdict(self, *segments: wire.Segment) -> str:
        """The code of the first verdict, or `stored`."""
        acks = await self.offer_events(*segments)
        return next((v.code for ack in acks for v in ack.verdicts), "stored")


async def device(node: Node, user: str) -> tuple[bytes, str]:
    """A device of the user, made without a login (whose password check is slow on purpose); its id and token."""
    number = next(_tokens)
    token, made = f"token-{number}", number.to_bytes(16, "big")
    await node.store.submit(AddDevice(made, user, "device", token_hash(token), DEVICE_KEY.public))
    return made, token


async def client(channel: Channel, text: bool = False, token: str = "", **more: Any) -> Client:
    """A client past its hello, and logged in where there is a token."""
    made = await Client(channel, coding.JSON if text else coding.MSGPACK).hello()
    if token:
        made.token = token
        channel.trust()
        await made.auth(**more)
    return made


async def drain(channel: Channel) -> None:
    """Read until the end; raises `ChannelClosed` where it is not a clean one."""
    async with asyncio.timeout(WAIT_S):
        while await channel.recv():
            pass

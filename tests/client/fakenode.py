"""A node that speaks the client protocol from a script, in process."""

import asyncio
import secrets
from collections.abc import Callable, Sequence

import msgspec

from federation import identity
from federation.identity import NodeKey, NodeLink
from federation.memory import MemoryChannel, pair
from federation.ports import ChannelClosed
from node import api, coding
from node.client.errors import Unreachable
from node.client.wire import Wire, greet

ALICE, BOB = "alice@a.test", "bob@b.test"
CONVERSATION, ORIGIN, LOG, OTHER_LOG = "conv", "origin-a", "log-a", "log-b"
TOKEN = "secret"
WAIT_S = 10.0  # no test waits this long unless it fails


class FakeNode:
    """Keeps a mailbox, answers sends once per key, and remembers all it was told."""

    def __init__(self) -> None:
        self.key = NodeKey(secrets.token_bytes(32))
        self.chain = identity.new_chain(self.key, bytes(32), bytes(32))
        self.node = identity.check_chain(self.chain).node
        self.proof_key = self.key
        self.store = "store-1"
        self.down = False
        self.mute = False  # takes sends, stores them, answers nothing
        self.refuse: Callable[[api.Send], api.ApiError | None] = lambda send: None
        self.answer: Callable[[api.AnyRequest], api.AnyResult | api.ApiError] = lambda request: api.Done()
        self.mailbox: list[api.Item] = []
        self.events: dict[str, api.Accepted] = {}  # by key
        self.sends: list[api.Send] = []  # every send frame that came
        self.acks: list[int] = []
        self.auths: list[api.Auth] = []
        self.requests: list[api.AnyRequest] = []
        self.channels: list[MemoryChannel] = []
        self.dialled = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    @property
    def link(self) -> NodeLink:
        return NodeLink(self.node, "a.test", ())

    async def connect(self) -> Wire:
        self.dialled += 1
        await self._note()
        if self.down:
            raise Unreachable("a.test does not answer. Tried nothing, as it is down; start it.")
        return await greet(self.dial(), self.link)

    def dial(self) -> MemoryChannel:
        ours, theirs = pair()
        task = asyncio.create_task(self._serve(theirs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ours

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(condition)

    async def push(self, *items: api.Item) -> None:
        """Put items into the mailbox and push them to whoever is connected."""
        start = len(self.mailbox)
        placed = [msgspec.structs.replace(item, position=start + i) for i, item in enumerate(items, 1)]
        self.mailbox += placed
        for channel in self.channels:
            await channel.send(self._feed(placed))

    def cut(self) -> None:
        for channel in self.channels:
            channel.cut()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- one connection -----------------------------------------------------------------------------------
    async def _serve(self, channel: MemoryChannel) -> None:
        try:
            nonce = secrets.token_bytes(32)
            (raw,) = await channel.recv()
            hello = coding.MSGPACK.from_client(raw)
            assert isinstance(hello, api.Hello)
            signed = identity.hello_bytes("server", channel.binding, nonce, hello.nonce)
            proof = self.proof_key.sign("hello", signed)
            welcome = api.Welcome(1, "a.test", identity.encode_chain(self.chain), nonce, proof)
            await channel.send(coding.MSGPACK.encode(welcome))
            while frames := await channel.recv():
                for raw in frames:
                    await self._take(channel, coding.MSGPACK.from_client(raw))
                await self._note()
        except ChannelClosed:
            pass
        finally:
            if channel in self.channels:
                self.channels.remove(channel)
            await channel.close()

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _take(self, channel: MemoryChannel, frame: api.FromClient) -> None:
        if isinstance(frame, api.Ack):
            self.acks.append(frame.position)
        elif isinstance(frame, api.Auth):
            await self._auth(channel, frame)
        elif isinstance(frame, api.Send):
            self.sends.append(frame)
            outcome = self.refuse(frame) or self.accept(frame)
            if not self.mute:
                await channel.send(_reply(frame.id, outcome))
        elif not isinstance(frame, api.Hello):
            self.requests.append(frame)
            await channel.send(_reply(frame.id, api.Done() if isinstance(frame, api.Ping) else self.answer(frame)))

    async def _auth(self, channel: MemoryChannel, frame: api.Auth) -> None:
        self.auths.append(frame)
        if frame.token != TOKEN:
            await channel.send(_reply(frame.id, api.ApiError("bad_token", "the token is not valid")))
            return
        resume = frame.resume
        after = resume.position if resume is not None and resume.store == self.store else 0
        ready = api.Ready(ALICE, "dev-1", "Alice", api.Cursor(self.store, after), len(self.mailbox))
        await channel.send(_reply(frame.id, ready))
        self.channels.append(channel)
        if self.mailbox[after:]:
            await channel.send(self._feed(self.mailbox[after:]))

    def _feed(self, items: Sequence[api.Item]) -> bytes:
        return coding.MSGPACK.encode(api.Feed(self.store, tuple(items)))

    def accept(self, send: api.Send) -> api.Accepted:
        if send.key not in self.events:
            seq = len(self.events) + 1
            self.events[send.key] = api.Accepted(f"event-{seq}", CONVERSATION, ORIGIN, LOG, seq, 1000 + seq)
        return self.events[send.key]


def _reply(number: int, outcome: api.AnyResult | api.ApiError) -> bytes:
    if isinstance(outcome, api.ApiError):
        return coding.MSGPACK.encode(api.Error(outcome.code, outcome.message, number, outcome.retry_after_ms))
    return coding.MSGPACK.encode(api.Reply(number, outcome))


def message(seq: int, text: str = "", sender: str = BOB, device: str = "dev-b", log: str = OTHER_LOG) -> api.Message:
    """One of Bob's messages, unless said otherwise."""
    body = (text or f"m{seq}").encode()
    stamp = 2000 + seq
    return api.Message(
        f"{log}-{seq}", CONVERSATION, "origin-b", log, seq, sender, device, stamp, api.order(stamp << 16), "message",
        "text", body,
    )  # fmt: skip


def watermark(sent: int = 0, delivered: int = 0, read: int = 0, missing: tuple[int, ...] = ()) -> api.Watermark:
    """How far Bob is with Alice's log."""
    return api.Watermark(CONVERSATION, ORIGIN, LOG, BOB, sent, delivered, read, missing)

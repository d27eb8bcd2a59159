"""A scripted client: speaks the client protocol over an in-process channel and keeps what a device would keep.

It retries every send with the same key until it has an answer, forgets what it had not yet stored when it
"crashes", and acknowledges late, early or again.
"""

import asyncio
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from federation.identity import NodeKey, check_chain, decode_chain
from federation.ports import Channel, ChannelClosed
from node import api, coding

if TYPE_CHECKING:
    from tests.sim.world import Host, World


@dataclass
class Saying:
    """One message as its author knows it."""

    key: str
    sender: str
    to: str
    body: bytes
    device: int
    kind: str = "message"
    target: str | None = None
    accepted: api.Accepted | None = None
    refused: str = ""
    sent_on: int = 0  # the connection that it last went out on
    answers: list[str] = field(default_factory=list)  # the event ids that retries were told
    unknown: bool = False  # the device that said it is dead, and may have been heard


class Client:
    """One device of one user. `stored` outlives its connections, as a disk would."""

    def __init__(self, world: "World", host: "Host", user: str, number: int, chance: Random) -> None:
        self.world, self.host, self.user, self.number, self._chance = world, host, user, number, chance
        self.address = f"{user}@{host.name}"
        self.name = f"{self.address}#{number}"
        self._key = NodeKey(chance.randbytes(32))
        self.token = ""
        self.store, self.position = "", 0
        self.stored: dict[int, api.Item] = {}  # by mailbox position
        self.sayings: list[Saying] = []
        self.read_upto: dict[tuple[str, str, str], int] = {}  # confirmed by the node: (conversation, origin, log)
        self._waiting: dict[int, Any] = {}
        self._channel: Channel | None = None
        self._connection = self._requests = self._ready_on = 0
        self.histories: dict[str, list[str]] = {}  # filled by the checker
        self.shown: dict[str, dict[str, object]] = {}  # the same: what a person sees, by event
        self._made = 0  # how often the node had been restored when this device was
        self.calm = False  # after the faults: acknowledge at once, forget nothing

    # --- connection ---------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        while True:
            try:
                await self._once()
            except ChannelClosed:
                pass
            self._channel = None
            for waiting in self._waiting.values():
                if isinstance(waiting, asyncio.Future) and not waiting.done():
                    waiting.cancel()
            self._waiting = {}
            await asyncio.sleep(self._chance.uniform(0.2, 3.0))

    async def _once(self) -> None:
        channel = self.host.connect()
        self._connection += 1
        await channel.send(coding.MSGPACK.encode(api.Hello(1, 1, self._chance.randbytes(32))))
        self._channel = channel
        while frames := await channel.recv():
            for raw in frames:
                await self._take(coding.MSGPACK.from_node(raw))

    async def _take(self, frame: api.FromNode) -> None:
        match frame:
            case api.Welcome():
                await (self._auth() if self.token else self._login(frame))
            case api.Feed():
                await self._feed(frame)
            case api.Reply() | api.Error():
                await self._answer(frame)
            case api.Goodbye():
                raise ChannelClosed(frame.reason)

    def drop(self) -> None:
        """The connection breaks; requests on their way have an unknown outcome."""
        if self._channel is not None:
            self.world.note(self.name, "connection breaks")
            self._channel.cut()  # type: ignore[attr-defined]
            self._channel = None

    async def _push(self, *frames: api.FromClient) -> None:
        if self._channel is not None:
            await self._channel.send(*(coding.MSGPACK.encode(frame) for frame in frames))

    def _new_device(self) -> None:
        """The node was restored: this device is dead, and the next one begins from nothing."""
        self.token, self.store, self.position, self.stored = "", "", 0, {}
        self.read_upto = {}  # what it confirmed may be lost too
        for s in self.sayings:
            if s.accepted is None and not s.refused and s.sent_on:
                s.refused, s.unknown = "its device died", True
        for at in [at for at in self.world.watermarks if at[0] == self.name]:
            del self.world.watermarks[at]
        self.world.note(self.name, "has to log in again")

    def _number(self, what: Any) -> int:
        self._requests += 1
        self._waiting[self._requests] = what
        return self._requests

    async def ask(self, request: type, *args: Any) -> Any:
        """A request by hand, after the faults; raises `AssertionError` for a refusal."""
        future = asyncio.get_running_loop().create_future()
        await self._push(request(self._number(future), *args))
        answer = await asyncio.wait_for(future, 60)
        assert isinstance(answer, api.Reply), answer
        return answer.result

    async def _login(self, welcome: api.Welcome) -> None:
        node = check_chain(decode_chain(welcome.chain)).node
        proof = self._key.sign("device-login", api.login_bytes(node, welcome.nonce, self.user))
        number = self._number("login")
        await self._push(api.Login(number, self.user, "secret", f"device {self.number}", self._key.public, proof))

    async def _auth(self) -> None:
        resume = api.Cursor(self.store, self.position) if self.store and self._chance.random() < 0.7 else None
        await self._push(api.Auth(self._number("auth"), self.token, resume))

    # --- sending ------------------------------------------------------------------------------------------------------
    def _target(self, kind: str, to: str) -> str | None:
        """A message with this person that this device may do that to."""
        own = [s.accepted.event for s in self.sayings if s.accepted and s.to == to and s.kind == "message"]
        talks = {s.accepted.conversation for s in self.sayings if s.accepted and s.to == to}
        items = [i for i in self.stored.values() if isinstance(i, api.Message) and i.kind == "message"]
        here = [
            i for i in items if i.conversation in talks and (kind in ("reaction", "pin") or i.sender == self.address)
        ]
        known = sorted({*own, *(i.event for i in here)})
        return self._chance.choice(known) if known else None

    async def say(self, key: str, to: str, body: bytes, kind: str = "message") -> None:
        target = self._target(kind, to) if kind != "message" else None
        kind = kind if target else "message"
        body = {"delete": b"", "pin": b"", "reaction": key.encode()}.get(kind, body)
        self.sayings.append(Saying(key, self.address, to, body, self.number, kind, target))
        self.world.note(self.name, f"says {key} to {to}", key)
        try:
            await self._pump()
        except ChannelClosed:
            pass

    async def _pump(self) -> None:
        """Everything without an answer, in order, once per connection."""
        if not self.ready:
            return
        frames = []
        for s in self.sayings:
            if s.accepted is None and not s.refused and s.sent_on != self._connection:
                frames.append(api.Send(self._number(s), s.key, s.to, s.body, "text", s.kind, s.target))
                s.unknown = s.unknown or (self.host.old and s.sent_on > 0)  # a copy forgot that it took it
                s.sent_on = self._connection
            if self.world.plan.patient and s.accepted is None and not s.refused:
                break
        if frames:
            await self._push(*frames)

    @property
    def ready(self) -> bool:
        return self._channel is not None and self._ready_on == self._connection

    @property
    def settled(self) -> bool:
        return all(s.accepted is not None or s.refused for s in self.sayings)

    async def _answer(self, frame: api.Reply | api.Error) -> None:
        waiting = self._waiting.pop(frame.id, None)
        if isinstance(waiting, asyncio.Future):
            waiting.set_result(frame)
        elif isinstance(waiting, Saying):
            self._said(waiting, frame)
            await self._pump()
        elif isinstance(frame, api.Error):
            if waiting == "auth" and frame.code == "bad_token":
                self._new_device()
            raise ChannelClosed(frame.message)
        elif waiting == "login":
            self.token = frame.result.token  # type: ignore[union-attr]
            self._made = self.host.restores
            await self._auth()
        elif waiting == "auth":
            self._ready_on = self._connection
            if self._made != self.host.restores:
                self.world.violations.append(f"{self.name}: a token from before the restore still opens")
            await self._pump()
        elif isinstance(waiting, api.Read):
            for mark in waiting.marks:
                at = (waiting.conversation, mark.origin, mark.log)
                self.read_upto[at] = max(mark.seq, self.read_upto.get(at, 0))

    def _said(self, saying: Saying, frame: api.Reply | api.Error) -> None:
        if isinstance(frame, api.Error):
            if api.CODES[frame.code][0] or frame.code in ("held", "bad_token"):
                raise ChannelClosed("try again")  # unknown or transient: the same key goes out again
            saying.refused = frame.code
            self.world.note(self.name, f"{saying.key} is refused: {frame.code}", saying.key)
            return
        assert isinstance(frame.result, api.Accepted)
        if self._chance.random() < self.world.plan.forget_answer and not self.calm:
            saying.answers.append(frame.result.event)
            raise ChannelClosed("crashed before it wrote the answer down")
        saying.accepted = frame.result
        saying.answers.append(frame.result.event)
        self.world.accepted(self.name, saying)

    # --- the feed -----------------------------------------------------------------------------------------------------
    async def _feed(self, frame: api.Feed) -> None:
        if not self.calm and self._chance.random() < self.world.plan.forget_feed:
            self.world.note(self.name, "crashes before it stores its feed")
            self.drop()
            raise ChannelClosed("crashed")
        self.store = frame.store
        for item in frame.items:
            self.world.received(self, item)
            self.stored[item.position] = item
            self.position = max(self.position, item.position)
        if self.calm or self._chance.random() >= self.world.plan.dawdle:
            await self._push(api.Ack(self.position))
        else:
            asyncio.get_running_loop().call_later(self._chance.uniform(0.1, 5), self._ack_later, self._connection)
        await self._maybe_read(frame.items)

    def _ack_later(self, connection: int) -> None:
        if connection == self._connection and self._channel is not None:
            self.world.tasks.append(asyncio.ensure_future(self._quietly(api.Ack(self.position))))

    async def _quietly(self, frame: api.FromClient) -> None:
        try:
            await self._push(frame)
        except ChannelClosed:
            pass

    async def _maybe_read(self, items: tuple[api.Item, ...]) -> None:
        for item in items:
            if isinstance(item, api.Message) and item.sender != self.address and self._chance.random() < 0.2:
                read = api.Read(0, item.conversation, (api.Mark(item.origin, item.log, item.seq),))
                await self._push(api.Read(self._number(read), read.conversation, read.marks))

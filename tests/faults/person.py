"""Somebody outside: sends with keys until each is answered, and keeps whatever arrives."""

import asyncio
import itertools
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from federation.identity import NodeKey, check_chain, decode_chain
from federation.ports import Channel, ChannelClosed
from node import api, coding
from node.client.websocket import open_websocket

if TYPE_CHECKING:
    from tests.faults.town import Served

PASSWORD = "a password of the faults"
SIGNING = NodeKey(b"faults".ljust(32))
NONCE = b"n" * 32
WINDOW = 16  # sends on their way
SAID_AGAIN = 4  # answered sends that are sent again after a break: the answer must be the same
PAGE = 200


@dataclass
class Attempt:
    """One send. `event` is its id once a node said OK; `refusals` are codes that mean "try again"."""

    key: str
    to: str
    text: str
    event: str = ""
    refusals: int = 0
    wrote_s: float = field(default_factory=time.monotonic)


class Wrong(AssertionError):
    """The node broke its word."""


class Person:
    def __init__(self, served: "Served", user: str) -> None:
        self.served, self.user = served, user
        self.attempts: list[Attempt] = []
        self.arrived: dict[str, str] = {}  # event id: text, in order of arrival; own ones too
        self.marks: dict[tuple[str, str, str], api.Watermark] = {}
        self.when_s: dict[str, float] = {}  # event id: when it arrived
        self.doubled = 0  # times that a message came at a second place of the mailbox
        self._places: dict[str, int] = {}
        self.unknown = 0  # sends that broke off without an answer
        self.breaks = 0
        self.codes: list[str] = []
        self.stopped = False
        self._token = ""
        self._numbers = itertools.count(1)
        self._salt = os.urandom(4).hex()
        self._next = 0  # the first attempt that was not sent on this connection
        self._asked: dict[int, Attempt] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._moved = asyncio.Event()
        self._channel: Channel | None = None
        self._task = asyncio.ensure_future(self._live())
        self._task.add_done_callback(lambda _: self._notify())

    @property
    def address(self) -> str:
        return f"{self.user}@{self.served.name}"

    # --- what a test says ---------------------------------------------------------------------------------------------
    def write(self, to: str, count: int = 1, size: int = 0) -> list[Attempt]:
        """Queue messages of `size` characters; they go out as the window allows, again after a break until each is
        answered."""
        start = len(self.attempts)
        made = [Attempt(f"{self._salt}-{n}", to, f"{self.user} {n}".ljust(size)) for n in range(start, start + count)]
        self.attempts += made
        self._notify()
        return made

    async def until(self, what: Any, seconds: float = 60) -> None:
        """Wait for something about this person to become true."""
        async with asyncio.timeout(seconds):
            while not what():
                if self._task.done():
                    self._task.result()
                await self._moved.wait()

    async def answered(self, seconds: float = 60) -> None:
        await self.until(lambda: all(a.event for a in self.attempts), seconds)

    async def has(self, events: list[str], seconds: float = 60) -> None:
        await self.until(lambda: all(e in self.arrived for e in events), seconds)

    async def ask(self, kind: Any, *args: Any) -> Any:
        """One request and its result; `ApiError` when refused, `ChannelClosed` when the connection broke."""
        await self.until(lambda: self._channel is not None)
        assert self._channel is not None
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._channel.send(coding.MSGPACK.encode(kind(number, *args)))
        async with asyncio.timeout(60):
            return await self._answers[number]

    async def history(self, conversation: str) -> list[api.Message]:
        """All of a conversation, oldest first."""
        found: list[api.Message] = []
        more = True
        while more:
            page = await self.ask(api.GetHistory, conversation, found[0].event if found else None, PAGE)
            found, more = [*page.messages, *found], page.more
        return found

    async def stop(self) -> None:
        self.stopped = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _notify(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    # --- the connection -----------------------------------------------------------------------------------------------
    async def _live(self) -> None:
        while True:
            await self.served.up.wait()
            with suppress(ChannelClosed, OSError, TimeoutError):
                await self._connection()
            self._channel = None
            self.breaks += 1
            self.unknown += len(self._asked)
            self._asked.clear()
            for waiting in self._answers.values():
                if not waiting.done():
                    waiting.set_exception(ChannelClosed("the connection broke"))
                    waiting.exception()
            self._answers.clear()
            self._notify()
            await self.served.settled()  # it died, or it only closed this connection

    async def _connection(self) -> None:
        channel = await open_websocket(self.served.host, self.served.port, 10)
        try:
            await self._login(channel)
            first = next((n for n, a in enumerate(self.attempts) if not a.event), len(self.attempts))
            self._next = max(0, first - SAID_AGAIN)
            self._channel = channel
            self._notify()
            reader, writer = asyncio.ensure_future(self._read(channel)), asyncio.ensure_future(self._send(channel))
            try:
                await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            finally:
                reader.cancel()
                writer.cancel()
                results = await asyncio.gather(reader, writer, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception) and not isinstance(result, ChannelClosed):
                    raise result
        finally:
            with suppress(ChannelClosed, OSError):
                await channel.close()

    async def _login(self, channel: Channel) -> None:
        await channel.send(coding.MSGPACK.encode(api.Hello(api.VERSION, api.VERSION, NONCE)))
        welcome = coding.MSGPACK.from_node(await self._first(channel))
        if not isinstance(welcome, api.Welcome):
            raise ChannelClosed(str(welcome))
        node = check_chain(decode_chain(welcome.chain)).node
        if not self._token:
            proof = SIGNING.sign("device-login", api.login_bytes(node, welcome.nonce, self.user))
            login = api.Login(next(self._numbers), self.user, PASSWORD, "faults", SIGNING.public, proof)
            await channel.send(coding.MSGPACK.encode(login))
            reply = coding.MSGPACK.from_node(await self._first(channel))
            if not isinstance(reply, api.Reply) or not isinstance(reply.result, api.LoggedIn):
                raise ChannelClosed(str(reply))
            self._token = reply.result.token
        auth = next(self._numbers)
        await channel.send(coding.MSGPACK.encode(api.Auth(auth, self._token)))
        while True:  # the feed may begin before the answer
            frame = coding.MSGPACK.from_node(await self._first(channel))
            if isinstance(frame, api.Error):
                raise Wrong(f"{self.user} is not let in: {frame.code} {frame.message}")
            self._take(frame)
            if isinstance(frame, api.Reply) and frame.id == auth:
                return

    async def _first(self, channel: Channel) -> bytes:
        async with asyncio.timeout(30):
            frames = await channel.recv()
        if not frames:
            raise ChannelClosed("closed")
        return frames[0]

    async def _send(self, channel: Channel) -> None:
        while True:
            while self._next < len(self.attempts) and len(self._asked) < WINDOW:
                attempt, number = self.attempts[self._next], next(self._numbers)
                self._next += 1
                self._asked[number] = attempt
                send = api.Send(number, attempt.key, attempt.to, attempt.text.encode())
                await channel.send(coding.MSGPACK.encode(send))
            await self._moved.wait()

    async def _read(self, channel: Channel) -> None:
        while frames := await channel.recv():
            for frame in map(coding.MSGPACK.from_node, frames):
                self._take(frame)
                if isinstance(frame, api.Feed):
                    await channel.send(coding.MSGPACK.encode(api.Ack(frame.items[-1].position)))
            self._notify()

    def _take(self, frame: Any) -> None:
        if isinstance(frame, api.Feed):
            for item in frame.items:
                if isinstance(item, api.Message):
                    self.arrived.setdefault(item.event, (item.body or b"").decode())
                    self.when_s.setdefault(item.event, time.monotonic())
                    self.doubled += self._places.setdefault(item.event, item.position) != item.position
                elif isinstance(item, api.Watermark):
                    self._mark(item)
        elif isinstance(frame, api.Reply | api.Error) and frame.id in self._asked:
            self._answer(self._asked.pop(frame.id), frame)
        elif isinstance(frame, api.Reply) and frame.id in self._answers:
            self._answers.pop(frame.id).set_result(frame.result)
        elif isinstance(frame, api.Error) and frame.id in self._answers:
            self._answers.pop(frame.id).set_exception(api.ApiError(frame.code, frame.message))

    def _answer(self, attempt: Attempt, frame: api.Reply | api.Error) -> None:
        if isinstance(frame, api.Error):
            self.codes.append(frame.code)
            attempt.refusals += 1
            if not api.CODES[frame.code][0]:
                raise Wrong(f"{attempt.text} was refused for good: {frame.code} {frame.message}")
            return
        assert isinstance(frame.result, api.Accepted)
        if attempt.event and attempt.event != frame.result.event:
            raise Wrong(f"{attempt.text} was accepted twice, as {attempt.event} and as {frame.result.event}")
        attempt.event = frame.result.event

    def again(self) -> None:
        """Send again what was refused for now."""
        self._next = next((n for n, a in enumerate(self.attempts) if not a.event), len(self.attempts))
        self._notify()

    def _mark(self, mark: api.Watermark) -> None:
        """I5: states only go forward."""
        at = (mark.log, mark.conversation, mark.member)
        before = self.marks.get(at, mark)
        if (mark.sent, mark.delivered, mark.read) < (before.sent, before.delivered, before.read):
            raise Wrong(f"a state went back: {before} to {mark}")
        self.marks[at] = mark

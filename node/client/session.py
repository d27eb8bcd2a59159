"""Requests, replies and pushed frames over one connection, with a bounded window."""

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import count

import msgspec

from federation.ports import ChannelClosed
from node import api
from node.client.errors import Lost
from node.client.wire import Wire, checked

PING_S = 20.0
BUSY_PING_S = 2.0  # the same while answers are awaited: a killed node says nothing over UDP, and a person waits
PONG_S = 5.0  # a ping after which nothing at all is heard for this time means the connection is dead
FEED_ITEMS_AHEAD_MAX = 4 * api.FEED_ITEMS_MAX  # received and not yet stored; beyond, nothing more is read
FLUSH_S = 1.0

Answer = api.AnyResult | Exception
Answered = Callable[[Answer], None]


class Session:
    """One authenticated or not yet authenticated connection. `run` lives as long as it does.

    Replies go to the callbacks of their requests; feed frames wait in `feeds` until somebody takes them, and a
    full `feeds` stops the reading, so the node feels a slow disk here.
    """

    def __init__(
        self,
        wire: Wire,
        on_light: Callable[[api.PeerLight], None] = lambda _: None,
        on_sign: Callable[[api.Ephemeral], None] = lambda _: None,
    ) -> None:
        self._wire, self._on_light, self._on_sign = wire, on_light, on_sign
        self.why = wire.channel.why  # not the first choice of transport; for people
        self._encode = wire.codec.encode
        self._ids = count(1)
        self._pending: dict[int, tuple[int, Answered]] = {}
        self._pending_bytes = 0
        self._heard = 0  # reads that brought something
        self._room = asyncio.Event()
        self._out: list[bytes] = []  # bounded by the window: only requests, and one acknowledgement, get here
        self._ack = self._acked = 0
        self._write = asyncio.Event()
        self._lost: Lost | None = None
        self.feeds: deque[api.Feed] = deque()
        self._feed_items = 0
        self._feed_room = asyncio.Event()
        self.fed = asyncio.Event()  # `feeds` has something, or a reply came
        self.ended = False  # set by the owner: nothing more will be received
        self.unconfirmed = False  # an acknowledgement left and nothing since proves that it arrived

    async def run(self) -> None:
        """Moves frames until the connection ends; always raises, `Lost` with the reason."""
        tasks = [asyncio.create_task(work) for work in (self._read(), self._write_out(), self._ping())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            raise Lost("the connection ended")
        except ChannelClosed as error:
            raise Lost(f"the connection broke: {error}") from None
        except api.ApiError as error:
            raise Lost(str(error)) from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._end(Lost("the connection ended before the answer"))

    def _end(self, lost: Lost) -> None:
        """Every open request learns that its outcome is unknown."""
        if self._lost is None:
            self._lost = lost
        pending, self._pending, self._pending_bytes = self._pending, {}, 0
        for _, answered in pending.values():
            answered(self._lost)
        self._room.set()

    # --- requests -----------------------------------------------------------------------------------------
    async def submit(self, request: api.AnyRequest, answered: Answered) -> None:
        """Put a request on the way; waits while the window is full. `answered` runs once, unless this raises."""
        # The id is part of the frame, so it is given here: a caller cannot use one twice.
        number = next(self._ids)
        raw = self._encode(msgspec.structs.replace(request, id=number))
        while self._lost is None and self._is_full(len(raw)):
            self._room.clear()
            await self._room.wait()
        if self._lost is not None:
            raise self._lost
        self._pending[number] = (len(raw), answered)
        self._pending_bytes += len(raw)
        self._out.append(raw)
        self._write.set()

    def _is_full(self, more: int) -> bool:
        if not self._pending:
            return False  # one request always fits, however large
        return (
            len(self._pending) >= api.REQUESTS_IN_FLIGHT_MAX
            or self._pending_bytes + more > api.REQUEST_BYTES_IN_FLIGHT_MAX
        )

    async def request(self, request: api.AnyRequest) -> api.AnyResult:
        """The result; raises `ApiError` for a typed refusal and `Lost` when the connection ends first."""
        checked(request)
        answer: asyncio.Future[api.AnyResult] = asyncio.get_running_loop().create_future()

        def answered(value: Answer) -> None:
            if answer.done():
                return
            if isinstance(value, Exception):
                answer.set_exception(value)
            else:
                answer.set_result(value)

        await self.submit(request, answered)
        return await answer

    def ack(self, position: int) -> None:
        """Acknowledge the feed up to here; several in a row become one frame."""
        if position > self._ack:
            self._ack = position
            self._write.set()

    async def flush(self) -> None:
        """Waits (bounded) until the node has seen every acknowledgement."""
        if self._lost is None and (self.unconfirmed or self._ack > self._acked):
            try:
                async with asyncio.timeout(FLUSH_S):
                    await self.request(api.Ping(id=1))  # frames are handled in order: its answer covers the ack
                self.unconfirmed = False
            except (TimeoutError, Lost, api.ApiError):
                pass

    # --- frames -------------------------------------------------------------------------------------------
    async def _write_out(self) -> None:
        while True:
            await self._write.wait()
            self._write.clear()
            frames, self._out = self._out, []
            if self._ack > self._acked:
                self._acked = self._ack
                self.unconfirmed = True
                frames.insert(0, self._encode(api.Ack(self._acked)))
            if frames:
                await self._wire.channel.send(*frames)

    async def _read(self) -> None:
        decode = self._wire.codec.from_node
        while frames := await self._wire.channel.recv():
            self._heard += 1
            for raw in frames:
                self._take(decode(raw))
            while self._feed_items >= FEED_ITEMS_AHEAD_MAX:
                self._feed_room.clear()
                await self._feed_room.wait()
        raise Lost("the node closed the connection")

    def _take(self, frame: api.FromNode) -> None:
        if isinstance(frame, api.Reply):
            self._answer(frame.id, frame.result)
        elif isinstance(frame, api.Feed):
            self.feeds.append(frame)
            self._feed_items += len(frame.items)
            self.fed.set()
        elif isinstance(frame, api.Error):
            error = _refusal(frame)
            if not frame.id:
                raise error
            self._answer(frame.id, error)
        elif isinstance(frame, api.PeerLight):
            self._on_light(frame)
        elif isinstance(frame, api.Ephemeral):
            self._on_sign(frame)
        elif isinstance(frame, api.Goodbye):
            raise Lost(f"the node closed the connection: {frame.reason or frame.code}")

    def _answer(self, number: int, answer: Answer) -> None:
        pending = self._pending.pop(number, None)
        if pending is None:
            return  # an answer nobody asked for changes nothing
        size, answered = pending
        self._pending_bytes -= size
        self._room.set()
        answered(answer)

    def take_feeds(self) -> list[api.Feed]:
        """Everything received and not yet stored; makes room for more."""
        feeds = list(self.feeds)
        self.feeds.clear()
        self._feed_items = 0
        self._feed_room.set()
        return feeds

    async def _ping(self) -> None:
        quiet_s = 0.0
        while True:
            await asyncio.sleep(BUSY_PING_S)
            quiet_s += BUSY_PING_S
            if not self._pending and quiet_s < PING_S:
                continue
            quiet_s, heard = 0.0, self._heard
            try:
                async with asyncio.timeout(PONG_S):
                    await self.request(api.Ping(id=1))
            except TimeoutError:
                if self._heard == heard:  # a slow node that still says something is not a dead one
                    raise Lost(f"the node was silent for {PONG_S:g} s after a ping") from None


def _refusal(frame: api.Error) -> api.ApiError:
    """A code that this version does not know counts as `failed`, which may be retried."""
    code = frame.code if frame.code in api.CODES else "failed"
    return api.ApiError(code, frame.message, frame.retry_after_ms)

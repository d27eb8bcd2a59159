"""One client's connection: requests in, replies and the mailbox feed out, all of it bounded.

A channel carries it (QUIC, WebSocket, in process); the session never knows which. Sends cost no task: the reply
is made when the commit resolves, and all replies of one loop turn leave in one write.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from federation.identity import encode_chain, hello_bytes
from federation.ids import Log
from federation.ports import Channel, ChannelClosed
from node import api, coding
from node.api import ApiError
from node.core import render
from node.core.progress import Acknowledge, Seen
from node.core.send import Send
from node.directory import event_id
from node.requests import HANDLERS
from node.storage import reads
from node.storage.writer import StoreFailed
from node.system import token_hash

if TYPE_CHECKING:
    from node.core import rows
    from node.node import Node

HELLO_DEADLINE_S = 10.0
LOOK_AGAIN_S = 30.0  # a lost hint costs at most this


class Session:
    """Owned by the node; `run` returns when the connection is over."""

    def __init__(self, node: "Node", channel: Channel, codec: coding.Codec) -> None:
        self.node, self._channel, self._codec = node, channel, codec
        self.nonce = node.system.random(32)
        self.device: rows.Device | None = None
        self._out: list[bytes] = []
        self._out_wake = asyncio.Event()
        self._in_flight = 0
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.feed_wake = asyncio.Event()
        self._window: deque[tuple[int, Log | None, int]] = deque()  # pushed, not acknowledged
        self._window_bytes = 0
        self._acked = self._pushed = 0

    # --- connection ---------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        writer = asyncio.ensure_future(self._write())
        try:
            await asyncio.wait_for(self._hello(), HELLO_DEADLINE_S)
            await self._read()
        except (ChannelClosed, TimeoutError):
            pass
        except ApiError as error:
            self._push(api.Error(error.code, error.message))
            self._push(api.Goodbye(error.code, error.message))
        finally:
            self.node.leave(self)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._finish(writer)

    async def _finish(self, writer: "asyncio.Future[None]") -> None:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        try:
            if self._out:
                await asyncio.wait_for(self._channel.send(*self._out), 2)
        except (ChannelClosed, TimeoutError):
            pass
        await self._channel.close("")

    async def _hello(self) -> None:
        frames = await self._channel.recv()
        if not frames:
            raise ChannelClosed("gone before the hello")
        hello = self._codec.from_client(frames[0])
        if not isinstance(hello, api.Hello):
            raise ApiError("bad_frame", "the first frame is hello")
        if not hello.version_min <= api.VERSION <= hello.version_max:
            raise ApiError("bad_version", f"this node speaks version {api.VERSION} of the client protocol")
        us = self.node.us
        proof = us.key.sign("hello", hello_bytes("server", self._channel.binding, self.nonce, hello.nonce))
        self._push(api.Welcome(api.VERSION, us.name, encode_chain(us.chain), self.nonce, proof))
        for raw in frames[1:]:
            self._take(self._codec.from_client(raw))

    async def _read(self) -> None:
        while frames := await self._channel.recv():
            for raw in frames:
                while self._in_flight >= api.REQUESTS_IN_FLIGHT_MAX:
                    self._room.clear()  # stop reading the socket: the client's own window is full
                    await self._room.wait()
                self._take(self._codec.from_client(raw))

    async def _write(self) -> None:
        while True:
            await self._out_wake.wait()
            self._out_wake.clear()
            frames, self._out = self._out, []
            if frames:
                await self._channel.send(*frames)

    def _push(self, frame: api.FromNode) -> None:
        self._out.append(self._codec.encode(frame))
        self._out_wake.set()

    # --- requests -----------------------------------------------------------------------------------------------------
    def _take(self, frame: api.FromClient) -> None:
        if isinstance(frame, api.Ack):
            self._ack(frame)
        elif isinstance(frame, api.Send):
            self._in_flight += 1
            self._send(frame)
        elif isinstance(frame, api.Hello):
            raise ApiError("bad_frame", "a second hello")
        else:
            self._in_flight += 1
            task = asyncio.ensure_future(self._serve(frame))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _send(self, frame: api.Send) -> None:
        """Decide nothing here: the store answers after commit."""
        try:
            device = self.logged_in()
            to = self.node.recipient(frame.to)
            target = event_id(frame.target) if frame.target else None
            command = Send(
                device.local, device.device, frame.key, to, frame.kind, frame.format, frame.body, target,
                frame.expires_ms,
            )  # fmt: skip
        except ApiError as error:
            self._answer(frame.id, error)
            return
        future = self.node.store.submit(command)
        future.add_done_callback(lambda f: self._answer(frame.id, f.exception() or f.result()))

    async def _serve(self, frame: api.AnyRequest) -> None:
        try:
            if isinstance(frame, api.Auth):
                self._answer(frame.id, await self._auth(frame))
                if frame.feed:
                    self._start_feed()
            else:
                handler: Callable[..., Any] = HANDLERS[type(frame)]
                self._answer(frame.id, await handler(self, frame))
        except Exception as error:  # a bug too is answered, and told in the log
            self._answer(frame.id, error)

    def _answer(self, request: int, outcome: Any) -> None:
        self._in_flight -= 1
        self._room.set()
        if isinstance(outcome, ApiError):
            self._push(api.Error(outcome.code, outcome.message, request, outcome.retry_after_ms))
        elif isinstance(outcome, BaseException):
            if not isinstance(outcome, StoreFailed):
                self.node.report(outcome)
            self._push(api.Error("failed", "the node could not store it; nothing was promised", request))
        else:
            self._push(api.Reply(request, outcome))

    def logged_in(self) -> "rows.Device":
        if self.device is None:
            raise ApiError("bad_token", "log in first")
        return self.device

    # --- the feed -----------------------------------------------------------------------------------------------------
    async def _auth(self, frame: api.Auth) -> api.Ready:
        found = await self.node.store.read(reads.device_by_token, token_hash(frame.token))
        if found is None:
            raise ApiError("bad_token", "the token is not valid: the device was revoked or logged out; log in again")
        device, account = found
        if self.device is not None:
            raise ApiError("bad_request", "this connection is logged in already; open another one")
        if account.state != "active":
            raise ApiError("disabled", "the account is disabled; ask its administrator")
        self.device = device
        self.node.join(self)
        self._acked = device.acked
        store = self.node.store_text
        box = await self.node.store.read(reads.mailbox, device.local)
        if frame.resume is not None and frame.resume.store == store:
            # Never past the end: what comes there later was not seen.
            resume = min(frame.resume.position, box.position)
            if resume > device.acked:
                await self._catch_up(device.acked, resume)
            self._acked = resume
        return api.Ready(
            f"{device.local}@{self.node.us.name}", render.device(device).device, account.display_name,
            api.Cursor(store, self._acked), box.position,
        )  # fmt: skip

    async def _catch_up(self, after: int, upto: int) -> None:
        """The client has more than it could tell before the connection broke: that is an acknowledgement too."""
        while after < upto:
            found, after = await self._page(after)
            self._window.extend(self._seen(item) for item in found if item.position <= upto)
            if not found:
                break
        self._pushed = upto
        self._ack(api.Ack(upto))

    async def _page(self, after: int) -> "tuple[list[reads.Placed | rows.Fact], int]":
        local = self.logged_in().local
        return await self.node.store.read(reads.feed, local, after, api.FEED_ITEMS_MAX, api.FEED_BYTES_MAX // 4)

    def _seen(self, item: "reads.Placed | rows.Fact") -> tuple[int, Log | None, int]:
        if not isinstance(item, reads.Placed):
            return item.position, None, 0
        own = item.origin == self.node.us.node and item.event.sender == self.logged_in().local
        log = None if own else Log(item.event.conversation, item.origin, item.incarnation)
        return item.position, log, item.event.seq

    def _start_feed(self) -> None:
        for name, (state, since) in self.node.lights.items():
            self._push(api.PeerLight(name, state, since))  # type: ignore[arg-type]
        task = asyncio.ensure_future(self._feed())
        self._tasks.add(task)
        task.add_done_callback(self._feed_done)

    def _feed_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.node.report(error)
            self.end("failed", "the feed broke; reconnect")

    async def _feed(self) -> None:
        """Push what is past the cursor while the window has room; the rest waits on disk."""
        position = self._acked
        while True:
            self.feed_wake.clear()
            if len(self._window) < api.FEED_ITEMS_MAX and self._window_bytes < api.FEED_BYTES_MAX:
                found, position = await self._page(position)
                self._pushed = position
                if found:
                    raw = self._codec.encode(api.Feed(self.node.store_text, tuple(self._item(i) for i in found)))
                    self._window.extend(self._seen(item) for item in found)
                    self._window_bytes += len(raw)
                    self._out.append(raw)
                    self._out_wake.set()
                    continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self.feed_wake.wait()

    def _item(self, item: "reads.Placed | rows.Fact") -> api.Item:
        if isinstance(item, reads.Placed):
            return render.message(item.origin, item.incarnation, item.event, self.node.directory.address, item.position)
        return coding.decode_item(item.item, item.position)

    def _ack(self, frame: api.Ack) -> None:
        """Positions become watermarks per log: what was pushed here is what can be acknowledged here."""
        device = self.logged_in()
        seqs: dict[Log, int] = {}
        missing: dict[Log, list[int]] = {}
        upto = min(frame.position, max(self._pushed, self._acked))
        while self._window and self._window[0][0] <= upto:
            position, log, seq = self._window.popleft()
            if log is not None:
                seqs[log] = max(seq, seqs.get(log, 0))
                if position in frame.missing:
                    missing.setdefault(log, []).append(seq)
        self._window_bytes = 0 if not self._window else self._window_bytes
        if upto > self._acked or seqs:
            self._acked = max(self._acked, upto)
            seen = tuple(Seen(log, seq, missing=tuple(missing.get(log, ()))) for log, seq in seqs.items())
            future = self.node.store.submit(Acknowledge(device.local, device.device, upto, seen))
            future.add_done_callback(self._acknowledged)
        self.feed_wake.set()

    def _acknowledged(self, future: "asyncio.Future[Any]") -> None:
        """An acknowledgement has no answer; a bug in it must not be silent."""
        if not future.cancelled() and not isinstance(error := future.exception(), ApiError | StoreFailed | None):
            self.node.report(error)

    # --- told by the node ---------------------------------------------------------------------------------------------
    def light(self, name: str, state: str, since: int) -> None:
        self._push(api.PeerLight(name, state, since))  # type: ignore[arg-type]

    def end(self, code: str, reason: str) -> None:
        """Say goodbye and close: a revoked device, a disabled account, a node that stops."""
        self._push(api.Goodbye(code, reason))
        task = asyncio.ensure_future(self._close_soon())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close_soon(self) -> None:
        """What was answered before goes out first: the writer may not have had its turn."""
        frames, self._out = self._out, []
        with suppress(ChannelClosed, TimeoutError):
            await asyncio.wait_for(self._channel.send(*frames), 2)
        self.node.leave(self)
        await self._channel.close("goodbye")

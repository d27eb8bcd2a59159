"""One client's connection: requests in, replies and the mailbox feed out, all of it bounded.

A channel carries it (QUIC, WebSocket, in process); the session never knows which. Sends cost no task: the reply
is made when the commit resolves, and all replies of one loop turn leave in one write.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
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
LOGIN_DEADLINE_S = 60.0  # after the hello
LOOK_AGAIN_S = 30.0  # a lost hint costs at most this


class Session:
    """Owned by the node; `run` returns when the connection is over."""

    def __init__(self, node: "Node", channel: Channel, is_text: Callable[[], bool]) -> None:
        """`is_text` says, once the first frame came, whether the client speaks JSON."""
        self.node, self._channel, self._is_text = node, channel, is_text
        self._codec = coding.MSGPACK
        self.nonce = node.system.random(32)
        self.device: rows.Device | None = None
        self._out: list[bytes] = []
        self._out_wake = asyncio.Event()
        self._writer: asyncio.Future[None]  # ends before `run` does only if the channel broke
        self._deadline: asyncio.Timeout  # of the hello, then of the login, then none
        self._proving = False
        self._in_flight = self._in_flight_bytes = 0
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.feed_wake = asyncio.Event()
        self._window: deque[tuple[int, Log | None, int]] = deque()  # pushed, not acknowledged
        self._window_bytes = 0
        self._full = False  # the feed waits for an acknowledgement
        self._acked = self._pushed = 0

    # --- connection ---------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        self._writer = asyncio.ensure_future(self._write())
        self._writer.add_done_callback(lambda _: self._room.set())
        try:
            async with asyncio.timeout(HELLO_DEADLINE_S) as self._deadline:
                frames = await self._hello()
                self._deadline.reschedule(asyncio.get_running_loop().time() + LOGIN_DEADLINE_S)
                await self._read(frames)
        except ChannelClosed:
            pass
        except TimeoutError:
            self._push(api.Goodbye("too_slow", "the connection did not log in in time; connect again"))
        except ApiError as error:
            self._push(api.Error(error.code, error.message))
            self._push(api.Goodbye(error.code, error.message))
        finally:
            self.node.leave(self)
            for task in self._tasks:
                task.cancel()
            self._writer.cancel()
            await asyncio.gather(self._writer, *self._tasks, return_exceptions=True)
            await self._finish("")

    async def refuse(self, code: str, reason: str) -> None:
        """Instead of `run`: goodbye in place of the welcome, in the encoding of the hello."""
        with suppress(ChannelClosed, TimeoutError):
            async with asyncio.timeout(HELLO_DEADLINE_S):
                await self._channel.recv()
        self._codec = coding.JSON if self._is_text() else coding.MSGPACK
        self._push(api.Goodbye(code, reason))
        await self._finish(reason)

    async def _finish(self, reason: str) -> None:
        try:
            if self._out:
                await asyncio.wait_for(self._channel.send(*self._out), 2)
        except (ChannelClosed, TimeoutError):
            pass
        await self._channel.close(reason)

    async def _hello(self) -> Sequence[bytes]:
        """Answers the first frame; gives those that came with it."""
        frames = await self._channel.recv()
        if not frames:
            raise ChannelClosed("gone before the hello")
        self._codec = coding.JSON if self._is_text() else coding.MSGPACK
        hello = self._codec.from_client(frames[0])
        if not isinstance(hello, api.Hello):
            raise ApiError("bad_frame", "the first frame is hello")
        if not hello.version_min <= api.VERSION <= hello.version_max:
            raise ApiError("bad_version", f"this node speaks version {api.VERSION} of the client protocol")
        us = self.node.us
        proof = us.key.sign("hello", hello_bytes("server", self._channel.binding, self.nonce, hello.nonce))
        self._push(api.Welcome(api.VERSION, us.name, encode_chain(us.chain), self.nonce, proof))
        return frames[1:]

    async def _read(self, frames: Sequence[bytes]) -> None:
        while True:
            for raw in frames:
                while self._is_full():
                    if self.device is None:
                        raise ApiError("rate_limited", "too many requests before the login")
                    if self._writer.done():
                        raise ChannelClosed("nobody takes the answers")
                    self._room.clear()  # stop reading the socket: the client's own window is full
                    await self._room.wait()
                self._take(self._codec.from_client(raw), len(raw))
            if not (frames := await self._channel.recv()):
                return

    def _is_full(self) -> bool:
        """Whether the next frame has to wait: for an answer, or for the client to take the answers it has."""
        return (
            self._in_flight >= api.REQUESTS_IN_FLIGHT_MAX
            or self._in_flight_bytes >= api.REQUEST_BYTES_IN_FLIGHT_MAX
            or len(self._out) >= api.REQUESTS_IN_FLIGHT_MAX
        )

    async def _write(self) -> None:
        """Ends only with the channel: when nothing can leave any more, nothing more is read either."""
        try:
            while True:
                await self._out_wake.wait()
                self._out_wake.clear()
                frames, self._out = self._out, []
                self._room.set()
                if frames:
                    await self._channel.send(*frames)
        except ChannelClosed:
            pass
        except Exception as error:  # a bug, such as a frame that is too long for any channel
            self.node.report(error)
            self._out.clear()
            self._push(api.Goodbye("failed", "an answer could not be sent; connect again"))
        await self._finish("")

    def _push(self, frame: api.FromNode) -> None:
        self._out.append(self._codec.encode(frame))
        self._out_wake.set()

    # --- requests -----------------------------------------------------------------------------------------------------
    def _take(self, frame: api.FromClient, size: int) -> None:
        """One frame of `size` bytes; every request is answered once, and its bytes are free then."""
        if isinstance(frame, api.Ack):
            self._ack(frame)
            return
        if isinstance(frame, api.Hello):
            raise ApiError("bad_frame", "a second hello")
        self._in_flight += 1
        self._in_flight_bytes += size
        if isinstance(frame, api.Send):
            self._send(frame, size)
        else:
            task = asyncio.ensure_future(self._serve(frame, size))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _send(self, frame: api.Send, size: int) -> None:
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
            self._answer(frame.id, size, error)
            return
        future = self.node.store.submit(command)
        future.add_done_callback(lambda f: self._answer(frame.id, size, f.exception() or f.result()))

    async def _serve(self, frame: api.AnyRequest, size: int) -> None:
        try:
            if isinstance(frame, api.Login | api.Register | api.Auth):
                self._answer(frame.id, size, await self._prove(frame))
                if isinstance(frame, api.Auth) and frame.feed:
                    self._start_feed()
            else:
                handler: Callable[..., Any] = HANDLERS[type(frame)]
                self._answer(frame.id, size, await handler(self, frame))
        except Exception as error:  # a bug too is answered, and told in the log
            self._answer(frame.id, size, error)

    async def _prove(self, frame: api.Login | api.Register | api.Auth) -> api.LoggedIn | api.Ready:
        """Log in; one at a time. The deadline waits for the answer: a slow check of a password is not the client's."""
        if self._proving or self._deadline.expired():
            raise ApiError("busy", "an earlier login of this connection is still being checked")
        deadline, self._proving = self._deadline.when(), True
        self._deadline.reschedule(None)
        try:
            found: Any = await (
                self._auth(frame) if isinstance(frame, api.Auth) else HANDLERS[type(frame)](self, frame)
            )
        except Exception:
            self._deadline.reschedule(deadline)
            raise
        finally:
            self._proving = False
        self.node.strangers.pop(self, None)
        self._channel.trust()
        return found  # type: ignore[no-any-return]

    def _answer(self, request: int, size: int, outcome: Any) -> None:
        self._in_flight -= 1
        self._in_flight_bytes -= size
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
            found, after, _ = await self._page(after)
            self._window.extend(self._seen(item) for item in found if item.position <= upto)
            if not found:
                break
        self._pushed = upto
        self._ack(api.Ack(upto))

    async def _page(self, after: int, hot: bool = False) -> "tuple[list[reads.Placed | rows.Fact], int, bool]":
        local = self.logged_in().local
        bounds = (api.FEED_ITEMS_MAX, api.FEED_BYTES_MAX // 4)
        return await self.node.store.read(reads.feed, local, after, *bounds, hot=hot)

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
        position, hot = self._acked, False
        while True:
            self.feed_wake.clear()
            self._full = len(self._window) >= api.FEED_ITEMS_MAX or self._window_bytes >= api.FEED_BYTES_MAX
            if not self._full:
                found, position, more = await self._page(position, hot)
                self._pushed = position
                if found:
                    raw = self._codec.encode(api.Feed(self.node.store_text, tuple(self._item(i) for i in found)))
                    self._window.extend(self._seen(item) for item in found)
                    self._window_bytes += len(raw)
                    self._out.append(raw)
                    self._out_wake.set()
                hot = not more  # this device is at the end: what comes was committed just then
                if more:
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
        if not self._window:
            self._window_bytes = 0
        if upto > self._acked or seqs:
            self._acked = max(self._acked, upto)
            seen = tuple(Seen(log, seq, missing=tuple(missing.get(log, ()))) for log, seq in seqs.items())
            # Later: it is told again after a crash, since the device comes back with its own cursor.
            future = self.node.store.submit(Acknowledge(device.local, device.device, upto, seen), later=True)
            future.add_done_callback(self._acknowledged)
        if self._full:
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
        await self._channel.close("goodbye")

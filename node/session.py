"""One client's connection: requests in, replies and the mailbox feed out, all of it bounded.

A channel carries it (QUIC, WebSocket, in process); the session never knows which. Sends cost no task: the reply
is made when the commit resolves, and all replies of one loop turn leave in one write.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from federation.identity import encode_chain, hello_bytes
from federation.ports import FRAME_BYTES_MAX, Channel, ChannelClosed
from node import api, coding
from node.api import ApiError
from node.core import render
from node.core.ephemeral import TYPING
from node.core.send import Send
from node.directory import event_id
from node.feed import Feed
from node.requests import handle
from node.storage import reads
from node.storage.writer import StoreFailed
from node.system import token_hash

if TYPE_CHECKING:
    from node.core import rows
    from node.node import Node

HELLO_DEADLINE_S = 10.0
LOGIN_DEADLINE_S = 60.0  # after the hello
SLOW_MS = 1_000  # least time for which one who asks too fast is refused
ANSWERS_BYTES_MAX = 1 << 20  # that the client did not take; then nothing is looked up for it, which is what is long
SIGNS_MAX = 1024  # of life, that did not leave yet
REFUSED_MAX = 2 * api.REQUESTS_IN_FLIGHT_MAX  # then he is not read for the rest of it


class Session:
    """Owned by the node; `run` returns when the connection is over."""

    def __init__(self, node: "Node", channel: Channel, is_text: Callable[[], bool]) -> None:
        """`is_text` says, once the first frame came, whether the client speaks JSON."""
        self.node, self._channel, self._is_text = node, channel, is_text
        self._codec = coding.MSGPACK
        self.nonce = node.system.random(32)
        self.device: rows.Device | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0  # of these, and of what is leaving
        self._lights: dict[str, api.PeerLight] = {}  # to be told, the newest of each: old ones are of no use
        self._signs: dict[tuple[str, str, bool], api.Ephemeral] = {}  # the same
        self._out_wake = asyncio.Event()
        self._writer: asyncio.Future[None]  # ends before `run` does only if the channel broke
        self._deadline: asyncio.Timeout  # of the hello, then of the login, then none
        self._proving = False
        self._in_flight = self._in_flight_bytes = 0
        self._slow_until = 0  # monotonic ms until which requests are refused
        self._refused = 0  # of these, since the last pause
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.feed: Feed | None = None  # once logged in

    @property
    def in_flight(self) -> int:
        """Requests without an answer yet."""
        return self._in_flight

    @property
    def lights_waiting(self) -> int:
        return len(self._lights)

    @property
    def signs_waiting(self) -> int:
        return len(self._signs)

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
            if (feed := self.feed) is not None:
                feed.over, self.feed = True, None
                feed.wake.set()
            self.node.leave(self)
            self.node.ephemerals.left(self)
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
                    self.node.refusals["requests in flight"] += 1
                    self._room.clear()  # stop reading the socket: the client's own window is full
                    await self._room.wait()
                frame = self._codec.from_client(raw)
                self._take(frame, len(raw))
                if pause_ms := self._pause_ms(frame):
                    await asyncio.sleep(pause_ms / 1000)
            if not (frames := await self._channel.recv()):
                return

    def _is_full(self) -> bool:
        """Whether the next frame has to wait: for an answer, or for the client to take the answers it has."""
        return (
            self._in_flight >= api.REQUESTS_IN_FLIGHT_MAX
            or self._in_flight_bytes >= api.REQUEST_BYTES_IN_FLIGHT_MAX
            or len(self._out) >= api.REQUESTS_IN_FLIGHT_MAX
        )

    @property
    def is_behind(self) -> bool:
        """Whether the client has yet to take so much that a long answer must wait."""
        return self._out_bytes >= ANSWERS_BYTES_MAX

    async def caught_up(self) -> None:
        """Until it took some. Ends with the connection."""
        while self.is_behind:
            self._room.clear()
            await self._room.wait()

    async def _write(self) -> None:
        """Ends only with the channel: when nothing can leave any more, nothing more is read either."""
        try:
            while True:
                await self._out_wake.wait()
                self._out_wake.clear()
                size = sum(map(len, self._out))
                passing = (*self._lights.values(), *self._signs.values())
                frames, self._out = [*self._out, *map(self._codec.encode, passing)], []
                self._lights.clear()
                self._signs.clear()
                self._room.set()
                if frames:
                    await self._channel.send(*frames)
                self._out_bytes -= size
                self._room.set()
        except ChannelClosed:
            pass
        except Exception as error:  # a bug, such as a frame that is too long for any channel
            self.node.report(error)
            self._out.clear()
            self._push(api.Goodbye("failed", "an answer could not be sent; connect again"))
        await self._finish("")

    def _push(self, frame: api.FromNode) -> int:
        """Into the next write; the frame's size in bytes."""
        raw = self._codec.encode(frame)
        if len(raw) > FRAME_BYTES_MAX and isinstance(frame, api.Reply):  # no channel would take it
            raw = self._codec.encode(api.Error("too_large", "the answer is longer than a frame", frame.id))
        self._out.append(raw)
        self._out_bytes += len(raw)
        self._out_wake.set()
        return len(raw)

    # --- requests -----------------------------------------------------------------------------------------------------
    def _take(self, frame: api.FromClient, size: int) -> None:
        """One frame of `size` bytes; every request is answered once, and its bytes are free then."""
        if isinstance(frame, api.Ack):
            if self.feed is None:
                raise ApiError("bad_token", "log in first")
            self.feed.ack(frame)
            return
        if isinstance(frame, api.Hello):
            raise ApiError("bad_frame", "a second hello")
        if wait_ms := self._too_fast():
            self._push(api.Error("rate_limited", "too many requests of this user", frame.id, wait_ms))
            return
        self._in_flight += 1
        self._in_flight_bytes += size
        if isinstance(frame, api.Send):
            self._send(frame, size)
        else:
            task = asyncio.ensure_future(self._serve(frame, size))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _too_fast(self) -> int:
        """After how many ms the user may ask again; 0: now. What follows a refusal is refused too for a while: else
        messages that were sent behind a refused one would overtake it."""
        if self.device is None:
            return 0
        now = self.node.system.monotonic_ms()
        if now >= self._slow_until:
            wait = self.node.rates.take(self.device.local, 1, now)
            if not wait:
                return 0
            self._slow_until = now + max(wait, SLOW_MS)
        self.node.refusals["requests"] += 1
        self._refused += 1
        return self._slow_until - now

    def _pause_ms(self, frame: api.FromClient) -> int:
        """How long not to read: an acknowledgement cannot be refused, and whoever goes on regardless is not served."""
        now = self.node.system.monotonic_ms()
        if isinstance(frame, api.Ack) and self.device is not None:
            return min(self.node.rates.take(self.device.local, 1, now), SLOW_MS)
        if self._refused < REFUSED_MAX:
            return 0
        self._refused = 0
        return max(0, self._slow_until - now)

    def _send(self, frame: api.Send, size: int) -> None:
        """Decide nothing here: the store answers after commit."""
        try:
            device = self.logged_in()
            to = self.node.recipient(frame.to)
            target = event_id(frame.target) if frame.target else None
            command = Send(
                device.local, device.device, frame.key, to, frame.kind, frame.format, frame.body, target,
                frame.expires_ms, event_id(frame.thread) if frame.thread else None, frame.undo,
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
                self._answer(frame.id, size, await handle(self, frame))
        except Exception as error:  # a bug too is answered, and told in the log
            self._answer(frame.id, size, error)

    async def _prove(self, frame: api.Login | api.Register | api.Auth) -> api.LoggedIn | api.Ready:
        """Log in; one at a time. The deadline waits for the answer: a slow check of a password is not the client's."""
        if self._proving or self._deadline.expired():
            raise ApiError("busy", "an earlier login of this connection is still being checked")
        deadline, self._proving = self._deadline.when(), True
        self._deadline.reschedule(None)
        try:
            found: Any = await (self._auth(frame) if isinstance(frame, api.Auth) else handle(self, frame))
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

    # --- logged in ----------------------------------------------------------------------------------------------------
    async def _auth(self, frame: api.Auth) -> api.Ready:
        device, account = await self._known(frame.token)
        if self.device is not None:
            raise ApiError("bad_request", "this connection is logged in already; open another one")
        self.device = device
        self.node.join(self)
        try:
            await self._known(frame.token)  # again, now that a revocation ends this session: it may have come meanwhile
        except ApiError:
            self.node.leave(self)
            self.device = None
            raise
        feed = self.feed = Feed(self.node, device, self._push)
        store = self.node.store_text
        box = await self.node.store.read(reads.mailbox, device.local)
        if frame.resume is not None and frame.resume.store == store:
            await feed.resume(frame.resume, box.position)
        return api.Ready(
            f"{device.local}@{self.node.us.name}", render.device(device).device, account.display_name,
            api.Cursor(store, feed.acked), box.position,
        )  # fmt: skip

    async def _known(self, token: str) -> "tuple[rows.Device, rows.Account]":
        found = await self.node.store.read(reads.device_by_token, token_hash(token))
        if found is None:
            raise ApiError("bad_token", "the token is not valid: the device was revoked or logged out; log in again")
        if found[1].state != "active":
            raise ApiError("disabled", "the account is disabled; ask its administrator")
        return found

    def _start_feed(self) -> None:
        for name, (state, since) in self.node.lights.items():
            self.light(name, state, since)
        assert self.feed is not None
        task = asyncio.ensure_future(self.feed.run())
        self._tasks.add(task)
        task.add_done_callback(self._feed_done)

    def _feed_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.node.report(error)
            self.end("failed", "the feed broke; reconnect")

    # --- told by the node ---------------------------------------------------------------------------------------------
    def light(self, name: str, state: str, since: int) -> None:
        self.node.refusals["lights"] += name in self._lights
        self._lights[name] = api.PeerLight(name, state, since)  # type: ignore[arg-type]
        self._out_wake.set()

    def pass_on(self, sign: api.Ephemeral) -> None:
        """A sign of life of somebody, to a device that has a feed: the newest counts, and none waits for room."""
        key = (sign.conversation, sign.who, sign.kind in TYPING)
        if self.feed is None:
            return
        if key not in self._signs and len(self._signs) >= SIGNS_MAX:
            self.node.refusals["signs of life"] += 1
            return
        self._signs[key] = sign
        self._out_wake.set()

    def end(self, code: str, reason: str) -> None:
        """Say goodbye and close: a revoked device, a disabled account, a node that stops.

        Who lost the right to be here is nobody from now on, however long the goodbye takes to leave.
        """
        self._push(api.Goodbye(code, reason))
        if code == "bad_token":
            self.node.leave(self)
            self.device = None
            if (feed := self.feed) is not None:
                feed.over, self.feed = True, None
                feed.wake.set()
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

"""One device's feed on one connection: pushes its mailbox past the cursor, and takes the acknowledgements."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from federation.ids import Log
from node import api, coding
from node.api import ApiError
from node.core import render, rows
from node.core.progress import Acknowledge, Seen
from node.storage import reads
from node.storage.writer import StoreFailed

if TYPE_CHECKING:
    from node.node import Node

LOOK_AGAIN_S = 30.0  # a lost hint costs at most this
TELL_AGAIN_S = 1.0  # between tries to store an acknowledgement
Read = reads.Placed | reads.Broken | rows.Fact
Page = tuple[list[Read], int, bool]


class Feed:
    """`push` gets a feed frame and gives its size in bytes."""

    def __init__(self, node: "Node", device: "rows.Device", push: Callable[[api.Feed], int]) -> None:
        self._node, self._device, self._push = node, device, push
        self.wake = asyncio.Event()
        self.acked = device.acked
        self.over = False
        self._pushed = 0
        self._window: deque[tuple[int, Log | None, int]] = deque()  # pushed, not acknowledged
        self._window_bytes = 0
        self._full = False  # waits for an acknowledgement
        self._owed: dict[Log, Seen] = {}  # acknowledged, and the store was not told
        self._telling = False

    @property
    def on_the_way(self) -> int:
        """Items pushed and not acknowledged."""
        return len(self._window)

    async def resume(self, cursor: api.Cursor, end: int) -> None:
        """Begin where the client says it is, but not past the mailbox's `end`: what comes there later was not seen.

        It may have more than it could tell before the connection broke: that is an acknowledgement too.
        """
        upto = min(cursor.position, end)
        after = self.acked
        while after < upto:
            found, after, _ = await self._page(after)
            self._window.extend(self._seen(item) for item in found if item.position <= upto)
            if not found:
                break
            self._pushed = min(after, upto)
            self.ack(api.Ack(self._pushed))  # page by page: there may be very many
        if upto > self.acked:
            self._pushed = upto
            self.ack(api.Ack(upto))
        self.acked = upto

    async def run(self) -> None:
        """Push what is past the cursor while the window has room; the rest waits on disk."""
        position, hot = self.acked, False
        while not self.over:
            self.wake.clear()
            self._full = len(self._window) >= api.FEED_ITEMS_MAX or self._window_bytes >= api.FEED_BYTES_MAX
            self._node.refusals["feed"] += self._full
            if not self._full:
                found, position, more = await self._page(position, hot)
                self._pushed = position
                if found:
                    items = tuple(self._item(item) for item in found)
                    self._window.extend(self._seen(item) for item in found)
                    self._window_bytes += self._push(api.Feed(self._node.store_text, items))
                hot = not more  # this device is at the end: what comes was committed just then
                if more:
                    continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self.wake.wait()

    async def _page(self, after: int, hot: bool = False) -> Page:
        bounds = (api.FEED_ITEMS_MAX, api.FEED_BYTES_MAX // 4)
        return await self._node.store.read(reads.feed, self._device.local, after, *bounds, hot=hot)

    def _seen(self, item: Read) -> tuple[int, Log | None, int]:
        if not isinstance(item, reads.Placed):
            return item.position, None, 0
        own = item.origin == self._node.us.node and item.event.sender == self._device.local
        log = None if own else Log(item.event.conversation, item.origin, item.incarnation)
        return item.position, log, item.event.seq

    def _item(self, item: Read) -> api.Item:
        if isinstance(item, reads.Placed):
            address = self._node.directory.address
            return render.message(item.origin, item.incarnation, item.event, item.header, address, item.position)
        if isinstance(item, reads.Broken):
            return render.damaged(item.why, *item[2:], position=item.position)
        try:
            return coding.decode_item(item.item, item.position)
        except ValueError:
            return render.damaged("damaged", position=item.position)

    def ack(self, frame: api.Ack) -> None:
        """Positions become watermarks per log: what was pushed here is what can be acknowledged here."""
        seqs: dict[Log, int] = {}
        missing: dict[Log, list[int]] = {}
        first: dict[Log, int] = {}
        upto = min(frame.position, max(self._pushed, self.acked))
        while self._window and self._window[0][0] <= upto:
            position, log, seq = self._window.popleft()
            if log is not None:
                seqs[log] = max(seq, seqs.get(log, 0))
                first[log] = min(seq, first.get(log, seq))
                if position in frame.missing:
                    missing.setdefault(log, []).append(seq)
        if not self._window:
            self._window_bytes = 0
        if upto > self.acked or seqs:
            self.acked = max(self.acked, upto)
            for log, seq in seqs.items():
                self._owe(Seen(log, seq, missing=tuple(missing.get(log, ())), since=first[log] - 1))
            if not self._telling:
                self._tell()
        if self._full:
            self.wake.set()

    def _owe(self, seen: Seen) -> None:
        before = self._owed.get(seen.log, seen)
        upto, since = max(before.delivered, seen.delivered), min(before.since, seen.since)
        self._owed[seen.log] = Seen(seen.log, upto, missing=tuple({*before.missing, *seen.missing}), since=since)

    def _tell(self) -> None:
        """One at a time: if the store refuses one, the device's cursor must not have passed it with the next."""
        what = Acknowledge(self._device.local, self._device.device, self.acked, tuple(self._owed.values()))
        self._owed, self._telling = {}, True
        # Later: it is told again after a crash, since the device comes back with its own cursor.
        self._node.store.submit(what, later=True).add_done_callback(partial(self._told, what))

    def _told(self, what: Acknowledge, future: "asyncio.Future[Any]") -> None:
        """An acknowledgement has no answer: what the store has no room for is told again from here, or the sender
        would never hear of it. A bug in it must not be silent."""
        error = None if future.cancelled() else future.exception()
        if isinstance(error, ApiError) and error.retry:
            for seen in what.seen:
                self._owe(seen)
            if not self.over:
                asyncio.get_running_loop().call_later(TELL_AGAIN_S, self._tell)
            return
        if error is not None and not isinstance(error, ApiError | StoreFailed):
            self._node.report(error)
        self._telling = False
        if self._owed or self.acked > what.position:
            self._tell()

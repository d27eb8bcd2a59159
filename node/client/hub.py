"""Who is told what: callers that wait for a state, screens, and readers of `events()`."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol
from weakref import WeakSet

from node.client.errors import Lost
from node.client.feed import Entry
from node.client.model import Change, Message
from node.client.rows import FAILED, RANK

RECENT_MAX = 4096  # own messages kept in memory, so that waiting for one needs no look into the store
PENDING_CHANGES_MAX = 4096  # for one screen; beyond, it is told to look at everything again


class Reader(Protocol):
    """An `events()` iterator."""

    def push(self, entries: Sequence[Entry]) -> None: ...

    def pass_on(self, change: Change) -> None: ...

    def wake(self) -> None: ...


class Hub:
    """Publishes without a task per message; lives on the loop only."""

    def __init__(self, position: int) -> None:
        self.position = position  # the feed is stored up to here
        self.error: Exception | None = None  # why nothing will ever come again
        self.closed = False
        self.screens: WeakSet[Screen] = WeakSet()
        self.readers: WeakSet[Reader] = WeakSet()
        self._recent: OrderedDict[str, Message] = OrderedDict()
        self._waiting: dict[str, list[tuple[int, asyncio.Future[Message]]]] = {}

    def publish(self, changes: Iterable[Change], entries: Sequence[Entry] = (), position: int = 0) -> None:
        self.position = max(self.position, position)
        for change in changes:
            if change.message is not None and change.message.mine:
                self._own(change.message)
            for screen in self.screens:
                screen.put(change)
        for reader in self.readers:
            reader.push(entries)

    def pass_on(self, change: Change) -> None:
        """A sign of life: to whoever looks now."""
        for screen in self.screens:
            screen.put(change)
        for reader in self.readers:
            reader.pass_on(change)

    def _own(self, message: Message) -> None:
        self._recent[message.key] = message
        self._recent.move_to_end(message.key)
        if len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)
        if message.key not in self._waiting:
            return
        left = []
        for wanted, future in self._waiting.pop(message.key):
            if future.done():
                continue
            if is_reached(message, wanted):
                future.set_result(message)
            else:
                left.append((wanted, future))
        if left:
            self._waiting[message.key] = left

    def recent(self, key: str) -> Message | None:
        return self._recent.get(key)

    def forget(self, key: str) -> None:
        self._recent.pop(key, None)

    def expect(self, key: str, wanted: int) -> "asyncio.Future[Message]":
        """Resolves once a message got so far, or failed."""
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append((wanted, future))
        return future

    def drop(self, key: str, future: "asyncio.Future[Message]") -> None:
        """Nobody waits for it any more."""
        left = [entry for entry in self._waiting.get(key, ()) if entry[1] is not future]
        if left:
            self._waiting[key] = left
        else:
            self._waiting.pop(key, None)

    def end(self, error: Exception | None) -> None:
        """Nothing comes after this: iterators end, and with an error everybody hears it."""
        self.error = self.error or error
        self.closed = True
        waiting, self._waiting = self._waiting, {}
        for entries in waiting.values():
            for _, future in entries:
                if not future.done():
                    future.set_exception(error or Lost("the client was closed before that was known"))
        for screen in self.screens:
            screen.wake()
        for reader in self.readers:
            reader.wake()


def is_reached(message: Message, wanted: int) -> bool:
    """Whether waiting is over; a failed or void message gets no further."""
    rank = RANK[message.state]
    return rank >= wanted or rank >= FAILED


class Screen:
    """What `Client.changes()` gives: only the newest of each thing, however slow the screen is."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._pending: dict[tuple[str, str], Change] = {}
        self._news = asyncio.Event()
        hub.screens.add(self)

    def __aiter__(self) -> "Screen":
        return self

    async def __anext__(self) -> Change:
        while not self._pending:
            if self._hub.error is not None:
                raise self._hub.error
            if self._hub.closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._pending.pop(next(iter(self._pending)))

    async def aclose(self) -> None:
        self._hub.screens.discard(self)

    def put(self, change: Change) -> None:
        if len(self._pending) >= PENDING_CHANGES_MAX:
            self._pending.clear()
            change = Change("conversation", detail="everything")
        # A state and what was done to it are drawn on the message: the newest of all holds all there is to know.
        kind = "message" if change.kind in ("state", "update") else change.kind
        conversation = change.conversation.id if change.conversation else ""
        key = change.message.key if change.message else conversation or change.device
        if change.sign is not None:
            key = f"{change.sign.conversation} {change.sign.who}"
        old = self._pending.get((kind, key))
        if old is not None and old.kind == "message" and change.kind in ("state", "update"):
            change = Change("message", change.message)
        self._pending[kind, key] = change
        self._news.set()

    def wake(self) -> None:
        self._news.set()

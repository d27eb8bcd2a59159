"""What `Client.events()` gives: each change once, acknowledged when the consumer asks for the next one."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence

from node.client import marks
from node.client.feed import Entry, Me
from node.client.hub import Hub
from node.client.model import Change
from node.client.store import Store

BUFFER_MAX = 1024  # entries in memory; a slower consumer reads on from the journal
PAGE = 256
PASSING_MAX = 1024  # signs of life that the consumer did not ask for yet

Consumed = Callable[[int, int], None]  # journal number and mailbox position that are processed


class Events:
    """An async iterator that survives the cancellation of a waiting `anext`, so timeouts around it are safe.

    The journal has one place for the profile: of two readers at once each gets everything, and the faster one
    acknowledges.
    """

    def __init__(
        self, store: Store, hub: Hub, me: Me, kinds: Collection[str] | None, from_start: bool, consumed: Consumed
    ) -> None:
        self._store, self._hub, self._me, self._consumed = store, hub, me, consumed
        self._kinds = None if kinds is None else frozenset(kinds)
        self._buffer: deque[Entry] = deque()
        self._passing: dict[tuple[str, str, str], Change] = {}  # of each the newest
        self._given: Entry | None = None  # with the consumer now
        self._read_n = 0  # the journal is read up to here
        self._behind = True  # the journal has more than the buffer
        self._missed = False
        self._rewind = from_start  # messages from before the journal come first
        self._upto: marks.Ends | None = None
        self._message_n = 0
        self._news = asyncio.Event()
        hub.readers.add(self)

    def __aiter__(self) -> "Events":
        return self

    async def __anext__(self) -> Change:
        if self._given is not None:
            self._processed(self._given)
            self._given = None
        while True:
            if self._passing:
                return self._passing.pop(next(iter(self._passing)))
            while self._buffer:
                entry = self._buffer.popleft()
                if self._wanted(entry.change):
                    self._given = entry
                    return entry.change
                self._processed(entry)
            if self._hub.error is not None:
                raise self._hub.error
            if self._hub.closed:
                raise StopAsyncIteration
            if self._behind:
                await (self._load_all() if self._rewind else self._load())
                continue
            # Items that are nothing for us (own messages, marks) are processed once all before them are.
            self._consumed(self._read_n, self._hub.position)
            self._news.clear()
            await self._news.wait()

    async def aclose(self) -> None:
        """Stop reading; what was given last and not asked past stays unacknowledged."""
        self._hub.readers.discard(self)

    def _wanted(self, change: Change) -> bool:
        if change.kind in ("message", "state", "update") and change.message is None:
            return False  # withdrawn since it was noted
        return self._kinds is None or change.kind in self._kinds

    def _processed(self, entry: Entry) -> None:
        if not self._rewind:
            self._consumed(entry.n, entry.position)

    async def _load(self) -> None:
        self._missed = False
        after = self._read_n
        page = await self._store.run(lambda db: marks.journal(db, after, PAGE))
        if page:
            self._buffer.extend(page)
            self._read_n = page[-1].n
        self._behind = len(page) == PAGE or self._missed

    async def _load_all(self) -> None:
        if self._upto is None:
            self._upto = await self._store.run(marks.ends)
        upto, after, me = self._upto, self._message_n, self._me
        page = await self._store.run(lambda db: marks.everything(db, me, after, upto.message, PAGE))
        if page:
            self._buffer.extend(page)
            self._message_n = page[-1].n
        else:  # the journal up to here was among the messages
            self._rewind, self._read_n = False, upto.journal
            self._consumed(upto.journal, upto.position)

    def push(self, entries: Sequence[Entry]) -> None:
        """New entries, already in the journal."""
        if self._behind or len(self._buffer) + len(entries) > BUFFER_MAX:
            self._behind = self._missed = True
        else:
            fresh = [entry for entry in entries if entry.n > self._read_n]
            if fresh:
                self._buffer.extend(fresh)
                self._read_n = fresh[-1].n
        self._news.set()

    def pass_on(self, change: Change) -> None:
        """Nothing to acknowledge; only for who asks for it by its kind."""
        sign = change.sign
        if sign is None or self._kinds is None or change.kind not in self._kinds:
            return
        key = (change.kind, sign.conversation, sign.who)
        if key in self._passing or len(self._passing) < PASSING_MAX:
            self._passing[key] = change
            self._news.set()

    def wake(self) -> None:
        self._news.set()

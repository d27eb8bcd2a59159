"""Replies and the feed into the store, one transaction for all that came together; then told, then acknowledged."""

import asyncio
import logging
import sqlite3

from node import api
from node.client import feed, marks, outbox
from node.client.drain import Drain
from node.client.errors import Lost, StoreError
from node.client.feed import Applied, Me
from node.client.hub import Hub
from node.client.model import Change
from node.client.rows import conversations
from node.client.session import Session
from node.client.store import Store

AHEAD_MAX = api.FEED_ITEMS_MAX // 2  # stored items that wait for `events()` while nobody reads
ITEM_BYTES = api.FEED_BYTES_MAX // api.FEED_ITEMS_MAX  # the node's window has bytes too: so many count as one more item
logger = logging.getLogger(__name__)


class Keeper:
    """Knows where the store stands, and how far the consumer is."""

    def __init__(self, store: Store, hub: Hub, me: Me, cursor: marks.Cursor) -> None:
        self._store, self._hub, self._me = store, hub, me
        self.cursor = cursor
        self._session: Session | None = None
        self._ahead = 0  # items the node pushed and we did not acknowledge, large ones several times
        self._dirty_n = 0  # journal entries processed; the store may know fewer
        self._noted = (0, cursor.consumed)
        self._noting = False

    def begin(self, session: Session | None) -> None:
        """A connection is authenticated, or gone."""
        self._session, self._ahead = session, 0

    async def restart(self, store: str, position: int) -> None:
        """Another incarnation of the node's store."""
        await self._store.run(lambda db: marks.start(db, store, position))
        self.cursor = marks.Cursor(store, position, position)
        self._hub.position = position

    async def run(self, session: Session, drain: Drain) -> None:
        """Until the session has ended and all that it received is stored."""
        while True:
            if not session.ended:
                await session.fed.wait()
            session.fed.clear()
            feeds = session.take_feeds()
            rows, outcomes = drain.take()
            if any(pushed.store != self.cursor.store for pushed in feeds):
                raise Lost("the node's store was replaced")
            if feeds or outcomes:
                await self._keep(session, feeds, outcomes)
            drain.settled(rows)
            if session.ended and not session.feeds:
                return

    async def _keep(self, session: Session, feeds: list[api.Feed], outcomes: list[outbox.Outcome]) -> None:
        shown = bool(self._hub.screens) and not self._hub.readers
        me = self._me

        def job(db: sqlite3.Connection) -> tuple[list[Change], Applied]:
            own, begun, changed = outbox.settle(db, outcomes) if outcomes else outbox.Settled([], [], [])
            changes = [Change("state", m) for m in own]
            states = [] if shown else feed.note(db, [(0, change) for change in changes])
            applied = feed.apply(db, me, feeds, journal=not shown)
            if shown:
                marks.consume_all(db)
            changes += [Change("conversation", conversation=c) for c in conversations(db, begun)] if begun else []
            changes += [Change("update", m) for m in changed]
            return changes, applied._replace(entries=[*states, *applied.entries])

        changes, applied = await self._store.run(job)
        self._ahead += sum(map(_weight, (item for pushed in feeds for item in pushed.items)))
        self.cursor = self.cursor._replace(stored=applied.position)
        self._hub.publish([*changes, *applied.changes], applied.entries, applied.position)
        # With nobody to read, the node's window must not close: stored here and opened is what delivered means.
        if shown or (not self._hub.readers and self._ahead >= AHEAD_MAX):
            self._acknowledge(session, applied.position)

    def _acknowledge(self, session: Session, position: int) -> None:
        self.cursor = self.cursor._replace(consumed=max(position, self.cursor.consumed))
        self._ahead = 0
        session.ack(position)
        self._note_soon()

    # --- processed by `events()` --------------------------------------------------------------------------
    def consumed(self, n: int, position: int) -> None:
        """The consumer asked past this entry: the node may know, and the journal may forget."""
        if position > self.cursor.consumed:
            self.cursor = self.cursor._replace(consumed=position)
            self._ahead = 0
            if self._session is not None:
                self._session.ack(position)
        self._dirty_n = max(n, self._dirty_n)
        self._note_soon()

    def _note_soon(self) -> None:
        """One transaction at a time notes what was consumed, for however many entries there were meanwhile."""
        noted = (self._dirty_n, self.cursor.consumed)
        if self._noting or self._hub.closed or noted == self._noted:
            return
        self._noting, self._noted = True, noted

        def done(future: "asyncio.Future[None]") -> None:
            self._noting = False
            if not future.cancelled() and future.exception() is None:
                self._note_soon()

        self._store.submit(lambda db: marks.consume(db, *noted)).add_done_callback(done)

    async def flush(self) -> None:
        n, position = self._dirty_n, self.cursor.consumed
        try:
            await self._store.run(lambda db: marks.consume(db, n, position))
        except StoreError as error:
            logger.warning("what was consumed could not be noted, it will come again: %s", error)


def _weight(item: api.Item) -> int:
    body = item.body if isinstance(item, api.Message) else None
    return 1 + len(body or b"") // ITEM_BYTES

"""The outbox on its way: what to transmit next, what is in flight, and what a refusal holds back."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from node import api
from node.client import outbox
from node.client.errors import Lost
from node.client.outbox import Outcome, Row
from node.client.session import Answer, Session
from node.client.store import Store

FLYING_MAX = 512  # transmitted, and the outcome not yet stored
FRESH_MAX = 1024  # just queued, kept in memory; beyond, they are read from the store
PAGE = 256
RETRY_S_MAX = 60.0
_OVER = float("inf")
_NONE = 1 << 62  # above every number in the outbox


@dataclass
class Hold:
    """A target that refused for now: later messages to it wait, so that they do not overtake.

    Only what was already in flight behind the refused one can still be taken before it.
    """

    until: float  # infinite: over, and one message probes whether the target takes messages again
    tries: int
    first_n: int  # oldest message known to wait
    probe: str | None = None
    why: api.ApiError | None = None


class Drain:
    """Sends queued messages in order over one session. A new session gets a new drain and all that is queued."""

    def __init__(self, store: Store, session: Session, jitter: Callable[[float], float]) -> None:
        self._store, self._session, self._jitter = store, session, jitter
        self._loop = asyncio.get_running_loop()
        self._fresh: deque[Row] = deque()
        self._last_n = 0
        self._behind = True  # the store has queued messages that are not in `fresh`
        self._missed = False
        self._flying: dict[str, Row] = {}
        self._answers: list[tuple[Row, Answer]] = []  # bounded by what flies
        self._held: dict[str, Hold] = {}
        self._queued = asyncio.Event()
        self._room = asyncio.Event()

    def put(self, row: Row) -> None:
        """A message was queued and is in the store."""
        if self._behind or len(self._fresh) >= FRESH_MAX:
            self._behind = self._missed = True
        else:
            self._fresh.append(row)
        self._queued.set()

    async def run(self) -> None:
        while True:
            rows = await self._next()
            unmarked = [row.key for row in rows if not row.tried]
            if unmarked:
                still = await self._store.run(lambda db, keys=unmarked: outbox.mark_tried(db, keys))  # type: ignore[misc]
                for row in rows:
                    if not row.tried and row.key not in still:
                        self._withdrawn(row)
                rows = [row for row in rows if row.tried or row.key in still]
            for row in rows:
                if self._is_held(row):
                    continue  # refused since the page was read
                while len(self._flying) >= FLYING_MAX:
                    self._room.clear()
                    await self._room.wait()
                self._flying[row.key] = row
                send = api.Send(
                    id=1, key=row.key, to=row.target, body=row.body, format=row.format, kind=row.kind,
                    target=row.reply_to, thread=row.thread, undo=row.undo,
                )  # fmt: skip
                await self._session.submit(send, partial(self._answered, row))

    def _answered(self, row: Row, answer: Answer) -> None:
        if not isinstance(answer, Lost):
            self._answers.append((row, answer))
            self._session.fed.set()

    async def _next(self) -> list[Row]:
        while True:
            self._release()
            if self._behind:
                rows = await self._page()
            else:
                rows = [row for row in self._fresh if row.n > self._last_n]
                self._fresh.clear()
                if rows:
                    self._last_n = rows[-1].n
            rows = [row for row in rows if row.key not in self._flying and not self._is_held(row)]
            if rows:
                return rows
            if not self._behind and not self._fresh:
                await self._wait()

    async def _page(self) -> list[Row]:
        self._missed = False
        after = self._last_n
        rows = await self._store.run(lambda db: outbox.page(db, after, PAGE))
        if rows:
            self._last_n = rows[-1].n
        self._behind = len(rows) == PAGE or self._missed
        return rows

    async def _wait(self) -> None:
        self._queued.clear()
        ends = [hold.until for hold in self._held.values() if hold.until < _OVER]
        try:
            async with asyncio.timeout_at(min(ends) if ends else None):
                await self._queued.wait()
        except TimeoutError:
            pass

    # --- outcomes -----------------------------------------------------------------------------------------
    def take(self) -> tuple[list[Row], list[Outcome]]:
        """Final outcomes since the last call. What is to be tried again is held back here."""
        answers, self._answers = self._answers, []
        rows, outcomes = [], list[Outcome]()
        for row, answer in answers:
            if isinstance(answer, api.ApiError) and answer.retry:
                self._hold(row, answer)
                continue
            refused = str(answer) if isinstance(answer, Exception) else "the node gave an answer of another kind"
            outcomes.append((row.key, answer if isinstance(answer, api.Accepted) else refused))
            rows.append(row)
            self._works_again(row.target)
        return rows, outcomes

    def settled(self, rows: list[Row]) -> None:
        """Their outcomes are stored."""
        for row in rows:
            self._flying.pop(row.key, None)
        self._room.set()

    def _hold(self, row: Row, error: api.ApiError) -> None:
        self._flying.pop(row.key, None)
        self._room.set()
        hold = self._held.get(row.target)
        if hold is None or hold.until == _OVER:
            tries = hold.tries + 1 if hold else 0
            pause = max(self._jitter(min(RETRY_S_MAX, 2.0**tries)), error.retry_after_ms / 1000)
            first_n = hold.first_n if hold else row.n
            hold = self._held[row.target] = Hold(self._loop.time() + pause, tries, first_n)
        hold.first_n = min(hold.first_n, row.n)
        hold.why = error
        self._queued.set()  # the wait has an end now

    def _works_again(self, target: str) -> None:
        hold = self._held.get(target)
        if hold is None:
            return
        if hold.until == _OVER:
            del self._held[target]
            self._rewind(hold)
        else:
            hold.until = self._loop.time()  # one that was in flight got through: probe now
        self._queued.set()

    def refusal(self, target: str) -> api.ApiError | None:
        """Why messages to this target wait, if they do."""
        hold = self._held.get(target)
        return hold.why if hold is not None else None

    def _is_held(self, row: Row) -> bool:
        """Whether a message has to wait. Once a hold is over the first to ask becomes the probe."""
        hold = self._held.get(row.target)
        if hold is None:
            return False
        if hold.until == _OVER and hold.probe in (None, row.key):
            hold.probe = row.key
            return False
        hold.first_n = min(hold.first_n, row.n)
        return True

    def _withdrawn(self, row: Row) -> None:
        """It will not probe after all."""
        hold = self._held.get(row.target)
        if hold is not None and hold.probe == row.key:
            hold.until, hold.probe = self._loop.time(), None

    def _release(self) -> None:
        """Holds that are over: read the outbox again from their oldest message."""
        now = self._loop.time()
        for hold in self._held.values():
            if hold.until <= now:
                self._rewind(hold)
                hold.until, hold.first_n = _OVER, _NONE

    def _rewind(self, hold: Hold) -> None:
        if hold.first_n < _NONE:
            self._last_n = min(self._last_n, hold.first_n - 1)
            self._behind = self._missed = True

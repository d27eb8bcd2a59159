"""The batch writer: everything that arrived while the last transaction was committing goes into the next one.

No timer: an idle message waits for its own commit only; what nobody waits for (`later`) rides along with another
one. Only the writer touches the writing connection; callers await a future, so a cancelled caller cannot wedge the
database.
"""

import asyncio
import logging
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DatabaseError, DBAPIError, IntegrityError, OperationalError

from node.api import ApiError
from node.core.context import Context
from node.core.view import Command, Hint, Outcome, View
from node.storage import batch, damaged
from node.storage.runner import Runner, busy, said

BATCH_MAX = 512  # commands in one transaction
SMALL = 16  # commands that are decided on the loop itself: a millisecond or two
HOT_ROWS_MAX = 8192  # a few MiB
FULL_RETRY_MS = 5_000  # when to try again what a full disk refused
LATER_S = 0.02  # how long what nobody waits for may wait for company
WAITING_MAX = 16384  # commands waiting; beyond it callers are told `busy`
BROKEN = ("08", "53", "57", "58", "XX")  # classes of SQLSTATE that are the database's own failure
DATABASE = (DBAPIError, sqlite3.Error)
T = TypeVar("T")
log = logging.getLogger("roost.store")


class StoreFailed(Exception):
    """The disk or database did not take a commit: nothing may be promised any more (fsync errors are not retried)."""


class Store:
    """One node's storage: `submit` decides and commits, `read` looks."""

    def __init__(
        self,
        runner: Runner,
        context: Context,
        close: list[Command],
        now_ms: Callable[[], int],
        on_commit: Callable[[Iterable[Hint]], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._runner, self._context, self._close = runner, context, close
        self._now_ms, self._on_commit, self._on_failure = now_ms, on_commit, on_failure
        self._statements = batch.Statements(runner.dialect)
        self.hot = batch.Hot(HOT_ROWS_MAX if runner.alone else 0)
        self._waiting: deque[tuple[Command, asyncio.Future[Outcome]]] = deque()
        self._later: deque[tuple[Command, asyncio.Future[Outcome]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._due = False  # the oldest of `_later` has waited long enough
        self._wake = asyncio.Event()
        self._stopping = False
        self._failed: BaseException | None = None
        self._alone: deque[tuple[Callable[[Connection], Any], asyncio.Future[Any]]] = deque()
        self.refuse: ApiError | None = None  # what everyone is told whose command does not say `while_held`
        self.commits = self.commands = 0
        self.refused: Counter[str] = Counter()  # commands by the code of their refusal
        self.full = ""  # why nothing that makes the store grow is taken; empty where it is
        self.damaged: dict[str, int] = {}  # reads of damaged rows, by table

    def submit(self, command: Command, later: bool = False) -> "asyncio.Future[Outcome]":
        """Resolves after commit and fsync with the outcome, or with the refusal as an `ApiError`.

        `later` is for what may be told again after a crash: it saves a commit of its own.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        if self._failed is not None:
            future.set_exception(StoreFailed(said(self._failed)))
        elif self._stopping or self.waiting >= WAITING_MAX:
            self._refuse(future, ApiError("busy", "the node is stopping" if self._stopping else "too much is waiting"))
        elif self.full and getattr(command, "grows", False):
            self._refuse(future, ApiError("storage_full", self.full, FULL_RETRY_MS))
        elif self.refuse is not None and not getattr(command, "while_held", False):
            self._refuse(future, self.refuse)
        elif later:
            self._later.append((command, future))
            if self._timer is None:
                self._timer = loop.call_later(LATER_S, self._ripe)
        else:
            self._waiting.append((command, future))
            self._wake.set()
        return future

    def _refuse(self, future: "asyncio.Future[Outcome]", error: ApiError) -> None:
        self.refused[error.code] += 1
        _settle(future, error)

    async def alone(self, work: Callable[[Connection], T]) -> T:
        """Run a write of the administrator's between two batches, in a transaction of its own."""
        if self._failed is not None:
            raise StoreFailed(said(self._failed))
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._alone.append((work, future))
        self._wake.set()
        return await future

    def _ripe(self) -> None:
        self._due = True
        self._wake.set()

    @property
    def waiting(self) -> int:
        """Commands that wait for the next transaction."""
        return len(self._waiting) + len(self._later)

    async def read(self, work: Callable[..., T], *args: Any, hot: bool = False) -> T:
        """Run a read function of `node.storage` over a snapshot; `hot`: of a little that was just committed."""

        def call(connection: Connection) -> T:
            with damaged.telling(self._note):
                return work(connection, *args)

        try:
            return await self._runner.read(call, hot)
        except DATABASE as error:
            if not malformed(error):
                raise
            self._fail(error, [])  # its structure is damaged: whatever else were read or written is not to be trusted
            raise StoreFailed(said(error)) from None

    def _note(self, table: str, fields: str) -> None:
        """A damaged row was read."""
        if table not in self.damaged:
            log.warning("damaged in table %s: %s; `roost verify` says what it means", table, fields)
        self.damaged[table] = self.damaged.get(table, 0) + 1

    async def run(self) -> None:
        """The writer's task; ends after `stop` when nothing waits."""
        while True:
            while self._alone:
                await self._run_alone(*self._alone.popleft())
            while not self._waiting and not self._alone and not (self._later and (self._due or self._stopping)):
                if self._stopping:
                    return
                self._wake.clear()
                await self._wake.wait()
            group = self._group()
            if not group:
                continue
            try:
                await self._commit(group)
            except BaseException as error:
                self._fail(error, group)
                raise

    async def _run_alone(self, work: Callable[[Connection], Any], future: "asyncio.Future[Any]") -> None:
        try:
            outcome = await self._runner.write(work)
        except Exception as error:
            outcome = StoreFailed(said(error))
            if _broken(error) and not busy(error) and not _full(error):
                _settle(future, outcome)
                self._fail(error, [])
                raise  # the disk: stop, never retry
        self.hot.forget()  # it changed rows that no view knows of
        _settle(future, outcome)

    def _group(self) -> "list[tuple[Command, asyncio.Future[Outcome]]]":
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        group = [self._later.popleft() for _ in range(min(BATCH_MAX, len(self._later)))]
        group += [self._waiting.popleft() for _ in range(min(BATCH_MAX - len(group), len(self._waiting)))]
        self._due = bool(self._later)
        return group

    async def _commit(self, group: "list[tuple[Command, asyncio.Future[Outcome]]]", heal: bool = False) -> None:
        commands = [command for command, _ in group]
        try:
            outcomes, hints = await self._transact(commands, heal)
        except Exception as error:
            if busy(error):
                for _, future in group:  # nothing was begun
                    _settle(future, ApiError("busy", "another process holds the node's database; close it"))
                return
            if _full(error):
                for _, future in group:  # refused before the commit, and rolled back whole: reads go on
                    full = "the node's disk is full; its owner must make room"
                    self._refuse(future, ApiError("storage_full", full, FULL_RETRY_MS))
                return
            if _broken(error):
                raise  # the disk: stop, never retry
            if len(group) == 1 and not heal and _clashes(error):
                # Numbers that are taken: a row that says which is the newest is gone or wrong.
                self.hot.forget()
                await self._commit(group, heal=True)
                return
            if len(group) == 1:
                # One command that cannot be written harms nobody else. A bug, so its caller is told.
                _settle(group[0][1], ApiError("failed", "not stored") if isinstance(error, DATABASE) else error)
                return
            middle = len(group) // 2
            await self._commit(group[:middle])
            await self._commit(group[middle:])
            return
        self.commits += 1
        self.commands += len(group)
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, ApiError):
                self.refused[outcome.code] += 1
            _settle(future, outcome)
        self._on_commit(hints)

    async def _transact(self, commands: list[Command], heal: bool) -> tuple[list[Outcome], list[Hint]]:
        self._context.now_ms = self._now_ms()

        def work(connection: Connection) -> tuple[list[Outcome], View]:
            with damaged.telling(self._note):
                return batch.run(connection, self._statements, commands, self._context, self._close, self.hot, heal)

        outcomes, view = await self._runner.write(work, small=len(commands) <= SMALL)
        self.hot.keep(view)
        return outcomes, list(view.hints)

    def _fail(self, error: BaseException, group: "list[tuple[Command, asyncio.Future[Outcome]]]") -> None:
        self._failed = error
        reason = StoreFailed(said(error))
        reason.__cause__ = error
        for _, future in [*group, *self._waiting, *self._later, *self._alone]:
            _settle(future, reason)
        self._waiting.clear()
        self._later.clear()
        if not isinstance(error, asyncio.CancelledError):
            self._on_failure(reason)

    def stop(self) -> None:
        """Take nothing new; what waits is still committed by `run`."""
        self._stopping = True
        self._wake.set()

    async def close(self) -> None:
        await self._runner.close()


def _full(error: Exception) -> bool:
    """Whether the disk had no room: the one store error after which going on is safe."""
    cause = getattr(error, "orig", error)  # not the whole text: that quotes what people wrote
    return "disk is full" in str(cause) or getattr(cause, "sqlstate", "") == "53100"


def _broken(error: Exception) -> bool:
    """Whether the database itself failed, and not the values of one command."""
    if isinstance(error, DBAPIError):
        code = str(getattr(error.orig, "sqlstate", None) or "")  # PostgreSQL: shut down, damaged, out of something
        damaged = type(error) is DatabaseError  # SQLite: malformed, or not a database
        return isinstance(error, OperationalError) or damaged or error.connection_invalidated or code[:2] in BROKEN
    if isinstance(error, sqlite3.Error):  # of a statement that went to SQLite itself
        return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError
    return isinstance(error, OSError)


def _clashes(error: Exception) -> bool:
    """A key that should be free is taken."""
    return isinstance(error, IntegrityError | sqlite3.IntegrityError)


def malformed(error: BaseException) -> bool:
    """SQLite's structure is damaged, or the file is no database; also where that is the cause of `error`."""
    if isinstance(error, StoreFailed) and error.__cause__ is not None:
        error = error.__cause__
    cause = getattr(error, "orig", None) or error
    return type(cause) is sqlite3.DatabaseError


def _settle(future: "asyncio.Future[Outcome]", outcome: Outcome) -> None:
    if future.done():
        return  # its caller went away; the commit stands
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
        future.exception()  # a caller that left need not be warned about at garbage collection
    else:
        future.set_result(outcome)

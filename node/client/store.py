"""The durable local store: SQLite in one worker thread, every waiting job in one transaction.

Jobs are plain functions of a connection. What arrived while the last transaction was committing goes into the
next one, so a burst of sends costs a few fsyncs. Without a path it lives in memory and runs in line: an embedded
client or a simulator then needs no thread.
"""

import asyncio
import os
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from node.client.acts import refold
from node.client.errors import NewerStore, StoreError

VERSION = 3
JOBS_PER_TRANSACTION_MAX = 512
CACHE_KIB = 2048
T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

# State numbers are in the order of `rows.STATES`, so that "only forward" is one comparison.
SCHEMA = """
CREATE TABLE fact(name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE message(
  n INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of the outbox, and of arrival
  id TEXT UNIQUE,                       -- none until the node accepted it
  key TEXT NOT NULL UNIQUE,
  conversation TEXT NOT NULL,           -- the address written to, while the id is not known
  sender TEXT NOT NULL, device TEXT NOT NULL, text TEXT NOT NULL, stamp INTEGER NOT NULL,
  mine INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '',
  late INTEGER NOT NULL DEFAULT 0, ord INTEGER NOT NULL DEFAULT 0, kind TEXT NOT NULL DEFAULT 'message',
  origin TEXT NOT NULL DEFAULT '', log TEXT NOT NULL DEFAULT '', seq INTEGER NOT NULL DEFAULT 0,
  reply_to TEXT,
  unread INTEGER NOT NULL DEFAULT 0,
  target TEXT NOT NULL DEFAULT '',      -- of own messages of this device: to whom
  format TEXT NOT NULL DEFAULT 'text',
  body BLOB,                            -- only when it is not the text in UTF-8
  tried INTEGER NOT NULL DEFAULT 0,     -- may have left this machine
  thread TEXT, undo INTEGER NOT NULL DEFAULT 0,
  gone INTEGER NOT NULL DEFAULT 0,      -- its body was deleted
  mention INTEGER NOT NULL DEFAULT 0,   -- names this user
  fold BLOB                             -- what was done to it, made anew from the acts by `acts.refold`
);
CREATE INDEX message_about ON message(reply_to) WHERE reply_to IS NOT NULL;
CREATE INDEX message_thread ON message(thread) WHERE thread IS NOT NULL;
CREATE INDEX message_pins ON message(conversation) WHERE kind = 'pin';
CREATE INDEX message_order ON message(conversation, ord);
CREATE INDEX message_log ON message(conversation, log, seq);  -- a log's name is unique in its conversation
CREATE INDEX message_outbox ON message(n) WHERE state = 1;
CREATE INDEX message_unread ON message(conversation, log) WHERE unread;
CREATE TABLE conversation(
  id TEXT PRIMARY KEY, other TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'open', last INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE watermark(
  conversation TEXT NOT NULL, log TEXT NOT NULL, member TEXT NOT NULL, sent INTEGER NOT NULL,
  delivered INTEGER NOT NULL, read INTEGER NOT NULL, missing BLOB NOT NULL, PRIMARY KEY(conversation, log, member)
) WITHOUT ROWID;
CREATE TABLE failure(event TEXT PRIMARY KEY, state INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE readmark(
  conversation TEXT NOT NULL, log TEXT NOT NULL, origin TEXT NOT NULL, seq INTEGER NOT NULL,
  told INTEGER NOT NULL,                -- 0: the node does not know it yet
  PRIMARY KEY(conversation, log)
) WITHOUT ROWID;
CREATE INDEX readmark_untold ON readmark(conversation) WHERE told = 0;
CREATE TABLE journal(                   -- what events() has not yet seen processed; one row a changing fact
  n INTEGER PRIMARY KEY AUTOINCREMENT, position INTEGER NOT NULL, kind TEXT NOT NULL, ref TEXT NOT NULL,
  detail TEXT NOT NULL DEFAULT '', UNIQUE(kind, ref)
);
"""
# Version 1 gave received messages their id for a key, which a caller may want for an own message.
KEYS_APART = """
UPDATE journal SET ref = 'received-message:' || ref
  WHERE kind IN ('message', 'state') AND ref IN (SELECT id FROM message WHERE id = key);
UPDATE message SET key = 'received-message:' || id WHERE id = key;
"""
# Version 2 knew messages only.
ACTS_COME = """
ALTER TABLE message ADD COLUMN thread TEXT;
ALTER TABLE message ADD COLUMN undo INTEGER NOT NULL DEFAULT 0;
ALTER TABLE message ADD COLUMN gone INTEGER NOT NULL DEFAULT 0;
ALTER TABLE message ADD COLUMN mention INTEGER NOT NULL DEFAULT 0;
ALTER TABLE message ADD COLUMN fold BLOB;
CREATE INDEX message_about ON message(reply_to) WHERE reply_to IS NOT NULL;
CREATE INDEX message_thread ON message(thread) WHERE thread IS NOT NULL;
CREATE INDEX message_pins ON message(conversation) WHERE kind = 'pin';
"""


class Store:
    """Runs jobs in order. `close` finishes what was submitted."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="roost-store") if path is not None else None
        self._connection: sqlite3.Connection | None = None
        # Bounded by the callers: each waits for its own job, and the client's own tasks have one each.
        self._jobs: deque[tuple[Job[Any], asyncio.Future[Any]]] = deque()
        self._runner: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(cls, path: Path | None) -> "Store":
        """Raises `NewerStore` or `StoreError`."""
        self = cls(path)
        try:
            await self._off_loop(self._open)
        except BaseException:
            self._shut()
            raise
        return self

    async def _off_loop(self, work: Callable[[], T]) -> T:
        if self._pool is None:
            return work()
        return await asyncio.shield(self._loop.run_in_executor(self._pool, work))

    def _open(self) -> None:
        try:
            if self._path is not None:
                # SQLite gives its WAL the mode of the database, so the database is private from its birth.
                os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            connection = sqlite3.connect(
                self._path or ":memory:", isolation_level=None, check_same_thread=False, timeout=5.0
            )
            self._connection = connection
            connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            _migrate(connection, self._path)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the local store {self._path} cannot be used: {error}") from error

    def submit(self, job: Job[T]) -> "asyncio.Future[T]":
        """Queue a job; its result comes after its transaction is on disk. Cancelling the future undoes nothing."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._connection is None:
            future.set_exception(StoreError("the local store is closed"))
            return future
        if self._pool is None:
            results = self._transaction([job])
            _resolve(future, results[0])
            return future
        self._jobs.append((job, future))
        if self._runner is None:
            self._start()
        return future

    async def run(self, job: Job[T]) -> T:
        """The job's result, after commit; a cancelled caller does not stop it."""
        return await asyncio.shield(self.submit(job))

    def _start(self) -> None:
        assert self._pool is not None
        batch = [self._jobs.popleft() for _ in range(min(len(self._jobs), JOBS_PER_TRANSACTION_MAX))]
        done = self._loop.run_in_executor(self._pool, self._transaction, [job for job, _ in batch])

        def finished(done: "asyncio.Future[list[Any]]") -> None:
            error = done.exception()
            results = [error] * len(batch) if error is not None else done.result()
            self._runner = None
            if self._jobs:
                self._start()
            for (_, future), result in zip(batch, results, strict=True):
                _resolve(future, result)

        self._runner = done  # type: ignore[assignment]
        done.add_done_callback(finished)

    def _transaction(self, jobs: list[Job[Any]]) -> list[Any]:
        """All jobs in one transaction; exceptions are results here. If one fails, it alone is undone."""
        connection = self._connection
        assert connection is not None
        try:
            try:
                return self._commit(connection, lambda: [job(connection) for job in jobs])
            except Exception:
                if len(jobs) == 1:
                    raise
                # Savepoints cost two statements a job, so they are used only once a job has failed.
                return self._commit(connection, lambda: [_alone(connection, job) for job in jobs])
        except Exception as error:
            return [_typed(error)] * len(jobs)

    def _commit(self, connection: sqlite3.Connection, work: Callable[[], list[Any]]) -> list[Any]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            results = work()
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return results

    async def close(self) -> None:
        """Everything submitted is on disk before this returns."""
        while self._runner is not None:
            await asyncio.wait([self._runner])
            await asyncio.sleep(0)  # its callback starts the next batch
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._off_loop(connection.close)
        self._shut()

    def _shut(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._pool is not None:
            self._pool.shutdown(wait=True)  # idle by now, so this does not block


def _alone(connection: sqlite3.Connection, job: Job[Any]) -> Any:
    connection.execute("SAVEPOINT job")
    try:
        result = job(connection)
    except Exception as error:
        connection.execute("ROLLBACK TO job")
        result = _typed(error)
    connection.execute("RELEASE job")
    return result


def _resolve(future: "asyncio.Future[Any]", result: Any) -> None:
    if future.cancelled():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


def _typed(error: Exception) -> Exception:
    if isinstance(error, sqlite3.Error):
        return StoreError(f"the local store failed: {error}; check the disk")
    return error


def _migrate(connection: sqlite3.Connection, path: Path | None) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise NewerStore(
            f"the local store {path} was written by a newer roost (format {version}, known here {VERSION}): "
            "install that version, or log in again under another profile"
        )
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
    elif version < VERSION:
        steps = KEYS_APART + ACTS_COME if version == 1 else ACTS_COME
        connection.executescript(f"BEGIN IMMEDIATE; {steps}")
        answers = connection.execute("SELECT id FROM message WHERE reply_to IS NOT NULL AND id IS NOT NULL").fetchall()
        refold(connection, (row[0] for row in answers))
        connection.execute(f"PRAGMA user_version={VERSION}")
        connection.execute("COMMIT")

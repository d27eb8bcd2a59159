"""How a transaction runs: SQLite in one thread, PostgreSQL over asyncpg, or in line for the simulator.

Each runner offers the same two calls: `write(work)` on the one writing connection, `read(work)` on a reading one;
`work` is a plain function of a SQLAlchemy connection. Why SQLite does not go through aiosqlite: docs/decisions.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.pool import QueuePool

from node.storage import direct

T = TypeVar("T")
HIDDEN = {"hide_parameters": True}  # an error that quotes a statement must not quote what people wrote
Work = Callable[[Connection], T]
SQLITE_READERS = 2  # in threads; one more connection is for the loop
BUSY_S = 5.0  # how long a write waits for another process that holds the database
BUSY_LOOK_S = 0.05
# A deferred BEGIN that reads and then writes fails at once when another connection committed meanwhile.
BEGIN = {True: "BEGIN IMMEDIATE", False: "BEGIN"}
POSTGRES_READERS = 8
WAL_PAGES_MAX = 1000  # that a checkpoint waits for
COMMIT_PAGES, PAGE_ROWS = 8, 8  # what a commit writes, about: so many pages, and one more for so many rows


class Runner(Protocol):
    dialect: str
    alone: bool  # nobody else writes to this database

    async def write(self, work: Work[T], small: bool = False) -> T:
        """Run in one transaction and commit; returns after commit and fsync. `small` work may run on the loop."""
        ...

    async def read(self, work: Work[T], hot: bool = False) -> T:
        """Run over a snapshot. `hot` work reads a little that was committed a moment ago: it may run on the loop."""
        ...

    async def close(self) -> None: ...


def sqlite_engine(path: Path, writer: bool, connections: int = 1, begins: bool = True) -> Engine:
    """WAL with synchronous=FULL; exactly one connection writes and checkpoints, readers cannot write.

    With `begins` SQLAlchemy begins transactions; without, the caller does, and checkpoints too.
    """
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        connect_args={"check_same_thread": False},
        **HIDDEN,
    )
    pragmas = ["busy_timeout=5000", "foreign_keys=ON", "temp_store=MEMORY", "cache_size=-16384", "mmap_size=268435456"]
    pragmas += ["journal_mode=WAL", "synchronous=FULL"] if writer else ["query_only=ON"]
    if not writer or not begins:
        pragmas.append("wal_autocheckpoint=0")

    @event.listens_for(engine, "connect")
    def _(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # no BEGIN behind our back
        connection.text_factory = _text
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    if begins:

        @event.listens_for(engine, "begin")
        def _(connection: Connection) -> None:
            connection.exec_driver_sql(BEGIN[writer])

    return engine


def _text(raw: bytes) -> str | bytes:
    """A damaged text comes as bytes, which is noticed where the row is looked at: an error would end the query."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


class Owned:
    """One connection whose transactions begin and end here, without what SQLAlchemy does around each."""

    def __init__(self, path: Path, writer: bool) -> None:
        self._engine = sqlite_engine(path, writer, begins=False)
        self._begin = BEGIN[writer]
        self._connection: Connection | None = None
        self._raw: sqlite3.Connection
        self._commits = self._changes = 0  # of the latter, in all as of the last checkpoint

    def begin(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            self._connection.begin()  # as SQLAlchemy sees it; it stays for the connection's life
            found = direct.raw(self._connection)
            assert found is not None
            self._raw = found
            self._raw.execute("PRAGMA busy_timeout=0")
        self._raw.execute(self._begin)
        return self._connection

    def commit(self) -> None:
        self._raw.execute("COMMIT")
        self._commits += 1

    @property
    def checkpoint_due(self) -> bool:
        """Whether about as many pages wait in the WAL as SQLite itself would let wait."""
        if not self._commits:
            return False
        return self._commits * COMMIT_PAGES + (self._raw.total_changes - self._changes) // PAGE_ROWS >= WAL_PAGES_MAX

    def checkpoint(self) -> None:
        """Bring the WAL home. SQLite's own ignores an error in it, and after a sync that failed, the next one may
        claim success for pages that never reached the disk."""
        self._raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._commits, self._changes = 0, self._raw.total_changes

    def rollback(self) -> None:
        if self._raw.in_transaction:
            self._raw.execute("ROLLBACK")

    def run(self, work: Work[T]) -> T:
        connection = self.begin()
        try:
            result = work(connection)
            self.commit()
            return result
        except BaseException:
            self.rollback()
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()


class SqliteRunner:
    """A transaction costs one hop to a thread and not one per statement; where it is small only its commit does.

    To wake a thread costs more than a few statements on pages that are in memory, and the two would fight for the
    interpreter lock at each of them.
    """

    dialect = "sqlite"
    alone = True

    def __init__(self, path: Path) -> None:
        self._writer, self._hot = Owned(path, writer=True), Owned(path, writer=False)
        self._reader = sqlite_engine(path, writer=False, connections=SQLITE_READERS)
        self._turn = asyncio.Lock()  # one transaction at a time, also when the caller of one was cancelled
        self._write_thread = ThreadPoolExecutor(1, "roost-writer")
        self._read_threads = ThreadPoolExecutor(SQLITE_READERS, "roost-reader")

    async def write(self, work: Work[T], small: bool = False) -> T:
        # Shielded: a cancelled caller must not leave a transaction open on the connection that everyone needs.
        return await asyncio.shield(asyncio.ensure_future(self._write(work, small)))

    async def _write(self, work: Work[T], small: bool) -> T:
        run = asyncio.get_running_loop().run_in_executor
        async with self._turn:
            if self._writer.checkpoint_due:
                await run(self._write_thread, self._writer.checkpoint)
            connection = await self._begin()
            try:
                if not small:
                    return await run(self._write_thread, self._finish, work, connection)
                result = work(connection)
                await run(self._write_thread, self._writer.commit)
                return result
            except BaseException:
                self._writer.rollback()
                raise

    def _finish(self, work: Work[T], connection: Connection) -> T:
        result = work(connection)
        self._writer.commit()
        return result

    async def _begin(self) -> Connection:
        """Nobody else should write; whoever does all the same is waited for, and the loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        until = loop.time() + BUSY_S
        while True:
            try:
                return self._writer.begin()
            except sqlite3.OperationalError as error:
                if not busy(error) or loop.time() > until:
                    raise
            await asyncio.sleep(BUSY_LOOK_S)

    async def read(self, work: Work[T], hot: bool = False) -> T:
        if hot:
            return self._hot.run(work)
        return await asyncio.get_running_loop().run_in_executor(self._read_threads, self._cold, work)

    def _cold(self, work: Work[T]) -> T:
        with self._reader.begin() as connection:
            return work(connection)

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        self._hot.close()
        await loop.run_in_executor(self._read_threads, self._reader.dispose)
        await loop.run_in_executor(self._write_thread, self._writer.close)
        self._read_threads.shutdown()
        self._write_thread.shutdown()


class PostgresRunner:
    """asyncpg below SQLAlchemy; the same plain functions run on its greenlet bridge."""

    dialect = "postgresql"
    alone = False

    def __init__(self, url: str) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine

        self._writer = create_async_engine(url, pool_size=1, max_overflow=0, **HIDDEN)
        # By default each statement of a transaction sees another moment: a feed's cursor would skip what came between.
        self._reader = create_async_engine(
            url, pool_size=POSTGRES_READERS, max_overflow=0, isolation_level="REPEATABLE READ", **HIDDEN
        )

    async def write(self, work: Work[T], small: bool = False) -> T:
        return await asyncio.shield(asyncio.ensure_future(self._run(self._writer, work)))

    async def read(self, work: Work[T], hot: bool = False) -> T:
        return await self._run(self._reader, work)

    @staticmethod
    async def _run(engine: Any, work: Work[T]) -> T:
        async with engine.begin() as connection:
            result: T = await connection.run_sync(work)
            return result

    async def close(self) -> None:
        await self._writer.dispose()
        await self._reader.dispose()


class InlineRunner:
    """The simulator's: on the loop's own thread; `pause` is where seeded delay and crashes come in."""

    dialect = "sqlite"
    alone = True

    def __init__(self, path: Path, pause: Callable[[str], Awaitable[None]]) -> None:
        self._engine = sqlite_engine(path, writer=True)
        # Outside of any transaction, where the setting cannot change; crashes are simulated above the file.
        event.listen(self._engine, "connect", lambda raw, record: raw.execute("PRAGMA synchronous=OFF"))
        self._pause = pause

    async def write(self, work: Work[T], small: bool = False) -> T:
        await self._pause("before commit")
        with self._engine.begin() as connection:
            result = work(connection)
        await self._pause("after commit")
        return result

    async def read(self, work: Work[T], hot: bool = False) -> T:
        await self._pause("read")
        with self._engine.begin() as connection:
            return work(connection)

    async def close(self) -> None:
        self._engine.dispose()


def busy(error: BaseException) -> bool:
    """Whether another process held SQLite's database."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def said(error: BaseException) -> str:
    """What the database or the disk said, on one line and without the statement."""
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split()) or type(error).__name__


def store_name(database: str) -> str:
    """What people may read of a store's URL."""
    url = make_url(database)
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)


def open_runner(database: str) -> Runner:
    """By URL: `sqlite:///PATH` or `postgresql+asyncpg://...`."""
    url = make_url(database)
    if url.get_backend_name() == "sqlite":
        return SqliteRunner(Path(url.database or ""))
    return PostgresRunner(database)

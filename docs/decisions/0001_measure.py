"""The table of note 0001: one transaction at a time, over SQLAlchemy on aiosqlite, aiosqlite alone, and our runner.

python docs/decisions/0001_measure.py FOLDER    # on the file system to be measured
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiosqlite
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import create_async_engine

from node.storage.runner import SqliteRunner

CREATE = "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, k BLOB, v BLOB)"
LOOK, INSERT = "SELECT v FROM t WHERE id = ?", "INSERT INTO t (k, v) VALUES (?, ?)"
ROW = (bytes(32), bytes(200))
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000")
PLANS = ((1, 1, 1), (1, 1, 100), (8, 7, 1), (8, 7, 64))  # SELECTs, executemanys, rows in each
WARM_UP, TIMES = 20, 300


async def median_us(transaction: Callable[[], Awaitable[Any]]) -> float:
    took = []
    for _ in range(WARM_UP + TIMES):
        begin = time.perf_counter()
        await transaction()
        took.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(took[WARM_UP:])


def plain(selects: int, writes: int, rows: int) -> Callable[[Connection], None]:
    """The transaction as a function of a connection, as the node writes them."""

    def work(connection: Connection) -> None:
        for _ in range(selects):
            connection.exec_driver_sql(LOOK, (1,)).fetchall()
        for _ in range(writes):
            connection.exec_driver_sql(INSERT, [ROW] * rows)

    return work


async def adapter(path: Path, plan: tuple[int, int, int]) -> float:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=1, max_overflow=0)

    @event.listens_for(engine.sync_engine, "connect")
    def _(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    work = plain(*plan)

    async def transaction() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(work)

    async with engine.begin() as connection:
        await connection.exec_driver_sql(CREATE)
    try:
        return await median_us(transaction)
    finally:
        await engine.dispose()


async def alone(path: Path, plan: tuple[int, int, int]) -> float:
    selects, writes, rows = plan
    async with aiosqlite.connect(path, isolation_level=None) as connection:
        for statement in (*(f"PRAGMA {pragma}" for pragma in PRAGMAS), CREATE):
            await connection.execute(statement)

        async def transaction() -> None:
            await connection.execute("BEGIN IMMEDIATE")
            for _ in range(selects):
                await connection.execute_fetchall(LOOK, (1,))
            for _ in range(writes):
                await connection.executemany(INSERT, [ROW] * rows)
            await connection.commit()

        return await median_us(transaction)


async def ours(path: Path, plan: tuple[int, int, int]) -> float:
    runner = SqliteRunner(path)
    work = plain(*plan)
    try:
        await runner.write(lambda connection: connection.exec_driver_sql(CREATE) and None)
        return await median_us(lambda: runner.write(work))
    finally:
        await runner.close()


async def main(folder: Path) -> None:
    print("SELECTs, writes, rows   SQLAlchemy on aiosqlite   aiosqlite alone   the node's runner   (us, median)")
    for plan in PLANS:
        stem = "-".join(map(str, plan))
        times = [
            await adapter(folder / f"{stem}a.db", plan),
            await alone(folder / f"{stem}b.db", plan),
            await ours(folder / f"{stem}c.db", plan),
        ]
        print(f"{plan!s:<21}{times[0]:>26.0f}{times[1]:>18.0f}{times[2]:>20.0f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as scratch:
        asyncio.run(main(Path(scratch)))

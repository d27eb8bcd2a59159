"""A copy of an SQLite store in one file, made while the store is in use, and looked through before it counts."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from node.storage import life
from node.storage.runner import sqlite_engine


class Damaged(Exception):
    """The copy is not a whole store; `str()` says what is wrong."""


def copy(database: Path, to: Path) -> dict[str, int]:
    """One moment of a store, private and on the disk; how much it holds. Raises `Damaged` or `OSError`."""
    os.close(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            closing(sqlite3.connect(_uri(database, "mode=ro"), uri=True)) as source,
            closing(sqlite3.connect(to)) as target,
        ):
            source.backup(target)  # in one step: a snapshot, and nobody has to wait
            target.execute("PRAGMA journal_mode=DELETE")  # one file
    except sqlite3.Error as error:
        raise Damaged(f"the store could not be copied: {error}") from error
    counts, _ = look(to)
    handle = os.open(to, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return counts


def _uri(file: Path, how: str) -> str:
    """SQLite reads `%`, `#` and `?` of a name in its own way unless they are spelt out."""
    return f"{file.absolute().as_uri()}?{how}"


def look(file: Path) -> tuple[dict[str, int], bytes]:
    """Check every page of a closed store; how much it holds, and whose it is. Raises `Damaged`."""
    try:
        with closing(sqlite3.connect(_uri(file, "mode=ro&immutable=1"), uri=True)) as connection:
            said = [str(line) for (line,) in connection.execute("PRAGMA integrity_check(5)")]
        if said != ["ok"]:
            raise Damaged(f"the store is damaged: {'; '.join(said)[:200]}")
        engine = sqlite_engine(file, writer=False)
        try:
            with engine.begin() as connection_:
                return life.counts(connection_), life.owner(connection_)
        finally:
            engine.dispose()
    except sqlite3.Error as error:
        raise Damaged(f"the store cannot be read: {error}") from error


def hold(file: Path, reason: str) -> None:
    """Mark the copy as one that may be old (`node.hold`)."""
    engine = sqlite_engine(file, writer=True)
    try:
        with engine.begin() as connection:
            life.hold(connection, reason)
    finally:
        engine.dispose()

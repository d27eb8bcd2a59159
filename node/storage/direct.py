"""The statements of the hot path go to SQLite's own cursor: what SQLAlchemy does for each costs more than SQLite.

Only statements that run for every message are worth it. On PostgreSQL they take SQLAlchemy's way, where its part is
small beside the database's answer.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Select
from sqlalchemy.dialects import sqlite


def raw(connection: Connection) -> sqlite3.Connection | None:
    """SQLite's connection below; None on another database."""
    if connection.dialect.name != "sqlite":
        return None
    found = connection.connection.dbapi_connection
    assert isinstance(found, sqlite3.Connection)
    return found


def run(connection: Connection, sql: str, values: Sequence[Any]) -> Iterable[Any]:
    """Rows of one statement in the driver's own form of placeholders."""
    below = raw(connection)
    return connection.exec_driver_sql(sql, tuple(values)) if below is None else below.execute(sql, values)


def run_many(connection: Connection, sql: str, values: list[tuple[Any, ...]]) -> None:
    """One executemany."""
    below = raw(connection)
    if below is None:
        connection.exec_driver_sql(sql, values)
    else:
        below.executemany(sql, values)


class Prepared:
    """A SELECT that is built once, with its values by name."""

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement
        compiled = statement.compile(dialect=sqlite.dialect())
        self._sql = str(compiled)
        self._values = {name: compiled.params[name] for name in compiled.positiontup or ()}  # constants, and our names
        assert len(self._values) == len(compiled.positiontup or ())

    def __call__(self, connection: Connection, **values: Any) -> Iterable[Any]:
        if raw(connection) is None:
            return connection.execute(self._statement, values)
        return run(connection, self._sql, list({**self._values, **values}.values()))

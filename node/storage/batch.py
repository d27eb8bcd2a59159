"""One transaction of the batch writer: load the declared keys, decide, write each table once."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection

from node.core import rows
from node.core.context import Context
from node.core.view import Command, Key, Outcome, View, decide_all
from node.storage import damaged, direct
from node.storage.schema import NAMES, THROUGH

ROUNDS_MAX = 6  # each round loads what the one before found missing; more means a decision chases its tail
CHANGING = frozenset(NAMES) - rows.ONCE - {rows.Fact, rows.Failed, rows.Evidence, rows.Invite, rows.Meta, rows.Aimed}
KEYS_MAX = 4096  # in one SELECT: both databases bound the values of a statement (32766), the widest key has 4


class Statements:
    """The few SQL texts of the hot path, made once per dialect; values go to the driver as they are."""

    def __init__(self, dialect: str) -> None:
        self.postgres = dialect == "postgresql"
        self.insert = {row: self._insert(row) for row in NAMES}
        self.delete = {row: self._delete(row) for row in NAMES}
        self.drop_body = (
            f"UPDATE {NAMES[rows.StoredEvent]} SET body = NULL WHERE log = {self.mark(1)} AND seq = {self.mark(2)}"
        )

    def mark(self, number: int) -> str:
        return f"${number}" if self.postgres else "?"

    def _insert(self, row: type) -> str:
        fields = list(row.__annotations__)
        key = fields[: rows.KEYS[row]]
        marks = ", ".join(self.mark(i + 1) for i in range(len(fields)))
        sql = f"INSERT INTO {NAMES[row]} ({', '.join(fields)}) VALUES ({marks})"
        if row in rows.ONCE:
            return sql
        rest = fields[len(key) :]
        return f"{sql} ON CONFLICT ({', '.join(key)}) DO UPDATE SET " + ", ".join(f"{f} = excluded.{f}" for f in rest)

    def _delete(self, row: type) -> str:
        key = list(row.__annotations__)[: rows.KEYS[row]]
        return f"DELETE FROM {NAMES[row]} WHERE " + " AND ".join(
            f"{name} = {self.mark(i + 1)}" for i, name in enumerate(key)
        )

    def select(self, row: type, count: int) -> str:
        """Rows by `count` primary keys; counts are rounded up by the caller, to keep the texts few."""
        fields = list(row.__annotations__)
        key = fields[: rows.KEYS[row]]
        width, table = len(key), NAMES.get(row) or THROUGH[row]
        one = [self.mark(i + 1) for i in range(width * count)]
        if width == 1:
            return f"SELECT {', '.join(fields)} FROM {table} WHERE {key[0]} IN ({', '.join(one)})"
        groups = ", ".join(f"({', '.join(one[i : i + width])})" for i in range(0, len(one), width))
        if self.postgres:
            return f"SELECT {', '.join(fields)} FROM {table} WHERE ({', '.join(key)}) IN ({groups})"
        # SQLite answers `(a, b) IN (VALUES ...)` by reading the whole table; CROSS JOIN keeps the keys outside.
        where = " AND ".join(f"{name} = column{i}" for i, name in enumerate(key, 1))
        return f"SELECT {', '.join(fields)} FROM (VALUES {groups}) CROSS JOIN {table} WHERE {where}"


class Hot:
    """The rows that the writer used last, so that what people do again and again is decided without a query.

    True only while nobody else writes to the database. A key without a row is remembered too.
    """

    def __init__(self, rows_max: int) -> None:
        self._max = rows_max
        self.rows: dict[Key, tuple[Any, ...] | None] = {}  # oldest use first
        self.dropped = 0

    def __len__(self) -> int:
        return len(self.rows)

    def forget(self) -> None:
        self.rows.clear()

    def keep(self, view: View) -> None:
        """After the commit, and only then: what the batch read and what it changed."""
        if not self._max:
            return
        for key, value in (*view.loaded.items(), *view.changed.items()):
            if key[0] in CHANGING:
                self.rows.pop(key, None)
                self.rows[key] = value
        while len(self.rows) > self._max:
            del self.rows[next(iter(self.rows))]
            self.dropped += 1


def load(
    connection: Connection, statements: Statements, wanted: Iterable[Key], view: View, hot: Hot, heal: bool = False
) -> None:
    """One SELECT per table for all wanted keys (a few for very many); a key without a row is remembered too.

    `heal` makes every row again that only sums up others: one of them may be gone or wrong.
    """
    by_table: dict[type, list[tuple[Any, ...]]] = {}
    for row, key in wanted:
        if (row, key) not in view.loaded and (row, key) not in hot.rows:
            view.loaded[row, key] = None
            by_table.setdefault(row, []).append(key)
    for row, keys in ((r, k[i : i + KEYS_MAX]) for r, k in by_table.items() for i in range(0, len(k), KEYS_MAX)):
        count = 1 << (len(keys) - 1).bit_length()
        padded = keys + [keys[-1]] * (count - len(keys))
        values = tuple(part for key in padded for part in key)
        width = rows.KEYS[row]
        for found in list(direct.run(connection, statements.select(row, count), values)):
            view.loaded[row, tuple(found[:width])] = _looked_at(connection, statements, row, found)
    # A mailbox that begins anew below the cursors of its readers would be read by nobody.
    gone = [key for key in by_table.get(rows.Mailbox, ()) if view.loaded[rows.Mailbox, key] is None]
    for local in damaged.with_mail(connection, [local for (local,) in gone]) if gone else ():
        view.loaded[rows.Mailbox, (local,)] = _heal(connection, statements, rows.Mailbox, (local,))
    if heal:
        for row, key in [k for k in view.loaded if k[0] in damaged.REBUILT and k not in view.healed]:
            view.healed.add((row, key))
            view.loaded[row, key] = _heal(connection, statements, row, key)


def _looked_at(connection: Connection, statements: Statements, row: type, found: Any) -> tuple[Any, ...] | None:
    """A row as a decision may see it; one that only sums up others is made again where it is damaged."""
    made = damaged.made(row, found)
    if row in damaged.REBUILT and (made is None or tuple(made) != tuple(found)):
        return _heal(connection, statements, row, tuple(found[: rows.KEYS[row]]))
    return made


def _heal(connection: Connection, statements: Statements, row: type, key: tuple[Any, ...]) -> tuple[Any, ...] | None:
    again = damaged.rebuilt(connection, row, key)
    if again is not None:
        direct.run_many(connection, statements.insert[row], [tuple(again)])
    return again


def write(connection: Connection, statements: Statements, view: View) -> None:
    """One executemany per changed table, tables in a fixed order."""
    put: dict[type, list[tuple[Any, ...]]] = {}
    gone: dict[type, list[tuple[Any, ...]]] = {}
    for (row, key), value in view.changed.items():
        if value is None:
            gone.setdefault(row, []).append(key)
        else:
            put.setdefault(row, []).append(tuple(value))
    for row in NAMES:
        if row in gone:
            direct.run_many(connection, statements.delete[row], gone[row])
        if row in put:
            direct.run_many(connection, statements.insert[row], put[row])
    if rows.Drop in put:
        direct.run_many(connection, statements.drop_body, put[rows.Drop])


def run(
    connection: Connection,
    statements: Statements,
    commands: list[Command],
    context: Context,
    close: list[Command],
    hot: Hot,
    heal: bool = False,
) -> tuple[list[Outcome], View]:
    """Decide and write a batch inside the caller's transaction; nothing is visible before its commit."""
    view = View(hot.rows)
    wanted: set[Key] = set()
    for command in commands:
        wanted.update(command.keys(context))
    for _ in range(ROUNDS_MAX):
        load(connection, statements, wanted, view, hot, heal)
        view.restart()
        outcomes, wanted = decide_all(commands, view, context, close)
        if not wanted:
            write(connection, statements, view)
            return outcomes, view
    raise RuntimeError(f"a decision still asks for {wanted} after {ROUNDS_MAX} rounds")

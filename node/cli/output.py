"""What a command prints: one JSON object a line for programs, plain safe text for people."""

import json as _json
import logging
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from node.cli.outcome import Problem

TIMES = (
    "at",
    "created",
    "seen",
    "expires",
    "oldest",
    "since",
)  # fields in ms since 1970, shown to people as local time


def safe(text: object) -> str:
    """Foreign text on one line that cannot move the cursor, ring the bell or turn the reading direction."""
    words = str(text)
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() or c == "\u200d" else _escape(c) for c in words)


def _escape(char: str) -> str:
    """As JSON spells it, so that an object stays the same object."""
    return "\\u007f" if char == "\x7f" else _json.dumps(char)[1:-1]


class LogLines(logging.Formatter):
    """One line a record, whoever's words are in it; the lines of a traceback are set in, and so begin no record."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return safe(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"    {safe(line)}" for line in super().formatException(ei).split("\n"))


def clock(ms: int) -> str:
    """A time for people, local; a dash for `not yet`."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000)) + f".{ms % 1000:03d}" if ms else "-"


def line(text: str) -> None:
    """One whole line, safe and flushed: who reads it may act on it at once. Nothing else writes to stdout."""
    sys.stdout.write(safe(text) + "\n")
    sys.stdout.flush()


def obj(value: Mapping[str, Any]) -> None:
    """One JSON object on one line."""
    line(_json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def show(value: Any, json: bool) -> None:
    """An answer of the node: a table for a list of records, `name: value` lines for a record."""
    rows = value if isinstance(value, list | tuple) else [value]
    if json:
        for row in rows:
            obj(row if isinstance(row, Mapping) else {"value": row})
    elif isinstance(value, list | tuple):
        table(value)
    elif isinstance(value, Mapping):
        for name, field in _flat(value):
            if isinstance(field, list) and field and isinstance(field[0], Mapping):
                line(f"{name}:")
                table(field)
            else:
                line(f"{name}: {_cell(name, field)}")
    elif value is not None:
        line(safe(value))


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, field in value.items():
        if isinstance(field, Mapping) and field:
            yield from _flat(field, f"{prefix}{safe(name)}.")
        else:
            yield f"{prefix}{safe(name)}", field


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(safe(part) for part in value)
    return clock(value) if name in TIMES and isinstance(value, int) else safe(value)


def table(rows: Sequence[Any]) -> None:
    """Records below their column names, as wide as needed."""
    records = [row if isinstance(row, Mapping) else {"value": row} for row in rows]
    if not records:
        line("(none)")
        return
    names = list(dict.fromkeys(name for record in records for name in record))
    cells = [names, *([_cell(name, record.get(name, "")) for name in names] for record in records)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    for row in cells:
        line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def report(problem: Problem, json: bool) -> None:
    """An error: one sentence on stderr; with --json the same as an object on stdout."""
    if json:
        obj({"error": {"code": problem.code, "message": problem.message}})
    complain(problem)


def complain(problem: Problem) -> None:
    message = safe(problem.message).rstrip(".")
    stop = "" if message.endswith("?") else "."
    print(f"roost: {message}{stop} Next: {safe(problem.next).rstrip('.')}.", file=sys.stderr, flush=True)

"""A decision over what is stored now, without the writer: it changes nothing, and nobody waits for it."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import Connection, select

from node.core import rows
from node.core.view import Key, Missing, View
from node.storage import direct
from node.storage.batch import KEYS_MAX, ROUNDS_MAX, Statements
from node.storage.damaged import made
from node.storage.schema import TABLES

T = TypeVar("T")
CONTACTS_MAX = 512  # of one user, those of last
conversations, standings = TABLES[rows.Conversation], TABLES[rows.Standing]
_statements = lru_cache(Statements)


def look(connection: Connection, decide: Callable[..., T], *args: Any) -> T:
    """`decide` gets a view and these arguments; what it asks for is loaded, one SELECT per table and round."""
    view = View()
    for _ in range(ROUNDS_MAX):
        try:
            return decide(view, *args)
        except Missing as missing:
            for start in range(0, len(missing.keys), KEYS_MAX):
                _load(connection, missing.keys[start : start + KEYS_MAX], view)
    raise RuntimeError(f"a decision still asks for more after {ROUNDS_MAX} rounds")


def _load(connection: Connection, keys: tuple[Key, ...], view: View) -> None:
    by_table: dict[type, list[tuple[Any, ...]]] = {}
    for row, key in dict.fromkeys(keys):
        view.loaded[row, key] = None
        by_table.setdefault(row, []).append(key)
    for row, wanted in by_table.items():
        count = 1 << (len(wanted) - 1).bit_length()  # texts are few
        values = tuple(part for key in [*wanted, *wanted[-1:] * (count - len(wanted))] for part in key)
        sql = _statements(connection.dialect.name).select(row, count)
        for found in list(direct.run(connection, sql, values)):
            view.loaded[row, tuple(found[: rows.KEYS[row]])] = made(row, found)


def contacts(connection: Connection, locals: list[str], peer: bytes | None = None) -> list[tuple[str, bytes]]:
    """(user, conversation) of open conversations with others; with `peer` those with users of that node."""
    found: list[tuple[str, bytes]] = []
    c = conversations.c
    for local in locals:
        query = (
            select(standings.c.conversation)
            .join(conversations, c.conversation == standings.c.conversation)
            .where(standings.c.local == local, standings.c.state == "open", c.kind == "direct")
            .order_by(standings.c.last_stamp.desc())
            .limit(CONTACTS_MAX)
        )
        if peer is not None:
            query = query.where((c.node_a == peer) | (c.node_b == peer))
        found += [(local, conversation) for (conversation,) in connection.execute(query)]
    return found

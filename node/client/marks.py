"""SQL of cursors, the journal behind `events()`, and read marks that the node does not know yet."""

import sqlite3
from typing import NamedTuple

from node import api
from node.client.feed import Entry, Me, see
from node.client.model import Change, Message
from node.client.rows import COLUMNS, IS_ACT, by_id, by_key, conversations, fact, message, set_fact


class Cursor(NamedTuple):
    """Where this store stands in the mailbox."""

    store: str  # incarnation of the node's store; empty before the first connection
    stored: int  # items up to here are in this store
    consumed: int  # items up to here were processed: what the node may believe


def cursor(db: sqlite3.Connection) -> Cursor:
    return Cursor(str(fact(db, "store", "")), int(fact(db, "position", 0)), int(fact(db, "consumed", 0)))


def chain(db: sqlite3.Connection) -> bytes:
    """The newest key chain that the node has shown; empty before the first connection."""
    return bytes(fact(db, "chain", b""))


def start(db: sqlite3.Connection, store: str, position: int) -> None:
    """Take up another incarnation of the node's store: its positions count anew, event ids stay."""
    set_fact(db, "store", store)
    set_fact(db, "position", position)
    set_fact(db, "consumed", position)
    db.execute("UPDATE journal SET position = 0")
    # The restored node may number its watermarks lower; states already reached stay as they are.
    db.execute("DELETE FROM watermark")


def consume(db: sqlite3.Connection, n: int, position: int) -> None:
    """Entries up to `n` were processed."""
    db.execute("DELETE FROM journal WHERE n <= ?", (n,))
    if position > int(fact(db, "consumed", 0)):
        set_fact(db, "consumed", position)


def consume_all(db: sqlite3.Connection) -> int:
    """A screen shows what is stored: nothing waits for `events()` any more."""
    db.execute("DELETE FROM journal")
    position = int(fact(db, "position", 0))
    set_fact(db, "consumed", position)
    return position


def journal(db: sqlite3.Connection, after: int, limit: int) -> list[Entry]:
    """Entries in order; a message or conversation is given as it stands now."""
    entries = []
    rows = db.execute(
        "SELECT n, position, kind, ref, detail FROM journal WHERE n > ? ORDER BY n LIMIT ?", (after, limit)
    ).fetchall()
    for n, position, kind, ref, detail in rows:
        if kind in ("message", "state"):
            change = Change(kind, by_key(db, ref), detail=detail)
        elif kind == "update":
            act = by_key(db, ref)
            about = next(iter(by_id(db, [act.reply_to or ""])), None) if act is not None else None
            change = Change(kind, about, detail=detail, act=act)
        elif kind == "device":
            change = Change(kind, device=ref, detail=detail)
        else:
            change = Change(kind, conversation=next(iter(conversations(db, [ref])), None), detail=detail)
        entries.append(Entry(n, position, change))
    return entries


class Ends(NamedTuple):
    """Where journal, messages and feed end now."""

    journal: int
    message: int
    position: int


def ends(db: sqlite3.Connection) -> Ends:
    (n,) = db.execute("SELECT coalesce(max(n), 0) FROM message").fetchone()
    last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
    return Ends(last[0] if last else 0, n, int(fact(db, "position", 0)))


def everything(db: sqlite3.Connection, me: Me, after: int, upto: int, limit: int) -> list[Entry]:
    """All messages of others and of one's other devices, in order of arrival."""
    rows = db.execute(
        f"SELECT n, {COLUMNS} FROM message WHERE n > ? AND n <= ? AND NOT (mine AND device = ?) AND id IS NOT NULL "
        f"AND NOT {IS_ACT} ORDER BY n LIMIT ?",
        (after, upto, me.device, limit),
    ).fetchall()
    return [Entry(n, 0, Change("message", message(row))) for n, *row in rows]


# --- read ---------------------------------------------------------------------------------------------------
def see_all(db: sqlite3.Connection, conversation: str) -> None:
    """Mark everything stored of a conversation as read."""
    rows = db.execute(
        "SELECT origin, log, max(seq) FROM message WHERE conversation = ? AND unread GROUP BY origin, log",
        (conversation,),
    ).fetchall()
    for origin, log, seq in rows:
        see(db, conversation, api.Mark(origin, log, seq), told=False)


def see_message(db: sqlite3.Connection, seen: Message) -> None:
    see(db, seen.conversation, api.Mark(seen.origin, seen.log, seen.seq), told=False)


def untold(db: sqlite3.Connection, limit: int) -> list[api.Read]:
    """Read marks to send, a request for each conversation."""
    found: dict[str, list[api.Mark]] = {}
    rows = db.execute(
        "SELECT conversation, origin, log, seq FROM readmark WHERE told = 0 ORDER BY conversation LIMIT ?", (limit,)
    )
    for conversation, *mark in rows:
        found.setdefault(conversation, []).append(api.Mark(*mark))
    return [api.Read(id=1, conversation=c, marks=tuple(every)) for c, every in found.items()]


def told(db: sqlite3.Connection, read: api.Read) -> None:
    db.executemany(
        "UPDATE readmark SET told = 1 WHERE conversation = ? AND log = ? AND seq = ?",
        [(read.conversation, m.log, m.seq) for m in read.marks],
    )

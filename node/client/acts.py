"""SQL of edits, deletions, reactions and pins: kept as events, and folded into the messages that they are about."""

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from node.client.fold import NOTHING, author, fold, mentions
from node.client.model import ACTS, Message
from node.client.rows import COLUMNS, FAILED, IS_ACT, by_id, marks, message, pieces

_PLAIN = COLUMNS.replace("fold", "NULL")  # a message as it was sent
_STANDING = f"{IS_ACT} AND state < {FAILED}"


def refold(db: sqlite3.Connection, ids: Iterable[str | None], me: str = "") -> list[Message]:
    """Make messages anew from all that is here about them; gives those that look otherwise now.

    `me`: whose mentions count in a text that was edited; not needed for what was done to one's own messages.
    """
    wanted = list(dict.fromkeys(id for id in ids if id))
    changed = {m.id: m for piece in pieces(wanted) for m in _refold(db, piece, me)}
    quoting: list[str] = []
    for piece in pieces(id for id in changed if id):
        query = f"SELECT id FROM message WHERE reply_to IN ({marks(len(piece))}) AND NOT {IS_ACT} AND id IS NOT NULL"
        quoting += [row[0] for row in db.execute(query, piece)]
    changed |= {m.id: m for piece in pieces(quoting) for m in _refold(db, piece, me)}
    return list(changed.values())


def _refold(db: sqlite3.Connection, ids: Sequence[str], me: str) -> list[Message]:
    some = marks(len(ids))
    raw = db.execute(f"SELECT fold, {_PLAIN} FROM message WHERE id IN ({some}) AND NOT {IS_ACT}", ids).fetchall()
    acts: dict[str, list[Message]] = {}
    for row in db.execute(f"SELECT {COLUMNS} FROM message WHERE reply_to IN ({some}) AND {_STANDING}", ids):
        act = message(row)
        acts.setdefault(act.reply_to or "", []).append(act)
    query = f"SELECT thread, conversation, count(*) FROM message WHERE thread IN ({some}) AND NOT gone GROUP BY 1, 2"
    replies = {(thread, conversation): count for thread, conversation, count in db.execute(query, ids)}
    plain = {m.id or "": (old, m) for old, *rest in raw for m in (message(rest),)}
    quoted = {
        m.id: m for piece in pieces(m.reply_to for _, m in plain.values() if m.reply_to) for m in by_id(db, piece)
    }
    changed = []
    for id, (old, m) in plain.items():
        answers = quoted.get(m.reply_to)
        same = answers if answers is not None and answers.conversation == m.conversation else None
        folded = fold(m, acts.get(id, ()), same, replies.get((id, m.conversation), 0))
        new = None if folded == NOTHING else msgspec.msgpack.encode(folded)
        if folded.deleted:
            _erase(db, m, acts.get(id, ()))
        if new == old:
            continue
        db.execute("UPDATE message SET fold = ? WHERE id = ?", (new, id))
        if folded.deleted:
            db.execute("UPDATE message SET unread = 0, mention = 0 WHERE id = ?", (id,))
        elif me and not m.mine:
            named = mentions(m.text if folded.text is None else folded.text, me)
            db.execute("UPDATE message SET mention = ? WHERE id = ?", (named, id))
        changed.append(id)
    return by_id(db, changed)


def _erase(db: sqlite3.Connection, m: Message, acts: Iterable[Message]) -> None:
    """What is deleted for good leaves this disk too; while the node may still refuse that, it stays."""
    own = [a for a in acts if author(a) == author(m) and a.state != "queued"]
    if not m.deleted and not any(a.kind == "delete" for a in own):
        return
    db.execute("UPDATE message SET text = '', body = NULL, gone = 1 WHERE id = ? AND NOT gone", (m.id,))
    edits = [(a.key,) for a in own if a.kind == "edit" and a.text]
    db.executemany("UPDATE message SET text = '', body = NULL WHERE key = ?", edits)


def about(db: sqlite3.Connection, ids: Sequence[str]) -> set[str]:
    """Which of these something here is about: an act, an answer or a thread that came before."""
    found: set[str] = set()
    for piece in pieces(ids):
        for column in ("reply_to", "thread"):
            query = f"SELECT DISTINCT {column} FROM message WHERE {column} IN ({marks(len(piece))})"
            found.update(row[0] for row in db.execute(query, piece))
    return found


def concerned(messages: Iterable[Message]) -> list[str | None]:
    """The messages that look otherwise because these came or went."""
    found: list[str | None] = []
    for m in messages:
        found += [m.reply_to] if m.kind in ACTS else [m.id if m.reply_to else None, m.thread]
    return found


def pinned(db: sqlite3.Connection, names: Sequence[str]) -> list[Message]:
    """Of a conversation, in the order in which they were written."""
    query = f"SELECT DISTINCT reply_to FROM message WHERE conversation IN ({marks(len(names))}) AND kind = 'pin'"
    ids = [row[0] for row in db.execute(query, names)]
    every = [m for piece in pieces(ids) for m in by_id(db, piece) if m.pinned]
    return sorted(every, key=lambda m: (m.order, m.key))


def thread(db: sqlite3.Connection, first: str) -> list[Message]:
    """A thread's first message and those that belong to it, in order."""
    found = db.execute(f"SELECT {COLUMNS} FROM message WHERE thread = ? OR id = ? ORDER BY ord, n", (first, first))
    return [message(row) for row in found]

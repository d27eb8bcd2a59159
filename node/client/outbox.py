"""SQL of own messages on their way out. Each function is one store job, or part of one."""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from node import api
from node.client.acts import concerned, refold
from node.client.model import Message
from node.client.rows import (
    ACCEPTED,
    COLUMNS,
    DELIVERED,
    FAILED,
    NUMBERS,
    QUEUED,
    QUEUED_ORDER,
    READ,
    SENT,
    STAMP_COUNTER_BITS,
    adopt,
    by_key,
    marks,
    message,
    numbers,
    pieces,
)


class Row(NamedTuple):
    """One queued message, as it is transmitted."""

    n: int
    key: str
    target: str
    body: bytes
    format: str
    reply_to: str | None
    tried: bool
    kind: str = "message"
    thread: str | None = None
    undo: bool = False


class Draft(NamedTuple):
    """What a caller wants to send."""

    key: str
    target: str
    body: bytes
    format: str
    reply_to: str | None
    sender: str
    device: str
    now_ms: int
    kind: str = "message"
    thread: str | None = None
    undo: bool = False


class Queued(NamedTuple):
    """What a draft became."""

    message: Message
    row: Row | None  # none: it is known already
    changed: list[Message]  # messages that look otherwise because of it


def put(db: sqlite3.Connection, draft: Draft, tried: bool) -> Queued:
    """Queue a message; a key that is known already stands for the same message, or is a `conflict`.

    `tried` is set from the start while the node is connected: it then leaves at once, and marking it first would
    cost a second commit.
    """
    known = db.execute(
        "SELECT target, text, body, format, reply_to, kind, thread, undo, state, id FROM message WHERE key = ?",
        (draft.key,),
    ).fetchone()
    about = (draft.format, draft.reply_to, draft.kind, draft.thread, draft.undo)
    if known:
        target, text, body, *same, state, event = known
        if (target, text.encode() if body is None else body, *same) != (draft.target, draft.body, *about):
            raise api.ApiError("conflict", f"key {draft.key!r} was used for another message")
        row = requeue(db, draft.key) if state == FAILED and event is None else None
        return _queued(db, draft.key, row)
    found = db.execute(
        "SELECT id FROM conversation WHERE other = ? OR id = ? LIMIT 1", (draft.target, draft.target)
    ).fetchone()
    text = draft.body.decode("utf-8", "replace")
    kept = None if text.encode() == draft.body else draft.body
    n = db.execute(
        "INSERT INTO message(key, conversation, sender, device, text, stamp, mine, state, target, body, tried, ord,"
        " format, reply_to, kind, thread, undo) VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (draft.key, found[0] if found else draft.target, draft.sender, draft.device, text, draft.now_ms, QUEUED,
         draft.target, kept, tried, QUEUED_ORDER, *about),
    ).lastrowid  # fmt: skip
    assert n is not None
    row = Row(n, draft.key, draft.target, draft.body, draft.format, draft.reply_to, tried, *about[2:])
    return _queued(db, draft.key, row)


def _queued(db: sqlite3.Connection, key: str, row: Row | None) -> Queued:
    message = _present(by_key(db, key))
    changed = refold(db, concerned([message])) if row is not None else []
    return Queued(_present(by_key(db, key)) if message.reply_to else message, row, changed)


def requeue(db: sqlite3.Connection, key: str) -> Row | None:
    """Send a refused message again under its old key; nothing of it was stored, so it takes a place at the end."""
    top = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'message'").fetchone()[0] + 1
    db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'message'", (top,))
    db.execute(
        "UPDATE message SET n = ?, ord = ?, state = ?, reason = '', tried = 0 "
        "WHERE key = ? AND id IS NULL AND state = ?",
        (top, QUEUED_ORDER, QUEUED, key, FAILED),
    )
    return next(iter(page(db, top - 1, 1)), None)


def page(db: sqlite3.Connection, after: int, limit: int) -> list[Row]:
    """What waits, in the order it was written."""
    found = db.execute(
        "SELECT n, key, target, text, body, format, reply_to, tried, kind, thread, undo FROM message "
        "WHERE state = 1 AND n > ? "
        "ORDER BY n LIMIT ?",
        (after, limit),
    )
    return [
        Row(n, key, to, text.encode() if body is None else body, form, reply_to, bool(tried), kind, thread, bool(undo))
        for n, key, to, text, body, form, reply_to, tried, kind, thread, undo in found
    ]


def mark_tried(db: sqlite3.Connection, keys: Iterable[str]) -> set[str]:
    """Note, before it happens, that these may leave; those withdrawn meanwhile are not in the answer."""
    still: set[str] = set()
    for piece in pieces(keys):
        still.update(
            row[0]
            for row in db.execute(
                f"UPDATE message SET tried = 1 WHERE state = 1 AND key IN ({marks(len(piece))}) RETURNING key", piece
            ).fetchall()
        )
    return still


def withdraw(db: sqlite3.Connection, key: str) -> tuple[Message, list[Message]] | None:
    """Take back what the node certainly does not have: it never left this machine, or was refused. With it what looks
    otherwise now."""
    found = by_key(db, key)
    gone = db.execute(
        "DELETE FROM message WHERE key = ? AND id IS NULL AND (state = 1 AND tried = 0 OR state = 6)", (key,)
    ).rowcount
    return (found, refold(db, concerned([found]))) if found is not None and gone else None


def content(db: sqlite3.Connection, key: str) -> tuple[str, bytes, str]:
    """Target, body and format of an own message."""
    target, text, body, format = db.execute(
        "SELECT target, text, body, format FROM message WHERE key = ?", (key,)
    ).fetchone()
    return target, text.encode() if body is None else body, format


Outcome = tuple[str, api.Accepted | str]  # key; what the node gave, or why it refused


class Settled(NamedTuple):
    """What replies to sends changed."""

    own: list[Message]  # as they stand now, acts among them
    begun: list[str]  # conversations
    changed: list[Message]  # by acts that were taken, or refused


def settle(db: sqlite3.Connection, outcomes: Sequence[Outcome]) -> Settled:
    """Store replies to sends."""
    accepted = [(key, answer) for key, answer in outcomes if not isinstance(answer, str)]
    # The feed may have brought the event before its reply came: the outbox row is the one that keeps its key.
    db.executemany("DELETE FROM message WHERE id = ? AND key <> ?", [(a.event, key) for key, a in accepted])
    # The reply has only the milliseconds of the stamp; the feed brings the rest.
    db.executemany(
        "UPDATE message SET id = ?, conversation = ?, origin = ?, log = ?, seq = ?, ord = ?, stamp = ?, state = ? "
        "WHERE key = ? AND state IN (1, 6) AND id IS NULL",
        [
            (a.event, a.conversation, a.origin, a.log, a.seq, a.stamp << STAMP_COUNTER_BITS, a.stamp, ACCEPTED, key)
            for key, a in accepted
        ],
    )
    db.executemany(
        "UPDATE message SET state = ?, reason = ?, ord = stamp << ? WHERE key = ? AND state = 1",
        [(FAILED, answer, STAMP_COUNTER_BITS, key) for key, answer in outcomes if isinstance(answer, str)],
    )
    begun = _place(db, accepted)
    catch_up(db, [(a.conversation, a.log, a.event) for _, a in accepted])
    found: dict[str, Message] = {}
    for piece in pieces(key for key, _ in outcomes):
        rows = db.execute(f"SELECT {COLUMNS} FROM message WHERE key IN ({marks(len(piece))})", piece)
        found |= {m.key: m for m in map(message, rows)}
    answered = [found[key] for key, _ in outcomes if key in found]
    linked = [m for m in answered if m.reply_to or m.thread]
    return Settled(answered, begun, refold(db, concerned(linked)) if linked else [])


def _place(db: sqlite3.Connection, accepted: Sequence[tuple[str, api.Accepted]]) -> list[str]:
    """A conversation has an id from the first accepted message on; writing in it moves it to the top."""
    newest: dict[str, tuple[str, int]] = {}
    for key, answer in accepted:
        last = max(newest.get(answer.conversation, ("", 0))[1], answer.stamp)
        newest[answer.conversation] = (key, last)
    begun = [id for id in newest if not db.execute("SELECT 1 FROM conversation WHERE id = ?", (id,)).fetchone()]
    db.executemany(
        "INSERT INTO conversation(id, other, last) SELECT ?, target, ? FROM message WHERE key = ? "
        "ON CONFLICT(id) DO UPDATE SET last = max(last, excluded.last)",
        [(conversation, last, key) for conversation, (key, last) in newest.items()],
    )
    adopt(db, [(id, content(db, newest[id][0])[0]) for id in begun])
    return begun


def catch_up(db: sqlite3.Connection, events: Sequence[tuple[str, str, str]]) -> None:
    """Apply what was said about (conversation, log, event) before we knew the message to be ours."""
    by_log: dict[tuple[str, str], list[str]] = {}
    for conversation, log, event in events:
        by_log.setdefault((conversation, log), []).append(event)
    for (conversation, log), ours in by_log.items():
        held = db.execute(
            "SELECT sent, delivered, read, missing FROM watermark WHERE conversation = ? AND log = ?",
            (conversation, log),
        ).fetchall()
        for *upto, missing in held:
            gaps = msgspec.msgpack.decode(missing, type=list[int])
            for rank, seq in zip((SENT, DELIVERED, READ), upto, strict=True):
                _raise(db, ours, rank, seq, gaps if rank == DELIVERED else [])
    for piece in pieces(event for _, _, event in events):
        db.execute(
            "UPDATE message SET state = f.state, reason = f.reason FROM failure f "
            f"WHERE f.event = message.id AND message.state < f.state AND message.id IN ({marks(len(piece))})",
            piece,
        )


def _raise(db: sqlite3.Connection, events: list[str], rank: int, upto: int, gaps: list[int]) -> None:
    for piece in pieces(events):
        db.execute(
            f"UPDATE message SET state = ? WHERE id IN ({marks(len(piece))}) AND seq <= ? AND mine "
            f"AND state < ? AND seq NOT IN {NUMBERS}",
            (rank, *piece, upto, rank, numbers(gaps)),
        )


def _present(found: Message | None) -> Message:
    assert found is not None
    return found


def resolved(db: sqlite3.Connection) -> bool:
    """Whether no message of this device waits for an answer: then the feed's copies of ours are known."""
    return db.execute("SELECT 1 FROM message WHERE state = 1 AND tried LIMIT 1").fetchone() is None

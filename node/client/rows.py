"""Rows of the local store as the model's values, and small facts."""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from node import api
from node.client.fold import NOTHING, Folded, apply, mentions
from node.client.model import ACTS, DAMAGED, Conversation, Message, State

STATES: tuple[State, ...] = ("", "queued", "accepted", "sent", "delivered", "read", "failed", "void")
RANK: dict[str, int] = {state: rank for rank, state in enumerate(STATES)}
QUEUED, ACCEPTED, SENT, DELIVERED, READ, FAILED, VOID = range(1, 8)
RECEIVED = "received-message:"  # begins the key of what was not sent from here; so longer than a caller's key may be
STAMP_COUNTER_BITS = 16  # a signed stamp is ms and a counter
QUEUED_ORDER = 1 << 62  # above every signed stamp: what is only queued stands at the end
IDS_PER_STATEMENT_MAX = 500  # below SQLite's limit on parameters
COLUMNS = (
    "id, key, conversation, sender, device, text, stamp, mine, state, reason, late, ord, kind, origin, log, seq, "
    "reply_to, thread, undo, gone, mention, fold"
)
IS_ACT = f"kind IN {ACTS}"
_folded = msgspec.msgpack.Decoder(Folded)


def message(row: Sequence[Any]) -> Message:
    """A row of COLUMNS."""
    id, key, conversation, sender, device, text, stamp, mine, state, reason, late, order, *rest = row
    kind, origin, log, seq, reply_to, thread, undo, gone, mention, fold = rest
    plain = Message(
        id, key, conversation, sender, device, text, stamp, bool(mine), STATES[state], reason, bool(late),
        order if order < QUEUED_ORDER else 0, kind, origin, log, seq, reply_to, thread, bool(undo), bool(gone),
        mentions_me=bool(mention),
    )  # fmt: skip
    return apply(plain, _folded.decode(fold) if fold is not None else NOTHING)


def from_node(item: api.Message, me: str, key: str | None = None) -> Message:
    """A message of the protocol; `key` is this device's own for it, if it has one."""
    mine = item.sender == me
    text = (item.body or b"").decode("utf-8", "replace")
    state = item.state if item.state in RANK else ""
    return Message(
        item.event, key or RECEIVED + item.event, item.conversation, item.sender, item.device, text, item.stamp, mine,
        STATES[RANK[state]] if mine else "", item.reason, item.late, int(item.order, 16), item.kind, item.origin,
        item.log, item.seq, item.target, item.thread, item.undo, item.body is None and item.kind not in ACTS,
        mentions_me=not mine and item.kind not in ACTS and mentions(text, me),
    )  # fmt: skip


WHY = {
    "missing": "is missing on your node",
    "lost": "was lost by its sender's node",
    "quarantined": "could not be processed by your node, whose administrator has it in quarantine",
}


def from_damaged(item: api.Damaged, order: int) -> Message:
    """What stands for messages that the node cannot show; `order` is of what comes before it."""
    count = item.upto - item.seq + 1
    what = f"{count} messages: each" if count > 1 else "a message"
    id = item.event or f"{item.log or item.position}.{item.seq}.{item.upto}"
    return Message(
        id, RECEIVED + id, item.conversation, "", "", f"({what} {WHY.get(item.why, 'is damaged on your node')})",
        order >> STAMP_COUNTER_BITS, False, order=order, kind=DAMAGED, origin=item.origin, log=item.log, seq=item.seq,
    )  # fmt: skip


def fact(db: sqlite3.Connection, name: str, default: Any = None) -> Any:
    row = db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
    return row[0] if row else default


def set_fact(db: sqlite3.Connection, name: str, value: Any) -> None:
    db.execute("INSERT OR REPLACE INTO fact(name, value) VALUES (?, ?)", (name, value))


def pieces(values: Iterable[str]) -> Iterable[list[str]]:
    """Values in lists short enough for one statement."""
    every = list(values)
    for start in range(0, len(every), IDS_PER_STATEMENT_MAX):
        yield every[start : start + IDS_PER_STATEMENT_MAX]


def marks(count: int) -> str:
    return ",".join("?" * count)


NUMBERS = "(SELECT value FROM json_each(?))"  # of any count in one parameter, which `numbers` makes


def numbers(values: Sequence[int]) -> str:
    return msgspec.json.encode(values).decode()


def by_key(db: sqlite3.Connection, key: str) -> Message | None:
    row = db.execute(f"SELECT {COLUMNS} FROM message WHERE key = ?", (key,)).fetchone()
    return message(row) if row else None


def by_id(db: sqlite3.Connection, ids: Sequence[str]) -> list[Message]:
    """As many as one statement takes."""
    return [message(r) for r in db.execute(f"SELECT {COLUMNS} FROM message WHERE id IN ({marks(len(ids))})", ids)]


def page(db: sqlite3.Connection, target: str, before: int | str | None, limit: int) -> list[Message]:
    """The newest messages of a conversation (id or the other's address) before one, oldest first.

    `before` is a key or id; or a stamp in ms, and messages of that very millisecond are given again: several may
    share it.
    """
    end: tuple[int, int] = ((1 << 63) - 1, 0)
    if isinstance(before, int):
        end = ((before + 1) << STAMP_COUNTER_BITS, 0)
    elif before is not None:
        where = db.execute("SELECT ord, n FROM message WHERE key = ? OR id = ?", (before, before)).fetchone()
        if where is None:
            return []
        end = where
    found_rows = db.execute(
        f"SELECT {COLUMNS} FROM message WHERE conversation IN (?, ?) AND (ord, n) < (?, ?) AND NOT {IS_ACT} "
        "ORDER BY ord DESC, n DESC LIMIT ?",
        (*names(db, target), *end, limit),
    ).fetchall()
    return [message(row) for row in reversed(found_rows)]


def only_here(db: sqlite3.Connection, target: str) -> list[Message]:
    """Own messages and acts of a conversation (id or the other's address) that the node does not have, oldest first."""
    found = db.execute(
        f"SELECT {COLUMNS} FROM message WHERE id IS NULL AND conversation IN (?, ?) ORDER BY ord, n",
        names(db, target),
    )
    return [message(row) for row in found]


def names(db: sqlite3.Connection, target: str) -> tuple[str, str]:
    """What messages of a conversation may be filed under."""
    found = db.execute("SELECT id FROM conversation WHERE other = ? ORDER BY last DESC", (target,)).fetchone()
    return (found[0] if found else target, target)


def conversations(db: sqlite3.Connection, ids: Sequence[str] | None = None) -> list[Conversation]:
    """For the list, newest first; only some of them if ids are given."""
    where = "" if ids is None else f"WHERE c.id IN ({marks(len(ids))})"
    found = db.execute(
        f"""SELECT c.id, c.other, c.state, c.last,
          (SELECT count(*) FROM message m WHERE m.conversation = c.id AND m.unread),
          (SELECT count(*) FROM message m WHERE m.conversation = c.id AND m.unread AND m.mention),
          (SELECT n FROM message m WHERE m.conversation = c.id AND NOT {IS_ACT} ORDER BY ord DESC, n DESC LIMIT 1),
          (SELECT coalesce(max(m.stamp), 0) FROM readmark r JOIN message m
             ON m.conversation = r.conversation AND m.log = r.log AND m.seq = r.seq WHERE r.conversation = c.id)
        FROM conversation c {where} ORDER BY c.last DESC, c.id""",
        tuple(ids or ()),
    ).fetchall()
    hidden = {id for id, _, state, *_ in found if state == "declined"}
    if hidden:  # who writes to somebody they declined wants to see it, also before the node knows
        hidden.difference_update(row[0] for row in db.execute("SELECT conversation FROM message WHERE state = 1"))
    newest = _by_number(db, [n for *_, n, _ in found if n is not None])
    listed = [
        Conversation(
            id, other, unread, last_text(newest.get(n)), max(last, newest[n].stamp if n in newest else 0),
            state == "request", read_upto, mentioned,
        )
        for id, other, state, last, unread, mentioned, n, read_upto in found
        if id not in hidden
    ]  # fmt: skip
    if ids is not None:
        return listed
    return sorted([*listed, *_begun(db)], key=lambda c: (-c.last_stamp, c.id))


def _by_number(db: sqlite3.Connection, numbers_: Sequence[int]) -> dict[int, Message]:
    query = f"SELECT n, {COLUMNS} FROM message WHERE n IN {NUMBERS}"
    return {n: message(row) for n, *row in db.execute(query, (numbers(numbers_),))}


def last_text(m: Message | None) -> str:
    """For a list."""
    return "" if m is None else "(deleted)" if m.deleted else m.text


def _begun(db: sqlite3.Connection) -> list[Conversation]:
    """Conversations that only this device knows: the node did not take the first message yet, or refused it."""
    found = db.execute(
        "SELECT conversation, text, stamp, max(n) FROM message WHERE id IS NULL AND conversation = target "
        f"AND instr(target, '@') AND NOT {IS_ACT} GROUP BY conversation"
    )
    return [Conversation(address, address, last_text=text, last_stamp=stamp) for address, text, stamp, _ in found]


def adopt(db: sqlite3.Connection, known: Iterable[tuple[str, str]]) -> None:
    """What was written to an address before its conversation had an id belongs to it: (id, the other's address)."""
    db.executemany("UPDATE message SET conversation = ? WHERE conversation = ?", known)

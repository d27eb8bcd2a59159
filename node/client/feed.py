"""SQL of what the node pushes: messages, watermarks, failures, conversations, and the journal for `events()`."""

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from node import api
from node.client import outbox
from node.client.acts import about, concerned, refold
from node.client.model import ACTS, Change, Message
from node.client.rows import (
    COLUMNS,
    DELIVERED,
    FAILED,
    NUMBERS,
    READ,
    SENT,
    VOID,
    adopt,
    by_id,
    conversations,
    fact,
    from_damaged,
    from_node,
    marks,
    message,
    numbers,
    pieces,
    set_fact,
)


class Me(NamedTuple):
    """Whose store it is."""

    address: str
    device: str


class Entry(NamedTuple):
    """One thing for `events()`; `n` is its place in the journal, `position` acknowledges it (0: needs none)."""

    n: int
    position: int
    change: Change


class Applied(NamedTuple):
    """What one transaction brought."""

    changes: list[Change]  # for screens
    entries: list[Entry]  # for events()
    position: int  # stored up to here


def apply(db: sqlite3.Connection, me: Me, feeds: Sequence[api.Feed], journal: bool) -> Applied:
    """Store pushed items and the cursor together; what is known already changes nothing.

    Without `journal` nobody will ask for these through `events()`: a screen shows them as they are stored.
    """
    stored = int(fact(db, "position", 0))
    items = [item for feed in feeds for item in feed.items if item.position > stored]
    if not items:
        return Applied([], [], stored)
    found = [(item.position, m) for item, m in _messages(db, me, items)]
    found += _damaged(db, items)
    folded = _fold(db, me, found, items)
    found = [(at, folded.get(m.id or "", m)) for at, m in found]
    others = [(at, m) for at, m in found if not (m.mine and m.device == me.device)]
    # Our own message may come before the reply that tells its key: a screen would show it twice.
    known = others if len(others) < len(found) and not outbox.resolved(db) else found
    shown = [Change("message", m) for _, m in known if m.kind not in ACTS]
    came = {m.id for _, m in found}
    shown += [Change("update", m) for m in folded.values() if m.id not in came]
    news = [(at, change) for at, m in others if (change := _change(db, folded, m)) is not None]
    touched: dict[str, None] = dict.fromkeys(m.conversation for m in (*(m for _, m in found), *folded.values()))
    for item in items:
        changes: list[Change] = []
        if isinstance(item, api.Watermark):
            changes = [Change("state", m) for m in _watermark(db, me, item)]
        elif isinstance(item, api.Failure):
            failed = _failure(db, item)
            changes = [Change("state", m) for m in failed]
            shown += [Change("update", m) for m in refold(db, concerned(m for m in failed if m.kind in ACTS))]
        elif isinstance(item, api.ConversationState):
            changes = _conversation(db, item)
            touched[item.conversation] = None
        elif isinstance(item, api.DeviceState):
            changes = [Change("device", device=item.device, detail="revoked" if item.revoked else item.name)]
        shown += changes
        news += [(item.position, change) for change in changes]
    for piece in pieces(touched):
        shown += [Change("conversation", conversation=c) for c in conversations(db, piece)]
    position = max(item.position for item in items)
    set_fact(db, "position", position)
    news.sort(key=lambda entry: entry[0])
    return Applied(shown, note(db, news) if journal else [], position)


def _change(db: sqlite3.Connection, folded: dict[str, Message], m: Message) -> Change | None:
    """For `events()`: a message, or what an act did to one; none while that is not here."""
    if m.kind not in ACTS:
        return Change("message", m)
    of = folded.get(m.reply_to or "") or next(iter(by_id(db, [m.reply_to or ""])), None)
    return Change("update", of, act=m) if of is not None and of.kind not in ACTS else None


def _fold(
    db: sqlite3.Connection, me: Me, found: Sequence[tuple[int, Message]], items: Sequence[api.Item]
) -> dict[str, Message]:
    """What looks otherwise now, by id: what acts that came are about, and what came after its acts."""
    fresh = [m for _, m in found if m.id]
    came = [i.event for i in items if isinstance(i, api.Message)]
    ids: list[str | None] = [*concerned(fresh), *about(db, came)]
    ids += [i.target if i.kind in ACTS else i.event for i in items if isinstance(i, api.Message) and _is_moved(i)]
    return {m.id: m for m in refold(db, ids, me.address) if m.id}


def _is_moved(item: api.Message) -> bool:
    """Known before, and said again with its whole stamp, or without its body."""
    return item.kind in ACTS or item.body is None


def note(db: sqlite3.Connection, news: Sequence[tuple[int, Change]]) -> list[Entry]:
    """Write changes to the journal."""
    if not news:
        return []
    db.executemany(
        "INSERT OR REPLACE INTO journal(position, kind, ref, detail) VALUES (?, ?, ?, ?)",
        [(position, c.kind, _ref(c), c.detail) for position, c in news],
    )
    (last,) = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
    return [Entry(last - len(news) + i, *entry) for i, entry in enumerate(news, 1)]


def _ref(change: Change) -> str:
    if change.act is not None:
        return change.act.key
    if change.message is not None:
        return change.message.key
    return change.conversation.id if change.conversation is not None else change.device


def _messages(db: sqlite3.Connection, me: Me, items: Sequence[api.Item]) -> list[tuple[api.Message, Message]]:
    """Stores those that are new; gives them."""
    came = {item.event: item for item in items if isinstance(item, api.Message)}
    known: set[str] = set()
    for piece in pieces(came):
        known.update(r[0] for r in db.execute(f"SELECT id FROM message WHERE id IN ({marks(len(piece))})", piece))
    repeats = [came[event] for event in came if event in known]
    # A reply gave only the milliseconds of our own stamp; and a deleted body comes as the same event without it.
    db.executemany("UPDATE message SET ord = ? WHERE id = ?", [(int(m.order, 16), m.event) for m in repeats])
    gone = [(m.event,) for m in repeats if m.body is None]
    db.executemany("UPDATE message SET text = '', body = NULL, gone = 1 WHERE id = ?", gone)
    fresh = [(item, from_node(item, me.address)) for event, item in came.items() if event not in known]
    seen = _seen(db, {item.conversation for item, m in fresh if not m.mine})
    db.executemany(
        "INSERT OR IGNORE INTO message(id, key, conversation, sender, device, text, stamp, mine, state, late, ord,"
        " kind, origin, log, seq, reply_to, thread, undo, gone, mention, unread, format)"
        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        [
            (
                m.id, m.key, m.conversation, m.sender, m.device, m.text, m.stamp, m.mine, 2 if m.mine else 0, m.late,
                m.order, m.kind, m.origin, m.log, m.seq, m.reply_to, m.thread, m.undo, m.deleted, m.mentions_me,
                not m.mine and not m.deleted and m.kind not in ACTS
                and m.seq > seen.get((m.conversation, m.log), 0), item.format,
            )
            for item, m in fresh
        ],
    )  # fmt: skip
    newest: dict[str, tuple[str, int]] = {}
    for item, m in fresh:
        last = 0 if m.kind in ACTS else m.stamp  # nothing new was said
        last = max(last, newest.get(m.conversation, ("", 0))[1])
        newest[item.conversation] = ("" if m.mine else m.sender, last)
    db.executemany(
        "INSERT INTO conversation(id, other, last) VALUES (?, ?, ?) "
        "ON CONFLICT(id) DO UPDATE SET last = max(last, excluded.last)",
        [(conversation, other, last) for conversation, (other, last) in newest.items()],
    )
    adopt(db, [(conversation, other) for conversation, (other, _) in newest.items() if other])
    ours = [m for _, m in fresh if m.mine]
    if not ours:
        return fresh
    outbox.catch_up(db, [(m.conversation, m.log, m.id or "") for m in ours])
    now = {m.id: m for piece in pieces(m.id or "" for m in ours) for m in by_id(db, piece)}
    return [(item, now.get(m.id, m)) for item, m in fresh]


def _damaged(db: sqlite3.Connection, items: Sequence[api.Item]) -> list[tuple[int, Message]]:
    """Marks of what the node cannot show, where there is anything to mark: not what this device has itself."""
    found: list[tuple[int, Message]] = []
    for item in items:
        if not isinstance(item, api.Damaged) or not item.seq:
            continue  # a fact: the next change brings it anew
        query = "SELECT max(ord), max(seq = ?) FROM message WHERE conversation = ? AND id IS NOT NULL AND log = ?"
        (order, here) = db.execute(query, (item.seq, item.conversation, item.log)).fetchone()
        if here:
            continue
        m = from_damaged(item, order or 0)
        db.execute(
            "INSERT OR IGNORE INTO message(id, key, conversation, sender, device, text, stamp, mine, ord, kind, origin,"
            " log, seq) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (m.id, m.key, m.conversation, "", "", m.text, m.stamp, 0, m.order, m.kind, m.origin, m.log, m.seq),
        )
        found.append((item.position, m))
    return found


def _seen(db: sqlite3.Connection, ids: set[str]) -> dict[tuple[str, str], int]:
    """This user's read marks, from any device."""
    found: dict[tuple[str, str], int] = {}
    for piece in pieces(sorted(ids)):
        rows = db.execute(
            f"SELECT conversation, log, seq FROM readmark WHERE conversation IN ({marks(len(piece))})", piece
        )
        found |= {(conversation, log): seq for conversation, log, seq in rows}
    return found


def _watermark(db: sqlite3.Connection, me: Me, item: api.Watermark) -> list[Message]:
    """Own messages that got further. Only what lies between the old mark and the new one is looked at."""
    place = (item.conversation, item.log)
    if item.member == me.address:
        other = db.execute("SELECT other FROM conversation WHERE id = ?", (item.conversation,)).fetchone()
        if other is None or other[0] != me.address:
            return []  # my own devices do not make my messages delivered
    old = db.execute(
        "SELECT sent, delivered, read, missing FROM watermark WHERE conversation = ? AND log = ? AND member = ?",
        (*place, item.member),
    ).fetchone()
    *before, raw = old or (0, 0, 0, msgspec.msgpack.encode([]))
    missing = set(item.missing)
    was_missing = [seq for seq in msgspec.msgpack.decode(raw, type=list[int]) if seq not in missing]
    upto = [max(pair) for pair in zip(before, (item.sent, item.delivered, item.read), strict=True)]
    db.execute(
        "INSERT OR REPLACE INTO watermark VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*place, item.member, *upto, msgspec.msgpack.encode(list(item.missing))),
    )
    moved: dict[str, Message] = {}
    for rank, after, last in zip((SENT, DELIVERED, READ), before, upto, strict=True):
        gaps = item.missing if rank == DELIVERED else ()
        filled = was_missing if rank == DELIVERED else []
        if last <= after and not filled:
            continue
        rows = db.execute(
            f"UPDATE message SET state = ? WHERE conversation = ? AND log = ? AND mine AND state < ? "
            f"AND (seq > ? AND seq <= ? OR seq IN {NUMBERS}) AND seq NOT IN {NUMBERS} RETURNING {COLUMNS}",
            (rank, *place, rank, after, last, numbers(filled), numbers(gaps)),
        ).fetchall()
        moved |= {m.key: m for m in map(message, rows)}
    return sorted(moved.values(), key=lambda m: m.seq)


def _failure(db: sqlite3.Connection, item: api.Failure) -> list[Message]:
    state = VOID if item.code == "void" else FAILED
    reason = item.reason or item.code
    db.execute("INSERT OR REPLACE INTO failure(event, state, reason) VALUES (?, ?, ?)", (item.event, state, reason))
    rows = db.execute(
        f"UPDATE message SET state = ?, reason = ? WHERE id = ? AND mine AND state < ? RETURNING {COLUMNS}",
        (state, reason, item.event, state),
    ).fetchall()
    return [message(row) for row in rows]


def _conversation(db: sqlite3.Connection, item: api.ConversationState) -> list[Change]:
    """Where the user stands; a first message of a stranger becomes a request to answer."""
    old = db.execute("SELECT state FROM conversation WHERE id = ?", (item.conversation,)).fetchone()
    db.execute(
        "INSERT INTO conversation(id, other, state, last) VALUES (?, ?, ?, ?) ON CONFLICT(id) DO UPDATE "
        "SET other = excluded.other, state = excluded.state, last = max(last, excluded.last)",
        (item.conversation, item.other, item.state, item.last),
    )
    adopt(db, [(item.conversation, item.other)])
    for mark in item.read:
        see(db, item.conversation, mark, told=True)
    if item.state != "request" or (old is not None and old[0] == "request"):
        return []
    return [Change("request", conversation=c) for c in conversations(db, [item.conversation])]


def see(db: sqlite3.Connection, conversation: str, mark: api.Mark, told: bool) -> None:
    """A person has seen a log up to here; only the maximum counts."""
    db.execute(
        "INSERT INTO readmark(conversation, log, origin, seq, told) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
        "SET seq = excluded.seq, told = excluded.told WHERE seq < excluded.seq",
        (conversation, mark.log, mark.origin, mark.seq, told),
    )
    db.execute(
        "UPDATE message SET unread = 0 WHERE conversation = ? AND log = ? AND seq <= ? AND unread",
        (conversation, mark.log, mark.seq),
    )

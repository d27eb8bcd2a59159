"""Edits, deletions, reactions, pins and answers as a client shows them: the same whatever came first."""

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import api
from node.client import Client
from node.client.feed import Me, apply
from node.client.fold import mentions
from node.client.model import Message, Quote, Reaction
from node.client.rows import by_id, page
from node.client.store import SCHEMA
from tests.client.conftest import Open
from tests.client.fakenode import ALICE, BOB, CONVERSATION, OTHER_LOG, WAIT_S, FakeNode, message

ME = Me(ALICE, "dev-1")
EVE = "eve@c.test"


def item(
    event: str, kind: str = "message", text: str | None = "", target: str | None = None, sender: str = BOB,
    order: int = 0, **more: Any,
) -> api.Message:  # fmt: skip
    """One event of a conversation of three; `order` says where it stands, and the position does not."""
    origin, seq = {BOB: "origin-b", EVE: "origin-c", ALICE: "origin-a"}[sender], int(event[1:])
    body = None if text is None else text.encode()
    return api.Message(
        event, CONVERSATION, origin, f"log-{origin[-1]}", seq, sender, "d", order or seq,
        api.order((order or seq) << 16), kind, "text", body, target, **more,
    )  # fmt: skip


def told(items: Sequence[api.Message], parts: Sequence[int] = ()) -> sqlite3.Connection:
    """A store to which these came one after the other, in transactions of so many."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(SCHEMA)
    position, left, sizes = 0, list(items), list(parts)
    while left:
        size = sizes.pop() if sizes else len(left)
        some, left = left[:size], left[size:]
        numbered = []
        for one in some:
            position += 1
            numbered.append(_at(one, position))
        apply(db, ME, [api.Feed("s", tuple(numbered))], journal=True)
    return db


def _at(one: api.Message, position: int) -> api.Message:
    return msgspec.structs.replace(one, position=position)


def shown(db: sqlite3.Connection, *ids: str) -> list[Message]:
    found = {m.id: m for m in by_id(db, list(ids))}
    return [found[id] for id in ids]


TALK = [
    item("e1", text="frist"),
    item("e2", "edit", "second", "e1", order=20),
    item("e3", "edit", "third", "e1", order=30),
    item("e4", "edit", "second and a half", "e1", order=25),
    item("e5", "edit", "not mine to edit", "e1", sender=EVE, order=90),
    item("e6", "reaction", "+1", "e1", sender=EVE, order=40),
    item("e7", "reaction", "+1", "e1", sender=ALICE, order=41),
    item("e8", "reaction", "+1", "e1", sender=EVE, order=42, undo=True),
    item("e9", "reaction", "<3", "e1", sender=EVE, order=43),
    item("e10", "pin", "", "e1", sender=EVE, order=50),
    item("e11", "unpin", "", "e1", order=45),
    item("e12", text="an answer", target="e1", sender=EVE, order=60),
    item("e13", text="in a thread, @alice", sender=EVE, order=61, thread="e1"),
    item("e14", "delete", "", "e12", order=70),  # not bob's to delete
    item("e15", text="gone soon", sender=EVE, order=71),
    item("e16", "edit", "gone too", "e15", sender=EVE, order=72),
    item("e17", "delete", "", "e15", sender=EVE, order=65),  # before the edit in the order, and all the same
    item("e18", text="on what is gone", target="e15", order=80),
    item("e19", text=None, sender=EVE, order=81),  # its node had no body any more
]


@settings(max_examples=60, deadline=None)
@given(st.permutations(TALK), st.lists(st.integers(1, 5), max_size=12), st.lists(st.sampled_from(TALK), max_size=5))
def test_the_order_of_arrival_changes_nothing(
    items: list[api.Message], parts: list[int], again: list[api.Message]
) -> None:
    db = told([*items, *again], parts)
    first, answer, threaded, deleted, orphan, bodiless = shown(db, "e1", "e12", "e13", "e15", "e18", "e19")
    assert (first.text, first.edited) == ("third", 30)
    assert [e.text for e in first.edits] == ["frist", "second", "second and a half", "third"]
    assert first.reactions == (Reaction("+1", (ALICE,), True), Reaction("<3", (EVE,)))
    assert (first.pinned, first.replies, first.deleted) == (EVE, 1, False)
    assert (answer.quote, answer.deleted) == (Quote(BOB, "third"), False)
    assert (threaded.thread, threaded.mentions_me) == ("e1", True)
    assert (deleted.text, deleted.deleted, deleted.edits) == ("", True, ())
    assert orphan.quote == Quote(EVE, "", True)
    assert bodiless.deleted
    kept = db.execute("SELECT count(*) FROM message WHERE text LIKE 'gone%'").fetchone()
    assert kept == (0,)  # not on this disk either
    (unread, mentioned) = db.execute("SELECT sum(unread), sum(unread AND mention) FROM message").fetchone()
    assert (unread, mentioned) == (4, 1)  # four messages that are there; no act, nothing that is gone


def test_an_act_whose_target_is_not_here_shows_nothing() -> None:
    db = told([item("e2", "edit", "edited", "e1", order=5), item("e3", "reaction", "+1", "e1")])
    assert shown_kinds(db) == []
    assert db.execute("SELECT kind FROM journal").fetchall() == []
    apply(db, ME, [api.Feed("s", (_at(item("e1", text="late"), 9),))], journal=True)
    assert [m.text for m in shown(db, "e1")] == ["edited"]
    assert db.execute("SELECT kind FROM journal").fetchall() == [("message",)]


def shown_kinds(db: sqlite3.Connection) -> list[str]:
    return [m.kind for m in page(db, CONVERSATION, None, 100)]


def test_an_edit_of_another_conversation_is_nothing_to_this_one() -> None:
    foreign = msgspec.structs.replace(item("e2", "edit", "from elsewhere", "e1", order=5), conversation="other")
    db = told([item("e1", text="here"), foreign])
    assert [m.text for m in shown(db, "e1")] == ["here"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("@alice look", True), ("hi @alice!", True), ("@alice@a.test", True), ("see @ALICE.", True), ("(@alice)", True),
        ("@alice@b.test", False), ("@alicex", False), ("@alice.b", False), ("x@alice", False), ("alice@a.test", False),
        ("bob@alice", False), ("@alice@a.test.evil", False), ("@alice-b", False), ("alice", False), ("@", False),
        ("@alice@a.test, please", True), ("@alice@a.test.", True), ("a @bob b @alice", True),
    ],
)  # fmt: skip
def test_mentions(text: str, named: bool) -> None:
    assert mentions(text, ALICE) is named


# --- through the client ---------------------------------------------------------------------------------------------
async def _first(client: Client) -> Message:
    """The conversation's first message, once it is here."""
    screen = client.changes()
    async with asyncio.timeout(WAIT_S):
        while not (found := await client.messages(CONVERSATION)):
            await anext(screen)
    return found[0]


async def test_acts_wait_in_the_outbox_and_show_at_once(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    sent = await client.wait((await client.send(BOB, "helo")).key, "accepted", WAIT_S)
    node.down = True
    node.cut()
    edited = await client.edit(sent, "hello")
    await client.react(sent.id or "", "+1")
    now = (await client.messages(sent.conversation))[0]
    assert (now.text, now.reactions) == ("hello", (Reaction("+1", (ALICE,), True),))
    assert [m.text for m in await client.messages(sent.conversation)] == ["hello"]
    assert (await client.edit(sent, "hello", key=edited.key)).key == edited.key  # safe to repeat
    await client.close()
    node.down = False
    again = await open_client()
    await again.wait(edited.key, "accepted", WAIT_S)
    await node.until(lambda: len(node.sends) >= 3)
    kinds = [(s.kind, s.target, s.body) for s in node.sends]
    assert kinds[-2:] == [("edit", sent.id, b"hello"), ("reaction", sent.id, b"+1")]


async def test_a_refused_act_is_undone_here(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    sent = await client.wait((await client.send(BOB, "mine")).key, "accepted", WAIT_S)
    node.refuse = lambda send: api.ApiError("not_found", "no")
    act = await client.delete(sent)
    assert (await client.wait(act.key, "accepted", WAIT_S)).state == "failed"
    (now,) = await client.messages(sent.conversation)
    assert (now.text, now.deleted) == ("mine", False)


async def test_an_edit_of_somebody_elses_is_refused_before_it_is_queued(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    await node.push(message(1, "theirs", log=OTHER_LOG))
    theirs = await _first(client)
    with pytest.raises(api.ApiError) as refused:
        await client.edit(theirs, "words in their mouth")
    assert refused.value.code == "not_yours"
    for emoji in ("", " ", "\n", "x" * 33):
        with pytest.raises(api.ApiError):
            await client.react(theirs, emoji)
    assert node.sends == []


async def test_events_tell_of_each_act_once(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    events = client.events()
    first = item("e1", text="helo")
    edit = item("e2", "edit", "hello", "e1", order=5)
    await node.push(first)
    async with asyncio.timeout(WAIT_S):
        assert (await anext(events)).kind == "message"
        await node.push(edit, item("e3", "edit", "of nothing that is here", "e9"), item("e4", text="next"))
        change, following = await anext(events), await anext(events)
    assert change.kind == "update"
    assert change.message is not None
    assert change.act is not None
    assert (change.message.id, change.message.text, change.act.id, change.act.kind) == ("e1", "hello", "e2", "edit")
    assert following.message is not None
    assert following.message.text == "next"

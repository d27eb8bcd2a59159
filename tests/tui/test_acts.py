"""What a person does to a message, and how its row shows what was done to it."""

import msgspec

from node.client.model import Change, Conversation, Quote, Reaction
from tests.tui.fake import FakeClient
from tests.tui.looking import screen, until
from tui import model
from tui.app import ChatApp


def talk() -> tuple[FakeClient, str]:
    client = FakeClient()
    room = client.add_room("bob@b.test")
    client.history(room, ["theirs"])
    client.history(room, ["mine"], client.address)
    return client, room


async def test_reply_edit_react_pin_and_delete_act_on_the_selected_message() -> None:
    client, _ = talk()
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: "mine" in screen(app))
        await pilot.press(*"draft")
        for _ in "draft":
            await pilot.press("backspace")
        await pilot.press("up", "up", "r")
        await until(pilot, lambda: "answering: theirs" in screen(app))
        await pilot.press(*"yes", "enter")
        await until(pilot, lambda: ("reply", "theirs", "yes") in client.acts)
        assert "answering" not in screen(app)
        await pilot.press("up", "up", "e")
        await until(pilot, lambda: "editing: mine" in screen(app) and app.pane.talk.composer.text == "mine")
        await pilot.press("backspace", "d", "!", "enter")
        await until(pilot, lambda: ("edit", "mine", "mind!") in client.acts and "edited" in screen(app))
        await pilot.press("up", "up", "plus")
        await until(pilot, lambda: "emoji (again: take back) on: mind!" in screen(app))
        await pilot.press("+", "1", "enter")
        await until(pilot, lambda: "+1 1*" in screen(app))
        await pilot.press("up", "up", "plus", "+", "1", "enter")
        await until(pilot, lambda: "+1 1*" not in screen(app))
        await pilot.press("up", "up", "p")
        await until(pilot, lambda: "pinned by alice@a.test" in screen(app))
        await pilot.press("d")
        await until(pilot, lambda: "Delete this message for everybody?" in screen(app))
        await pilot.press("n", "d")
        await until(pilot, lambda: "Delete this message for everybody?" in screen(app))
        assert "delete" not in [what for what, *_ in client.acts]
        await pilot.press("y")
        await until(pilot, lambda: "(deleted)" in screen(app) and "mind!" not in screen(app))


async def test_escape_leaves_what_was_begun_and_brings_the_draft_back() -> None:
    client, room = talk()
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: "mine" in screen(app))
        app.pane.talk.composer.insert("half a thought")
        app.pane.talk.timeline.select(-1)
        app.pane.talk.timeline.focus()
        await pilot.press("e")
        await until(pilot, lambda: "editing: mine" in screen(app))
        await pilot.press("escape")
        await until(pilot, lambda: app.pane.talk.composer.text == "half a thought")
        assert "editing" not in screen(app)
        assert client.acts == []
        del room


async def test_what_is_not_mine_is_neither_edited_nor_deleted() -> None:
    client, _ = talk()
    app = ChatApp(client)
    async with app.run_test(size=(100, 24), notifications=True) as pilot:
        await until(pilot, lambda: "theirs" in screen(app))
        await pilot.press("up", "up", "e")
        await until(pilot, lambda: "Only who wrote a message may do that." in screen(app))
        await pilot.press("d")
        assert client.acts == []


async def test_rows_show_what_was_done_and_where_one_is_named() -> None:
    client, room = talk()
    first = client.logs[room][0]
    client.change(first.key, reactions=(Reaction("👍", ("a@x", "b@x")),), edited=1, replies=2)
    named = client.history(room, ["look here, @alice"])[0]
    client.change(named.key, mentions_me=True, quote=Quote("bob@b.test", "what\nwas \x1b[31msaid"))
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: "look here" in screen(app))
        shown = screen(app)
        assert "👍 2  edited  2 in the thread" in shown
        assert "↳ bob@b.test: what was said" in shown
        assert "@ look here, @alice" in shown
        client.change(first.key, text="theirs, corrected")
        await until(pilot, lambda: "theirs, corrected" in screen(app))
        refused = msgspec.structs.replace(first, id=None, key="act", kind="delete", state="failed", reason="not yours")
        client._news.put_nowait(Change("state", refused))
        client.change(first.key, replies=3)
        await until(pilot, lambda: "3 in the thread" in screen(app))
        assert len(app.pane.talk.timeline.rows.messages) == 3  # an act is no message


def test_the_list_says_where_one_is_named_and_goes_there_first() -> None:
    rooms = [
        Conversation("a", "a@x", 1),
        Conversation("b", "b@x", 2, mentions=1),
        Conversation("c", "c@x", request=True),
    ]
    assert [model.badge(c) for c in rooms] == ["(1)", "(2 @)", "request"]
    assert model.next_unread(rooms, None) == rooms[1]

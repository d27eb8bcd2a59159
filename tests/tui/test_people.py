"""Who types and who is there, on screen; and what this side tells of itself."""

import pytest
from textual import events

from node.client.model import Presence, Typing
from tests.tui.fake import FakeClient
from tests.tui.looking import screen, until
from tui import model, talk
from tui.app import ChatApp

BOB = "bob@b.test"


async def test_who_types_here_is_shown_until_they_stop_or_write() -> None:
    client = FakeClient()
    room, other = client.add_room(BOB, last_stamp=9), client.add_room("dave@b.test")
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: app.pane.talk.room.id == room)
        client.sign(Typing(other, "dave@b.test", True))
        client.sign(Typing(room, BOB, True))
        await until(pilot, lambda: "bob is typing…" in screen(app))
        assert "dave is typing" not in screen(app)
        client.sign(Typing(room, BOB, False))
        await until(pilot, lambda: "is typing…" not in screen(app))
        client.sign(Typing(room, BOB, True))
        await until(pilot, lambda: "bob is typing…" in screen(app))
        client.receive(room, "here it is")
        await until(pilot, lambda: "here it is" in screen(app) and "is typing…" not in screen(app))


async def test_who_is_there_has_a_dot_in_the_list() -> None:
    client = FakeClient()
    client.add_room(BOB)
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        for state, dot, gone in (("online", "●", "○"), ("away", "○", "\0")):
            client.sign(Presence("c", BOB, state))  # type: ignore[arg-type]
            await until(pilot, lambda dot=dot: _row(app).endswith(dot))
            assert gone not in _row(app)
        client.sign(Presence("c", BOB, "offline"))
        await until(pilot, lambda: _row(app).endswith("bob@b.test"))


def _row(app: ChatApp) -> str:
    """Bob's row of the list."""
    rows = [row[:27].rstrip() for row in screen(app).splitlines()]
    return next((row for row in rows if "bob@b.test" in row), "")


async def test_what_is_written_is_told_until_it_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "TYPING_RESTS_S", 0.05)
    client = FakeClient()
    room = client.add_room(BOB)
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: app.pane.talk.room.id == room)
        await pilot.press("a")
        await until(pilot, lambda: client.typed == [(room, True), (room, False)])
        monkeypatch.setattr(talk, "TYPING_RESTS_S", 60)
        await pilot.press("b", "c")
        await until(pilot, lambda: client.typed[2:] == [(room, True)])
        await pilot.press("enter")
        await until(pilot, lambda: client.typed[3:] == [(room, False)])
        await pilot.press("d")
        await until(pilot, lambda: client.typed[4:] == [(room, True)])
        await pilot.press("backspace")
        await until(pilot, lambda: client.typed[5:] == [(room, False)])


async def test_a_person_before_the_terminal_is_there_and_else_away() -> None:
    client = FakeClient()
    client.add_room(BOB)
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: client.shown[-1:] == ["online"])
        app.post_message(events.AppBlur())
        await until(pilot, lambda: client.shown[-1:] == ["away"])
        app.post_message(events.AppFocus())
        await until(pilot, lambda: client.shown[-1:] == ["online"])


def test_names_of_many_and_of_strangers() -> None:
    assert model.typing([]) == ""
    assert model.typing(["a@x", "b@x", "c@x"]) == "a, b and c are typing…"
    assert "\x1b" not in model.typing(["\x1b[2J@x"])
    assert [model.dot(state) for state in ("online", "away", "offline", None)] == ["●", "○", "", ""]

"""Scrolling, the unread line, and when something counts as read."""

import msgspec
from textual import events

from node.client.model import Message
from tests.tui.fake import FakeClient
from tests.tui.looking import screen, until
from tui.app import ChatApp
from tui.widgets.blocks import LINES_CACHED_MAX


def one_room(count: int, unread: int = 0) -> tuple[FakeClient, str]:
    client = FakeClient()
    room = client.add_room("bob@b.test")
    made = client.history(room, [f"message {n}." for n in range(count)], gap_ms=1000)
    upto = made[count - unread - 1].stamp
    client.rooms[room] = msgspec.structs.replace(client.rooms[room], unread=unread, read_upto=upto)
    return client, room


async def test_a_hundred_thousand_messages_draw_only_what_is_seen() -> None:
    app = ChatApp(FakeClient())
    many = [
        Message(f"{n}", f"{n}", "c", f"{'ab'[n // 7 % 2]}@b.test", "d", f"line {n} " * (n % 30 + 1), n * 1000, False)
        for n in range(100_000)
    ]
    async with app.run_test(size=(100, 40)) as pilot:
        timeline, height = app.pane.talk.timeline, 40
        timeline.show(many, None)
        await until(pilot, lambda: "line 99999" in screen(app))
        assert timeline.blocks.lines_drawn < 4 * height
        for _ in range(40):
            timeline.page(-1)
            await pilot.pause()
        assert timeline.blocks.lines_drawn < 44 * height
        assert timeline.blocks.lines_cached <= LINES_CACHED_MAX + height
        timeline.to_start()
        await until(pilot, lambda: "line 1 line 1" in screen(app))
        timeline.to_end()
        await until(pilot, lambda: "line 99999" in screen(app))
        assert timeline.blocks.lines_drawn < 50 * height


async def test_paging_up_moves_by_a_page_and_leaves_nothing_out() -> None:
    app = ChatApp(FakeClient())
    many = [
        Message(f"{n}", f"{n}", "c", "b@b.test", "d", f"<{n}> " + "word " * (n * 37 % 90), n * 1000, False)
        for n in range(100)
    ]
    async with app.run_test(size=(80, 30)) as pilot:
        timeline = app.pane.talk.timeline
        timeline.show(many, None)
        await until(pilot, lambda: "<99>" in screen(app))
        seen: set[str] = set()
        for _ in range(300):
            seen |= {part for part in screen(app).split() if part.startswith("<")}
            if timeline.scroll_y == 0:
                break
            timeline.page(-1)
            await pilot.pause()
        assert seen == {f"<{n}>" for n in range(100)}


async def test_what_arrives_does_not_move_what_you_read() -> None:
    client, room = one_room(150)
    app = ChatApp(client)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "message 149." in screen(app))
        await pilot.press("pageup", "pageup")
        await until(pilot, lambda: not app.pane.talk.timeline.at_bottom and "message 132." not in screen(app))
        before = screen(app).splitlines()[2:18]
        late = client.receive(room, "late", stamp=client.logs[room][3].stamp + 1, late=True)
        client.receive(room, "new at the bottom")
        await until(pilot, lambda: app.pane.talk.timeline.message_at(late.key))
        await until(pilot, lambda: len(app.pane.talk.timeline.rows.messages) == 152)
        assert [row[28:70] for row in screen(app).splitlines()[2:18]] == [row[28:70] for row in before]
        assert client.reads == []
        await until(pilot, lambda: "bob@b.test  ↓ 2 new" in screen(app))
        await pilot.press("alt+end")
        await until(pilot, lambda: "new at the bottom" in screen(app) and client.reads == [room])
        client.receive(room, "and one more")
        await until(pilot, lambda: "and one more" in screen(app))


async def test_older_pages_load_from_the_cache_without_a_jump() -> None:
    client, _ = one_room(450)
    app = ChatApp(client)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "message 449." in screen(app))
        rows = app.pane.talk.timeline.rows
        assert len(rows.messages) == 200
        await pilot.press("alt+home")
        await until(pilot, lambda: len(rows.messages) > 200)
        assert "message 250." in screen(app)
        for _ in range(3):
            await pilot.press("alt+home")
            await pilot.pause()
        await until(pilot, lambda: len(rows.messages) == 450)
        await pilot.press("alt+home")
        await until(pilot, lambda: "message 0." in screen(app))


async def test_it_opens_at_the_unread_line_and_is_read_at_the_bottom() -> None:
    client, room = one_room(100, unread=60)
    app = ChatApp(client)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: " new " in screen(app))
        assert "message 40." in screen(app)
        assert "message 39." not in screen(app)
        assert client.reads == []
        await pilot.press("alt+end")
        await until(pilot, lambda: client.reads == [room])
        await pilot.press("alt+u")
        await until(pilot, lambda: "message 40." in screen(app) and " new " in screen(app))  # it stays
        await pilot.press("ctrl+k", *"bob", "enter")
        await pilot.pause()
        assert app.pane.talk.timeline.rows.unread is not None
        client.add_room("carol@b.test")
        client.everything()
        await until(pilot, lambda: len(app.pane.conversations) == 2)
        app.pane.open("alice@a.test~carol@b.test")
        await until(pilot, lambda: app.pane.talk.room.title == "carol@b.test")
        app.pane.open(room)
        await until(pilot, lambda: "message 99." in screen(app))
        assert app.pane.talk.timeline.rows.unread is None


async def test_nothing_is_read_while_the_terminal_has_no_focus() -> None:
    client, room = one_room(5)
    app = ChatApp(client)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "message 4." in screen(app))
        app.post_message(events.AppBlur())
        await until(pilot, lambda: not app.app_focus)
        client.receive(room, "are you there?")
        await until(pilot, lambda: "are you there?" in screen(app) and " new " in screen(app))
        assert client.reads == []
        app.post_message(events.AppFocus())
        await until(pilot, lambda: client.reads == [room])


async def test_nothing_is_read_below_another_screen() -> None:
    client, room = one_room(5)
    app = ChatApp(client)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "message 4." in screen(app))
        await pilot.press("f1")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        client.receive(room, "are you there?")
        await until(pilot, lambda: app.pane.talk.room.unread == 1)
        assert client.reads == []
        await pilot.press("escape")
        await until(pilot, lambda: client.reads == [room])


async def test_more_than_a_screen_while_away_stays_unread() -> None:
    client, room = one_room(30)
    app = ChatApp(client)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "message 29." in screen(app))
        app.post_message(events.AppBlur())
        await until(pilot, lambda: not app.app_focus)
        for n in range(40):
            client.receive(room, f"news {n}.")
        await until(pilot, lambda: len(app.pane.talk.timeline.rows.messages) == 70)
        app.post_message(events.AppFocus())
        await until(pilot, lambda: app.app_focus)
        assert "news 0." in screen(app)
        assert client.reads == []
        await pilot.press("alt+end")
        await until(pilot, lambda: client.reads == [room])


async def test_selecting_text_copies_text_only() -> None:
    client, _ = one_room(3)
    app = ChatApp(client)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "message 2." in screen(app))
        timeline = app.pane.talk.timeline
        timeline.text_select_all()
        await pilot.pause()
        assert app.screen.get_selected_text() == "message 0.\nmessage 1.\nmessage 2."

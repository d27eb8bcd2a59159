"""The chat as a person uses it, on a client in memory."""

import msgspec
import pytest
from textual import events
from textual.widgets import OptionList

from node.client.errors import ClientError
from tests.tui.fake import FakeClient, pair
from tests.tui.looking import screen, until
from tui.app import ChatApp, RoostApp
from tui.demo import DemoApp
from tui.run import run_demo
from tui.screens.help import HelpScreen
from tui.screens.switcher import Switcher
from tui.widgets.composer import NEWLINE_KEYS

STEPS = (("accepted", "at my node  ✓"), ("sent", "✓›"), ("delivered", "✓✓"), ("read", "✓✓●"))


def squeezed(text: str) -> str:
    return " ".join(text.split())


async def test_a_message_goes_through_its_states_in_place() -> None:
    client = FakeClient()
    client.history(client.add_room("bob@b.test"), ["hello"])
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: "hello" in screen(app))
        await pilot.press(*"one", "enter")
        await until(pilot, lambda: "queued" in screen(app))
        line = next(i for i, row in enumerate(screen(app).splitlines()) if "queued" in row)
        key = client.sent[0].key
        for state, shown in STEPS:
            client.step(key, state)  # type: ignore[arg-type]
            await until(pilot, lambda shown=shown: squeezed(shown) in squeezed(screen(app)))
            assert "one" in screen(app).splitlines()[line]
        assert len(app.pane.talk.timeline.rows.messages) == 2
        assert app.pane.talk.composer.text == ""


async def test_a_failed_message_says_why_and_can_be_retried() -> None:
    client = FakeClient()
    room = client.add_room("bob@b.test")
    key = client.history(room, ["lost"], client.address)[0].key
    client.step(key, "failed", "mailbox full")
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: "not sent: mailbox full" in screen(app))
        await pilot.press("up")
        await until(pilot, lambda: "▸ lost" in screen(app))
        await pilot.press("R")
        await until(pilot, lambda: client.retried == [key])
        await until(pilot, lambda: "queued" in screen(app))
        await pilot.press("down")
        await until(pilot, lambda: app.focused is app.pane.talk.composer)


async def test_a_failed_message_can_be_taken_back_to_the_input() -> None:
    client = FakeClient()
    client.history(client.add_room("bob@b.test"), ["hello"])
    key = (await client.send("nobody@b.test", "typo")).key
    client.step(key, "failed", "b.test has no user nobody")
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: len(app.pane.conversations) == 2)
        app.pane.open("nobody@b.test")
        await until(pilot, lambda: "not sent" in screen(app))
        await pilot.press("up", "e")
        await until(pilot, lambda: app.pane.talk.composer.text == "typo" and "not sent" not in screen(app))
        await until(pilot, lambda: [c.title for c in app.pane.conversations] == ["bob@b.test"])
        assert app.focused is app.pane.talk.composer
        assert app.pane.talk.timeline.rows.messages == []


async def test_copy_goes_to_the_clipboard_clean() -> None:
    client = FakeClient()
    client.history(client.add_room("bob@b.test"), ["a\x1b[31mb"])
    app = ChatApp(client)
    async with app.run_test() as pilot:
        await until(pilot, lambda: "ab" in screen(app))
        await pilot.press("up", "y")
        await until(pilot, lambda: app.clipboard == "ab")


async def test_what_could_not_be_sent_is_not_lost() -> None:
    client = FakeClient()
    client.add_room("bob@b.test")
    client.error = ClientError("the disk is full")
    app = ChatApp(client)
    async with app.run_test(size=(100, 24), notifications=True) as pilot:
        await until(pilot, lambda: app.pane.talk.composer.display)
        await pilot.press(*"keep", "enter")
        await until(pilot, lambda: app.pane.talk.composer.text == "keep")
        await until(pilot, lambda: "not sent: the disk is full" in screen(app))


async def test_writing_on_at_once_after_enter_mixes_nothing() -> None:
    client = FakeClient()
    client.add_room("bob@b.test")
    app = ChatApp(client)
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.focused is app.pane.talk.composer)
        for key in ("a", "enter", "b", "enter", "c"):  # as they come over a slow line: all at once
            app.post_message(events.Key(key, key if len(key) == 1 else "\r"))
        await until(pilot, lambda: app.pane.talk.composer.text == "c")
        await until(pilot, lambda: [m.text for m in client.sent] == ["a", "b"])


async def test_letters_go_to_the_input_from_wherever_the_focus_is() -> None:
    client = FakeClient()
    client.history(client.add_room("bob@b.test"), ["hello"])
    app = ChatApp(client)
    async with app.run_test() as pilot:
        await until(pilot, lambda: "hello" in screen(app))
        app.pane.listed.focus()
        await until(pilot, lambda: app.focused is app.pane.listed)
        await pilot.press(*"ok ")
        app.pane.talk.timeline.focus()
        await until(pilot, lambda: app.focused is app.pane.talk.timeline)
        await pilot.press("k", *"hi")
        assert app.pane.talk.composer.text == "ok hi"  # k selects a message
        assert app.focused is app.pane.talk.composer


@pytest.mark.parametrize("key", sorted(NEWLINE_KEYS))
async def test_new_line_keys(key: str) -> None:
    client = FakeClient()
    client.add_room("bob@b.test")
    app = ChatApp(client)
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.focused is app.pane.talk.composer)
        await pilot.press("a", key, "b", "alt+z")
        assert app.pane.talk.composer.text == "a\nb"
        assert client.sent == []
        await pilot.press("enter")
        await until(pilot, lambda: [m.text for m in client.sent] == ["a\nb"])


async def test_a_paste_is_one_post() -> None:
    client = FakeClient()
    client.add_room("bob@b.test")
    app = ChatApp(client)
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.focused is app.pane.talk.composer)
        app.pane.talk.composer.post_message(events.Paste("one\r\ntwo\n\x1b[2Jthree"))
        await until(pilot, lambda: app.pane.talk.composer.text == "one\ntwo\nthree")
        assert client.sent == []
        await pilot.press("enter")
        await until(pilot, lambda: [m.text for m in client.sent] == ["one\ntwo\nthree"])


async def test_a_long_paste_is_not_cut() -> None:
    client = FakeClient()
    client.add_room("bob@b.test")
    app = ChatApp(client)
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.focused is app.pane.talk.composer)
        pasted = "\n".join(str(n) for n in range(20_000))
        app.pane.talk.composer.post_message(events.Paste(pasted))
        await until(pilot, lambda: app.pane.talk.composer.text == pasted)


async def test_foreign_text_is_harmless_on_the_screen() -> None:
    client = FakeClient()
    client.history(client.add_room("bob@b.test"), ["x\x1b[2J\x07[red]y[/red]\u202ez", "end"])
    app = ChatApp(client)
    async with app.run_test() as pilot:
        await until(pilot, lambda: "x[red]y[/red]z" in screen(app))
        assert not {"\x1b", "\x07", "\u202e"} & set(screen(app))


async def test_a_request_is_shown_safely_and_accepted() -> None:
    client = FakeClient()
    room = client.add_room("eve@e.test", request=True, unread=1)
    client.history(room, ["hi \x1b[2Jthere"])
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: "hi there" in screen(app))
        assert "eve@e.test is not known to you" in screen(app)
        assert not app.pane.talk.composer.display
        assert client.reads == []
        await pilot.press("x", "a")
        await until(pilot, lambda: client.accepted == [room] and app.focused is app.pane.talk.composer)
        await until(pilot, lambda: client.reads == [room])
        assert app.pane.talk.composer.text == ""


async def test_a_declined_request_goes_away() -> None:
    client = FakeClient()
    room = client.add_room("eve@e.test", request=True)
    client.history(room, ["hi"])
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: app.focused is app.pane.talk.request_bar)
        await pilot.press("d")
        await until(pilot, lambda: client.declined == [room] and "No conversation yet" in screen(app))


async def test_the_switcher_shows_unread_first_and_finds() -> None:
    client = FakeClient()
    for name in ("bob", "carol", "dave"):
        client.history(client.add_room(f"{name}@b.test"), [f"from {name}"])
    carol = "alice@a.test~carol@b.test"
    client.rooms[carol] = msgspec.structs.replace(client.rooms[carol], unread=2)
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: app.pane.talk.room.id == carol)
        await pilot.press("alt+3")
        await until(pilot, lambda: app.pane.talk.room.id == "alice@a.test~bob@b.test")
        await pilot.press("ctrl+k")
        await until(pilot, lambda: isinstance(app.screen, Switcher))
        assert app.screen.query_one(OptionList).option_count == 3
        await pilot.press(*"dv", "enter")
        await until(pilot, lambda: "from dave" in screen(app) and app.pane.talk.room.id == "alice@a.test~dave@b.test")
        await pilot.press("ctrl+k", "escape")
        await until(pilot, lambda: app.focused is app.pane.talk.composer)


async def test_writing_to_a_new_address_opens_the_room() -> None:
    client = FakeClient()
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: "No conversation yet" in screen(app))
        await pilot.press("ctrl+k", *"eve@e.test")
        await until(pilot, lambda: "Write to eve@e.test" in screen(app))
        await pilot.press("enter")
        await until(pilot, lambda: app.focused is app.pane.talk.composer)
        assert client.sent == []
        await pilot.press(*"hi", "enter")
        await until(pilot, lambda: "queued" in screen(app))
        for state, shown in STEPS:
            client.step(client.sent[0].key, state)  # type: ignore[arg-type]
            await until(pilot, lambda shown=shown: squeezed(shown) in squeezed(screen(app)))
        await until(pilot, lambda: app.pane.talk.room.id == "alice@a.test~eve@e.test")
        client.receive("alice@a.test~eve@e.test", "hi yourself")
        await until(pilot, lambda: "hi yourself" in screen(app))
        assert len(app.pane.talk.timeline.rows.messages) == 2


async def test_a_first_message_that_waits_is_in_the_list_after_a_restart() -> None:
    client = FakeClient()
    client.history(client.add_room("bob@b.test"), ["from bob"])
    client.now_ms += 1000
    key = (await client.send("eve@e.test", "are you there?")).key
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: [c.title for c in app.pane.conversations] == ["eve@e.test", "bob@b.test"])
        await until(pilot, lambda: app.pane.talk.room.title == "eve@e.test" and "queued" in screen(app))
        await pilot.press(*"draft", "alt+down")
        await until(pilot, lambda: app.pane.talk.room.title == "bob@b.test")
        client.step(key, "accepted")
        await until(pilot, lambda: "alice@a.test~eve@e.test" in [c.id for c in app.pane.conversations])
        assert [c.title for c in app.pane.conversations] == ["eve@e.test", "bob@b.test"]
        await pilot.press("alt+up")
        await until(pilot, lambda: app.pane.talk.composer.text == "draft" and "at my node" in screen(app))


async def test_a_waiting_conversation_becomes_real_without_a_jump() -> None:
    client = FakeClient()
    keys = [(await client.send("eve@e.test", f"waits {n}.")).key for n in range(60)]
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: "waits 59." in screen(app))
        await pilot.press(*"draft", "pageup", "pageup")
        await until(pilot, lambda: not app.pane.talk.timeline.at_bottom)
        before = [row[28:90] for row in screen(app).splitlines()[2:18]]
        client.step(keys[0], "accepted")
        await until(pilot, lambda: app.pane.talk.room.id == "alice@a.test~eve@e.test")
        await pilot.pause()
        assert [row[28:90] for row in screen(app).splitlines()[2:18]] == before
        assert [c.id for c in app.pane.conversations] == ["alice@a.test~eve@e.test"]
        assert app.pane.listed.highlighted == 0
        assert app.pane.talk.composer.text == "draft"
        assert len(app.pane.talk.timeline.rows.messages) == 60


async def test_rooms_by_key_and_drafts_stay_with_them() -> None:
    client = FakeClient()
    for name in ("bob", "carol"):
        client.history(client.add_room(f"{name}@b.test"), [f"from {name}"])
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: "from carol" in screen(app))
        await pilot.press(*"half", "alt+down")
        await until(pilot, lambda: app.pane.talk.room.title == "bob@b.test")
        assert app.pane.talk.composer.text == ""
        await pilot.press("alt+up")
        await until(pilot, lambda: app.pane.talk.composer.text == "half")
        client.receive("alice@a.test~bob@b.test", "psst")
        await until(pilot, lambda: any(c.unread for c in app.pane.conversations))
        await pilot.press("alt+a")
        await until(pilot, lambda: app.pane.talk.room.title == "bob@b.test")


async def test_a_narrow_terminal_hides_the_list() -> None:
    client = FakeClient()
    client.history(client.add_room("bob@b.test"), ["hello"])
    app = ChatApp(client)
    async with app.run_test(size=(59, 20)) as pilot:
        await until(pilot, lambda: "hello" in screen(app))
        assert not app.pane.listed.display
        client.receive(client.add_room("carol@b.test"), "psst")
        await until(pilot, lambda: "bob@b.test  +1 unread (Alt+A)" in screen(app))
        await pilot.resize_terminal(90, 20)
        await until(pilot, lambda: app.pane.listed.display)


async def test_offline_it_says_what_will_happen() -> None:
    client = FakeClient()
    client.history(client.add_room("bob@b.test"), ["from the cache"])
    client.lights = msgspec.structs.replace(client.lights, me="down")
    app = ChatApp(client)
    async with app.run_test(size=(100, 20)) as pilot:
        await until(pilot, lambda: "from the cache" in screen(app))
        assert "offline: messages will be sent when the node is back" in screen(app)
        assert "me ↔ my node ✕ down" in screen(app)
        client.light("up", **{"b.test": ("down", 1)})
        await until(pilot, lambda: "b.test is unreachable" in screen(app))


async def test_help_lists_every_state_and_key() -> None:
    app = ChatApp(FakeClient())
    async with app.run_test(size=(100, 60)) as pilot:
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen) and "Alt+1 .. Alt+9" in screen(app))
        assert "at their node" in screen(app)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, HelpScreen))


async def test_two_people_side_by_side() -> None:
    left, right = pair()
    left.other = right.other = None  # the test carries messages by hand
    app = DemoApp(left, right)
    async with app.run_test(size=(110, 24)) as pilot:
        await until(pilot, lambda: app.focused is app.panes[0].talk.composer)
        assert {"alice@a.test", "bob@b.test"} <= set(screen(app).replace("║", " ").split())
        await pilot.press(*"hi", "enter")
        await until(pilot, lambda: left.sent)
        right.receive(right.add_room("alice@a.test"), left.sent[0].text)
        await until(pilot, lambda: screen(app).count("hi") >= 2)
        assert right.reads == []  # nobody is on that side yet
        await pilot.press("tab")
        await until(pilot, lambda: app.focused is app.panes[1].talk.composer)
        assert app.pane is app.panes[1]
        await until(pilot, lambda: right.reads)
        await pilot.press("ctrl+o")
        await until(pilot, lambda: app.focused is app.panes[0].talk.composer)


async def test_two_who_never_spoke_can_start_at_once() -> None:
    left, right = FakeClient("alice@a.test"), FakeClient("bob@b.test")
    app = DemoApp(left, right)
    async with app.run_test(size=(110, 24)) as pilot:
        await until(pilot, lambda: app.focused is app.panes[0].talk.composer)
        await pilot.press("tab", *"draft", "tab", *"hi", "enter")
        await until(pilot, lambda: left.sent and "queued" in screen(app))
        right.receive(right.add_room("alice@a.test"), "hi")
        await until(pilot, lambda: app.panes[1].talk.room.conversation is not None and screen(app).count("hi") >= 2)
        assert app.panes[1].talk.composer.text == "draft"
        assert app.focused is app.panes[0].talk.composer


async def test_clicking_and_enter_open_rooms_of_the_list() -> None:
    client = FakeClient()
    for name in ("bob", "carol"):
        client.history(client.add_room(f"{name}@b.test"), [f"from {name}"])
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: "from carol" in screen(app))
        await pilot.click(app.pane.listed, offset=(5, 2))
        await until(pilot, lambda: app.pane.talk.room.title == "bob@b.test" and app.focused is app.pane.talk.composer)


async def test_the_palette_offers_the_same_actions() -> None:
    client = FakeClient()
    client.add_room("bob@b.test")
    app = ChatApp(client)
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: app.focused is app.pane.talk.composer)
        command = next(c for c in app.get_system_commands(app.screen) if c.title == "Switch (Ctrl+K)")
        await command.callback()
        await until(pilot, lambda: isinstance(app.screen, Switcher))


def test_run_makes_and_closes_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = pair()
    made = iter((left, right))

    async def factory() -> FakeClient:
        return next(made)

    async def leave(app: RoostApp) -> None:
        app._return_code = 0

    monkeypatch.setattr(RoostApp, "run_async", leave)
    assert run_demo(factory, factory) == 0
    assert left.is_closed
    assert right.is_closed

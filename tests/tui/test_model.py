"""Order, states, finding, lights: decisions without a screen."""

import pytest

from node.client.model import STATES, Conversation, Lights, Message
from tui import actions, model
from tui.app import ChatApp
from tui.demo import DemoApp
from tui.pane import ChatPane
from tui.widgets.request import RequestBar
from tui.widgets.timeline import Timeline


def room(name: str, **fields: object) -> Conversation:
    return Conversation(name, f"{name}@x.test", **fields)  # type: ignore[arg-type]


def message(key: str, stamp: int = 0, **fields: object) -> Message:
    made = {"id": key, "sender": "bob@b.test", "text": "hi", "mine": False} | fields
    return Message(key=key, conversation="c", device="d", stamp=stamp, **made)  # type: ignore[arg-type]


def test_requests_then_unread_then_recent() -> None:
    rooms = [
        room("old", last_stamp=1),
        room("new", last_stamp=9),
        room("unread", last_stamp=2, unread=1),
        room("stranger", request=True),
    ]
    assert [c.id for c in model.ordered(rooms)] == ["stranger", "unread", "new", "old"]


def test_next_unread_goes_round() -> None:
    rooms = [room("a", unread=1), room("b"), room("c", unread=2)]
    assert [model.next_unread(rooms, at).id for at in ("a", "b", "c", None)] == ["c", "c", "a", "a"]  # type: ignore[union-attr]
    assert model.next_unread([room("a", unread=1)], "a") is None
    assert model.next_unread([], None) is None


def test_neighbours_stop_at_the_ends() -> None:
    rooms = [room("a"), room("b")]
    steps = [("a", -1), ("a", 1), ("b", 1), (None, 1), (None, -1)]
    assert [model.neighbour(rooms, at, step).id for at, step in steps] == ["a", "b", "b", "a", "b"]  # type: ignore[union-attr]
    assert model.neighbour([], None, 1) is None


def test_the_unread_line_stands_above_the_first_message_past_the_mark() -> None:
    messages = [message("1", 1), message("2", 2, mine=True), message("3", 3), message("4", 4)]
    assert model.first_unread(messages, room("c", unread=2, read_upto=2)) == "3"
    assert model.first_unread(messages, room("c", unread=1)) == "4"
    assert model.first_unread(messages, room("c", unread=3, read_upto=9)) == "1"  # late ones are below the mark
    assert model.first_unread(messages, room("c")) is None
    assert model.first_unread([], room("c", unread=1)) is None
    assert model.first_unread(messages, None) is None


def test_every_state_differs_without_colour() -> None:
    assert set(STATES) | {"failed", "void"} == set(model.MARKS)
    assert len({mark.glyph for mark in model.MARKS.values()}) == len(model.MARKS)
    assert len({mark.words for mark in model.MARKS.values()}) == len(model.MARKS)


def test_notes_say_the_next_step() -> None:
    failed = message("1", mine=True, state="failed", reason="mailbox\x1b[2J full")
    assert model.note_of(failed) == "✗ not sent: mailbox full. Up selects it: R retries, e takes it back."
    assert "no reason given" in model.note_of(message("1", mine=True, state="failed"))
    assert model.note_of(message("1", state="void")).startswith("⊘ void")
    assert model.note_of(message("1", late=True)) == "↷ arrived late"
    assert model.note_of(message("1")) == ""
    assert model.mark_of(message("1", state="read")) is None


@pytest.mark.parametrize(
    ("query", "best"), [("bob", "bob"), ("bxt", "bob"), ("ali", "alice"), ("@al", "alice"), ("x.test", "bob")]
)
def test_fuzzy_finds(query: str, best: str) -> None:
    rooms = [room("bob", last_stamp=2), room("alice", last_stamp=1), room("cabob", last_stamp=3)]
    assert model.choices(query, rooms)[0].id == best


def test_fuzzy_prefers_a_piece_to_scattered_letters() -> None:
    assert (model.fuzzy("ob", "bob@x") or 0) > (model.fuzzy("ob", "o-a-b@x") or 0)
    assert model.fuzzy("bo", "ob") is None
    assert model.fuzzy("", "anything") == 0


def test_nothing_typed_shows_unread_first() -> None:
    rooms = [room("old", last_stamp=9), room("unread", unread=1)]
    assert [choice.id for choice in model.choices("", rooms)] == ["unread", "old"]


def test_an_unknown_address_can_be_written_to() -> None:
    rooms = [room("bob")]
    assert model.choices("eve@y.test", rooms)[-1] == model.Choice("eve@y.test", "Write to eve@y.test")
    assert model.choices("Eve@Y.test", rooms)[-1].id == "eve@y.test"
    for query in ("bob@x.test", "Bob@x.test", "me@x.test", "eve", "eve@y.test\x1b[m", "a@b@c"):
        assert all("@" not in choice.id for choice in model.choices(query, rooms, "me@x.test"))


def test_the_header_tells_what_is_out_of_sight() -> None:
    assert model.header("bob@x.test") == "bob@x.test"
    assert model.header("bob@x.test", below=3) == "bob@x.test  ↓ 3 new"
    assert model.header("bob@x.test", elsewhere=2) == "bob@x.test  +2 unread (Alt+A)"


def test_ages_and_lights() -> None:
    now = 10**12
    assert [model.age(now - s * 1000, now) for s in (1, 5, 90, 7200, 200_000)] == ["", " 5s", " 1m", " 2h", " 2d"]
    assert model.age(0, now) == ""
    assert model.light("me", "down", now - 60_000, now) == "me ✕ down 1m"
    assert model.light("me", "odd\x1b[m", 0, now) == "me ? odd"


def test_the_status_row_says_what_will_happen() -> None:
    assert model.status(Lights("up"), "b.test") == ""
    assert model.status(Lights("down", reason="no\nroute"), None).startswith("offline: messages will be sent when")
    long = "a.test does not answer. Tried QUIC to 127.0.0.1:1 (no answer)"
    assert model.status(Lights("down", reason=long), None).endswith("(a.test does not answer)")
    assert "(no route)" in model.status(Lights("connecting", reason="no\nroute"), None)
    assert "deliver when it is back" in model.status(Lights("up", 0, {"b.test": ("down", 0)}), "b.test")


def test_every_action_has_a_method_and_every_key_one_meaning() -> None:
    homes = {
        "app": [ChatApp, DemoApp], "pane": [ChatPane], "timeline": [Timeline], "request": [RequestBar],
        "demo": [DemoApp],
    }  # fmt: skip
    for action in actions.ACTIONS:
        method = f"action_{action.name.partition('(')[0]}"
        assert all(hasattr(home, method) for home in homes[action.place]), action
        assert action.title
        assert action.help.endswith(".")
    for place in homes:
        keys = [key for a in actions.ACTIONS if a.place == place for key in a.key.split(",")]
        assert len(keys) == len(set(keys))

"""Everything a person can do, in one table. Keys, footer, palette and the F1 page are read from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from textual.binding import Binding

Place = Literal["app", "pane", "timeline", "request", "demo"]


@dataclass(frozen=True)
class Action:
    """One thing to do."""

    name: str  # the method is `action_<name>` of the place
    key: str  # as Textual spells it; commas between alternatives
    title: str  # for the footer and the palette
    help: str  # one sentence for F1
    place: Place
    footer: bool = False
    shown_key: str = ""  # how the footer spells it
    palette: bool = True


ACTIONS: tuple[Action, ...] = (
    Action("switch", "ctrl+k", "Switch", "Find a conversation by part of its name, or write to a new address.",
           "pane", True, "Ctrl+K"),
    Action("next_unread", "alt+a", "Next unread", "Open the next conversation with something new.",
           "pane", True, "Alt+A"),
    Action("room(-1)", "alt+up", "Previous room", "Open the conversation above.", "pane", False, "Alt+Up"),
    Action("room(1)", "alt+down", "Next room", "Open the conversation below.", "pane", False, "Alt+Down"),
    *(Action(f"room_number({n})", f"alt+{n}", f"Room {n}", f"Open conversation {n} of the list.", "pane",
             False, f"Alt+{n}", palette=False) for n in range(1, 10)),
    Action("unread_line", "alt+u", "Unread line", "Go to the first message you have not read.",
           "pane", True, "Alt+U"),
    Action("page(-1)", "pageup", "Page up", "Older messages.", "pane", False, "PgUp", palette=False),
    Action("page(1)", "pagedown", "Page down", "Newer messages.", "pane", False, "PgDn", palette=False),
    Action("oldest", "alt+home", "Oldest", "Go to the oldest message loaded.", "pane", False, "Alt+Home"),
    Action("newest", "alt+end", "Newest", "Go to the newest message.", "pane", False, "Alt+End"),
    Action("select(-1)", "up,k", "Select above", "Up in an empty input selects a message; again for older ones.",
           "timeline", False, "Up", palette=False),
    Action("select(1)", "down,j", "Select below", "The next newer message; past the newest, back to writing.",
           "timeline", False, "Down", palette=False),
    Action("copy", "y", "Copy", "Copy the selected message through the terminal (OSC 52).",
           "timeline", True, "y", palette=False),
    Action("reply", "r", "Reply", "Answer the selected message.", "timeline", True, "r", palette=False),
    Action("edit", "e", "Edit", "Change your selected message; one that did not leave yet goes back into the input.",
           "timeline", True, "e", palette=False),
    Action("delete", "d", "Delete", "Take your selected message back for everybody; it asks first.",
           "timeline", True, "d", palette=False),
    Action("react", "plus", "React", "Put an emoji on the selected message; the same one again takes it back.",
           "timeline", True, "+", palette=False),
    Action("pin", "p", "Pin", "Pin the selected message for everybody, or unpin it.",
           "timeline", True, "p", palette=False),
    Action("retry", "R", "Retry", "Send the selected message again after it failed.",
           "timeline", True, "R", palette=False),
    Action("leave", "escape", "Back", "Back to writing.", "timeline", True, "Esc", palette=False),
    Action("accept", "a", "Accept", "Accept a request: the person can write to you and sees receipts.",
           "request", True, "a", palette=False),
    Action("decline", "d", "Decline", "Decline a request: nothing is told to the person.",
           "request", True, "d", palette=False),
    Action("other_pane", "ctrl+o,tab", "Other person", "Move to the other person's side.",
           "demo", True, "Tab"),
    Action("help", "f1", "Help", "Keys, and the signs behind your messages.", "app", True, "F1"),
    Action("quit", "ctrl+q", "Quit", "Leave; queued messages stay queued and are sent later.",
           "app", True, "Ctrl+Q"),
)  # fmt: skip

# Keys the composer handles itself, for the help page only.
TYPING: tuple[tuple[str, str], ...] = (
    ("Enter", "Send."),
    ("Ctrl+J", "A new line, in every terminal; also Shift+Enter and Alt+Enter where they arrive."),
    ("Esc", "Leave an answer, an edit or a reaction that was begun."),
    ("F7, Ctrl+Z", "Select all you wrote; undo."),
    ("Ctrl+P", "All commands by name."),
)

_OVER_INPUT: frozenset[Place] = frozenset({"app", "pane", "demo"})


def bindings(place: Place) -> list[Binding]:
    """The keys of one place. Those of a pane win over the text input below it; letters never do."""
    return [
        Binding(
            action.key,
            action.name,
            action.title,
            show=action.footer,
            key_display=action.shown_key or None,
            priority=place in _OVER_INPUT,
        )
        for action in ACTIONS
        if action.place == place
    ]


def palette(*places: Place) -> Iterator[Action]:
    """What the palette offers."""
    return (action for action in ACTIONS if action.palette and action.place in places)


def help_rows(*places: Place) -> list[tuple[str, str]]:
    """Key and sentence, for F1; the nine room numbers are one row."""
    rows: list[tuple[str, str]] = []
    for action in ACTIONS:
        if action.place not in places or (action.name.startswith("room_number") and action.key != "alt+1"):
            continue
        if action.key == "alt+1":
            rows.append(("Alt+1 .. Alt+9", "Open a conversation by its number in the list."))
        else:
            rows.append((action.shown_key or action.key, action.help))
    return rows

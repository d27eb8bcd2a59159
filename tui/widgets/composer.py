"""The input: several lines, Enter sends, a paste stays one post."""

from dataclasses import dataclass

from textual import events
from textual.message import Message as Event
from textual.widgets import TextArea

from tui import text
from tui.room import Room

# The last two are how Textual spells what xterm and tmux with "extended keys" send for the first two.
NEWLINE_KEYS = frozenset({"shift+enter", "alt+enter", "ctrl+j", "shift+\r", "alt+\r"})


class Composer(TextArea):
    """Where a message is written."""

    @dataclass
    class Sent(Event):
        """The person pressed Enter on something worth sending."""

        text: str
        room: Room  # where it was written; the person may be elsewhere before this is handled

    class Typed(Event):
        """A key was pressed in it."""

    class Cancelled(Event):
        """Escape: what was begun besides writing is not wanted."""

    class SelectWanted(Event):
        """Up in an empty input: the person wants to act on a message."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, placeholder="Write a message", highlight_cursor_line=False, compact=True)
        self.room = Room()

    def write_in(self, room: Room, draft: str) -> None:
        """Another room, with what was left unsent there."""
        self.room = room
        self.load_text(draft)
        self.move_cursor(self.document.end)

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            if written := self.text.rstrip():
                self.clear()  # here and not where it is sent: the next key may be waiting already
                self.post_message(self.Sent(written, self.room))
        elif event.key == "escape":
            event.stop()
            event.prevent_default()
            self.post_message(self.Cancelled())
        elif event.key in NEWLINE_KEYS:
            event.stop()
            event.prevent_default()
            self.insert("\n")
        elif event.key == "up" and not self.text:
            event.stop()
            event.prevent_default()
            self.post_message(self.SelectWanted())
        elif event.key.startswith("alt+"):
            event.prevent_default()  # a key we have no action for must not type its letter
        else:
            await super()._on_key(event)
            self.post_message(self.Typed())

    async def _on_paste(self, event: events.Paste) -> None:
        """Pasted text comes from outside too; its line ends are lines of this post and send nothing."""
        event.stop()
        event.prevent_default()
        self.insert(text.cleaned(event.text))

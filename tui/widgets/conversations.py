"""The list of conversations on the left."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from textual.content import Content
from textual.message import Message as Event
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from node.client.model import Conversation
from tui import model, text

LIST_CELLS = 28
ROOM_CELLS = LIST_CELLS - 4  # border, padding


class ConversationList(OptionList):
    """Every room with its number, its unread count and its last line."""

    @dataclass
    class Opened(Event):
        conversation: str

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, markup=False)
        self._shown: tuple[object, ...] = ()

    def show(self, conversations: Sequence[Conversation], current: str | None) -> None:
        """Draw the list; nothing happens if nothing changed, so a burst costs one redraw."""
        shown = (tuple(conversations), current)
        if shown == self._shown:
            return
        self._shown = shown
        self.set_options(
            Option(prompt(number, c, c.id == current), id=c.id) for number, c in enumerate(conversations, 1)
        )
        at = next((i for i, c in enumerate(conversations) if c.id == current), None)
        self.highlighted = at

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option.id is not None:
            self.post_message(self.Opened(event.option.id))


def prompt(number: int, conversation: Conversation, current: bool) -> Content:
    """Two lines: number, name and badge; then the last text. Requests and unread say so in words and signs."""
    badge = model.badge(conversation)
    key = "▸" if current else str(number) if number < 10 else " "
    name = text.name(conversation.title)
    room = ROOM_CELLS - 2 - (cell_len(badge) + 1 if badge else 0)
    if cell_len(name) > room:
        name = set_cell_size(name, room - 1) + "…"
    last = model.preview(conversation)
    if cell_len(last) > ROOM_CELLS - 2:
        last = set_cell_size(last, ROOM_CELLS - 3) + "…"
    loud = "bold" if badge or current else ""
    return Content.assemble(
        (f"{key} ", "dim"), (set_cell_size(name, room), loud), (f" {badge}" if badge else "", "bold"), "\n",
        (f"  {last}", "dim"),
    )  # fmt: skip

"""The list of conversations on the left."""

from collections.abc import Mapping, Sequence
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

    def show(self, conversations: Sequence[Conversation], current: str | None, present: Mapping[str, str]) -> None:
        """Draw the list; nothing happens if nothing changed, so a burst costs one redraw."""
        dots = [model.dot(present.get(c.title)) for c in conversations]
        shown = (tuple(conversations), current, tuple(dots))
        if shown == self._shown:
            return
        self._shown = shown
        self.set_options(
            Option(prompt(number, c, c.id == current, dot), id=c.id)
            for number, (c, dot) in enumerate(zip(conversations, dots, strict=True), 1)
        )
        at = next((i for i, c in enumerate(conversations) if c.id == current), None)
        self.highlighted = at

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option.id is not None:
            self.post_message(self.Opened(event.option.id))


def prompt(number: int, conversation: Conversation, current: bool, dot: str = "") -> Content:
    """Two lines: number, name, presence and badge; then the last text. Signs and words say each."""
    badge = model.badge(conversation)
    key = "▸" if current else str(number) if number < 10 else " "
    name = text.name(conversation.title)
    room = ROOM_CELLS - 2 - sum(cell_len(sign) + 1 for sign in (badge, dot) if sign)
    if cell_len(name) > room:
        name = set_cell_size(name, room - 1) + "…"
    last = model.preview(conversation)
    if cell_len(last) > ROOM_CELLS - 2:
        last = set_cell_size(last, ROOM_CELLS - 3) + "…"
    loud = "bold" if badge or current else ""
    return Content.assemble(
        (f"{key} ", "dim"), (set_cell_size(name, room), loud), f" {dot}" if dot else "",
        (f" {badge}" if badge else "", "bold"), "\n",
        (f"  {last}", "dim"),
    )  # fmt: skip

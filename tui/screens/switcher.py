"""Ctrl+K: find a conversation by part of its name, or write to a new address."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from node.client.model import Conversation
from tui.model import Choice, choices

CHOICES_MAX = 50


class Switcher(ModalScreen[Choice | None]):
    """Nothing typed shows what is unread first; Enter takes the marked line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+k", "dismiss(None)", "Close", priority=True, key_display="Esc"),
        Binding("up,ctrl+p", "move(-1)", "Up", show=False, priority=True),
        Binding("down,ctrl+n", "move(1)", "Down", show=False, priority=True),
    ]

    def __init__(self, conversations: Sequence[Conversation], mine: str) -> None:
        super().__init__()
        self._conversations = conversations
        self._mine = mine
        self.found: list[Choice] = []
        self._listed = OptionList(id="found", markup=False)
        self._listed.can_focus = False
        self._show("")

    def compose(self) -> ComposeResult:
        with Vertical(id="switcher"):
            yield Input(placeholder="Part of a name, or a whole address", id="query")
            yield self._listed

    def on_input_changed(self, event: Input.Changed) -> None:
        self._show(event.value)

    def _show(self, query: str) -> None:
        self.found = choices(query, self._conversations, self._mine)[:CHOICES_MAX]
        self._listed.set_options(Option(_prompt(choice)) for choice in self.found)
        self._listed.highlighted = 0 if self.found else None

    def action_move(self, step: int) -> None:
        if self.found:
            self._listed.highlighted = ((self._listed.highlighted or 0) + step) % len(self.found)

    def on_input_submitted(self) -> None:
        at = self._listed.highlighted
        if at is not None:
            self.dismiss(self.found[at])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.found[event.option_index])


def _prompt(choice: Choice) -> Content:
    badge = "  request" if choice.request else f"  ({choice.unread})" if choice.unread else ""
    return Content.assemble(choice.title, (badge, "bold"))

"""The F1 page: every key, and what the signs behind messages mean."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui import actions, model


class HelpScreen(ModalScreen[None]):
    """Made from the action table, so it cannot be out of date."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q", "dismiss", "Close", key_display="Esc")]

    def __init__(self, *places: actions.Place) -> None:
        super().__init__()
        self._places = places

    def compose(self) -> ComposeResult:
        rows = [*actions.TYPING, *actions.help_rows(*self._places)]
        with VerticalScroll(id="help"):
            yield Static("Keys (Esc closes this page)\n", markup=False)
            yield from (_row(key, sentence) for key, sentence in rows)
            yield Static("\nSigns behind your messages\n", markup=False)
            yield from (_row(mark.glyph, mark.words) for mark in model.MARKS.values())


def _row(key: str, sentence: str) -> Horizontal:
    return Horizontal(Static(key, markup=False, classes="key"), Static(sentence, markup=False), classes="row")

"""The terminal client as an app: one person, the whole screen."""

from collections.abc import Iterable
from typing import ClassVar

from textual.app import App, ComposeResult, SystemCommand
from textual.binding import BindingType
from textual.screen import Screen
from textual.widgets import Footer

from tui import actions
from tui.bridge import ChatClient
from tui.pane import ChatPane
from tui.screens.help import HelpScreen


class ChatScreen(Screen[None]):
    """The screen below all others."""

    def on_screen_resume(self) -> None:
        for pane in self.query(ChatPane):  # what lay over it is gone: the person looks again
            pane.talk.attention_changed()


class RoostApp(App[int]):
    """What the chat and the demo share: style, help, palette."""

    CSS_PATH = "roost.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("app")]
    PLACES: ClassVar[tuple[actions.Place, ...]] = ("app", "pane", "timeline", "request")

    def get_default_screen(self) -> ChatScreen:
        return ChatScreen()

    @property
    def pane(self) -> ChatPane:
        """Where the person is, and commands of the palette apply: one pane is active."""
        return next(pane for pane in self.screen_stack[0].query(ChatPane) if pane.active)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        for action in actions.palette("pane", "app"):
            yield SystemCommand(f"{action.title} ({action.shown_key})", action.help, self._runs(action))
        yield SystemCommand("Theme", "Change the colours.", self.action_change_theme)

    def _runs(self, action: actions.Action) -> "_Run":
        return _Run(self, action)

    def action_help(self) -> None:
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(*self.PLACES))


class _Run:
    """One command of the palette."""

    def __init__(self, app: RoostApp, action: actions.Action) -> None:
        self._app = app
        self._action = action

    async def __call__(self) -> None:
        place = self._app.pane if self._action.place == "pane" else self._app
        await self._app.run_action(self._action.name, place)


class ChatApp(RoostApp):
    """One person's chat."""

    TITLE = "Roost"

    def __init__(self, client: ChatClient) -> None:
        super().__init__()
        self._client = client

    def compose(self) -> ComposeResult:
        yield ChatPane(self._client)
        yield Footer(show_command_palette=False)

"""Two people side by side in one terminal: type on the left, see it arrive on the right."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.widgets import Footer

from tui import actions, text
from tui.app import RoostApp
from tui.bridge import ChatClient
from tui.pane import ChatPane


class DemoApp(RoostApp):
    """Two panes; the person is on one side, and only that side marks things as read."""

    TITLE = "Roost demo"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("demo")]
    PLACES: ClassVar[tuple[actions.Place, ...]] = ("app", "demo", "pane", "timeline", "request")

    def __init__(self, left: ChatClient, right: ChatClient) -> None:
        super().__init__()
        self._clients = (left, right)

    def compose(self) -> ComposeResult:
        with Horizontal(id="sides"):
            for side, client, other in zip(("left", "right"), self._clients, reversed(self._clients), strict=True):
                pane = ChatPane(client, to=other.address, id=side)
                pane.border_title = text.name(client.address).replace("[", "(")
                pane.set_reactive(ChatPane.active, side == "left")
                yield pane
        yield Footer(show_command_palette=False)

    @property
    def panes(self) -> tuple[ChatPane, ChatPane]:
        base = self.screen_stack[0]
        return base.query_one("#left", ChatPane), base.query_one("#right", ChatPane)

    def on_chat_pane_entered(self, event: ChatPane.Entered) -> None:
        for pane in self.panes:
            pane.active = pane is event.pane

    def action_other_pane(self) -> None:
        left, right = self.panes
        goes_to = right if left.active else left
        for pane in self.panes:
            pane.active = pane is goes_to
        goes_to.talk.focus_input()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """In the switcher or the help, Tab keeps its usual meaning."""
        return len(self.screen_stack) == 1 if action == "other_pane" else True

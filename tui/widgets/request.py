"""The bar that asks whether a stranger may talk to you."""

from typing import ClassVar

from textual.app import RenderResult
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message as Event
from textual.reactive import reactive
from textual.widget import Widget

from tui import actions, text


class RequestBar(Widget, can_focus=True):
    """Takes the place of the composer: until accepted there is nothing to write and no receipt is sent."""

    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("request")]

    who: reactive[str] = reactive("", layout=True)

    class Accepted(Event):
        """The person wants to talk."""

    class Declined(Event):
        """The person does not."""

    def render(self) -> RenderResult:
        return Content(
            f"{text.name(self.who)} is not known to you and wants to talk. They do not learn that you read this.\n"
            "a  accept      d  decline      (neither: just leave)"
        )

    def action_accept(self) -> None:
        self.post_message(self.Accepted())

    def action_decline(self) -> None:
        self.post_message(self.Declined())

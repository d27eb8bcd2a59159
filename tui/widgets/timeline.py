"""The messages of one conversation, drawn line by line.

No widget per message: a line is found in `Rows`, its block is drawn once and kept in a bounded cache. The place
you read is a message and a line in it, never a number of lines from the top, so nothing that arrives, loads or
changes its height moves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual import events
from textual.binding import BindingType
from textual.geometry import Size
from textual.message import Message as Event
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from node.client.model import Message
from tui import actions
from tui.rows import Rows
from tui.widgets.blocks import COMPONENTS, Blocks

Act = Literal["reply", "edit", "delete", "react", "pin"]
NEAR_TOP_PAGES = 2  # older messages are asked for this many screens before the top is reached


class Timeline(ScrollView, can_focus=True):
    """A scrolling conversation; it sticks to the bottom only while it is there."""

    FOCUS_ON_CLICK = False  # a click scrolls or selects text; typing goes on where it was
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("timeline")]
    COMPONENT_CLASSES: ClassVar[set[str]] = {f"timeline--{name}" for name in COMPONENTS}

    selected: reactive[str | None] = reactive(None)  # the key of the message that actions apply to

    class BottomReached(Event):
        """The newest message came on screen by scrolling."""

    class OlderWanted(Event):
        """The top is near; messages before the oldest one are wanted."""

    class Left(Event):
        """The person is done selecting."""

    @dataclass
    class CopyWanted(Event):
        message: Message

    @dataclass
    class RetryWanted(Event):
        message: Message

    @dataclass
    class ActWanted(Event):
        """Something is to be done to a message."""

        what: Act
        message: Message

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.rows = Rows()
        self.blocks = Blocks(self)
        self.at_bottom = True
        self._placing = False
        self._is_placed = True  # false between showing a conversation and knowing how large the screen is

    @property
    def sees_newest(self) -> bool:
        """Whether the newest message is really on the screen."""
        return self.at_bottom and self._is_placed and bool(self.view.height)

    @property
    def view(self) -> Size:
        """What messages have to themselves: without padding and scrollbar."""
        return self.scrollable_content_region.size

    # -- contents, from above

    def show(self, messages: Sequence[Message], unread: str | None) -> None:
        """Another conversation. It opens at the unread line if that is further up than one screen."""
        self.rows.replace(messages, unread)
        self.blocks.clear()
        self.selected = None
        self.screen.clear_selection()
        self.at_bottom = True
        self._is_placed = bool(self.view.width)
        if self._is_placed:
            self._open()

    def _open(self) -> None:
        self._is_placed = True
        self._place(None)
        if self.rows.unread is not None:
            self.to_unread(only_up=True)

    def prepend(self, older: Sequence[Message]) -> int:
        place = self._here()
        count = self.rows.prepend(older)
        self.blocks.clear()  # the old first message may have lost its day line
        self._place((place[0] + count, place[1]) if place else None)
        return count

    def put(self, message: Message) -> None:
        """Add or update one message."""
        place = self._here()
        before = len(self.rows.messages)
        self.blocks.drop(self.rows.last_own)  # its words go when a newer one follows
        at = self.rows.put(message)
        if len(self.rows.messages) > before and at < before:
            self.blocks.clear()
            if place and at <= place[0]:
                place = (place[0] + 1, place[1])
        else:
            self.blocks.drop(message.key)
        self._place(place)

    def drop(self, key: str) -> None:
        """Take a message away."""
        place, at = self._here(), self.rows.index_of(key)
        if at is None:
            return
        left = [m for m in self.rows.messages if m.key != key]
        self.rows.replace(left, self.rows.unread)
        self.blocks.clear()
        if place is not None:
            place = (min(place[0] - (at < place[0]), len(left) - 1), place[1])
        self._place(place if left else None)

    def mark_unread(self, key: str | None) -> None:
        place = self._here()
        for changed in (self.rows.unread, key):
            self.blocks.drop(changed)
        self.rows.mark_unread(key)
        self._place(place)

    def message_at(self, key: str | None) -> Message | None:
        at = self.rows.index_of(key)
        return None if at is None else self.rows.messages[at]

    # -- the place you read

    def _here(self) -> tuple[int, int] | None:
        """The first block on screen and the line in it; none means the bottom."""
        if self.at_bottom or not self.rows.messages:
            return None
        return self.rows.locate(round(self.scroll_y))

    def _place(self, place: tuple[int, int] | None) -> None:
        """Measure what is around a place and put it back on the first line."""
        rows, height = self.rows, max(1, self.view.height)
        if self._placing or not self.view.width:
            return
        self._placing = True
        try:
            if rows.messages:
                at = len(rows.messages) if place is None else place[0]
                rows.measure_around(at, above=height * 2, below=height * 3)
            self.virtual_size = Size(self.view.width, rows.total)
            if place is None:
                self.scroll_to(y=self.max_scroll_y, animate=False)
            else:
                line = min(place[1], rows.height(place[0]) - 1)
                self.scroll_to(y=rows.top(place[0]) + line, animate=False)
            self.at_bottom = round(self.scroll_y) >= self.max_scroll_y
        finally:
            self._placing = False
        self.refresh()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self._placing or round(old_value) == round(new_value):
            return
        was_bottom = self.at_bottom
        self.at_bottom = round(new_value) >= self.max_scroll_y
        if not self.at_bottom:
            self._place(self._here())
        if self.at_bottom and not was_bottom:
            self.post_message(self.BottomReached())
        if new_value < self.view.height * NEAR_TOP_PAGES and new_value < old_value:
            self.post_message(self.OlderWanted())

    def on_resize(self, _event: events.Resize) -> None:
        place = self._here()
        if self.view.width != self.rows.width:
            self.rows.resize(self.view.width)
            self.blocks.clear()
        if self._is_placed:
            self._place(place)
        elif self.view.width:
            self._open()
            if self.at_bottom:
                self.post_message(self.BottomReached())

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self.blocks.clear()

    # -- moving

    def page(self, pages: int) -> None:
        step = max(1, self.view.height - 2)  # two lines stay, so the eye finds its place
        self.scroll_to(y=self.scroll_y + pages * step, animate=False)
        if self.scroll_y == 0:
            self.post_message(self.OlderWanted())

    def to_end(self) -> None:
        was_bottom = self.at_bottom
        self._place(None)
        if not was_bottom:
            self.post_message(self.BottomReached())

    def to_start(self) -> None:
        self.at_bottom = False
        if self.rows.messages:
            self._place((0, 0))
            self.post_message(self.OlderWanted())

    def to_unread(self, only_up: bool = False) -> bool:
        """Put the unread line near the top of the screen; false if there is none."""
        at = self.rows.index_of(self.rows.unread)
        if at is None or not self.view.height:
            return at is not None
        self.rows.measure_around(at, above=self.view.height, below=self.view.height)
        if only_up and self.rows.top(at) >= round(self.scroll_y):
            return True
        self.at_bottom = False
        self._place((at, 0))
        return True

    def hold_unread(self) -> None:
        """Stop following the bottom once the unread line would leave the screen."""
        at = self.rows.index_of(self.rows.unread)
        if at is not None and self.at_bottom and self.rows.top(at) < round(self.scroll_y):
            self.at_bottom = False
            self._place((at, 0))

    def select(self, step: int) -> bool:
        """Select the message above or below; false past the newest one."""
        messages = self.rows.messages
        at = self.rows.index_of(self.selected)
        at = len(messages) - 1 if at is None else max(0, at + step)
        if not 0 <= at < len(messages):
            return False
        self.selected = messages[at].key
        top, bottom = self.rows.top(at), self.rows.top(at) + self.rows.height(at)
        if top < self.scroll_y:
            self.scroll_to(y=top, animate=False)
        elif bottom > self.scroll_y + self.view.height:
            self.scroll_to(y=bottom - self.view.height, animate=False)
        return True

    def watch_selected(self) -> None:
        self.refresh()

    # -- keys while a message is selected

    def action_select(self, step: int) -> None:
        if not self.select(step):
            self.action_leave()

    def action_leave(self) -> None:
        self.selected = None
        self.post_message(self.Left())

    def action_copy(self) -> None:
        if (message := self.message_at(self.selected)) is not None:
            self.post_message(self.CopyWanted(message))

    def action_retry(self) -> None:
        if (message := self.message_at(self.selected)) is not None:
            self.post_message(self.RetryWanted(message))

    def _act(self, what: Act) -> None:
        if (message := self.message_at(self.selected)) is not None:
            self.post_message(self.ActWanted(what, message))

    def action_reply(self) -> None:
        self._act("reply")

    def action_edit(self) -> None:
        self._act("edit")

    def action_delete(self) -> None:
        self._act("delete")

    def action_react(self) -> None:
        self._act("react")

    def action_pin(self) -> None:
        self._act("pin")

    # -- drawing

    def render_line(self, y: int) -> Strip:
        width, total = self.view.width, self.rows.total
        row = self.scroll_offset.y + y - max(0, self.view.height - total)  # a short talk sits at the bottom
        if not 0 <= row < total:
            return Strip.blank(width, self.rich_style)
        at, line = self.rows.locate(row)
        return self.blocks.line(at, line, row)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The text under a mouse selection, without gutter and states."""
        return self.blocks.selected_text(selection), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

"""The open conversation: what is said in it, and what the person does there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message as Event
from textual.reactive import reactive
from textual.timer import Timer
from textual.widgets import Static

from node.client.model import ACTS, Change, Conversation, Message
from tui import model, text
from tui.bridge import PAGE_MESSAGES, Bridge
from tui.room import Room
from tui.screens.confirm import Confirm
from tui.widgets.composer import Composer
from tui.widgets.request import RequestBar
from tui.widgets.timeline import Act, Timeline

ABOUT = {"reply": "answering:", "edit": "editing:", "react": "emoji (again: take back) on:"}


@dataclass(frozen=True)
class About:
    """What is written next is an answer to a message, its new text, or an emoji on it."""

    what: Act
    message: Message
    draft: str | None = None  # what was in the input before


TYPING_RESTS_S = 5.0  # after the last key


class Talk(Vertical):
    """Messages, and below them the input or the question whether to answer a stranger."""

    active: reactive[bool] = reactive(True)  # whether the person is on this side
    status: reactive[str] = reactive("", init=False)  # what will happen to a message typed now; empty while all is well

    typists: reactive[str] = reactive("", init=False)  # who types here now

    class Moved(Event):
        """Something was done here that the list of conversations tells too."""

    class Declined(Event):
        """The person does not want to hear of this one."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self.bridge = bridge
        self.room = Room()
        self.timeline = Timeline()
        self.composer = Composer()
        self.request_bar = RequestBar()
        self._title = Static("", markup=False, classes="room")
        self._status = Static("", markup=False, classes="status")
        self._typing = Static("", markup=False, classes="typing")
        self._begun = Static("", markup=False, classes="about")
        self._about: About | None = None
        self._drafts: dict[str, str] = {}
        self._types: Timer | None = None  # the person wrote just now, and the others were told; ends a while after

    def compose(self) -> ComposeResult:
        yield from (self._title, self.timeline, self._typing, self._status, self._begun)
        yield from (self.request_bar, self.composer)

    def on_mount(self) -> None:
        self.watch(self.app, "app_focus", self.attention_changed, init=False)

    # -- one room for another

    def enter(self, room: Room) -> None:
        """What was being written stays with its room."""
        self._stop_typing()
        self._end_about()
        self._drafts[self.room.title] = self.composer.text  # by title: the id may change while it waits
        self.room = room
        self.timeline.show([], None)
        self.composer.write_in(room, self._drafts.pop(room.title, ""))

    async def fill(self) -> None:
        """Show what the cache has of the room."""
        room = self.room
        messages = await self.bridge.messages(room.id or "") or []
        if room is not self.room:  # another one was opened meanwhile
            return
        room.has_older = len(messages) >= PAGE_MESSAGES
        self.timeline.show(messages, model.first_unread(messages, room.conversation))
        room.is_loading = False
        for message in room.waiting:
            self._put(message)
        room.waiting.clear()
        self.read_if_seen()

    def draw(self, conversations: Sequence[Conversation], is_alone: bool) -> None:
        """Everything around the messages; alone, without the list, the header tells of the other rooms."""
        room = self.room
        title = text.name(room.title) if room.title else "No conversation yet. Ctrl+K and an address starts one."
        below = 0 if self.timeline.at_bottom else room.unread
        elsewhere = sum(1 for c in conversations if (c.unread or c.request) and c.id != room.id)
        self._title.update(model.header(title, below, elsewhere if is_alone else 0))
        self.request_bar.who = room.title
        had_bar = self.request_bar.display
        self.request_bar.display = room.is_request
        self.composer.display = not room.is_request and room.id is not None
        if had_bar != self.request_bar.display:
            self.focus_input()

    def watch_status(self, told: str) -> None:
        self._status.update(told)
        self._status.display = bool(told)

    def watch_typists(self, told: str) -> None:
        self._typing.update(told)
        self._typing.display = bool(told)

    def focus_input(self) -> None:
        """Where typing belongs now; a side that is not active does not take the focus."""
        if self.active:
            for widget in (self.request_bar, self.composer, self.timeline):
                if widget.display:
                    widget.focus(scroll_visible=False)
                    return

    def write(self, character: str) -> None:
        """A letter that was typed elsewhere."""
        self.timeline.selected = None
        self.composer.focus(scroll_visible=False)
        self.composer.insert(character)

    # -- news

    def take(self, change: Change) -> None:
        message = change.message
        if message is not None and message.kind in ACTS:
            if message.state == "failed":
                self.app.notify(f"the {message.kind} was refused: {text.line(message.reason, 200)}", markup=False)
            return
        if change.kind == "update" and message is not None and self.timeline.message_at(message.key) is None:
            return  # it is above what was loaded, and comes as it is then
        if message is not None and self._is_here(message):
            if self.room.is_loading:
                self.room.waiting.append(message)
            else:
                self._put(message)
        if change.kind == "conversation" and change.conversation is None:
            self.run_worker(self._reload(), group="reload", exclusive=True)

    async def recognise(self, conversations: Sequence[Conversation]) -> None:
        """The room as the list has it now."""
        room, known = self.room, self.room.find(conversations)
        if known is not None:
            has_begun = known.id != room.id
            room.id, room.conversation = known.id, known
            if has_begun:
                await self._reload()  # the other person may have begun it

    def _is_here(self, message: Message) -> bool:
        return self.room.holds(message.conversation) or self.timeline.message_at(message.key) is not None

    def _put(self, message: Message) -> None:
        timeline = self.timeline
        is_news = timeline.message_at(message.key) is None and not message.mine
        is_seen = self._is_watched and timeline.sees_newest
        timeline.put(message)
        if not is_news or is_seen or self.room.is_request:
            return
        if timeline.rows.unread is None or self.room.line_is_done:
            self.room.line_is_done = False
            timeline.mark_unread(message.key)
        if not self._is_watched:
            timeline.hold_unread()  # what comes while nobody looks must not push the first of it off the screen

    async def _reload(self) -> None:
        """The client had too much news to tell one by one."""
        room = self.room
        if room.id is not None and not room.is_loading:
            for message in await self.bridge.messages(room.id) or []:
                if room is self.room:
                    self._put(message)

    def on_timeline_older_wanted(self) -> None:
        if self.room.has_older and not self.room.is_loading:
            self.run_worker(self._load_older(self.room), group="older")

    async def _load_older(self, room: Room) -> None:
        messages = self.timeline.rows.messages
        if room.is_loading_older or room.id is None or not messages:
            return
        room.is_loading_older = True
        # One more millisecond: several messages may share the stamp of the oldest; known ones are dropped by key.
        older = await self.bridge.messages(room.id, messages[0].stamp + 1)
        room.is_loading_older = False
        if room is self.room and older is not None:
            room.has_older = self.timeline.prepend(older) > 0

    # -- being read

    @property
    def _is_watched(self) -> bool:
        """Whether a person can see this: a focused terminal, this side, nothing over it."""
        return self.app.app_focus and self.active and self.app.screen is self.screen

    def read_if_seen(self) -> None:
        """Tell that it was read, only if it was on screen in front of a person."""
        room = self.room
        if not (self._is_watched and self.timeline.sees_newest) or room.id is None or room.is_loading:
            return
        if (mark := room.unread_mark()) is not None:
            room.asked_read = mark
            self.run_worker(self.bridge.read(room.id), group="read")

    def attention_changed(self) -> None:
        if self._is_watched:
            self.read_if_seen()
        elif not self.room.unread:
            self.room.line_is_done = True

    def watch_active(self) -> None:
        if self.is_mounted:
            self.attention_changed()

    def on_timeline_bottom_reached(self) -> None:
        self.read_if_seen()

    # -- writing

    def on_composer_typed(self) -> None:
        """The others see that something is being written, until it rests or is gone."""
        if not self.composer.text or self.room.conversation is None:
            return
        if self._types is None:
            self._tell_typing(self.room, True)
            self._types = self.set_timer(TYPING_RESTS_S, self._stop_typing)
        else:
            self._types.reset()

    def on_text_area_changed(self) -> None:
        if not self.composer.text:
            self._stop_typing()

    def _stop_typing(self) -> None:
        if self._types is not None:
            self._types.stop()
            self._types = None
            self._tell_typing(self.room, False)

    def _tell_typing(self, room: Room, on: bool) -> None:
        if room.id is not None and self.bridge.lights.me == "up":
            self.run_worker(self.bridge.typing(room.id, on), group="typing")

    def on_composer_sent(self, event: Composer.Sent) -> None:
        self.run_worker(self._send(event.room, event.text), group="send")

    async def _send(self, room: Room, body: str) -> None:
        assert room.id is not None
        about = self._about if room is self.room else None
        if about is not None:
            self._end_about()
        if about is not None and about.what in ("edit", "react"):
            done = self.bridge.edit if about.what == "edit" else self.bridge.react
            if not await done(about.message, body):
                self._put_back(room, body)
            return
        sent = await (self.bridge.reply(about.message, body) if about else self.bridge.send(room.id, body))
        if sent is None:  # nothing is lost
            self._put_back(room, body)
            return
        if room is self.room:
            if self.timeline.message_at(sent.key) is None:  # its first change may be here already, and be newer
                self.timeline.put(sent)
            self.timeline.to_end()
        self.post_message(self.Moved())

    def _put_back(self, room: Room, body: str) -> None:
        """A message that is none goes to where it was written, before what is being written there now."""
        if room is not self.room:
            draft = self._drafts.get(room.title, "")
            self._drafts[room.title] = f"{body}\n{draft}" if draft else body
        elif self.composer.text:
            self.composer.insert(f"{body}\n", (0, 0))
        else:
            self.composer.insert(body)

    # -- acting on a message

    def on_composer_select_wanted(self) -> None:
        if self.timeline.select(-1):
            self.timeline.focus(scroll_visible=False)

    def on_timeline_left(self) -> None:
        self.focus_input()

    def on_timeline_copy_wanted(self, event: Timeline.CopyWanted) -> None:
        self.app.copy_to_clipboard(text.body(event.message.text))
        self.app.notify("Copied, if your terminal allows it (OSC 52).", markup=False)

    def on_timeline_retry_wanted(self, event: Timeline.RetryWanted) -> None:
        if event.message.mine and event.message.state == "failed":
            self.run_worker(self.bridge.retry(event.message.key), group="send")
        else:
            self.app.notify("Only a message that failed can be retried.", markup=False)

    def on_timeline_act_wanted(self, event: Timeline.ActWanted) -> None:
        what, message = event.what, event.message
        if what == "edit" and message.mine and message.state in ("queued", "failed"):
            self.run_worker(self._take_back(self.room, message), group="send")
        elif message.deleted or message.id is None:
            self.app.notify("There is nothing to be done to it.", markup=False)
        elif what in ("edit", "delete") and not message.mine:
            self.app.notify("Only who wrote a message may do that.", markup=False)
        elif what == "pin":
            self.run_worker(self.bridge.pin(message), group="send")
        elif what == "delete":
            self.app.push_screen(Confirm("Delete this message for everybody?"), partial(self._delete, message))
        else:
            self._begin(About(what, message))

    def _delete(self, message: Message, is_sure: bool | None) -> None:
        if is_sure:
            self.run_worker(self.bridge.delete(message), group="send")

    def _begin(self, about: About) -> None:
        """What is written next is about a message; what was being written waits."""
        self._end_about()
        self._about = replace(about, draft=self.composer.text if about.what != "reply" else None)
        self._begun.update(f"{ABOUT[about.what]} {text.line(about.message.text, 60)} (Esc: leave)")
        self._begun.display = True
        if about.what != "reply":
            self.composer.write_in(self.room, text.body(about.message.text) if about.what == "edit" else "")
        self.timeline.selected = None
        self.focus_input()

    def _end_about(self) -> None:
        about, self._about = self._about, None
        self._begun.display = False
        if about is not None and about.draft is not None:
            self.composer.write_in(self.composer.room, about.draft)

    def on_composer_cancelled(self) -> None:
        self._end_about()

    async def _take_back(self, room: Room, message: Message) -> None:
        if not (message.mine and await self.bridge.withdraw(message.key)):
            self.app.notify("It has left this device.", markup=False)
            return
        if room is self.room:
            self.timeline.drop(message.key)
            self.timeline.selected = None
            self.focus_input()
        self._put_back(room, message.text)

    # -- a stranger

    async def on_request_bar_accepted(self) -> None:
        if self.room.id is not None and await self.bridge.accept(self.room.id):
            self.post_message(self.Moved())

    async def on_request_bar_declined(self) -> None:
        if self.room.id is not None and await self.bridge.decline(self.room.id):
            self.post_message(self.Declined())

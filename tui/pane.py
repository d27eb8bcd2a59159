"""One person's chat: list, timeline, composer. A whole screen of `ChatApp`, or half of the demo."""

import time
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Horizontal, Vertical
from textual.message import Message as Event
from textual.reactive import reactive
from textual.widgets import Static

from node.client.model import Change, Conversation, Message
from tui import actions, model, text
from tui.bridge import PAGE_MESSAGES, Bridge, ChatClient
from tui.room import Room
from tui.screens.switcher import Switcher
from tui.widgets.composer import Composer
from tui.widgets.conversations import ConversationList
from tui.widgets.lights import LightsBar
from tui.widgets.request import RequestBar
from tui.widgets.timeline import Timeline

NARROW_CELLS = 60
AGES_S = 5.0


class ChatPane(Container):
    """Joins the widgets to the bridge. What it decides is in `model`, what a room remembers in `room`."""

    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("pane")]

    active: reactive[bool] = reactive(True)  # whether this is where the person is; in the demo one side is

    class Entered(Event):
        """The person moved to this pane."""

        def __init__(self, pane: "ChatPane") -> None:
            super().__init__()
            self.pane = pane

    def __init__(self, client: ChatClient, *, to: str = "", id: str | None = None) -> None:
        super().__init__(id=id)
        self._to = to  # whom to write to when there is no conversation yet
        self.bridge = Bridge(client, self._problem)
        self.conversations: list[Conversation] = []
        self.room = Room()
        self._drafts: dict[str, str] = {}
        self._list_wanted = False
        self._told = ""

    def compose(self) -> ComposeResult:
        yield LightsBar(classes="lights")
        with Horizontal():
            yield ConversationList()
            with Vertical():
                yield Static("", markup=False, classes="room")
                yield Timeline()
                yield Static("", markup=False, classes="status")
                yield RequestBar()
                yield Composer()

    def on_mount(self) -> None:
        self.lights_bar = self.query_one(LightsBar)
        self.listed = self.query_one(ConversationList)
        self.timeline = self.query_one(Timeline)
        self.composer = self.query_one(Composer)
        self.request_bar = self.query_one(RequestBar)
        self.lights_bar.mine = self.bridge.address
        self._draw_frame()
        self.watch(self.app, "app_focus", self._attention_changed, init=False)
        self.set_interval(AGES_S, self._draw_lights)
        self.run_worker(self.bridge.watch(self._changed), group="changes")
        self.run_worker(self._start(), group="list")

    async def _start(self) -> None:
        await self._load_list()
        if self.room.id is None and self._to:
            self.open(self._to)

    async def _open_first(self) -> None:
        """Where there was nothing to show."""
        if self.room.id is None and self.conversations:
            first = min(self.conversations, key=lambda c: c.request)  # a person you know before a stranger
            await self._open(first.id)

    # -- news from the client

    def _changed(self, change: Change) -> None:
        message = change.message
        if change.kind == "lights":
            self._draw_lights()
            return
        if message is not None and self._is_here(message):
            if self.room.is_loading:
                self.room.waiting.append(message)
            else:
                self._put(message)
        if change.kind == "conversation" and change.conversation is None:
            self.run_worker(self._reload(), group="reload", exclusive=True)
        if change.kind != "state":
            self._refresh_list()

    def _is_here(self, message: Message) -> bool:
        return self.room.holds(message.conversation) or self.timeline.message_at(message.key) is not None

    def _put(self, message: Message) -> None:
        timeline = self.timeline
        is_news = timeline.message_at(message.key) is None and not message.mine
        is_seen = self._is_watching and timeline.sees_newest
        timeline.put(message)
        if not is_news or is_seen or self.room.is_request:
            return
        if timeline.rows.unread is None or self.room.line_is_done:
            self.room.line_is_done = False
            timeline.mark_unread(message.key)
        if not self._is_watching:
            timeline.hold_unread()  # what comes while nobody looks must not push the first of it off the screen

    async def _reload(self) -> None:
        """The client had too much news to tell one by one."""
        room = self.room
        if room.id is not None and not room.is_loading:
            for message in await self.bridge.messages(room.id) or []:
                if room is self.room:
                    self._put(message)

    def _refresh_list(self) -> None:
        """A burst of news reads the list once more, not once each."""
        if not self._list_wanted:
            self._list_wanted = True
            self.run_worker(self._load_list(), group="list")

    async def _load_list(self) -> None:
        self._list_wanted = False
        found = await self.bridge.conversations()
        if found is None:
            return
        self.conversations = found
        room = self.room
        has_begun = False
        if (known := room.find(found)) is not None:
            has_begun = known.id != room.id
            room.id, room.conversation = known.id, known
        self._draw_frame()
        if has_begun:
            await self._reload()  # the other person may have begun it
        await self._open_first()
        self._read_if_seen()

    # -- what is on screen

    def _draw_frame(self) -> None:
        """Everything around the timeline."""
        room = self.room
        self.listed.show(self.conversations, room.id)
        title = text.name(room.title) if room.title else "No conversation yet. Ctrl+K and an address starts one."
        below = 0 if self.timeline.at_bottom else room.unread
        elsewhere = sum(1 for c in self.conversations if (c.unread or c.request) and c.id != room.id)
        told = model.header(title, below, elsewhere if self.has_class("narrow") else 0)
        self.query_one(".room", Static).update(told)
        self.request_bar.who = room.title
        had_bar = self.request_bar.display
        self.request_bar.display = room.is_request
        self.composer.display = not room.is_request and room.id is not None
        if had_bar != self.request_bar.display:
            self.focus_input()
        self._draw_lights()

    def _draw_lights(self) -> None:
        lights = self.bridge.lights
        node = text.node_of(self.room.title) if self.room.title else None
        peer = None if node == text.node_of(self.bridge.address) else node
        self.lights_bar.now_ms = int(time.time() * 1000)
        self.lights_bar.peer = peer
        self.lights_bar.lights = lights
        told = model.status(lights, peer)
        if told != self._told:
            self._told = told
            status = self.query_one(".status", Static)
            status.update(told)
            status.display = bool(told)

    def focus_input(self) -> None:
        """Where typing belongs now; a pane that is not active does not take the focus."""
        if self.active:
            for widget in (self.request_bar, self.composer, self.timeline):
                if widget.display:
                    widget.focus(scroll_visible=False)
                    return

    def on_resize(self) -> None:
        self.set_class(self.size.width < NARROW_CELLS, "narrow")
        self._draw_frame()  # the header stands in for the list

    # -- being read

    @property
    def _is_watching(self) -> bool:
        """Whether a person can see this pane: a focused terminal, this side, nothing over it."""
        return self.app.app_focus and self.active and self.app.screen is self.screen

    def _read_if_seen(self) -> None:
        """Tell that it was read, only if it was on screen in front of a person."""
        room = self.room
        if not (self._is_watching and self.timeline.sees_newest) or room.id is None or room.is_loading:
            return
        if (mark := room.unread_mark()) is not None:
            room.asked_read = mark
            self.run_worker(self.bridge.read(room.id), group="read")

    def _attention_changed(self) -> None:
        if self._is_watching:
            self._read_if_seen()
        elif not self.room.unread:
            self.room.line_is_done = True

    def watch_active(self) -> None:
        if self.is_mounted:
            self._attention_changed()

    def on_screen_resume(self) -> None:
        self._attention_changed()

    def on_timeline_bottom_reached(self) -> None:
        self._read_if_seen()

    def on_descendant_focus(self) -> None:
        self.post_message(self.Entered(self))

    # -- rooms

    def open(self, conversation: str) -> None:
        """A conversation by its id, or an address to write to."""
        self.run_worker(self._open(conversation), group="open", exclusive=True)

    async def _open(self, conversation: str) -> None:
        if conversation == self.room.id:
            self.focus_input()
            return
        found = next((c for c in self.conversations if c.id == conversation), None)
        await self._fill(self._enter(Room(conversation, found)))

    async def _fill(self, room: Room) -> None:
        """Show what the cache has of a room."""
        messages = await self.bridge.messages(room.id or "") or []
        if room is not self.room:  # another one was opened meanwhile
            return
        room.has_older = len(messages) >= PAGE_MESSAGES
        self.timeline.show(messages, model.first_unread(messages, room.conversation))
        room.is_loading = False
        for message in room.waiting:
            self._put(message)
        room.waiting.clear()
        self._read_if_seen()

    def _enter(self, room: Room) -> Room:
        """Leave one room for another; what was being written stays with its room."""
        self._drafts[self.room.title] = self.composer.text  # the id may change while it waits
        self.room = room
        self.timeline.show([], None)
        self.composer.write_in(room, self._drafts.pop(room.title, ""))
        self._draw_frame()
        self.focus_input()
        return room

    def action_switch(self) -> None:
        def chosen(choice: model.Choice | None) -> None:
            if choice is not None:
                self.open(choice.id)
            self._attention_changed()

        self.app.push_screen(Switcher(self.conversations, self.bridge.address), chosen)

    def action_next_unread(self) -> None:
        found = model.next_unread(self.conversations, self.room.id)
        if found is None:
            self.app.notify("Nothing unread anywhere else.", markup=False)
        else:
            self.open(found.id)

    def action_room(self, step: int) -> None:
        if (found := model.neighbour(self.conversations, self.room.id, step)) is not None:
            self.open(found.id)

    def action_room_number(self, number: int) -> None:
        if number <= len(self.conversations):
            self.open(self.conversations[number - 1].id)

    def on_conversation_list_opened(self, event: ConversationList.Opened) -> None:
        self.open(event.conversation)

    # -- reading

    def action_unread_line(self) -> None:
        if not self.timeline.to_unread():
            self.app.notify("Nothing unread here.", markup=False)

    def action_page(self, pages: int) -> None:
        self.timeline.page(pages)

    def action_oldest(self) -> None:
        self.timeline.to_start()

    def action_newest(self) -> None:
        self.timeline.to_end()

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

    # -- writing and acting

    def on_composer_sent(self, event: Composer.Sent) -> None:
        self.run_worker(self._send(event.room, event.text), group="send")

    async def _send(self, room: Room, body: str) -> None:
        assert room.id is not None
        sent = await self.bridge.send(room.id, body)
        if sent is None:  # nothing is lost
            self._put_back(room, body)
            return
        if room is self.room:
            if self.timeline.message_at(sent.key) is None:  # its first change may be here already, and be newer
                self.timeline.put(sent)
            self.timeline.to_end()
        self._refresh_list()

    def _put_back(self, room: Room, body: str) -> None:
        """A message that is none goes to where it was written, before what is being written there now."""
        if room is not self.room:
            draft = self._drafts.get(room.title, "")
            self._drafts[room.title] = f"{body}\n{draft}" if draft else body
        elif self.composer.text:
            self.composer.insert(f"{body}\n", (0, 0))
        else:
            self.composer.insert(body)

    def on_key(self, event: events.Key) -> None:
        """A letter that is no key where the focus is: writing is meant."""
        is_free = event.is_printable and event.key not in self.screen.active_bindings
        if event.character is not None and is_free and self.composer.display:
            event.stop()
            self.timeline.selected = None
            self.composer.focus(scroll_visible=False)
            self.composer.insert(event.character)

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

    def on_timeline_take_back_wanted(self, event: Timeline.TakeBackWanted) -> None:
        self.run_worker(self._take_back(self.room, event.message), group="send")

    async def _take_back(self, room: Room, message: Message) -> None:
        if not (message.mine and await self.bridge.withdraw(message.key)):
            self.app.notify("It has left this device.", markup=False)
            return
        if room is self.room:
            self.timeline.drop(message.key)
            self.timeline.selected = None
            self.focus_input()
        self._put_back(room, message.text)

    async def on_request_bar_accepted(self) -> None:
        if self.room.id is not None and await self.bridge.accept(self.room.id):
            self._refresh_list()

    async def on_request_bar_declined(self) -> None:
        room = self.room
        if room.id is not None and await self.bridge.decline(room.id):
            await self._load_list()
            if room is self.room and all(c.id != room.id for c in self.conversations):
                self._enter(Room())
                await self._open_first()

    def _problem(self, told: str) -> None:
        self.app.notify(told, severity="error", markup=False)

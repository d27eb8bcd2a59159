"""One person's chat: the list and the open conversation. A whole screen of `ChatApp`, or half of the demo."""

import time
from typing import ClassVar, Literal

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Horizontal
from textual.message import Message as Event
from textual.reactive import reactive

from node.client.model import Change, Conversation
from tui import actions, model, text
from tui.bridge import Bridge, ChatClient
from tui.people import People
from tui.room import Room
from tui.screens.switcher import Switcher
from tui.talk import Talk
from tui.widgets.conversations import ConversationList
from tui.widgets.lights import LightsBar

NARROW_CELLS = 60
AGES_S = 5.0


class ChatPane(Container):
    """Which conversation is open, and what is around it; what happens in it is the business of `Talk`."""

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
        self.people = People()
        self.lights_bar = LightsBar(classes="lights")
        self.listed = ConversationList()
        self.talk = Talk(self.bridge)
        self._list_wanted = False

    def compose(self) -> ComposeResult:
        yield self.lights_bar
        with Horizontal():
            yield self.listed
            yield self.talk.data_bind(ChatPane.active)

    def on_mount(self) -> None:
        self.lights_bar.mine = self.bridge.address
        self._draw()
        self.set_interval(AGES_S, self._draw_lights)
        self.run_worker(self.bridge.watch(self._changed), group="changes")
        self.run_worker(self._start(), group="list")
        self.watch(self.app, "app_focus", self._show_presence)

    async def _start(self) -> None:
        await self._load_list()
        if self.talk.room.id is None and self._to:
            self.open(self._to)

    # -- news from the client

    def _changed(self, change: Change) -> None:
        if change.kind == "lights":
            self._draw_lights()
            return
        if self.people.take(change):
            self._draw_people()
        if change.sign is not None:
            return
        self.talk.take(change)
        if change.kind != "state":
            self._refresh_list()

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
        await self.talk.recognise(found)
        self._draw()
        await self._open_first()
        self.talk.read_if_seen()

    # -- what is on screen

    def _draw(self) -> None:
        self._draw_people()
        self.talk.draw(self.conversations, self.has_class("narrow"))
        self._draw_lights()

    def _draw_people(self) -> None:
        self.listed.show(self.conversations, self.talk.room.id, self.people.present)
        self.talk.typists = model.typing(self.people.typing(self.talk.room.id))

    def _show_presence(self) -> None:
        """To contacts: whether the person is before this terminal."""
        state: Literal["online", "away"] = "online" if self.app.app_focus else "away"
        self.run_worker(self.bridge.presence(state), group="presence")

    def _draw_lights(self) -> None:
        lights, title = self.bridge.lights, self.talk.room.title
        node = text.node_of(title) if title else None
        peer = None if node == text.node_of(self.bridge.address) else node
        self.lights_bar.now_ms = int(time.time() * 1000)
        self.lights_bar.peer = peer
        self.lights_bar.lights = lights
        self.talk.status = model.status(lights, peer)

    def on_resize(self) -> None:
        self.set_class(self.size.width < NARROW_CELLS, "narrow")
        self._draw()

    def on_descendant_focus(self) -> None:
        self._show_presence()
        self.post_message(self.Entered(self))

    def on_composer_typed(self) -> None:
        self._show_presence()

    def on_key(self, event: events.Key) -> None:
        """A letter that is no key where the focus is: writing is meant."""
        is_free = event.is_printable and event.key not in self.screen.active_bindings
        if event.character is not None and is_free and self.talk.composer.display:
            event.stop()
            self.talk.write(event.character)

    # -- which conversation

    def open(self, conversation: str) -> None:
        """A conversation by its id, or an address to write to."""
        self.run_worker(self._open(conversation), group="open", exclusive=True)

    async def _open(self, conversation: str) -> None:
        if conversation == self.talk.room.id:
            self.talk.focus_input()
            return
        self._enter(Room(conversation, next((c for c in self.conversations if c.id == conversation), None)))
        await self.talk.fill()

    async def _open_first(self) -> None:
        """Where there was nothing to show."""
        if self.talk.room.id is None and self.conversations:
            first = min(self.conversations, key=lambda c: c.request)  # a person you know before a stranger
            await self._open(first.id)

    def _enter(self, room: Room) -> None:
        self.talk.enter(room)
        self._draw()
        self.talk.focus_input()

    def on_talk_moved(self) -> None:
        self._refresh_list()

    async def on_talk_declined(self) -> None:
        room = self.talk.room
        await self._load_list()
        if room is self.talk.room and all(c.id != room.id for c in self.conversations):
            self._enter(Room())
            await self._open_first()

    def on_conversation_list_opened(self, event: ConversationList.Opened) -> None:
        self.open(event.conversation)

    def action_switch(self) -> None:
        def chosen(choice: model.Choice | None) -> None:
            if choice is not None:
                self.open(choice.id)

        self.app.push_screen(Switcher(self.conversations, self.bridge.address), chosen)

    def action_next_unread(self) -> None:
        found = model.next_unread(self.conversations, self.talk.room.id)
        if found is None:
            self.app.notify("Nothing unread anywhere else.", markup=False)
        else:
            self.open(found.id)

    def action_room(self, step: int) -> None:
        if (found := model.neighbour(self.conversations, self.talk.room.id, step)) is not None:
            self.open(found.id)

    def action_room_number(self, number: int) -> None:
        if number <= len(self.conversations):
            self.open(self.conversations[number - 1].id)

    # -- where in it

    def action_unread_line(self) -> None:
        if not self.talk.timeline.to_unread():
            self.app.notify("Nothing unread here.", markup=False)

    def action_page(self, pages: int) -> None:
        self.talk.timeline.page(pages)

    def action_oldest(self) -> None:
        self.talk.timeline.to_start()

    def action_newest(self) -> None:
        self.talk.timeline.to_end()

    def _problem(self, told: str) -> None:
        self.app.notify(told, severity="error", markup=False)

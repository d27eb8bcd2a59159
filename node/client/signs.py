"""Typing and presence, ours and others': in memory, newest only, forgotten in time and with the connection."""

import asyncio
from typing import Literal, NamedTuple

from node import api
from node.client.errors import Lost
from node.client.hub import Hub
from node.client.model import Change, Presence, Typing
from node.client.session import Session

AGAIN_S = 4.0  # a person who still types is told so often
TYPING_S_MAX = 30.0  # unless the caller says it again
STILL_THERE_S = 60.0  # no more often is the same said of this device
ACTIVE_S = 300.0  # after this nobody knows whether a person is there
HEARD_MAX = 4096

State = Literal["online", "away"]


class Heard(NamedTuple):
    kind: str
    timer: asyncio.TimerHandle


Key = tuple[str, str, bool]  # conversation, who, whether it is about typing


class Signs:
    """Lives on the loop only; nothing here waits or fails for the lack of a connection."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._session: Session | None = None
        self._heard: dict[Key, Heard] = {}
        self._typing: dict[str, tuple[float, asyncio.TimerHandle]] = {}  # until when, and the next word of it
        self._mine: tuple[State, float] | None = None  # what was said last, and when
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def presences(self) -> dict[str, str]:
        """By address; whoever is not in it is offline, or shows nothing."""
        return {who: heard.kind for (_, who, typing), heard in self._heard.items() if not typing}

    # --- the connection -----------------------------------------------------------------------------------
    def up(self, session: Session) -> None:
        self._session = session
        if self._mine is not None:
            state, said = self._mine
            late = asyncio.get_running_loop().time() - said > ACTIVE_S
            self._post(api.SetPresence(id=1, state="away" if late else state))

    def down(self) -> None:
        self._session = None
        for key in list(self._heard):
            self._forget(key)

    def close(self) -> None:
        self._session = None
        timers = [h.timer for h in self._heard.values()] + [timer for _, timer in self._typing.values()]
        for timer in timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._heard.clear()
        self._typing.clear()

    # --- ours ---------------------------------------------------------------------------------------------
    def types(self, conversation: str, on: bool) -> None:
        """Said to the node by the caller; from now on again every few seconds, or not any more."""
        self._stop(conversation)
        if on:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(AGAIN_S, self._still, conversation)
            self._typing[conversation] = (loop.time() + TYPING_S_MAX, timer)

    def sent(self, conversation: str) -> None:
        """What was typed is a message now."""
        if self._stop(conversation):
            self._post(api.Typing(id=1, conversation=conversation, on=False))

    def _stop(self, conversation: str) -> bool:
        found = self._typing.pop(conversation, None)
        if found is not None:
            found[1].cancel()
        return found is not None

    def _still(self, conversation: str) -> None:
        loop = asyncio.get_running_loop()
        until, _ = self._typing.pop(conversation)
        if loop.time() < until:
            self._typing[conversation] = (until, loop.call_later(AGAIN_S, self._still, conversation))
            self._post(api.Typing(id=1, conversation=conversation))

    def present(self, state: State) -> bool:
        """Whether it is to be said: it is new, or the last time is a while ago."""
        now = asyncio.get_running_loop().time()
        if self._mine is not None and self._mine[0] == state and now - self._mine[1] < STILL_THERE_S:
            return False
        self._mine = (state, now)
        return self._session is not None

    def _post(self, request: api.AnyRequest) -> None:
        async def ask(session: Session) -> None:
            try:
                await session.request(request)
            except (api.ApiError, Lost):
                pass  # whoever is to hear of it forgets the old one in time

        if self._session is not None:
            task = asyncio.ensure_future(ask(self._session))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # --- others' ------------------------------------------------------------------------------------------
    def take(self, sign: api.Ephemeral) -> None:
        key = (sign.conversation, sign.who, sign.kind in ("typing", "idle"))
        old = self._heard.pop(key, None)
        if old is not None:
            old.timer.cancel()
        if sign.kind not in ("idle", "offline") and len(self._heard) < HEARD_MAX:
            timer = asyncio.get_running_loop().call_later(sign.holds / 1000, self._forget, key)
            self._heard[key] = Heard(sign.kind, timer)
        if (old.kind if old is not None else _nothing(key)) != sign.kind:
            self._publish(key, sign.kind)

    def _forget(self, key: Key) -> None:
        heard = self._heard.pop(key, None)
        if heard is not None:
            heard.timer.cancel()
            self._publish(key, _nothing(key))

    def _publish(self, key: Key, kind: str) -> None:
        conversation, who, typing = key
        if typing:
            self._hub.pass_on(Change("typing", sign=Typing(conversation, who, kind == "typing")))
        else:
            self._hub.pass_on(Change("presence", sign=Presence(conversation, who, kind)))  # type: ignore[arg-type]


def _nothing(key: Key) -> str:
    return "idle" if key[2] else "offline"

"""Typing and presence in memory: what sessions and peers say in passing goes to those who may hear of it.

Each look at the store answers for everybody who said something meanwhile, so that a flood costs drops and no more.
"""

import asyncio
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from federation import wire
from federation.ids import User, to_text
from federation.passing import Key, key
from node import api
from node.api import ApiError
from node.core.bucket import Buckets
from node.core.ephemeral import (
    PRESENCE_MS,
    REFRESH_MS,
    TYPING,
    TYPING_MS,
    Attendance,
    Heard,
    Presence,
    Presences,
    Said,
    hearers,
    speak,
    typed,
)
from node.directory import conversation_id
from node.storage.look import contacts, look
from node.storage.writer import StoreFailed

if TYPE_CHECKING:
    from node.node import Node
    from node.session import Session

PENDING_MAX = 4096  # of one peer, not looked at yet
LOOK_MAX = 512  # in one look at the store
USERS_AT_ONCE = 32  # whose presence is told before anything else has its turn again
PRESENCES_MAX = 65_536
OF_PEER_PER_S, OF_PEER_BURST = 500, 8192
OF_USER_PER_S, OF_USER_BURST = 20, 1024  # as many contacts have one
TYPING_PER_S, TYPING_BURST = 2, 20  # of a local user
TICK_S = 0.2  # what changes meanwhile is told once
SCAN_S = 15.0


class Ephemerals:
    def __init__(self, node: "Node") -> None:
        self._node = node
        self.attendance = Attendance()
        self.presences = Presences(PRESENCES_MAX)
        self.refused: Counter[str] = Counter()
        self.of_peers = Buckets(OF_PEER_PER_S, OF_PEER_BURST)
        self._of_users = Buckets(OF_USER_PER_S, OF_USER_BURST)
        self._typing = Buckets(TYPING_PER_S, TYPING_BURST)
        self._arrived: dict[bytes, dict[Key, wire.Ephemeral]] = {}
        self._dirty: dict[str, None] = {}  # users whose presence is to be told
        self._told: dict[str, int] = {}  # when it was
        self._answers: dict[Said, None] = {}  # local users that a peer does not know of yet
        self._came_up: dict[bytes, None] = {}
        self._wake = asyncio.Event()

    @property
    def pending(self) -> int:
        """Of the peer with the most."""
        return max(map(len, self._arrived.values()), default=0)

    # --- what is said -------------------------------------------------------------------------------------------------
    async def typing(self, local: str, text: str, on: bool) -> None:
        """`ApiError` where that is no conversation of theirs; with an address there may be none yet."""
        node, now = self._node, self._node.system.monotonic_ms()
        conversation = node.conversation(local, text) if "@" in text else conversation_id(text)
        said = Said(User(node.us.node, local), conversation)
        if self._typing.take(local, 1, now):
            self.refused["typing"] += 1
            return
        try:
            heard = await node.store.read(look, typed, node.context, said)
        except ApiError as error:
            if error.code == "not_found" and "@" in text:
                return
            raise
        if heard.shown:
            state = self.attendance.state(local, now)
            if state != "offline":
                self._tell(heard, state, PRESENCE_MS)
            self._tell(heard, *(("typing", TYPING_MS) if on else ("idle", 0)))

    async def claim(self, session: "Session", local: str, state: str) -> None:
        """A device says whether a person is before it; the first time it hears who else is there."""
        is_first = not self.attendance.knows(session)
        if self.attendance.claim(local, session, state, self._node.system.monotonic_ms()):
            self.changed(local)
        if is_first:
            await self._show(session, local)

    def left(self, session: Hashable) -> None:
        local = self.attendance.leave(session)
        if local is not None and self.attendance.moved(local, self._node.system.monotonic_ms()):
            self.changed(local)

    def changed(self, local: str) -> None:
        """What others may see of a user has changed, or who may."""
        self._dirty[local] = None
        self._wake.set()

    def link(self, peer: bytes, state: str) -> None:
        if state == "up":
            self._came_up[peer] = None
            self._wake.set()
        elif state == "down":
            self._arrived.pop(peer, None)
            self._gone(self.presences.forget(self._node.system.monotonic_ms(), peer))

    def arrived(self, peer: bytes, signs: Sequence[wire.Ephemeral]) -> None:
        """From a link: kept, the newest of each, until the next look; nobody waits for it."""
        now = self._node.system.monotonic_ms()
        if self.of_peers.take(peer, len(signs), now):
            self.refused["peers"] += len(signs)
            return
        pending = self._arrived.setdefault(peer, {})
        for sign in signs:
            full = len(pending) >= PENDING_MAX and key(sign) not in pending
            if full or self._of_users.take(peer + sign.sender.encode(), 1, now):
                self.refused["peers"] += 1
            else:
                pending[key(sign)] = sign
        self._wake.set()

    # --- what becomes of it -------------------------------------------------------------------------------------------
    async def run(self) -> None:
        node = self._node
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(SCAN_S if len(self.attendance) or len(self.presences) else None):
                    await self._wake.wait()
            self._wake.clear()
            self._scan()
            try:
                for peer in list(self._arrived):
                    await self._take(peer)
                await self._announce()
            except StoreFailed:
                return  # and so has the node
            except Exception as error:  # a bug, which takes nothing along that anybody was promised
                node.report(error)
            await asyncio.sleep(TICK_S)

    def _scan(self) -> None:
        now = self._node.system.monotonic_ms()
        self._gone(self.presences.forget(now))
        for local in self.attendance.users():
            if self.attendance.moved(local, now) or now - self._told.get(local, now) >= REFRESH_MS:
                self._dirty[local] = None

    async def _take(self, peer: bytes) -> None:
        """Some of what a peer said: pushed to whom it is for."""
        pending = self._arrived.get(peer, {})
        signs = [pending.pop(k) for k in list(pending)[:LOOK_MAX]]
        if pending:
            self._wake.set()
        else:
            self._arrived.pop(peer, None)
        said = [Said(User(peer, sign.sender), sign.conversation) for sign in signs]
        found = await self._node.store.read(look, hearers, self._node.context, said) if said else []
        if peer not in self._node.service.links:
            return  # it went meanwhile, and what it said with it
        now, us = self._node.system.monotonic_ms(), self._node.us.node
        for sign, of, to in zip(signs, said, found, strict=True):
            here = tuple(user.local for user in to if user.node == us)
            if not here:
                continue
            if sign.kind not in TYPING and self.presences.put(of, sign, here, now) and sign.kind != "offline":
                self._answers |= dict.fromkeys(Said(User(us, local), of.conversation) for local in here)
                self._wake.set()
            holds = min(sign.holds_ms, TYPING_MS if sign.kind in TYPING else PRESENCE_MS)
            self._push(of, sign.kind, holds, here)

    async def _announce(self) -> None:
        """The presence of users here, to all their contacts, or to those of a peer that is there again."""
        node, now = self._node, self._node.system.monotonic_ms()
        everybody = list(self._dirty)
        dirty, self._dirty = everybody[:USERS_AT_ONCE], dict.fromkeys(everybody[USERS_AT_ONCE:])
        said, self._answers = [s for s in self._answers if self.attendance.state(s.sender.local, now) != "offline"], {}
        came_up, self._came_up = list(self._came_up), {}
        found = await node.store.read(contacts, dirty) if dirty else []
        users = self.attendance.users() if came_up else []
        for peer in came_up:
            for start in range(0, len(users), LOOK_MAX):
                found += await node.store.read(contacts, users[start : start + LOOK_MAX], peer)
        said += [Said(User(node.us.node, local), conversation) for local, conversation in found]
        for local in dirty:
            self._told[local] = now
            if self.attendance.state(local, now) == "offline":
                del self._told[local]
        if self._dirty:
            self._wake.set()
        said = list(dict.fromkeys(said))
        for start in range(0, len(said), LOOK_MAX):
            for heard in await node.store.read(look, speak, node.context, said[start : start + LOOK_MAX]):
                state = self.attendance.state(heard.said.sender.local, now) if heard.shown else "offline"
                self._tell(heard, state, PRESENCE_MS if state != "offline" else 0)

    async def _show(self, session: "Session", local: str) -> None:
        """Who is there, to a device that has just come."""
        node, now = self._node, self._node.system.monotonic_ms()
        found = await node.store.read(contacts, [local])
        mine = [Said(User(node.us.node, local), conversation) for _, conversation in found]
        heard = await node.store.read(look, hearers, node.context, mine)
        others = [Said(other, of.conversation) for of, to in zip(mine, heard, strict=True) for other in to]
        for said in others:
            known = self.presences.get(said, now)
            if known is not None:
                session.pass_on(self._frame(said, known.kind, known.until_ms - now))
        ours = [said for said in others if said.sender.node == node.us.node]
        for of in await node.store.read(look, speak, node.context, ours):
            state = self.attendance.state(of.said.sender.local, now)
            if of.shown and state != "offline":
                session.pass_on(self._frame(of.said, state, PRESENCE_MS))

    def _tell(self, heard: Heard, kind: str, holds_ms: int) -> None:
        """Users here at once, others by way of their nodes."""
        said, us = heard.said, self._node.us.node
        self._push(said, kind, holds_ms, [user.local for user in heard.hearers if user.node == us])
        for peer in {user.node for user in heard.hearers if user.node != us}:
            running = self._node.service.links.get(peer)
            if running is not None and running.state.up:
                running.passing.put(wire.Ephemeral(said.conversation, said.sender.local, kind, holds_ms))  # type: ignore[arg-type]

    def _push(self, said: Said, kind: str, holds_ms: int, to: Iterable[str]) -> None:
        for local in to:
            for session in self._node.sessions.get(local, ()):
                session.pass_on(self._frame(said, kind, holds_ms))

    def _frame(self, said: Said, kind: str, holds_ms: int) -> api.Ephemeral:
        who = self._node.directory.address(*said.sender)
        return api.Ephemeral(to_text(said.conversation), who, kind, holds_ms)  # type: ignore[arg-type]

    def _gone(self, known: Iterable[tuple[Said, Presence]]) -> None:
        for said, presence in known:
            self._push(said, "offline", 0, presence.hearers)

"""Typing and presence: who may hear of them, and what a user's devices add up to. Nothing of it is ever stored."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from federation.ids import User
from federation.wire import Ephemeral
from node.api import ApiError
from node.core import log, rows
from node.core.authorize import authorize, block_keys, is_blocked
from node.core.context import Context
from node.core.view import Key, View

TYPING_MS = 6_000  # after the last sign of it
ACTIVE_MS = 5 * 60_000  # a device that said nothing for so long is before nobody
PRESENCE_MS = 10 * 60_000
REFRESH_MS = 4 * 60_000  # what was dropped is made good so soon
TYPING = ("typing", "idle")


class Said(NamedTuple):
    """A user, perhaps of another node, in a conversation."""

    sender: User
    conversation: bytes


def hearers(view: View, context: Context, said: Sequence[Said]) -> list[tuple[User, ...]]:
    """Who shares the conversation of each with its sender, and may hear of it: a member here has accepted it and blocks
    nobody of the two; what is so at another node is for that one to say."""
    view.want(*((rows.Conversation, (s.conversation,)) for s in said))
    groups = [_members(view, s) for s in said]
    here = {(s.conversation, m.local) for s, g in zip(said, groups, strict=True) for m in g if m.node == context.node}
    view.want(*((rows.Account, (local,)) for _, local in here), *((rows.Standing, place) for place in here))
    pairs = [(s, other) for s, group in zip(said, groups, strict=True) for other in group if other != s.sender]
    view.want(*(key for s, other in pairs for key in _block_keys(view, context, s.sender, other)))
    return [
        tuple(other for other in group if other != s.sender and _passes(view, context, s, other))
        for s, group in zip(said, groups, strict=True)
    ]


def _members(view: View, said: Said) -> tuple[User, ...]:
    """Everybody in the conversation, where the sender is too; else nobody."""
    row = view.get(rows.Conversation, said.conversation)
    members = log.members(row) if row is not None and row.kind == "direct" else ()
    return members if said.sender in members else ()


def _block_keys(view: View, context: Context, a: User, b: User) -> list[Key]:
    found: list[Key] = []
    for one, other in ((a, b), (b, a)):
        if one.node == context.node and (account := view.get(rows.Account, one.local)) is not None:
            found += block_keys(context, account, other)
    return found


def _passes(view: View, context: Context, said: Said, hearer: User) -> bool:
    for one, other in ((said.sender, hearer), (hearer, said.sender)):
        if one.node != context.node:
            continue
        account, standing = view.get(rows.Account, one.local), view.get(rows.Standing, said.conversation, one.local)
        if account is None or account.state != "active" or standing is None or standing.state != "open":
            return False  # a request gives no sign of life
        if is_blocked(view, context, account, other):
            return False
    return True


class Heard(NamedTuple):
    """To whom something of a local user goes; `shown`: they let others see that they are there."""

    said: Said
    hearers: tuple[User, ...]
    shown: bool


def speak(view: View, context: Context, said: Sequence[Said]) -> list[Heard]:
    """The same for local senders, with what they want others to see."""
    found = hearers(view, context, said)
    accounts = [view.get(rows.Account, s.sender.local) if _members(view, s) else None for s in said]
    shown = [account is not None and account.presence == "contacts" for account in accounts]
    return [Heard(*heard) for heard in zip(said, found, shown, strict=True)]


def typed(view: View, context: Context, said: Said) -> Heard:
    """A local user types; `ApiError` where they may not, or where it is not a conversation of theirs."""
    view.want((rows.Conversation, (said.conversation,)), (rows.Account, (said.sender.local,)))
    authorize(view, context, said.sender.local, "ephemerals")
    if not _members(view, said):
        raise ApiError("not_found", "no such conversation, or you are not in it")
    (heard,) = speak(view, context, (said,))
    return heard


class Attendance:
    """What the devices of each user say of themselves. Times are monotonic ms."""

    def __init__(self) -> None:
        self._claims: dict[str, dict[Hashable, tuple[str, int]]] = {}
        self._users: dict[Hashable, str] = {}
        self._last: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def users(self) -> list[str]:
        return list(self._claims)

    def claim(self, local: str, device: Hashable, state: str, now_ms: int) -> bool:
        """A connection says `online` or `away`; whether the user is something else now."""
        self._claims.setdefault(local, {})[device] = (state, now_ms)
        self._users[device] = local
        return self.moved(local, now_ms)

    def leave(self, device: Hashable) -> str | None:
        """The connection is over; its user, if it had said anything."""
        local = self._users.pop(device, None)
        if local is not None:
            del self._claims[local][device]
            if not self._claims[local]:
                del self._claims[local]
        return local

    def knows(self, device: Hashable) -> bool:
        return device in self._users

    def state(self, local: str, now_ms: int) -> str:
        """`online` while one device was before a person lately, else `away` while there is one, else `offline`."""
        claims = self._claims.get(local)
        if not claims:
            return "offline"
        active = any(state == "online" and now_ms - at < ACTIVE_MS for state, at in claims.values())
        return "online" if active else "away"

    def moved(self, local: str, now_ms: int) -> bool:
        """Whether the state is another one than when this was asked last."""
        state = self.state(local, now_ms)
        old = self._last.pop(local, "offline")
        if state != "offline":
            self._last[local] = state
        return state != old


class Presence(NamedTuple):
    """What is known of a user of another node in a conversation."""

    kind: str
    until_ms: int
    hearers: tuple[str, ...]


class Presences:
    """Of users of other nodes, as far as they said; bounded, and forgotten with their link or when it is too old."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[Said, Presence] = {}  # the longest unheard first
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._known)

    def get(self, said: Said, now_ms: int) -> Presence | None:
        found = self._known.get(said)
        return found if found is not None and found.until_ms > now_ms else None

    def put(self, said: Said, sign: Ephemeral, to: tuple[str, ...], now_ms: int) -> bool:
        """Whether it is the first that is known of them."""
        first = self.get(said, now_ms) is None
        self._known.pop(said, None)
        if sign.kind != "offline":
            self._known[said] = Presence(sign.kind, now_ms + min(sign.holds_ms, PRESENCE_MS), to)
        if len(self._known) > self._most:
            del self._known[next(iter(self._known))]
            self.dropped += 1
        return first

    def forget(self, now_ms: int, node: bytes | None = None) -> list[tuple[Said, Presence]]:
        """What is too old, or comes from this node, is not known any more."""
        gone = [(s, p) for s, p in self._known.items() if p.until_ms <= now_ms or s.sender.node == node]
        for said, _ in gone:
            del self._known[said]
        return gone

"""A group after an entry of its control log: who is in it, who orders it, what is set (PROTOCOL.md 11.4).

Pure. The same entries give the same state, byte for byte, at every node.
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from federation import control
from federation.control import Cut, Local, Name, NodeId, Role, Text
from federation.errors import ProtocolError
from federation.event import Hash, Seq
from federation.ids import User, digest

MEMBERS_MAX = 10_000
PAST_MAX = 10_000  # memberships that ended; the oldest are forgotten, and their events are void
PAST_CUTS_MAX = 65_536  # logs in the cuts of all of them
CHAINS_BYTES_MAX = 4 << 20  # of all nodes of a group
LINKS_MAX = 64
USED_MAX = 1024  # proposals of branches that lost, which became entries here
RANK: dict[str, int] = {"readonly": 0, "member": 1, "moderator": 2, "admin": 3, "owner": 4}
HISTORY_MAX = 1_000_000
SIZES = (1, 2, 3, 5)  # how many stewards there may be


class Site(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node of the group: people of it are members, or it is a steward."""

    node: NodeId
    name: control.Domain
    chain: control.ChainBytes
    since: Seq  # entry with which it came


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node: NodeId
    local: Local
    role: Role
    since: Seq  # entry from which this role holds
    joined: Seq  # entry with which they came


class Past(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A membership, or a time in one role, that is over: under entries `since` to before `until`."""

    node: NodeId
    local: Local
    role: Role
    since: Seq
    until: Seq
    cuts: tuple[Cut, ...] | None  # beyond them nothing stands; none: a change of role that takes nothing away


class Door(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A join link."""

    secret_hash: Hash
    uses: int  # left
    expires_ms: int
    role: Role


class Changed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The entry that changed each of these last, so that a proposal which did not know of it is refused."""

    name: Seq = 1
    topic: Seq = 1
    retention: Seq = 1
    history: Seq = 1
    invite: Seq = 1
    stewards: Seq = 1
    succession: Seq = 1
    doors: Seq = 1


class State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, cache_hash=True):
    """A group after an entry (PROTOCOL.md 11.4)."""

    version: Literal[1]
    group: control.Group
    index: Seq
    name: Name
    topic: Text
    retention_s: int  # 0: for ever
    history: int  # events from before one joined: 0 none, HISTORY_MAX all
    invite: Literal["admins", "members"]
    stewards: tuple[NodeId, ...]
    succession: tuple[NodeId, ...]
    sites: tuple[Site, ...]  # by node id
    members: tuple[Member, ...]  # by node id, then local name
    past: tuple[Past, ...]  # oldest first
    doors: tuple[Door, ...]
    changed: Changed
    used: tuple[Hash, ...]  # proposals that were made under a later entry than theirs: they must not come again

    def site(self, node: bytes) -> Site | None:
        return sites_of(self).get(node)

    def member(self, user: User) -> Member | None:
        return members_of(self).get(user)

    def locals_of(self, node: bytes) -> tuple[str, ...]:
        """The members of one node."""
        return locals_of_node(self).get(node, ())

    @property
    def nodes(self) -> frozenset[bytes]:
        """Nodes with members: who gets what is said."""
        return frozenset(locals_of_node(self))

    @property
    def heirs(self) -> tuple[bytes, ...]:
        """Who may take over, first in line first: what the owner said, else whoever of the others came first."""
        came = tuple(s.node for s in sorted(self.sites, key=lambda s: (s.since, s.node)) if s.node not in self.stewards)
        line = tuple(n for n in self.succession if self.site(n) is not None) or came[:1]
        return (*self.stewards[1:], *(n for n in line if n not in self.stewards))


class Tip(NamedTuple):
    """A control log's newest certified entry, as one node knows it."""

    state: State
    hash: bytes
    term: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(State)


@lru_cache(64)
def sites_of(state: State) -> dict[bytes, Site]:
    return {site.node: site for site in state.sites}


@lru_cache(64)
def members_of(state: State) -> dict[User, Member]:
    return {User(m.node, m.local): m for m in state.members}


@lru_cache(64)
def locals_of_node(state: State) -> dict[bytes, tuple[str, ...]]:
    found: dict[bytes, list[str]] = {}
    for member in state.members:
        found.setdefault(member.node, []).append(member.local)
    return {node: tuple(names) for node, names in found.items()}


def encode_state(state: State) -> bytes:
    return _encoder.encode(state)


@lru_cache(8)
def decode_state(raw: bytes) -> State:
    try:
        state = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("bad_control", f"a group's state cannot be read: {str(error)[:120]!r}", "11.4") from None
    if _encoder.encode(state) != raw:
        raise ProtocolError("bad_control", "a group's state has a second encoding", "11.4")
    return state


def state_hash(state: State) -> bytes:
    return digest("state", encode_state(state))

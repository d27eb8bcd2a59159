"""Other nodes as this node's administrator stands to them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from federation.identity import decode_chain, replaces
from federation.ids import NODE_ID_BYTES, from_text
from node.api import ApiError
from node.core import rows
from node.core.context import Context
from node.core.view import Key, View

STRANGERS = ("pending", "open")  # states that no administrator decided


@dataclass(frozen=True, slots=True)
class ChangePeer:
    """The administrator adds, accepts, blocks or removes a node. `taken` names the node that has the name now."""

    node: bytes
    state: str  # accepted, blocked, removed
    name: str = ""
    addresses: tuple[str, ...] = ()
    taken: bytes | None = None
    while_held: ClassVar = True

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Peer, (self.node,)
        if self.taken is not None:
            yield rows.Peer, (self.taken,)

    def decide(self, view: View, context: Context) -> rows.Peer:
        peer = view.get(rows.Peer, self.node)
        if self.node == context.node:
            raise ApiError("bad_request", "that is this node's own link")
        other = view.get(rows.Peer, self.taken) if self.taken is not None else None
        if other is not None and other.node != self.node and other.name == self.name:
            if other.state not in STRANGERS:
                raise ApiError(
                    "conflict",
                    f"the name {self.name} is bound to another node's key here; if it moved for good, "
                    "remove the old one first with `roost peer remove`",
                )
            view.put(other._replace(name=""))  # nobody but itself said that it is called so
        if peer is None:
            if not self.name:
                raise ApiError("not_found", "there is no such peer; `roost peer list` shows those that are known")
            peer = rows.Peer(self.node, self.name, self.state, "", b"", context.now_ms, 0)
        addresses = " ".join(self.addresses) or peer.addresses
        peer = peer._replace(state=self.state, name=self.name or peer.name, addresses=addresses)
        if self.state == "removed":
            view.delete(peer)
        else:
            view.put(peer)
        view.hint("peers", self.node)
        return peer


@dataclass(frozen=True, slots=True)
class MeetPeer:
    """A node proved itself in a hello: keep its newest chain; a stranger becomes what the policy says."""

    node: bytes
    name: str
    chain: bytes
    hints: tuple[str, ...]
    taken: bytes | None = None  # the node that has this name now
    reach: str = "public"

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Peer, (self.node,)

    def decide(self, view: View, context: Context) -> rows.Peer:
        peer = view.get(rows.Peer, self.node)
        taken = self.taken not in (None, self.node) or self.name == context.name or _reads_as_id(self.name)
        name = "" if taken else self.name
        if peer is None:
            state = {"allowlist": "pending", "open": "open", "block": "blocked"}[context.policy]
            if state == "blocked":
                raise ApiError("blocked", "this node takes no links from strangers")
            peer = rows.Peer(self.node, name, state, "", b"", context.now_ms, 0)
        if peer.chain and not replaces(decode_chain(self.chain), decode_chain(peer.chain)):
            raise ApiError("bad_request", "a key chain that is older than the one known here, or departs from it")
        peer = peer._replace(
            name=peer.name or name,
            chain=self.chain,
            contact_ms=context.now_ms,
            hints=" ".join(self.hints),
            reach=self.reach,
        )
        view.put(peer)
        view.hint("met", self.node)
        return peer


def _reads_as_id(name: str) -> bool:
    """A node without a name is shown by its id: another node's name must not look like that."""
    try:
        return bool(from_text(name, NODE_ID_BYTES))
    except ValueError:
        return False

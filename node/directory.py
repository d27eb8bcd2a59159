"""The peers, in memory: few, looked up for every address, loaded at start and after each change."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from federation.errors import AddressError
from federation.ids import (
    CONVERSATION_ID_BYTES,
    DEVICE_ID_BYTES,
    EVENT_ID_BYTES,
    NODE_ID_BYTES,
    Address,
    User,
    check_local_name,
    from_text,
    to_text,
)
from federation.reach import WIDTH, Reach
from node.api import ApiError
from node.core import rows


def addresses(peer: rows.Peer) -> tuple[str, ...]:
    """Where a peer may be found, what an administrator gave first."""
    return tuple(dict.fromkeys((*peer.addresses.split(), *peer.hints.split())))


class Directory:
    def __init__(self, node: bytes, name: str) -> None:
        self.node, self.name = node, name
        self.peers: dict[bytes, rows.Peer] = {}
        self._reading = asyncio.Lock()
        self._by_name: dict[str, bytes] = {name: node}

    async def follow(self, read: Callable[[], Awaitable[Iterable[rows.Peer]]]) -> None:
        """Load what the store has now. In turns: a read that began earlier must not be the last word."""
        async with self._reading:
            self.load(await read())

    def load(self, peers: Iterable[rows.Peer]) -> None:
        self.peers = {peer.node: peer for peer in peers}
        self._by_name = {peer.name: peer.node for peer in self.peers.values() if peer.name} | {self.name: self.node}

    def reach(self, address: str) -> Reach | None:
        """How far this HOST:PORT may lead; none where an administrator gave it, and so answers for it."""
        if any(address in peer.addresses.split() for peer in self.peers.values()):
            return None
        said: list[Reach] = [peer.reach for peer in self.peers.values() if address in peer.hints.split()]  # type: ignore[misc]
        return max(said, key=WIDTH.index, default="public")

    def node_of(self, name: str) -> bytes | None:
        return self._by_name.get(name)

    def name_of(self, node: bytes) -> str:
        if node == self.node:
            return self.name
        peer = self.peers.get(node)
        return peer.name if peer and peer.name else to_text(node)

    def user(self, address: str) -> User:
        """An address as a person wrote it; `ApiError` names the part that is wrong."""
        try:
            parsed = Address.parse(address)
        except AddressError as error:
            raise ApiError("bad_request", str(error)) from None
        node = self.node_of(parsed.node)
        if node is None:
            raise ApiError("unknown_node", f"no node {parsed.node} is known here; your administrator can add it")
        return User(node, parsed.local)

    def whom(self, text: str) -> User:
        """A user by address, or a whole node by its name, with an empty local name. A node that has no name here is
        spelled by its id, as `address` does."""
        local, at, node = text.rpartition("@")
        try:
            found = User(from_text(node, NODE_ID_BYTES), local)
        except ValueError:
            if at:
                return self.user(text)
            named = self.node_of(text)
            if named is None:
                raise ApiError("unknown_node", f"{text[:80]!r} is neither an address nor a node known here") from None
            return User(named, "")
        try:
            return found if not at else User(found.node, check_local_name(local))
        except AddressError as error:
            raise ApiError("bad_request", str(error)) from None

    def find(self, text: str) -> rows.Peer:
        """A peer by name or id, for administrators."""
        node = self.node_of(text)
        if node is None:
            try:
                node = from_text(text, NODE_ID_BYTES)
            except ValueError:
                node = b""
        if node not in self.peers:
            raise ApiError("not_found", f"no peer {text[:80]!r}; `roost peer list` shows those that are known")
        return self.peers[node]

    def address(self, node: bytes, local: str) -> str:
        return f"{local}@{self.name_of(node)}"


def _id(text: str, size_bytes: int) -> bytes:
    try:
        return from_text(text, size_bytes)
    except ValueError as error:
        raise ApiError("bad_request", str(error)) from None


def conversation_id(text: str) -> bytes:
    try:
        return from_text(text, CONVERSATION_ID_BYTES)
    except ValueError:
        raise ApiError("bad_request", f"{text[:80]!r} is neither an address nor a conversation id") from None


def event_id(text: str) -> bytes:
    return _id(text, EVENT_ID_BYTES)


def device_id(text: str) -> bytes:
    return _id(text, DEVICE_ID_BYTES)

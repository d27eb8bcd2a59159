"""What every decision may know of its surroundings: who we are, our key, limits, and the clock."""

from federation.event import STAMP_LOGICAL_BITS, next_stamp
from federation.identity import NodeKey
from node.api import BODY_BYTES_MAX

FUTURE_MERGE_MS_MAX = 5 * 60_000  # PROTOCOL.md 4.9: beyond this a stamp is kept but not merged into our clock
FUTURE_MS_MAX = 24 * 3_600_000  # PROTOCOL.md 4.9: beyond this the event is refused


class Context:
    """One process life of one node. `now_ms` is set by the writer before each batch."""

    def __init__(
        self,
        node: bytes,
        name: str,
        key: NodeKey,
        incarnation: bytes,
        store: bytes,
        mailbox_items_max: int = 500_000,
        policy: str = "allowlist",
        waiting_max: int = 200_000,
        message_bytes_max: int = BODY_BYTES_MAX,
        mailbox_bytes_max: int = 1 << 30,
        waiting_bytes_max: int = 2 << 30,
        peer_quota: int = 64 << 20,
    ) -> None:
        self.node, self.name, self.key = node, name, key
        self.incarnation = incarnation  # of this process life
        self.store = store  # incarnation of the store: what mailbox positions are relative to
        self.mailbox_items_max = mailbox_items_max
        self.policy = policy
        self.waiting_max = waiting_max  # events that may wait for one peer
        self.message_bytes_max = message_bytes_max  # in one body of our own users
        self.mailbox_bytes_max = mailbox_bytes_max
        self.waiting_bytes_max = waiting_bytes_max  # of events that may wait for one peer
        self.peer_quota = peer_quota  # bytes that a peer may make us store which nobody here asked for
        self.keys: tuple[bytes, ...] = (key.public,)  # that sign or signed for this node
        self.restored = 0  # stamp of the last restore of the store from an old copy (PROTOCOL.md 10.1)
        self.now_ms = 0
        self.last_stamp = 0

    def stamp(self) -> int:
        """The next stamp of our hybrid logical clock."""
        self.last_stamp = next_stamp(self.now_ms, self.last_stamp)
        return self.last_stamp

    def merge(self, stamp: int) -> None:
        """Follow a peer's clock, within bounds (PROTOCOL.md 4.9)."""
        if (stamp >> STAMP_LOGICAL_BITS) <= self.now_ms + FUTURE_MERGE_MS_MAX:
            self.last_stamp = max(self.last_stamp, stamp)

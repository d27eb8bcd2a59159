"""What the node stores: one immutable row type per table. The first `KEYS[row]` fields are the primary
key; `ONCE` rows are written and never changed: writing one twice is a bug and fails the batch. One thing may happen
to an event: `Drop`.
"""

from typing import NamedTuple


class Meta(NamedTuple):
    """One fact about the store itself."""

    name: str
    value: bytes


class Account(NamedTuple):
    """A user. Deleted ones stay as a tombstone, so that a name is never given to a second person."""

    local: str
    password: str  # Argon2id, PHC string; empty: no password login
    display_name: str
    state: str  # active, disabled, deleted
    requests: str  # strangers, everyone: whose first message is a request
    created_ms: int
    presence: str = "contacts"  # contacts, nobody: who is shown signs of life
    blocks: int = 0  # how many `Block` rows are this user's; with none nothing is looked up


class Device(NamedTuple):
    """One logged-in client. The token is kept only as its SHA-256."""

    device: bytes
    local: str
    name: str
    token_hash: bytes
    signing_key: bytes
    created_ms: int
    seen_ms: int
    revoked_ms: int  # 0: not revoked
    acked: int  # mailbox position up to which it acknowledged


class Block(NamedTuple):
    """Somebody that a local user wants nothing of, or this node for all its users."""

    local: str  # whose word it is; empty: the node's
    node: bytes
    other: str  # a user of that node; empty: everybody there
    added_ms: int


class Invite(NamedTuple):
    code_hash: bytes
    created_ms: int
    expires_ms: int
    used_by: str  # local name; empty: not used
    revoked_ms: int


class Peer(NamedTuple):
    """Another node we know. `state` is our side: accepted, pending (it knocked), blocked."""

    node: bytes
    name: str
    state: str
    addresses: str  # HOST:PORT that an administrator gave, space between
    chain: bytes  # newest verified key chain; empty until the first hello
    added_ms: int
    contact_ms: int  # last authenticated contact
    hints: str = ""  # HOST:PORT of its own newest hello, space between
    reach: str = "public"  # how far they may lead: `federation.reach.Reach`
    used: int = 0  # bytes of its quota as of `used_ms`: `quota.charge`
    used_ms: int = 0


class Conversation(NamedTuple):
    """A direct conversation's two members, or the two nodes of a notices conversation (empty local names)."""

    conversation: bytes
    kind: str  # direct, notices
    node_a: bytes
    local_a: str
    node_b: bytes
    local_b: str


class Standing(NamedTuple):
    """A local user in a conversation: open, request (asks for consent), declined."""

    conversation: bytes
    local: str
    state: str
    last_stamp: int


class LogHead(NamedTuple):
    """How far a log is here: our own last number, or the high-water mark of a peer's log."""

    log: bytes
    conversation: bytes
    origin: bytes
    incarnation: bytes
    seq: int
    head: bytes  # id of the event at `seq`
    stamp: int


class OwnLog(NamedTuple):
    """Our newest log of a conversation: the predecessor that the next process life names."""

    conversation: bytes
    incarnation: bytes


class StoredEvent(NamedTuple):
    """One event. Without a body it was deleted or given up; `refused` events are remembered by id and never shown."""

    log: bytes
    seq: int
    event: bytes
    conversation: bytes
    stamp: int
    sender: str
    device: bytes
    kind: str
    header: bytes
    signature: bytes
    body: bytes | None
    arrived_ms: int
    late: int
    refused: str  # code, empty when it stands


class Place(NamedTuple):
    """Where an event stands, by its id. Read from the events, never written."""

    event: bytes
    log: bytes
    seq: int
    conversation: bytes


class Drop(NamedTuple):
    """An order rather than a row: the body of an event goes, if the event is here. Nothing is loaded for it."""

    log: bytes
    seq: int


class Aimed(NamedTuple):
    """What one person's edits, deletion, reactions and pins say of an event, which may come later than they."""

    target: bytes  # id of the event
    conversation: bytes  # that they are said in: an event of another one does not hear them
    node: bytes
    local: str
    deleted: int  # 1: by them, or of theirs by somebody who may
    edits: bytes  # their places: log and number of each, PLACE_BYTES
    marks: bytes  # the same of reactions and pins


class SentKey(NamedTuple):
    """A used idempotency key of a device."""

    device: bytes
    key: str
    request_hash: bytes
    log: bytes
    seq: int


class Mailbox(NamedTuple):
    local: str
    position: int  # newest
    items: int  # messages that none of the user's devices acknowledged yet, at most; `log.fetched` lowers it
    bytes: int = 0  # of these, about; none without a message


class Item(NamedTuple):
    """A message in a mailbox."""

    local: str
    position: int
    log: bytes
    seq: int


class Fact(NamedTuple):
    """Something that changes, in a mailbox: one row that moves to a new position."""

    local: str
    fact: bytes
    position: int
    item: bytes  # api item, MessagePack


class Outbound(NamedTuple):
    """The log is the queue: what a peer acknowledged of a log that it must get. Work is where acked < head."""

    peer: bytes
    log: bytes
    head: int
    acked: int
    bytes: int = 0  # of what waits, about; none when nothing does
    given_up: int = 0  # up to here the peer gets headers only (PROTOCOL.md 4.6), and nobody waits


class Destination(NamedTuple):
    """How many events wait for a peer, over all logs: the bound of that queue is checked before accept."""

    peer: bytes
    waiting: int
    bytes: int = 0  # of these, about


class Receipt(NamedTuple):
    """How far a member is with a log: merged by maximum."""

    log: bytes
    node: bytes
    local: str
    sent: int
    delivered: int
    read: int
    missing: bytes  # numbers at or below delivered that were not opened, 8 bytes each
    sent_ms: int
    delivered_ms: int
    read_ms: int


class Failed(NamedTuple):
    """A message that will not reach a member."""

    log: bytes
    seq: int
    node: bytes
    local: str
    code: str
    reason: str
    at_ms: int


class Evidence(NamedTuple):
    """A second event under a used key: proof that an origin lies."""

    event: bytes
    log: bytes
    seq: int
    header: bytes
    signature: bytes
    at_ms: int


class Heal(NamedTuple):
    """How far a restored node is with getting back from a peer what was lost."""

    peer: bytes
    restored: int  # stamp of the restore that it is about
    phase: int  # of `node.core.heal`


class Quarantine(NamedTuple):
    """An event of a peer that could not be processed, whole, for an administrator (PROTOCOL.md 4.14)."""

    log: bytes
    seq: int
    event: bytes  # its id
    peer: bytes
    error: str
    tries: int
    segment: bytes  # as it came: a segment of this one event, MessagePack
    at_ms: int


class QuarantineSize(NamedTuple):
    """How much one peer has in quarantine: bounded."""

    peer: bytes
    events: int
    size_bytes: int


KEYS: dict[type, int] = {
    Meta: 1, Account: 1, Device: 1, Invite: 1, Peer: 1, Conversation: 1, Standing: 2, LogHead: 1, OwnLog: 1,
    StoredEvent: 2,
    SentKey: 2, Mailbox: 1, Item: 2, Fact: 2, Outbound: 2, Destination: 1, Receipt: 3, Failed: 4, Evidence: 1,
    Quarantine: 2, QuarantineSize: 1, Heal: 1, Block: 3, Place: 1, Drop: 2, Aimed: 4,
}  # fmt: skip
ONCE: frozenset[type] = frozenset({StoredEvent, SentKey, Item})
PLACE_BYTES = 24  # a log's key and a number

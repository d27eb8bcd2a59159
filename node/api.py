"""The client protocol: every frame between a client and its node, in two encodings (PROTOCOL.md 7).

JSON on WebSocket text frames, MessagePack on QUIC, WebSocket binary frames and in process. Ids are the text
form of PROTOCOL.md 1.2 everywhere; only bodies, keys and proofs are bytes (base64 in JSON). Times are ms since
1970. No number is above 2^53-1, since JavaScript would round it: what is longer is text. The machine-readable
schema `node/schema.json` is generated from this module (`python -m node.coding`).
"""

from typing import Annotated, Literal

import msgspec

ALPN = "roost-client/1"
VERSION = 1
REQUESTS_IN_FLIGHT_MAX = 256
REQUEST_BYTES_IN_FLIGHT_MAX = 1 << 20
FEED_ITEMS_MAX = 256
FEED_BYTES_MAX = 1 << 20
PAGE_MAX = 1000
BODY_BYTES_MAX = 64 << 10
CLIENT_FRAME_BYTES_MAX = 128 << 10  # none needs more: the longest has a body in base64
PASSWORD_CHARS_MAX = 1024
REACTION_BYTES_MAX = 32  # one emoji, however many joined marks it has

# Every refusal has one of these codes; `retry` says whether repeating the same request can help.
CODES: dict[str, tuple[bool, str]] = {
    "bad_frame": (False, "the frame is not in the protocol"),
    "bad_version": (False, "no protocol version in common"),
    "bad_request": (False, "a field has a value that is not allowed"),
    "bad_login": (False, "name or password is wrong"),
    "bad_token": (False, "the device's token is not valid (revoked or logged out)"),
    "bad_invite": (False, "the invite is unknown, used, expired or revoked"),
    "name_taken": (False, "the name is taken or reserved"),
    "disabled": (False, "the account is disabled"),
    "forbidden": (False, "not allowed for this account"),
    "not_yours": (False, "only who wrote a message may do that with it"),
    "not_found": (False, "no such thing here, or not for you"),
    "unknown_node": (False, "no node of that name is known here"),
    "unknown_user": (False, "that node has no such user"),
    "blocked": (False, "the other node is blocked here, or the other user, by you or by this node"),
    "declined": (False, "the recipient does not take messages from you"),
    "conflict": (False, "the idempotency key was used for another message"),
    "too_large": (False, "over a size limit"),
    "stale": (True, "what the message was made for has changed; nothing was stored"),
    "mailbox_full": (True, "the recipient's mailbox, or the sender's own, is full until one of their devices fetches"),
    "destination_backlogged": (True, "too much is already waiting for that node"),
    "held": (False, "the node runs on an old copy of its store until its administrator accepts that; reads go on"),
    "storage_full": (True, "the node's disk is full; reads go on"),
    "damaged": (False, "what the node has stored of this is damaged; its administrator can look with `roost verify`"),
    "busy": (True, "the node is busy or stopping"),
    "too_slow": (True, "a deadline passed before the hello, or before a login"),
    "rate_limited": (True, "too many requests"),
    "failed": (True, "the node could not do it"),
}

Id = Annotated[str, msgspec.Meta(max_length=64)]
Name = Annotated[str, msgspec.Meta(max_length=64)]
Target = Annotated[str, msgspec.Meta(max_length=320)]  # an address or a conversation id
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=(1 << 47) - 1)]  # of a signed stamp: all that its 63 bits can say
Order = Annotated[str, msgspec.Meta(pattern="^[0-7][0-9a-f]{15}$", max_length=16)]  # 63 bits; sorts as text
Password = Annotated[str, msgspec.Meta(max_length=PASSWORD_CHARS_MAX)]
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Bytes64 = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Frame(msgspec.Struct, frozen=True, tag_field="t", forbid_unknown_fields=True, omit_defaults=True):
    """Any frame; `t` names its type."""


# --- from the client ------------------------------------------------------------------------------------------------
class Hello(Frame, tag="hello", frozen=True):
    """The first frame; answered by `welcome`."""

    version_min: int
    version_max: int
    nonce: Bytes32


class Cursor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place in a mailbox; positions of another store incarnation mean nothing."""

    store: Id
    position: Count


class Request(Frame, frozen=True):
    """A frame that gets exactly one `reply` or `error` with the same id."""

    id: Annotated[int, msgspec.Meta(ge=1, le=(1 << 53) - 1)]


class Login(Request, tag="login", frozen=True):
    """Make a new device of an account; the signing key proves itself over the welcome's nonce."""

    user: Name
    password: Password
    device_name: Name
    signing_key: Bytes32
    proof: Bytes64


class Register(Request, tag="register", frozen=True):
    """Make an account with a one-use invite, and its first device."""

    invite: Annotated[str, msgspec.Meta(max_length=128)]
    user: Name
    password: Password
    device_name: Name
    signing_key: Bytes32
    proof: Bytes64


class Auth(Request, tag="auth", frozen=True):
    """Go on as a known device; the feed starts after `resume`, or where the device last acknowledged."""

    token: Annotated[str, msgspec.Meta(max_length=128)]
    resume: Cursor | None = None
    feed: bool = True  # false: requests only; nothing is pushed, and so nothing acknowledged: the mailbox fills


class Send(Request, tag="send", frozen=True):
    """Store one event; `key` makes repeating it safe for as long as the event exists."""

    key: Key
    to: Target
    body: Annotated[bytes, msgspec.Meta(max_length=BODY_BYTES_MAX)]
    format: Annotated[str, msgspec.Meta(max_length=32)] = "text"
    kind: Annotated[str, msgspec.Meta(max_length=32)] = "message"
    target: Id | None = None  # the message that this answers, or that an edit, deletion, reaction or pin is about
    expires_ms: Count | None = None
    thread: Id | None = None  # the first message of the thread that a message belongs to
    undo: bool = False  # of a reaction: it is taken back


class Ack(Frame, tag="ack", frozen=True):
    """Stored and opened everything up to `position`, except these positions. Has no answer."""

    position: Count
    missing: Annotated[tuple[Count, ...], msgspec.Meta(max_length=64)] = ()


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A watermark over one log."""

    origin: Id
    log: Id
    seq: Count


class Read(Request, tag="read", frozen=True):
    """A person has seen these logs of the conversation up to these numbers."""

    conversation: Id
    marks: Annotated[tuple[Mark, ...], msgspec.Meta(max_length=64)]


class GetHistory(Request, tag="history", frozen=True):
    """A page of a conversation, newest first going back from `before` (an event id), given oldest first.

    At most `limit` messages, and fewer where they would not fit a frame: `more` says whether any are left.
    """

    conversation: Target
    before: Id | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_MAX)] = 200


class GetConversations(Request, tag="conversations", frozen=True):
    """A page of one's conversations by id, past `after` (the last id of the page before).

    At most `limit` of them, and fewer where they would not fit a frame: `more` says whether any are left.
    """

    requests_only: bool = False
    after: Id | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_MAX)] = 200


class Accept(Request, tag="accept", frozen=True):
    conversation: Target


class Decline(Request, tag="decline", frozen=True):
    conversation: Target


class GetState(Request, tag="state", frozen=True):
    event: Id


class GetWhy(Request, tag="why", frozen=True):
    event: Id


class GetDevices(Request, tag="devices", frozen=True):
    pass


class RenameDevice(Request, tag="rename_device", frozen=True):
    device: Id
    name: Name


class RevokeDevice(Request, tag="revoke_device", frozen=True):
    """Its token is dead at once; its connections close. Revoking one's own device is logging out."""

    device: Id


class SetProfile(Request, tag="set_profile", frozen=True):
    display_name: Annotated[str, msgspec.Meta(max_length=80)] | None = None
    requests: Literal["strangers", "everyone"] | None = None  # whose first message asks before it is a conversation
    presence: Literal["contacts", "nobody"] | None = None  # who is shown that one is there, or types


class Block(Request, tag="block", frozen=True):
    """Nothing of theirs comes any more, and nothing goes to them: `who` is an address, or a node for all its users."""

    who: Target


class Unblock(Request, tag="unblock", frozen=True):
    who: Target


class GetBlocks(Request, tag="blocks", frozen=True):
    pass


class Typing(Request, tag="typing", frozen=True):
    """Tell the other members that one types, or does not any more; again every few seconds, since it is soon forgotten.

    Nobody hears of it where it is not theirs to hear: the answer is the same.
    """

    conversation: Target
    on: bool = True


class SetPresence(Request, tag="presence", frozen=True):
    """This device is before a person (`online`) or not (`away`); again within five minutes, or it counts as away.

    The node adds up the devices that say so, and answers the first one of a connection with who else is there.
    """

    state: Literal["online", "away"]


class Ping(Request, tag="ping", frozen=True):
    pass


# --- from the node --------------------------------------------------------------------------------------------------
class Welcome(Frame, tag="welcome", frozen=True):
    """Who the node is, proved over this channel by its pinned key (PROTOCOL.md 3.3)."""

    version: int
    name: str
    chain: bytes
    nonce: Bytes32
    proof: Bytes64


class Result(msgspec.Struct, frozen=True, tag_field="t", omit_defaults=True):
    """What a reply holds."""


class Done(Result, tag="done", frozen=True):
    pass


class LoggedIn(Result, tag="logged_in", frozen=True):
    address: str
    device: Id
    token: str  # shown once; the node keeps only its hash


class Ready(Result, tag="ready", frozen=True):
    address: str
    device: Id
    display_name: str
    acked: Cursor  # up to here this device has acknowledged
    head: Count  # the mailbox's newest position


class Accepted(Result, tag="accepted", frozen=True):
    """Committed and fsynced here."""

    event: Id
    conversation: Id
    origin: Id
    log: Id
    seq: Count
    stamp: Millis


class Message(msgspec.Struct, frozen=True, tag="message", tag_field="t", omit_defaults=True):
    """One event as a member sees it."""

    event: Id
    conversation: Id
    origin: Id
    log: Id
    seq: Count
    sender: str
    device: Id
    stamp: Millis  # ms; display and order use (stamp, order)
    order: Order  # the whole signed stamp
    kind: str
    format: str
    body: bytes | None  # none: deleted
    target: Id | None = None
    thread: Id | None = None
    undo: bool = False
    late: bool = False  # arrived after newer ones were already here
    position: Count = 0  # in the feed; 0 in history pages
    state: str = ""  # of one's own messages in history pages
    reason: str = ""  # why it failed


class Watermark(msgspec.Struct, frozen=True, tag="watermark", tag_field="t", omit_defaults=True):
    """How far one member is with one of my node's logs; moves to a new position when it changes."""

    conversation: Id
    origin: Id
    log: Id
    member: str
    sent: Count = 0
    delivered: Count = 0
    read: Count = 0
    missing: tuple[Count, ...] = ()
    at: Count = 0
    position: Count = 0


class Failure(msgspec.Struct, frozen=True, tag="failure", tag_field="t", omit_defaults=True):
    """A message that will not reach a member, and why."""

    event: Id
    conversation: Id
    member: str
    code: str
    reason: str
    at: Count = 0
    position: Count = 0


class ConversationState(msgspec.Struct, frozen=True, tag="conversation", tag_field="t", omit_defaults=True):
    """A conversation as this user stands in it."""

    conversation: Id
    other: str  # the other member's address
    state: Literal["open", "request", "declined"]
    read: tuple[Mark, ...] = ()  # this user's own read marks, from any device
    last: Count = 0  # stamp of the newest event, ms
    position: Count = 0


class DeviceState(msgspec.Struct, frozen=True, tag="device", tag_field="t", omit_defaults=True):
    device: Id
    name: str
    created: Count
    seen: Count = 0
    revoked: bool = False
    this: bool = False
    position: Count = 0


class Damaged(msgspec.Struct, frozen=True, tag="damaged", tag_field="t", omit_defaults=True):
    """Something that should be here and cannot be shown (PROTOCOL.md 7.6); ids are empty where nothing tells them."""

    why: str  # damaged, missing, lost, quarantined
    conversation: Id = ""
    origin: Id = ""
    log: Id = ""
    seq: Count = 0
    upto: Count = 0  # the last of a run that is missing; else the same as seq
    event: Id = ""  # what `before` of `history` takes
    position: Count = 0


Item = Message | Watermark | Failure | ConversationState | DeviceState | Damaged


class History(Result, tag="history", frozen=True):
    messages: tuple[Message | Damaged, ...]
    more: bool = False
    about: tuple[Message, ...] = ()  # edits and the like of these messages that are not among them, in order


class Conversations(Result, tag="conversations", frozen=True):
    conversations: tuple[ConversationState, ...]
    more: bool = False


class Recipient(msgspec.Struct, frozen=True, omit_defaults=True):
    address: str
    state: Literal["accepted", "sent", "delivered", "read", "failed", "void"]
    at: Count
    reason: str = ""


class States(Result, tag="states", frozen=True):
    event: Id
    to: tuple[Recipient, ...]
    conversation: Id = ""


class Hop(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing this node knows about a message's way."""

    at: Count  # 0: not yet
    what: str
    detail: str = ""


class Why(Result, tag="why", frozen=True):
    event: Id
    summary: str
    hops: tuple[Hop, ...]


class Devices(Result, tag="devices", frozen=True):
    devices: tuple[DeviceState, ...]


class BlockState(msgspec.Struct, frozen=True, omit_defaults=True):
    who: str  # an address, or a node
    since: Count


class Blocks(Result, tag="blocks", frozen=True):
    blocks: tuple[BlockState, ...]


AnyResult = Done | LoggedIn | Ready | Accepted | History | Conversations | States | Why | Devices | Blocks


class Reply(Frame, tag="reply", frozen=True):
    id: int
    result: AnyResult


class Error(Frame, tag="error", frozen=True):
    """A typed refusal; without an id it concerns the whole connection."""

    code: str
    message: str
    id: int = 0
    retry_after_ms: Count = 0


class Feed(Frame, tag="feed", frozen=True):
    """Mailbox items past the device's cursor, in order; acknowledge the last position once they are safe."""

    store: Id
    items: tuple[Item, ...]


class PeerLight(Frame, tag="light", frozen=True):
    """The link from this node to another one, for people: ephemeral, never stored."""

    node: str
    state: Literal["up", "down", "connecting"]
    since: Count


class Ephemeral(Frame, tag="ephemeral", frozen=True):
    """A sign of life: not in the feed, never stored, perhaps never told; the newest of one kind counts."""

    conversation: Id
    who: str  # the other member's address
    kind: Literal["typing", "idle", "online", "away", "offline"]
    holds: Count  # for so many ms, unless the next one comes; then as if `idle` or `offline` had


class Goodbye(Frame, tag="goodbye", frozen=True):
    code: str
    reason: str = ""


AnyRequest = (
    Login | Register | Auth | Send | Read | GetHistory | GetConversations | Accept | Decline | GetState | GetWhy
    | GetDevices | RenameDevice | RevokeDevice | SetProfile | Block | Unblock | GetBlocks | Typing | SetPresence | Ping
)  # fmt: skip
FromClient = Hello | Ack | AnyRequest
FromNode = Welcome | Reply | Error | Feed | PeerLight | Ephemeral | Goodbye


class ApiError(Exception):
    """A typed refusal of a request; `code` is a key of CODES."""

    def __init__(self, code: str, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        assert code in CODES, code
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms

    @property
    def retry(self) -> bool:
        return CODES[self.code][0]


def order(stamp: int) -> str:
    """A signed stamp (0 ... 2^63-1) as `Message.order`: 16 hex digits, so that texts sort as the stamps do."""
    return f"{stamp:016x}"


def login_bytes(node: bytes, nonce: bytes, user: str) -> bytes:
    """What a device's signing key signs at login, under the domain `device-login` (PROTOCOL.md 7.3).

    The node id is in it, so that no node can use at another one what was signed for itself.
    """
    return node + nonce + user.encode()

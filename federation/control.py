"""What is written in a group's control log, byte for byte: proposals, entries, certificates (PROTOCOL.md 11).

Signed bytes are kept and passed on as they came, and have one encoding each. What an entry does to the group is in
`federation.groups`, who orders entries in `federation.stewards`.
"""

from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from federation.errors import ProtocolError
from federation.event import Hash, Seq
from federation.identity import NodeKey, Signature, check_chain, decode_chain, event_keys, verify
from federation.ids import CONVERSATION_ID_BYTES, DEVICE_ID_BYTES, INCARNATION_BYTES, NODE_ID_BYTES, User, digest

NONCE_BYTES = 16
SECRET_BYTES = 16
PEOPLE_MAX = 64  # in one proposal
CUTS_MAX = 1024  # logs in one cut
STEWARDS_MAX = 5
PROPOSAL_BYTES_MAX = 32 << 10
ENTRY_BYTES_MAX = 60 << 10  # with its certificate it fits one notice
CHAIN_BYTES_MAX = 32 << 10
KEYS_CACHED_MAX = 256

Group = Annotated[bytes, msgspec.Meta(min_length=CONVERSATION_ID_BYTES, max_length=CONVERSATION_ID_BYTES)]
NodeId = Annotated[bytes, msgspec.Meta(min_length=NODE_ID_BYTES, max_length=NODE_ID_BYTES)]
Incarnation = Annotated[bytes, msgspec.Meta(min_length=INCARNATION_BYTES, max_length=INCARNATION_BYTES)]
Device = Annotated[bytes, msgspec.Meta(max_length=DEVICE_ID_BYTES)]
Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Local = Annotated[str, msgspec.Meta(max_length=64)]
Name = Annotated[str, msgspec.Meta(max_length=100)]
Text = Annotated[str, msgspec.Meta(max_length=500)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
Term = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
Index = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
Nodes = Annotated[tuple[NodeId, ...], msgspec.Meta(max_length=64)]
ChainBytes = Annotated[bytes, msgspec.Meta(max_length=CHAIN_BYTES_MAX)]
Domain = Annotated[str, msgspec.Meta(max_length=253)]
Role = Literal["owner", "admin", "moderator", "member", "readonly"]
Setting = Literal["name", "topic", "retention", "history", "invite"]


class Card(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node that people of the group are on: its name and its key chain, so that nobody needs to know it already."""

    name: Domain
    chain: ChainBytes


class Person(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node: NodeId
    local: Local
    role: Role


class _Op(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class Create(_Op, tag="create", frozen=True):
    """The first entry: the group, with its creator as its owner and their node as its steward."""

    name: Name
    card: Card  # of the creator's node


class Add(_Op, tag="add", frozen=True):
    people: Annotated[tuple[Person, ...], msgspec.Meta(min_length=1, max_length=PEOPLE_MAX)]
    cards: Annotated[tuple[Card, ...], msgspec.Meta(max_length=PEOPLE_MAX)]  # of nodes that are new to the group


class Remove(_Op, tag="remove", frozen=True):
    node: NodeId
    local: Local


class SetRole(_Op, tag="role", frozen=True):
    node: NodeId
    local: Local
    role: Role


class Leave(_Op, tag="leave", frozen=True):
    pass


class Set(_Op, tag="set", frozen=True):
    key: Setting
    value: Text


class Stewards(_Op, tag="stewards", frozen=True):
    nodes: Annotated[tuple[NodeId, ...], msgspec.Meta(min_length=1, max_length=STEWARDS_MAX)]


class Succession(_Op, tag="succession", frozen=True):
    """Who may take over from one or two stewards, first in line first."""

    nodes: Nodes


class Takeover(_Op, tag="takeover", frozen=True):
    """The proposer's node orders the group from now on."""


class MakeLink(_Op, tag="link", frozen=True):
    """Whoever shows the secret may join, until it is used up or expired."""

    secret_hash: Hash
    uses: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    expires_ms: Millis  # 0: never
    role: Literal["member", "readonly"]


class DropLink(_Op, tag="unlink", frozen=True):
    secret_hash: Hash


class Join(_Op, tag="join", frozen=True):
    """By a link; the proposer becomes a member."""

    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    card: Card


class Renew(_Op, tag="renew", frozen=True):
    """The proposer's node has another key or another name."""

    card: Card


Op = (
    Create | Add | Remove | SetRole | Leave | Set | Stewards | Succession | Takeover
    | MakeLink | DropLink | Join | Renew
)  # fmt: skip


class Proposal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What somebody wants changed, signed by their device (PROTOCOL.md 11.2)."""

    version: Literal[1]
    group: Annotated[bytes, msgspec.Meta(max_length=CONVERSATION_ID_BYTES)]  # empty in `create`
    node: NodeId
    local: Local  # empty: the node itself
    device: Device
    key: Annotated[bytes, msgspec.Meta(max_length=32)]  # the device's; empty for the node itself
    under: Index  # the newest entry that the proposer knew; what changed since is not what they meant (11.2)
    nonce: Nonce
    at_ms: Millis
    op: Op

    @property
    def actor(self) -> User:
        return User(self.node, self.local)


class Proposed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A proposal as it travels: exact bytes, the device's signature, and its node's word that the device is the
    user's (empty for the node itself)."""

    raw: Annotated[bytes, msgspec.Meta(max_length=PROPOSAL_BYTES_MAX)]
    signature: Signature
    voucher: Annotated[bytes, msgspec.Meta(max_length=64)]

    @property
    def id(self) -> bytes:
        return digest("proposal", self.raw)


class Cut(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last event of a removed user that stands, in one log of their node."""

    incarnation: Incarnation
    seq: Seq


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One step of a group's membership history (PROTOCOL.md 11.3)."""

    version: Literal[1]
    group: Group
    index: Seq
    previous: Hash | None  # hash of the entry before; none at index 1
    proposed: Proposed
    cuts: Annotated[tuple[Cut, ...], msgspec.Meta(max_length=CUTS_MAX)]
    at_ms: Millis  # of the steward that made the entry
    state: Hash  # of the state after it


class Vouched(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One steward's signature in a certificate."""

    node: NodeId
    signature: Signature


class Certificate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Enough stewards vouch that this entry is the one of its index (PROTOCOL.md 11.5)."""

    term: Term
    signatures: Annotated[tuple[Vouched, ...], msgspec.Meta(min_length=1, max_length=2 * STEWARDS_MAX)]


class Certified(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    entry: Annotated[bytes, msgspec.Meta(max_length=ENTRY_BYTES_MAX)]  # exact bytes
    certificate: Certificate


class Opened(NamedTuple):
    """A proposal with what it says."""

    proposal: Proposal
    proposed: Proposed


_encoder = msgspec.msgpack.Encoder()
_proposal = msgspec.msgpack.Decoder(Proposal)
_entry = msgspec.msgpack.Decoder(Entry)


def encode(value: msgspec.Struct) -> bytes:
    return _encoder.encode(value)


def strictly(decoder: "msgspec.msgpack.Decoder[Any]", raw: bytes, what: str, rule: str) -> Any:
    try:
        value = decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("bad_control", f"{what} cannot be read: {str(error)[:120]!r}", rule) from None
    if _encoder.encode(value) != raw:
        raise ProtocolError("bad_control", f"{what} has a second encoding", rule)
    return value


def read_proposal(raw: bytes) -> Proposal:
    """Decode strictly; says nothing of the signature. `ProtocolError` (PROTOCOL.md 11.2)."""
    value: Proposal = strictly(_proposal, raw, "a proposal", "11.2")
    if isinstance(value.op, Create) != (value.group == b""):
        raise ProtocolError("bad_control", "a proposal names its group, and only `create` has none yet", "11.2")
    return value


@lru_cache(64)
def read_entry(raw: bytes) -> Entry:
    value: Entry = strictly(_entry, raw, "an entry", "11.3")
    if (value.index == 1) != (value.previous is None):
        raise ProtocolError("bad_control", "an entry names the one before it, but for the first", "11.3")
    logs = [cut.incarnation for cut in value.cuts]
    if logs != sorted(set(logs)):
        raise ProtocolError("bad_control", "a cut names each log once, in the order of their incarnations", "11.3")
    return value


@lru_cache(1024)
def entry_hash(raw: bytes) -> bytes:
    return digest("entry", raw)


def group_id(create: bytes) -> bytes:
    """The id of a group: the hash of the proposal that created it (PROTOCOL.md 11.1)."""
    return digest("group", create)


def voucher_bytes(node: bytes, local: str, device: bytes, key: bytes) -> bytes:
    return digest("device", node, local.encode(), device, key)


def vouch(key: NodeKey, node: bytes, local: str, device: bytes, device_key: bytes) -> bytes:
    """The node's word that a device with this key is the user's (PROTOCOL.md 11.2)."""
    return key.sign("device", voucher_bytes(node, local, device, device_key))


def certify_bytes(group: bytes, term: int, index: int, entry: bytes) -> bytes:
    return digest("certify", group, term.to_bytes(8, "big"), index.to_bytes(8, "big"), entry)


def certify(key: NodeKey, group: bytes, term: int, index: int, entry: bytes) -> bytes:
    """A steward's signature under an entry's hash (PROTOCOL.md 11.5)."""
    return key.sign("certify", certify_bytes(group, term, index, entry))


@lru_cache(KEYS_CACHED_MAX)
def chain_keys(chain: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """The node that a chain is of, and the keys that may speak for it, newest first. `ProtocolError`."""
    decoded = decode_chain(chain)
    return check_chain(decoded).node, event_keys(decoded)


def node_signed(chain: bytes, domain: str, said: bytes, signature: bytes) -> bool:
    """Whether one of the newest keys of the chain's node signed this."""
    return any(verify(key, domain, said, signature) for key in chain_keys(chain)[1])


def check_proposed(proposed: Proposed, chain: bytes) -> Proposal:
    """The proposal, if its device signed it and the chain's node vouches for the device (PROTOCOL.md 11.2).

    Only the chain's newest key counts: a proposal comes over any node's link, so that a key that was rotated away would
    still serve whoever stole it.
    """
    proposal = read_proposal(proposed.raw)
    node, (key, *_) = chain_keys(chain)
    if node != proposal.node:
        raise ProtocolError("bad_control", "a proposal with another node's chain", "11.2")
    if proposal.local:
        said = voucher_bytes(proposal.node, proposal.local, proposal.device, proposal.key)
        known = verify(key, "device", said, proposed.voucher)
        holds = known and verify(proposal.key, "proposal", proposed.raw, proposed.signature)
    else:
        plain = not proposal.device and not proposal.key and not proposed.voucher
        holds = plain and verify(key, "proposal", proposed.raw, proposed.signature)
    if not holds:
        raise ProtocolError("bad_signature", "a proposal is not signed by the device that it names", "11.2")
    return proposal

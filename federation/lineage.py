"""How a newcomer gets to know a group without its whole log (PROTOCOL.md 11.12).

Who may certify follows from the entries that changed the stewards, each certified by the stewards before it, back to
the first entry, which gives the group its id. Everything else is in the state, whose hash the newest entry names.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from federation import control, groups
from federation.control import Certified, ChainBytes, Entry, Proposal
from federation.errors import ProtocolError
from federation.roster import Site, State, Tip, decode_state, state_hash

TURNS_MAX = 256  # changes of stewards
CHAINS_MAX = 1024
STATE_PART_BYTES = 48 << 10
STATE_PARTS_MAX = 512
STATE_BYTES_MAX = STATE_PART_BYTES * STATE_PARTS_MAX


class Turn(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An entry that changed the stewards; before a takeover, also the entry on which it is built, and the state after
    that, since only the state says who may take over."""

    certified: Certified
    base: Certified | None = None
    state: Annotated[bytes, msgspec.Meta(max_length=STATE_BYTES_MAX)] = b""


class Lineage(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first entry, those that changed the stewards, and the newest; with the key chains of all who signed."""

    create: Certified
    turns: Annotated[tuple[Turn, ...], msgspec.Meta(max_length=TURNS_MAX)]
    newest: Certified
    chains: Annotated[tuple[ChainBytes, ...], msgspec.Meta(max_length=CHAINS_MAX)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Lineage)


def encode_lineage(lineage: Lineage) -> bytes:
    return _encoder.encode(lineage)


def read_lineage(raw: bytes) -> Lineage:
    """Decode strictly; says nothing of what it proves. `ProtocolError` (PROTOCOL.md 11.12)."""
    value: Lineage = control.strictly(_decoder, raw, "a lineage", "11.12")
    return value


def make_lineage(entries: Sequence[Certified], states: "dict[int, bytes]", chains: Sequence[bytes]) -> Lineage:
    """Of a whole log. `states` holds the state after each entry on which a takeover is built, by its index."""
    turns = []
    for at, certified in enumerate(entries):
        match _proposal(control.read_entry(certified.entry)).op:
            case control.Stewards():
                turns.append(Turn(certified))
            case control.Takeover():
                turns.append(Turn(certified, entries[at - 1], states[at]))
    return Lineage(entries[0], tuple(turns), entries[-1], tuple(sorted(set(chains))))


class _Trusted(NamedTuple):
    """As far as a lineage was followed: who certifies, after which entry."""

    stewards: State  # nothing of it counts but its stewards and the chains of nodes
    at: int  # the index of that entry
    hash: bytes
    term: int


def check_lineage(group: bytes, lineage: Lineage, state: bytes) -> Tip:
    """The tip that a lineage proves for this group, with the newest state. `ProtocolError` (PROTOCOL.md 11.12)."""
    tip = groups.check_certified(None, lineage.create.entry, lineage.create.certificate)
    if tip.state.group != group:
        raise ProtocolError("bad_control", "a lineage of another group", "11.12")
    nodes = {control.chain_keys(chain)[0]: chain for chain in lineage.chains}
    sites = tuple(Site(node, "", nodes[node], 1) for node in sorted(nodes))
    trusted = _Trusted(msgspec.structs.replace(tip.state, sites=sites), 1, tip.hash, tip.term)
    for turn in lineage.turns:
        trusted = _turned(trusted, turn)
    newest = control.read_entry(lineage.newest.entry)
    if newest.index <= trusted.at:
        _same(trusted, lineage.newest)
    else:
        trusted = _certified(trusted, lineage.newest)
    found = _state(newest, state)
    if found.stewards != trusted.stewards.stewards:
        raise ProtocolError("bad_control", "a lineage without all changes of stewards", "11.12")
    return Tip(found, trusted.hash, trusted.term)


def _turned(trusted: _Trusted, turn: Turn) -> _Trusted:
    """After one change of stewards."""
    op = _proposal(control.read_entry(turn.certified.entry)).op
    if isinstance(op, control.Stewards):
        after = _certified(trusted, turn.certified)
        return after._replace(stewards=msgspec.structs.replace(trusted.stewards, stewards=op.nodes))
    if not isinstance(op, control.Takeover) or turn.base is None:
        raise ProtocolError("bad_control", "a turn of a lineage changes the stewards", "11.12")
    base = control.read_entry(turn.base.entry)
    if base.index == trusted.at:
        _same(trusted, turn.base)
    else:
        trusted = _certified(trusted, turn.base)
    before = Tip(_state(base, turn.state), trusted.hash, trusted.term)
    if before.state.stewards != trusted.stewards.stewards:
        raise ProtocolError("bad_control", "a takeover from others than who certified", "11.12")
    tip = groups.check_certified(before, turn.certified.entry, turn.certified.certificate)
    stewards = msgspec.structs.replace(trusted.stewards, stewards=tip.state.stewards)
    return _Trusted(stewards, tip.state.index, tip.hash, tip.term)


def _certified(trusted: _Trusted, certified: Certified) -> _Trusted:
    """After an entry that those certify who were known to; what it does was theirs to check."""
    entry, hash_ = control.read_entry(certified.entry), control.entry_hash(certified.entry)
    if entry.group != trusted.stewards.group or entry.index <= trusted.at:
        raise ProtocolError("bad_control", "an entry of another group, or out of order", "11.12")
    if entry.index == trusted.at + 1 and entry.previous != trusted.hash:
        raise ProtocolError("bad_control", "an entry of another branch", "11.12")
    if isinstance(_proposal(entry).op, control.Takeover):
        raise ProtocolError("bad_control", "a takeover without what it is built on", "11.12")
    before = Tip(trusted.stewards, trusted.hash, trusted.term)
    groups.check_certificate(before, entry, trusted.stewards, hash_, certified.certificate)
    return _Trusted(trusted.stewards, entry.index, hash_, certified.certificate.term)


def _same(trusted: _Trusted, certified: Certified) -> None:
    if control.entry_hash(certified.entry) != trusted.hash:
        raise ProtocolError("bad_control", "an entry of another branch", "11.12")


def _state(entry: Entry, raw: bytes) -> State:
    """The state that an entry names."""
    state = decode_state(raw)
    if state_hash(state) != entry.state or (state.group, state.index) != (entry.group, entry.index):
        raise ProtocolError("bad_control", "another state than the entry names", "11.12")
    return state


def _proposal(entry: Entry) -> Proposal:
    return control.read_proposal(entry.proposed.raw)


def split_state(raw: bytes) -> tuple[bytes, ...]:
    """A state in parts that fit a notice."""
    return tuple(raw[at : at + STATE_PART_BYTES] for at in range(0, len(raw), STATE_PART_BYTES))


def join_state(parts: Sequence[bytes], hash_: bytes) -> State:
    """The state of this hash, from its parts. `ProtocolError` (PROTOCOL.md 11.12)."""
    if len(parts) > STATE_PARTS_MAX or any(len(part) > STATE_PART_BYTES for part in parts):
        raise ProtocolError("bad_control", "a state in too many parts, or too long ones", "11.12")
    state = decode_state(b"".join(parts))
    if state_hash(state) != hash_:
        raise ProtocolError("bad_control", "another state than the one asked for", "11.12")
    return state

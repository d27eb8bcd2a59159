"""Nodes, people and proposals for tests of groups; the keys are real, and always the same."""

from functools import cache
from typing import NamedTuple

from federation import control, groups
from federation.control import Card, Certificate, Certified, Entry, Op, Person, Proposal, Proposed, Role, Vouched
from federation.groups import Tip
from federation.identity import Chain, NodeKey, check_chain, encode_chain, new_chain
from federation.ids import User, digest

NOW_MS = 1_700_000_000_000


class Site(NamedTuple):
    """A node with its key."""

    letter: str
    key: NodeKey
    chain: Chain

    @property
    def node(self) -> bytes:
        return check_chain(self.chain).node

    @property
    def card(self) -> Card:
        return Card(f"{self.letter}.test", encode_chain(self.chain))

    def user(self, local: str = "") -> User:
        return User(self.node, local or f"{self.letter}lice")


@cache
def site(letter: str) -> Site:
    """Their node ids are in the order of their letters, which makes failures easier to read."""
    rank = ord(letter) - ord("a")
    for salt in range(4096):
        key = NodeKey(digest("test", letter.encode(), salt.to_bytes(2, "big")))
        chain = new_chain(key, NodeKey(bytes(32)).public, bytes(32))
        if check_chain(chain).node[0] >> 4 == rank:
            return Site(letter, key, chain)
    raise AssertionError("no such id")


def device(user: User) -> NodeKey:
    return NodeKey(digest("test", user.node, user.local.encode()))


def propose(by: Site, op: Op, group: bytes, under: int, local: str = "", nonce: int = 0) -> Proposed:
    """Of a user's only device, vouched for by their node."""
    user, id_ = by.user(local), bytes(16)
    key = device(user)
    proposal = Proposal(
        1, group, user.node, user.local, id_, key.public, under, nonce.to_bytes(16, "big"), NOW_MS, op
    )  # fmt: skip
    raw = control.encode(proposal)
    return Proposed(raw, key.sign("proposal", raw), control.vouch(by.key, user.node, user.local, id_, key.public))


def propose_as_node(by: Site, op: Op, group: bytes, under: int, nonce: int = 0) -> Proposed:
    raw = control.encode(
        Proposal(1, group, by.node, "", b"", b"", under, nonce.to_bytes(16, "big"), NOW_MS, op)
    )  # fmt: skip
    return Proposed(raw, by.key.sign("proposal", raw), b"")


def entry_of(tip: Tip | None, proposed: Proposed, cuts: tuple[control.Cut, ...] = (), at_ms: int = NOW_MS) -> bytes:
    state = groups.after(tip.state, proposed, cuts, at_ms) if tip is not None else groups.created(proposed)
    previous = tip.hash if tip is not None else None
    return control.encode(Entry(1, state.group, state.index, previous, proposed, cuts, at_ms, groups.state_hash(state)))


def certified(raw: bytes, term: int, *signers: Site) -> Certified:
    entry, hash_ = control.read_entry(raw), control.entry_hash(raw)
    signed = (Vouched(s.node, control.certify(s.key, entry.group, term, entry.index, hash_)) for s in signers)
    return Certified(raw, Certificate(term, tuple(sorted(signed, key=lambda v: v.node))))


def add(*people: tuple[Site, Role], local: str = "") -> control.Add:
    return control.Add(
        tuple(Person(s.node, s.user(local).local, role) for s, role in people), tuple(s.card for s, _ in people)
    )


class Log:
    """A control log that grows, each entry certified by these nodes."""

    def __init__(self, creator: Site, name: str = "ops") -> None:
        self.entries: list[Certified] = []
        self.tip: Tip | None = None
        self.put(propose(creator, control.Create(name, creator.card), b"", 0), creator)

    @property
    def at(self) -> Tip:
        assert self.tip is not None
        return self.tip

    @property
    def group(self) -> bytes:
        return self.at.state.group

    def put(self, proposed: Proposed, *signers: Site, cuts: tuple[control.Cut, ...] = (), term: int = -1) -> Tip:
        term = term if term >= 0 else self.tip.term if self.tip is not None else 0
        entry = certified(entry_of(self.tip, proposed, cuts), term, *signers)
        self.tip = groups.check_certified(self.tip, entry.entry, entry.certificate)
        self.entries.append(entry)
        return self.tip

    def do(self, by: Site, op: Op, *signers: Site, local: str = "", cuts: tuple[control.Cut, ...] = ()) -> Tip:
        return self.put(propose(by, op, self.group, self.at.state.index, local), *(signers or (by,)), cuts=cuts)


def founded(letters: str, stewards: str = "") -> Log:
    """A group of the first letter's node: one owner on each node, and these stewards."""
    first, *rest = (site(letter) for letter in letters)
    log = Log(first)
    if rest:
        log.do(first, add(*((s, "owner") for s in rest)))
    if stewards:
        chosen = tuple(site(letter) for letter in stewards)
        log.do(first, control.Stewards(tuple(s.node for s in chosen)), *{first, *chosen})
    return log

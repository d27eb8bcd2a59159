"""What a group's control log means: the state after each entry, who may change what, which events stand
(PROTOCOL.md 11).

Pure. The same entries give the same state, byte for byte, at every node.
"""

from collections.abc import Iterable
from functools import lru_cache
from hmac import compare_digest
from typing import Annotated, Literal, NamedTuple

import msgspec

from federation import control
from federation.control import Card, Certificate, Cut, Entry, NodeId, Proposal, Proposed, Role
from federation.errors import ProtocolError
from federation.event import Hash, Seq
from federation.identity import verify
from federation.ids import User, check_domain, check_local_name, digest

MEMBERS_MAX = 10_000
PAST_MAX = 10_000  # memberships that ended; the oldest are forgotten, and their events are void
LINKS_MAX = 64
RANK: dict[str, int] = {"readonly": 0, "member": 1, "moderator": 2, "admin": 3, "owner": 4}
HISTORY_MAX = 1_000_000
SIZES = (1, 2, 3, 5)  # how many stewards there may be


class Site(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node of the group: people of it are members, or it is a steward."""

    node: NodeId
    name: str
    chain: control.ChainBytes
    since: Seq  # entry with which it came


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node: NodeId
    local: str
    role: Role
    since: Seq  # entry from which this role holds
    joined: Seq  # entry with which they came


class Past(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A membership, or a time in one role, that is over: under entries `since` to before `until`."""

    node: NodeId
    local: str
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


class State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A group after an entry (PROTOCOL.md 11.4)."""

    version: Literal[1]
    group: control.Group
    index: Seq
    name: str
    topic: str
    retention_s: int  # 0: for ever
    history: int  # events from before one joined: 0 none, HISTORY_MAX all
    invite: Literal["admins", "members"]
    stewards: tuple[NodeId, ...]
    succession: tuple[NodeId, ...]
    sites: tuple[Site, ...]  # by node id
    members: tuple[Member, ...]  # by node id, then local name
    past: tuple[Past, ...]  # oldest first
    doors: tuple[Door, ...]

    def site(self, node: bytes) -> Site | None:
        return _sites(self).get(node)

    def member(self, user: User) -> Member | None:
        return _members(self).get(user)

    def locals_of(self, node: bytes) -> tuple[str, ...]:
        """The members of one node."""
        return tuple(m.local for m in self.members if m.node == node)

    @property
    def nodes(self) -> frozenset[bytes]:
        """Nodes with members: who gets what is said."""
        return frozenset(m.node for m in self.members)

    @property
    def heirs(self) -> tuple[bytes, ...]:
        """Who may take over, first in line first: what the owner said, else in the order in which they came."""
        line = self.succession or tuple(s.node for s in sorted(self.sites, key=lambda s: (s.since, s.node)))
        return (*self.stewards[1:], *(n for n in line if n not in self.stewards and self.site(n) is not None))


class Tip(NamedTuple):
    """A control log's newest certified entry, as one node knows it."""

    state: State
    hash: bytes
    term: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(State)


@lru_cache(64)
def _sites(state: State) -> dict[bytes, Site]:
    return {site.node: site for site in state.sites}


@lru_cache(64)
def _members(state: State) -> dict[User, Member]:
    return {User(m.node, m.local): m for m in state.members}


def encode_state(state: State) -> bytes:
    return _encoder.encode(state)


@lru_cache(64)
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


def refuse(code: str, text: str, rule: str = "11.6") -> ProtocolError:
    return ProtocolError(code, text, rule)


# --- what an entry does -------------------------------------------------------------------------------------------
def created(proposed: Proposed) -> State:
    """The state after the first entry. `ProtocolError` where the proposal creates nothing (PROTOCOL.md 11.1)."""
    proposal = control.read_proposal(proposed.raw)
    op = proposal.op
    if not isinstance(op, control.Create):
        raise refuse("bad_control", "the first entry creates the group", "11.1")
    control.check_proposed(proposed, op.card.chain)
    _check_name(op.name)
    _check_card(op.card)
    node, local = proposal.actor
    check_user(proposal.actor)
    return State(
        1, control.group_id(proposed.raw), 1, op.name, "", 0, 0, "admins", (node,), (),
        (Site(node, op.card.name, op.card.chain, 1),), (Member(node, local, "owner", 1, 1),), (), (),
    )  # fmt: skip


def check_user(user: User) -> None:
    try:
        check_local_name(user.local)
    except ValueError as error:
        raise refuse("bad_control", str(error), "1.3") from None


def _check_card(card: Card) -> bytes:
    try:
        check_domain(card.name)
    except ValueError as error:
        raise refuse("bad_control", str(error), "1.4") from None
    return control.chain_keys(card.chain)[0]


def _check_name(text: str) -> None:
    if not text.strip() or not text.isprintable():
        raise refuse("bad_control", "a group's name is 1 to 100 printable characters")


def after(state: State, proposed: Proposed, cuts: tuple[Cut, ...], at_ms: int) -> State:
    """The state after one more entry with this proposal. `ProtocolError` where its actor may not (PROTOCOL.md 11.6)."""
    proposal = control.read_proposal(proposed.raw)
    op = proposal.op
    if proposal.group != state.group:
        raise refuse("bad_control", "a proposal for another group")
    if isinstance(op, control.Join):
        chain = op.card.chain
    else:
        site = state.site(proposal.node)
        if site is None:
            raise refuse("not_member", "the proposer's node is not in the group")
        chain = site.chain
    control.check_proposed(proposed, chain)
    if cuts and not isinstance(op, control.Remove | control.SetRole | control.Leave):
        raise refuse("bad_control", "only what takes rights away carries a cut", "11.8")
    new = _Change(state, proposal, cuts, at_ms)
    return new.made()


class _Change:
    """One entry being applied."""

    def __init__(self, state: State, proposal: Proposal, cuts: tuple[Cut, ...], at_ms: int) -> None:
        self.old, self.proposal, self.cuts, self.at_ms = state, proposal, cuts, at_ms
        self.index = state.index + 1
        self.members = dict(_members(state))
        self.sites = dict(_sites(state))
        self.past = list(state.past)
        self.fields: dict[str, object] = {}

    def made(self) -> State:
        actor, op = self.proposal.actor, self.proposal.op
        if isinstance(op, control.Takeover):
            self._takeover()
        elif isinstance(op, control.Join):
            self._join(op)
        else:
            me = self.members.get(actor)
            if me is None:
                raise refuse("not_member", "the proposer is not a member")
            self._op(op, me)
        stewards = self.fields.get("stewards", self.old.stewards)
        assert isinstance(stewards, tuple)
        here = {user.node for user in self.members}
        sites = tuple(self.sites[n] for n in sorted(self.sites) if n in here or n in stewards)
        members = tuple(self.members[u] for u in sorted(self.members))
        if not members:
            stewards = self.old.stewards  # the last one left; nothing more can be proposed
        return msgspec.structs.replace(
            self.old, index=self.index, sites=sites, members=members, past=tuple(self.past[-PAST_MAX:]), **self.fields
        )

    def _need(self, me: Member, role: Role, what: str) -> None:
        if RANK[me.role] < RANK[role]:
            raise refuse("forbidden", f"{what} takes the role {role}, the proposer is {me.role}")

    def _op(self, op: control.Op, me: Member) -> None:
        match op:
            case control.Add():
                self._add(op, me)
            case control.Remove():
                target = self._member(User(op.node, op.local))
                self._need(me, "moderator", "removing people")
                self._over(me, target)
                self._end(target, self.cuts)
            case control.SetRole():
                target = self._member(User(op.node, op.local))
                self._need(me, "admin", "changing roles")
                self._over(me, target)
                self._at_most(me, op.role)
                self._become(target, op.role)
            case control.Leave():
                self._end(me, self.cuts)
                self._inherit()
            case control.Set():
                self._set(op, me)
            case control.Stewards():
                self._need(me, "owner", "choosing stewards")
                if len(set(op.nodes)) != len(op.nodes) or len(op.nodes) not in SIZES:
                    raise refuse("bad_control", "a group has 1, 2, 3 or 5 stewards")
                if any(node not in self.sites for node in op.nodes):
                    raise refuse("bad_control", "a steward is a node of the group")
                self.fields["stewards"] = op.nodes
            case control.Succession():
                self._need(me, "owner", "choosing who succeeds")
                if len(set(op.nodes)) != len(op.nodes) or any(node not in self.sites for node in op.nodes):
                    raise refuse("bad_control", "who succeeds is a node of the group, each once")
                self.fields["succession"] = op.nodes
            case control.MakeLink():
                self._need(me, "admin", "making a link")
                self._at_most(me, op.role)
                doors = tuple(d for d in self.old.doors if d.secret_hash != op.secret_hash and self._open(d))
                if len(doors) >= LINKS_MAX:
                    raise refuse("too_many", f"a group has at most {LINKS_MAX} open links")
                self.fields["doors"] = (*doors, Door(op.secret_hash, op.uses, op.expires_ms, op.role))
            case control.DropLink():
                self._need(me, "admin", "closing a link")
                self.fields["doors"] = tuple(d for d in self.old.doors if d.secret_hash != op.secret_hash)
            case _:
                raise refuse("bad_control", "a group is created once", "11.1")

    def _open(self, door: Door) -> bool:
        return not door.expires_ms or door.expires_ms > self.at_ms

    def _member(self, user: User) -> Member:
        found = self.members.get(user)
        if found is None:
            raise refuse("not_member", f"{user.local} is not a member")
        return found

    def _over(self, me: Member, target: Member) -> None:
        """Admins may act on their equals, moderators only on those below them."""
        mine, theirs = RANK[me.role], RANK[target.role]
        if theirs > mine or (theirs == mine and mine < RANK["admin"]):
            raise refuse("forbidden", f"a {me.role} cannot do that to a {target.role}")

    def _at_most(self, me: Member, role: Role) -> None:
        if RANK[role] > RANK[me.role]:
            raise refuse("forbidden", f"a {me.role} cannot make somebody {role}")

    def _add(self, op: control.Add, me: Member) -> None:
        self._need(me, "member" if self.old.invite == "members" else "admin", "adding people")
        for card in op.cards:
            self._site(card)
        for person in op.people:
            user = User(person.node, person.local)
            check_user(user)
            self._at_most(me, person.role)
            if user in self.members:
                raise refuse("is_member", f"{user.local} is a member already")
            self._enter(user, person.role)

    def _site(self, card: Card) -> None:
        node = _check_card(card)
        if node not in self.sites:
            self.sites[node] = Site(node, card.name, card.chain, self.index)

    def _enter(self, user: User, role: Role) -> None:
        if user.node not in self.sites:
            raise refuse("bad_control", "a new node comes with its card")
        if len(self.members) >= MEMBERS_MAX:
            raise refuse("too_many", f"a group has at most {MEMBERS_MAX} members")
        self.members[user] = Member(user.node, user.local, role, self.index, self.index)

    def _join(self, op: control.Join) -> None:
        actor = self.proposal.actor
        check_user(actor)
        if _check_card(op.card) != actor.node:
            raise refuse("bad_control", "the card is of another node")
        if actor in self.members:
            raise refuse("is_member", f"{actor.local} is a member already")
        shown = digest("link", op.secret)
        door = next((d for d in self.old.doors if compare_digest(d.secret_hash, shown)), None)
        if door is None or not self._open(door):
            raise refuse("bad_link", "this link is unknown, used up or expired")
        self._site(op.card)
        self._enter(actor, door.role)
        rest = tuple(d for d in self.old.doors if d is not door)
        left = msgspec.structs.replace(door, uses=door.uses - 1)
        self.fields["doors"] = (*rest, left) if left.uses else rest

    def _end(self, member: Member, cuts: tuple[Cut, ...] | None) -> None:
        if len({cut.incarnation for cut in cuts or ()}) != len(cuts or ()):
            raise refuse("bad_control", "a cut names a log twice", "11.8")
        del self.members[User(member.node, member.local)]
        self.past.append(Past(member.node, member.local, member.role, member.since, self.index, cuts))

    def _become(self, member: Member, role: Role) -> None:
        """Another role from this entry on; whoever may not write any more is cut like one who was removed."""
        silenced = role == "readonly" and member.role != "readonly"
        if self.cuts and not silenced:
            raise refuse("bad_control", "only what takes rights away carries a cut", "11.8")
        self._end(member, self.cuts if silenced else None)
        user = User(member.node, member.local)
        self.members[user] = Member(member.node, member.local, role, self.index, member.joined)
        self._inherit()

    def _inherit(self) -> None:
        """A group always has an owner: the highest and longest of those who are left."""
        if not self.members or any(m.role == "owner" for m in self.members.values()):
            return
        user, heir = min(self.members.items(), key=lambda pair: (-RANK[pair[1].role], pair[1].joined, pair[0]))
        if heir.since != self.index:
            self._end(heir, None)
        self.members[user] = Member(heir.node, heir.local, "owner", self.index, heir.joined)

    def _set(self, op: control.Set, me: Member) -> None:
        self._need(me, "moderator" if op.key in ("name", "topic") else "admin", f"setting {op.key}")
        if op.key == "name":
            if len(op.value) > 100:
                raise refuse("bad_control", "a group's name is 1 to 100 printable characters")
            _check_name(op.value)
            self.fields["name"] = op.value
        elif op.key == "topic":
            if op.value and not op.value.isprintable():
                raise refuse("bad_control", "a topic is printable")
            self.fields["topic"] = op.value
        elif op.key == "invite":
            if op.value not in ("admins", "members"):
                raise refuse("bad_control", "invite is admins or members")
            self.fields["invite"] = op.value
        else:
            most = HISTORY_MAX if op.key == "history" else 10 * 366 * 86400
            if not op.value.isascii() or not op.value.isdecimal() or len(op.value) > 9 or int(op.value) > most:
                raise refuse("bad_control", f"{op.key} is a number from 0 to {most}")
            self.fields["history" if op.key == "history" else "retention_s"] = int(op.value)

    def _takeover(self) -> None:
        actor = self.proposal.actor
        if len(self.old.stewards) > 2:
            raise refuse("forbidden", "three stewards or more elect one of them; nobody takes over", "11.9")
        if rank(self.old, self.proposal) == 0:
            raise refuse("forbidden", "only an owner, or a node of the succession, takes over", "11.9")
        if actor.node == self.old.stewards[0]:
            raise refuse("forbidden", "that node orders the group already", "11.9")
        self.fields["stewards"] = (actor.node,)


def rank(state: State, proposal: Proposal) -> int:
    """How good a takeover's right is: an owner's device above the succession, and that in its order; 0: none."""
    if proposal.local:
        member = state.member(proposal.actor)
        return 1000 if member is not None and member.role == "owner" else 0
    return 999 - state.heirs.index(proposal.node) if proposal.node in state.heirs else 0


# --- who certifies ------------------------------------------------------------------------------------------------
def leader(state: State, term: int) -> bytes:
    """Who may propose in a term (PROTOCOL.md 11.7)."""
    return state.stewards[term % len(state.stewards)] if len(state.stewards) > 2 else state.stewards[0]


def enough(state: State, op: control.Op, actor: bytes, signers: Iterable[bytes]) -> bool:
    """Whether these signatures certify an entry on top of `state` (PROTOCOL.md 11.5)."""
    signed = set(signers)
    if isinstance(op, control.Takeover):
        return actor in signed
    old = state.stewards
    if not (old[0] in signed if len(old) <= 2 else len(signed & set(old)) > len(old) // 2):
        return False
    if not isinstance(op, control.Stewards) or len(op.nodes) <= 2:
        return True
    new = set(op.nodes)
    if len(old) <= 2:
        return signed >= new  # all of them, so that none of them takes over what it knows nothing of
    return len(signed & new) > len(new) // 2


def voters(state: State, op: control.Op) -> tuple[bytes, ...]:
    """Who is asked to sign an entry on top of `state`, besides its leader."""
    old = state.stewards if len(state.stewards) > 2 else state.stewards[:1]
    new = op.nodes if isinstance(op, control.Stewards) and len(op.nodes) > 2 else ()
    return tuple(dict.fromkeys((*old, *new)))


def check_entry(tip: Tip | None, raw: bytes) -> tuple[Entry, State]:
    """An entry that follows `tip` (none: the first one), and the state after it. `ProtocolError`."""
    entry = control.read_entry(raw)
    if tip is None:
        if entry.index != 1:
            raise refuse("gap", "not the first entry", "11.3")
        state = created(entry.proposed)
        if entry.group != state.group or entry.cuts:
            raise refuse("bad_control", "a first entry of another group", "11.1")
    else:
        if entry.group != tip.state.group:
            raise refuse("bad_control", "an entry of another group", "11.3")
        if entry.index != tip.state.index + 1 or entry.previous != tip.hash:
            raise refuse("gap", f"entry {entry.index} does not follow entry {tip.state.index}", "11.3")
        state = after(tip.state, entry.proposed, entry.cuts, entry.at_ms)
    if state_hash(state) != entry.state:
        raise refuse("bad_control", "an entry with another state than its proposal makes", "11.3")
    return entry, state


def check_certified(tip: Tip | None, raw: bytes, certificate: Certificate) -> Tip:
    """The tip after a certified entry. `ProtocolError` where the certificate does not suffice (PROTOCOL.md 11.5)."""
    entry, state = check_entry(tip, raw)
    check_certificate(tip, entry, state, control.entry_hash(raw), certificate)
    return Tip(state, control.entry_hash(raw), certificate.term)


def check_certificate(
    tip: Tip | None, entry: Entry, state: State, hash_: bytes, certificate: Certificate
) -> None:
    """`tip` is the entry before, or with its stewards at least (11.12)."""
    proposal = control.read_proposal(entry.proposed.raw)
    if tip is not None:
        least = tip.term + 1 if isinstance(proposal.op, control.Takeover) else tip.term
        if certificate.term < least:
            raise refuse("stale_term", f"a certificate of term {certificate.term} after term {tip.term}", "11.5")
    before = tip.state if tip is not None else state
    said = control.certify_bytes(entry.group, certificate.term, entry.index, hash_)
    signers = set()
    for vouched in certificate.signatures:
        site = before.site(vouched.node) or state.site(vouched.node)
        if site is None or vouched.node in signers:
            raise refuse("bad_certificate", "a certificate is signed by a node that is not of the group", "11.5")
        if not any(verify(key, "certify", said, vouched.signature) for key in control.chain_keys(site.chain)[1]):
            raise refuse("bad_certificate", "a signature of a certificate does not hold", "11.5")
        signers.add(vouched.node)
    if not enough(before, proposal.op, proposal.node, signers):
        raise refuse("bad_certificate", "too few stewards signed", "11.5")


# --- which events stand -------------------------------------------------------------------------------------------
Standing = Literal["stands", "void", "not_member", "readonly"]
Kind = Annotated[str, "of an event"]


def judge(state: State, index: int, user: User, incarnation: bytes, seq: int) -> Standing:
    """Whether an event stands that its sender made under entry `index` (PROTOCOL.md 11.10).

    The answer may turn from `stands` to `void` with a later entry, never back.
    """
    now = state.member(user)
    if now is not None and now.since <= index:
        return "readonly" if now.role == "readonly" else "stands"
    for past in state.past:
        if (past.node, past.local) == user and past.since <= index < past.until:
            if past.role == "readonly":
                return "readonly"
            later = (p for p in state.past if (p.node, p.local) == user and p.until >= past.until)
            for end in later:
                if end.cuts is None:
                    continue  # a change of role; what came after it ends with its own cut
                held = next((cut.seq for cut in end.cuts if cut.incarnation == incarnation), 0)
                return "stands" if seq <= held else "void"
            return "stands"
    return "not_member"


def audience(state: State, index: int) -> frozenset[bytes]:
    """The nodes that had members under entry `index`, and so may have what was said under it."""
    now = {m.node for m in state.members if m.joined <= index}
    return frozenset(now | {p.node for p in state.past if p.since <= index < p.until})

"""What an entry does to a group, and who may have it done (PROTOCOL.md 11.2 and 11.6). Pure."""

from functools import cached_property
from hmac import compare_digest

import msgspec

from federation import control
from federation.control import Card, Cut, Proposal, Proposed, Role
from federation.errors import ProtocolError
from federation.identity import decode_chain, replaces
from federation.ids import User, check_domain, check_local_name, digest
from federation.roster import (
    CHAINS_BYTES_MAX,
    HISTORY_MAX,
    LINKS_MAX,
    MEMBERS_MAX,
    PAST_CUTS_MAX,
    PAST_MAX,
    RANK,
    SIZES,
    USED_MAX,
    Changed,
    Door,
    Member,
    Past,
    Site,
    State,
    members_of,
    sites_of,
)


def refuse(code: str, text: str, rule: str = "11.6") -> ProtocolError:
    return ProtocolError(code, text, rule)


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
        (Site(node, op.card.name, op.card.chain, 1),), (Member(node, local, "owner", 1, 1),), (), (), Changed(), (),
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
    if isinstance(op, control.Join | control.Renew):
        chain = op.card.chain
    else:
        site = state.site(proposal.node)
        if site is None:
            raise refuse("not_member", "the proposer's node is not in the group")
        chain = site.chain
    control.check_proposed(proposed, chain)
    if cuts and not isinstance(op, control.Remove | control.SetRole | control.Leave):
        raise refuse("bad_control", "only what takes rights away carries a cut", "11.8")
    return _Change(state, proposed, proposal, cuts, at_ms).made()


def _used(state: State, proposed: Proposed, under: int) -> tuple[bytes, ...]:
    """With the proposals that must not come again. Others cannot: they are older than what they changed themselves.

    One that was made under a later entry than there is comes from a branch that lost, and is not protected so.
    """
    if proposed.id in state.used:
        raise refuse("stale", "this proposal became an entry already", "11.2")
    if under <= state.index:
        return state.used
    if len(state.used) >= USED_MAX:
        raise refuse("stale", "a proposal from another branch of the log", "11.2")
    return (*state.used, proposed.id)


class _Change:
    """One entry being applied."""

    def __init__(self, state: State, proposed: Proposed, proposal: Proposal, cuts: tuple[Cut, ...], at_ms: int) -> None:
        self.old, self.proposal, self.cuts, self.at_ms = state, proposal, cuts, at_ms
        self.index = state.index + 1
        self.members = dict(members_of(state))
        self.sites = dict(sites_of(state))
        self.past = list(state.past)
        self.stewards = state.stewards
        self.changed = state.changed
        self.fields: dict[str, object] = {"used": _used(state, proposed, proposal.under)}

    def made(self) -> State:
        actor, op = self.proposal.actor, self.proposal.op
        if isinstance(op, control.Takeover):
            self._takeover()
        elif isinstance(op, control.Join):
            self._join(op)
        elif not actor.local:
            self._node(op)
        else:
            me = self.members.get(actor)
            if me is None:
                raise refuse("not_member", "the proposer is not a member")
            self._op(op, me)
        self._inherit()
        here = {user.node for user in self.members}
        sites = tuple(self.sites[n] for n in sorted(self.sites) if n in here or n in self.stewards)
        if sum(len(site.chain) for site in sites) > CHAINS_BYTES_MAX:
            raise refuse("too_many", "the key chains of the group's nodes are too long")
        return msgspec.structs.replace(
            self.old, index=self.index, stewards=self.stewards, sites=sites, past=self._kept(), changed=self.changed,
            members=tuple(self.members[u] for u in sorted(self.members)), **self.fields,
        )  # fmt: skip

    def _kept(self) -> tuple[Past, ...]:
        """Of what is over, as much as there is room for: the newest."""
        first = max(0, len(self.past) - PAST_MAX)
        logs = sum(len(p.cuts or ()) for p in self.past[first:])
        while logs > PAST_CUTS_MAX:
            logs -= len(self.past[first].cuts or ())
            first += 1
        return tuple(self.past[first:])

    def _touch(self, what: str) -> None:
        """Refuse what was proposed without knowing the last change of the same thing (PROTOCOL.md 11.2)."""
        if getattr(self.changed, what) > self.proposal.under:
            raise refuse("stale", f"{what} changed since this was proposed", "11.2")
        self.changed = msgspec.structs.replace(self.changed, **{what: self.index})

    def _not_since(self, entry: int, what: str) -> None:
        if entry > self.proposal.under:
            raise refuse("stale", f"{what} changed since this was proposed", "11.2")

    def _need(self, me: Member, role: Role, what: str) -> None:
        if RANK[me.role] < RANK[role]:
            raise refuse("forbidden", f"{what} takes the role {role}, the proposer is {me.role}")

    def _node(self, op: control.Op) -> None:
        """What a node may do itself, without a user: keep its card true, and take out users that it deleted."""
        node = self.proposal.node
        match op:
            case control.Renew(card=card):
                known = self.sites.get(node)
                if known is None:
                    raise refuse("not_member", "the proposer's node is not in the group")
                if _check_card(card) != node:
                    raise refuse("bad_control", "the card is of another node")
                if not replaces(decode_chain(card.chain), decode_chain(known.chain)):
                    raise refuse("bad_identity", "an older key chain", "2.2")
                if (card.name, card.chain) == (known.name, known.chain):
                    raise refuse("stale", "the group has this card", "11.2")
                self.sites[node] = Site(node, card.name, card.chain, known.since)
            case control.Remove(node=whose) if whose == node:
                self._remove(op)
            case _:
                raise refuse("forbidden", "a node itself may take over, renew its card and remove users of its own")

    def _remove(self, op: control.Remove) -> None:
        target = self._member(User(op.node, op.local))
        self._not_since(target.joined, f"the membership of {op.local!r}")
        self._end(target, self.cuts)

    def _op(self, op: control.Op, me: Member) -> None:
        match op:
            case control.Add():
                self._add(op, me)
            case control.Remove():
                self._need(me, "moderator", "removing people")
                self._over(me, self._member(User(op.node, op.local)))
                self._remove(op)
            case control.SetRole():
                target = self._member(User(op.node, op.local))
                self._need(me, "admin", "changing roles")
                self._over(me, target)
                self._at_most(me, op.role)
                self._not_since(target.since, f"the role of {op.local!r}")
                if op.role == target.role:
                    raise refuse("stale", f"{op.local!r} is {op.role} already", "11.2")
                self._become(target, op.role)
            case control.Leave():
                self._not_since(me.joined, "the membership")
                self._end(me, self.cuts)
            case control.Set():
                self._set(op, me)
            case control.Stewards(nodes=nodes):
                self._need(me, "owner", "choosing stewards")
                self._touch("stewards")
                if len(set(nodes)) != len(nodes) or len(nodes) not in SIZES:
                    raise refuse("bad_control", "a group has 1, 2, 3 or 5 stewards")
                if any(node not in self.sites for node in nodes):
                    raise refuse("bad_control", "a steward is a node of the group")
                self.stewards = nodes
            case control.Succession(nodes=nodes):
                self._need(me, "owner", "choosing who succeeds")
                self._touch("succession")
                if len(set(nodes)) != len(nodes) or any(node not in self.sites for node in nodes):
                    raise refuse("bad_control", "who succeeds is a node of the group, each once")
                self.fields["succession"] = nodes
            case control.MakeLink() | control.DropLink():
                self._link(op, me)
            case control.Create():
                raise refuse("bad_control", "a group is created once", "11.1")
            case _:
                raise refuse("forbidden", "only a node itself does that")

    def _link(self, op: control.MakeLink | control.DropLink, me: Member) -> None:
        self._need(me, "admin", "making and closing links")
        rest = tuple(d for d in self.old.doors if d.secret_hash != op.secret_hash and self._open(d))
        if isinstance(op, control.DropLink):
            if all(d.secret_hash != op.secret_hash for d in self.old.doors):
                raise refuse("bad_link", "this link is unknown, used up or expired")
            self.changed = msgspec.structs.replace(self.changed, doors=self.index)
            self.fields["doors"] = rest
            return
        self._touch("doors")
        if len(rest) >= LINKS_MAX:
            raise refuse("too_many", f"a group has at most {LINKS_MAX} open links")
        self.fields["doors"] = (*rest, Door(op.secret_hash, op.uses, op.expires_ms, op.role))

    def _open(self, door: Door) -> bool:
        return not door.expires_ms or door.expires_ms > self.at_ms

    def _member(self, user: User) -> Member:
        found = self.members.get(user)
        if found is None:
            raise refuse("not_member", f"{user.local!r} is not a member")
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
            self._enter(user, person.role)

    def _site(self, card: Card) -> None:
        node = _check_card(card)
        if node not in self.sites:
            self.sites[node] = Site(node, card.name, card.chain, self.index)

    def _enter(self, user: User, role: Role) -> None:
        if user in self.members:
            raise refuse("is_member", f"{user.local!r} is a member already")
        self._not_since(self._ended.get(user, 0), f"the membership of {user.local!r}")
        if user.node not in self.sites:
            raise refuse("bad_control", "a new node comes with its card")
        if len(self.members) >= MEMBERS_MAX:
            raise refuse("too_many", f"a group has at most {MEMBERS_MAX} members")
        self.members[user] = Member(user.node, user.local, role, self.index, self.index)

    @cached_property
    def _ended(self) -> dict[User, int]:
        """When each membership that is over ended last."""
        return {User(p.node, p.local): p.until for p in self.old.past}

    def _join(self, op: control.Join) -> None:
        actor = self.proposal.actor
        check_user(actor)
        if _check_card(op.card) != actor.node:
            raise refuse("bad_control", "the card is of another node")
        known = self.sites.get(actor.node)
        if known is not None and known.chain != op.card.chain:
            raise refuse("bad_identity", "the group has another key chain of this node", "2.2")
        shown = digest("link", op.secret)
        door = next((d for d in self.old.doors if compare_digest(d.secret_hash, shown)), None)
        if door is None or not self._open(door):
            raise refuse("bad_link", "this link is unknown, used up or expired")
        self._site(op.card)
        self._enter(actor, door.role)
        rest = tuple(d for d in self.old.doors if d is not door)
        if door.uses > 1:
            self.fields["doors"] = (*rest, msgspec.structs.replace(door, uses=door.uses - 1))
            return
        self.fields["doors"] = rest
        self.changed = msgspec.structs.replace(self.changed, doors=self.index)

    def _end(self, member: Member, cuts: tuple[Cut, ...] | None) -> None:
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
        self._touch(op.key)
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
        if len(self.old.stewards) > 2:
            raise refuse("forbidden", "three stewards or more elect one of them; nobody takes over", "11.9")
        if rank(self.old, self.proposal) == 0:
            raise refuse("forbidden", "only an owner, or a node of the succession, takes over", "11.9")
        if self.proposal.node == self.old.stewards[0]:
            raise refuse("forbidden", "that node orders the group already", "11.9")
        self._touch("stewards")
        self.stewards = (self.proposal.node,)


def rank(state: State, proposal: Proposal) -> int:
    """How good a takeover's right is: an owner's device above the succession, and that in its order; 0: none."""
    if proposal.local:
        member = state.member(proposal.actor)
        return 1000 if member is not None and member.role == "owner" else 0
    return 999 - state.heirs.index(proposal.node) if proposal.node in state.heirs else 0

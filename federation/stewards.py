"""Who orders a group's control log: one steward alone, or a majority of three or five (PROTOCOL.md 11.7 to 11.9).

Pure: `Desk` is all that a node keeps for one group beside the log itself, and is committed before a message of the
same step leaves. Messages may be lost, repeated and late; between two nodes they keep their order.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Literal, NamedTuple

import msgspec

from federation import control, groups
from federation.control import Certificate, Certified, Cut, Entry, Group, NodeId, Proposed, Term, Vouched
from federation.errors import ProtocolError
from federation.event import Hash, Seq
from federation.groups import State, Tip
from federation.identity import NodeKey, Signature
from federation.ids import User

PENDING_MAX = 64  # proposals that wait at one node, for one group
PATIENCE_MS = 10_000  # how long a steward waits for the leader, times its place in line
RETRY_MS = 5_000  # after which a leader asks again
READY_MS = 20_000  # how long new stewards may take to say that they are there
CLOCK_MS = 24 * 3600_000  # how far an entry's time may be off


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    group: Group


class Propose(_Message, tag="propose", frozen=True):
    """To the stewards; a removal goes to every node of the group (PROTOCOL.md 11.9)."""

    proposed: Proposed


class Rejected(_Message, tag="rejected", frozen=True):
    """To the proposer's node: it will not become an entry."""

    proposal: Hash
    code: Annotated[str, msgspec.Meta(max_length=32)]
    reason: Annotated[str, msgspec.Meta(max_length=200)]


class Campaign(_Message, tag="campaign", frozen=True):
    """I want to lead `term`; term 0: I was restored, and only ask what you signed."""

    term: Term
    index: Seq  # of the newest certified entry of the sender


class Promise(_Message, tag="promise", frozen=True):
    """No older term counts for me any more, and this is the newest entry that I signed; term 0: the answer to 0."""

    term: Term
    promised: Term
    index: Seq
    signed_term: Term
    signed: Annotated[bytes, msgspec.Meta(max_length=control.ENTRY_BYTES_MAX)]


class Ask(_Message, tag="ask", frozen=True):
    """Sign this entry."""

    term: Term
    entry: Annotated[bytes, msgspec.Meta(max_length=control.ENTRY_BYTES_MAX)]


class Vote(_Message, tag="vote", frozen=True):
    term: Term
    index: Seq
    entry: Hash
    signature: Signature


class Nay(_Message, tag="nay", frozen=True):
    """Not in this term: a higher one was promised."""

    promised: Term


class Tally(_Message, tag="tally", frozen=True):
    """Are you there, and how far are the logs of this user's node at yours?"""

    proposal: Hash
    node: NodeId


class Tallied(_Message, tag="tallied", frozen=True):
    proposal: Hash
    cuts: Annotated[tuple[Cut, ...], msgspec.Meta(max_length=control.CUTS_MAX)]


class Want(_Message, tag="want", frozen=True):
    """Send me the entries after `index` (0: I have none)."""

    index: Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]


class News(_Message, tag="entry", frozen=True):
    """A certified entry."""

    certified: Certified


Message = Propose | Rejected | Campaign | Promise | Ask | Vote | Nay | Tally | Tallied | Want | News


class Waiting(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    proposed: Proposed
    since_ms: int


class Heard(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node: NodeId
    promise: Promise


class Told(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node: NodeId
    cuts: tuple[Cut, ...]


class Desk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a node keeps for one group, beside the log."""

    promised: Term = 0
    signed_term: Term = 0
    signed: bytes = b""  # the newest entry that this node signed
    amnesia: bool = False  # restored from a copy: it may have signed what it does not know
    waiting: tuple[Waiting, ...] = ()
    # as a leader, or one who wants to be
    term: Term = 0  # that it campaigns for or leads
    leads: bool = False
    heard: tuple[Heard, ...] = ()
    asked: bytes = b""  # the entry that it asks for
    votes: tuple[Vouched, ...] = ()
    told: tuple[Told, ...] = ()
    since_ms: int = 0  # of the last step forward


class To(NamedTuple):
    node: bytes
    message: Message


class Done(NamedTuple):
    """An entry was certified here."""

    certified: Certified


Output = To | Done


class Place(NamedTuple):
    """Where a step happens."""

    me: bytes
    key: NodeKey
    now_ms: int
    tip: Tip
    heads: Callable[[bytes], tuple[Cut, ...]]  # of a node's logs of this group here


_encoder = msgspec.msgpack.Encoder()
_desk = msgspec.msgpack.Decoder(Desk)


def encode_desk(desk: Desk) -> bytes:
    return _encoder.encode(desk)


def decode_desk(raw: bytes) -> Desk:
    return _desk.decode(raw) if raw else Desk()


class Step:
    """One step of one desk: what it keeps afterwards, and what it says."""

    def __init__(self, desk: Desk, place: Place) -> None:
        self.desk, self.place = desk, place
        self.outputs: list[Output] = []

    # --- small words ----------------------------------------------------------------------------------------------
    @property
    def _state(self) -> State:
        return self.place.tip.state

    @property
    def _many(self) -> bool:
        return len(self._state.stewards) > 2

    @property
    def _others(self) -> tuple[bytes, ...]:
        return tuple(node for node in self._state.stewards if node != self.place.me)

    @property
    def orders(self) -> bool:
        """Whether this node may make entries now."""
        if not self._many:
            return self._state.stewards[0] == self.place.me and not self.desk.amnesia
        return self.desk.leads

    def _keep(self, **changes: object) -> None:
        self.desk = msgspec.structs.replace(self.desk, **changes)

    def _say(self, nodes: Iterable[bytes], message: Message) -> None:
        self.outputs += [To(node, message) for node in nodes if node != self.place.me]

    # --- proposals ------------------------------------------------------------------------------------------------
    def propose(self, proposed: Proposed) -> None:
        """A proposal came, from a user here or from another node. Refused ones are told to their node."""
        if any(w.proposed.id == proposed.id for w in self.desk.waiting):
            return
        try:
            groups.after(self._state, proposed, (), self.place.now_ms)
            if len(self.desk.waiting) >= PENDING_MAX:
                raise ProtocolError("busy", "too many proposals wait for this group", "11.9")
        except ProtocolError as error:
            self.reject(proposed, error)
            return
        self._keep(waiting=(*self.desk.waiting, Waiting(proposed, self.place.now_ms)))
        self.advance()

    def reject(self, proposed: Proposed, error: ProtocolError) -> None:
        node = control.read_proposal(proposed.raw).node
        message = Rejected(self._state.group, proposed.id, error.code, str(error)[:200])
        self.outputs.append(To(node, message))  # ourselves too: whoever carries this out shows it to the proposer

    # --- leading --------------------------------------------------------------------------------------------------
    def advance(self) -> None:
        """Make the next entry, if this node may, and nothing is under way."""
        while self.orders and not self.desk.asked and self.desk.waiting:
            first = self.desk.waiting[0].proposed
            op = control.read_proposal(first.raw).op
            cuts = self._cuts(first, op)
            if cuts is None:
                return  # answers are on their way
            try:
                entry = self._entry(first, cuts)
            except ProtocolError as error:  # something certified meanwhile speaks against it
                self._keep(waiting=self.desk.waiting[1:], told=())
                self.reject(first, error)
                continue
            self._ask(entry)
            return

    def _cuts(self, proposed: Proposed, op: control.Op) -> tuple[Cut, ...] | None:
        """The cut that the entry needs, once enough stewards told what they hold; none while they did not."""
        proposal = control.read_proposal(proposed.raw)
        match op:
            case control.Remove(node=node) | control.SetRole(node=node, role="readonly"):
                whose = node
            case control.Leave():
                whose = proposal.node
            case control.Stewards(nodes=nodes) if len(nodes) > 2:
                whose = self.place.me  # only to hear that they are there
            case _:
                return ()
        if isinstance(op, control.SetRole):
            target = self._state.member(User(op.node, op.local))
            if target is None or target.role == "readonly":
                return ()
        told = {t.node: t.cuts for t in self.desk.told} | {self.place.me: self.place.heads(whose)}
        asked = groups.voters(self._state, op)
        if not groups.enough(self._state, op, proposal.node, told):
            if not self.desk.told or self.place.now_ms - self.desk.since_ms >= RETRY_MS:
                self._keep(since_ms=self.place.now_ms, told=self.desk.told or (Told(self.place.me, ()),))
                self._say((n for n in asked if n not in told), Tally(self._state.group, proposed.id, whose))
            return None
        if isinstance(op, control.Stewards):
            return ()
        best: dict[bytes, int] = {}
        for cut in (cut for cuts in told.values() for cut in cuts):
            best[cut.incarnation] = max(cut.seq, best.get(cut.incarnation, 0))
        return tuple(Cut(inc, best[inc]) for inc in sorted(best)[: control.CUTS_MAX])

    def _entry(self, proposed: Proposed, cuts: tuple[Cut, ...]) -> bytes:
        state = groups.after(self._state, proposed, cuts, self.place.now_ms)
        return control.encode(
            Entry(
                1, state.group, state.index, self.place.tip.hash, proposed, cuts, self.place.now_ms,
                groups.state_hash(state),
            )
        )  # fmt: skip

    def _ask(self, entry: bytes) -> None:
        """Sign it, unless this steward alone decides: then it signs last, so that it is free until then."""
        term = self.desk.term if self._many else self.place.tip.term
        self._keep(asked=entry, votes=(), told=(), since_ms=self.place.now_ms, term=term)
        if self._many:
            self._keep(signed=entry, signed_term=term, promised=max(self.desk.promised, term))
        op = control.read_proposal(control.read_entry(entry).proposed.raw).op
        self._say(groups.voters(self._state, op), Ask(self._state.group, term, entry))
        self._count()

    def _count(self) -> None:
        """Certify what is asked for, once enough signed."""
        raw, term, me = self.desk.asked, self.desk.term, self.place.me
        entry, hash_ = control.read_entry(raw), control.entry_hash(raw)
        proposal = control.read_proposal(entry.proposed.raw)
        signers = {v.node for v in self.desk.votes} | {me}
        if not groups.enough(self._state, proposal.op, proposal.node, signers):
            return
        own = Vouched(me, control.certify(self.place.key, entry.group, term, entry.index, hash_))
        signatures = tuple(sorted((*self.desk.votes, own), key=lambda v: v.node))
        self.outputs.append(Done(Certified(raw, Certificate(term, signatures))))

    def takeover(self, proposed: Proposed) -> None:
        """Order the group from now on, in place of one or two stewards that are gone. `ProtocolError`."""
        entry = self._entry(proposed, ())
        term = self.place.tip.term + 1
        hash_, index = control.entry_hash(entry), self._state.index + 1
        own = Vouched(self.place.me, control.certify(self.place.key, self._state.group, term, index, hash_))
        self.outputs.append(Done(Certified(entry, Certificate(term, (own,)))))

    # --- what others say ------------------------------------------------------------------------------------------
    def feed(self, sender: bytes, message: Message) -> None:
        """A message of another node of the group; what is not its to say is ignored."""
        match message:
            case Propose(proposed=proposed):
                self.propose(proposed)
            case Campaign():
                self._campaigned(sender, message)
            case Promise():
                self._promised(sender, message)
            case Ask():
                self._asked(sender, message)
            case Vote():
                self._voted(sender, message)
            case Nay(promised=promised):
                if sender in self._state.stewards and promised > self.desk.term and self._many:
                    self._lead_no_more(promised)
            case Tally(proposal=proposal, node=node):
                if sender in self._state.nodes or sender in self._state.stewards:
                    self._say((sender,), Tallied(self._state.group, proposal, self.place.heads(node)))
            case Tallied():
                self._tallied(sender, message)
            case _:
                pass

    def _lead_no_more(self, promised: int) -> None:
        """Another leads, or wants to; what was asked for comes back through the promises."""
        self._keep(leads=False, heard=(), asked=b"", votes=(), told=(), since_ms=self.place.now_ms)
        self._keep(term=max(self.desk.term, promised))

    def _campaigned(self, sender: bytes, m: Campaign) -> None:
        if not self._many or self.place.me not in self._state.stewards or sender not in self._state.stewards:
            return
        if m.index > self._state.index:
            self._say((sender,), Want(self._state.group, self._state.index))
        if m.term == 0:
            if not self.desk.amnesia:
                self._promise(sender, 0)
            return
        if self.desk.amnesia or groups.leader(self._state, m.term) != sender:
            return
        if m.term < self.desk.promised or (m.term == self.desk.promised and self.desk.leads):
            self._say((sender,), Nay(self._state.group, self.desk.promised))
            return
        if m.term > self.desk.promised:
            self._keep(promised=m.term)
            if self.desk.term < m.term:
                self._lead_no_more(m.term)
        self._promise(sender, m.term)

    def _promise(self, sender: bytes, term: int) -> None:
        d = self.desk
        self._say((sender,), Promise(self._state.group, term, d.promised, self._state.index, d.signed_term, d.signed))

    def _promised(self, sender: bytes, m: Promise) -> None:
        if sender not in self._others or not self._many:
            return
        if m.index > self._state.index:
            self._say((sender,), Want(self._state.group, self._state.index))
        waits_for = 0 if self.desk.amnesia else self.desk.term
        if m.term != waits_for or self.desk.leads or (m.term == 0 and not self.desk.amnesia):
            return
        heard = {h.node: h for h in self.desk.heard} | {sender: Heard(sender, m)}
        self._keep(heard=tuple(heard[n] for n in sorted(heard)))
        self._consider()

    def _consider(self) -> None:
        """Enough heard, and nothing certified that is missing here: remember, or lead."""
        heard = self.desk.heard
        if any(h.promise.index > self._state.index for h in heard):
            return  # entries are on their way
        if self.desk.amnesia:
            self._remember()
            return
        if not self.desk.term or len({h.node for h in heard} | {self.place.me}) <= len(self._state.stewards) // 2:
            return
        self._keep(leads=True, heard=(), since_ms=self.place.now_ms)
        found = [(self.desk.signed_term, self.desk.signed)] if self.desk.signed else []
        found += [(h.promise.signed_term, h.promise.signed) for h in heard if h.promise.signed]
        found = [(t, raw) for t, raw in found if _index(raw) == self._state.index + 1]
        if found:
            self._ask(max(found)[1])
        else:
            self.advance()

    def _remember(self) -> None:
        """A restored steward signs again once every other one told what it promised and signed (PROTOCOL.md 11.8)."""
        heard = {h.node: h.promise for h in self.desk.heard}
        if set(heard) < set(self._others):
            return
        best = max(heard.values(), key=lambda p: (p.signed_term, p.signed))
        promised = max([self.desk.promised, *(p.promised for p in heard.values())])
        self._keep(amnesia=False, heard=(), promised=promised, term=max(promised, self.desk.term), leads=False)
        if best.signed_term > self.desk.signed_term:
            self._keep(signed=best.signed, signed_term=best.signed_term)

    def _asked(self, sender: bytes, m: Ask) -> None:
        try:
            index = _index(m.entry)
            op = control.read_proposal(control.read_entry(m.entry).proposed.raw).op
        except ProtocolError:
            return
        if index > self._state.index + 1:
            self._say((sender,), Want(self._state.group, self._state.index))
            return
        if index <= self._state.index:
            return  # long certified; the sender hears of it as everybody does
        if self.desk.amnesia or groups.leader(self._state, m.term) != sender:
            return
        if self.place.me not in groups.voters(self._state, op):
            return
        if m.term < self.desk.promised and self._many:
            self._say((sender,), Nay(self._state.group, self.desk.promised))
            return
        try:
            entry, _ = groups.check_entry(self.place.tip, m.entry)
            if abs(entry.at_ms - self.place.now_ms) > CLOCK_MS:
                raise ProtocolError("clock", "an entry's time is more than a day off", "11.7")
        except ProtocolError:
            return  # the leader is wrong; it must not get this signature
        if self._many:
            if m.term > self.desk.term:
                self._lead_no_more(m.term)
            self._keep(promised=m.term)
        self._keep(signed=m.entry, signed_term=m.term, since_ms=self.place.now_ms)
        hash_ = control.entry_hash(m.entry)
        signature = control.certify(self.place.key, self._state.group, m.term, index, hash_)
        self._say((sender,), Vote(self._state.group, m.term, index, hash_, signature))

    def _voted(self, sender: bytes, m: Vote) -> None:
        raw = self.desk.asked
        if not raw or not self.orders or (m.term, m.entry) != (self.desk.term, control.entry_hash(raw)):
            return
        op = control.read_proposal(control.read_entry(raw).proposed.raw).op
        if sender not in groups.voters(self._state, op) or any(v.node == sender for v in self.desk.votes):
            return
        self._keep(votes=(*self.desk.votes, Vouched(sender, m.signature)))
        self._count()

    def _tallied(self, sender: bytes, m: Tallied) -> None:
        if not self.desk.waiting or self.desk.waiting[0].proposed.id != m.proposal or not self.orders:
            return
        told = {t.node: t for t in self.desk.told} | {sender: Told(sender, m.cuts)}
        self._keep(told=tuple(told[n] for n in sorted(told)))
        self.advance()

    # --- the log moved, time passed -------------------------------------------------------------------------------
    def moved(self, before: State) -> None:
        """The tip is a new one: what was under way for an older one is over."""
        self._keep(asked=b"", votes=(), told=(), since_ms=self.place.now_ms)
        if before.stewards != self._state.stewards:
            self._keep(leads=False, heard=())
        waiting = []
        for w in self.desk.waiting:
            try:
                groups.after(self._state, w.proposed, (), self.place.now_ms)
                waiting.append(w)
            except ProtocolError as error:
                if error.code not in ("is_member", "not_member", "bad_control") or self.orders:
                    self.reject(w.proposed, error)
        self._keep(waiting=tuple(waiting))
        if self.desk.heard and not self.desk.leads:
            self._consider()
        self.advance()

    def tick(self) -> None:
        """Now and then. Whoever waits too long for a leader wants to be one; a leader asks again."""
        d, now = self.desk, self.place.now_ms
        if self.place.me not in self._state.stewards:
            return
        if d.amnesia and self._many:
            if now - d.since_ms >= RETRY_MS:
                self._keep(since_ms=now)
                self._say(self._others, Campaign(self._state.group, 0, self._state.index))
            return
        if self.orders:
            self._again()
        elif self._many and (d.waiting or d.signed and _index(d.signed) == self._state.index + 1):
            since = max([d.since_ms, *(w.since_ms for w in d.waiting[:1])])
            if now - since >= PATIENCE_MS * (1 + self._line()):
                self.campaign()

    def _again(self) -> None:
        d, now = self.desk, self.place.now_ms
        if not d.asked:
            first = d.waiting[0] if d.waiting else None
            if first and isinstance(control.read_proposal(first.proposed.raw).op, control.Stewards):
                if now - first.since_ms >= READY_MS:
                    self._keep(waiting=d.waiting[1:], told=())
                    self.reject(first.proposed, ProtocolError("unreachable", "not all new stewards answer", "11.7"))
            self.advance()
        elif now - d.since_ms >= RETRY_MS:
            entry = control.read_entry(d.asked)
            op = control.read_proposal(entry.proposed.raw).op
            if not self._many and now - d.since_ms >= READY_MS:
                # Nobody but this steward decides, and it did not sign: whoever is not there must not hold it up.
                self._keep(asked=b"", votes=(), waiting=tuple(w for w in d.waiting if w.proposed != entry.proposed))
                self.reject(entry.proposed, ProtocolError("unreachable", "not all new stewards signed", "11.7"))
                self.advance()
                return
            missing = [n for n in groups.voters(self._state, op) if n not in {v.node for v in d.votes}]
            if self._many:
                self._keep(since_ms=now)
            self._say(missing, Ask(self._state.group, d.term, d.asked))

    def _line(self) -> int:
        """This steward's place in line for the next term."""
        stewards = self._state.stewards
        return (stewards.index(self.place.me) - self.desk.promised - 1) % len(stewards)

    def campaign(self) -> None:
        """Want to lead the next term that is this steward's."""
        term = max(self.desk.promised, self.desk.term, self.place.tip.term) + 1
        while groups.leader(self._state, term) != self.place.me:
            term += 1
        self._lead_no_more(term)
        self._keep(promised=term, term=term)
        self._say(self._others, Campaign(self._state.group, term, self._state.index))


def _index(raw: bytes) -> int:
    return control.read_entry(raw).index


Kind = Literal["leader", "steward", "member"]

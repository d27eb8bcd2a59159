"""Who orders a group's control log: one steward alone, or a majority of three or five (PROTOCOL.md 11.7 to 11.9).

Pure: `Desk` is all that a node keeps for one group beside the log itself, and is committed before a message of the
same step leaves. Messages may be lost, repeated and late; between two nodes they keep their order.
"""

from collections.abc import Iterable

from federation import control, cuts, groups
from federation.control import Certificate, Certified, Entry, Proposed, Vouched
from federation.desk import (
    Ask,
    Campaign,
    Desk,
    Done,
    Heard,
    Message,
    Nay,
    News,
    Output,
    Place,
    Promise,
    Propose,
    Rejected,
    Tallied,
    Tally,
    To,
    Told,
    Vote,
    Waiting,
    Want,
    decode_desk,
    encode_desk,
    read_message,
    restored,
)
from federation.errors import ProtocolError
from federation.roster import State
from federation.voting import PATIENCE_MS, Voter, op_of

__all__ = [
    "Ask",
    "Campaign",
    "Desk",
    "Done",
    "Heard",
    "Message",
    "Nay",
    "News",
    "Output",
    "Place",
    "Promise",
    "Propose",
    "Rejected",
    "Step",
    "Tallied",
    "Tally",
    "To",
    "Told",
    "Vote",
    "Waiting",
    "Want",
    "decode_desk",
    "encode_desk",
    "read_message",
    "restored",
]

PENDING_MAX = 64  # proposals that wait at one node, for one group
RETRY_MS = 5_000  # after which a leader asks again
READY_MS = 20_000  # how long new stewards may take to say that they are there
SAY_MS = 3600_000  # how often a steward tells all how far the log is here, and all others the stewards
REPEAT_MS = 120_000  # after which whoever has a proposal tells the stewards of it again


class Step(Voter):
    """One step of one desk: what it keeps afterwards, and what it says."""

    # --- proposals ------------------------------------------------------------------------------------------------
    def propose(self, proposed: Proposed) -> None:
        """A proposal came, from a user here or from another node. Refused ones are told to their node."""
        if any(w.proposed.id == proposed.id for w in self.desk.waiting):
            return
        ours = control.read_proposal(proposed.raw).node == self.place.me
        try:
            groups.after(self._state, proposed, (), self.place.now_ms)
            if len(self.desk.waiting) >= PENDING_MAX:
                raise ProtocolError("busy", "too many proposals wait for this group", "11.9")
        except ProtocolError as error:
            if ours or self.orders:  # another steward may know less than the one who decides
                self.reject(proposed, error)
            return
        self._wait(proposed, ours)
        self.advance()

    def _wait(self, proposed: Proposed, tell: bool) -> None:
        self._keep(waiting=(*self.desk.waiting, Waiting(proposed, self.place.now_ms)))
        if tell:
            self._say(self._hearers(proposed), Propose(self._state.group, proposed))

    def _hearers(self, proposed: Proposed) -> tuple[bytes, ...]:
        """Who must know of a proposal: the stewards; of one that takes rights away, everybody (PROTOCOL.md 11.9)."""
        return self._sites if cuts.shrinks(proposed) else self._others

    def reject(self, proposed: Proposed, error: ProtocolError) -> None:
        message = Rejected(self._state.group, proposed.id, error.code, str(error)[:200])
        node = control.read_proposal(proposed.raw).node
        if self.orders:
            self._say((n for n in self._hearers(proposed) if n != node), message)
        self.outputs.append(To(node, message))  # ourselves too: whoever carries this out shows it to the proposer

    def _rejected(self, sender: bytes, proposal: bytes) -> None:
        if sender in self._state.stewards and not self.orders:
            self._keep(waiting=tuple(w for w in self.desk.waiting if w.proposed.id != proposal))
            self._say((sender,), Want(self._state.group, self._state.index))  # it may know what is missing here

    # --- leading --------------------------------------------------------------------------------------------------
    def advance(self) -> None:
        """Make the next entry, if this node may, and nothing is under way."""
        while self.orders and not self.desk.asked and self.desk.waiting:
            first = self.desk.waiting[0].proposed
            told = (*self.desk.told, Told(self.place.me, self.place.heads(cuts.whose(first) or self.place.me)))
            if not cuts.ready(self._state, first, told):
                self._tally(first)
                return
            try:
                entry = self._entry(first, cuts.cut(self._state, first, told))
            except ProtocolError as error:  # something certified meanwhile speaks against it
                self._drop(first, error)
                continue
            self._ask(entry)
            return

    def _drop(self, proposed: Proposed, error: ProtocolError) -> None:
        self._keep(waiting=tuple(w for w in self.desk.waiting if w.proposed != proposed), told=())
        self.reject(proposed, error)

    def _tally(self, proposed: Proposed) -> None:
        """Ask for what the entry's cut needs, and whether new stewards are there."""
        if self.desk.told and self.place.now_ms - self.desk.since_ms < RETRY_MS:
            return
        self._keep(since_ms=self.place.now_ms, told=self.desk.told or (Told(self.place.me, ()),))
        asked = cuts.asked(self._state, proposed)
        tally = Tally(self._state.group, proposed.id, cuts.whose(proposed) or self.place.me)
        self._say((n for n in asked if n not in {t.node for t in self.desk.told}), tally)

    def _entry(self, proposed: Proposed, cut: tuple[control.Cut, ...]) -> bytes:
        now = self.place.now_ms
        state = groups.after(self._state, proposed, cut, now)
        previous, hash_ = self.place.tip.hash, groups.state_hash(state)
        return control.encode(Entry(1, state.group, state.index, previous, proposed, cut, now, hash_))

    def _ask(self, entry: bytes) -> None:
        """Sign it, unless this steward alone decides: then it signs last, so that it is free until then."""
        term = self.desk.term if self._many else max(self.place.tip.term, self.desk.promised)
        self._keep(asked=entry, votes=(), told=(), since_ms=self.place.now_ms, term=term)
        if self._many:
            self._keep(signed=entry, signed_term=term, promised=max(self.desk.promised, term))
        self._say(groups.voters(self._state, op_of(entry)), Ask(self._state.group, term, entry))
        self._count()

    def _count(self) -> None:
        """Certify what is asked for, once enough signed."""
        raw, term, me = self.desk.asked, self.desk.term, self.place.me
        entry, hash_ = control.read_entry(raw), control.entry_hash(raw)
        signers = {v.node for v in self.desk.votes} | {me}
        if not groups.enough(self._state, op_of(raw), control.read_proposal(entry.proposed.raw).node, signers):
            return
        own = Vouched(me, control.certify(self.place.key, entry.group, term, entry.index, hash_))
        signatures = tuple(sorted((*self.desk.votes, own), key=lambda v: v.node))
        self.outputs.append(Done(Certified(raw, Certificate(term, signatures))))

    def takeover(self, proposed: Proposed) -> None:
        """Order the group from now on, in place of one or two stewards that are gone. `ProtocolError`."""
        if self.desk.amnesia:
            raise ProtocolError("restoring", "this node asks the others first what they hold", "11.8")
        entry = self._entry(proposed, ())
        term = max(self.place.tip.term, self.desk.promised) + 1
        hash_, index = control.entry_hash(entry), self._state.index + 1
        own = Vouched(self.place.me, control.certify(self.place.key, self._state.group, term, index, hash_))
        self.outputs.append(Done(Certified(entry, Certificate(term, (own,)))))

    # --- what others say ------------------------------------------------------------------------------------------
    def feed(self, sender: bytes, message: Message) -> None:
        """A message of another node of the group; what is not its to say is ignored. Want and News are for whoever
        keeps the log."""
        match message:
            case Propose(proposed=proposed):
                self.propose(proposed)
            case Rejected(proposal=proposal):
                self._rejected(sender, proposal)
            case Campaign():
                self._campaigned(sender, message)
            case Promise():
                self._promised(sender, message)
            case Ask():
                self._asked(sender, message)
            case Vote():
                self._voted(sender, message)
            case Nay():
                self._refused(sender, message)
            case Tally(proposal=proposal, node=node):
                if self._state.site(sender) is not None and not self.desk.amnesia:
                    self._say((sender,), Tallied(self._state.group, proposal, self.place.heads(node)))
            case Tallied():
                self._tallied(sender, message)
            case _:
                pass

    def _refused(self, sender: bytes, m: Nay) -> None:
        """A higher term was promised: another leads; a steward that decides alone asks again in that term."""
        if self._many:
            if sender in self._state.stewards and m.promised > self.desk.term:
                self._lead_no_more(m.promised)
        elif self.orders and self._asks(sender) and m.promised > self.desk.term:
            self._keep(promised=max(m.promised, self.desk.promised))
            self._ask(self.desk.asked)

    def _asks(self, node: bytes) -> bool:
        """Whether this node is asked to sign what is asked for."""
        return bool(self.desk.asked) and node in groups.voters(self._state, op_of(self.desk.asked))

    def _voted(self, sender: bytes, m: Vote) -> None:
        raw = self.desk.asked
        if not raw or not self.orders or (m.term, m.entry) != (self.desk.term, control.entry_hash(raw)):
            return
        if not self._asks(sender) or any(v.node == sender for v in self.desk.votes):
            return
        site, index = self._state.site(sender), self._state.index + 1
        said = control.certify_bytes(self._state.group, m.term, index, m.entry)
        if site is None or not control.node_signed(site.chain, "certify", said, m.signature):
            return  # it would spoil the certificate
        self._keep(votes=(*self.desk.votes, Vouched(sender, m.signature)))
        self._count()

    def _tallied(self, sender: bytes, m: Tallied) -> None:
        waiting = self.desk.waiting
        if not waiting or waiting[0].proposed.id != m.proposal or not self.orders:
            return
        if sender not in cuts.asked(self._state, waiting[0].proposed):
            return
        told = {t.node: t for t in self.desk.told} | {sender: Told(sender, m.cuts)}
        self._keep(told=tuple(told[n] for n in sorted(told)))
        self.advance()

    # --- the log moved, time passed -------------------------------------------------------------------------------
    def moved(self, before: State, done: Proposed | None = None) -> None:
        """The tip is a new one, made by `done`: what was under way for an older one is over."""
        led = self.desk.leads if len(before.stewards) > 2 else before.stewards[0] == self.place.me
        self._keep(asked=b"", votes=(), told=(), since_ms=self.place.now_ms)
        changed = before.stewards != self._state.stewards
        if changed:
            self._keep(leads=False, heard=() if not self.desk.amnesia else self.desk.heard, term=0)
        self._sift(done)
        if changed:
            for w in self.desk.waiting:
                self._say((n for n in self._others if n not in before.stewards), Propose(self._state.group, w.proposed))
        if self.desk.amnesia:
            self._remember()
        elif changed and led and self._many and self._is_steward:
            self.campaign()  # the others wait for it
        elif self.desk.heard and not self.desk.leads:
            self._consider()
        self.advance()

    def _sift(self, done: Proposed | None) -> None:
        """Of what waits, keep what may still become an entry."""
        waiting, refused = [], []
        for w in self.desk.waiting:
            if done is not None and w.proposed.id == done.id:
                continue
            try:
                groups.after(self._state, w.proposed, (), self.place.now_ms)
                waiting.append(w)
            except ProtocolError as error:
                refused.append((w.proposed, error))
        self._keep(waiting=tuple(waiting))
        for proposed, why in refused:
            if self.orders or control.read_proposal(proposed.raw).node == self.place.me:
                self.reject(proposed, why)

    def rebased(self, again: Iterable[Proposed]) -> None:
        """The log went back and took another branch: what only the lost one had waits again (PROTOCOL.md 11.9)."""
        self._keep(leads=False, heard=(), asked=b"", votes=(), told=(), term=0, since_ms=self.place.now_ms)
        self._sift(None)
        for proposed in again:
            self.propose(proposed)
        self.advance()

    def tick(self) -> None:
        """Now and then. Whoever waits too long for a leader wants to be one; a leader asks again."""
        d, now = self.desk, self.place.now_ms
        if d.amnesia:
            if d.since_ms:
                self._remember()
            if self.desk.amnesia and (not d.since_ms or now - d.since_ms >= RETRY_MS):
                self._keep(since_ms=now)
                self._say(self._sites, self._campaign(0))
            return
        if now - d.said_ms >= SAY_MS:
            self._keep(said_ms=now)
            self._say(self._sites if self._is_steward else self._others, self._campaign(0))
        self._repeat()
        if self.orders:
            self._again()
        elif self._many and self._is_steward and (d.waiting or self._signed):
            since = max([d.since_ms, *(w.since_ms for w in d.waiting[:1])])
            if now - since >= PATIENCE_MS * (1 + self._line()):
                self.campaign()

    def _repeat(self) -> None:
        """Tell the stewards again of what waits here: they may have lost it, or be others by now."""
        if self._is_steward or not self.desk.waiting or self.place.now_ms - self.desk.since_ms < REPEAT_MS:
            return
        self._keep(since_ms=self.place.now_ms)
        for w in self.desk.waiting:
            self._say(self._others, Propose(self._state.group, w.proposed))

    def _again(self) -> None:
        d, now = self.desk, self.place.now_ms
        if not d.asked:
            first = d.waiting[0] if d.waiting else None
            if first and cuts.is_stewards(first.proposed) and now - first.since_ms >= READY_MS:
                self._drop(first.proposed, ProtocolError("unreachable", "not all new stewards answer", "11.7"))
            self.advance()
        elif not self._many and now - d.since_ms >= READY_MS:
            # Nobody but this steward decides, and it did not sign: whoever is not there must not hold it up.
            self._keep(asked=b"", votes=())
            proposed = control.read_entry(d.asked).proposed
            self._drop(proposed, ProtocolError("unreachable", "not all new stewards signed", "11.7"))
            self.advance()
        elif now - d.since_ms >= RETRY_MS:
            if self._many:
                self._keep(since_ms=now)
            missing = [n for n in groups.voters(self._state, op_of(d.asked)) if n not in {v.node for v in d.votes}]
            self._say(missing, Ask(self._state.group, d.term, d.asked))

"""Who orders a group's control log: one steward alone, or a majority of three or five (PROTOCOL.md 11.7 to 11.9).

Pure: `Desk` is all that a node keeps for one group beside the log itself, and is committed before a message of the
same step leaves. Messages may be lost, repeated and late; between two nodes they keep their order.
"""

from collections.abc import Iterable

import msgspec

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
    restored,
)
from federation.errors import ProtocolError
from federation.roster import State

__all__ = ["Desk", "Done", "Message", "News", "Output", "Place", "To", "decode_desk", "encode_desk", "restored"]

PENDING_MAX = 64  # proposals that wait at one node, for one group
PATIENCE_MS = 10_000  # how long a steward waits for the leader, times its place in line
RETRY_MS = 5_000  # after which a leader asks again
READY_MS = 20_000  # how long new stewards may take to say that they are there
REPEAT_MS = 120_000  # after which whoever has a proposal tells the stewards of it again
RECALL_MS = 600_000  # how long a restored node waits for nodes that may be gone, where one steward decides alone
CLOCK_MS = 24 * 3600_000  # how far an entry's time may be off


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
    def _sites(self) -> tuple[bytes, ...]:
        return tuple(site.node for site in self._state.sites if site.node != self.place.me)

    @property
    def _is_steward(self) -> bool:
        return self.place.me in self._state.stewards

    @property
    def orders(self) -> bool:
        """Whether this node may make entries now."""
        if self.desk.amnesia:
            return False
        return self.desk.leads if self._many else self._state.stewards[0] == self.place.me

    @property
    def _signed(self) -> bytes:
        """What this node signed and is not certified yet, as far as it knows."""
        return self.desk.signed if self._follows(self.desk.signed) else b""

    def _follows(self, raw: bytes) -> bool:
        """Whether these bytes are an entry that follows the newest one here."""
        if not raw:
            return False
        try:
            return control.read_entry(raw).previous == self.place.tip.hash
        except ProtocolError:
            return False

    def _keep(self, **changes: object) -> None:
        self.desk = msgspec.structs.replace(self.desk, **changes)

    def _say(self, nodes: Iterable[bytes], message: Message) -> None:
        self.outputs += [To(node, message) for node in nodes if node != self.place.me]

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
        self._say(groups.voters(self._state, _op(entry)), Ask(self._state.group, term, entry))
        self._count()

    def _count(self) -> None:
        """Certify what is asked for, once enough signed."""
        raw, term, me = self.desk.asked, self.desk.term, self.place.me
        entry, hash_ = control.read_entry(raw), control.entry_hash(raw)
        signers = {v.node for v in self.desk.votes} | {me}
        if not groups.enough(self._state, _op(raw), control.read_proposal(entry.proposed.raw).node, signers):
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

    def _lead_no_more(self, promised: int) -> None:
        """Another leads, or wants to; what was asked for comes back through the promises."""
        self._keep(leads=False, heard=(), asked=b"", votes=(), told=(), since_ms=self.place.now_ms)
        self._keep(term=max(self.desk.term, promised))

    def _want(self, sender: bytes, index: int) -> None:
        """Ask for entries, if the sender has some that are missing here."""
        if index > self._state.index:
            self._say((sender,), Want(self._state.group, self._state.index))

    def _campaigned(self, sender: bytes, m: Campaign) -> None:
        if self._state.site(sender) is None:
            return
        self._want(sender, m.index)
        if m.term == 0 or not self._many or groups.leader(self._state, m.term) != sender or not self._is_steward:
            if m.term == 0 or m.index < self._state.index:
                self._promise(sender, 0)  # it does not know who leads, or was restored
            return
        if self.desk.amnesia:
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
        if term == 0 and d.amnesia:
            term_, signed = 0, b""  # what it knows of the log is true; the rest may not be all
            self._say((sender,), Promise(self._state.group, 0, 0, self._state.index, term_, signed))
            return
        self._say((sender,), Promise(self._state.group, term, d.promised, self._state.index, d.signed_term, d.signed))

    def _promised(self, sender: bytes, m: Promise) -> None:
        self._want(sender, m.index)
        d = self.desk
        if d.amnesia:
            if m.term == 0 and self._state.site(sender) is not None:
                self._hear(sender, m)
                self._remember()
        elif self._many and sender in self._others and m.term and m.term == d.term and not d.leads:
            self._hear(sender, m)
            self._consider()

    def _hear(self, sender: bytes, m: Promise) -> None:
        heard = {h.node: h for h in self.desk.heard} | {sender: Heard(sender, m)}
        self._keep(heard=tuple(heard[n] for n in sorted(heard)))

    def _consider(self) -> None:
        """Enough heard, and nothing certified that is missing here: lead."""
        d, state = self.desk, self._state
        heard = [h for h in d.heard if h.node in self._others]
        if any(h.promise.index > state.index for h in heard):
            return  # entries are on their way
        if not d.term or d.promised != d.term or groups.leader(state, d.term) != self.place.me:
            return
        if len(heard) + 1 <= len(state.stewards) // 2:
            return
        self._keep(leads=True, heard=(), since_ms=self.place.now_ms)
        found = [(d.signed_term, d.signed), *((h.promise.signed_term, h.promise.signed) for h in heard)]
        found = [(term, raw) for term, raw in found if self._follows(raw)]
        if found:
            self._ask(max(found)[1])
        else:
            self.advance()

    def _remember(self) -> None:
        """A restored node signs again once every other one told what it promised and signed (PROTOCOL.md 11.8)."""
        heard = {h.node: h.promise for h in self.desk.heard}
        if any(p.index > self._state.index for p in heard.values()):
            return  # entries are on their way
        alone = self._state.stewards[0] == self.place.me and not self._many
        missing = set(self._sites if alone else self._others) - set(heard)
        late = self.place.now_ms - self.desk.restored_ms >= RECALL_MS
        if missing and (self._many or not late):
            return
        best = max([(0, b""), *((p.signed_term, p.signed) for p in heard.values() if self._follows(p.signed))])
        promised = max([self.desk.promised, self.place.tip.term, *(p.promised for p in heard.values())])
        self._keep(amnesia=False, restored_ms=0, heard=(), promised=promised, term=0, leads=False)
        if best[0] > self.desk.signed_term or not self._signed:
            self._keep(signed_term=best[0], signed=best[1])
        self.advance()

    def _asked(self, sender: bytes, m: Ask) -> None:
        try:
            entry, op = control.read_entry(m.entry), _op(m.entry)
        except ProtocolError:
            return
        self._want(sender, entry.index - 1)
        if entry.index != self._state.index + 1:
            return  # later: entries are on their way; earlier: the sender hears of it as everybody does
        if self.desk.amnesia or groups.leader(self._state, m.term) != sender:
            return
        if self.place.me not in groups.voters(self._state, op):
            return
        if m.term < self.desk.promised:
            self._say((sender,), Nay(self._state.group, self.desk.promised))
            return
        try:
            groups.check_entry(self.place.tip, m.entry)
            if m.term < self.place.tip.term or abs(entry.at_ms - self.place.now_ms) > CLOCK_MS:
                raise ProtocolError("clock", "an entry of an old term, or its time is more than a day off", "11.7")
        except ProtocolError:
            return  # the leader is wrong; it must not get this signature
        if m.term > self.desk.term and self._many:
            self._lead_no_more(m.term)
        self._keep(promised=m.term, signed=m.entry, signed_term=m.term, since_ms=self.place.now_ms)
        hash_ = control.entry_hash(m.entry)
        signature = control.certify(self.place.key, self._state.group, m.term, entry.index, hash_)
        self._say((sender,), Vote(self._state.group, m.term, entry.index, hash_, signature))

    def _refused(self, sender: bytes, m: Nay) -> None:
        """A higher term was promised: another leads; a steward that decides alone asks again in that term."""
        if self._many:
            if sender in self._state.stewards and m.promised > self.desk.term:
                self._lead_no_more(m.promised)
        elif self.orders and self.desk.asked and m.promised > self.desk.term:
            if sender in groups.voters(self._state, _op(self.desk.asked)):
                self._keep(promised=max(m.promised, self.desk.promised))
                self._ask(self.desk.asked)

    def _voted(self, sender: bytes, m: Vote) -> None:
        raw = self.desk.asked
        if not raw or not self.orders or (m.term, m.entry) != (self.desk.term, control.entry_hash(raw)):
            return
        if sender not in groups.voters(self._state, _op(raw)) or any(v.node == sender for v in self.desk.votes):
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
            self._keep(restored_ms=d.restored_ms or now)
            self._remember()
            if self.desk.amnesia and now - d.since_ms >= RETRY_MS:
                self._keep(since_ms=now)
                self._say(self._sites, Campaign(self._state.group, 0, self._state.index))
            return
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
            missing = [n for n in groups.voters(self._state, _op(d.asked)) if n not in {v.node for v in d.votes}]
            self._say(missing, Ask(self._state.group, d.term, d.asked))

    def _line(self) -> int:
        """This steward's place in line for the next term."""
        stewards, newest = self._state.stewards, max(self.desk.promised, self.place.tip.term)
        return (stewards.index(self.place.me) - newest - 1) % len(stewards)

    def campaign(self) -> None:
        """Want to lead the next term that is this steward's."""
        term = max(self.desk.promised, self.desk.term, self.place.tip.term) + 1
        while groups.leader(self._state, term) != self.place.me:
            term += 1
        self._lead_no_more(term)
        self._keep(promised=term, term=term)
        self._say(self._others, Campaign(self._state.group, term, self._state.index))


def _op(raw: bytes) -> control.Op:
    return control.read_proposal(control.read_entry(raw).proposed.raw).op

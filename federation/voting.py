"""How a steward votes: promises, signatures, and what a restored one asks before it signs (PROTOCOL.md 11.7, 11.8).

Pure; `federation.stewards.Step` adds proposals and leading.
"""

from collections.abc import Iterable

import msgspec

from federation import control, groups
from federation.desk import (
    Ask,
    Campaign,
    Desk,
    Heard,
    Message,
    Nay,
    Output,
    Place,
    Promise,
    To,
    Vote,
    Want,
)
from federation.errors import ProtocolError
from federation.roster import State

PATIENCE_MS = 10_000  # how long a steward waits for the leader, times its place in line
RECALL_MS = 600_000  # how long a restored node waits for nodes that may be gone, where one steward decides alone
CLOCK_MS = 24 * 3600_000  # how far an entry's time may be off


class Voter:
    """A step of one desk, as far as it is about who leads and what is signed."""

    def __init__(self, desk: Desk, place: Place) -> None:
        self.desk, self.place = desk, place
        self.outputs: list[Output] = []

    def advance(self) -> None:
        """Make the next entry, if this node may."""
        raise NotImplementedError

    def _ask(self, entry: bytes) -> None:
        raise NotImplementedError

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

    # --- who leads ------------------------------------------------------------------------------------------------
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
        self._say(self._others, self._campaign(term))

    def _lead_no_more(self, promised: int) -> None:
        """Another leads, or wants to; what was asked for comes back through the promises."""
        self._keep(leads=False, heard=(), asked=b"", votes=(), told=(), since_ms=self.place.now_ms)
        self._keep(term=max(self.desk.term, promised))

    def _want(self, sender: bytes, index: int, tip: bytes = b"") -> None:
        """Ask for entries, if the sender has some that are missing here, or another one than is here."""
        if index > self._state.index:
            self._say((sender,), Want(self._state.group, self._state.index))
        elif index == self._state.index and tip and tip != self.place.tip.hash:
            self._say((sender,), Want(self._state.group, index - 1))

    def _campaigned(self, sender: bytes, m: Campaign) -> None:
        if self._state.site(sender) is None:
            return
        self._want(sender, m.index, m.tip)
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
            d = Desk()  # what it knows of the log is true; the rest may not be all
        index, tip = self._state.index, self.place.tip.hash
        promise = Promise(self._state.group, term, d.promised, index, tip, d.signed_term, d.signed)
        self._say((sender,), promise)

    def _campaign(self, term: int) -> Campaign:
        return Campaign(self._state.group, term, self._state.index, self.place.tip.hash)

    def _promised(self, sender: bytes, m: Promise) -> None:
        self._want(sender, m.index, m.tip)
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

    # --- after a restore, and signing -----------------------------------------------------------------------------
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
            entry, op = control.read_entry(m.entry), op_of(m.entry)
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


def op_of(raw: bytes) -> control.Op:
    return control.read_proposal(control.read_entry(raw).proposed.raw).op

"""Two branches of one control log, where one or two stewards order it: which one stands, and what becomes of the
other (PROTOCOL.md 11.9).

Pure. A node holds one branch, and every entry of it, so that it can go back.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from federation import control, cuts, groups
from federation.control import Certified, Proposed
from federation.errors import ProtocolError
from federation.roster import State, Tip


class Weight(NamedTuple):
    """What of a branch counts, from where it parts from another: the greater one stands.

    It only grows as a branch does, so that the first part of one may be enough to follow it. Who compares any two of
    three branches comes to the same one, since what two of them share counts the same for both.
    """

    many: bool  # three stewards or more were agreed on: nothing that they certified is given up for what one says
    takeovers: int  # up to there; of two such branches the one with fewer stands, and else the one with more
    rank: int  # of the first takeover
    entries: int
    hash: bytes  # of its first entry


def weigh(base: Tip, branch: Sequence[Certified]) -> tuple[Tip, Weight]:
    """The tip of a branch that follows `base`, and its weight. `ProtocolError` where it does not hold."""
    tip, many, takeovers, rank = base, False, 0, 0
    for certified in branch:
        proposal = control.read_proposal(control.read_entry(certified.entry).proposed.raw)
        if isinstance(proposal.op, control.Takeover) and not many:
            takeovers += 1
            rank = rank or groups.rank(tip.state, proposal)
        tip = groups.check_certified(tip, certified.entry, certified.certificate)
        many = many or len(tip.state.stewards) > 2
    first = control.entry_hash(branch[0].entry) if branch else b""
    return tip, Weight(many, -takeovers if many else takeovers, rank, len(branch), first)


Meeting = Literal["next", "known", "gap", "branch"]


def meet(tip: Tip | None, certified: Certified, hash_at: Callable[[int], bytes | None]) -> Meeting:
    """How an entry that came meets the log here; `hash_at` gives the hash of its entries. `ProtocolError`.

    `gap`: what lies before it is missing here, or is another; it has to be asked for, from `back` on. `branch`: it
    parts from the log right after an entry that both have.
    """
    entry, hash_ = control.read_entry(certified.entry), control.entry_hash(certified.entry)
    index = tip.state.index if tip is not None else 0
    if entry.index <= index and hash_at(entry.index) == hash_:
        return "known"
    if entry.index == index + 1 and entry.previous == (tip.hash if tip is not None else None):
        return "next"
    if entry.index > index + 1 or entry.index == 1 or hash_at(entry.index - 1) != entry.previous:
        return "gap"
    return "branch"


def is_lie(base: State) -> bool:
    """Whether a branch after this state proves that somebody lied (PROTOCOL.md 11.5)."""
    return len(base.stewards) > 2


def back(index: int, tries: int) -> int:
    """From where to ask next for the entries of another branch, whose beginning was not found `tries` times."""
    return max(0, index - (1 << tries))


def replay(kept: Tip | None, entries: Iterable[Certified]) -> Tip:
    """The tip after these entries, on top of one that was kept. `ProtocolError` where one is damaged."""
    tip = kept
    for certified in entries:
        tip = groups.check_certified(tip, certified.entry, certified.certificate)
    if tip is None:
        raise ProtocolError("gap", "no entries", "11.3")
    return tip


def rebase(lost: Iterable[Certified], stands: Iterable[Certified]) -> tuple[Proposed, ...]:
    """What the branch that lost had and the other has not, to be proposed again: what takes rights away first, which
    stays in force meanwhile (`cuts.provisional`)."""
    there = {control.read_entry(c.entry).proposed.id for c in stands}
    again = [proposed for c in lost if (proposed := control.read_entry(c.entry).proposed).id not in there]
    again = [p for p in again if not isinstance(control.read_proposal(p.raw).op, control.Takeover)]
    return tuple(sorted(again, key=lambda p: not cuts.shrinks(p)))

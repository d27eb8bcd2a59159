"""However messages are ordered, lost or repeated, and whoever restarts from a copy: no two certified entries of one index,
none lost where a majority certifies, and the same state everywhere in the end. Each rule that this hangs on is broken
once, to see that the search finds it.
"""

from typing import NamedTuple

import pytest

from federation import cuts, forks, groups
from federation.control import Op, Proposed, Remove, Set, Stewards
from federation.desk import Campaign, Desk, Promise
from federation.stewards import Step
from tests.explore.kit import add, founded, propose, site
from tests.explore.search import Found, explore
from tests.explore.world import Budget, Machine, Town, Wrong

A, B, C, D, E = (site(letter) for letter in "abcde")


class Plan(NamedTuple):
    letters: str
    stewards: str  # empty: the creator's node alone
    todo: tuple[tuple[str, Op], ...]
    budget: Budget
    sure: bool = True  # each proposal becomes an entry


TOPIC, NAME = ("a", Set("topic", "x")), ("b", Set("name", "y"))
PLANS = {
    "two proposals": Plan("abc", "abc", (TOPIC, NAME), Budget(ticks=3, losses=1, repeats=1)),
    "two who want to lead": Plan("abc", "abc", (TOPIC,), Budget(ticks=4, losses=1)),
    "restored": Plan("abc", "abc", (TOPIC,), Budget(ticks=3, restores=1, copies=1), sure=False),
    "restored twice": Plan("abc", "abc", (TOPIC,), Budget(ticks=3, restores=2), sure=False),
    "other stewards": Plan(
        "abcd", "abc", (("a", Stewards((A.node, B.node, D.node))), NAME), Budget(ticks=3, losses=1), sure=False
    ),
    "all other stewards": Plan(
        "abcd", "abc", (("a", Stewards((D.node, C.node, B.node))),), Budget(ticks=3, repeats=1), sure=False
    ),
    "more stewards": Plan(
        "abc", "", (("a", Stewards((A.node, B.node, C.node))), NAME), Budget(ticks=2, losses=1, repeats=1), sure=False
    ),
    "fewer stewards": Plan("abc", "abc", (("a", Stewards((C.node,))), NAME), Budget(ticks=3, losses=1), sure=False),
    "one, restored": Plan("abc", "", (TOPIC, NAME), Budget(ticks=2, restores=1, copies=1), sure=False),
    "taken over": Plan("abc", "", (("a", add((E, "member"))), ("a", Remove(C.node, "clice"))), Budget(takeovers=1)),
    "taken over twice": Plan("abc", "", (("a", add((E, "member"))), TOPIC), Budget(ticks=1, takeovers=2)),
    "taken over while it grows": Plan(
        "abc", "", (("a", Stewards((A.node, B.node, C.node))), NAME), Budget(ticks=1, takeovers=1), sure=False
    ),
}


def search(plan: Plan, worlds_max: int, machine: Machine | None = None, heal_every: int = 100) -> Found:
    log = founded(plan.letters, plan.stewards)
    todo = [(by, propose(site(by), op, log.group, log.at.state.index)) for by, op in plan.todo]
    sites = [site(letter) for letter in plan.letters]
    town = Town(sites, log.entries, todo, machine or Machine(), plan.sure)
    return explore(town, town.start(plan.budget), worlds_max, heal_every)


@pytest.mark.parametrize("name", PLANS)
def test_the_log_never_comes_apart(name: str) -> None:
    assert search(PLANS[name], 12_000).worlds > 500


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_the_log_never_comes_apart_in_long(name: str) -> None:
    assert search(PLANS[name], 600_000, heal_every=1000).worlds > 500


# --- broken on purpose --------------------------------------------------------------------------------------------
class Forgetful(Step):
    """Does not keep what it promised."""

    def _campaigned(self, sender: bytes, m: Campaign) -> None:
        before = self.desk.promised
        super()._campaigned(sender, m)
        self._keep(promised=before)


class Rash(Step):
    """Leads without regard to what the others signed."""

    def _hear(self, sender: bytes, m: Promise) -> None:
        super()._hear(sender, Promise(m.group, m.term, m.promised, m.index, 0, b""))


class Eager(Step):
    """Leads without waiting for the entries that it is told of."""

    def _hear(self, sender: bytes, m: Promise) -> None:
        super()._hear(sender, Promise(m.group, m.term, m.promised, 1, m.signed_term, m.signed))


class Faint(Step):
    """Signs, and does not keep what it signed."""

    def _keep(self, **changes: object) -> None:
        if self.desk.leads or self.desk.asked:
            super()._keep(**changes)
        else:
            super()._keep(**{k: v for k, v in changes.items() if k not in ("signed", "signed_term")})


def _awake(desk: Desk, now_ms: int) -> Desk:
    return Desk(promised=desk.promised, signed=desk.signed, signed_term=desk.signed_term, waiting=desk.waiting)


def _nothing_again(lost: object, stands: object) -> tuple[Proposed, ...]:
    return ()


def _no_removals(lost: "tuple[forks.Certified, ...]", stands: "tuple[forks.Certified, ...]") -> tuple[Proposed, ...]:
    return tuple(p for p in forks.rebase(lost, stands) if not cuts.shrinks(p))


BROKEN = {
    "forgets promises": ("two who want to lead", Machine(Forgetful)),
    "ignores what was signed": ("two who want to lead", Machine(Rash)),
    "forgets signatures": ("two who want to lead", Machine(Faint)),
    "signs at once when restored": ("restored", Machine(restored=_awake)),
    "follows nobody": ("taken over", Machine(outweighs=lambda theirs, ours: False)),
    "follows everybody": ("taken over", Machine(outweighs=lambda theirs, ours: True)),
    "proposes nothing again": ("taken over", Machine(rebase=_nothing_again)),
    "lets them back in": ("taken over", Machine(rebase=_no_removals)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_machine_is_found(name: str) -> None:
    plan, machine = BROKEN[name]
    with pytest.raises(Wrong):
        search(PLANS[plan], 60_000, machine)


def test_a_change_of_stewards_by_the_old_ones_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = groups.enough

    def old_only(state: groups.State, op: Op, actor: bytes, signers: "set[bytes]") -> bool:
        return whole(state, Set("topic", "") if isinstance(op, Stewards) else op, actor, signers)

    monkeypatch.setattr(groups, "enough", old_only)
    with pytest.raises(Wrong):
        search(PLANS["all other stewards"], 60_000)

"""However messages are ordered, lost or repeated, and whoever restarts from a copy: no two certified entries of one
index, none lost where a majority certifies, and the same state everywhere in the end. Each rule that this hangs on is
broken once, to see that the search finds it.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from federation import cuts, desk, forks, groups
from federation.control import Op, Proposed, Remove, Set, Stewards
from federation.desk import Campaign, Desk, Promise
from federation.stewards import Step
from tests.explore.kit import add, founded, propose, site
from tests.explore.search import explore, follow, wander
from tests.explore.world import Budget, Machine, Town, World, Wrong

A, B, C, D, E = (site(letter) for letter in "abcde")


class Plan(NamedTuple):
    letters: str
    stewards: str  # empty: the creator's node alone
    todo: tuple[tuple[str, Op], ...]
    budget: Budget
    sure: bool = False  # each proposal becomes an entry
    dead: str = ""


TOPIC, NAME = ("a", Set("topic", "x")), ("b", Set("name", "y"))
TWO = (TOPIC, NAME)
TO_ALL, TO_OTHERS = Stewards((A.node, B.node, C.node)), Stewards((D.node, E.node, B.node))
PLANS = {
    "two proposals": Plan("abc", "abc", TWO, Budget(ticks=3, losses=1, repeats=1), sure=True),
    "two who want to lead": Plan("abc", "abc", TWO, Budget(ticks=6, losses=2), sure=True),
    "restored": Plan("abc", "abc", TWO, Budget(ticks=4, losses=1, restores=1, copies=1)),
    "restored twice": Plan("abc", "abc", (TOPIC,), Budget(ticks=4, restores=2)),
    "another steward": Plan(
        "abcd", "abc", (("a", Stewards((A.node, B.node, D.node))), NAME), Budget(ticks=4, losses=1, repeats=1)
    ),
    "other stewards": Plan("abcde", "abc", (("a", TO_OTHERS), NAME), Budget(ticks=4, losses=1)),
    "other stewards are gone": Plan("abcde", "abc", (("a", TO_OTHERS), NAME), Budget(ticks=3), dead="de"),
    "more stewards": Plan("abc", "", (("a", TO_ALL), NAME), Budget(ticks=2, losses=1, repeats=1)),
    "fewer stewards": Plan("abc", "abc", (("a", Stewards((C.node,))), NAME), Budget(ticks=4, losses=1)),
    "several restored": Plan("abc", "abc", TWO, Budget(ticks=7, losses=3, repeats=2, restores=3, copies=3)),
    "five, several restored": Plan("abcde", "abcde", TWO, Budget(ticks=6, losses=3, restores=2, copies=2)),
    "another steward, restored": Plan(
        "abcd", "abc", (("a", Stewards((A.node, B.node, D.node))), NAME), Budget(4, losses=2, restores=2, copies=2)
    ),
    "more stewards, restored": Plan("abc", "", (("a", TO_ALL), NAME), Budget(4, losses=2, restores=2, copies=2)),
    "fewer stewards, restored": Plan(
        "abc", "abc", (("a", Stewards((C.node,))), NAME), Budget(4, losses=2, restores=2, copies=2)
    ),
    "taken over, restored": Plan(
        "abc", "", (("a", add((E, "member"))), NAME), Budget(2, losses=2, restores=1, copies=1, takeovers=2)
    ),
    "one, restored": Plan("abc", "", TWO, Budget(ticks=2, restores=1, copies=1)),
    "taken over": Plan(
        "abc", "", (("a", add((E, "member"))), ("a", Remove(C.node, "clice"))), Budget(takeovers=1), sure=True
    ),
    "taken over twice": Plan("abc", "", (("a", add((E, "member"))), TOPIC), Budget(ticks=1, takeovers=2), sure=True),
    "taken over while it grows": Plan("abc", "", (("a", TO_ALL), NAME), Budget(ticks=1, takeovers=1)),
}


def town(plan: Plan, machine: Machine | None = None) -> tuple[Town, World]:
    log = founded(plan.letters, plan.stewards)
    todo = [(by, propose(site(by), op, log.group, log.at.state.index)) for by, op in plan.todo]
    made = Town([site(n) for n in plan.letters], log.entries, todo, machine or Machine(), plan.sure, plan.dead)
    return made, made.start(plan.budget)


@pytest.mark.parametrize("name", PLANS)
def test_the_log_never_comes_apart(name: str) -> None:
    assert explore(*town(PLANS[name]), worlds_max=2_000, heal_every=100).worlds > 300
    wander(*town(PLANS[name]), walks=20)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_the_log_never_comes_apart_in_long(name: str) -> None:
    assert explore(*town(PLANS[name]), worlds_max=100_000, heal_every=500).worlds > 300
    wander(*town(PLANS[name]), walks=2_000, seed=2)


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
        super()._hear(sender, Promise(m.group, m.term, m.promised, m.index, m.tip, 0, b""))


class Faint(Step):
    """Signs, and does not keep what it signed."""

    def _keep(self, **changes: object) -> None:
        if self.desk.leads or self.desk.asked:
            super()._keep(**changes)
        else:
            super()._keep(**{k: v for k, v in changes.items() if k not in ("signed", "signed_term")})


def _awake(old: Desk, now_ms: int) -> Desk:
    return Desk(promised=old.promised, signed=old.signed, signed_term=old.signed_term, waiting=old.waiting)


def _nothing_again(lost: object, stands: object) -> tuple[Proposed, ...]:
    return ()


def _no_removals(lost: "tuple[forks.Certified, ...]", stands: "tuple[forks.Certified, ...]") -> tuple[Proposed, ...]:
    return tuple(p for p in forks.rebase(lost, stands) if not cuts.shrinks(p))


BROKEN = {
    "forgets promises": ("two who want to lead", Machine(Forgetful)),
    "ignores what was signed": ("two who want to lead", Machine(Rash)),
    "forgets signatures": ("two who want to lead", Machine(Faint)),
    "follows nobody": ("taken over", Machine(outweighs=lambda theirs, ours: False)),
    "follows everybody": ("taken over", Machine(outweighs=lambda theirs, ours: True)),
    "proposes nothing again": ("taken over", Machine(rebase=_nothing_again)),
    "lets them back in": ("taken over", Machine(rebase=_no_removals)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_machine_is_found(name: str) -> None:
    plan, machine = BROKEN[name]
    with pytest.raises(Wrong):
        wander(*town(PLANS[plan], machine), walks=1_000)


VOTED = ("proposal 1", "b>c Propose", "proposal 0", "tick a", *("a>b",) * 2, "b>a Propose", "b>a Promise", "a>b Ask")


@pytest.mark.parametrize(("restored", "safe"), [(desk.restored, True), (_awake, False)])
def test_a_restored_steward_that_signs_at_once_is_found(restored: Callable[[Desk, int], Desk], safe: bool) -> None:
    """From where it matters: it signed, the leader certified, and then the steward forgot."""
    plan = PLANS["two proposals"]._replace(budget=Budget(ticks=3, losses=2, restores=1), sure=False)
    here, start = town(plan, Machine(restored=restored))
    voted = follow(here, start, *VOTED, "b>a Vote", "restore b", "tick c")
    if safe:
        explore(here, voted, worlds_max=8_000, heal_every=100)
        return
    with pytest.raises(Wrong):
        explore(here, voted, worlds_max=30_000, heal_every=1000)


def test_a_change_of_stewards_by_the_old_ones_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = groups.enough

    def old_only(state: groups.State, op: Op, actor: bytes, signers: "set[bytes]") -> bool:
        return whole(state, Set("topic", "") if isinstance(op, Stewards) else op, actor, signers)

    monkeypatch.setattr(groups, "enough", old_only)
    with pytest.raises(Wrong):
        wander(*town(PLANS["other stewards are gone"]), walks=20)

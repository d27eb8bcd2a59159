"""PROTOCOL.md 11.7 to 11.9: who leads, what is cut, what a restored node does, and which branch stands."""

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import control, cuts, desk, forks, groups
from federation.control import Certified, Cut, Op
from federation.desk import (
    Ask,
    Campaign,
    Desk,
    Done,
    Message,
    Nay,
    Place,
    Promise,
    Rejected,
    Tallied,
    Tally,
    To,
    Told,
    Vote,
)
from federation.errors import ProtocolError
from federation.groups import Tip
from federation.stewards import PATIENCE_MS, PENDING_MAX, READY_MS, RETRY_MS, Step
from federation.voting import RECALL_MS
from tests.explore.kit import NOW_MS, Log, Site, add, certified, entry_of, founded, propose, propose_as_node, site

A, B, C, D, E = (site(letter) for letter in "abcde")
LIFE, OTHER_LIFE = b"1" * 16, b"2" * 16


def step(me: Site, log: Log, kept: Desk | None = None, now_ms: int = NOW_MS, heads: tuple[Cut, ...] = ()) -> Step:
    return Step(kept or Desk(), Place(me.node, me.key, now_ms, log.at, lambda node: heads))


def wish(log: Log, op: Op, by: Site = A) -> control.Proposed:
    return propose(by, op, log.group, log.at.state.index)


TOPIC = control.Set("topic", "x")


def test_one_steward_decides_alone_and_at_once() -> None:
    log = founded("abc")
    one = step(A, log)
    one.propose(wish(log, TOPIC))
    (done,) = (o for o in one.outputs if isinstance(o, Done))
    tip = groups.check_certified(log.at, done.certified.entry, done.certified.certificate)
    assert tip.state.topic == "x"


def test_who_does_not_decide_tells_those_who_do() -> None:
    log = founded("abcd", "abc")
    one = step(D, log)
    one.propose(wish(log, TOPIC, D))
    assert {o.node for o in one.outputs if isinstance(o, To)} == {A.node, B.node, C.node}
    one = step(D, log)
    one.propose(wish(log, control.Remove(C.node, "clice"), D))
    assert {o.node for o in one.outputs if isinstance(o, To)} == {A.node, B.node, C.node}  # and it is everybody
    three = founded("abcde", "abc")
    one = step(D, three)
    one.propose(wish(three, control.Remove(C.node, "clice"), D))
    assert E.node in {o.node for o in one.outputs if isinstance(o, To)}


def test_what_waits_is_bounded_and_told() -> None:
    log = founded("abc", "abc")
    one = step(B, log)
    for number in range(PENDING_MAX):
        one.propose(propose(B, control.Set("topic", str(number)), log.group, log.at.state.index, nonce=number))
    one.outputs.clear()
    one.propose(propose(B, TOPIC, log.group, log.at.state.index, nonce=PENDING_MAX))
    (refused,) = one.outputs
    assert isinstance(refused, To)
    assert isinstance(refused.message, Rejected)
    assert refused.message.code == "busy"
    assert len(one.desk.waiting) == PENDING_MAX


def test_a_steward_that_does_not_lead_refuses_nothing_for_others() -> None:
    log = founded("abc", "abc")
    one = step(B, log)
    one.feed(A.node, desk.Propose(log.group, propose(A, control.Set("invite", "nobody"), log.group, 1)))
    assert not one.outputs
    assert not one.desk.waiting


def led(log: Log, by: Site, voters: tuple[Site, ...]) -> tuple[Step, dict[bytes, Desk]]:
    """Somebody who leads, and the desks of those who promised."""
    one = step(by, log)
    one.campaign()
    desks = {}
    for voter in voters:
        other = step(voter, log)
        for output in one.outputs:
            if isinstance(output, To) and output.node == voter.node:
                other.feed(by.node, output.message)
        desks[voter.node] = other.desk
        for output in other.outputs:
            assert isinstance(output, To)
            one.feed(voter.node, output.message)
    return one, desks


def said(one: Step, kind: type[Message]) -> list[Message]:
    return [o.message for o in one.outputs if isinstance(o, To) and isinstance(o.message, kind)]


def test_a_majority_certifies() -> None:
    log = founded("abc", "abc")
    leader, desks = led(log, A, (B,))
    assert leader.desk.leads
    leader.propose(wish(log, TOPIC))
    ask = said(leader, Ask)[0]
    voter = step(B, log, desks[B.node])
    voter.feed(A.node, ask)
    (vote,) = said(voter, Vote)
    assert not any(isinstance(o, Done) for o in leader.outputs)
    assert isinstance(vote, Vote)
    leader.feed(B.node, msgspec.structs.replace(vote, signature=bytes(64)))
    leader.feed(C.node, vote)  # of another
    assert not any(isinstance(o, Done) for o in leader.outputs)
    leader.feed(B.node, vote)
    (done,) = (o for o in leader.outputs if isinstance(o, Done))
    log.entries.append(done.certified)
    assert groups.check_certified(log.at, done.certified.entry, done.certified.certificate).state.topic == "x"
    again = step(B, log, voter.desk)
    again.feed(A.node, ask)  # the vote was lost
    assert said(again, Vote) == [vote]


def test_older_terms_are_over() -> None:
    log = founded("abc", "abc")
    leader, desks = led(log, A, (B,))
    newer = step(B, log, desks[B.node])
    newer.campaign()
    leader.propose(wish(log, TOPIC))
    newer.outputs.clear()
    newer.feed(A.node, said(leader, Ask)[0])
    (nay,) = said(newer, Nay)
    leader.feed(B.node, nay)
    assert not leader.desk.leads
    assert not leader.orders


def test_only_the_term_s_leader_is_heard() -> None:
    log = founded("abc", "abc")
    one = step(B, log)
    term = next(t for t in itertools.count(10) if groups.leader(log.at.state, t) == A.node)
    one.feed(C.node, Campaign(log.group, term, log.at.state.index, log.at.hash))
    one.feed(D.node, Campaign(log.group, term, log.at.state.index, log.at.hash))
    assert one.desk.promised == 0
    raw = entry_of(log.at, wish(log, TOPIC))
    one.feed(C.node, Ask(log.group, term, raw))
    assert not said(one, Vote)
    one.feed(A.node, Ask(log.group, term, raw))
    assert said(one, Vote)


def test_a_wrong_entry_is_not_signed() -> None:
    log = founded("abc", "abc")
    term = next(t for t in itertools.count(10) if groups.leader(log.at.state, t) == A.node)
    good = entry_of(log.at, wish(log, TOPIC))
    entry = control.read_entry(good)
    for wrong in (
        control.encode(msgspec.structs.replace(entry, state=bytes(32))),
        control.encode(msgspec.structs.replace(entry, at_ms=NOW_MS + 10 * 86_400_000)),
        b"nonsense",
        good + b"\0",
    ):
        one = step(B, log)
        one.feed(A.node, Ask(log.group, term, wrong))
        assert not one.outputs
        assert one.desk == Desk()


def test_whoever_waits_too_long_wants_to_lead() -> None:
    log = founded("abc", "abc")
    one = step(B, log)
    one.propose(wish(log, TOPIC, B))
    early = step(B, log, one.desk, NOW_MS + PATIENCE_MS - 1)
    early.tick()
    assert not any(m.term for m in said(early, Campaign) if isinstance(m, Campaign))
    late = step(B, log, one.desk, NOW_MS + 3 * PATIENCE_MS)
    late.tick()
    assert any(m.term for m in said(late, Campaign) if isinstance(m, Campaign))


# --- cuts -----------------------------------------------------------------------------------------------------------
def test_a_removal_asks_a_majority_what_it_holds() -> None:
    log = founded("abcd", "abc")
    leader, _ = led(log, A, (B,))
    leader.place = leader.place._replace(heads=lambda node: (Cut(LIFE, 3),))
    proposed = wish(log, control.Remove(D.node, "dlice"))
    leader.propose(proposed)
    assert not leader.desk.asked
    assert said(leader, Tally)
    leader.feed(B.node, Tallied(log.group, proposed.id, (Cut(LIFE, 7), Cut(OTHER_LIFE, 1))))
    assert control.read_entry(leader.desk.asked).cuts == (Cut(LIFE, 7), Cut(OTHER_LIFE, 1))


def test_the_node_of_a_removed_member_has_no_say_in_the_cut() -> None:
    log = founded("abcd", "abc")
    remove, leave = wish(log, control.Remove(C.node, "clice")), propose(C, control.Leave(), log.group, 5)
    told = (Told(A.node, (Cut(LIFE, 3),)), Told(C.node, (Cut(LIFE, 1 << 50),)))
    assert cuts.cut(log.at.state, remove, told) == (Cut(LIFE, 3),)
    assert cuts.cut(log.at.state, leave, told) == (Cut(LIFE, 1 << 50),)  # their own node knows best


def test_a_steward_without_members_asks_those_who_hold_something() -> None:
    log = founded("abc")
    log.do(A, control.Leave())
    proposed = wish(log, control.Remove(C.node, "clice"), B)
    one = step(A, log)
    one.feed(B.node, desk.Propose(log.group, proposed))
    assert not any(isinstance(o, Done) for o in one.outputs)
    assert said(one, Tally)
    one.feed(B.node, Tallied(log.group, proposed.id, (Cut(LIFE, 4),)))
    (done,) = (o for o in one.outputs if isinstance(o, Done))
    assert control.read_entry(done.certified.entry).cuts == (Cut(LIFE, 4),)


def test_cuts_stay_within_their_bound() -> None:
    log = founded("abc")
    many = tuple(Cut(n.to_bytes(16, "big"), n + 1) for n in range(control.CUTS_MAX + 50))
    found = cuts.cut(log.at.state, wish(log, control.Remove(C.node, "clice")), (Told(A.node, many),))
    assert len(found) == control.CUTS_MAX
    assert found == many[50:]
    assert len(entry_of(log.at, wish(log, control.Remove(C.node, "clice")), found)) < control.ENTRY_BYTES_MAX


def test_a_removal_is_in_force_before_it_is_certified() -> None:
    log = founded("abc", "abc")
    waiting = [
        wish(log, control.Remove(C.node, "clice")),
        propose(B, control.Leave(), log.group, log.at.state.index),
        wish(log, add((D, "member"))),
    ]
    assert cuts.provisional(log.at.state, waiting, NOW_MS) == {C.user(), B.user()}
    stale = propose(A, control.Remove(C.node, "clice"), log.group, 1)
    assert cuts.provisional(log.at.state, [stale], NOW_MS) == set()


# --- more and fewer stewards ----------------------------------------------------------------------------------------
def test_new_stewards_that_are_not_there_hold_nothing_up() -> None:
    log = founded("abc")
    one = step(A, log)
    one.propose(wish(log, control.Stewards((A.node, B.node, C.node))))
    one.propose(wish(log, TOPIC))
    assert said(one, Tally)
    assert not any(isinstance(o, Done) for o in one.outputs)
    late = step(A, log, one.desk, NOW_MS + READY_MS + RETRY_MS)
    late.tick()
    (refused,) = (o.message for o in late.outputs if isinstance(o, To) and isinstance(o.message, Rejected))
    assert refused.code == "unreachable"
    assert any(isinstance(o, Done) for o in late.outputs)


# --- a copy ---------------------------------------------------------------------------------------------------------
def test_a_restored_steward_asks_all_before_it_signs() -> None:
    log = founded("abc", "abc")
    one = step(A, log, desk.restored(Desk(promised=3), NOW_MS))
    one.tick()
    assert len(said(one, Campaign)) == 2
    raw = entry_of(log.at, wish(log, TOPIC))
    term = next(t for t in itertools.count(10) if groups.leader(log.at.state, t) == B.node)
    one.feed(B.node, Ask(log.group, term, raw))
    assert not said(one, Vote)
    one.feed(B.node, Promise(log.group, 0, 7, log.at.state.index, log.at.hash, 7, raw))
    assert one.desk.amnesia
    one.feed(C.node, Promise(log.group, 0, 5, log.at.state.index, log.at.hash, 0, b""))
    assert not one.desk.amnesia
    assert (one.desk.promised, one.desk.signed) == (7, raw)


def test_a_restored_lone_steward_asks_all_and_waits_so_long() -> None:
    log = founded("abc")
    one = step(A, log, desk.restored(Desk(), NOW_MS))
    one.tick()
    one.propose(wish(log, TOPIC))
    one.feed(B.node, Promise(log.group, 0, 0, log.at.state.index, log.at.hash, 0, b""))
    assert not any(isinstance(o, Done) for o in one.outputs)
    late = step(A, log, one.desk, NOW_MS + RECALL_MS)
    late.tick()
    assert any(isinstance(o, Done) for o in late.outputs)
    one.feed(C.node, Promise(log.group, 0, 0, log.at.state.index, log.at.hash, 0, b""))
    assert any(isinstance(o, Done) for o in one.outputs)
    behind = step(A, log, desk.restored(Desk(), NOW_MS))
    for node in (B.node, C.node):
        behind.feed(node, Promise(log.group, 0, 0, log.at.state.index + 1, log.at.hash, 0, b""))
    assert behind.desk.amnesia
    with pytest.raises(ProtocolError):
        behind.takeover(wish(log, control.Takeover()))


# --- branches -------------------------------------------------------------------------------------------------------
def branch(base: Log, *ops: "tuple[Site, Op]") -> tuple[Certified, ...]:
    """What these people did after a common beginning, each ordered by the steward of then."""
    tip, made = base.at, []
    by_node = {s.node: s for s in (A, B, C, D, E)}
    for by, op in ops:
        takes = isinstance(op, control.Takeover)
        raw = entry_of(tip, propose(by, op, base.group, tip.state.index))
        signers = {by} if takes else {by_node[tip.state.stewards[0]]}
        if isinstance(op, control.Stewards):
            signers |= {by_node[n] for n in op.nodes}
        if len(tip.state.stewards) > 2:
            signers |= {by_node[n] for n in tip.state.stewards}
        made.append(certified(raw, tip.term + takes, *signers))
        tip = groups.check_certified(tip, made[-1].entry, made[-1].certificate)
    return tuple(made)


TAKE = control.Takeover()
MANY = control.Stewards((A.node, B.node, C.node))


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ([(B, TAKE)], [(A, TOPIC), (A, control.Set("name", "z"))]),
        ([(A, MANY)], [(B, TAKE)]),
        ([(A, MANY)], [(B, TAKE), (B, MANY), (B, TOPIC)]),
        ([(B, TAKE), (C, TAKE)], [(C, TAKE), (A, TOPIC)]),
        ([(A, TOPIC), (A, control.Set("name", "z"))], [(A, control.Set("name", "y"))]),
    ],
)
def test_which_branch_stands(better: list[tuple[Site, Op]], worse: list[tuple[Site, Op]]) -> None:
    log = founded("abc")
    weights = [forks.weigh(log.at, branch(log, *ops))[1] for ops in (better, worse)]
    assert weights[0] > weights[1]


def test_an_owner_takes_over_above_an_heir() -> None:
    log = founded("ab")
    log.do(A, add((C, "member")))
    log.do(A, control.Succession((C.node,)))

    def taken(proposed: control.Proposed, by: Site) -> forks.Weight:
        return forks.weigh(log.at, [certified(entry_of(log.at, proposed), 1, by)])[1]

    by_owner = taken(propose(B, TAKE, log.group, log.at.state.index), B)
    by_heir = taken(propose_as_node(C, TAKE, log.group, log.at.state.index), C)
    assert by_owner > by_heir


ACTS = st.lists(
    st.sampled_from([(A, TOPIC), (B, TAKE), (C, TAKE), (A, control.Set("name", "n")), (A, MANY)]), max_size=4
)


@settings(deadline=None, max_examples=40)
@given(st.lists(ACTS, min_size=3, max_size=3))
def test_branches_are_in_one_order(three: "list[list[tuple[Site, Op]]]") -> None:
    """Whoever compares any two from where they part comes to the same one."""
    log = founded("abc")
    made: list[tuple[Certified, ...]] = []
    for ops in three:
        done: list[tuple[Site, Op]] = []
        for one in ops:
            try:
                branch(log, *done, one)
            except ProtocolError:
                continue
            done.append(one)
        made.append(branch(log, *done))

    def beats(x: tuple[Certified, ...], y: tuple[Certified, ...]) -> bool:
        same = next((n for n, (a, b) in enumerate(zip(x, y, strict=False)) if a.entry != b.entry), min(len(x), len(y)))
        base = forks.replay(log.at, x[:same])
        return forks.weigh(base, x[same:])[1] > forks.weigh(base, y[same:])[1]

    for x, y in itertools.combinations({tuple(c.entry for c in m): m for m in made}.values(), 2):
        assert beats(x, y) != beats(y, x)
    for x, y, z in itertools.permutations(made):
        assert not (beats(x, y) and beats(y, z)) or beats(x, z)


def test_what_a_lost_branch_had_is_proposed_again() -> None:
    log = founded("abc")
    remove, topic = control.Remove(C.node, "clice"), TOPIC
    lost = branch(log, (A, topic), (A, remove))
    stands = branch(log, (B, TAKE))
    again = forks.rebase(lost, stands)
    assert [control.read_proposal(p.raw).op for p in again] == [remove, topic]
    tip = forks.weigh(log.at, stands)[0]
    one = Step(Desk(), Place(C.node, C.key, NOW_MS, tip, lambda node: ()))
    one.rebased(again)
    assert cuts.provisional(tip.state, [w.proposed for w in one.desk.waiting], NOW_MS) == {C.user()}
    other = Step(Desk(), Place(B.node, B.key, NOW_MS, tip, lambda node: ()))
    other.rebased(again)
    (done,) = (o for o in other.outputs if isinstance(o, Done))
    assert control.read_entry(done.certified.entry).proposed == again[0]
    assert forks.rebase(lost, (*stands, *lost)) == ()


def test_how_entries_meet_a_log() -> None:
    log = founded("abc")
    before = log.at
    mine, theirs = branch(log, (A, TOPIC)), branch(log, (B, TAKE), (B, TOPIC))
    tip = forks.replay(before, mine)
    hashes = {i: control.entry_hash(c.entry) for i, c in enumerate((*log.entries, *mine), 1)}

    def meets(certified: Certified, at: Tip | None = tip) -> str:
        return forks.meet(at, certified, hashes.get)

    assert meets(mine[0], before) == "next"
    assert [meets(mine[0]), meets(theirs[0]), meets(theirs[1])] == ["known", "branch", "gap"]
    assert meets(log.entries[0], None) == "next"
    assert meets(log.entries[1], None) == "gap"
    assert [forks.back(9, tries) for tries in range(5)] == [8, 7, 5, 1, 0]


def test_messages_have_one_encoding() -> None:
    good = control.encode(Campaign(bytes(32), 1, 1, bytes(32)))
    assert desk.read_message(good) == Campaign(bytes(32), 1, 1, bytes(32))
    for wrong in (good + b"\0", good[:-1], b"", b"\xff", good.replace(b"campaign", b"campaigX")):
        with pytest.raises(ProtocolError, match=r"11\.11"):
            desk.read_message(wrong)

"""PROTOCOL.md 11.12: a newcomer believes the stewards, back to the first entry, and nobody else."""

import msgspec
import pytest

from federation import control, groups
from federation.control import Certified
from federation.errors import ProtocolError
from federation.groups import encode_state
from federation.identity import encode_chain
from federation.lineage import (
    Lineage,
    check_lineage,
    encode_lineage,
    join_state,
    make_lineage,
    read_lineage,
    split_state,
)
from tests.explore.kit import Log, add, certified, entry_of, founded, propose, site

A, B, C, D = (site(letter) for letter in "abcd")


def history() -> tuple[Log, dict[int, bytes]]:
    """One steward, another that took over, three, and one again."""
    log = founded("abcd")
    log.do(A, control.Set("topic", "x"))
    states = {log.at.state.index: encode_state(log.at.state)}
    log.put(propose(B, control.Takeover(), log.group, log.at.state.index), B, term=1)
    log.do(B, control.Stewards((A.node, B.node, C.node)), A, B, C)
    log.put(propose(B, control.Set("topic", "y"), log.group, log.at.state.index), A, C, term=4)
    log.do(B, control.Stewards((D.node,)), A, C, D)
    log.do(B, control.Set("topic", "z"), D)
    return log, states


def told(log: Log, states: dict[int, bytes]) -> Lineage:
    return make_lineage(log.entries, states, [encode_chain(s.chain) for s in (A, B, C, D)])


def test_a_lineage_proves_the_tip() -> None:
    log, states = history()
    lineage = told(log, states)
    assert check_lineage(log.group, read_lineage(encode_lineage(lineage)), encode_state(log.at.state)) == log.at
    for count in range(1, len(log.entries) + 1):
        part = make_lineage(log.entries[:count], states, lineage.chains)
        state = groups.check_certified(None, log.entries[0].entry, log.entries[0].certificate)
        for one in log.entries[1:count]:
            state = groups.check_certified(state, one.entry, one.certificate)
        assert check_lineage(log.group, part, encode_state(state.state)) == state


def test_a_lineage_grows_with_changes_of_stewards_only() -> None:
    log, states = history()
    before = len(encode_lineage(told(log, states)))
    for number in range(50):
        log.do(B, control.Set("topic", f"number {number}"), D)
    assert len(encode_lineage(told(log, states))) < before + 200


def test_forged_lineages() -> None:
    log, states = history()
    lineage, state = told(log, states), encode_state(log.at.state)
    usurped = entry_of(log.at, propose(B, control.Set("topic", "evil"), log.group, log.at.state.index))
    by_c = certified(usurped, 9, C)
    taken = founded("abcd")
    taken.put(propose(B, control.Takeover(), taken.group, taken.at.state.index), B, term=1)
    forged: list[tuple[Lineage, bytes]] = [
        (msgspec.structs.replace(lineage, turns=lineage.turns[:-1]), state),
        (msgspec.structs.replace(lineage, turns=lineage.turns[::-1]), state),
        (msgspec.structs.replace(lineage, turns=(*lineage.turns, lineage.turns[-1])), state),
        (msgspec.structs.replace(lineage, chains=lineage.chains[:1]), state),
        (msgspec.structs.replace(lineage, newest=by_c), state),
        (msgspec.structs.replace(lineage, newest=lineage.turns[-1].certified), state),
        (lineage, encode_state(msgspec.structs.replace(log.at.state, topic="evil"))),
        (msgspec.structs.replace(lineage, turns=(msgspec.structs.replace(lineage.turns[0], base=None),)), state),
    ]
    for wrong, with_state in forged:
        with pytest.raises(ProtocolError):
            check_lineage(log.group, wrong, with_state)
    with pytest.raises(ProtocolError):
        check_lineage(bytes(32), lineage, state)


def test_nobody_takes_over_in_a_lineage_who_may_not() -> None:
    log = founded("ab")
    log.do(A, add((C, "member")))
    state = encode_state(log.at.state)
    proposed = propose(C, control.Takeover(), log.group, log.at.state.index)
    allowed = msgspec.structs.replace(log.at.state, succession=(C.node,))
    raw = control.encode(
        control.Entry(
            1, log.group, log.at.state.index + 1, log.at.hash, proposed, (), 1, groups.state_hash(allowed)
        )
    )  # fmt: skip
    taken: Certified = certified(raw, 1, C)
    chains = [encode_chain(s.chain) for s in (A, B, C)]
    for shown in (state, encode_state(allowed)):
        lineage = make_lineage([*log.entries, taken], {log.at.state.index: shown}, chains)
        with pytest.raises(ProtocolError):
            check_lineage(log.group, lineage, encode_state(allowed))


def test_a_state_travels_in_parts() -> None:
    log = founded("ab")
    state = msgspec.structs.replace(log.at.state, used=tuple(bytes([n % 256]) * 32 for n in range(4000)))
    raw = encode_state(state)
    parts = split_state(raw)
    assert len(parts) == 3
    assert join_state(parts, groups.state_hash(state)) == state
    for wrong in (parts[1:], parts[::-1], (raw,), ()):
        with pytest.raises(ProtocolError):
            join_state(wrong, groups.state_hash(state))

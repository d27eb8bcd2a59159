"""Where the events of somebody end who is removed, and who has to say so (PROTOCOL.md 11.8). Pure."""

from collections.abc import Sequence

from federation import control, groups
from federation.control import Cut, Proposed
from federation.desk import Told
from federation.errors import ProtocolError
from federation.ids import User
from federation.roster import State


def shrinks(proposed: Proposed) -> bool:
    """Whether it takes somebody's right to write away, if it is certified."""
    match control.read_proposal(proposed.raw).op:
        case control.Remove() | control.Leave() | control.SetRole(role="readonly"):
            return True
    return False


def is_stewards(proposed: Proposed) -> bool:
    return isinstance(control.read_proposal(proposed.raw).op, control.Stewards)


def loser(proposed: Proposed) -> User | None:
    """Who could not write any more."""
    proposal = control.read_proposal(proposed.raw)
    match proposal.op:
        case control.Remove(node=node, local=local) | control.SetRole(node=node, local=local, role="readonly"):
            return User(node, local)
        case control.Leave():
            return proposal.actor
    return None


def whose(proposed: Proposed) -> bytes | None:
    """The node whose logs are cut."""
    user = loser(proposed)
    return user.node if user is not None else None


def provisional(state: State, waiting: Sequence[Proposed], now_ms: int) -> frozenset[User]:
    """Who may not write here any more although no steward certified it yet (PROTOCOL.md 11.9)."""
    gone = set()
    for proposed in waiting:
        user = loser(proposed)
        if user is None or user in gone:
            continue
        try:
            groups.after(state, proposed, (), now_ms)
        except ProtocolError:
            continue
        gone.add(user)
    return frozenset(gone)


def asked(state: State, proposed: Proposed) -> tuple[bytes, ...]:
    """Who is asked what they hold. Where no steward holds anything, since nobody of its node is a member, all are."""
    op = control.read_proposal(proposed.raw).op
    voters = groups.voters(state, op)
    if whose(proposed) is None or any(node in state.nodes for node in voters):
        return voters
    return tuple(dict.fromkeys((*voters, *sorted(state.nodes))))


def ready(state: State, proposed: Proposed, told: Sequence[Told]) -> bool:
    """Whether enough answered."""
    proposal = control.read_proposal(proposed.raw)
    node = whose(proposed)
    if not is_stewards(proposed) and (node is None or _is_readonly(state, proposed)):
        return True
    nodes = {t.node for t in told}
    if not groups.enough(state, proposal.op, proposal.node, nodes):
        return False
    return node is None or bool(nodes & state.nodes) or not state.nodes


def cut(state: State, proposed: Proposed, told: Sequence[Told]) -> tuple[Cut, ...]:
    """The last number of each log that one of those who answered holds.

    The node of somebody who is removed is not asked how much of them stands, unless it alone can say.
    """
    node = whose(proposed)
    if node is None or _is_readonly(state, proposed):
        return ()
    proposal = control.read_proposal(proposed.raw)
    others = [t for t in told if t.node != node and t.node in state.nodes]
    if proposal.node == node or not others:
        others = list(told)
    best: dict[bytes, int] = {}
    for one in (one for t in others for one in t.cuts):
        best[one.incarnation] = max(one.seq, best.get(one.incarnation, 0))
    newest = sorted(best, key=lambda log: (-best[log], log))[: control.CUTS_MAX]
    return tuple(Cut(log, best[log]) for log in sorted(newest))


def _is_readonly(state: State, proposed: Proposed) -> bool:
    """Whether there is nothing to cut, since they could not write before."""
    user = loser(proposed)
    member = state.member(user) if user is not None else None
    return member is None or member.role == "readonly"

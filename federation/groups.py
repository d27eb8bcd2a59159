"""What a group's control log means: which entries are certified, who certifies them, which events stand
(PROTOCOL.md 11).

Pure. The state itself is in `federation.roster`, what an entry does to it in `federation.changes`.
"""

from collections.abc import Iterable
from typing import Literal

from federation import control
from federation.changes import after, created, rank, refuse
from federation.control import Certificate, Entry
from federation.ids import User
from federation.roster import State, Tip, decode_state, encode_state, state_hash

__all__ = ["State", "Tip", "after", "created", "decode_state", "encode_state", "rank", "state_hash"]


def leader(state: State, term: int) -> bytes:
    """Who may propose in a term (PROTOCOL.md 11.7)."""
    return state.stewards[term % len(state.stewards)] if len(state.stewards) > 2 else state.stewards[0]


def enough(state: State, op: control.Op, actor: bytes, signers: Iterable[bytes]) -> bool:
    """Whether these signatures certify an entry on top of `state` (PROTOCOL.md 11.5)."""
    signed = set(signers)
    if isinstance(op, control.Takeover):
        return actor in signed
    old = state.stewards
    if not (old[0] in signed if len(old) <= 2 else len(signed & set(old)) > len(old) // 2):
        return False
    if not isinstance(op, control.Stewards):
        return True
    new = op.nodes
    if len(new) <= 2:
        return new[0] in signed
    if len(old) <= 2:
        return signed >= set(new)  # all of them, so that none of them takes over what it knows nothing of
    return len(signed & set(new)) > len(new) // 2


def voters(state: State, op: control.Op) -> tuple[bytes, ...]:
    """Who is asked to sign an entry on top of `state`."""
    old = state.stewards if len(state.stewards) > 2 else state.stewards[:1]
    new = op.nodes if isinstance(op, control.Stewards) else ()
    return tuple(dict.fromkeys((*old, *(new if len(new) > 2 else new[:1]))))


def check_entry(tip: Tip | None, raw: bytes) -> tuple[Entry, State]:
    """An entry that follows `tip` (none: the first one), and the state after it. `ProtocolError`."""
    entry = control.read_entry(raw)
    if tip is None:
        if entry.index != 1:
            raise refuse("gap", "not the first entry", "11.3")
        state = created(entry.proposed)
        if entry.group != state.group or entry.cuts:
            raise refuse("bad_control", "a first entry of another group", "11.1")
    else:
        if entry.group != tip.state.group:
            raise refuse("bad_control", "an entry of another group", "11.3")
        if entry.index != tip.state.index + 1 or entry.previous != tip.hash:
            raise refuse("gap", f"entry {entry.index} does not follow entry {tip.state.index}", "11.3")
        state = after(tip.state, entry.proposed, entry.cuts, entry.at_ms)
    if state_hash(state) != entry.state:
        raise refuse("bad_control", "an entry with another state than its proposal makes", "11.3")
    return entry, state


def check_certified(tip: Tip | None, raw: bytes, certificate: Certificate) -> Tip:
    """The tip after a certified entry. `ProtocolError` where the certificate does not suffice (PROTOCOL.md 11.5)."""
    entry, state = check_entry(tip, raw)
    check_certificate(tip, entry, state, control.entry_hash(raw), certificate)
    return Tip(state, control.entry_hash(raw), certificate.term)


def check_certificate(tip: Tip | None, entry: Entry, state: State, hash_: bytes, certificate: Certificate) -> None:
    """`tip` is the entry before, or with its stewards at least (11.12)."""
    proposal = control.read_proposal(entry.proposed.raw)
    if tip is not None:
        least = tip.term + 1 if isinstance(proposal.op, control.Takeover) else tip.term
        if certificate.term < least:
            raise refuse("stale_term", f"a certificate of term {certificate.term} after term {tip.term}", "11.5")
    before = tip.state if tip is not None else state
    said = control.certify_bytes(entry.group, certificate.term, entry.index, hash_)
    signers = set()
    for vouched in certificate.signatures:
        sites = [site for of in (before, state) if (site := of.site(vouched.node)) is not None]
        if not sites or vouched.node in signers:
            raise refuse("bad_certificate", "a certificate is signed by a node that is not of the group", "11.5")
        if not any(control.node_signed(site.chain, "certify", said, vouched.signature) for site in sites):
            raise refuse("bad_certificate", "a signature of a certificate does not hold", "11.5")
        signers.add(vouched.node)
    if not enough(before, proposal.op, proposal.node, signers):
        raise refuse("bad_certificate", "too few stewards signed", "11.5")


# --- which events stand -------------------------------------------------------------------------------------------
Standing = Literal["stands", "void", "not_member", "readonly"]


def judge(state: State, index: int, user: User, incarnation: bytes, seq: int) -> Standing:
    """Whether an event stands that its sender made under entry `index` (PROTOCOL.md 11.10).

    The answer may turn from `stands` to `void` with a later entry, never back.
    """
    now = state.member(user)
    if now is not None and now.since <= index:
        return "readonly" if now.role == "readonly" else "stands"
    for past in state.past:
        if (past.node, past.local) == user and past.since <= index < past.until:
            if past.role == "readonly":
                return "readonly"
            later = (p for p in state.past if (p.node, p.local) == user and p.until >= past.until)
            for end in later:
                if end.cuts is None:
                    continue  # a change of role; what came after it ends with its own cut
                held = next((cut.seq for cut in end.cuts if cut.incarnation == incarnation), 0)
                return "stands" if seq <= held else "void"
            return "stands"
    return "not_member"


def audience(state: State, index: int) -> frozenset[bytes]:
    """The nodes that had members under entry `index`, and so may have what was said under it."""
    now = {m.node for m in state.members if m.joined <= index}
    return frozenset(now | {p.node for p in state.past if p.since <= index < p.until})

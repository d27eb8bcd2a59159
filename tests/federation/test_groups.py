"""PROTOCOL.md 11: what may change in a group, who may change it, and which events stand."""

import itertools
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import control, groups
from federation.control import Cut, Op, Role
from federation.errors import ProtocolError
from federation.identity import NodeKey, encode_chain, rotate
from federation.ids import User, digest
from federation.roster import LINKS_MAX, USED_MAX
from tests.explore.kit import (
    NOW_MS,
    Log,
    add,
    certified,
    device,
    entry_of,
    founded,
    propose,
    propose_as_node,
    site,
)

A, B, C, D, E = (site(letter) for letter in "abcde")
ROLES: tuple[Role, ...] = get_args(Role)[::-1]
HASH = digest("link", b"s" * 16)
LIFE, OTHER_LIFE = b"1" * 16, b"2" * 16


def refusal(log: Log, by: object, op: Op, local: str = "", under: int = -1, at_ms: int = NOW_MS) -> str:
    """The code with which a proposal is refused; empty where it is not."""
    at = log.at.state.index if under < 0 else under
    proposed = propose(by, op, log.group, at, local)  # type: ignore[arg-type]
    try:
        groups.after(log.at.state, proposed, (), at_ms)
    except ProtocolError as error:
        return error.code
    return ""


def cast() -> Log:
    """Somebody of each role, an owner besides the creator, and a stranger's node."""
    log = Log(A)
    for letter, role in zip("bcdef", ROLES, strict=True):
        log.do(A, add((site(letter), role)))
    return log


WHO = {role: site(letter) for letter, role in zip("bcdef", ROLES, strict=True)} | {"stranger": site("g")}
# Who may, of: readonly, member, moderator, admin, owner, stranger.
TABLE: dict[str, tuple[Op, str]] = {
    "add": (add((site("h"), "member")), "...yy."),
    "add an owner": (add((site("h"), "owner")), "....y."),
    "remove a reader": (control.Remove(WHO["readonly"].node, WHO["readonly"].user().local), "..yyy."),
    "remove a moderator": (control.Remove(WHO["moderator"].node, WHO["moderator"].user().local), "...yy."),
    "remove an admin": (control.Remove(WHO["admin"].node, WHO["admin"].user().local), "...yy."),
    "remove an owner": (control.Remove(A.node, "alice"), "....y."),
    "role": (control.SetRole(WHO["member"].node, WHO["member"].user().local, "readonly"), "...yy."),
    "role above": (control.SetRole(WHO["member"].node, WHO["member"].user().local, "owner"), "....y."),
    "role of an owner": (control.SetRole(A.node, "alice", "member"), "....y."),
    "leave": (control.Leave(), "yyyyy."),
    "name": (control.Set("name", "n"), "..yyy."),
    "topic": (control.Set("topic", "t"), "..yyy."),
    "retention": (control.Set("retention", "60"), "...yy."),
    "history": (control.Set("history", "0"), "...yy."),
    "invite": (control.Set("invite", "members"), "...yy."),
    "stewards": (control.Stewards((A.node,)), "....y."),
    "succession": (control.Succession((A.node,)), "....y."),
    "link": (control.MakeLink(HASH, 1, 0, "member"), "...yy."),
    "takeover": (control.Takeover(), "....y."),
    "renew": (control.Renew(A.card), "......"),
    "create": (control.Create("x", A.card), "......"),
}


@pytest.mark.parametrize("name", TABLE)
def test_who_may_do_what(name: str) -> None:
    op, expected = TABLE[name]
    log, may = cast(), ""
    for who in WHO.values():
        if isinstance(op, control.Create):
            with pytest.raises(ProtocolError, match=r"11\.2"):
                groups.after(log.at.state, propose(who, op, log.group, 1), (), NOW_MS)
            may += "."
            continue
        may += "." if refusal(log, who, op) else "y"
    assert may == expected


def test_every_op_has_a_row() -> None:
    there = {type(op) for op, _ in TABLE.values()}
    assert set(get_args(Op)) - there == {control.Join, control.DropLink}  # below


def test_members_may_add_where_the_group_says_so() -> None:
    log = cast()
    log.do(A, control.Set("invite", "members"))
    assert refusal(log, WHO["member"], add((site("h"), "member"))) == ""
    assert refusal(log, WHO["member"], add((site("h"), "admin"))) == "forbidden"
    assert refusal(log, WHO["readonly"], add((site("h"), "readonly"))) == "forbidden"


@pytest.mark.parametrize(
    ("op", "code"),
    [
        (control.Set("name", " "), "bad_control"),
        (control.Set("name", "a\n"), "bad_control"),
        (control.Set("name", "a" * 101), "bad_control"),
        (control.Set("topic", "\x1b[2J"), "bad_control"),
        (control.Set("retention", "-1"), "bad_control"),
        (control.Set("retention", "٣"), "bad_control"),
        (control.Set("history", "9999999999"), "bad_control"),
        (control.Set("invite", "all"), "bad_control"),
        (control.Stewards((A.node, B.node, C.node, D.node)), "bad_control"),
        (control.Stewards((A.node, A.node)), "bad_control"),
        (control.Stewards((site("g").node,)), "bad_control"),
        (control.Succession((site("g").node,)), "bad_control"),
        (control.Remove(A.node, "nobody"), "not_member"),
        (control.SetRole(A.node, "nobody", "member"), "not_member"),
        (control.Add((control.Person(site("h").node, "x", "member"),), ()), "bad_control"),
        (control.Add((control.Person(A.node, "Alice", "member"),), ()), "bad_control"),
        (add((B, "member")), "is_member"),
        (control.DropLink(HASH), "bad_link"),
    ],
)
def test_nonsense_is_refused(op: Op, code: str) -> None:
    assert refusal(cast(), A, op) == code


# --- a proposal counts once, and only if its author knew what it changes --------------------------------------------
def test_nothing_is_changed_twice_with_the_same_words() -> None:
    log = founded("ab")
    state = log.at.state
    set_topic = propose(A, control.Set("topic", "x"), log.group, state.index)
    log.put(set_topic, A)
    for op, then in ((add((C, "member")), control.Remove(C.node, "clice")), (control.Set("name", "z"), None)):
        first = propose(A, op, log.group, log.at.state.index)
        log.put(first, A)
        if then is not None:
            log.do(A, then)
        with pytest.raises(ProtocolError, match=r"11\.2"):
            groups.after(log.at.state, first, (), NOW_MS)
    with pytest.raises(ProtocolError, match=r"11\.2"):
        groups.after(log.at.state, set_topic, (), NOW_MS)


def test_a_proposal_from_a_branch_that_lost_counts_once_too() -> None:
    log = founded("ab")
    ahead = propose(A, add((C, "member")), log.group, log.at.state.index + 50)
    log.put(ahead, A)
    log.do(A, control.Remove(C.node, "clice"))
    with pytest.raises(ProtocolError, match=r"11\.2"):
        groups.after(log.at.state, ahead, (), NOW_MS)
    full = msgspec.structs.replace(log.at.state, used=(bytes(32),) * USED_MAX)
    with pytest.raises(ProtocolError, match=r"11\.2"):
        groups.after(full, propose(A, control.Set("topic", "x"), log.group, full.index + 1), (), NOW_MS)


def test_an_old_role_does_not_come_back() -> None:
    log = founded("ab")
    make = propose(A, control.SetRole(B.node, "blice", "admin"), log.group, log.at.state.index)
    log.put(make, A)
    log.do(A, control.SetRole(B.node, "blice", "member"))
    with pytest.raises(ProtocolError, match=r"11\.2"):
        groups.after(log.at.state, make, (), NOW_MS)


# --- signatures -----------------------------------------------------------------------------------------------------
def test_forged_proposals() -> None:
    log = founded("ab")
    op, group, at = control.Set("topic", "x"), log.group, log.at.state.index
    good = propose(A, op, group, at)
    by_other_node = msgspec.structs.replace(good, voucher=propose(B, op, group, at).voucher)
    by_other_device = msgspec.structs.replace(good, signature=device(B.user()).sign("proposal", good.raw))
    changed = msgspec.structs.replace(good, raw=propose(A, control.Set("topic", "y"), group, at).raw)
    as_event = msgspec.structs.replace(good, signature=device(A.user()).sign("event", good.raw))
    empty = msgspec.structs.replace(good, voucher=b"")
    for forged in (by_other_node, by_other_device, changed, as_event, empty):
        with pytest.raises(ProtocolError, match=r"11\.2"):
            groups.after(log.at.state, forged, (), NOW_MS)
    groups.after(log.at.state, good, (), NOW_MS)


def test_a_proposal_is_for_one_group() -> None:
    log, other = founded("ab"), Log(A, "other")
    with pytest.raises(ProtocolError):
        groups.after(other.at.state, propose(A, control.Set("topic", "x"), log.group, 1), (), NOW_MS)


def test_a_rotated_key_vouches_no_more() -> None:
    log = founded("ab")
    key = NodeKey(bytes(31) + b"9")
    new = B._replace(key=key, chain=rotate(B.chain, key.public, B.key, "signing"))
    renew = control.Renew(control.Card("b.test", encode_chain(new.chain)))
    with pytest.raises(ProtocolError):  # signed with the key that is rotated away
        groups.after(log.at.state, propose_as_node(B, renew, log.group, 1), (), NOW_MS)
    log.put(propose_as_node(new, renew, log.group, log.at.state.index), A)
    assert refusal(log, B, control.Leave()) == "bad_signature"
    assert refusal(log, new, control.Leave()) == ""
    back = propose_as_node(B, control.Renew(B.card), log.group, log.at.state.index)
    with pytest.raises(ProtocolError):
        groups.after(log.at.state, back, (), NOW_MS)


def test_a_lone_steward_may_renew_its_own_key() -> None:
    log = founded("ab")
    key = NodeKey(bytes(31) + b"8")
    new = A._replace(key=key, chain=rotate(A.chain, key.public, A.key, "signing"))
    renew = control.Renew(control.Card("a.test", encode_chain(new.chain)))
    log.put(propose_as_node(new, renew, log.group, log.at.state.index), new)
    log.put(propose(new, control.Set("topic", "x"), log.group, log.at.state.index), new)


def test_a_node_takes_out_its_own_users_only() -> None:
    log = founded("abc")
    proposed = propose_as_node(B, control.Remove(C.node, "clice"), log.group, log.at.state.index)
    with pytest.raises(ProtocolError):
        groups.after(log.at.state, proposed, (), NOW_MS)
    log.put(propose_as_node(B, control.Remove(B.node, "blice"), log.group, log.at.state.index), A)
    assert log.at.state.site(B.node) is None


# --- entries and certificates ---------------------------------------------------------------------------------------
def test_wrong_entries() -> None:
    log = founded("abc", "abc")
    raw = entry_of(log.at, propose(A, control.Set("topic", "x"), log.group, log.at.state.index))
    entry = control.read_entry(raw)
    for wrong in (
        msgspec.structs.replace(entry, state=bytes(32)),
        msgspec.structs.replace(entry, previous=bytes(32)),
        msgspec.structs.replace(entry, index=entry.index + 1),
        msgspec.structs.replace(entry, group=bytes(32)),
        msgspec.structs.replace(entry, cuts=(Cut(LIFE, 1),)),
    ):
        with pytest.raises(ProtocolError):
            groups.check_entry(log.at, control.encode(wrong))
    groups.check_entry(log.at, raw)


def test_certificates() -> None:
    log = founded("abc", "abc")
    raw, term = entry_of(log.at, propose(A, control.Set("topic", "x"), log.group, log.at.state.index)), log.at.term

    def takes(one: control.Certified) -> bool:
        rule = ""
        try:
            groups.check_certified(log.at, one.entry, one.certificate)
        except ProtocolError as error:
            rule = error.rule
        assert rule in ("", "11.5")
        return not rule

    good = certified(raw, term + 1, A, C)
    assert takes(good)
    assert takes(certified(raw, term + 1, A, B, C))
    assert not takes(certified(raw, term + 1, A))
    assert not takes(certified(raw, term + 1, A, A))
    assert not takes(certified(raw, term + 1, A, D))
    a, c = good.certificate.signatures
    swapped = (msgspec.structs.replace(a, signature=c.signature), c)
    assert not takes(control.Certified(raw, control.Certificate(term + 1, swapped)))
    assert not takes(control.Certified(raw, control.Certificate(term + 2, good.certificate.signatures)))
    log.put(propose(A, control.Set("topic", "y"), log.group, log.at.state.index), A, B, term=5)
    raw = entry_of(log.at, propose(A, control.Set("topic", "z"), log.group, log.at.state.index))
    assert not takes(certified(raw, 4, A, B))


def test_a_change_of_stewards_needs_both() -> None:
    log = founded("abcde", "abc")
    raw = entry_of(log.at, propose(A, control.Stewards((C.node, D.node, E.node)), log.group, log.at.state.index))
    for signers in ((A, B), (D, E), (A, B, D), (C, D, E)):
        one = certified(raw, 1, *signers)
        with pytest.raises(ProtocolError, match=r"11\.5"):
            groups.check_certified(log.at, one.entry, one.certificate)
    one = certified(raw, 1, A, C, D)
    groups.check_certified(log.at, one.entry, one.certificate)
    fewer = entry_of(log.at, propose(A, control.Stewards((D.node, E.node)), log.group, log.at.state.index))
    one = certified(fewer, 1, A, B)
    with pytest.raises(ProtocolError, match=r"11\.5"):
        groups.check_certified(log.at, one.entry, one.certificate)
    one = certified(fewer, 1, A, B, D)
    groups.check_certified(log.at, one.entry, one.certificate)


def test_takeovers() -> None:
    log = founded("abc")
    log.do(A, add((D, "member")))
    assert log.at.state.heirs == (B.node,)  # who came first, after the steward
    log.do(A, control.Succession((D.node, C.node)))
    assert log.at.state.heirs == (D.node, C.node)

    def rank(by: object, as_node: bool) -> int:
        make = propose_as_node if as_node else propose
        proposed = make(by, control.Takeover(), log.group, log.at.state.index)  # type: ignore[operator]
        return groups.rank(log.at.state, control.read_proposal(proposed.raw))

    assert rank(B, False) > rank(D, True) > rank(C, True) > rank(B, True) == 0
    many = founded("abc", "abc")
    assert refusal(many, B, control.Takeover()) == "forbidden"
    assert refusal(log, A, control.Takeover()) == "forbidden"
    log.put(propose(B, control.Takeover(), log.group, log.at.state.index), B, term=log.at.term + 1)
    assert log.at.state.stewards == (B.node,)


def test_a_takeover_is_of_a_later_term() -> None:
    log = founded("abc")
    raw = entry_of(log.at, propose(B, control.Takeover(), log.group, log.at.state.index))
    one = certified(raw, log.at.term, B)
    with pytest.raises(ProtocolError, match=r"11\.5"):
        groups.check_certified(log.at, one.entry, one.certificate)


# --- links ----------------------------------------------------------------------------------------------------------
def test_join_links() -> None:
    log = founded("ab")
    log.do(A, control.MakeLink(HASH, 2, NOW_MS + 1000, "readonly"))
    join = control.Join(b"s" * 16, C.card)
    assert refusal(log, C, control.Join(b"x" * 16, C.card), under=0) == "bad_link"
    assert refusal(log, C, join, under=0, at_ms=NOW_MS + 1000) == "bad_link"
    assert refusal(log, C, control.Join(b"s" * 16, D.card), under=0) != ""
    joined = propose(C, join, log.group, 0)
    log.put(joined, A)
    member = log.at.state.member(C.user())
    assert member is not None
    assert member.role == "readonly"
    log.do(C, control.Leave(), A)
    with pytest.raises(ProtocolError, match=r"11\.2"):  # they left; their old word does not bring them back
        groups.after(log.at.state, joined, (), NOW_MS)
    log.do(C, join, A)
    assert refusal(log, D, control.Join(b"s" * 16, D.card), under=0) == "bad_link"  # used up


def test_a_closed_link_stays_closed() -> None:
    log = founded("ab")
    make = propose(A, control.MakeLink(HASH, 9, 0, "member"), log.group, log.at.state.index)
    log.put(make, A)
    log.do(B, control.DropLink(HASH), A)
    with pytest.raises(ProtocolError, match=r"11\.2"):
        groups.after(log.at.state, make, (), NOW_MS)
    assert refusal(log, C, control.Join(b"s" * 16, C.card), under=0) == "bad_link"


def test_there_are_not_too_many_links() -> None:
    log = founded("a")
    for number in range(LINKS_MAX):
        log.do(A, control.MakeLink(digest("link", bytes([number])), 1, 0, "member"))
    assert refusal(log, A, control.MakeLink(HASH, 1, 0, "member")) == "too_many"


# --- owners ---------------------------------------------------------------------------------------------------------
def test_a_group_has_an_owner() -> None:
    log = cast()
    log.do(site("f"), control.Leave(), A)
    log.do(A, control.Leave())
    owners = [m.local for m in log.at.state.members if m.role == "owner"]
    assert owners == [WHO["admin"].user().local]
    admin = WHO["admin"]
    log.do(admin, control.SetRole(admin.node, admin.user().local, "member"), A)
    assert [m.role for m in log.at.state.members].count("owner") == 1
    log = founded("ab")
    log.do(A, control.Remove(A.node, "alice"))
    log.do(B, control.Remove(B.node, "blice"), A)
    assert log.at.state.members == ()
    assert log.at.state.stewards == (A.node,)


# --- which events stand ---------------------------------------------------------------------------------------------
def test_a_removed_member_is_cut() -> None:
    log = founded("abc")
    here = log.at.state.index
    cut = (Cut(LIFE, 5),)
    log.do(A, control.Remove(C.node, "clice"), cuts=cut)
    state = log.at.state

    def judged(index: int, seq: int, life: bytes = LIFE) -> str:
        return groups.judge(state, index, C.user(), life, seq)

    assert [judged(here, 5), judged(here, 6), judged(here, 1, OTHER_LIFE)] == ["stands", "void", "void"]
    assert [judged(here + 1, 6), judged(1, 1)] == ["not_member", "not_member"]
    assert C.node in groups.audience(state, here)
    assert C.node not in groups.audience(state, here + 1)
    log.do(A, add((C, "member")))
    state = log.at.state
    assert [judged(here, 6), judged(here + 1, 7), judged(here + 2, 7)] == ["void", "not_member", "stands"]


def test_roles_and_cuts() -> None:
    log = founded("abc")
    first = log.at.state.index
    log.do(A, control.SetRole(C.node, "clice", "admin"))
    log.do(A, control.SetRole(C.node, "clice", "readonly"), cuts=(Cut(LIFE, 5),))
    log.do(A, control.SetRole(C.node, "clice", "member"))
    log.do(A, control.Remove(C.node, "clice"), cuts=(Cut(LIFE, 9),))
    state = log.at.state
    stands = [
        (index - first, seq)
        for index, seq in itertools.product(range(first, state.index + 1), (4, 6, 10))
        if groups.judge(state, index, C.user(), LIFE, seq) == "stands"
    ]
    assert stands == [(0, 4), (1, 4), (3, 4), (3, 6)]
    assert groups.judge(state, first + 2, C.user(), LIFE, 6) == "readonly"


def test_a_cut_comes_with_what_takes_rights_away_only() -> None:
    log = founded("abc")
    for op in (control.Set("topic", "x"), control.SetRole(C.node, "clice", "admin")):
        with pytest.raises(ProtocolError, match=r"11\.8"):
            groups.after(log.at.state, propose(A, op, log.group, log.at.state.index), (Cut(LIFE, 1),), NOW_MS)


OPS = st.sampled_from(
    [
        control.Set("topic", "x"), add((D, "member")), control.Remove(D.node, "dlice"), control.Leave(),
        control.SetRole(C.node, "clice", "readonly"), control.SetRole(C.node, "clice", "admin"), add((C, "member")),
        control.Remove(C.node, "clice"), control.MakeLink(HASH, 1, 0, "member"), control.Join(b"s" * 16, D.card),
    ]
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([A, B, C, D]), OPS, st.integers(1, 6)), max_size=12), st.integers(1, 12))
def test_what_was_void_never_stands_again(steps: "list[tuple[object, Op, int]]", index: int) -> None:
    """And any log is in order: an owner, members in order, one encoding."""
    log, void = founded("abc"), set()
    for by, op, seq in steps:
        try:
            cuts = (Cut(LIFE, seq),) if isinstance(op, control.Remove | control.Leave) else ()
            log.do(by, op, A, cuts=cuts)  # type: ignore[arg-type]
        except ProtocolError:
            continue
        state = log.at.state
        assert groups.decode_state(groups.encode_state(state)) == state
        users = [User(m.node, m.local) for m in state.members]
        assert users == sorted(set(users))
        assert not state.members or any(m.role == "owner" for m in state.members)
        now = {
            (user, number)
            for user, number in itertools.product((B.user(), C.user(), D.user()), range(1, 8))
            if groups.judge(state, min(index, state.index), user, LIFE, number) == "void"
        }
        if index <= state.index:
            assert void <= now
            void = now


def test_a_refusal_is_safe_to_show() -> None:
    log = cast()
    for op in (
        control.Remove(A.node, "\x1b[2J"),
        control.SetRole(A.node, "a\n", "member"),
        add((A, "member"), local="\0"),
    ):
        with pytest.raises(ProtocolError) as refused:
            groups.after(log.at.state, propose(A, op, log.group, log.at.state.index), (), NOW_MS)
        assert str(refused.value).isprintable()

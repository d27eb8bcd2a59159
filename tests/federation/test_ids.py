"""Names and ids: one spelling each, and nothing that only looks like another (PROTOCOL.md 1)."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import AddressError
from federation.ids import (
    DOMAIN_CHARS_MAX,
    Address,
    Log,
    User,
    check_domain,
    check_local_name,
    digest,
    direct_conversation,
    from_text,
    notice_conversation,
    to_text,
)
from tests.federation import vectors as v

LOCAL = "abcdefghijklmnopqrstuvwxyz0123456789._-"


def test_a_digest_is_what_the_rule_says() -> None:
    expected = hashlib.sha256(b"roost/event/1\0\0\0\0\1a\0\0\0\2bc").digest()
    assert digest("event", b"a", b"bc") == expected


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_parts_cannot_be_moved_about_in_a_digest(a: list[bytes], b: list[bytes]) -> None:
    assert (digest("log", *a) == digest("log", *b)) == (a == b)


@given(st.binary(min_size=1, max_size=64))
def test_an_id_survives_its_text(raw: bytes) -> None:
    text = to_text(raw)
    assert from_text(text, len(raw)) == from_text(text.upper(), len(raw)) == raw
    for size in (len(raw) - 1, len(raw) + 1):
        with pytest.raises(ValueError, match="is not an id"):
            from_text(text, size)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t + "a",
        lambda t: t[:-1],
        lambda t: t[:-1] + "r",  # the same 32 bytes, but for four bits that belong to none of them
        lambda t: t + "====",
        lambda t: t[:-1] + "=",
        lambda t: t + "\n",
        lambda t: " " + t[1:],
        lambda t: "1" + t[1:],
        lambda t: "а" + t[1:],
        lambda t: "ａ" + t[1:],
        lambda t: t * 20_000,
        lambda t: "",
    ],
)
def test_other_texts_are_not_ids(change: object) -> None:
    assert callable(change)
    with pytest.raises(ValueError, match="not an id") as caught:
        from_text(change(to_text(v.b(1))), 32)
    assert len(str(caught.value)) < 200


@given(st.text(LOCAL, min_size=1, max_size=64))
def test_a_local_name_is_taken_as_it_is_or_not_at_all(name: str) -> None:
    good = name[0].isalnum() and name[-1].isalnum() and ".." not in name
    if good:
        assert check_local_name(name) == name
        assert str(Address.parse(f"{name}@lab.example")) == f"{name}@lab.example"
    else:
        with pytest.raises(AddressError):
            check_local_name(name)


LOOK_ALIKES = {
    "cyrillic": "аlice@lab.example",
    "zero width": "al\u200bice@lab.example",
    "zero width joiner": "alice\u200d@lab.example",
    "right to left": "alice\u202e@lab.example",
    "nfd": "re\u0301ne\u0301@lab.example",
    "nfc": "réné@lab.example",
    "fullwidth": "ａlice@lab.example",
    "capitals": "Alice@lab.example",
    "dotless i": "alıce@lab.example",
    "kelvin": "\u212aate@lab.example",
    "arabic digit": "alice\u0661@lab.example",
    "space": "alice @lab.example",
    "line end": "alice\n@lab.example",
    "line end after": "alice@lab.example\n",
    "nul": "alice\0@lab.example",
    "dot at the end": "alice.@lab.example",
    "dots": "a..b@lab.example",
    "dot at the start": ".alice@lab.example",
    "empty": "@lab.example",
    "too long": "a" * 65 + "@lab.example",
    "path": "../alice@lab.example",
    "escaped": "%61lice@lab.example",
    "no node": "alice@",
    "no at": "alice",
    "two at": "alice@lab@example",
    "node capitals": "alice@Lab.example",
    "node cyrillic": "alice@lаb.example",
    "node u-label": "alice@café.example",
    "node nfd": "alice@cafe\u0301.example",
    "node ideographic dot": "alice@lab\u3002example",
    "node fullwidth dot": "alice@lab\uff0eexample",
    "node trailing dot": "alice@lab.example.",
    "node leading dot": "alice@.example",
    "node empty label": "alice@lab..example",
    "node hyphen first": "alice@-lab.example",
    "node hyphen last": "alice@lab-.example",
    "node underscore": "alice@lab_1.example",
    "node port": "alice@lab.example:7701",
    "node long label": f"alice@{'a' * 64}.example",
    "node too long": "alice@" + ".".join(["a" * 49] * 6),
    "xn-- empty": "alice@xn--.example",
    "xn-- of ascii": "alice@xn--lab-.example",
    "xn-- not punycode": "alice@xn--999999999.example",
    "xn-- not allowed": "alice@xn--ls8h.example",
    "xn-- capitals": "alice@XN--caf-dma.example",
    "xn-- of a capital": "alice@xn--lb-kga.example",
    "other hyphens": "alice@ab--cd.example",
    "mixed bidi": "alice@xn--a-0hc.example",
}


@pytest.mark.parametrize("text", LOOK_ALIKES.values(), ids=LOOK_ALIKES)
def test_a_look_alike_is_refused_and_never_repaired(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        Address.parse(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 320


@given(st.text(max_size=80))
def test_any_text_is_an_address_as_it_stands_or_refused(text: str) -> None:
    try:
        assert str(Address.parse(text)) == text
        assert text.isascii()
        assert text == text.lower()
    except AddressError:
        pass


@pytest.mark.parametrize("name", ["lab.example", "a", "7", "lab-1.local", "xn--caf-dma.example", "a" * 63])
def test_good_node_names(name: str) -> None:
    assert check_domain(name) == name


def test_the_longest_node_name() -> None:
    longest = ".".join(["a" * 63] * 4)[:DOMAIN_CHARS_MAX]
    assert check_domain(longest) == longest


def test_a_direct_conversation_is_one_from_both_sides_and_another_for_everybody_else() -> None:
    pairs = [(v.ALICE, v.BOB), (v.ALICE, User(v.OTHER, "bo")), (v.ALICE, User(v.NODE, "bob"))]
    assert all(direct_conversation(a, b) == direct_conversation(b, a) for a, b in pairs)
    assert len({direct_conversation(a, b) for a, b in pairs}) == len(pairs)
    assert notice_conversation(v.NODE, v.OTHER) == notice_conversation(v.OTHER, v.NODE)


def test_each_process_life_has_its_own_log() -> None:
    keys = {Log(v.TALK, node, v.b(n, 16)).key for node in (v.NODE, v.OTHER) for n in range(5)}
    assert len(keys) == 10
    assert {len(key) for key in keys} == {16}

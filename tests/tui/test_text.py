"""Nothing that another person wrote can act on the terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tui import text

NASTY = (
    "\x1b\x9b\x9d\x07\x00\x7f\x85\u2028\u202e\u2066\u200b\u200d\ufe0f\u00ad\u3164\ud800\U000e0041\u0301[]0;m@\\ \n\t"
)
VISIBLE_FORMAT = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2\u200c\u200d"
dirty = st.text(st.one_of(st.characters(), st.sampled_from(NASTY)), max_size=200)


def is_harmless(shown: str, newlines: bool) -> bool:
    for char in shown:
        category = unicodedata.category(char)
        if char == "\n" and newlines:
            continue
        if category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and char not in VISIBLE_FORMAT):
            return False
    return True


@given(dirty)
def test_a_body_is_harmless_and_stays_so(raw: str) -> None:
    shown = text.body(raw)
    assert is_harmless(shown, newlines=True)
    assert text.body(shown) == shown
    shown.encode()


@given(dirty)
def test_one_line_is_one_line(raw: str) -> None:
    shown = text.line(raw, 50)
    assert is_harmless(shown, newlines=False)
    assert len(shown) <= 50
    assert not set(shown) & set("\u200c\u200d")


@given(dirty)
def test_a_name_always_carries_a_node(raw: str) -> None:
    shown = text.name(raw)
    assert is_harmless(shown, newlines=False)
    assert shown.count("@") == 1
    assert " " not in shown
    assert len(shown) <= text.NAME_CHARS_MAX


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=100))
def test_plain_text_is_left_alone(raw: str) -> None:
    assert text.body(raw) == raw


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;your bank\x07hello", "hello"),
        ("\x1b]52;c;cm0gLXJm\x1b\\hello", "hello"),
        ("\x9b2Jgone", "gone"),
        ("ding\x07", "ding"),
        ("invoice\u202egpj.exe", "invoicegpj.exe"),
        ("pay\u200bpal", "paypal"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\tb", "a    b"),
        ("half \ud83d pair", "half \ufffd pair"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("z" + "\u0335" * 50, "z" + "\u0335" * text.MARKS_MAX),
    ],
)
def test_known_tricks(raw: str, shown: str) -> None:
    assert text.body(raw) == shown


def test_a_heart_is_as_wide_here_as_in_every_terminal() -> None:
    assert cell_len(text.body("\u2764\ufe0f")) == 1


def test_a_name_cannot_borrow_another_node() -> None:
    assert text.name("bob") == "bob@unknown-node"
    assert text.name("bob@a.test\nadmin@b.test") == "bob_a.test_admin_b.test@unknown-node"
    assert text.name("bob\u202e@b.test") == "bob@b.test"
    assert text.node_of("bob@b.test") == "b.test"


def test_length_is_capped() -> None:
    assert len(text.body("x" * 1_000_000)) == text.BODY_CHARS_MAX
    assert text.body("\n" * 100_000 + "x").count("\n") < text.BODY_LINES_MAX

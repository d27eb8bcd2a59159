"""Alt keys of plain terminals."""

import pytest
from textual import events
from textual._xterm_parser import XTermParser

from tui.terminal import teach_alt_keys


@pytest.mark.parametrize(
    ("typed", "key"),
    [("\x1b\r", "alt+enter"), ("\n", "ctrl+j"), ("\r", "enter"), ("\x1b[13;2u", "shift+enter"),
     ("\x1b[27;2;13~", "shift+\r"), ("¡", "inverted_exclamation_mark")],
)  # fmt: skip
def test_new_lines(typed: str, key: str) -> None:
    teach_alt_keys()
    assert [e.key for e in XTermParser(False).feed(typed) if isinstance(e, events.Key)] == [key]


def test_alt_digits_type_nothing() -> None:
    teach_alt_keys()
    for digit in "123456789":
        parser = XTermParser(False)
        found = [*parser.feed(f"\x1b{digit}"), *parser.feed("")]  # the empty read is the pause after the key
        assert [e.key for e in found if isinstance(e, events.Key)] in ([], [f"alt+{digit}"])

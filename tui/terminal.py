"""What plain terminals send for Alt keys, which Textual's table reads as something else.

Terminals without the newer key protocol (tmux, screen, most SSH sessions) send Escape and the key. Textual reads
Escape 1 as a Mac's Option-1 (the character `¡`) and Escape Enter as Enter, so Alt+1 would type and Alt+Enter would
send half a message.
"""

from enum import Enum
from typing import Any, cast

from textual._ansi_sequences import ANSI_SEQUENCES_KEYS


class _Extra(Enum):
    """Keys that Textual has no name for; it reads only `.value`."""

    AltEnter = "alt+enter"


def teach_alt_keys() -> None:
    """Correct the table. Harmless to repeat; it changes this process's input only."""
    table = cast(dict[str, Any], ANSI_SEQUENCES_KEYS)
    for digit in "123456789":
        table.pop(f"\x1b{digit}", None)
    table["\x1b\r"] = (_Extra.AltEnter,)
    table["\x1b\n"] = (_Extra.AltEnter,)

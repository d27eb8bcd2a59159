"""The gate for text that other people wrote. Nothing reaches the screen without passing it.

A stranger's text must not move the cursor, ring the bell, reorder a line or pass for another name. What comes
out is plain text for widgets that render without markup.
"""

import re
import unicodedata

BODY_CHARS_MAX = 64 * 1024  # a body is at most this many bytes on the wire
BODY_LINES_MAX = 2_000
NAME_CHARS_MAX = 128
LINE_CHARS_MAX = 400
MARKS_MAX = 4  # combining marks on one letter; more only serves to cover neighbouring lines

# Whole sequences go, not only their first byte: what is left of "ESC ] 0 ; title BEL" would still be noise.
_SEQUENCES = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor movement, modes
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)?"  # strings: title, clipboard
    "|\x1b[ -/]*[0-~]?"
)
_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SPACES = re.compile(r"\s+")

# Format characters that are visible marks of their script, unlike the rest of their category.
_VISIBLE_FORMAT = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2")
# Letters by category that draw nothing: fillers that make an empty name or hide inside one.
_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5")
_JOINERS = frozenset("\u200c\u200d")
_ADDRESS = re.compile(r"[^\s@:/]{1,64}@[^\s@:/]{1,190}")


def _is_variation_selector(char: str) -> bool:
    """They make one character one or two cells wide by terminal, which breaks columns."""
    return "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef" or "\u180b" <= char <= "\u180f"


def _draws_nothing(char: str, category: str) -> bool:
    if category == "Cf":
        return char not in _VISIBLE_FORMAT
    return char in _BLANK_LETTERS or _is_variation_selector(char)


def _keep(text: str, newlines: bool) -> str:
    out: list[str] = []
    marks = 0
    for at, char in enumerate(text):
        if " " <= char <= "~":
            out.append(char)
            marks = 0
            continue
        if char in _JOINERS:
            # Persian and Indic spelling needs them between two letters; anywhere else they only hide things.
            after = unicodedata.category(text[at + 1]) if at + 1 < len(text) else ""
            before = unicodedata.category(out[-1]) if out and out[-1] > "~" else ""
            if newlines and after[:1] == "L" and before[:1] in ("L", "M") and text[at + 1] not in _BLANK_LETTERS:
                out.append(char)
            continue
        category = unicodedata.category(char)
        if char == "\n":
            out.append("\n" if newlines else " ")
        elif char == "\t":
            out.append("    " if newlines else " ")
        elif category == "Cs":
            out.append("\ufffd")  # half of a pair cannot be encoded and would end the program
        elif category == "Cc" or _draws_nothing(char, category):
            continue
        elif category in ("Mn", "Me"):
            marks += 1
            if marks <= MARKS_MAX and out and out[-1] not in " \n":
                out.append(char)
            continue
        else:
            out.append(" " if category == "Zs" else char)
        marks = 0
    return "".join(out)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip("\u200c\u200d") + "…"


def cleaned(text: str) -> str:
    """All of it, as plain lines."""
    return _keep(_SEQUENCES.sub("", _BREAKS.sub("\n", text)), newlines=True)


def body(text: str, limit: int = BODY_CHARS_MAX) -> str:
    """A message's text: lines stay lines, everything that acts on a terminal is gone."""
    lines = cleaned(text[: limit * 2]).rstrip("\n").split("\n")
    if len(lines) > BODY_LINES_MAX:
        lines = [*lines[: BODY_LINES_MAX - 1], "…"]
    return _cut("\n".join(lines), limit)


def line(text: str, limit: int = LINE_CHARS_MAX) -> str:
    """One line of it, for lists, notices and reasons."""
    kept = _keep(_SEQUENCES.sub("", _BREAKS.sub(" ", text[: limit * 4])), newlines=False)
    return _cut(_SPACES.sub(" ", kept).strip(), limit)


def name(address: str, limit: int = NAME_CHARS_MAX) -> str:
    """A person, always with the node: the same local name on two nodes is two people."""
    shown = line(address, limit).replace(" ", "_")
    if not is_address(shown):
        return _cut(shown.replace("@", "_") or "nobody", limit - 16) + "@unknown-node"
    return shown


def node_of(address: str) -> str:
    """The node's part of an address."""
    return name(address).rpartition("@")[2]


def is_address(text: str) -> bool:
    """Whether it has the shape of an address; whether that person exists only their node can say."""
    return _ADDRESS.fullmatch(text) is not None

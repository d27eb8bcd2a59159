"""The drawn lines of messages, and the bounded cache of them."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.selection import Selection
from textual.strip import Strip

from tui import model, text
from tui.rows import GROUP_MS, INDENT, STATE_CELLS, local_time

if TYPE_CHECKING:
    from tui.widgets.timeline import Timeline

COMPONENTS = (
    "day", "unread", "sender", "mine", "time", "selected", "selection",
    "waiting", "moving", "arrived", "read", "failed", "late", "quote", "done", "deleted", "mention",
)  # fmt: skip
LINES_CACHED_MAX = 4_000
COPIED_LINES_MAX = 5_000
SELECTED_GUTTER = "▸ "
MENTION_GUTTER = "@ "  # colour is never the only sign

__all__ = ["COMPONENTS", "GROUP_MS", "LINES_CACHED_MAX", "Blocks"]


class Blocks:
    """One block per message: day, unread line, sender, text, note. Drawn when first looked at."""

    def __init__(self, owner: "Timeline") -> None:
        self._owner = owner
        self._cache: OrderedDict[str, list[tuple[Strip, str]]] = OrderedDict()
        self.lines_cached = 0
        self.lines_drawn = 0  # ever; a test bounds it

    def clear(self) -> None:
        self._cache.clear()
        self.lines_cached = 0

    def drop(self, key: str | None) -> None:
        if key is not None and (lines := self._cache.pop(key, None)) is not None:
            self.lines_cached -= len(lines)

    def line(self, at: int, line: int, row: int) -> Strip:
        """One line for the screen, with the marks of this moment: selected message, mouse selection."""
        owner = self._owner
        block = self._block(at)
        if line >= len(block):  # the height is still an estimate; it is corrected before the next frame
            return Strip.blank(owner.view.width, owner.rich_style)
        strip, copied = block[line]
        above = owner.rows.trim(at).height if owner.rows.messages[at].key == owner.selected else len(block)
        if line >= above:
            first = SELECTED_GUTTER if line == above else " " * INDENT
            style = self._style("selected")
            strip = Strip.join([Strip([Segment(first, style)], INDENT), strip.crop(INDENT)]).apply_style(style)
        selection = owner.text_selection
        if selection is not None and copied and (span := selection.get_span(row)) is not None:
            start, end = span
            width = strip.cell_length
            end = width if end < 0 else min(end, width)
            start = max(INDENT, min(start, end))
            if end > start:
                middle = strip.crop(start, end).apply_style(self._style("selection"))
                strip = Strip.join([strip.crop(0, start), middle, strip.crop(end)])
        return strip.apply_offsets(0, row)

    def selected_text(self, selection: Selection) -> str:
        rows = self._owner.rows
        first = selection.start.y if selection.start is not None else 0
        last = selection.end.y if selection.end is not None else rows.total - 1
        out: list[str] = []
        for row in range(max(0, first), min(last + 1, rows.total, max(0, first) + COPIED_LINES_MAX)):
            at, line = rows.locate(row)
            block = self._block(at)
            copied = block[line][1] if line < len(block) else ""
            if not copied:
                continue
            start, end = selection.get_span(row) or (0, -1)
            cells = Strip([Segment(" " * INDENT + copied)])
            out.append(cells.crop(max(INDENT, start), None if end < 0 else max(INDENT, end)).text)
        return "\n".join(out)

    def _style(self, name: str) -> Style:
        return self._owner.get_component_rich_style(f"timeline--{name}")

    def _block(self, at: int) -> list[tuple[Strip, str]]:
        key = self._owner.rows.messages[at].key
        if (lines := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            return lines
        lines = self._draw(at)
        self.lines_drawn += len(lines)
        self.lines_cached += len(lines)
        self._cache[key] = lines
        while self.lines_cached > LINES_CACHED_MAX and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self.lines_cached -= len(oldest)
        return lines

    def _draw(self, at: int) -> list[tuple[Strip, str]]:
        rows, base = self._owner.rows, self._owner.rich_style
        message, trim = rows.messages[at], rows.trim(at)
        lines: list[tuple[Strip, str]] = []
        if trim.day:
            lines.append((self._rule(trim.day, self._style("day")), ""))
        if trim.unread:
            lines.append((self._rule("new", self._style("unread")), ""))
        if trim.head:
            lines.append((self._head(at), ""))
        lines.extend((self._row(part, self._style("quote"), []), "") for part in rows.quote(at))
        body = rows.body(at)
        said = base
        if message.deleted:
            said = self._style("deleted")
        elif message.mentions_me:
            said = self._style("mention")
        for number, part in enumerate(body):
            state = self._state(at) if number == len(body) - 1 else []
            first = MENTION_GUTTER if message.mentions_me and number == 0 else ""
            lines.append((self._row(part, said, state, first), part))
        lines.extend((self._row(part, self._style("done"), []), "") for part in rows.done(at))
        mark = model.mark_of(message)
        note_style = self._style("failed" if mark is not None and mark.style == "failed" else "late")
        lines.extend((self._row(part, note_style, []), part) for part in rows.note(at))
        return lines

    def _rule(self, title: str, style: Style) -> Strip:
        width = self._owner.view.width
        side = max(1, (width - cell_len(title) - 2) // 2)
        return Strip([Segment(set_cell_size(f"{'─' * side} {title} {'─' * width}", width), style)], width)

    def _head(self, at: int) -> Strip:
        width, message = self._owner.view.width, self._owner.rows.messages[at]
        name, clock = text.name(message.sender), f"{local_time(message.stamp):%H:%M}"
        if message.mine:
            name = f"you ({name})"
        if cell_len(name) > width - 7:
            name = set_cell_size(name, max(1, width - 8)) + "…"
        who = Segment(name, self._style("mine" if message.mine else "sender"))
        return Strip([who, Segment(f"  {clock}", self._style("time"))]).adjust_cell_length(
            width, self._owner.rich_style
        )

    def _row(self, part: str, style: Style, state: list[Segment], gutter: str = "") -> Strip:
        """Text on the left, state on the right; the text gives way to nothing, it was wrapped to fit."""
        width, base = self._owner.view.width, self._owner.rich_style
        tail = sum(segment.cell_length for segment in state)
        left = Strip([Segment(gutter.ljust(INDENT), style if gutter else base), Segment(part, style)])
        if left.cell_length + tail > width:  # words only where there is room for them
            state = state[-1:]
            tail = sum(segment.cell_length for segment in state)
        return Strip([*left.adjust_cell_length(max(0, width - tail), base), *state])

    def _state(self, at: int) -> list[Segment]:
        """Words for the newest own message and for trouble; a glyph for every own message."""
        rows = self._owner.rows
        message = rows.messages[at]
        if (mark := model.mark_of(message)) is None:
            return []
        style = self._style(mark.style)
        glyph = Segment(mark.glyph.rjust(STATE_CELLS), style)
        telling = message.key == rows.last_own or mark.style in ("failed", "waiting")
        return [Segment(f"  {mark.words}", style), glyph] if telling else [glyph]

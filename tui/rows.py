"""The rows of a conversation: which message is on which line, for any number of messages.

Heights are exact where somebody looks and estimated elsewhere, so opening 100,000 messages wraps only what is
shown. Sums of heights are kept in a tree: finding a line, and correcting a height, cost a dozen additions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from textual.content import Content

from node.client.model import Message
from tui import model

GROUP_MS = 5 * 60_000  # a pause longer than this repeats the sender and the time
INDENT = 2
STATE_CELLS = model.GLYPH_CELLS + 1
WIDTH_MIN = 8


@dataclass(frozen=True)
class Trim:
    """What is drawn above a message."""

    day: str = ""
    unread: bool = False
    head: bool = False

    @property
    def height(self) -> int:
        return bool(self.day) + self.unread + self.head


class Heights:
    """A row of numbers with sums from the start (a Fenwick tree)."""

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._tree = [0, *values]
        for at in range(1, len(self._tree)):
            parent = at + (at & -at)
            if parent < len(self._tree):
                self._tree[parent] += self._tree[at]

    def __len__(self) -> int:
        return len(self._tree) - 1

    def append(self, value: int) -> None:
        at = len(self._tree)
        self._tree.append(value + self.before(at - 1) - self.before(at - (at & -at)))

    def add(self, index: int, delta: int) -> None:
        at = index + 1
        while at < len(self._tree):
            self._tree[at] += delta
            at += at & -at

    def before(self, index: int) -> int:
        """The sum of all values before an index."""
        total = 0
        while index:
            total += self._tree[index]
            index &= index - 1
        return total

    def find(self, line: int) -> int:
        """The index whose span holds a line."""
        at, step = 0, 1 << max(0, len(self).bit_length() - 1)
        while step:
            if at + step < len(self._tree) and self._tree[at + step] <= line:
                at += step
                line -= self._tree[at]
            step >>= 1
        return min(at, len(self) - 1)


def local_time(stamp_ms: int) -> datetime:
    """A stamp in the reader's time zone; a nonsense stamp of a stranger is shown as the epoch, not raised."""
    try:
        return datetime.fromtimestamp(stamp_ms / 1000)
    except (OverflowError, OSError, ValueError):
        return datetime.fromtimestamp(0)


def wrapped(body: str, width: int) -> list[str]:
    """The lines of a cleaned body."""
    return [part.plain for part in Content(body).wrap(max(WIDTH_MIN, width))] or [""]


class Rows:
    """The messages of one conversation, oldest first, and their heights at one width."""

    def __init__(self, width: int = 80) -> None:
        self.messages: list[Message] = []
        self.unread: str | None = None  # the key of the message below the unread line
        self.width = width
        self.last_own: str | None = None  # the key of the newest own message, whose state is told in words
        self._index: dict[str, int] = {}
        self._known: list[int] = []  # the current height of each block
        self._exact = bytearray()
        self._heights = Heights()

    # -- contents

    def replace(self, messages: Iterable[Message], unread: str | None = None) -> None:
        self.messages = list(messages)
        self.unread = unread
        self._rebuild()
        self.last_own = next((m.key for m in reversed(self.messages) if m.mine), None)

    def prepend(self, older: Sequence[Message]) -> int:
        """Older messages from the cache; returns how many were new."""
        fresh = [m for m in older if m.key not in self._index]
        self.messages[:0] = fresh
        self._rebuild()
        if self.last_own is None:
            self.last_own = next((m.key for m in reversed(fresh) if m.mine), None)
        return len(fresh)

    def put(self, message: Message) -> int:
        """Add a message, or update it where it is: a queued message keeps its place. Returns its index."""
        at = self._index.get(message.key)
        if at is not None:
            self.messages[at] = message
            self.forget(at)
            return at
        at = len(self.messages)
        if message.mine:
            self.last_own = message.key
        while at and self.messages[at - 1].stamp > message.stamp:
            at -= 1
        if at < len(self.messages):
            self.messages.insert(at, message)
            self._rebuild()
            return at
        self.messages.append(message)
        self._index[message.key] = at
        height = self.estimate(at)
        self._known.append(height)
        self._exact.append(0)
        self._heights.append(height)
        return at

    def mark_unread(self, key: str | None) -> None:
        """Move the unread line; both places change their height."""
        old, self.unread = self.unread, key
        for changed in (old, key):
            if changed in self._index:
                self.forget(self._index[changed])

    def resize(self, width: int) -> None:
        if width != self.width:
            self.width = width
            self._rebuild()

    def _rebuild(self) -> None:
        self._index = {m.key: i for i, m in enumerate(self.messages)}
        self._known = [self.estimate(i) for i in range(len(self.messages))]
        self._exact = bytearray(len(self.messages))
        self._heights = Heights(self._known)

    # -- what one block holds

    @property
    def text_width(self) -> int:
        return max(WIDTH_MIN, self.width - INDENT - STATE_CELLS)

    def trim(self, at: int) -> Trim:
        message = self.messages[at]
        day = local_time(message.stamp).date()
        unread = message.key == self.unread
        if at == 0:
            return Trim(f"{day:%A} {day.day} {day:%B %Y}", unread, True)
        last = self.messages[at - 1]
        if local_time(last.stamp).date() != day:
            return Trim(f"{day:%A} {day.day} {day:%B %Y}", unread, True)
        same = last.sender == message.sender and abs(message.stamp - last.stamp) < GROUP_MS
        return Trim("", unread, unread or not same)

    def body(self, at: int) -> list[str]:
        return wrapped(model.said_by(self.messages[at]), self.text_width)

    def quote(self, at: int) -> list[str]:
        """What it answers, cut to one line."""
        quoted = model.quote_of(self.messages[at])
        return wrapped(quoted, self.text_width)[:1] if quoted else []

    def done(self, at: int) -> list[str]:
        """What was done to it."""
        done = model.done_to(self.messages[at])
        return wrapped(done, self.text_width) if done else []

    def note(self, at: int) -> list[str]:
        note = model.note_of(self.messages[at])
        return wrapped(note, self.text_width) if note else []

    # -- heights

    def estimate(self, at: int) -> int:
        """Cheap and nearly right; it must not format dates or wrap, for it runs over every message."""
        message = self.messages[at]
        last = self.messages[at - 1] if at else None
        head = last is None or last.sender != message.sender or message.stamp - last.stamp >= GROUP_MS
        lines = max(1, -(-len(message.text) // self.text_width))
        if "\n" in message.text:
            lines += message.text.count("\n")
        return lines + head + (message.key == self.unread)

    def measure(self, at: int) -> bool:
        """Make one height exact; true if it changed."""
        if self._exact[at]:
            return False
        self._exact[at] = 1
        around = len(self.quote(at)) + len(self.done(at)) + len(self.note(at))
        height = self.trim(at).height + len(self.body(at)) + around
        delta = height - self._known[at]
        self._known[at] = height
        if delta:
            self._heights.add(at, delta)
        return bool(delta)

    def forget(self, at: int) -> None:
        self._exact[at] = 0

    def measure_around(self, at: int, above: int, below: int) -> None:
        """Make heights exact from some lines above a block to some lines below its start."""
        lines, index = 0, at
        while index < len(self.messages) and lines < below:
            self.measure(index)
            lines += self._known[index]
            index += 1
        lines, index = 0, at - 1
        while index >= 0 and lines < above:
            self.measure(index)
            lines += self._known[index]
            index -= 1

    @property
    def total(self) -> int:
        return self._heights.before(len(self._heights))

    def top(self, at: int) -> int:
        return self._heights.before(at)

    def height(self, at: int) -> int:
        return self._known[at]

    def locate(self, line: int) -> tuple[int, int]:
        """The block on a line, and the line within it."""
        at = self._heights.find(max(0, line))
        return at, max(0, min(line - self.top(at), self._known[at] - 1))

    def index_of(self, key: str | None) -> int | None:
        return None if key is None else self._index.get(key)

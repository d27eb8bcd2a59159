"""What the screens decide, as plain functions: order, states in words, unread position, fuzzy ranking."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from node.client.model import Conversation, Lights, Message
from tui import text

# --- states -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """How a state looks: a glyph that differs without colour, words, and the name of a style."""

    glyph: str
    words: str
    style: str


MARKS: dict[str, Mark] = {
    "queued": Mark("◷", "queued", "waiting"),
    "accepted": Mark("✓", "at my node", "moving"),
    "sent": Mark("✓›", "at their node", "moving"),
    "delivered": Mark("✓✓", "delivered", "arrived"),
    "read": Mark("✓✓●", "read", "read"),
    "failed": Mark("✗", "failed", "failed"),
    "void": Mark("⊘", "void", "failed"),
}
GLYPH_CELLS = max(len(mark.glyph) for mark in MARKS.values())


def mark_of(message: Message) -> Mark | None:
    """The mark of an own message; others' messages have no state to show."""
    return MARKS.get(message.state) if message.mine else None


def note_of(message: Message) -> str:
    """A line below a message that says what is wrong and what to do about it."""
    reason = text.line(message.reason, 200)
    if message.mine and message.state == "failed":
        return f"✗ not sent: {reason or 'no reason given'}. Up selects it: R retries, e takes it back."
    if message.state == "void":
        return f"⊘ void: {reason or 'the group no longer counts it'}."
    return "↷ arrived late" if message.late else ""


def quote_of(message: Message) -> str:
    """The line above an answer."""
    if message.quote is None or message.deleted:
        return ""
    said = "(deleted)" if message.quote.deleted else text.line(message.quote.text, 200)
    return f"↳ {text.name(message.quote.sender)}: {said}"


def done_to(message: Message) -> str:
    """A line below a message: what people did to it. A star stands at one's own reactions."""
    parts = [f"{text.line(r.emoji, 8)} {len(r.by)}{'*' if r.mine else ''}" for r in message.reactions]
    if message.edited:
        parts.append("edited")
    if message.pinned:
        parts.append(f"pinned by {text.name(message.pinned)}")
    if message.replies:
        parts.append(f"{message.replies} in the thread")
    return "  ".join(parts)


def said_by(message: Message) -> str:
    """What a message says, for its row."""
    return "(deleted)" if message.deleted else text.body(message.text)


def is_reacted(message: Message, emoji: str) -> bool:
    """Whether this emoji of mine is on it."""
    return any(r.mine and r.emoji == emoji for r in message.reactions)


def badge(conversation: Conversation) -> str:
    """What is new in a conversation, for the list: how much, and whether one is named in it."""
    if conversation.request:
        return "request"
    named = " @" if conversation.mentions else ""
    return f"({conversation.unread}{named})" if conversation.unread else ""


# --- the list of conversations ------------------------------------------------------------------------------


def ordered(conversations: Iterable[Conversation]) -> list[Conversation]:
    """Requests first, then unread, then the rest; newest first within each; the id settles ties."""
    return sorted(conversations, key=lambda c: (not c.request, not c.unread, -c.last_stamp, c.id))


def next_unread(conversations: Sequence[Conversation], current: str | None) -> Conversation | None:
    """The next conversation with something new after the current one, going round; first where one is named."""
    at = next((i for i, c in enumerate(conversations) if c.id == current), -1)
    around = [*conversations[at + 1 :], *conversations[: max(at, 0)]]
    named = next((c for c in around if c.mentions), None)
    return named or next((c for c in around if c.unread or c.request), None)


def neighbour(conversations: Sequence[Conversation], current: str | None, step: int) -> Conversation | None:
    """The room above or below; the ends do not wrap, so holding the key stops at one."""
    if not conversations:
        return None
    at = next((i for i, c in enumerate(conversations) if c.id == current), None)
    if at is None:
        return conversations[0 if step > 0 else -1]
    return conversations[min(max(at + step, 0), len(conversations) - 1)]


def first_unread(messages: Sequence[Message], conversation: Conversation | None) -> str | None:
    """The key of the message the unread line stands above."""
    if conversation is None or not conversation.unread or conversation.request:
        return None
    theirs = [m for m in messages if not m.mine]
    # The mark is a stamp, and a late message is older than it: the count reaches further back then.
    newer = [m for m in theirs if m.stamp > conversation.read_upto]
    unread = newer if conversation.read_upto and newer else theirs[-conversation.unread :]
    return unread[0].key if unread else None


# --- finding ------------------------------------------------------------------------------------------------


def fuzzy(query: str, candidate: str) -> int | None:
    """How well a query fits: higher is better, none if its letters do not occur in order."""
    wanted, have = query.casefold().replace(" ", ""), candidate.casefold()
    if not wanted:
        return 0
    if (start := have.find(wanted)) >= 0:  # in one piece always beats scattered letters
        return 10_000 - start * 10 - len(have) + (5_000 if _starts_word(have, start) else 0)
    score, at = 0, -1
    for char in wanted:
        found = have.find(char, at + 1)
        if found < 0:
            return None
        score += (30 if _starts_word(have, found) else 10) - min(found - at - 1, 9)
        at = found
    return score - len(have)


def _starts_word(have: str, at: int) -> bool:
    return at == 0 or not have[at - 1].isalnum()


@dataclass(frozen=True)
class Choice:
    """One line of the switcher: a room that exists, or an address to write to."""

    id: str  # of the conversation; or the address
    title: str
    unread: int = 0
    request: bool = False


def choices(query: str, conversations: Iterable[Conversation], mine: str = "") -> list[Choice]:
    """What the switcher offers; with nothing typed, the same order as the list: unread first."""
    query = query.strip().casefold()  # addresses have no capitals
    scored: list[tuple[int, int, Conversation]] = []
    for rank, conversation in enumerate(ordered(conversations)):
        score = fuzzy(query.lstrip("@"), conversation.title)
        if score is not None:
            scored.append((-score, rank, conversation))
    scored.sort(key=lambda entry: entry[:2])
    found = [Choice(c.id, text.name(c.title), c.unread, c.request) for _, _, c in scored]
    known = {choice.title for choice in found}
    if text.is_address(query) and query == text.name(query) and query not in known and query != mine:
        found.append(Choice(query, f"Write to {query}"))
    return found


# --- connection ---------------------------------------------------------------------------------------------

_LIGHT_GLYPHS = {"up": "●", "connecting": "◌", "down": "✕"}


def age(since_ms: int, now_ms: int) -> str:
    """How long, in one unit."""
    seconds = max(0, now_ms - since_ms) // 1000
    if not since_ms or seconds < 5:
        return ""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f" {seconds // size}{unit}"
    return f" {seconds}s"


def light(title: str, state: str, since_ms: int, now_ms: int) -> str:
    """One light: what it connects, a glyph, the same in words, and since when."""
    return f"{title} {_LIGHT_GLYPHS.get(state, '?')} {text.line(state, 16)}{age(since_ms, now_ms)}"


def status(lights: Lights, peer: str | None) -> str:
    """The row above the composer: empty while all is well, else what will happen to a message typed now."""
    if lights.me != "up":
        why = f" ({text.line(lights.reason, 80).partition('. ')[0]})" if lights.reason else ""
        return f"offline: messages will be sent when the node is back{why}"
    if peer and lights.peers.get(peer, ("up", 0))[0] == "down":
        return f"{peer} is unreachable: your node will deliver when it is back"
    return ""


def typing(who: Sequence[str]) -> str:
    """The row that says who types; empty while nobody does."""
    names = [text.name(address).partition("@")[0] for address in who]
    if not names:
        return ""
    return f"{names[0]} is typing…" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} are typing…"


def dot(presence: str | None) -> str:
    """A contact in the list: there, there and away, or nothing to be said."""
    return {"online": "●", "away": "○"}.get(presence or "", "")


def header(title: str, below: int = 0, elsewhere: int = 0) -> str:
    """The row above the messages: who it is, and what is new where nobody looks."""
    return title + (f"  ↓ {below} new" if below else "") + (f"  +{elsewhere} unread (Alt+A)" if elsewhere else "")


def preview(conversation: Conversation) -> str:
    """The last text in one line."""
    return text.line(conversation.last_text, 80)

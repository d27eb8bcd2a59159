"""When to call a peer again: capped, jittered back-off that any authenticated contact resets (PROTOCOL.md 5.8)."""

FIRST_MS = 1000
EXPONENT_MAX = 20


class Backoff:
    """One peer's retries. `chance` is a number in [0, 1) that the shell draws."""

    def __init__(self, cap_ms: int) -> None:
        self.cap_ms = cap_ms
        self.failures = 0
        self.next_ms = 0  # monotonic; 0: at once
        self.reason = ""

    def failed(self, now_ms: int, chance: float, reason: str) -> None:
        """Full jitter below a ceiling that doubles up to the cap, and never less than a tenth of the ceiling."""
        ceiling = min(self.cap_ms, FIRST_MS << min(self.failures, EXPONENT_MAX))
        self.failures += 1
        self.next_ms = now_ms + int(ceiling * (0.1 + 0.9 * chance))
        self.reason = reason

    def reset(self) -> None:
        self.failures = 0
        self.next_ms = 0
        self.reason = ""


def keep_dialled_by_us(own: bytes, other: bytes) -> bool:
    """Of two links between one pair, both sides keep the one that the smaller node id dialled (PROTOCOL.md 3.5)."""
    return own < other

"""Token buckets: how often one user or one peer may make the node work."""

NAMES_MAX = 4096


class Buckets:
    """One bucket a name: `rate` a second, `burst` at once. Full ones need no memory and are forgotten."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._held: dict[str | bytes, tuple[float, int]] = {}  # tokens, and as of when (monotonic ms); oldest use first

    def __len__(self) -> int:
        return len(self._held)

    def take(self, name: str | bytes, count: int, now_ms: int) -> int:
        """Take `count` tokens and give 0, or take none and give after how many ms there will be as many.

        More than a burst costs a burst.
        """
        count_ = min(count, self.burst)
        tokens, since = self._held.pop(name, (self.burst, now_ms))
        tokens = min(self.burst, tokens + self.rate * max(0, now_ms - since) / 1000)
        lacking = count_ - tokens
        self._held[name] = (tokens if lacking > 0 else tokens - count_, now_ms)
        if len(self._held) > NAMES_MAX:
            self._forget(now_ms)
        return 0 if lacking <= 0 else 1 + int(lacking * 1000 / self.rate)

    def _forget(self, now_ms: int) -> None:
        """Those that are full by now; else the one that was not used for the longest time."""
        full_ms = 1000 * self.burst / self.rate
        for name, (_, since) in list(self._held.items()):
            if now_ms - since < full_ms and len(self._held) <= NAMES_MAX:
                return
            del self._held[name]

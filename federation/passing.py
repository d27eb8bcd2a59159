"""Signs of life on their way to one peer: the newest of each, dropped where there is no room (PROTOCOL.md 5.14)."""

import asyncio
from collections import Counter

from federation import wire
from federation.ports import Channel

WAITING_MAX = 4096
EVERY_S = 0.2  # what changes meanwhile leaves as one

Key = tuple[bytes, str, bool]


def key(sign: wire.Ephemeral) -> Key:
    """What a newer one replaces: typing and presence each of their own."""
    return sign.conversation, sign.sender, sign.kind in ("typing", "idle")


class Passing:
    """Lives as long as its link; what did not leave by then is of no use to anybody."""

    def __init__(self, channel: Channel, refused: Counter[str]) -> None:
        self._channel, self._refused = channel, refused
        self._waiting: dict[Key, wire.Ephemeral] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, sign: wire.Ephemeral) -> None:
        if len(self._waiting) >= WAITING_MAX and key(sign) not in self._waiting:
            self._refused["signs of life"] += 1
            return
        self._waiting[key(sign)] = sign
        self._wake.set()

    async def run(self) -> None:
        """One frame at a time: events and pings go between them."""
        while True:
            await self._wake.wait()
            first = list(self._waiting)[: wire.EPHEMERALS_MAX]
            await self._channel.send(wire.encode(wire.Ephemerals(tuple(self._waiting.pop(k) for k in first))))
            if not self._waiting:
                self._wake.clear()
                await asyncio.sleep(EVERY_S)

"""Calling an address: QUIC first, and its TCP port where UDP does not get through (PROTOCOL.md 5.10)."""

import asyncio
from collections.abc import Awaitable, Callable

from federation.ports import Channel, ChannelClosed

HEAD_START_S = 2.0  # what QUIC has before TCP is tried too
GRACE_S = 0.5  # what QUIC has beyond TCP where both began at once: over TCP a link costs more
REMEMBERED_MAX = 1024  # addresses that last answered over TCP only

Quic = Callable[[str, float], Awaitable[Channel]]
Tcp = Callable[[str, float, str], Awaitable[Channel]]


class Caller:
    """Remembers which addresses answered over TCP only, and calls those both ways at once."""

    def __init__(self, quic: Quic, tcp: Tcp) -> None:
        """`quic(address, timeout)` and `tcp(address, timeout, why)` raise `ChannelClosed` or `OSError`."""
        self._quic, self._tcp = quic, tcp
        self._by_tcp: dict[str, None] = {}  # a set in order

    def __len__(self) -> int:
        """Addresses that it remembers."""
        return len(self._by_tcp)

    async def dial(self, address: str, timeout: float) -> Channel:
        """A channel, with `timeout` seconds for each way; else `ChannelClosed` says what became of both."""
        known = address in self._by_tcp
        quic = asyncio.ensure_future(self._quic(address, timeout))
        tries, chosen = [quic], None
        try:
            if not known:
                await asyncio.wait(tries, timeout=HEAD_START_S)
            if not _open(quic):
                why = "the last call had no answer over QUIC" if known else f"no answer over QUIC in {HEAD_START_S:g} s"
                tcp = asyncio.ensure_future(
                    self._tcp(address, timeout, f"QUIC: {_error(quic)}" if quic.done() else why)
                )
                tries.append(tcp)
                while not any(map(_open, tries)) and (waiting := [t for t in tries if not t.done()]):
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if known and not quic.done():
                    await asyncio.wait([quic], timeout=GRACE_S)
            chosen = next(filter(_open, tries), None)
        finally:
            rest = [t for t in tries if t is not chosen]
            for attempt in rest:
                attempt.cancel()
            for late in await asyncio.gather(*rest, return_exceptions=True):
                if not isinstance(late, BaseException):
                    await late.close("not needed")
        if chosen is None:
            raise ChannelClosed("; ".join(f"{way}: {_error(t)}" for way, t in zip(("QUIC", "TCP"), tries, strict=True)))
        self._by_tcp.pop(address, None)
        if chosen is not quic:
            self._by_tcp[address] = None
            if len(self._by_tcp) > REMEMBERED_MAX:
                del self._by_tcp[next(iter(self._by_tcp))]
        return chosen.result()


def _open(attempt: "asyncio.Future[Channel]") -> bool:
    return attempt.done() and not attempt.cancelled() and attempt.exception() is None


def _error(attempt: "asyncio.Future[Channel]") -> str:
    """Why an attempt failed, for people; anything but a refusal is a bug and goes on."""
    try:
        attempt.result()
    except (ChannelClosed, OSError) as error:
        return str(error) or type(error).__name__
    return ""

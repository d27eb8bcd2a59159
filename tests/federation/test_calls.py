"""Which way a call goes: QUIC where it answers, TCP where it does not, and back again."""

import asyncio

import pytest

from federation import calls, memory
from federation.calls import Caller
from federation.ports import Channel, ChannelClosed

AT = "b.test:7701"
WAIT_S = 5.0


class Ways:
    """`quic` and `tcp`: whether each answers ("yes"), refuses ("no") or is silent ("")."""

    def __init__(self, quic: str, tcp: str) -> None:
        self.quic, self.tcp = quic, tcp
        self.calls: list[str] = []
        self.given: list[memory.MemoryChannel] = []
        self.whys: list[str] = []
        self.both = asyncio.Event()
        self.caller = Caller(self._quic, self._tcp)

    async def _way(self, name: str) -> Channel:
        self.calls.append(name)
        if len(self.calls) == 2:
            self.both.set()
        how = getattr(self, name)
        if how == "bug":
            raise ZeroDivisionError
        if how == "no":
            raise ChannelClosed(f"{name} refused")
        if not how:
            await asyncio.Event().wait()
        channel, _ = memory.pair()
        channel.remote = name
        self.given.append(channel)
        return channel

    async def _quic(self, address: str, timeout: float) -> Channel:
        return await self._way("quic")

    async def _tcp(self, address: str, timeout: float, why: str) -> Channel:
        self.whys.append(why)
        return await self._way("tcp")

    async def dial(self) -> str:
        async with asyncio.timeout(WAIT_S):
            return (await self.caller.dial(AT, 8.0)).remote


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "HEAD_START_S", 0.05)
    monkeypatch.setattr(calls, "GRACE_S", 0.05)


async def test_where_quic_answers_nothing_else_is_called() -> None:
    ways = Ways("yes", "yes")
    assert await ways.dial() == "quic"
    assert ways.calls == ["quic"]


async def test_tcp_waits_its_turn_and_then_says_why_it_was_called() -> None:
    ways = Ways("", "yes")
    assert await ways.dial() == "tcp"
    assert ways.whys == ["no answer over QUIC in 0.05 s"]


async def test_a_refusal_over_quic_is_not_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "HEAD_START_S", 2 * WAIT_S)
    ways = Ways("no", "yes")
    assert await ways.dial() == "tcp"
    assert ways.whys == ["QUIC: quic refused"]


async def test_the_next_call_goes_both_ways_at_once_and_comes_back_to_quic(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways("", "yes")
    assert await ways.dial() == "tcp"
    monkeypatch.setattr(calls, "HEAD_START_S", 2 * WAIT_S)
    assert await ways.dial() == "tcp"  # at once: the head start would be longer than this test waits
    assert ways.whys[-1] == "the last call had no answer over QUIC"
    ways.quic = "yes"
    assert await ways.dial() == "quic"
    assert ways.calls.count("quic") == 3
    del ways.calls[:]
    assert await ways.dial() == "quic"
    assert ways.calls == ["quic"]  # TCP is forgotten


async def test_what_is_not_chosen_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Ways("", "yes")
    await ways.dial()
    ways.quic = "yes"
    assert await ways.dial() == "quic"
    spare = [c for c in ways.given[1:] if c.remote == "tcp"]
    for channel in spare:
        with pytest.raises(ChannelClosed):
            await channel.send(b"x")


async def test_nobody_answers_and_both_ways_are_named() -> None:
    with pytest.raises(ChannelClosed, match=r"QUIC: quic refused; TCP: tcp refused"):
        await Ways("no", "no").dial()


async def test_a_bug_is_not_told_as_a_refusal() -> None:
    with pytest.raises(ZeroDivisionError):
        await Ways("bug", "no").dial()


async def test_giving_up_leaves_nothing_behind() -> None:
    ways = Ways("", "")
    call = asyncio.ensure_future(ways.dial())
    await ways.both.wait()
    before = asyncio.all_tasks()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(asyncio.all_tasks()) == len(before) - 3


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "REMEMBERED_MAX", 2)
    ways = Ways("no", "yes")
    for number in range(4):
        await ways.caller.dial(f"b{number}.test:1", 8.0)
    assert len(ways.caller._by_tcp) == 2

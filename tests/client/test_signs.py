"""Typing and presence at the SDK: told again while they last, forgotten in time, on a clock of the test's own."""

import asyncio
from typing import Any

import pytest

from federation.memory import MemoryChannel, pair
from node import api, coding
from node.client import Change, Presence, Typing, Wire
from node.client.hub import Hub, Screen
from node.client.session import PING_S, Session
from node.client.signs import ACTIVE_S, AGAIN_S, STILL_THERE_S, TYPING_S_MAX, Signs
from tests.client.conftest import Open
from tests.client.fakenode import BOB, CONVERSATION, FakeNode, message
from tests.sim.loop import jump, run


class Line:
    """Signs over a session, of which the far end is the test's; `said` is what reached it, and when."""

    def __init__(self) -> None:
        self.hub = Hub(0)
        self.signs = Signs(self.hub)
        ours, self.far = pair()
        self.session = Session(Wire(ours, api.Welcome(1, "a.test", b"", bytes(32), bytes(64))), on_sign=self.signs.take)
        self.said: list[tuple[float, Any]] = []
        self.tasks = [asyncio.ensure_future(self.session.run()), asyncio.ensure_future(self._take(self.far))]
        self.signs.up(self.session)

    async def _take(self, far: MemoryChannel) -> None:
        while frames := await far.recv():
            for raw in frames:
                frame: Any = coding.MSGPACK.from_client(raw)
                if not isinstance(frame, api.Ping):
                    self.said.append((asyncio.get_running_loop().time(), frame))
                await far.send(coding.MSGPACK.encode(api.Reply(frame.id, api.Done())))

    def typed(self) -> list[tuple[float, bool]]:
        return [(at, frame.on) for at, frame in self.said if isinstance(frame, api.Typing)]

    async def close(self) -> None:
        self.signs.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def sign(kind: Any, holds: int = 6000, who: str = BOB) -> api.Ephemeral:
    return api.Ephemeral(CONVERSATION, who, kind, holds)


async def next_of(screen: Screen) -> Change:
    async with asyncio.timeout(3600):
        return await anext(screen)


def test_typing_is_said_again_until_half_a_minute_after_the_last_call() -> None:
    async def work() -> None:
        line = Line()
        line.signs.types("c", True)
        await jump(3)
        line.signs.types("c", True)
        await jump(10 * TYPING_S_MAX)
        times = [at for at, on in line.typed() if on]
        assert times == [3 + AGAIN_S * n for n in range(1, len(times) + 1)]
        assert times[-1] <= 3 + TYPING_S_MAX < times[-1] + AGAIN_S
        await line.close()

    run(work())


def test_what_is_sent_is_not_typed_any_more() -> None:
    async def work() -> None:
        line = Line()
        line.signs.sent("c")
        line.signs.types("c", True)
        await jump(AGAIN_S + 1)
        line.signs.sent("c")
        await jump(TYPING_S_MAX)
        assert line.typed() == [(AGAIN_S, True), (AGAIN_S + 1, False)]
        await line.close()

    run(work())


def test_what_others_say_is_forgotten_in_time() -> None:
    async def work() -> None:
        loop, line = asyncio.get_running_loop(), Line()
        screen = Screen(line.hub)
        for frame in (sign("typing"), sign("online", 600_000)):
            line.signs.take(frame)
        assert await next_of(screen) == Change("typing", sign=Typing(CONVERSATION, BOB, True))
        assert await next_of(screen) == Change("presence", sign=Presence(CONVERSATION, BOB, "online"))
        await jump(4)
        line.signs.take(sign("typing"))  # nothing new, and it holds longer
        assert await next_of(screen) == Change("typing", sign=Typing(CONVERSATION, BOB, False))
        assert loop.time() == pytest.approx(10)
        assert line.signs.presences == {BOB: "online"}
        assert await next_of(screen) == Change("presence", sign=Presence(CONVERSATION, BOB, "offline"))
        assert loop.time() == pytest.approx(600)
        assert line.signs.presences == {}
        await line.close()

    run(work())


def test_without_a_connection_nobody_is_known_to_be_there() -> None:
    async def work() -> None:
        line = Line()
        screen = Screen(line.hub)
        for number in range(3):
            line.signs.take(sign("away", 600_000, f"u{number}@b.test"))
        line.signs.down()
        changes = [await next_of(screen) for _ in range(3)]
        assert [change.sign.state for change in changes if isinstance(change.sign, Presence)] == ["offline"] * 3
        assert line.signs.presences == {}
        await line.close()

    run(work())


def test_presence_is_said_when_it_is_news_and_on_each_connection() -> None:
    async def work() -> None:
        line = Line()
        assert line.signs.present("online")
        assert not line.signs.present("online")
        assert line.signs.present("away")
        await jump(STILL_THERE_S)
        assert line.signs.present("away"), "it would be forgotten"
        assert line.signs.present("online")
        line.signs.down()
        assert not line.signs.present("away")
        line.signs.present("online")
        line.signs.up(line.session)
        await jump(ACTIVE_S + PING_S)
        line.signs.up(line.session)
        await jump(1)
        assert [frame.state for _, frame in line.said] == ["online", "away"], "of long ago nothing is claimed"
        await line.close()

    run(work())


async def test_a_client_says_and_hears_signs_of_life(open_client: Open, node: FakeNode) -> None:
    client = await open_client()
    await client.presence("online")
    await client.typing(CONVERSATION)
    await client.typing(CONVERSATION, False)
    asked = [request for request in node.requests if not isinstance(request, api.Ping)]
    assert [type(request) for request in asked] == [api.SetPresence, api.Typing, api.Typing]
    every, some = client.events(), client.events(("typing", "presence"))
    for frame in (sign("typing"), sign("online", 60_000)):
        await node.channels[0].send(coding.MSGPACK.encode(frame))
    await node.push(message(1, "hello"))
    assert {(await anext(some)).kind for _ in range(2)} == {"typing", "presence"}
    change = await anext(every)
    assert change.message is not None, "who did not ask for them by name does not get them"
    assert client.presences == {BOB: "online"}


async def test_typing_where_one_is_not_is_refused(open_client: Open, node: FakeNode) -> None:
    node.answer = lambda request: api.ApiError("not_found", "no such conversation")
    client = await open_client()
    with pytest.raises(api.ApiError) as refused:
        await client.typing("nowhere")
    assert refused.value.code == "not_found"


async def test_block_unblock_and_the_list(open_client: Open, node: FakeNode) -> None:
    blocks = api.Blocks((api.BlockState(BOB, 5),))
    node.answer = lambda request: blocks if isinstance(request, api.GetBlocks) else api.Done()
    client = await open_client()
    await client.block(BOB)
    await client.unblock("b.test")
    assert await client.blocked() == [api.BlockState(BOB, 5)]
    assert [(type(r), getattr(r, "who", "")) for r in node.requests if not isinstance(r, api.Ping)] == [
        (api.Block, BOB), (api.Unblock, "b.test"), (api.GetBlocks, ""),
    ]  # fmt: skip

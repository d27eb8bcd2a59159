"""Requests and replies: ids, the bounded window, and what is unknown after a lost connection."""

import asyncio

import pytest

from federation.memory import pair
from node import api, coding
from node.client import Lost, Wire
from node.client.session import Session


class Line:
    """A session and the node's bare end of its channel."""

    def __init__(self) -> None:
        ours, self.far = pair()
        self.session = Session(Wire(ours, api.Welcome(1, "a.test", b"", bytes(32), bytes(64))))
        self.task = asyncio.create_task(self.session.run())

    async def take(self, count: int) -> list[api.FromClient]:
        """Exactly so many frames."""
        frames: list[api.FromClient] = []
        while len(frames) < count:
            frames += [coding.MSGPACK.from_client(raw) for raw in await self.far.recv()]
        assert len(frames) == count
        return frames

    async def reply(self, *frames: api.FromNode) -> None:
        await self.far.send(*(coding.MSGPACK.encode(frame) for frame in frames))

    async def end(self) -> None:
        self.far.cut()
        await asyncio.gather(self.task, return_exceptions=True)


def _send(body: bytes = b"x") -> api.Send:
    return api.Send(id=1, key="k", to="bob@b.test", body=body)


async def test_replies_find_their_requests_in_any_order() -> None:
    line = Line()
    asked = [asyncio.create_task(line.session.request(api.GetState(id=1, event=e))) for e in ("e1", "e2")]
    first, second = await line.take(2)
    assert isinstance(first, api.GetState)
    assert isinstance(second, api.GetState)
    await line.reply(api.Error("not_found", "no such thing", second.id), api.Reply(first.id, api.States("e1", ())))
    assert await asked[0] == api.States("e1", ())
    with pytest.raises(api.ApiError, match="no such thing"):
        await asked[1]
    await line.end()


@pytest.mark.parametrize(
    "request_",
    [
        api.GetState(id=1, event="e" * 200),
        api.RenameDevice(id=1, device="d", name="n" * 200),
        api.GetHistory(id=1, conversation="c", limit=1 << 60),
        api.Login(1, "alice", "p" * 2000, "d", bytes(32), bytes(64)),
        api.GetWhy(id=1, event="\udcff"),
    ],
    ids=lambda request: type(request).__name__,
)
async def test_values_out_of_bounds_are_refused_here(request_: api.AnyRequest) -> None:
    line = Line()
    with pytest.raises(api.ApiError) as refused:
        await line.session.request(request_)
    assert refused.value.code == "bad_request"
    asked = asyncio.create_task(line.session.request(api.Ping(id=1)))
    (ping,) = await line.take(1)  # nothing else went out
    assert isinstance(ping, api.Ping)
    await line.reply(api.Reply(ping.id, api.Done()))
    assert await asked == api.Done()
    await line.end()


async def test_the_window_is_256_requests() -> None:
    line = Line()
    asked = [asyncio.create_task(line.session.request(_send())) for _ in range(300)]
    frames = await line.take(api.REQUESTS_IN_FLIGHT_MAX)
    await line.reply(*(api.Reply(f.id, api.Done()) for f in frames if isinstance(f, api.Send)))
    more = await line.take(300 - api.REQUESTS_IN_FLIGHT_MAX)
    await line.reply(*(api.Reply(f.id, api.Done()) for f in more if isinstance(f, api.Send)))
    await asyncio.gather(*asked)
    await line.end()


async def test_the_window_is_one_mebibyte() -> None:
    line = Line()
    asked = [asyncio.create_task(line.session.request(_send(bytes(api.BODY_BYTES_MAX)))) for _ in range(20)]
    first = await line.take(15)  # 16 bodies and their headers are over 1 MiB
    await line.reply(*(api.Reply(f.id, api.Done()) for f in first if isinstance(f, api.Send)))
    rest = await line.take(5)
    await line.reply(*(api.Reply(f.id, api.Done()) for f in rest if isinstance(f, api.Send)))
    await asyncio.gather(*asked)
    await line.end()


async def test_a_lost_connection_leaves_every_outcome_unknown() -> None:
    line = Line()
    asked = [asyncio.create_task(line.session.request(_send())) for _ in range(300)]
    await line.take(api.REQUESTS_IN_FLIGHT_MAX)
    line.far.cut("the cable was pulled")
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(answer) for answer in answers} == {Lost}
    with pytest.raises(Lost, match="the cable was pulled"):
        await line.task
    with pytest.raises(Lost):
        await line.session.request(api.Ping(id=1))


async def test_an_unknown_code_may_be_retried() -> None:
    line = Line()
    asked = asyncio.create_task(line.session.request(api.Ping(id=1)))
    (ping,) = await line.take(1)
    assert isinstance(ping, api.Ping)
    await line.reply(api.Error("of_a_newer_node", "later", ping.id))
    with pytest.raises(api.ApiError) as caught:
        await asked
    assert caught.value.retry
    await line.end()


async def test_acknowledgements_in_a_row_are_one_frame() -> None:
    line = Line()
    for position in range(1, 50):
        line.session.ack(position)
    assert await line.take(1) == [api.Ack(49)]
    await line.end()

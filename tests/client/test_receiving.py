"""The feed: acknowledged only when processed, resumed where it stopped, never twice."""

import asyncio

import msgspec
import pytest

from node import api
from node.client import Change, Client, Device
from tests.client.conftest import Open
from tests.client.fakenode import ALICE, BOB, CONVERSATION, OTHER_LOG, TOKEN, FakeNode, message, watermark

WAIT_S = 5.0


async def _next(events: object) -> Change:
    async with asyncio.timeout(WAIT_S):
        return await anext(events)  # type: ignore[call-overload,no-any-return]


async def _texts(events: object, count: int) -> list[str]:
    return [change.message.text for _ in range(count) if (change := await _next(events)).message]


async def test_a_message_is_acknowledged_once_the_next_is_asked_for(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    events = client.events(("message",))
    await node.push(message(1))
    assert (await _next(events)).message.text == "m1"  # type: ignore[union-attr]
    node.answer = lambda request: api.ApiError("not_found", "no")
    with pytest.raises(api.ApiError):  # a round trip, after which an acknowledgement would have been seen
        await client.state("x")
    assert node.acks == []
    asking = asyncio.create_task(_next(events))
    await node.until(lambda: node.acks == [1])
    await node.push(message(2))
    await asking


async def test_what_was_not_processed_comes_again(node: FakeNode, open_client: Open) -> None:
    await node.push(*(message(i) for i in range(1, 6)))
    client = await open_client()
    assert await _texts(client.events(), 3) == ["m1", "m2", "m3"]
    await client.close()
    assert max(node.acks) == 2  # the third was given, and nobody asked past it
    again = await open_client()
    assert await _texts(again.events(), 3) == ["m3", "m4", "m5"]
    await node.until(lambda: len(node.auths) == 2)
    assert node.auths[1].resume == api.Cursor("store-1", 2)


async def test_a_timeout_around_anext_loses_nothing(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    events = client.events()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(events), 0.001)
    await node.push(message(1))
    assert await _texts(events, 1) == ["m1"]


async def test_all_of_a_big_backlog_comes_in_order(node: FakeNode, open_client: Open) -> None:
    await node.push(*(message(i) for i in range(1, 3001)))
    client = await open_client()
    assert await _texts(client.events(), 3000) == [f"m{i}" for i in range(1, 3001)]


async def test_from_start_gives_everything_then_news(node: FakeNode, open_client: Open) -> None:
    await node.push(*(message(i) for i in range(1, 4)))
    client = await open_client()
    await _texts(client.events(), 3)
    events = client.events(("message",), True)
    assert await _texts(events, 3) == ["m1", "m2", "m3"]
    await node.push(message(4))
    assert await _texts(events, 1) == ["m4"]


async def test_own_messages_come_only_from_other_devices(node: FakeNode, open_client: Open) -> None:
    await node.push(
        message(1, "from this device", ALICE, "dev-1", "log-a"),
        message(2, "from my phone", ALICE, "dev-2", "log-a"),
        message(1, "from bob"),
    )
    client = await open_client()
    events = client.events(("message",))
    assert await _texts(events, 2) == ["from my phone", "from bob"]
    assert [m.mine for m in await client.messages(CONVERSATION)] == [True, False, True]


async def test_states_are_yielded_with_their_message(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    events = client.events(("state",))
    key = (await client.send(BOB, "x")).key
    assert (await _next(events)).message.state == "accepted"  # type: ignore[union-attr]
    await node.push(watermark(sent=1))
    change = await _next(events)
    assert change.message is not None
    assert (change.kind, change.message.key, change.message.state) == ("state", key, "sent")


async def test_a_request_of_a_stranger_is_yielded(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    await node.push(message(1), api.ConversationState(CONVERSATION, BOB, "request"))
    change = await _next(client.events(("request",)))
    assert change.conversation is not None
    assert (change.conversation.id, change.conversation.title, change.conversation.request) == (CONVERSATION, BOB, True)


async def test_another_store_starts_from_the_beginning_without_repeats(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    events = client.events(("message",))
    await node.push(message(1), message(2))
    assert await _texts(events, 2) == ["m1", "m2"]
    node.store = "store-2"
    node.mailbox.insert(0, message(0, "only in the restored store", log="log-c"))
    node.mailbox[:] = [msgspec.structs.replace(item, position=i) for i, item in enumerate(node.mailbox, 1)]
    node.cut()
    assert await _texts(events, 1) == ["only in the restored store"]
    await node.push(message(3))
    assert await _texts(events, 1) == ["m3"]
    assert node.auths[-1].resume == api.Cursor("store-2", 0)
    assert [m.text for m in await client.messages(CONVERSATION)] == ["only in the restored store", "m1", "m2", "m3"]


async def test_a_cut_connection_resumes_at_what_was_processed(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    events = client.events(("message",))
    await node.push(message(1), message(2), message(3))
    assert await _texts(events, 2) == ["m1", "m2"]
    node.cut()
    await node.until(lambda: len(node.auths) == 2)
    assert node.auths[1].resume == api.Cursor("store-1", 1)
    await node.until(lambda: len(node.channels) == 1)
    await node.push(message(4))
    assert await _texts(events, 2) == ["m3", "m4"]


async def test_without_a_reader_the_feed_never_stalls_and_keeps_everything(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    await node.push(*(message(i) for i in range(1, 301)))
    await node.until(lambda: 300 in node.acks)  # stored here and opened; the node's window must not close
    await client.close()
    again = await open_client()
    assert await _texts(again.events(), 300) == [f"m{i}" for i in range(1, 301)]


async def test_a_screen_acknowledges_what_is_stored(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    screen = client.changes()
    await node.push(message(1))
    await node.until(lambda: node.acks == [1])
    seen = {}
    while "conversation" not in seen:
        change = await _next(screen)
        seen[change.kind] = change
    conversation = seen["conversation"].conversation
    assert conversation is not None
    assert (conversation.unread, conversation.last_text, conversation.title) == (1, "m1", BOB)


async def test_a_slow_screen_sees_only_the_newest(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    screen = client.changes()
    key = (await client.send(BOB, "x")).key
    await client.wait(key, "accepted", WAIT_S)
    await node.push(watermark(sent=1), watermark(sent=1, delivered=1), watermark(1, 1, 1))
    await client.wait(key, "read", WAIT_S)
    states = []
    while not states:
        change = await _next(screen)
        if change.message is not None:
            states.append((change.kind, change.message.state))
    assert states == [("message", "read")]


async def test_read_is_told_only_when_asked_for_and_survives_being_offline(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    screen = client.changes()
    await node.push(message(1), message(2))
    await node.until(lambda: 2 in node.acks)
    assert not [r for r in node.requests if isinstance(r, api.Read)]
    node.down = True
    node.cut()
    await client.read(CONVERSATION)
    assert [c.unread for c in await client.conversations()] == [0]
    node.down = False
    await node.until(lambda: any(isinstance(r, api.Read) for r in node.requests))
    (read,) = [r for r in node.requests if isinstance(r, api.Read)]
    assert (read.conversation, read.marks) == (CONVERSATION, (api.Mark("origin-b", OTHER_LOG, 2),))
    await screen.aclose()


async def test_a_revoked_token_ends_the_client(node: FakeNode, open_client: Open) -> None:
    client = await open_client(token="revoked")
    with pytest.raises(api.ApiError) as caught:
        await anext(client.events())
    assert caught.value.code == "bad_token"


async def test_history_is_paged_oldest_first(node: FakeNode, open_client: Open) -> None:
    def answer(request: api.AnyRequest) -> api.AnyResult:
        assert isinstance(request, api.GetHistory)
        end = int(request.before.rpartition("-")[2]) if request.before else 2501
        start = max(1, end - request.limit)
        return api.History(tuple(message(i) for i in range(start, end)), start > 1)

    node.answer = answer
    client = await open_client(None)
    assert [m.text for m in await client.history(BOB, 2200)] == [f"m{i}" for i in range(301, 2501)]
    assert len(await client.history(BOB, 9999)) == 2500


async def test_memory_only_clients_work_without_a_thread(node: FakeNode) -> None:
    client = await Client.open(Device(ALICE, "dev-1"), connect=node.connect, token=TOKEN, store=None)
    await node.push(message(1))
    assert await _texts(client.events(), 1) == ["m1"]
    await client.close()
    with pytest.raises(StopAsyncIteration):
        await anext(client.events())


async def test_large_messages_that_nobody_reads_do_not_close_the_window(node: FakeNode, open_client: Open) -> None:
    """The node stops at 1 MiB that is not acknowledged, and what became of own messages comes behind it."""
    await open_client()
    await node.until(lambda: bool(node.channels))
    for n in range(1, 17):
        await node.push(message(n, "x" * api.BODY_BYTES_MAX))
    await node.until(lambda: bool(node.acks) and node.acks[-1] >= 8)

"""The outbox: nothing typed is lost, doubled or reordered, and states are true."""

import asyncio
import itertools

import msgspec
import pytest

from node import api
from node.client import Client, Conversation, Device, Lost, Unreachable
from tests.client.conftest import Open
from tests.client.fakenode import BOB, CONVERSATION, FakeNode, message, watermark

WAIT_S = 5.0


async def _accepted(client: Client, *keys: str) -> None:
    for key in keys:
        assert (await client.wait(key, "accepted", WAIT_S)).state == "accepted"


async def test_many_sends_are_pipelined_in_order(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    sent = await asyncio.gather(*(client.send(BOB, f"m{i}") for i in range(1000)))
    assert {m.state for m in sent} == {"queued"}
    await _accepted(client, *(m.key for m in sent))
    assert [s.body for s in node.sends] == [f"m{i}".encode() for i in range(1000)]
    assert [m.text for m in await client.messages(BOB, limit=1000)] == [f"m{i}" for i in range(1000)]


async def test_an_accepted_message_has_its_place(node: FakeNode, open_client: Open) -> None:
    client = await open_client(None)
    key = (await client.send(BOB, "hello", key="my-key", reply_to="event-0")).key
    done = await client.wait(key, "accepted", WAIT_S)
    assert (done.key, done.id, done.conversation, done.seq, done.stamp) == ("my-key", "event-1", CONVERSATION, 1, 1001)
    assert node.sends[0].target == "event-0"
    assert [c.title for c in await client.conversations()] == [BOB]


async def test_the_outbox_survives_a_restart_and_keeps_keys(node: FakeNode, open_client: Open) -> None:
    node.down = True
    client = await open_client()
    keys = [(await client.send(BOB, f"m{i}")).key for i in range(600)]
    await client.close()
    node.down = False
    again = await open_client()
    await _accepted(again, *keys)
    assert [s.key for s in node.sends] == keys
    assert [s.body for s in node.sends] == [f"m{i}".encode() for i in range(600)]


async def test_a_first_message_that_waits_is_a_conversation(node: FakeNode, open_client: Open) -> None:
    node.down = True
    client = await open_client()
    await client.send(BOB, "one")
    last = await client.send(BOB, "two")
    for restart in (False, True):
        if restart:
            await client.close()
            client = await open_client()
        assert await client.conversations() == [Conversation(BOB, BOB, last_text="two", last_stamp=last.stamp)]
        assert [m.text for m in await client.messages(BOB)] == ["one", "two"]


async def test_a_waiting_conversation_becomes_the_real_one(node: FakeNode, open_client: Open) -> None:
    node.down = True
    client = await open_client(None)
    for key in ("first", "second"):
        await client.send(BOB, key, key=key)
    screen = client.changes()
    node.refuse = lambda send: api.ApiError("mailbox_full", "later", 60_000) if send.key == "second" else None
    node.down = False
    while (change := await anext(screen)).kind != "conversation":
        pass
    (found,) = await client.conversations()
    assert change.conversation == found
    assert (found.id, found.title, found.last_text) == (CONVERSATION, BOB, "second")
    assert {m.conversation for m in await client.messages(BOB)} == {CONVERSATION}


async def test_a_refused_first_message_stays_where_it_was_written(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    node.refuse = lambda send: api.ApiError("unknown_user", "b.test has no such user")
    await client.send(BOB, "x", key="k")
    await client.wait("k", "accepted", WAIT_S)
    assert [(c.id, c.last_text) for c in await client.conversations()] == [(BOB, "x")]


async def test_writing_to_somebody_declined_shows_them_again(node: FakeNode, open_client: Open) -> None:
    await node.push(message(1), api.ConversationState(CONVERSATION, BOB, "declined"))
    client = await open_client()
    events = client.events(("message",))
    await anext(events)
    assert await client.conversations() == []
    node.mute = True
    await client.send(BOB, "changed my mind")
    assert [(c.id, c.last_text) for c in await client.conversations()] == [(CONVERSATION, "changed my mind")]
    await events.aclose()


async def test_who_writes_first_meanwhile_is_not_listed_twice(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    node.mute = True
    await client.send(BOB, "mine")
    await node.push(message(1, "theirs"))
    await node.until(lambda: len(node.sends) == 1)
    events = client.events(("message",))
    await anext(events)
    assert [(c.id, c.title, c.unread) for c in await client.conversations()] == [(CONVERSATION, BOB, 1)]
    assert {m.text for m in await client.messages(CONVERSATION)} == {"mine", "theirs"}
    await events.aclose()


async def test_history_ends_with_what_the_node_does_not_have(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    own = msgspec.structs.replace(message(2, "mine", "alice@a.test", "dev-1"), event="event-1")

    def answer(request: api.AnyRequest) -> api.AnyResult:
        return api.History((message(1, "theirs"), own) if len(node.requests) > 1 else ())

    node.answer = answer
    node.mute = True
    for text in ("mine", "more"):
        await client.send(BOB, text, key=f"key of {text}")
    await node.until(lambda: len(node.sends) == 2)
    assert [(m.id, m.state) for m in await client.history(BOB)] == [(None, "queued")] * 2
    # The node took the first one and its reply is still under way: it is not shown twice.
    found = await client.history(BOB)
    assert [(m.text, m.key) for m in found[1:]] == [("mine", "key of mine"), ("more", "key of more")]
    assert [m.key for m in await client.history(BOB, 1)] == ["key of more"]


async def test_a_lost_reply_is_asked_for_again_with_the_same_key(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    node.mute = True
    keys = [(await client.send(BOB, f"m{i}")).key for i in range(3)]
    await node.until(lambda: len(node.sends) == 3)
    node.mute = False
    node.cut()
    await _accepted(client, *keys)
    assert [s.key for s in node.sends] == keys * 2
    assert len(node.events) == 3
    assert [m.id for m in await client.messages(BOB)] == ["event-1", "event-2", "event-3"]


async def test_our_message_in_the_feed_before_its_reply_is_one_message(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    screen = client.changes()
    node.mute = True
    key = (await client.send(BOB, "m1")).key
    await node.until(lambda: len(node.sends) == 1)
    own = message(1, "m1", "alice@a.test", "dev-1", "log-a")
    await node.push(msgspec.structs.replace(own, event="event-1"), message(1, "theirs"))
    await node.until(lambda: 2 in node.acks)
    node.mute = False
    node.cut()
    await _accepted(client, key)
    assert [(m.key, m.id) for m in await client.messages(CONVERSATION) if m.mine] == [(key, "event-1")]
    seen: set[str] = set()
    while "theirs" not in seen:
        change = await anext(screen)
        if change.message is not None:
            assert not change.message.mine or change.message.key == key
            seen.add(change.message.text)


async def test_a_typed_refusal_fails_with_its_reason(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    node.refuse = lambda send: api.ApiError("unknown_user", "b.test has no such user") if send.key == "bad" else None
    await client.send("nobody@b.test", "x", key="bad")
    await client.send(BOB, "y", key="good")
    failed = await client.wait("bad", "read", WAIT_S)
    assert (failed.state, failed.reason) == ("failed", "b.test has no such user")
    await _accepted(client, "good")


async def test_a_failed_message_can_be_retried(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    node.refuse = lambda send: api.ApiError("declined", "not now")
    await client.send(BOB, "x", key="k")
    assert (await client.wait("k", "accepted", WAIT_S)).state == "failed"
    node.refuse = lambda send: None
    assert (await client.retry("k")).state == "queued"
    await _accepted(client, "k")
    assert [s.key for s in node.sends] == ["k", "k"]


async def test_a_temporary_refusal_is_retried_and_order_kept(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    left = [7]  # the first flight, and two probes

    def refuse(send: api.Send) -> api.ApiError | None:
        if send.to != BOB or left[0] == 0:
            return None
        left[0] -= 1
        return api.ApiError("mailbox_full", "later", 1)

    node.refuse = refuse
    keys = [(await client.send(BOB, f"m{i}")).key for i in range(5)]
    other = (await client.send("carol@b.test", "not held up")).key
    await _accepted(client, *keys, other)
    assert [key for key in node.events if key != other] == keys


async def test_waiting_for_what_is_refused_for_now_says_why(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    node.refuse = lambda send: api.ApiError("storage_full", "the node's disk is full", 3_600_000)
    await client.send(BOB, "refused", key="first")
    refusal: api.ApiError | None = None
    async with asyncio.timeout(WAIT_S):
        while refusal is None:
            try:
                await client.wait("first", "accepted", 0.01)
            except TimeoutError:
                continue  # the answer is still on its way
            except api.ApiError as error:
                refusal = error
    assert (refusal.code, refusal.message) == ("storage_full", "the node's disk is full")
    await client.send(BOB, "held back", key="second")
    with pytest.raises(api.ApiError, match="disk is full"):
        await client.wait("second", "accepted", 0.01)
    await client.send("carol@b.test", "another conversation", key="third")
    await node.until(lambda: len(node.sends) == 2)
    assert [m.state for m in await client.messages(BOB)] == ["queued", "queued"]


async def test_what_the_node_would_take_for_a_broken_frame_never_enters_the_outbox(
    node: FakeNode, open_client: Open
) -> None:
    client = await open_client()
    with pytest.raises(api.ApiError, match="target: Expected `str` of length <= "):
        await client.send(BOB, "x", reply_to="e" * 200)
    with pytest.raises(api.ApiError, match="to: Expected `str` of length <= "):
        await client.send("c" * 1000, "x")
    with pytest.raises(api.ApiError, match="format: Expected `str` of length <= 32"):
        await client.send_body(BOB, b"x", format="f" * 33)
    with pytest.raises(api.ApiError, match="not Unicode"):
        await client.send(BOB, "x", reply_to="\udcff")
    assert await client.messages(BOB) == []
    await _accepted(client, (await client.send(BOB, "good")).key)
    assert node.dialled == 1


async def test_a_key_stands_for_one_message(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    await client.send(BOB, "x", key="k")
    await _accepted(client, "k")
    assert (await client.send(BOB, "x", key="k")).id == "event-1"
    with pytest.raises(api.ApiError) as caught:
        await client.send(BOB, "another", key="k")
    assert caught.value.code == "conflict"
    assert len(node.sends) == 1


async def test_a_key_may_be_the_id_of_a_message_that_came(node: FakeNode, open_client: Open) -> None:
    """A program that answers each message once takes its id for the answer's key."""
    client = await open_client()
    events = client.events(("message",))
    await node.push(message(1))
    change = await asyncio.wait_for(anext(events), WAIT_S)
    assert change.message is not None
    id = change.message.id or ""
    await client.send(BOB, "the answer", key=id)
    await _accepted(client, id)
    assert (await client.send(BOB, "the answer", key=id)).id == "event-1"
    assert [send.key for send in node.sends] == [id]
    texts = {m.text for m in await client.messages(CONVERSATION)}
    assert texts == {"m1", "the answer"}


async def test_only_what_never_left_can_be_withdrawn(node: FakeNode, open_client: Open) -> None:
    node.down = True
    client = await open_client()
    await client.send(BOB, "here", key="here")
    assert await client.withdraw("here")
    assert not await client.withdraw("here")
    assert await client.messages(BOB) == []
    node.down = False
    node.mute = True
    await client.send(BOB, "gone", key="gone")
    await node.until(lambda: len(node.sends) == 1)
    assert not await client.withdraw("gone")
    assert [s.key for s in node.sends] == ["gone"]


async def test_a_refused_message_can_be_withdrawn(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    node.refuse = lambda send: api.ApiError("unknown_user", "b.test has no such user")
    await client.send(BOB, "x", key="k")
    assert (await client.wait("k", "accepted", WAIT_S)).state == "failed"
    assert await client.withdraw("k")
    assert await client.conversations() == []


async def test_states_follow_watermarks(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    keys = [(await client.send(BOB, f"m{i}")).key for i in range(1, 5)]
    await _accepted(client, *keys)
    await node.push(watermark(sent=4))
    assert (await client.wait(keys[3], "sent", WAIT_S)).state == "sent"
    await node.push(watermark(sent=4, delivered=3, missing=(2,)))
    assert (await client.wait(keys[2], "delivered", WAIT_S)).state == "delivered"
    assert [m.state for m in await client.messages(BOB)] == ["delivered", "sent", "delivered", "sent"]
    await node.push(watermark(sent=4, delivered=3), watermark(sent=4, delivered=3, read=1))
    assert (await client.wait(keys[1], "delivered", WAIT_S)).state == "delivered"
    assert (await client.wait(keys[0], "read", WAIT_S)).state == "read"
    await node.push(api.Failure("event-4", CONVERSATION, BOB, "refused", "over their quota"), watermark(sent=4))
    failed = await client.wait(keys[3], "read", WAIT_S)
    assert (failed.state, failed.reason) == ("failed", "over their quota")
    await node.push(watermark(sent=4, delivered=4, read=4))
    await client.wait(keys[2], "read", WAIT_S)
    assert [m.state for m in await client.messages(BOB)] == ["read", "read", "read", "failed"]


async def test_any_number_of_missing_messages_can_be_told(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    keys = [(await client.send(BOB, f"m{i}")).key for i in range(1, 5)]
    await _accepted(client, *keys)
    gaps = (2, *range(100, 120), *[120] * 300_000)  # more than SQLite takes parameters
    await node.push(watermark(sent=4, delivered=60_000, missing=gaps))
    await client.wait(keys[3], "delivered", WAIT_S)
    late = await client.send(BOB, "m5")  # its state is made of what was told before
    await client.wait(late.key, "delivered", WAIT_S)
    await node.push(watermark(sent=4, delivered=60_000))
    assert (await client.wait(keys[1], "delivered", WAIT_S)).state == "delivered"


async def test_a_stamp_that_no_signed_stamp_can_have_breaks_the_connection_and_not_the_client(
    node: FakeNode, open_client: Open
) -> None:
    real = node.accept
    node.accept = lambda send: msgspec.structs.replace(real(send), stamp=(1 << 53) - 1)  # type: ignore[method-assign]
    client = await open_client()
    key = (await client.send(BOB, "m")).key
    await node.until(lambda: len(node.auths) > 1)
    node.accept = real  # type: ignore[method-assign]
    await _accepted(client, key)


async def test_a_watermark_before_the_reply_counts(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    screen = client.changes()
    node.mute = True
    key = (await client.send(BOB, "x")).key
    await node.until(lambda: len(node.sends) == 1)
    await node.push(watermark(sent=1, delivered=1))
    await node.until(lambda: 1 in node.acks)
    node.mute = False
    node.cut()
    assert (await client.wait(key, "delivered", WAIT_S)).state == "delivered"
    await screen.aclose()


async def test_waiting_ends_in_time(node: FakeNode, open_client: Open) -> None:
    client = await open_client()
    key = (await client.send(BOB, "x")).key
    await _accepted(client, key)
    with pytest.raises(TimeoutError):
        await client.wait(key, "read", 0.001)
    with pytest.raises(api.ApiError):
        await client.wait("never seen", "read", 0.001)


async def test_a_new_message_wakes_a_client_that_waits_to_reconnect(node: FakeNode) -> None:
    node.down = True
    client = await Client.open(
        Device("alice@a.test", "dev-1"), connect=node.connect, token="secret", store=None, jitter=lambda cap: 3600.0
    )
    await node.until(lambda: node.dialled == 1)
    screen = client.changes()
    while client.lights.me != "down":
        await anext(screen)
    node.down = False
    key = (await client.send(BOB, "x")).key
    await _accepted(client, key)
    await client.close()


async def test_how_long_the_node_is_away_is_counted_over_all_tries(
    node: FakeNode, open_client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(1)
    monkeypatch.setattr("node.client.sync._now_ms", lambda: next(clock))
    node.down = True
    client = await open_client()
    await node.until(lambda: node.dialled == 3)
    assert client.lights.me_since == 1


async def test_closing_ends_every_wait(node: FakeNode, open_client: Open) -> None:
    node.down = True
    client = await open_client()
    key = (await client.send(BOB, "x")).key
    waiting = asyncio.create_task(client.wait(key, "accepted", WAIT_S))
    reading = asyncio.create_task(anext(client.events(("message",))))
    with pytest.raises(Unreachable):
        await client.devices()
    await client.close()
    with pytest.raises(Lost):
        await waiting
    with pytest.raises(StopAsyncIteration):
        await reading

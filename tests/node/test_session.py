"""One connection: the feed's cursor, the windows, and what happens past them."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from federation import wire
from federation.dialer import Dialer
from federation.identity import origin, split_host_port
from federation.ids import to_text
from federation.ports import FRAME_BYTES_MAX, HELLO_BYTES_MAX, ChannelClosed
from federation.quic import QuicChannel
from node import api, coding
from node.api import ApiError
from node.client import channels
from node.client.errors import Unreachable
from node.config import Limits, Tls
from node.core.send import Send
from node.feed import Feed
from node.node import Node
from node.requests import HANDLERS
from node.session import Session
from node.storage import reads
from tests.node.helpers import DEVICE_KEY, WAIT_S, Client, Socket, again, config, connect, listening, stranger


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node.open(config(tmp_path)) as node:
        for name in ("alice", "ann"):
            await node.create_user(name, "pw")
        yield node


async def too_slow(client: Client) -> bool:
    """Whether the node ended the connection for that reason."""
    goodbye = await client.ended()
    return goodbye is not None and goodbye.code == "too_slow"


def bodies(client: Client) -> list[bytes]:
    return [i.body for i in client.items if isinstance(i, api.Message)]


async def test_the_feed_goes_on_where_the_device_acknowledged(node: Node) -> None:
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    await alice.send("ann@a.test", b"one")
    await ann.message(b"one")
    await ann.ask(api.Ping)  # the acknowledgement went before it
    await alice.send("ann@a.test", b"two")
    ann.acks = False
    await ann.message(b"two")
    await ann.channel.close()
    back = await again(node, ann)
    await back.message(b"two")
    assert bodies(back) == [b"two"]


async def test_resume_by_cursor_counts_as_an_acknowledgement(node: Node) -> None:
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    ann.acks = False
    sent = [await alice.send("ann@a.test", b"%d" % n) for n in range(3)]
    await ann.message(b"2")
    at = next(i.position for i in ann.items if isinstance(i, api.Message) and i.body == b"1")
    store = ann.feeds[-1].store
    await ann.channel.close()
    back = await stranger(node)
    back.token = ann.token
    ready = await back.auth(resume=api.Cursor(store, at))
    assert ready.acked == api.Cursor(store, at)
    await back.message(b"2")
    assert bodies(back) == [b"2"]
    await alice.state(sent[1].event, "delivered")


async def test_a_resume_far_ahead_is_acknowledged_page_by_page(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "FEED_ITEMS_MAX", 4)
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    ann.acks = False
    sent = [await alice.send("ann@a.test", b"%d" % n) for n in range(40)]
    box = await node.store.read(reads.mailbox, "ann")
    held, page = list[int](), Feed._page

    async def noted(feed: Feed, *args: Any) -> Any:
        held.append(feed.on_the_way)
        return await page(feed, *args)

    await ann.channel.close()
    back = await stranger(node)
    back.token = ann.token
    monkeypatch.setattr(Feed, "_page", noted)
    ready = await back.auth(resume=api.Cursor(node.store_text, box.position))
    assert ready.acked.position == box.position
    for event in (sent[0].event, sent[-1].event):
        await alice.state(event, "delivered")
    assert max(held) <= 4
    assert (await node.store.read(reads.mailbox, "ann")).items == 0


async def test_a_cursor_of_another_store_means_nothing(node: Node) -> None:
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    ann.acks = False
    await alice.send("ann@a.test", b"one")
    await ann.message(b"one")
    back = await stranger(node)
    back.token = ann.token
    ready = await back.auth(resume=api.Cursor(to_text(b"?" * 16), 1 << 40))
    assert ready.acked.position == 0
    assert ready.acked.store == ann.feeds[0].store
    await back.message(b"one")


@pytest.mark.parametrize("how", ["ack", "resume"])
async def test_a_cursor_past_the_end_hides_nothing(node: Node, how: str) -> None:
    """A client ahead of its mailbox (a bug, or a node restored from a backup) must not lose what comes."""
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    await alice.send("ann@a.test", b"one")
    await ann.message(b"one")
    if how == "ack":
        await ann.tell(api.Ack(1 << 40))
        await ann.ask(api.Ping)
        back = await again(node, ann)
    else:
        back = await again(node, ann, resume=api.Cursor(ann.feeds[0].store, 1 << 40))
    await alice.send("ann@a.test", b"two")
    await back.message(b"two")


async def test_a_message_that_was_not_opened_is_not_delivered(node: Node) -> None:
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    ann.acks = False
    bad, good = await alice.send("ann@a.test", b"bad"), await alice.send("ann@a.test", b"good")
    await ann.message(b"good")
    at = {i.body: i.position for i in ann.items if isinstance(i, api.Message)}
    await ann.tell(api.Ack(at[b"good"], (at[b"bad"],)))
    await alice.state(good.event, "delivered")
    assert (await alice.ask(api.GetState, bad.event)).to[0].state == "sent"
    more = await alice.send("ann@a.test", b"more")
    await ann.tell(api.Ack((await ann.message(b"more")).position))  # says nothing of what came before
    await alice.state(more.event, "delivered")
    assert (await alice.ask(api.GetState, bad.event)).to[0].state == "sent"


async def test_the_feed_stops_at_its_window_and_goes_on(node: Node) -> None:
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    ann.acks = False
    total = 3 * api.FEED_ITEMS_MAX
    numbers = [await alice.post(api.Send, f"k{n}", "ann@a.test", b"%d" % n) for n in range(total)]
    for number in numbers:
        await alice.answer(number)
    while len(ann.items) < api.FEED_ITEMS_MAX:
        await ann.pump()
    for _ in range(5):
        await ann.ask(api.Ping)
    assert len(ann.items) <= 2 * api.FEED_ITEMS_MAX, "pushed past the window"
    ann.acks = True
    await ann.tell(api.Ack(ann.items[-1].position))
    await ann.message(b"%d" % (total - 1))
    assert bodies(ann) == [b"%d" % n for n in range(total)]


async def test_two_devices_each_have_their_own_cursor(node: Node) -> None:
    alice, phone, laptop = await connect(node, "alice"), await connect(node, "ann"), await connect(node, "ann")
    await alice.send("ann@a.test", b"hi")
    await phone.message(b"hi")
    await laptop.message(b"hi")
    sent = await phone.send("alice@a.test", b"from the phone")
    assert (await laptop.message(b"from the phone")).event == sent.event


async def test_requests_only_pushes_nothing(node: Node) -> None:
    alice, ann = await connect(node, "alice"), await connect(node, "ann", feed=False)
    await alice.send("ann@a.test", b"hi")
    assert [m.body for m in (await ann.ask(api.GetHistory, "alice@a.test")).messages] == [b"hi"]
    assert ann.items == []


async def test_at_most_256_requests_are_taken_at_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = await connect(node, "alice")
    taken, let_go = [0], asyncio.Event()

    async def held(session: object, frame: api.Ping) -> api.Done:
        taken[0] += 1
        await let_go.wait()
        return api.Done()

    monkeypatch.setitem(HANDLERS, api.Ping, held)
    numbers = [await alice.post(api.Ping) for _ in range(api.REQUESTS_IN_FLIGHT_MAX + 50)]
    ann = await connect(node, "ann")
    while taken[0] < api.REQUESTS_IN_FLIGHT_MAX:
        await ann.ask(api.GetDevices)  # others go on meanwhile
    for _ in range(5):
        await ann.ask(api.GetDevices)
    assert taken[0] == api.REQUESTS_IN_FLIGHT_MAX
    let_go.set()
    for number in numbers:
        assert await alice.answer(number) == api.Done()
    assert taken[0] == len(numbers)


async def test_at_most_1_mib_of_requests_is_taken_at_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    submit, held = node.store.submit, list[tuple[Any, asyncio.Future[Any]]]()

    def hold(command: Any) -> asyncio.Future[Any]:
        if not isinstance(command, Send):
            return submit(command)
        held.append((command, asyncio.get_running_loop().create_future()))
        return held[-1][1]

    monkeypatch.setattr(node.store, "submit", hold)
    bodies = [bytes(api.BODY_BYTES_MAX) for _ in range(40)]
    posting = asyncio.gather(*(alice.post(api.Send, f"k{n}", "ann@a.test", body) for n, body in enumerate(bodies)))
    fit = api.REQUEST_BYTES_IN_FLIGHT_MAX // api.BODY_BYTES_MAX
    for _ in range(fit + 5):
        await ann.ask(api.GetDevices)  # others go on meanwhile
    assert len(held) == fit, "one frame may go over, no more"
    monkeypatch.undo()
    for command, future in held:
        future.set_result(await submit(command))
    for number in await posting:
        await alice.answer(number)


@pytest.mark.parametrize("then", ["takes", "leaves"])
async def test_a_client_that_takes_no_answers_is_not_read_for_ever(
    node: Node, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    taken = [0]

    async def big(session: object, frame: api.Ping) -> api.Why:
        taken[0] += 1
        return api.Why("", "x" * 4096, ())

    monkeypatch.setitem(HANDLERS, api.Ping, big)
    numbers = [await alice.post(api.Ping) for _ in range(4000)]
    before = -1
    while before != taken[0]:
        before = taken[0]
        for _ in range(20):
            await ann.ask(api.GetDevices)
    assert taken[0] <= 4 * api.REQUESTS_IN_FLIGHT_MAX
    if then == "takes":
        for number in numbers:
            await alice.answer(number)
        return
    alice.channel.cut()  # type: ignore[attr-defined]
    async with asyncio.timeout(WAIT_S):
        while "alice" in node.sessions:
            await ann.ask(api.GetDevices)


async def test_long_answers_do_not_pile_up_for_a_client_that_takes_none(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    phone = await connect(node, "alice")
    looked = [0]

    async def page(session: object, frame: api.GetHistory) -> api.Why:
        looked[0] += 1
        return api.Why("", "x" * (FRAME_BYTES_MAX - 1024), ())

    monkeypatch.setitem(HANDLERS, api.GetHistory, page)
    numbers = [await alice.post(api.GetHistory, "ann@a.test") for _ in range(60)]
    before = -1
    while before != looked[0]:
        before = looked[0]
        for _ in range(20):
            await ann.ask(api.GetDevices)
    assert looked[0] <= 6, "what the channel holds, what is leaving, and one more"
    await phone.ask(api.GetDevices)  # her other devices go on
    for number in numbers:
        assert isinstance(await alice.answer(number), api.Why)
    assert looked[0] == len(numbers)


@pytest.mark.parametrize("busy", [False, True])
async def test_an_answer_that_cannot_be_sent_ends_the_connection(
    node: Node, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    reported: list[BaseException] = []
    monkeypatch.setattr(node, "report", reported.append)

    monkeypatch.setattr("node.session.FRAME_BYTES_MAX", 2 * FRAME_BYTES_MAX)

    async def huge(session: object, frame: api.Ping) -> api.Why:
        return api.Why("", "x" * FRAME_BYTES_MAX, ())

    monkeypatch.setitem(HANDLERS, api.Ping, huge)
    alice = await connect(node, "alice")
    for _ in range(2 * api.REQUESTS_IN_FLIGHT_MAX if busy else 1):
        await alice.post(api.Ping)
    goodbye = await alice.ended()
    assert goodbye is not None
    assert goodbye.code == "failed"
    assert len(reported) == 1
    while node.sessions:
        await stranger(node)


async def test_reading_many_logs_at_once_does_not_stop_the_node(node: Node) -> None:
    alice = await connect(node, "alice")
    marks = [api.Mark(to_text(node.us.node), to_text(bytes([n]) * 16), 1) for n in range(64)]
    numbers = [await alice.post(api.Read, to_text(bytes([n]) * 32), tuple(marks)) for n in range(256)]
    for number in numbers:
        with pytest.raises(api.ApiError) as refused:
            await alice.answer(number)
        assert refused.value.code == "not_found"
    assert not node.failed.done()


async def test_a_connection_without_a_login_ends_at_its_deadline(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.session.LOGIN_DEADLINE_S", 0.3)
    wrong, idle = await stranger(node), await stranger(node)
    with pytest.raises(ApiError, match="wrong"):
        await wrong.login("alice", "no such password")
    assert await too_slow(wrong)
    assert await too_slow(idle)


@pytest.mark.parametrize("good", [True, False])
async def test_a_login_that_is_being_checked_at_the_deadline_is_answered(
    node: Node, monkeypatch: pytest.MonkeyPatch, good: bool
) -> None:
    monkeypatch.setattr("node.session.LOGIN_DEADLINE_S", 0.3)
    over = asyncio.Event()
    alice, idle = await stranger(node), await stranger(node)

    async def slow(user: str, password: str) -> bool:
        await over.wait()
        return good

    node.authenticate = slow
    proof = DEVICE_KEY.sign("device-login", alice.login_bytes("alice"))
    login = ("alice", "pw", "phone", DEVICE_KEY.public, proof)
    first = await alice.post(api.Login, *login)
    with pytest.raises(ApiError, match="being checked") as second:
        await alice.ask(api.Login, *login)
    assert second.value.code == "busy"
    assert await too_slow(idle)
    over.set()
    if good:
        alice.token = (await alice.answer(first)).token
        await alice.auth()
        assert await too_slow(await stranger(node))  # and the deadline is really gone
        assert await alice.ask(api.Ping) == api.Done()
    else:
        with pytest.raises(ApiError, match="wrong"):
            await alice.answer(first)
        assert await too_slow(alice)


async def test_who_asks_much_stands_in_line_alone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.create_user("bob", "pw")
    alice, phone, bob = await connect(node, "alice"), await connect(node, "alice"), await connect(node, "bob")
    asked: list[str] = []
    moved, go, real = asyncio.Event(), asyncio.Event(), node.store.read

    async def read(work: Any, *args: Any, **named: Any) -> Any:
        if work is reads.conversation_of:
            asked.append(args[0])
            moved.set()
            await go.wait()
        return await real(work, *args, **named)

    monkeypatch.setattr(node.store, "read", read)
    posts = [await client.post(api.GetHistory, "alice@a.test") for client in (alice, phone) for _ in range(40)]
    for client in (alice, phone):
        await client.ask(api.Ping)  # all those are taken
    late = await bob.post(api.GetHistory, "alice@a.test")
    await bob.ask(api.Ping)
    async with asyncio.timeout(WAIT_S):
        while len(asked) < 2:
            moved.clear()
            await moved.wait()
    assert asked == ["alice", "bob"]
    go.set()
    await bob.answer(late)
    assert all([isinstance(await alice.answer(number), api.History) for number in posts[:40]])
    assert all([isinstance(await phone.answer(number), api.History) for number in posts[40:]])
    assert not node.turns


async def test_a_login_made_for_another_node_is_worth_nothing(node: Node) -> None:
    """A node that passes on this node's nonce as its own gets a proof that says whom it was made for."""
    alice = await stranger(node)
    signed = api.login_bytes(b"m" * 32, alice.welcome.nonce, "alice")
    proof = DEVICE_KEY.sign("device-login", signed)
    with pytest.raises(ApiError, match="did not prove itself"):
        await alice.ask(api.Login, "alice", "pw", "phone", DEVICE_KEY.public, proof)


async def test_a_connection_without_a_hello_ends_at_its_deadline(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.session.HELLO_DEADLINE_S", 0.05)
    assert await too_slow(Client(node.connect_inside()))


@contextlib.asynccontextmanager
async def door(
    folder: Path, sessions: int, **more: Any
) -> AsyncIterator[tuple[Node, Callable[..., Awaitable[Client]]]]:
    """A node with alice, and a way to knock at its UDP port, from any loopback address."""
    dialers: dict[str, Dialer] = {}
    settings = listening(folder, limits=Limits(sessions=sessions), **more)
    async with Node.open(settings) as node, contextlib.AsyncExitStack() as stack:
        await node.create_user("alice", "pw")
        where = split_host_port(settings.listen or "")

        async def knock(source: str = "127.0.0.1") -> Client:
            if source not in dialers:
                dialers[source] = await stack.enter_async_context(Dialer())
                dialers[source]._listen(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), (source, 0))
            return Client(await dialers[source].dial(where, api.ALPN, WAIT_S))

        yield node, knock


async def refused(client: Client) -> str:
    await client.tell(api.Hello(1, 1, bytes(32)))
    goodbye = await client.ended()
    assert goodbye is not None
    return goodbye.code


async def test_connections_over_the_limit_are_turned_away(tmp_path: Path) -> None:
    async with door(tmp_path, 3) as (node, knock):
        alice = await (await knock()).hello()
        await alice.login("alice")
        await alice.auth()
        others = [await (await knock()).hello() for _ in range(2)]
        assert await refused(await knock()) == "busy"
        with pytest.raises(Unreachable, match="too many clients"):
            await channels.connect(node.link, "quic")
        async with aiohttp.ClientSession(f"http://{node.config.listen}") as http:  # both doors count together
            for codec in (coding.JSON, coding.MSGPACK):
                text = codec is coding.JSON
                assert await refused(Client(Socket(await http.ws_connect("/v1/ws"), text), codec)) == "busy"
        await connect(node, "alice")  # from inside the process nobody is turned away
        await others[0].channel.close()
        while len(node.connections) > 2:
            await alice.ask(api.Ping)
        await (await knock()).hello()
        assert await alice.ask(api.Ping) == api.Done()


async def test_a_stranger_has_the_small_windows_until_the_login(tmp_path: Path) -> None:
    async with door(tmp_path, 100) as (node, knock):
        stranger, alice = await (await knock()).hello(), await (await knock()).hello()
        unread = 0
        sending = asyncio.ensure_future(stranger.channel.send(bytes(8 * HELLO_BYTES_MAX)))
        while unread < HELLO_BYTES_MAX - 8:
            held = [s._channel for s in node.strangers if isinstance(s._channel, QuicChannel)]
            unread = max(c._fed_bytes - c._credited_bytes for c in held)
            await asyncio.sleep(0)
        await alice.login("alice")
        await alice.auth()
        await alice.send("alice@a.test", bytes(api.BODY_BYTES_MAX))  # a frame that is longer than those windows
        assert max(c._fed_bytes - c._credited_bytes for c in held) <= HELLO_BYTES_MAX
        sending.cancel()


async def test_a_stranger_who_takes_no_answers_is_ended(tmp_path: Path) -> None:
    async with door(tmp_path, 100) as (node, knock):
        mute = await (await knock()).hello()
        (session,) = node.strangers
        channel = session._channel
        assert isinstance(channel, QuicChannel)
        most = 0
        while node.strangers:
            with contextlib.suppress(ChannelClosed):
                await mute.tell(api.GetDevices(1))
            unacknowledged = channel._quic.backlog_bytes(channel.stream_id)
            unread = channel._fed_bytes - channel._credited_bytes
            most = max(most, unread + unacknowledged + sum(map(len, session._out)))
        assert most <= 2 * HELLO_BYTES_MAX


@pytest.mark.parametrize("way", ["quic", "websocket"])
async def test_the_sdk_tells_why_its_hello_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: channels.Want
) -> None:
    async def refuse(session: Session) -> None:
        await session._channel.recv()
        raise ApiError("bad_version", "this node speaks version 9 of the client protocol")

    monkeypatch.setattr(Session, "_hello", refuse)
    async with Node.open(listening(tmp_path)) as node:
        with pytest.raises(Unreachable, match="refused the connection: this node speaks version 9"):
            await channels.connect(node.link, way)


async def test_who_is_refused_and_says_nothing_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.node.REFUSED_MAX", 2)
    async with door(tmp_path, 1) as (node, knock), aiohttp.ClientSession(f"http://{node.config.listen}") as http:
        await (await knock()).hello()
        silent = [Client(Socket(await http.ws_connect("/v1/ws"), False)) for _ in range(2)]
        assert await Client(Socket(await http.ws_connect("/v1/ws"), False)).ended() is None, "closed without a word"
        for client in silent:
            await client.channel.close()
        while node.refused:
            (await http.get("/health")).close()
        monkeypatch.setattr("node.session.HELLO_DEADLINE_S", 0.05)
        goodbye = await Client(Socket(await http.ws_connect("/v1/ws"), False)).ended()
        assert goodbye is not None
        assert goodbye.code == "busy"


async def test_a_node_full_of_clients_still_takes_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.node.REFUSED_MAX", 0)
    async with door(tmp_path, 2) as (node, knock), Dialer() as dialer:
        for _ in range(2):
            await (await knock()).hello()
        with pytest.raises(ChannelClosed, match="too many connections"):
            await (await knock()).hello()
        assert node.config.listen is not None
        link = await dialer.dial(split_host_port(node.config.listen), wire.ALPN)
        await link.send(wire.encode(wire.Offer(wire.VERSION, wire.VERSION, bytes(wire.NONCE_BYTES))))
        async with asyncio.timeout(WAIT_S):
            assert isinstance(wire.decode((await link.recv())[0]), wire.Offer)


async def test_strangers_cannot_take_every_place(tmp_path: Path) -> None:
    async with door(tmp_path, 100) as (_, knock):
        alice = await (await knock()).hello()
        await alice.login("alice")  # a login makes room for the next one, with or without `auth`
        strangers = [await (await knock(f"127.0.0.{1 + n // 6}")).hello() for n in range(25)]
        assert await refused(await knock("127.0.0.9")) == "busy"
        await strangers[0].login("alice")
        await (await knock("127.0.0.9")).hello()
        assert await refused(await knock("127.0.0.10")) == "busy"


async def test_one_address_cannot_take_every_place_of_strangers(tmp_path: Path) -> None:
    async with door(tmp_path, 100) as (node, knock), aiohttp.ClientSession(f"http://{node.config.listen}") as http:
        strangers = [await (await knock()).hello() for _ in range(6)]
        assert await refused(await knock()) == "busy"
        assert await refused(Client(Socket(await http.ws_connect("/v1/ws"), False))) == "busy", "both doors count"
        await (await knock("127.0.0.2")).hello()
        await strangers[0].login("alice")
        await (await knock()).hello()
        assert await refused(await knock()) == "busy"


async def test_a_stranger_over_quic_has_a_strangers_window(tmp_path: Path) -> None:
    async with Node.open(listening(tmp_path)) as node, Dialer() as dialer:
        await node.create_user("alice", "pw")
        channel = await dialer.dial(node.config.listen_at or ("", 0), api.ALPN)
        client = await Client(channel).hello()
        channel.trust()
        await client.login("alice")
        await client.auth()
        body = bytes(api.BODY_BYTES_MAX)
        assert (await client.send("alice@a.test", body)).seq == 1  # a longer frame than strangers may send
        quiet = await dialer.dial(node.config.listen_at or ("", 0), api.ALPN)
        await Client(quiet).hello()
        sending = asyncio.ensure_future(quiet.send(bytes(FRAME_BYTES_MAX)))
        await client.ask(api.Ping)
        (held,) = node.strangers
        async with asyncio.timeout(WAIT_S):
            while held._channel._fed_bytes < HELLO_BYTES_MAX:  # type: ignore[attr-defined]
                await client.ask(api.Ping)
        for _ in range(50):  # and no more comes
            await client.ask(api.Ping)
        assert len(held._channel._cutter) <= HELLO_BYTES_MAX  # type: ignore[attr-defined]
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_lights_do_not_pile_up_for_a_client_that_does_not_read(node: Node) -> None:
    """A peer can make its link go up and down as often as it likes, and every client is told."""
    alice = await connect(node, "alice")
    (session,) = node.sessions["alice"]
    await alice.post(api.Ping)
    for number in range(20_000):
        session.light("b.test", "up" if number % 2 else "down", number)
        if number % 100 == 0:
            await asyncio.sleep(0)
    assert len(session._out) + len(session._lights) < 10
    while not alice.lights or alice.lights[-1].since != 19_999:
        await alice.pump()


async def test_behind_a_proxy_all_come_from_one_address(tmp_path: Path) -> None:
    proxied = Tls(behind_proxy=True)
    async with (
        door(tmp_path, 100, tls=proxied) as (node, knock),
        aiohttp.ClientSession(f"http://{node.config.listen}") as http,
    ):
        strangers = [await Client(Socket(await http.ws_connect("/v1/ws"), False)).hello() for _ in range(20)]
        assert [await (await knock()).hello() for _ in range(4)], "at the UDP port they come themselves"
        for stranger in strangers:
            await stranger.channel.close()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1:7", "192.0.2.1:8", True),
        ("192.0.2.1:7", "192.0.2.2:7", False),
        ("[2001:db8::1]:7", "[2001:db8::2]:7", True),
        ("[2001:db8::1]:7", "[2001:db8:0:1::1]:7", False),
        ("[fe80::1%eth0]:7", "[fe80::2%eth0]:7", True),
        ("nowhere", "192.0.2.2:7", False),
    ],
)
def test_a_network_of_ipv6_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (origin(one) == origin(other)) == same

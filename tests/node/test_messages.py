"""One node: what a send answers, who gets it, what its sender sees."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from federation.ids import to_text
from federation.ports import FRAME_BYTES_MAX
from node import api, coding
from node.api import ApiError
from node.config import Limits
from node.core import rows
from node.node import Node
from node.storage import direct, reads
from node.storage.schema import TABLES
from tests.node.helpers import WAIT_S, Client, again, befriend, config, connect, stranger, two_nodes


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node.open(config(tmp_path, limits=Limits(mailbox_messages=1000))) as node:
        for name in ("alice", "ann"):
            await node.create_user(name, "pw")
        yield node


async def refused(client: Client, request: Any, /, *args: object, **named: object) -> str:
    with pytest.raises(ApiError) as error:
        await client.ask(request, *args, **named)
    return error.value.code


async def test_local_message_goes_from_accepted_to_read(node: Node) -> None:
    alice, ann = await connect(node, "alice"), await stranger(node)
    sent = await alice.send("ann@a.test", b"hi")
    assert (await alice.ask(api.GetState, sent.event)).to[0].state == "sent"
    await ann.login("ann")
    await ann.auth()
    got = await ann.message(b"hi")
    assert (got.event, got.sender, got.seq) == (sent.event, "alice@a.test", 1)
    assert (await alice.state(sent.event, "delivered")).address == "ann@a.test"
    await ann.ask(api.Read, sent.conversation, (api.Mark(sent.origin, sent.log, sent.seq),))
    assert (await alice.state(sent.event, "read")).at > 0
    mark = await alice.item(lambda i: isinstance(i, api.Watermark) and i.read == 1)
    assert (mark.member, mark.delivered, mark.sent) == ("ann@a.test", 1, 1)
    (shown,) = (await alice.ask(api.GetHistory, "ann@a.test")).messages
    assert (shown.event, shown.state) == (sent.event, "read")


async def test_a_repeat_gets_the_same_answer_and_another_message_a_conflict(node: Node) -> None:
    alice = await connect(node, "alice")
    first = await alice.send("ann@a.test", b"hi", key="one")
    assert await alice.send("ann@a.test", b"hi", key="one") == first
    assert await refused(alice, api.Send, "one", "ann@a.test", b"ho") == "conflict"
    assert await refused(alice, api.Send, "one", "alice@a.test", b"hi") == "conflict"
    assert len((await alice.ask(api.GetHistory, "ann@a.test")).messages) == 1
    other = await connect(node, "alice")  # a key belongs to a device
    assert (await other.send("ann@a.test", b"hi", key="one")).event != first.event


async def test_repeat_is_answered_after_a_restart(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with Node.open(settings) as node:
        for name in ("alice", "ann"):
            await node.create_user(name, "pw")
        alice = await connect(node, "alice")
        first = await alice.send("ann@a.test", b"hi", key="one")
    async with Node.open(settings) as node:
        back = await stranger(node)
        back.token = alice.token
        await back.auth()
        assert await back.send("ann@a.test", b"hi", key="one") == first
        second = await back.send("ann@a.test", b"more")
        assert (second.seq, second.log != first.log) == (1, True)  # a new process life writes a log of its own


async def test_note_to_self(node: Node) -> None:
    alice = await connect(node, "alice")
    sent = await alice.send("alice@a.test", b"remember")
    assert (await alice.message(b"remember")).event == sent.event
    (to,) = (await alice.ask(api.GetState, sent.event)).to
    assert to.address == "alice@a.test"
    assert [m.body for m in (await alice.ask(api.GetHistory, "alice@a.test")).messages] == [b"remember"]
    assert len([i for i in alice.items if isinstance(i, api.Message)]) == 1


@pytest.mark.parametrize(
    ("to", "code"),
    [
        ("nobody@a.test", "unknown_user"),
        ("bob@nowhere.test", "unknown_node"),
        ("not an address@", "bad_request"),
        (to_text(b"?" * 32), "not_found"),
        ("short", "bad_request"),
    ],
)
async def test_wrong_addresses_say_which_part_is_wrong(node: Node, to: str, code: str) -> None:
    alice = await connect(node, "alice")
    assert await refused(alice, api.Send, "k", to, b"x") == code


async def test_other_kinds_and_formats_are_refused(node: Node) -> None:
    alice = await connect(node, "alice")
    assert await refused(alice, api.Send, "k", "ann@a.test", b"x", kind="notices") == "bad_request"
    assert await refused(alice, api.Send, "k", "ann@a.test", b"x", format="zip") == "bad_request"


async def test_a_message_over_the_configured_size_is_refused_and_one_of_a_peer_is_not(tmp_path: Path) -> None:
    async with two_nodes(tmp_path, limits=Limits(message_bytes=256)) as (a, b):
        await befriend(a, b)
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        with pytest.raises(ApiError, match="256 bytes") as error:
            await bob.send("bob@b.test", bytes(257))
        assert error.value.code == "too_large"
        await bob.send("bob@b.test", bytes(256))
        await alice.send("bob@b.test", bytes(257))
        await bob.message(bytes(257))


async def test_history_does_not_go_on_before_a_message_of_another_conversation(node: Node) -> None:
    alice = await connect(node, "alice")
    await alice.send("ann@a.test", b"1")
    note = await alice.send("alice@a.test", b"2")
    for before in (note.event, to_text(b"?" * 32)):
        assert await refused(alice, api.GetHistory, "ann@a.test", before=before) == "not_found"


async def test_nothing_is_shown_to_people_outside_the_conversation(node: Node) -> None:
    await node.create_user("eve", "pw")
    alice, eve = await connect(node, "alice"), await connect(node, "eve")
    sent = await alice.send("ann@a.test", b"secret")
    missing = to_text(b"?" * 32)
    for request in (api.GetState, api.GetWhy):
        assert await refused(eve, request, sent.event) == await refused(eve, request, missing) == "not_found"
    assert await refused(eve, api.GetHistory, sent.conversation) == await refused(eve, api.GetHistory, missing)
    assert await refused(eve, api.Send, "k", sent.conversation, b"x") == "not_found"
    mark = api.Mark(sent.origin, sent.log, 1)
    assert await refused(eve, api.Read, sent.conversation, (mark,)) == "not_found"


async def test_mailbox_full(node: Node) -> None:
    alice = await connect(node, "alice")
    numbers = [await alice.post(api.Send, f"k{n}", "ann@a.test", b"x") for n in range(1000)]
    for number in numbers:
        await alice.answer(number)
    assert await refused(alice, api.Send, "over", "ann@a.test", b"x") == "mailbox_full"
    assert api.CODES["mailbox_full"][0], "it can be tried again"
    assert (await alice.ask(api.GetHistory, "ann@a.test", limit=1000)).messages  # reading goes on
    ann = await connect(node, "ann")
    while len([i for i in ann.items if isinstance(i, api.Message)]) < 1000:
        await ann.pump()
    await ann.ask(api.Ping)  # the acknowledgement went before it
    await alice.send("ann@a.test", b"there is room again")


async def test_a_client_that_only_sends_is_told_to_receive(node: Node) -> None:
    alice = await connect(node, "alice", feed=False)
    numbers = [await alice.post(api.Send, f"k{n}", "alice@a.test", b"x") for n in range(1000)]
    for number in numbers:
        await alice.answer(number)
    with pytest.raises(ApiError, match="let one of them receive") as full:
        await alice.send("ann@a.test", b"over")
    assert full.value.code == "mailbox_full"
    phone = await again(node, alice)
    while len(phone.items) < 1000:
        await phone.pump()
    await phone.ask(api.Ping)
    await alice.send("ann@a.test", b"there is room again")


async def test_requests_give_no_receipts_until_accepted(node: Node) -> None:
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    await ann.ask(api.SetProfile, requests="everyone")
    sent = await alice.send("ann@a.test", b"may I?")
    await ann.message(b"may I?")
    await ann.ask(api.Read, sent.conversation, (api.Mark(sent.origin, sent.log, sent.seq),))
    (asked,) = (await ann.ask(api.GetConversations, requests_only=True)).conversations
    assert (asked.other, asked.state) == ("alice@a.test", "request")
    assert (await alice.ask(api.GetState, sent.event)).to[0].state == "sent"
    assert (await alice.ask(api.GetHistory, "ann@a.test")).messages[0].state == "sent"
    assert "read" not in (await alice.ask(api.GetWhy, sent.event)).summary
    await ann.ask(api.Accept, asked.conversation)
    await alice.state(sent.event, "read")
    assert not (await ann.ask(api.GetConversations, requests_only=True)).conversations


async def test_a_declined_sender_is_told(node: Node) -> None:
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    await ann.ask(api.SetProfile, requests="everyone")
    sent = await alice.send("ann@a.test", b"may I?")
    await ann.ask(api.Decline, sent.conversation)
    assert await refused(alice, api.Send, "k", "ann@a.test", b"please") == "declined"
    assert (await alice.ask(api.GetState, sent.event)).to[0].state == "sent"
    await ann.ask(api.Accept, sent.conversation)  # and may change their mind
    await alice.send("ann@a.test", b"thanks")
    await ann.message(b"thanks")


async def test_an_answer_longer_than_a_frame_is_an_error_and_the_session_lives(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await connect(node, "alice")
    await alice.send("ann@a.test", b"hi")
    monkeypatch.setattr("node.session.FRAME_BYTES_MAX", 100)
    assert await refused(alice, api.GetHistory, "ann@a.test") == "too_large"
    assert await alice.ask(api.Ping) == api.Done()


async def test_a_long_history_comes_in_pages_that_fit_a_frame(node: Node) -> None:
    alice = await connect(node, "alice")
    bodies = [bytes([n]) * api.BODY_BYTES_MAX for n in range(20)]
    for body in bodies:
        await alice.send("ann@a.test", body)
    found: list[api.Message] = []
    before, more = None, True
    while more:
        page = await alice.ask(api.GetHistory, "ann@a.test", before, 20)
        assert len(coding.JSON.encode(api.Reply(1, page))) <= FRAME_BYTES_MAX, "the larger encoding"
        found, before, more = [*page.messages, *found], page.messages[0].event, page.more
    assert [m.body for m in found] == bodies


async def test_a_page_is_the_last_when_nothing_is_before_it(node: Node) -> None:
    alice = await connect(node, "alice")
    for body in (b"one", b"two"):
        await alice.send("ann@a.test", body)
    assert (await alice.ask(api.GetHistory, "ann@a.test", limit=1)).more
    assert not (await alice.ask(api.GetHistory, "ann@a.test", limit=2)).more


async def test_the_sdk_reaches_the_oldest_message_over_short_pages(node: Node) -> None:
    client = await node.client("alice")
    bodies = [str(n) * 60_000 for n in range(10)] * 2
    for body in bodies:
        await client.wait((await client.send("ann@a.test", body)).key, "accepted", WAIT_S)
    assert [m.text for m in await client.history("ann@a.test")] == bodies
    assert [m.text for m in await client.history("ann@a.test", 15)] == bodies[5:]


def test_nothing_is_longer_in_json_than_its_page_counts() -> None:
    ids, name = to_text(bytes(32)), "x" * 64
    sender = f"{name}@{'d' * 253}"
    most = (1 << 53) - 1
    longest = api.Message(
        ids, ids, ids, ids, most, sender, ids, most, api.order(1), "k" * 32, "f" * 32, b"", ids, True, most, "delivered"
    )
    assert len(coding.JSON.encode(longest)) <= reads.MESSAGE_BYTES
    mark = len(coding.JSON.encode(api.Mark(ids, ids, most)))
    conversation = len(coding.JSON.encode(api.ConversationState(ids, sender, "declined", (), most, most)))
    assert reads.MARKS_MAX * mark + api.PAGE_MAX * conversation <= FRAME_BYTES_MAX - 1024


def pages(statements: list[str]) -> list[str]:
    """Those that the marks of a page take, and not what the node looks at meanwhile for itself."""
    return [s for s in statements if "receipts.read >" in s]


async def test_someone_with_ten_thousand_conversations_gets_them_in_pages(node: Node) -> None:
    """Each page takes as many statements as any other, however much is on it."""
    alice = await connect(node, "alice")
    await stand(node, [rows.Standing(n.to_bytes(32), "alice", "request" if n % 100 == 0 else "open", n << 16)
                       for n in range(10_000)])  # fmt: skip
    with counting(node) as statements:
        (await alice.ask(api.GetConversations, limit=1))
    few = len(pages(statements))
    for requests_only, total in ((False, 10_000), (True, 100)):
        found: list[api.ConversationState] = []
        after, more = None, True
        while more:
            with counting(node) as statements:
                page = await alice.ask(api.GetConversations, requests_only, after, api.PAGE_MAX)
            assert len(pages(statements)) == few > 0
            assert len(coding.JSON.encode(api.Reply(1, page))) <= FRAME_BYTES_MAX
            found, after, more = found + list(page.conversations), page.conversations[-1].conversation, page.more
        assert len({c.conversation for c in found}) == len(found) == total
    assert found[1].read == (api.Mark(to_text(node.us.node), to_text(bytes(16)), 100),)
    with counting(node) as statements:
        await alice.ask(api.GetHistory, to_text((7).to_bytes(32)))
    assert len(statements) < 10
    client = await node.client("alice")
    assert [c.last_stamp for c in await client.requests()] == list(range(9900, -1, -100)), "newest first"


async def test_read_marks_past_any_number_still_fit_a_frame(node: Node) -> None:
    """One per life of a node: a conversation of many years has many, and so has a page of such conversations."""
    alice = await connect(node, "alice")
    await stand(node, [rows.Standing(n.to_bytes(32), "alice", "open", 0) for n in range(4)], logs=3000)
    found: list[api.ConversationState] = []
    after, more = None, True
    while more:
        page = await alice.ask(api.GetConversations, after=after)
        assert len(coding.JSON.encode(api.Reply(1, page))) <= FRAME_BYTES_MAX
        found, after, more = found + list(page.conversations), page.conversations[-1].conversation, page.more
    assert [c.conversation for c in found] == [to_text(n.to_bytes(32)) for n in range(4)]
    assert [max(mark.seq for mark in c.read) for c in found] == [3000] * 4, "the newest are there"


async def stand(node: Node, standings: list[rows.Standing], logs: int = 1) -> None:
    """Conversations with a far user, and logs of ours that the local one has read."""
    us, far = node.us.node, b"f" * 32
    made: list[Any] = list(standings)
    for s in standings:
        made.append(rows.Conversation(s.conversation, "direct", us, s.local, far, "x"))
        for n in range(logs):
            log, life = s.conversation + n.to_bytes(4), n.to_bytes(16)
            read = n + 1 if logs > 1 else int.from_bytes(s.conversation)
            made.append(rows.LogHead(log, s.conversation, us, life, read, bytes(32), n))
            made.append(rows.Receipt(log, us, s.local, 0, read, read, b"", 0, 0, 0))

    def write(connection: Any) -> None:
        for row in {type(row) for row in made}:
            connection.execute(TABLES[row].insert(), [r._asdict() for r in made if type(r) is row])

    await node._runner.write(write)


@contextmanager
def counting(node: Node) -> Iterator[list[str]]:
    """The statements that read."""
    seen: list[str] = []
    engine = node._runner._reader  # type: ignore[attr-defined]

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    def run(connection: Any, sql: str, values: Any, call: Any = direct.run) -> Any:
        seen.append(sql)
        return call(connection, sql, values)

    event.listen(engine, "before_cursor_execute", note)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "run", run)
        yield seen
    event.remove(engine, "before_cursor_execute", note)

"""A5 and A7: an invite is used once however many hold it, and a stranger who walks ids learns nothing."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from federation.ids import User, direct_conversation, to_text
from node import api
from node.admin import call
from node.api import ApiError
from node.core.people import AddAccount
from node.core.send import Send
from node.node import Node
from node.storage import direct
from tests.evil import kit
from tests.node.helpers import Client, config

USES = 50
VALUES = re.compile(r"[xX]?'[^']*'|\b[0-9]+\b")  # in a statement as SQLite tells it


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node.open(config(tmp_path)) as node:
        yield node


async def test_a5_an_invite_is_used_once_by_fifty_at_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def quick(password: str) -> str:
        return "hashed"

    monkeypatch.setattr(node.system, "hash_password", quick)
    for turn in range(3):
        code = (await call(node.config, "invite.new", {}))["invite"].partition("#")[2]
        clients = [await kit.client(node.connect_inside()) for _ in range(USES)]
        tries = [client.register(code, f"u{turn}-{number}") for number, client in enumerate(clients)]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        good = [o for o in outcomes if isinstance(o, api.LoggedIn)]
        assert len(good) == 1
        assert {o.code for o in outcomes if isinstance(o, ApiError)} == {"bad_invite"}
        users = [u["name"] for u in await call(node.config, "user.list", {}) if u["name"].startswith(f"u{turn}-")]
        assert [f"{name}@a.test" for name in users] == [good[0].address]
        for client in clients:
            await client.channel.close()


@contextmanager
def counting(node: Node) -> Iterator[list[str]]:
    """The statements that go to the driver."""
    seen: list[str] = []

    def traced(call: Any) -> Any:
        async def run(work: Callable[[Connection], Any], *args: Any, **named: Any) -> Any:
            def noted(connection: Connection) -> Any:
                below = direct.raw(connection)
                assert below is not None
                below.set_trace_callback(lambda sql: seen.append(VALUES.sub("?", sql)))
                try:
                    return work(connection)
                finally:
                    below.set_trace_callback(None)

            return await call(noted, *args, **named)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node._runner, "read", traced(node._runner.read))
        patch.setattr(node._runner, "write", traced(node._runner.write))
        yield seen


Ask = Callable[[str, str, str], Any]  # a conversation, an event, a device
WALKS: dict[str, Ask] = {
    "send": lambda c, e, d: api.Send(9, "k", c, b"x"),
    "history": lambda c, e, d: api.GetHistory(9, c),
    "accept": lambda c, e, d: api.Accept(9, c),
    "decline": lambda c, e, d: api.Decline(9, c),
    "state": lambda c, e, d: api.GetState(9, e),
    "why": lambda c, e, d: api.GetWhy(9, e),
    "rename_device": lambda c, e, d: api.RenameDevice(9, d, "x"),
    "revoke_device": lambda c, e, d: api.RevokeDevice(9, d),
    "read": lambda c, e, d: api.Read(9, c, (api.Mark(to_text(b"o" * 32), to_text(b"l" * 16), 1),)),
}


async def _refusal(client: Client, frame: Any) -> tuple[str, str]:
    await client.tell(frame)
    with pytest.raises(ApiError) as refused:
        await client.answer(9)
    return refused.value.code, refused.value.message


@pytest.mark.parametrize("name", WALKS)
async def test_a7_what_is_anothers_is_as_if_it_were_not(node: Node, name: str) -> None:
    """The same words and the same statements for an id of somebody else's and one of nobody's.

    Without the rows that the writer has in memory: which those are says who was busy lately, to whoever can guess an id
    of 32 random bytes.
    """
    for user in ("alice", "bob", "eve"):
        await node.store.submit(AddAccount(user, ""))
    device, token = await kit.device(node, "alice")
    bob = User(node.us.node, "bob")
    sent = await node.store.submit(Send("alice", device, "k", bob, "message", "text", bytes(60_000)))
    _, token = await kit.device(node, "eve")
    eve = await kit.client(node.connect_inside(), token=token, feed=False)
    there = (sent.conversation, sent.event, to_text(device))
    nowhere = tuple(to_text(b"?" * size) for size in (32, 32, 16))
    make, found = WALKS[name], []
    if name == "read":  # of the log that is really there
        mark = api.Mark(sent.origin, sent.log, sent.seq)
        asked = [api.Read(9, conversation, (mark,)) for conversation in (sent.conversation, nowhere[0])]
    else:
        asked = [make(*there), make(*nowhere)]
    for frame in asked:
        node.store.hot.forget()
        with counting(node) as seen:
            refusal = await _refusal(eve, frame)
        assert refusal[0] == "not_found"
        found.append((refusal, sorted(seen)))
    assert found[0] == found[1]
    assert found[0][1]


async def test_a7_a_page_does_not_begin_at_an_event_of_others(node: Node) -> None:
    """Else the page would say when it was written, and that it exists."""
    for user in ("alice", "bob", "eve"):
        await node.store.submit(AddAccount(user, ""))
    alice, _ = await kit.device(node, "alice")
    mine, token = await kit.device(node, "eve")
    me = User(node.us.node, "eve")
    for key in ("1", "2"):
        await node.store.submit(Send("eve", mine, key, me, "message", "text", key.encode()))
        bob = User(node.us.node, "bob")
        sent = await node.store.submit(Send("alice", alice, key, bob, "message", "text", b"secret"))
    eve = await kit.client(node.connect_inside(), token=token, feed=False)
    own = to_text(direct_conversation(me, me))
    assert [m.body for m in (await eve.ask(api.GetHistory, own)).messages] == [b"1", b"2"]
    asked = [api.GetHistory(9, own, before) for before in (sent.event, to_text(b"?" * 32))]
    theirs, nobodys = [await _refusal(eve, frame) for frame in asked]
    assert theirs == nobodys

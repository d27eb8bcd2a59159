"""Accounts, devices and invites as clients and administrators meet them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node import api
from node.admin import AdminError, call
from node.api import ApiError
from node.core.people import AddDevice, ChangeAccount, ChangeDevice
from node.directory import device_id
from node.node import Node
from node.storage import reads
from node.system import System
from tests.node.helpers import Client, again, config, connect, stranger


class Counting(System):
    """Counts the slow hashes, which are what a stopwatch would see."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    async def _run(self, work, *args):  # type: ignore[no-untyped-def]
        self.made.append(work.__name__)
        return await super()._run(work, *args)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node.open(config(tmp_path, registration="invite"), system=Counting()) as node:
        await node.create_user("alice", "pw")
        yield node


async def code(work) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises((ApiError, AdminError)) as refused:
        await work
    found: str = refused.value.code
    return found


async def test_wrong_password_and_unknown_user_cannot_be_told_apart(node: Node) -> None:
    await node.create_user("gone", "pw")
    await call(node.config, "user.delete", {"name": "gone"})
    client = await stranger(node)
    assert isinstance(node.system, Counting)
    await code(client.login("alice", "warm up"))  # makes the hash that nobody has
    seen = []
    for user, password in (("alice", "wrong"), ("nobody", "pw"), ("gone", "pw"), ("No Name!", "pw")):
        node.system.made.clear()
        with pytest.raises(ApiError) as refused:
            await client.login(user, password)
        seen.append((refused.value.code, refused.value.message, tuple(node.system.made)))
    assert seen == [("bad_login", "name or password is wrong", ("_verify",))] * 4


async def test_login_needs_the_signing_key(node: Node) -> None:
    client = await stranger(node)
    assert await code(client.ask(api.Login, "alice", "pw", "d", b"x" * 32, b"y" * 64)) == "bad_request"
    client.welcome = msgspec.structs.replace(client.welcome, nonce=b"0" * 32)  # a proof over another connection's nonce
    assert await code(client.login("alice")) == "bad_request"


async def test_nothing_works_before_login(node: Node) -> None:
    client = await stranger(node)
    for request in (api.GetDevices, api.GetConversations):
        assert await code(client.ask(request)) == "bad_token"
    assert await code(client.send("alice@a.test", b"x")) == "bad_token"
    client.token = "made up"
    assert await code(client.auth()) == "bad_token"
    assert await client.ask(api.Ping) == api.Done()


async def test_a_second_auth_on_one_connection_is_refused(node: Node) -> None:
    await node.create_user("ann", "pw")
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    alice.token, mine = ann.token, alice.token
    assert await code(alice.auth()) == "bad_request"
    assert (await alice.send("alice@a.test", b"still alice")).seq == 1
    assert mine != ann.token


async def test_disabling_ends_sessions_and_enabling_brings_them_back(node: Node) -> None:
    alice = await connect(node, "alice")
    await call(node.config, "user.disable", {"name": "alice"})
    goodbye = await alice.ended()
    assert goodbye is not None
    assert goodbye.code == "bad_token"
    assert node.sessions == {}
    assert await code(again(node, alice)) == "disabled"
    assert await code(connect(node, "alice")) == "disabled"
    await call(node.config, "user.enable", {"name": "alice"})
    await again(node, alice)


async def test_a_deleted_name_is_reserved_for_ever(node: Node) -> None:
    await node.create_user("ann", "pw")
    alice, ann = await connect(node, "alice"), await connect(node, "ann")
    await call(node.config, "user.delete", {"name": "alice"})
    await alice.ended()
    assert await code(call(node.config, "user.add", {"name": "alice", "password": "x"})) == "name_taken"
    assert await code(call(node.config, "user.enable", {"name": "alice"})) == "not_found"
    assert await code(call(node.config, "user.passwd", {"name": "alice", "password": "x"})) == "not_found"
    assert await code(connect(node, "alice")) == "bad_login"
    assert await code(ann.send("alice@a.test", b"x")) == "unknown_user"


async def test_a_password_that_no_login_could_carry_is_refused(node: Node) -> None:
    for password in ("", "p" * 1025):
        assert await code(call(node.config, "user.passwd", {"name": "alice", "password": password})) == "bad_request"
    assert await code(call(node.config, "user.add", {"name": "ann", "password": "p" * 1025})) == "bad_request"
    await connect(node, "alice")


async def test_a_new_password_logs_every_device_out(node: Node) -> None:
    """Whoever knew the old one may have made one of them."""
    await node.create_user("bob", "pw")
    alice, laptop, bob = await connect(node, "alice"), await connect(node, "alice"), await connect(node, "bob")
    await call(node.config, "user.passwd", {"name": "alice", "password": "new"})
    assert await code(connect(node, "alice")) == "bad_login"
    for device in (alice, laptop):
        goodbye = await device.ended()
        assert goodbye is not None
        assert "revoked" in goodbye.reason
        assert await code(again(node, device)) == "bad_token"
    await (await stranger(node)).login("alice", "new")
    assert (await bob.send("bob@a.test", b"x")).seq == 1


async def test_a_new_password_that_keeps_the_devices(node: Node) -> None:
    alice = await connect(node, "alice")
    await call(node.config, "user.passwd", {"name": "alice", "password": "new", "keep_devices": True})
    assert await code(connect(node, "alice")) == "bad_login"
    assert (await alice.send("alice@a.test", b"x")).seq == 1


async def test_a_login_that_was_checked_against_the_old_password_comes_too_late(node: Node) -> None:
    """The hash was read before the change, and the device would be made after it."""
    account = await node.store.read(reads.account, "alice")
    assert account is not None
    await call(node.config, "user.passwd", {"name": "alice", "password": "new"})
    late = AddDevice(b"d" * 16, "alice", "late", b"t" * 32, b"k" * 32, account.password)
    assert await code(node.store.submit(late)) == "bad_login"


async def test_devices_are_listed_renamed_and_revoked(node: Node) -> None:
    phone, laptop = await connect(node, "alice"), await connect(node, "alice")
    listed = (await laptop.ask(api.GetDevices)).devices
    assert {d.device: d.this for d in listed} == {phone.device: False, laptop.device: True}
    await laptop.ask(api.RenameDevice, phone.device, "old phone")
    assert {d.name for d in (await phone.ask(api.GetDevices)).devices} == {"old phone", "device"}
    await laptop.ask(api.RevokeDevice, phone.device)
    goodbye = await phone.ended()
    assert goodbye is not None
    assert "revoked" in goodbye.reason
    assert await code(again(node, phone)) == "bad_token"
    assert [d.device for d in (await laptop.ask(api.GetDevices)).devices] == [laptop.device]
    await node.create_user("eve", "pw")
    eve = await connect(node, "eve")
    assert await code(eve.ask(api.RevokeDevice, laptop.device)) == "not_found"
    assert await code(eve.ask(api.RenameDevice, laptop.device, "mine")) == "not_found"


async def invite(node: Node) -> str:
    made = await call(node.config, "invite.new", {})
    return str(made["invite"]).rpartition("#")[2]


async def test_an_invite_works_once_for_whoever_is_first(node: Node) -> None:
    secret = await invite(node)
    clients = [await stranger(node) for _ in range(2)]
    outcomes = await asyncio.gather(
        *(c.register(secret, f"new{n}") for n, c in enumerate(clients)), return_exceptions=True
    )
    won = [o for o in outcomes if isinstance(o, api.LoggedIn)]
    lost = [o for o in outcomes if isinstance(o, ApiError)]
    assert len(won) == 1
    assert [e.code for e in lost] == ["bad_invite"]
    users = {u["name"] for u in await call(node.config, "user.list", {})}
    assert users == {"alice", won[0].address.split("@")[0]}
    (shown,) = await call(node.config, "invite.list", {})
    assert shown["used_by"] == won[0].address.split("@")[0]


async def test_a_failed_registration_does_not_use_up_the_invite(node: Node) -> None:
    secret = await invite(node)
    client = await stranger(node)
    assert await code(client.register(secret, "alice")) == "name_taken"
    assert await code(client.register(secret, "No Name!")) == "bad_request"
    assert await code(client.ask(api.Register, secret, "bert", "pw", "d", b"x" * 32, b"y" * 64)) == "bad_request"
    await client.register(secret, "bert")
    await client.auth()


async def test_revoked_and_unknown_invites(node: Node) -> None:
    secret = await invite(node)
    (shown,) = await call(node.config, "invite.list", {})
    await call(node.config, "invite.revoke", {"id": shown["id"]})
    client = await stranger(node)
    assert await code(client.register(secret, "bert")) == "bad_invite"
    assert await code(client.register("guess", "bert")) == "bad_invite"
    assert await code(call(node.config, "invite.revoke", {"id": "nothing"})) == "not_found"
    assert await code(call(node.config, "invite.new", {"uses": 2})) == "bad_request"


async def test_a_closed_node_takes_no_registrations(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path, registration="closed")) as node:
        secret = await invite(node)
        assert await code((await stranger(node)).register(secret, "bert")) == "forbidden"


async def test_the_host_application_may_decide_about_passwords(tmp_path: Path) -> None:
    asked = []

    async def authenticate(user: str, password: str) -> bool:
        asked.append(user)
        if password == "crash":
            raise LookupError("the directory is down")
        return password == "host"

    async with Node.open(config(tmp_path), authenticate) as node:
        await node.create_user("alice", "pw")
        client = await stranger(node)
        assert await code(client.login("alice", "pw")) == "bad_login"
        await client.login("alice", "host")
        assert await code(client.login("ghost", "wrong")) == "bad_login"
        assert {u["name"] for u in await call(node.config, "user.list", {})} == {"alice"}
        clients: list[Client] = [await stranger(node) for _ in range(4)]  # one person, four devices at once
        await asyncio.gather(*(c.login("bert", "host") for c in clients))
        assert {u["name"] for u in await call(node.config, "user.list", {})} == {"alice", "bert"}
        await call(node.config, "user.disable", {"name": "bert"})
        assert await code(client.login("bert", "host")) == "disabled"
        assert await code(client.login("alice", "crash")) == "failed"  # a bug of the host is answered too
        assert await client.ask(api.Ping) == api.Done()
        assert asked.count("bert") == 5


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda device: ChangeDevice("alice", device_id(device), revoke=True), "bad_token"),
        (lambda device: ChangeAccount("alice", state="disabled"), "disabled"),
    ],
    ids=["revoked", "disabled"],
)
async def test_what_ends_sessions_ends_one_that_is_logging_in(
    node: Node, monkeypatch: pytest.MonkeyPatch, change: Callable[[str], Any], code: str
) -> None:
    """A thief who tries all the time must not slip through between the look and the session's start."""
    alice, thief = await connect(node, "alice"), await stranger(node)
    read, changes = node.store.read, [change(alice.device)]

    async def slow(work: Any, *args: Any, **more: Any) -> Any:
        found = await read(work, *args, **more)
        if work is reads.device_by_token and changes:
            await node.store.submit(changes.pop())
        return found

    monkeypatch.setattr(node.store, "read", slow)
    thief.token = alice.token
    with pytest.raises(ApiError) as refused:
        await thief.auth()
    assert refused.value.code == code
    with pytest.raises(ApiError, match="log in first"):
        await thief.ask(api.GetDevices)
    await alice.ended()
    assert not node.sessions

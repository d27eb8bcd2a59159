"""The local store and the profile folder: durable, private, one process at a time."""

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest

from federation.errors import AddressError
from node import api
from node.client import (
    Client,
    NewerStore,
    NodeKeyError,
    ProfileError,
    ProfileInUse,
    StoreError,
    Unreachable,
    profile,
)
from node.client.model import Quote
from node.client.profile import Facts
from node.client.store import VERSION, Store
from tests.client.conftest import Open
from tests.client.fakenode import ALICE, BOB, CONVERSATION, WAIT_S, FakeNode, message


async def test_a_newer_store_is_refused(tmp_path: Path, open_client: Open) -> None:
    path = tmp_path / "cache.db"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    db.close()
    with pytest.raises(NewerStore, match="newer roost"):
        await open_client(path)


async def test_an_older_store_keeps_what_it_had(tmp_path: Path, open_client: Open, node: FakeNode) -> None:
    path = tmp_path / "cache.db"
    await node.push(message(1), message(2))
    client = await open_client(path)
    first = await asyncio.wait_for(anext(client.events()), WAIT_S)
    await client.close()
    with sqlite3.connect(path) as db:  # as version 1 had it
        for index in ("about", "thread", "pins"):
            db.execute(f"DROP INDEX message_{index}")
        for column in ("thread", "undo", "gone", "mention", "fold"):
            db.execute(f"ALTER TABLE message DROP COLUMN {column}")
        db.execute("UPDATE message SET reply_to = (SELECT min(id) FROM message) WHERE n = 2")
        db.execute("UPDATE message SET key = id")
        db.execute("UPDATE journal SET ref = (SELECT id FROM message WHERE ref LIKE '%:' || id)")
        db.execute("PRAGMA user_version=1")
    db.close()
    client = await open_client(path)
    again = await asyncio.wait_for(anext(client.events()), WAIT_S)
    assert again == first
    (_, answer) = await client.messages(CONVERSATION)
    assert answer.quote == Quote(BOB, "m1")
    assert again.message is not None
    assert (await client.send(BOB, "an answer", key=again.message.id)).state == "queued"


async def test_a_damaged_store_is_a_typed_error(tmp_path: Path, open_client: Open) -> None:
    path = tmp_path / "cache.db"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError):
        await open_client(path)


async def test_jobs_share_transactions_and_fail_alone(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "s.db")

    def put(db: sqlite3.Connection, name: str) -> str:
        db.execute("INSERT INTO fact(name, value) VALUES (?, 1)", (name,))
        return name

    names = [*(f"n{i}" for i in range(2000)), "n5", "last"]  # the second n5 breaks a constraint
    results = await asyncio.gather(*(store.run(lambda db, n=n: put(db, n)) for n in names), return_exceptions=True)
    assert [r for r in results if isinstance(r, Exception)] == [results[2000]]
    assert isinstance(results[2000], StoreError)
    assert await store.run(lambda db: db.execute("SELECT count(*) FROM fact").fetchone()[0]) == 2001
    await store.close()
    with pytest.raises(StoreError):
        await store.run(lambda db: None)


async def test_the_store_is_private(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "s.db")
    await store.run(lambda db: db.execute("INSERT INTO fact(name, value) VALUES ('a', 1)"))
    assert {entry.stat().st_mode & 0o777 for entry in os.scandir(tmp_path)} == {0o600}
    await store.close()


# --- profiles -----------------------------------------------------------------------------------------------
@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROOST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _make(name: str, node: FakeNode) -> profile.Profile:
    where, lock = profile.create(name)
    return profile.save(name, where, lock, Facts(str(node.link), ALICE, "dev-1", "secret", bytes(32)))


async def test_a_profile_is_private_and_comes_back(home: Path, node: FakeNode) -> None:
    _make("alice", node).release()
    again = profile.open_profile("alice")
    assert (again.address, again.device, again.link) == (ALICE, "dev-1", node.link)
    assert again.folder.stat().st_mode & 0o777 == 0o700
    assert (again.folder / profile.FILE).stat().st_mode & 0o777 == 0o600
    again.release()


@pytest.mark.parametrize("part", ["", profile.FILE])
async def test_a_profile_that_others_can_read_is_refused(home: Path, node: FakeNode, part: str) -> None:
    made = _make("alice", node)
    made.release()
    path = made.folder / part
    path.chmod(path.stat().st_mode | 0o040)
    with pytest.raises(ProfileError, match="chmod go="):
        profile.open_profile("alice")


async def test_a_profile_is_open_once(home: Path, node: FakeNode) -> None:
    made = _make("alice", node)
    with pytest.raises(ProfileInUse, match="'alice' is open in another process"):
        profile.open_profile("alice")
    made.release()
    with pytest.raises(ProfileError, match="exists already"):
        profile.create("alice")


async def test_a_missing_profile_and_a_bad_name_are_told(home: Path) -> None:
    for name in ("nobody", "../etc", "", "a/b"):
        with pytest.raises(ProfileError):
            profile.open_profile(name)


async def test_login_makes_a_profile_and_logout_takes_it_away(
    home: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dial(link: object) -> object:
        return await node.connect()

    monkeypatch.setattr("node.client.client._dial", dial)
    logins: list[api.Login] = []

    def answer(request: api.AnyRequest) -> api.AnyResult | api.ApiError:
        if isinstance(request, api.Login):
            logins.append(request)
            good = request.password == "right"
            return api.LoggedIn(ALICE, "dev-1", "secret") if good else api.ApiError("bad_login", "name or password")
        return api.Done()

    node.answer = answer
    with pytest.raises(api.ApiError):
        await Client.login("p", ALICE, str(node.link), "wrong", "laptop")
    assert not (home / "profiles" / "p").exists()
    with pytest.raises(AddressError):
        await Client.login("p", "alice@other.test", str(node.link), "right", "laptop")
    client = await Client.login("p", ALICE, str(node.link), "right", "laptop")
    assert (client.address, client.device, logins[-1].user) == (ALICE, "dev-1", "alice")
    await client.logout()
    assert os.listdir(home / "profiles") == []


async def test_a_profile_of_a_node_that_was_made_anew_can_be_forgotten(
    home: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dial(link: object) -> object:
        raise NodeKeyError("another node answered") if changed else Unreachable("nobody answers")

    _make("p", node).release()
    monkeypatch.setattr("node.client.client._dial", dial)
    for changed in (True, False):  # noqa: B007 - read by `dial`
        client = await Client.open_profile("p")
        with pytest.raises((NodeKeyError, Unreachable)):
            await client.logout()
        await client.close()
        assert (home / "profiles" / "p").exists()
    client = await Client.open_profile("p")
    assert not await client.logout(forget=True)
    assert os.listdir(home / "profiles") == []


async def test_an_invite_is_a_link_and_a_code(node: FakeNode) -> None:
    assert profile.parse_invite(f"{node.link}#code") == (node.link, "code")
    with pytest.raises(AddressError):
        profile.parse_invite(str(node.link))

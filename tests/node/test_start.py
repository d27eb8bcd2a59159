"""Starting and stopping: every reason not to start has its own error, and nothing is left behind."""

import asyncio
import gc
import os
import socket
import sqlite3
import sys
import threading
from pathlib import Path

import pytest

from node import api
from node.admin import call
from node.api import ApiError
from node.errors import BusyPort, CannotListen, DataDirInUse, KeyExposed, NewerDatabase, NodeFailed, StoreUnusable
from node.keys import create
from node.node import Node
from tests.node.helpers import config, connect, free_port, listening, stranger


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
async def test_busy_port(tmp_path: Path, kind: socket.SocketKind) -> None:
    settings = listening(tmp_path)
    assert settings.listen_at is not None
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(settings.listen_at)
        if kind is socket.SOCK_STREAM:
            taken.listen()
        with pytest.raises(BusyPort, match=str(settings.listen_at[1])):
            async with Node.open(settings):
                pass
    async with Node.open(settings):  # and nothing of the first try is in the way
        pass


@pytest.mark.parametrize("host", ["192.0.2.99", "nowhere.invalid"])
async def test_an_address_of_another_machine_is_not_a_busy_port(tmp_path: Path, host: str) -> None:
    with pytest.raises(CannotListen, match=f"cannot listen on {host}:7701: ") as refused:
        async with Node.open(config(tmp_path, listen=f"{host}:7701")):
            pass
    assert not isinstance(refused.value, BusyPort)


async def test_one_process_per_data_dir(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)):
        with pytest.raises(DataDirInUse, match="in use"):
            async with Node.open(config(tmp_path)):
                pass
    async with Node.open(config(tmp_path)):
        pass


async def test_a_key_that_others_can_read(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)) as node:
        first = node.us.node
    key = tmp_path / "a.test" / "node.key"
    key.chmod(0o640)
    with pytest.raises(KeyExposed, match="chmod 600"):
        async with Node.open(config(tmp_path)):
            pass
    key.chmod(0o600)
    async with Node.open(config(tmp_path)) as node:
        assert node.us.node == first


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
async def test_a_lost_key_is_never_made_anew(tmp_path: Path, damage: str) -> None:
    async with Node.open(config(tmp_path)):
        pass
    key = tmp_path / "a.test" / "node.key"
    if damage == "missing":
        key.unlink()
    else:
        key.write_bytes(key.read_bytes()[: 90 if damage == "cut" else 0])
    with pytest.raises(StoreUnusable, match="backup"):
        async with Node.open(config(tmp_path)):
            pass
    assert key.exists() == (damage != "missing")


async def test_a_newer_database(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)):
        pass
    path = tmp_path / "a.test" / "roost.db"
    database = sqlite3.connect(path)
    database.execute("UPDATE schema_version SET version_num = '9999'")
    database.commit()
    database.close()
    with pytest.raises(NewerDatabase, match="newer"):
        async with Node.open(config(tmp_path)):
            pass


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)):
        pass
    for file in (tmp_path / "a.test").glob("roost.db*"):
        file.write_bytes(b"this is not a database" * 1000)
    with pytest.raises(StoreUnusable, match="is damaged"):
        async with Node.open(config(tmp_path)):
            pass


async def test_a_database_server_that_is_not_there(tmp_path: Path) -> None:
    database = f"postgresql+asyncpg://roost:secret@127.0.0.1:{free_port()}/roost"
    with pytest.raises(
        StoreUnusable, match=r"roost:\*\*\*@127.0.0.1.* cannot be opened: .*Connect call failed"
    ) as refused:
        async with Node.open(config(tmp_path, database=database)):
            pass
    assert "secret" not in str(refused.value)


async def test_a_driver_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(StoreUnusable, match="needs the package asyncpg; install it, or roost with its extra"):
        async with Node.open(config(tmp_path, database="postgresql+asyncpg://u:secret@127.0.0.1/roost")):
            pass
    async with Node.open(config(tmp_path)):  # the folder is free again
        pass


async def test_files_are_private(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)):
        folder = tmp_path / "a.test"
        assert folder.stat().st_mode & 0o077 == 0
        assert (folder / "admin.sock").stat().st_mode & 0o077 == 0
        assert (folder / "node.key").stat().st_mode & 0o077 == 0


async def test_a_failed_commit_stops_the_node(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)) as node:
        await node.create_user("alice", "pw")
        alice = await connect(node, "alice")
        safe = await alice.send("alice@a.test", b"safe")

        def fail() -> None:
            raise sqlite3.OperationalError("disk I/O error")

        node._runner._writer.commit = fail  # type: ignore[attr-defined]
        with pytest.raises(ApiError) as lost:
            await alice.send("alice@a.test", b"lost")
        assert lost.value.code == "failed"
        with pytest.raises(NodeFailed, match="disk I/O error"):
            async with asyncio.timeout(20):
                await node.stopped()
        await alice.ended()
        with pytest.raises(NodeFailed):
            await stranger(node)
    async with Node.open(config(tmp_path)) as node:
        alice = await connect(node, "alice")
        history = await alice.ask(api.GetHistory, "alice@a.test")
        assert [m.event for m in history.messages] == [safe.event]


async def test_a_stopping_node_says_goodbye_and_ends(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)) as node:
        await node.create_user("alice", "pw")
        alice = await connect(node, "alice")
    await alice.ended()
    assert node.sessions == {}


async def test_a_store_under_another_key_is_refused(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)) as node:
        key = node.config.data_path / "node.key"
    key.unlink()
    create(key.parent)
    with pytest.raises(StoreUnusable, match="another node key"):
        async with Node.open(config(tmp_path)):
            pass


def threads() -> int:
    return threading.active_count()


def files() -> int:
    gc.collect()  # SQLAlchemy's and aiohttp's closed objects lie in cycles
    return len(os.listdir("/proc/self/fd"))


async def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    settings = listening(tmp_path)
    async with Node.open(settings):
        pass
    (tmp_path / "a.test" / "node.key").chmod(0o644)
    before = (len(asyncio.all_tasks()), threads(), files())
    for _ in range(3):
        with pytest.raises(KeyExposed):
            async with Node.open(settings):
                pass
    (tmp_path / "a.test" / "node.key").chmod(0o600)
    assert settings.listen_at is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(settings.listen_at)
        for _ in range(3):
            with pytest.raises(BusyPort):
                async with Node.open(settings):
                    pass
    assert (len(asyncio.all_tasks()), threads(), files()) == before


async def test_two_nodes_in_one_process_share_nothing(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path, "a.test")) as a, Node.open(config(tmp_path, "b.test")) as b:
        await a.create_user("alice", "pw")
        assert a.us.node != b.us.node
        assert await call(b.config, "user.list", {}) == []


async def test_what_people_wrote_is_private_in_a_folder_that_was_there(tmp_path: Path) -> None:
    settings = config(tmp_path)
    settings.data_path.mkdir(mode=0o755)
    async with Node.open(settings) as node:
        await node.create_user("alice")
        assert {file.name: file.stat().st_mode & 0o077 for file in settings.data_path.iterdir()} == dict.fromkeys(
            ("node.key", "lock", "admin.sock", "roost.db", "roost.db-wal", "roost.db-shm", "witness.json"), 0
        )

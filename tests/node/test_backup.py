"""A backup is whole or absent, holds what a restore needs, and what was done to its file is noticed."""

import io
import os
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from node import backup, keys
from node.admin import AdminError, call
from node.config import DATABASE, Config
from node.errors import BackupError
from node.node import Node
from node.storage import copying
from tests.node.helpers import config, connect, listening


async def made(folder: Path, settings: Config) -> Path:
    file = folder / "backup.tar"
    await call(settings, "backup", {"file": str(file), "text": "name: a.test\ndata_dir: data\n"})
    return file


async def test_a_backup_of_a_running_node_is_the_node_that_it_becomes_again(tmp_path: Path) -> None:
    settings, file = listening(tmp_path), tmp_path / "backup.tar"
    async with Node.open(settings) as node:
        await node.create_user("alice", "pw")
        alice = await connect(node, "alice")
        before = await alice.send("alice@a.test", b"before")
        await made(tmp_path, settings)
        await alice.send("alice@a.test", b"after")
        identity = node.us.node
    assert file.stat().st_mode & 0o777 == 0o600
    manifest = backup.unpack(file, tmp_path / "new")
    assert manifest.counts == {"users": 1, "events": 1, "peers": 0}
    data = tmp_path / "new" / "data"
    assert {name: (data / name).stat().st_mode & 0o077 for name in names(data)} == {keys.FILE: 0, DATABASE: 0}
    restored = Config(name="a.test", data_dir=str(data))
    async with Node.open(restored) as node:
        assert node.us.node == identity
        assert node.held.startswith("it was restored from a backup made at ")
        await call(restored, "restore.accept", {})
        alice = await connect(node, "alice")
        assert (await alice.message(b"before")).event == before.event
        assert [name for name in names(tmp_path) if name.startswith(".")] == []


async def test_a_backup_of_a_node_that_does_not_run(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with Node.open(settings) as node:
        await node.create_user("alice")
    file = await made(tmp_path, settings)
    assert backup.unpack(file, tmp_path / "new").counts["users"] == 1


async def test_a_backup_of_a_folder_with_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "lab #1"
    settings = config(folder)
    async with Node.open(settings) as node:
        await node.create_user("alice")
        file = await made(folder, settings)
    assert backup.unpack(file, folder / "new").counts["users"] == 1


async def test_a_backup_replaces_nothing_and_a_restore_neither(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with Node.open(settings):
        file = await made(tmp_path, settings)
        content = file.read_bytes()
        with pytest.raises(AdminError, match="exists already"):
            await made(tmp_path, settings)
        with pytest.raises(AdminError, match="No such file or directory; there is no backup"):
            await made(tmp_path / "nowhere", settings)
        assert file.read_bytes() == content
    with pytest.raises(BackupError, match="not an empty folder"):
        backup.unpack(file, settings.data_path)


@pytest.mark.postgres
async def test_a_store_on_postgres_is_backed_up_by_its_own_tool(tmp_path: Path, empty_postgres: str) -> None:
    settings = config(tmp_path, database=empty_postgres)
    async with Node.open(settings):
        with pytest.raises(AdminError, match="pg_dump") as refused:
            await made(tmp_path, settings)
        assert refused.value.code == "bad_request"
    assert not (tmp_path / "backup.tar").exists()


async def test_a_damaged_store_gives_no_backup(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with Node.open(settings) as node:
        for n in range(200):
            await node.create_user(f"user{n}")
    with (settings.data_path / DATABASE).open("r+b") as store:
        size = store.seek(0, os.SEEK_END)
        for page in range(4 * 4096, size - 4096, 4096):
            store.seek(page)
            store.write(b"\xff" * 100)
    with pytest.raises(BackupError, match="there is no backup"):
        backup.make(settings.data_path / DATABASE, settings.data_path / keys.FILE, "", tmp_path / "b", "a.test", b"", 0)
    assert names(tmp_path) == ["a.test"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Killed(BaseException):
    pass


STEPS = ("copying.copy", "copying.look", "backup._write", "witness.sync_folder", "tarfile.open", "Path.rename")


@pytest.mark.parametrize("step", STEPS)
async def test_wherever_it_ends_there_is_no_half_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    settings = config(tmp_path)
    async with Node.open(settings):
        pass
    where, _, name = step.partition(".")
    holder: Any = {"copying": copying, "backup": backup, "witness": backup.witness, "tarfile": tarfile, "Path": Path}
    real = getattr(holder[where], name)

    def killed(*args: Any, **named: Any) -> Any:
        if step in ("backup._write", "witness.sync_folder"):
            real(*args, **named)  # after it
        raise Killed

    file = tmp_path / "backup.tar"
    with monkeypatch.context() as broken:
        broken.setattr(holder[where], name, killed)
        with pytest.raises(Killed):
            backup.make(settings.data_path / DATABASE, settings.data_path / keys.FILE, "x", file, "a.test", b"", 0)
    assert file.exists() == (step == "witness.sync_folder")
    if file.exists():
        with tarfile.open(file) as tar:
            assert backup.read_manifest(tar).name == "a.test"


def changed(file: Path, how: str) -> None:
    with tarfile.open(file) as tar:
        parts = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    with tarfile.open(file, "w:") as tar:
        for info, content in parts:
            if how == "a bit" and info.name == DATABASE:
                content = content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]
            if how == "another key" and info.name == keys.FILE:
                content = content.replace(b"signing ", b"signinG ")
            if how == "a name" and info.name == keys.FILE:
                info.name = "../node.key"
            if how == "a link" and info.name == "node.yaml":
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            if how == "no manifest" and info.name == backup.MANIFEST:
                continue
            if how == "a format" and info.name == backup.MANIFEST:
                content = content.replace(b'"format":1', b'"format":2')
            if how == "no end" and info.name == DATABASE:
                continue
            tar.addfile(info, io.BytesIO(content))
        if how == "more":
            tar.addfile(tarfile.TarInfo("more"), io.BytesIO())


CHANGES = ("a bit", "another key", "a name", "a link", "no manifest", "a format", "no end", "more", "short", "text")


@pytest.mark.parametrize("how", CHANGES)
async def test_what_was_done_to_a_backup_is_noticed_and_nothing_is_restored(tmp_path: Path, how: str) -> None:
    settings = config(tmp_path)
    async with Node.open(settings):
        file = await made(tmp_path, settings)
    if how == "short":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "text":
        file.write_text("not a backup")
    else:
        changed(file, how)
    with pytest.raises(BackupError):
        backup.unpack(file, tmp_path / "new")
    assert names(tmp_path) == ["a.test", "backup.tar"]


async def test_a_key_of_another_node_is_noticed(tmp_path: Path) -> None:
    settings, other = config(tmp_path), config(tmp_path, "b.test")
    for one in (settings, other):
        async with Node.open(one):
            pass
    file = tmp_path / "mixed"
    backup.make(settings.data_path / DATABASE, other.data_path / keys.FILE, "x", file, "a.test", b"n" * 32, 0)
    with pytest.raises(BackupError, match="do not belong together"):
        backup.unpack(file, tmp_path / "new")


async def test_the_copy_is_one_moment_of_a_store_that_goes_on(tmp_path: Path) -> None:
    """Written to all the while; the copy has each pair of rows whole."""
    settings = config(tmp_path)
    async with Node.open(settings) as node:
        for n in range(20):
            await node.create_user(f"u{n}")
            counts = copying.copy(settings.data_path / DATABASE, tmp_path / f"{n}.db")
            assert counts["users"] == n + 1
    with closing(sqlite3.connect(tmp_path / "19.db")) as copy:
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)

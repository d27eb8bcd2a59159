"""Rows damaged in the database itself, each column of each table: the node starts, and everybody else is served.

The cases come from the tables, so that a new one is covered by itself.
"""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from federation.event import event_id
from federation.ids import User, direct_conversation, from_text
from node import api
from node.admin import AdminError, call
from node.api import ApiError
from node.core import rows
from node.core.context import Context
from node.core.quarantine import Isolate
from node.core.view import Key, View
from node.node import Node
from node.storage import reads
from node.storage.schema import NAMES
from tests.contract.bench import Far
from tests.node.helpers import Client, again, befriend, connect, listening

Values = dict[str, Any]
CONTROL = "carol"  # whose rows stay whole: she must not notice anything
UNSEEN = {"events.body none"}  # that is what a deleted message looks like
FAR = Far()
EVIL = FAR.segment(User(b"?" * 32, "alice"), [b"evil"])


@dataclass(frozen=True)
class Keep:
    """A row that no honest traffic makes."""

    row: Any

    def keys(self, context: Context) -> Iterable[Key]:
        return ()

    def decide(self, view: View, context: Context) -> None:
        view.put(self.row)


def evidence() -> rows.Evidence:
    event = EVIL.events[0]
    return rows.Evidence(event_id(event.header), b"l" * 16, 1, event.header, event.signature, 1)


def _flip(value: Any, number: int) -> Any:
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1]) if value else b"\1"
    if isinstance(value, str):
        return value[:-1] + chr(ord(value[-1]) ^ 2) if value else "\x02"
    return (value or 0) ^ (1 << 62)


def _type(value: Any, number: int) -> Any:
    if isinstance(value, str):
        return f"\udcff{number}"  # as bytes that are no text: see `damage`
    return f"no {number}"


def _none(value: Any, number: int) -> Any:
    return None


def _huge(value: Any, number: int) -> Any:
    if isinstance(value, bytes):
        return bytes(1 << 20) + bytes([number])
    if isinstance(value, str):
        return f"{number}\n\x1b" + "x" * 100_000
    return -(1 << 63) + number


KINDS: dict[str, Callable[[Any, int], Any]] = {"flip": _flip, "type": _type, "none": _none, "huge": _huge}


def damage(database: Path, table: str, column: str, change: Callable[[Any, int], Any], spared: set[Any]) -> int:
    """Change one column of every row that has nothing of `spared`; how many took it."""
    db = sqlite3.connect(database, isolation_level=None)
    db.execute("PRAGMA writable_schema=ON")
    found = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
    db.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE name = ?", (table,))
    db.close()
    db = sqlite3.connect(database, isolation_level=None)
    cursor = db.execute(f"SELECT * FROM {table}")
    names = [item[0] for item in cursor.description]
    changed = 0
    for number, row in enumerate(cursor.fetchall()):
        values = dict(zip(names, row, strict=True))
        if spared & set(row):
            continue
        where = " AND ".join(f"{name} IS ?" for name in names)
        new = change(values[column], number)
        mark = "?"
        if isinstance(new, str) and "\udcff" in new:
            new, mark = new.encode("utf-8", "surrogateescape"), "CAST(? AS TEXT)"
        try:
            changed += db.execute(f"UPDATE {table} SET {column} = {mark} WHERE {where}", (new, *row)).rowcount
        except sqlite3.IntegrityError:
            pass  # a key of a table without row ids is never NULL
    db.execute("PRAGMA writable_schema=ON")
    db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (found, table))
    db.close()
    return changed


class Scene:
    """Two nodes with some talk behind them, to be opened from copies of their folders again and again."""

    def __init__(self, folder: Path) -> None:
        self.configs = listening(folder, "a.test"), listening(folder, "b.test")
        self.template = folder / "template"
        self.spared: set[Any] = {CONTROL}
        self.clients: dict[str, Client] = {}
        self.bea: Client

    @property
    def database(self) -> Path:
        return self.configs[0].data_path / "roost.db"

    async def begin(self) -> None:
        async with Node.open(self.configs[1]) as b, Node.open(self.configs[0]) as a:
            for node, names in ((b, ("bob", "bea")), (a, ("alice", "ann", CONTROL))):
                for name in names:
                    await node.create_user(name, "pw")
                    self.clients[name] = await connect(node, name)
            await befriend(a, b)
            alice, carol, bob, bea = (self.clients[name] for name in ("alice", CONTROL, "bob", "bea"))
            await alice.send("nobody@b.test", b"?")
            for n in range(3):
                last = await alice.send("bob@b.test", b"to bob %d" % n)
                await alice.send("ann@a.test", b"to ann %d" % n)
                await bob.send("alice@a.test", b"to alice %d" % n)
                seen = await carol.send("bea@b.test", b"to bea %d" % n)
                await bea.send("carol@a.test", b"to carol %d" % n)
            await alice.item(lambda i: isinstance(i, api.Failure))
            await bob.message(b"to bob 2")
            await bea.message(b"to bea 2")
            await alice.message(b"to alice 2")
            await carol.message(b"to carol 2")
            await alice.state(last.event, "delivered")
            about = {"target": last.event}
            await alice.send("bob@b.test", b"to bob, edited", kind="edit", **about)
            await alice.send("bob@b.test", b"+1", kind="reaction", **about)
            await bob.send("alice@a.test", b"+1", kind="reaction", **about)
            await carol.state(seen.event, "delivered")
            for who in ("nobody@b.test", "noone@a.test"):
                await alice.ask(api.Block, who)
            await call(a.config, "invite.new", {})
            await a.store.submit(Isolate(b.us.node, EVIL, "a bug", 5))
            for row in (evidence(), rows.Heal(b"?" * 32, 1, 1)):
                await a.store.submit(Keep(row))
            pair = direct_conversation(User(a.us.node, CONTROL), User(b.us.node, "bea"))
            self.spared |= {pair, from_text(carol.device, 16)}
            self.spared |= {log.log for log in await a.store.read(reads.logs_of, pair)}
        for config in self.configs:
            shutil.copytree(config.data_path, self.template / config.name)

    def again(self) -> None:
        for config in self.configs:
            shutil.rmtree(config.data_path)
            shutil.copytree(self.template / config.name, config.data_path)

    async def check(self, a: Node, b: Node, case: str) -> None:
        clients = dict(self.clients)
        if a.held:  # what it knows of its own lives is damaged: then it may be an old copy
            assert case.startswith("meta.")
            await call(a.config, "restore.accept", {})
            clients |= {name: await connect(a, name) for name in ("alice", CONTROL)}
            await clients["alice"].channel.close()
        try:
            await call(a.config, "peer.add", {"link": str(b.link)})
        except AdminError:  # its name is under another id now
            await call(a.config, "peer.remove", {"node": "b.test"})
            await call(a.config, "peer.add", {"link": str(b.link)})
        carol, self.bea = await again(a, clients[CONTROL]), await again(b, self.clients["bea"])
        await self._traffic(carol, case)
        history = await carol.ask(api.GetHistory, "bea@b.test")
        assert [type(m) for m in history.messages] == [api.Message] * 8
        await self._alice(a, carol, clients["alice"], case)
        for op in ("verify", "status", "user.list", "peer.list", "invite.list", "quarantine.list"):
            await call(a.config, op, {})

    async def _traffic(self, carol: Client, case: str) -> None:
        await carol.send("bea@b.test", case.encode(), key=case)
        await self.bea.message(case.encode())
        await self.bea.send("carol@a.test", b"re " + case.encode())
        await carol.message(b"re " + case.encode())

    async def _alice(self, a: Node, carol: Client, before: Client, case: str) -> None:
        """She may lose what was damaged; what comes from now on reaches her, or its sender hears why not."""
        try:
            alice = await again(a, before)
        except ApiError:
            return
        for request in (api.GetHistory, api.GetWhy):
            try:
                await alice.ask(request, "bob@b.test")
            except ApiError:
                pass
        page = await alice.ask(api.GetConversations)
        for conversation in page.conversations:
            try:
                await alice.ask(api.GetHistory, conversation.conversation)
            except ApiError:
                pass
        try:
            await alice.send("bob@b.test", b"alice " + case.encode())
        except ApiError:
            pass
        try:
            await carol.send("alice@a.test", b"after " + case.encode())
        except ApiError:
            return
        await alice.message(b"after " + case.encode())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("row", list(NAMES), ids=lambda row: NAMES[row])
async def test_a_damaged_row_of_any_table_stops_nothing(
    tmp_path: Path, row: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    bugs: list[BaseException] = []
    monkeypatch.setattr(Node, "report", lambda self, error: bugs.append(error))
    scene, table = Scene(tmp_path), NAMES[row]
    failures: list[str] = []
    await scene.begin()
    tried = 0
    every = os.environ.get("CI") == "true"  # else two kinds of damage for each column, which takes half the time
    for place, column in enumerate(row.__annotations__):
        for kind, change in list(KINDS.items())[0 if every else place % 2 :: 1 if every else 2]:
            case = f"{table}.{column} {kind}"
            scene.again()
            if not damage(scene.database, table, column, change, scene.spared):
                continue
            tried += 1
            try:
                seen = await call(scene.configs[0], "verify", {})
                assert not seen["ok"] or kind in ("flip", "huge") or case in UNSEEN, "verify sees nothing"
                async with asyncio.timeout(25), Node.open(scene.configs[0]) as a, Node.open(scene.configs[1]) as b:
                    await scene.check(a, b, case)
            except Exception as error:
                failures.append(f"{case}: {error!r}")
            failures += [f"{case}: a bug: {bug!r}" for bug in bugs]
            bugs.clear()
    assert tried > len(row.__annotations__), "there is nothing in this table to damage"
    assert not failures, "\n".join(failures)

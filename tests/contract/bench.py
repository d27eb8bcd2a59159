"""A store without a node around it: what is submitted, what was committed, how many statements it took."""

import asyncio
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import event

from federation.event import Header, Signed, body_hash, sign_event
from federation.identity import NodeKey, check_chain, encode_chain, new_chain
from federation.ids import INCARNATION_BYTES, Log, User, direct_conversation
from federation.wire import Segment
from node.core import rows
from node.core.context import Context
from node.core.peers import ChangePeer, MeetPeer
from node.core.people import AddAccount
from node.core.progress import CloseNotices
from node.core.send import Send
from node.core.view import Command, Hint, Key, View
from node.storage import direct
from node.storage.migrate import migrate
from node.storage.runner import open_runner
from node.storage.writer import Store

NOW_MS = 1_900_000_000_000
DEVICE = b"d" * 16


class Far:
    """Another node, as the store sees it: a proved chain and signed events."""

    def __init__(self, seed: bytes = b"f", name: str = "far.test") -> None:
        self.name, self.key = name, NodeKey(seed * 32)
        self.chain = new_chain(self.key, NodeKey(seed.upper() * 32).public, seed * 32)
        self.node = check_chain(self.chain).node
        self.incarnation = seed * INCARNATION_BYTES

    def segment(
        self, to: User, bodies: Iterable[bytes], sender: str = "bob", first: int = 1, previous: bytes | None = None,
        stamp: int = NOW_MS << 16,
    ) -> Segment:  # fmt: skip
        """A run of this node's log of the direct conversation with `to`."""
        members = tuple(sorted((User(self.node, sender), to)))
        conversation = direct_conversation(*members)
        signed: list[Signed] = []
        for seq, body in enumerate(bodies, first):
            header = Header(
                version=1, conversation=conversation, origin=self.node, incarnation=self.incarnation, seq=seq,
                previous=previous, after=None, sender=sender, device=DEVICE, stamp=stamp + seq, control=None,
                kind="message", target=None, manifest=None, body_format="text", body_hash=body_hash(body),
                body_bytes=len(body), expires_ms=None,
            )  # fmt: skip
            made = sign_event(header, body, self.key)
            signed.append(made.signed)
            previous = made.id
        return Segment(conversation, self.node, self.incarnation, first, members, tuple(signed))


class Bench:
    def __init__(self, database: str) -> None:
        key = NodeKey(b"k" * 32)
        node = check_chain(new_chain(key, NodeKey(b"r" * 32).public, b"e" * 32)).node
        self.context = Context(node, "near.test", key, b"i" * INCARNATION_BYTES, b"s" * INCARNATION_BYTES)
        self.database = database
        self.hints: list[Hint] = []
        self.failures: list[BaseException] = []
        self.now_ms = NOW_MS
        self._new()

    def _new(self) -> None:
        self.runner = open_runner(self.database)
        self.store = Store(
            self.runner, self.context, [CloseNotices()], lambda: self.now_ms, self.hints.extend, self.failures.append
        )
        self.task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self.runner.write(migrate)

    def go(self) -> None:
        """Start the writer: everything submitted before goes into its first transaction."""
        if self.task is None:
            self.task = asyncio.ensure_future(self.store.run())

    async def all(self, *commands: Command) -> list[Any]:
        """Submit together; outcomes and refusals in order."""
        futures = [self.store.submit(command) for command in commands]
        self.go()
        async with asyncio.timeout(60):
            return await asyncio.gather(*futures, return_exceptions=True)

    async def do(self, command: Command) -> Any:
        (outcome,) = await self.all(command)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def get(self, row: type, *key: Any) -> Any:
        return await self.do(Get(row, key))

    async def close(self) -> None:
        self.store.stop()
        if self.task is not None:
            await asyncio.gather(self.task, return_exceptions=True)
        await self.store.close()

    async def reopen(self) -> None:
        """What another process life finds."""
        await self.close()
        self._new()

    def break_commits(self) -> None:
        """From now on the disk takes no commit. PostgreSQL: the server ends our connection just then."""
        writer = self.runner._writer
        if self.runner.dialect == "sqlite":

            def fail() -> None:
                raise sqlite3.OperationalError("disk I/O error")

            writer.commit = fail
        else:

            @event.listens_for(writer.sync_engine, "commit")
            def _(connection: Any) -> None:
                connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    @contextmanager
    def counting(self) -> Iterator[list[str]]:
        """The statements that go to the driver, executemany counted once."""
        seen: list[str] = []

        def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            seen.append(statement.split(" WHERE ")[0][:80])

        def noted(call: Any) -> Any:
            def called(connection: Any, sql: str, values: Any) -> Any:
                if self.runner.dialect == "sqlite":
                    note(connection, None, sql)
                return call(connection, sql, values)

            return called

        engine = getattr(self.runner._writer, "sync_engine", None) or self.runner._writer._engine
        event.listen(engine, "before_cursor_execute", note)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(direct, "run", noted(direct.run))
            patch.setattr(direct, "run_many", noted(direct.run_many))
            yield seen
        event.remove(engine, "before_cursor_execute", note)

    def user(self, local: str) -> User:
        return User(self.context.node, local)

    def context_log(self, conversation: bytes) -> Log:
        return Log(conversation, self.context.node, self.context.incarnation)

    def send(self, key: str, to: User, body: bytes = b"hello", sender: str = "alice", **more: Any) -> Send:
        return Send(sender, DEVICE, key, to, "message", "text", body, **more)

    async def people(self, *names: str) -> None:
        for outcome in await self.all(*(AddAccount(name, "hash") for name in names)):
            assert isinstance(outcome, rows.Account), outcome

    async def befriend(self, far: Far) -> None:
        """Accepted here, and proved."""
        await self.do(ChangePeer(far.node, "accepted", far.name, ("h:1",)))
        await self.do(MeetPeer(far.node, far.name, encode_chain(far.chain), ("h:1",), far.node))


@dataclass(frozen=True)
class Put:
    puts: tuple[Any, ...]

    def keys(self, context: Context) -> Iterable[Key]:
        return ()

    def decide(self, view: View, context: Context) -> str:
        for row in self.puts:
            view.put(row)
        return "put"


@dataclass(frozen=True)
class Delete:
    row: Any

    def keys(self, context: Context) -> Iterable[Key]:
        return ()

    def decide(self, view: View, context: Context) -> str:
        view.delete(self.row)
        return "deleted"


@dataclass(frozen=True)
class Get:
    row: type
    key: tuple[Any, ...]

    def keys(self, context: Context) -> Iterable[Key]:
        yield self.row, self.key

    def decide(self, view: View, context: Context) -> Any:
        return view.get(self.row, *self.key)


@dataclass(frozen=True)
class Bug:
    """A decision that breaks in a way nobody meant."""

    def keys(self, context: Context) -> Iterable[Key]:
        return ()

    def decide(self, view: View, context: Context) -> Any:
        raise ZeroDivisionError("a bug")

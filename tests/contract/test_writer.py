"""The batch writer: what a batch costs, what harms it, and what it never does."""

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.util import await_only

from federation.ids import User, digest, direct_conversation
from node.api import ApiError
from node.core import rows
from node.core.people import AddAccount, AddDevice, ChangeAccount
from node.core.progress import Acknowledge, Seen
from node.core.view import Missing, View
from node.storage import batch, reads, runner
from node.storage.migrate import migrate
from node.storage.schema import NAMES
from node.storage.writer import WAITING_MAX, Store, StoreFailed
from tests.contract.bench import DEVICE, Bench, Bug, Far, Get, Put


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
async def test_statements_do_not_grow_with_the_batch(bench: Bench, remote: bool) -> None:
    far = Far()
    await bench.people("alice", *(f"u{n}" for n in range(256)))
    await bench.befriend(far)
    await bench.do(bench.send("warm", User(far.node if remote else bench.context.node, "u255")))
    counts: dict[int, int] = {}
    serial = 0
    for size in (1, 16, 256):
        to = [User(far.node if remote else bench.context.node, f"u{n}") for n in range(size)]
        commands = [bench.send(f"{size}-{n}", user) for n, user in enumerate(to)]
        before, serial = bench.store.commits, serial + size
        with bench.counting() as seen:
            outcomes = await bench.all(*commands)
        assert not [o for o in outcomes if isinstance(o, BaseException)]
        assert bench.store.commits == before + 1, "they did not share one transaction"
        counts[size] = len(seen)
    assert counts[1] == counts[16] == counts[256], counts
    assert counts[1] <= 40


async def test_a_batch_with_more_keys_than_a_statement_takes(bench: Bench) -> None:
    """One client may name 64 logs in each of 256 requests: that is refused or done, and never stops the node."""
    await bench.people("alice")
    commands = []
    for number in range(256):
        log = [bench.context_log(digest("c", bytes([number, n]))) for n in range(64)]
        commands.append(Acknowledge("alice", DEVICE, 0, tuple(Seen(one, read=1) for one in log)))
    outcomes = await bench.all(*commands)
    assert {getattr(o, "code", o) for o in outcomes} == {"not_found"}
    assert bench.failures == []
    assert (await bench.get(rows.Account, "alice")).state == "active"


async def test_a_batch_that_was_not_committed_is_not_remembered(bench: Bench) -> None:
    """Rows that the writer used last are kept in memory: only what is on disk may be among them."""
    await bench.people("alice")
    await bench.do(bench.send("k1", bench.user("alice")))
    before = await bench.get(rows.Account, "alice")
    log = bench.context_log(direct_conversation(bench.user("alice"), bench.user("alice"))).key
    twice = await bench.get(rows.StoredEvent, log, 1)
    with pytest.raises(ApiError, match="not stored"):
        await bench.do(Put((before._replace(display_name="never"), twice)))
    assert await bench.get(rows.Account, "alice") == before


async def test_what_the_writer_used_last_needs_no_query_and_is_bounded(bench: Bench) -> None:
    await bench.people("alice", "bob")
    await bench.do(bench.send("k1", bench.user("bob")))
    with bench.counting() as seen:
        await bench.do(bench.send("k2", bench.user("bob")))
    selects = [s for s in seen if s.startswith("SELECT") and "request_hash" not in s]
    assert not selects or not bench.runner.alone
    hot, view = batch.Hot(2), View()
    view.loaded = {(rows.Account, (name,)): None for name in ("a", "b", "c")}
    hot.keep(view)
    assert list(hot.rows) == [(rows.Account, ("b",)), (rows.Account, ("c",))]
    seen_by = View(hot.rows)
    assert seen_by.get(rows.Account, "b") is None
    with pytest.raises(Missing):
        seen_by.want((rows.Account, ("a",)), (rows.Account, ("c",)))


async def test_what_nobody_waits_for_rides_along_or_goes_after_a_while(bench: Bench) -> None:
    await bench.people("alice")
    before = bench.store.commits
    later = bench.store.submit(Put(()), later=True)
    await bench.do(Put(()))
    assert later.done()
    assert bench.store.commits == before + 1
    async with asyncio.timeout(60):
        assert await bench.store.submit(Put(()), later=True) == "put"
    assert bench.store.commits == before + 2


async def test_what_nobody_waits_for_is_committed_at_the_end(bench: Bench) -> None:
    await bench.people("alice")
    later = bench.store.submit(Put(()), later=True)
    bench.store.stop()
    async with asyncio.timeout(60):
        assert await later == "put"


async def test_refused_commands_leave_nothing(bench: Bench) -> None:
    await bench.people("alice")
    with bench.counting() as seen:
        outcomes = await bench.all(
            bench.send("k1", bench.user("nobody")),
            AddAccount("alice", "again"),
            AddAccount("No Name!", ""),
            AddAccount("carol", "", invite=b"?" * 32),
        )
    assert [o.code for o in outcomes] == ["unknown_user", "name_taken", "bad_request", "bad_invite"]
    assert not [s for s in seen if not s.startswith(("SELECT", "BEGIN"))], seen
    assert await bench.get(rows.SentKey, DEVICE, "k1") is None
    assert await bench.get(rows.Account, "carol") is None
    assert (await bench.get(rows.Account, "alice")).password == "hash"


async def test_a_refusal_harms_nobody_in_its_batch(bench: Bench) -> None:
    await bench.people("alice", "bob")
    first, refused, last = await bench.all(
        bench.send("1", bench.user("bob")), bench.send("2", bench.user("nobody")), bench.send("3", bench.user("bob"))
    )
    assert (first.seq, refused.code, last.seq) == (1, "unknown_user", 2)
    assert bench.store.commits == 2


@pytest.mark.parametrize("at", [0, 7, 15])
@pytest.mark.parametrize("poison", ["bug", "row"])
async def test_a_poisonous_command_is_split_off(bench: Bench, at: int, poison: str) -> None:
    await bench.people("alice", "bob")
    taken = rows.Item("eve", 1 << 40, b"l" * 32, 1)
    await bench.do(Put((taken,)))
    commands: list[Any] = [bench.send(f"k{n}", bench.user("bob")) for n in range(15)]
    commands.insert(at, Bug() if poison == "bug" else Put((taken,)))
    outcomes = await bench.all(*commands)
    bad = outcomes.pop(at)
    assert isinstance(bad, ZeroDivisionError) if poison == "bug" else bad.code == "failed"
    assert [o.seq for o in outcomes] == list(range(1, 16))  # in order, and none twice
    assert bench.failures == []
    assert (await bench.do(bench.send("after", bench.user("bob")))).seq == 16


async def test_text_that_a_database_cannot_hold_harms_its_sender_only(bench: Bench) -> None:
    await bench.people("alice", "bob")
    _, odd, other = await bench.all(
        bench.send("1", bench.user("bob")),
        AddDevice(b"1" * 16, "alice", "nul \0 name", b"t" * 32, b"s" * 32),
        bench.send("2", bench.user("bob")),
    )
    assert isinstance(odd, rows.Device) or odd.code == "failed"
    assert other.seq == 2
    assert bench.failures == []


async def test_hints_follow_the_commit(bench: Bench) -> None:
    await bench.people("alice", "bob")
    bench.hints.clear()
    await bench.all(bench.send("1", bench.user("bob")), bench.send("2", bench.user("nobody")))
    assert {(h.kind, h.key) for h in bench.hints} == {("mailbox", "alice"), ("mailbox", "bob")}
    bench.hints.clear()
    await bench.all(bench.send("3", bench.user("nobody")))
    assert bench.hints == []


async def test_a_caller_that_leaves_does_not_wedge_the_writer(bench: Bench) -> None:
    await bench.people("alice", "bob")
    gone = bench.store.submit(bench.send("gone", bench.user("bob")))
    stays = bench.store.submit(bench.send("stays", bench.user("bob")))
    gone.cancel()
    async with asyncio.timeout(20):
        assert (await stays).seq == 2  # the one whose caller left was committed all the same
        assert await bench.get(rows.SentKey, DEVICE, "gone") is not None


async def test_a_cancelled_transaction_is_finished_and_frees_the_connection(bench: Bench) -> None:
    entered, let_go = threading.Event(), threading.Event()

    def slow(connection: Any) -> None:
        entered.set()
        if bench.runner.dialect == "sqlite":
            let_go.wait(20)
        else:
            connection.exec_driver_sql("SELECT pg_sleep(0.2)")
        migrate(connection)
        connection.exec_driver_sql("INSERT INTO mailboxes (local, position, items, bytes) VALUES ('kept', 1, 1, 0)")

    task = asyncio.ensure_future(bench.runner.write(slow))
    async with asyncio.timeout(20):
        while not entered.is_set():
            await bench.runner.read(lambda c: None)  # a turn of the loop and of the readers
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        let_go.set()
        assert task.cancelled()
        assert await bench.get(rows.Mailbox, "kept") == rows.Mailbox("kept", 1, 1)


async def test_another_process_that_holds_the_database_is_waited_for_and_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BUSY_S", 0.1)
    bench = Bench(f"sqlite:///{tmp_path / 'held.db'}")
    await bench.open()
    await bench.people("alice")
    other = sqlite3.connect(tmp_path / "held.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ApiError, match="another process") as refused:
        await bench.do(bench.send("k1", bench.user("alice")))
    assert (refused.value.code, refused.value.retry) == ("busy", True)
    monkeypatch.setattr(runner, "BUSY_S", 60)
    waits = asyncio.ensure_future(bench.do(bench.send("k1", bench.user("alice"))))
    assert await bench.store.read(reads.account, "alice") is not None  # reads go on
    assert not waits.done()
    other.close()
    assert (await waits).seq == 1
    await bench.close()


async def test_a_failed_commit_is_answered_ok_to_nobody(bench: Bench) -> None:
    await bench.people("alice", "bob")
    await bench.do(ChangeAccount("bob", display_name="Bob"))
    bench.hints.clear()
    bench.break_commits()
    group = [bench.store.submit(bench.send(f"k{n}", bench.user("bob"))) for n in range(8)]
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(*group, return_exceptions=True)
    assert [type(o) for o in outcomes] == [StoreFailed] * 8
    assert [type(f) for f in bench.failures] == [StoreFailed]
    assert bench.hints == []
    with pytest.raises(StoreFailed):  # and nothing is promised ever after
        await bench.store.submit(bench.send("later", bench.user("bob")))
    assert bench.task is not None
    with pytest.raises(Exception, match=r"disk I/O error|terminat|clos"):
        await bench.task
    await bench.reopen()
    found = await bench.all(*(Get(rows.SentKey, (DEVICE, f"k{n}")) for n in range(8)))
    assert found == [None] * 8
    assert (await bench.get(rows.Account, "bob")).display_name == "Bob"


async def test_a_failed_commit_of_the_administrators_stops_the_store_too(bench: Bench) -> None:
    await bench.people("alice", "bob")
    bench.break_commits()
    async with asyncio.timeout(20):
        with pytest.raises(StoreFailed):
            await bench.store.alone(lambda connection: None)
    assert [type(f) for f in bench.failures] == [StoreFailed]
    with pytest.raises(StoreFailed):
        await bench.store.submit(bench.send("later", bench.user("bob")))


async def test_a_bug_in_what_the_administrator_asked_for_stops_nothing(bench: Bench) -> None:
    await bench.people("alice", "bob")

    def broken(connection: object) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(StoreFailed, match="a bug"):
        await bench.store.alone(broken)
    assert (await bench.do(bench.send("k", bench.user("bob")))).seq == 1


async def test_a_store_that_stops_commits_what_waits_and_takes_nothing_new(bench: Bench) -> None:
    await bench.people("alice", "bob")
    waiting = [bench.store.submit(bench.send(f"k{n}", bench.user("bob"))) for n in range(600)]
    bench.store.stop()
    with pytest.raises(ApiError) as refused:
        await bench.store.submit(bench.send("late", bench.user("bob")))
    assert refused.value.code == "busy"
    async with asyncio.timeout(60):
        assert [o.seq for o in await asyncio.gather(*waiting)] == list(range(1, 601))
        assert bench.task is not None
        await bench.task


async def test_the_queue_is_bounded(bench: Bench) -> None:
    fresh = Store(bench.runner, bench.context, [], lambda: 0, bench.hints.extend, bench.failures.append)
    futures = [fresh.submit(Bug()) for _ in range(WAITING_MAX)]
    assert fresh.waiting == WAITING_MAX
    with pytest.raises(ApiError, match="too much"):
        await fresh.submit(Bug())
    for future in futures:
        future.cancel()


async def test_a_read_sees_one_moment(bench: Bench) -> None:
    """A feed is two queries: what is committed between them would be past a cursor that the first did not see."""
    await bench.people("alice")
    loop = asyncio.get_running_loop()

    def work(connection: Connection) -> list[int]:
        seen = [len(reads.all_accounts(connection))]
        adding = asyncio.run_coroutine_threadsafe(bench.people("bob"), loop)
        if bench.runner.dialect == "postgresql":
            await_only(asyncio.wrap_future(adding))  # it runs on the loop
        else:
            adding.result(60)
        return [*seen, len(reads.all_accounts(connection))]

    assert await bench.store.read(work) == [1, 1]
    assert len(await bench.store.read(reads.all_accounts)) == 2


async def test_rows_are_found_by_their_key_and_never_by_reading_the_table(bench: Bench) -> None:
    """However many rows there are: a plan that scans makes every message dearer than the one before."""
    postgres = bench.runner.dialect == "postgresql"
    statements = batch.Statements(bench.runner.dialect)

    def plan(connection: Connection, row: type, count: int) -> str:
        values = tuple(_some(kind) for kind in list(row.__annotations__.values())[: rows.KEYS[row]]) * count
        prefix = "EXPLAIN " if postgres else "EXPLAIN QUERY PLAN "
        return str(list(connection.exec_driver_sql(prefix + statements.select(row, count), values)))

    def plans(connection: Connection) -> dict[tuple[type, int], str]:
        if postgres:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # an empty table is read whole
        return {(row, count): plan(connection, row, count) for row in NAMES for count in (1, 2, 256)}

    for (row, _), told in (await bench.runner.write(plans)).items():
        assert f"SCAN {NAMES[row]}" not in told, told
        assert "Seq Scan" not in told, told


def _some(kind: Any) -> Any:
    return {"int": 1, "bytes": b"b", "str": "s"}[kind if isinstance(kind, str) else kind.__name__]

"""Events that are lost at their origin, and events that cannot be processed: no log stops, and nobody is kept in the
dark (PROTOCOL.md 4.13, 4.14)."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, update

from federation.event import decode_header, event_id, is_lost, lost_event
from federation.ids import User
from federation.wire import LogAck, Segment
from node.api import ApiError
from node.config import Limits
from node.core import rows
from node.core.damage import REFUSALS
from node.core.quarantine import BYTES_MAX, EVENTS_MAX, Isolate, Release
from node.core.receive import Receive
from node.host import Host
from node.storage import outgoing, reads
from node.storage.schema import TABLES
from node.system import System
from tests.contract.bench import Bench, Far

EVENTS = TABLES[rows.StoredEvent]
PROTOCOL = Path(__file__).parents[2] / "federation" / "PROTOCOL.md"


def only(segment: Segment, number: int) -> Segment:
    return msgspec.structs.replace(segment, first=segment.first + number, events=(segment.events[number],))


async def feed(bench: Bench, local: str = "alice") -> list[Any]:
    found, *_ = await bench.store.read(reads.feed, local, 0, 100, 1 << 20)
    return [i for i in found if isinstance(i, reads.Placed | reads.Broken)]


@pytest.mark.parametrize("how", ["header", "body", "gone"])
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_what_the_origin_lost_travels_as_lost(bench: Bench, how: str, at: int) -> None:
    """The next event names the id, and so does the head: the receiver's chain goes on."""
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    sent = [await bench.do(bench.send(f"k{n}", User(far.node, "bob"), b"%d" % n)) for n in range(3)]
    where = EVENTS.c.seq == at
    change = delete(EVENTS).where(where) if how == "gone" else update(EVENTS).where(where).values({how: b"damaged"})
    await bench.runner.write(lambda connection: connection.execute(change))
    (run,), _, _ = await bench.store.read(outgoing.pending, far.node, b"", {}, set(), 64, 1 << 20)
    assert [is_lost(e) for e in run.events] == [n == at for n in (1, 2, 3)]
    good = [event_id(e.header) for e in run.events if not is_lost(e)]
    assert len(good) == 2
    assert decode_header(run.events[2].header).previous == run.events[1].header if at == 2 else True
    assert len(sent) == 3


async def test_a_lost_event_is_final_and_its_reader_is_told(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    whole = far.segment(bench.user("alice"), [b"1", b"2", b"3"])
    marked = msgspec.structs.replace(
        whole, events=(whole.events[0], lost_event(event_id(whole.events[1].header)), whole.events[2])
    )
    for _ in range(2):  # the answer may be lost
        ack = await bench.do(Receive(far.node, marked))
        assert (ack.seq, [(v.seq, v.verdict, v.code) for v in ack.verdicts]) == (3, [(2, "refused", "lost")])
    items = await feed(bench)
    assert [i.event.body if isinstance(i, reads.Placed) else (i.why, i.seq) for i in items] == [
        b"1", ("lost", 2), b"3",
    ]  # fmt: skip


async def test_what_is_here_is_not_lost_because_its_origin_lost_it(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    whole = far.segment(bench.user("alice"), [b"1"])
    await bench.do(Receive(far.node, whole))
    lost = msgspec.structs.replace(whole, events=(lost_event(bytes(32)),))
    ack = await bench.do(Receive(far.node, lost))
    assert (ack.seq, ack.verdicts) == (1, ())
    assert [i.event.body for i in await feed(bench)] == [b"1"]


async def host(bench: Bench) -> Host:
    async def hold(reason: str, stamp: int) -> None:
        raise AssertionError(reason)

    bench.go()
    return Host(bench.store, bench.context, None, lambda *_: None, hold, System(), Limits(), lambda *_: None)  # type: ignore[arg-type]


async def test_the_fifth_failure_puts_it_into_quarantine_and_a_replay_delivers_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    whole = far.segment(bench.user("alice"), [b"1", b"evil", b"3"])
    take = Receive._take

    def breaks(self: Receive, view: Any, context: Any, event: Any, peer: Any) -> None:
        if event.signed.body == b"evil":
            raise ZeroDivisionError("a bug")
        take(self, view, context, event, peer)

    monkeypatch.setattr(Receive, "_take", breaks)
    us = await host(bench)
    for _ in range(4):
        ack: LogAck = await us.receive(far.node, whole)
        assert (ack.seq, [(v.seq, v.verdict, v.code) for v in ack.verdicts]) == (1, [(2, "later", "failed")])
    ack = await us.receive(far.node, whole)
    assert (ack.seq, [(v.seq, v.verdict, v.code) for v in ack.verdicts]) == (3, [(2, "refused", "quarantined")])
    again = await us.receive(far.node, whole)
    assert [(v.seq, v.code) for v in again.verdicts] == [(2, "quarantined")], "the answer was lost"
    assert [i.event.body if isinstance(i, reads.Placed) else i.why for i in await feed(bench)] == [
        b"1", "missing", b"3",
    ]  # fmt: skip
    (held,) = await bench.store.read(reads.quarantined)
    assert (held.seq, held.tries, "ZeroDivisionError" in held.error, held.peer) == (2, 5, True, far.node)
    assert us.failures >= 5
    with pytest.raises(ZeroDivisionError):  # nothing was mended: it stays
        await bench.do(Release(held.log, 2, replay=True))
    monkeypatch.undo()
    await bench.do(Release(held.log, 2, replay=True))
    assert [i.event.body for i in await feed(bench) if isinstance(i, reads.Placed)] == [b"1", b"evil", b"3", b"evil"]
    assert await bench.store.read(reads.quarantined) == []
    size = await bench.get(rows.QuarantineSize, far.node)
    assert (size.events, size.size_bytes) == (0, 0)
    assert (await bench.get(rows.LogHead, held.log)).seq == 3


async def test_the_quarantine_is_bounded(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    whole = far.segment(bench.user("alice"), [b"%d" % n for n in range(EVENTS_MAX + 1)])
    for number in range(EVENTS_MAX):
        assert (await bench.do(Isolate(far.node, only(whole, number), "a bug", 5))).seq == number + 1
    with pytest.raises(ApiError) as error:
        await bench.do(Isolate(far.node, only(whole, EVENTS_MAX), "a bug", 5))
    assert error.value.code == "storage_full"
    (held, *_) = await bench.store.read(reads.quarantined)
    await bench.do(Release(held.log, held.seq, replay=False))
    assert (await bench.do(Isolate(far.node, only(whole, EVENTS_MAX), "a bug", 5))).seq == EVENTS_MAX + 1
    assert BYTES_MAX > EVENTS_MAX * 1024


async def test_a_segment_full_of_what_is_in_quarantine_is_one_decision(bench: Bench) -> None:
    far = Far()
    await bench.people("alice")
    await bench.befriend(far)
    whole = far.segment(bench.user("alice"), [b"%d" % n for n in range(20)])
    for number in range(20):
        await bench.do(Isolate(far.node, only(whole, number), "a bug", 5))
    await bench.reopen()
    ack = await bench.do(Receive(far.node, whole))
    assert (ack.seq, {v.code for v in ack.verdicts}, len(ack.verdicts)) == (20, {"quarantined"}, 20)


def test_every_final_verdict_that_is_remembered_is_known_to_history() -> None:
    table = re.findall(r"^\| (`.*?`) \| refused \|", PROTOCOL.read_text(), re.MULTILINE)
    codes = {code for cell in table for code in re.findall(r"`(\w+)`", cell)}
    assert codes - {"equivocation", "lost", "quarantined"} == set(REFUSALS)

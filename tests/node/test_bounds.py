"""What a running node refuses, by name and counted; and that no bound is out of sight."""

import ast
import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import fields

from federation import link
from node import api, bounds, host
from node.admin import call
from node.api import ApiError
from node.config import Config, Limits, Link
from node.core.people import AddInvite
from node.core.progress import PeerAcked
from node.node import Node
from node.system import System
from node.upkeep import DRIFT_MS_MAX, EXPIRY_EVERY_MS, EXPIRY_MS
from tests.node.helpers import WAIT_S, befriend, config, connect, listening, two_nodes

ROOT = Path(__file__).parents[2]
# Limits of one frame, page, message or transaction: refused or cut where they are read, and nothing piles up there.
FORMS = {
    "federation.link.SEGMENT_BYTES", "federation.ids.LOCAL_NAME_CHARS_MAX", "federation.ids.DOMAIN_CHARS_MAX",
    "federation.event.BODY_BYTES_MAX", "federation.event.HEADER_BYTES_MAX", "federation.event.MEDIA_MAX",
    "federation.event.EXT_KEYS_MAX", "federation.event.REACTION_BYTES_MAX", "node.core.acts.OF_ONE_MAX",
    "node.api.REACTION_BYTES_MAX",
    "federation.event.SEQ_MAX", "federation.peers.EXPONENT_MAX",
    "federation.ports.FRAME_BYTES_MAX", "federation.ports.HELLO_BYTES_MAX", "federation.websocket.MESSAGE_BYTES_MAX",
    "federation.identity.ROTATIONS_MAX", "federation.identity.EVENT_KEYS_MAX", "federation.identity.ADDRESSES_MAX",
    "federation.wire.SEGMENTS_MAX", "federation.wire.EVENTS_MAX", "federation.wire.RECEIPTS_MAX",
    "federation.wire.EXCEPTIONS_MAX", "federation.wire.REASON_CHARS_MAX",
    "node.requests.HISTORY_BYTES_MAX", "node.api.PAGE_MAX", "node.api.BODY_BYTES_MAX",
    "node.api.CLIENT_FRAME_BYTES_MAX", "node.api.PASSWORD_CHARS_MAX", "node.storage.outgoing.BATCH_BYTES_MAX",
    "node.storage.outgoing.LOGS_MAX", "node.core.damage.NUMBER_MAX", "node.core.damage.STAMP_MAX",
    "node.storage.reads.MARKS_MAX", "node.storage.life.NEWEST_MAX", "node.storage.waits.LOGS_MAX",
    "federation.control.CHAIN_BYTES_MAX", "federation.control.CUTS_MAX", "federation.control.ENTRY_BYTES_MAX",
    "federation.control.KEYS_CACHED_MAX", "federation.control.PEOPLE_MAX", "federation.control.PROPOSAL_BYTES_MAX",
    "federation.control.STEWARDS_MAX", "federation.roster.CHAINS_BYTES_MAX", "federation.roster.HISTORY_MAX",
    "federation.roster.LINKS_MAX", "federation.roster.MEMBERS_MAX", "federation.roster.PAST_CUTS_MAX",
    "federation.roster.PAST_MAX", "federation.roster.USED_MAX", "federation.stewards.PENDING_MAX",
    "federation.lineage.CHAINS_MAX", "federation.lineage.STATE_BYTES_MAX", "federation.lineage.STATE_PARTS_MAX",
    "federation.lineage.TURNS_MAX",
    "node.witness.BYTES_MAX",
    "node.storage.runner.WAL_PAGES_MAX",
    "federation.wire.RECALLED_MAX", "federation.wire.EPHEMERALS_MAX", "federation.wire.HOLDS_MS_MAX",
    "node.ephemerals.LOOK_MAX", "node.storage.look.CONTACTS_MAX", "node.storage.blocks.ASKED_MAX",
    "node.storage.waits.GIVE_UP_MAX", "node.storage.batch.ROUNDS_MAX", "node.storage.batch.KEYS_MAX",
    "node.storage.writer.BATCH_MAX", "node.admin.LINE_BYTES_MAX", "node.admin.ANSWER_BYTES_MAX",
    "node.core.context.FUTURE_MERGE_MS_MAX", "node.core.context.FUTURE_MS_MAX", "node.config_file.CONFIG_BYTES_MAX",
    "limits.message_bytes", "federation.dialer.RECEIVE_BYTES_MAX", "federation.dialer.READ_BATCH_MAX",
    "node.upkeep.RESERVE_BYTES_MAX", "node.upkeep.DRIFT_MS_MAX", "node.backup.SMALL_BYTES_MAX",
    "node.repair.EXAMPLES_MAX", "node.storage.reads.STAMP_AHEAD_MAX",
}  # fmt: skip
# Of one connection, and enforced by its transport, which ends it or holds it back; the number of connections counts.
TRANSPORT = {
    "federation.quic.BACKLOG_BYTES_MAX", "federation.memory.BACKLOG_BYTES_MAX", "federation.credit.STREAMS_MAX",
    "federation.credit.GAPS_MAX", "federation.endpoint.RESETS_PER_S_MAX", "federation.endpoint.RESET_BYTES_MAX",
    "federation.udp.BATCH_BYTES_MAX", "federation.udp.SEGMENTS_MAX",
}  # fmt: skip


def constants() -> set[str]:
    """Every module constant of node and federation that says how many or how much."""
    found = set()
    for file in [*(ROOT / "node").rglob("*.py"), *(ROOT / "federation").rglob("*.py")]:
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if module.startswith(("node.client", "node.cli", "node.storage.migrations")):
            continue
        for node in ast.parse(file.read_text()).body:
            for target in node.targets if isinstance(node, ast.Assign) else ():
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                found |= {f"{module}.{n.id}" for n in names if isinstance(n, ast.Name) and n.id.endswith("_MAX")}
    return found | {f"limits.{field.name}" for field in fields(Limits)}


async def registry(node: Node) -> dict[str, bounds.Bound]:
    return {bound.name: bound for bound in await bounds.all_bounds(node)}


async def test_every_bound_is_shown_with_its_counter(tmp_path: Path) -> None:
    async with Node.open(listening(tmp_path)) as node:
        shown = {of for bound in (await registry(node)).values() for of in bound.of}
        status = await call(node.config, "status", {})
    assert sorted(constants() - shown - FORMS - TRANSPORT - {"limits.disk_reserve_bytes"}) == [], (
        "a bound that `roost status` does not show: name it in node/bounds.py"
    )
    assert sorted((shown | FORMS | TRANSPORT) - constants() - OTHER) == [], "there is no such bound any more"
    assert len({row["name"] for row in status["bounds"]}) == len(status["bounds"]) > 20
    assert all(row["used"] <= row["bound"] for row in status["bounds"])
    assert {"disk_free", "disk_reserve"} <= set(status)


OTHER = {
    "link.window_events", "link.window_bytes", "federation.endpoint.RETRY_ABOVE", "node.node.STRANGERS_SHARE",
    "node.node.STRANGERS_MIN", "federation.link.SEGMENT_BYTES",
}  # fmt: skip


async def test_a_user_that_asks_too_fast_is_told_and_others_are_not(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path, limits=Limits(requests_per_second=2))) as node:
        for name in ("alice", "bob"):
            await node.create_user(name, "pw")
        alice, bob = await connect(node, "alice"), await connect(node, "bob")
        numbers = [await alice.post(api.Send, f"k{n}", "bob@a.test", b"%d" % n) for n in range(40)]
        outcomes = [await _outcome(alice, n) for n in numbers]
        refused = [o for o in outcomes if isinstance(o, ApiError)]
        assert {o.code for o in refused} == {"rate_limited"}
        assert all(0 < o.retry_after_ms <= 60_000 for o in refused)
        first = outcomes.index(refused[0])
        assert all(isinstance(o, ApiError) for o in outcomes[first:]), "nothing overtakes what was refused"
        await bob.send("alice@a.test", b"not limited")
        found = (await registry(node))["requests of a user a second"]
        assert found.refused == len(refused) > 10


async def _outcome(client: Any, number: int) -> Any:
    try:
        return await client.answer(number)
    except ApiError as error:
        return error


async def test_a_peer_that_sends_too_fast_is_told_to_come_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "LATER_MS", 100)
    monkeypatch.setattr(host, "HOLD_BACK_MS", 0)
    async with two_nodes(tmp_path, limits=Limits(peer_events_per_second=1)) as (a, b):  # ten at once
        await befriend(a, b)
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        for n in range(10):
            await alice.send("bob@b.test", b"%d" % n)
            await bob.message(b"%d" % n)
        for n in range(10, 40):
            await alice.post(api.Send, f"p{n}", "bob@b.test", b"%d" % n)
        async with asyncio.timeout(WAIT_S):
            while not b.host.refused["peer events"]:
                await b.store.read(lambda connection: None)
        assert (await registry(b))["events of a peer a second"].refused > 0
        assert (await registry(b))["bytes a peer made us keep unasked"].refused == 0
        b.host.rates.rate = b.host.rates.burst = 10_000
        await bob.message(b"39")
        assert [i.body for i in bob.items if isinstance(i, api.Message)] == [b"%d" % n for n in range(40)]


async def test_a_fast_peer_is_held_back_in_order(tmp_path: Path) -> None:
    async with two_nodes(tmp_path, limits=Limits(peer_events_per_second=50)) as (_, b):
        taken: list[int] = []

        async def come(number: int) -> None:
            assert await b.host._may_come(b"p" * 32, 1)
            taken.append(number)

        assert b.host.rates.take(b"p" * 32, 500, b.system.monotonic_ms()) == 0
        await asyncio.gather(*map(come, range(20)))
        assert taken == list(range(20))


async def test_a_node_that_calls_without_end_is_not_answered_each_time(tmp_path: Path) -> None:
    from tests.node.test_strangers import knock

    async with Node.open(config(tmp_path)) as node:
        stranger, _ = await knock(node, "n.test")
        for _ in range(40):
            node.host.hellos.take(stranger.node, 1, node.system.monotonic_ms())
        assert (await registry(node))["hellos of a node"].used == 1


class Machine(System):
    """A disk and a clock that the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.ahead_ms, self.awake = 10 << 30, 0, 0

    def disk(self, path: Path) -> tuple[int, int]:
        return self.free, 10 << 30

    def wall_ms(self) -> int:
        return super().wall_ms() + self.ahead_ms

    def awake_ms(self) -> int:
        return super().awake_ms() + self.awake


async def test_a_disk_that_runs_low_takes_nothing_new_and_lets_the_rest_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "LATER_MS", 100)
    machine = Machine()
    b_config = listening(tmp_path, "b.test")
    async with Node.open(listening(tmp_path, "a.test")) as a, Node.open(b_config, system=machine) as b:
        await befriend(a, b)
        await a.create_user("alice", "pw")
        await b.create_user("bob", "pw")
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        bob.acks = False
        first = await alice.send("bob@b.test", b"first")
        back = await bob.send("alice@a.test", b"back")
        await bob.message(b"first")
        machine.free = (512 << 20) - 1
        with caplog.at_level(logging.WARNING, "roost.node"):
            for _ in range(5):
                b.upkeep.look()
        assert len([r for r in caplog.records if "reserve" in r.getMessage()]) == 1, "an alarm is told once"
        for what in (bob.send("alice@a.test", b"more"), b.create_user("carol"), b.store.submit(AddInvite(b"i", 5))):
            with pytest.raises(ApiError) as full:
                await what
            assert (full.value.code, full.value.retry, full.value.retry_after_ms > 0) == ("storage_full", True, True)
        assert [m.body for m in (await bob.ask(api.GetHistory, "alice@a.test")).messages] == [b"first", b"back"]
        await bob.tell(api.Ack(bob.items[-1].position))
        await alice.state(first.event, "delivered")  # acknowledgements go on, also to other nodes
        await bob.state(back.event, "delivered")  # and so does what others acknowledge
        sent = await alice.send("bob@b.test", b"waits")
        async with asyncio.timeout(WAIT_S):
            while "storage_full" not in (await alice.ask(api.GetWhy, sent.event)).hops[-1].detail:
                await alice.ask(api.Ping)
        status = await call(b.config, "status", {})
        assert [alarm["alarm"] for alarm in status["alarms"]] == ["disk"]
        machine.free = (1 << 30) - 1
        b.upkeep.look()
        assert b.store.full, "it ends at twice the reserve, lest it flap"
        machine.free = 1 << 30
        b.upkeep.look()
        await bob.send("alice@a.test", b"more")
        await bob.message(b"waits")
        assert (await call(b.config, "status", {}))["alarms"] == []


async def test_a_node_that_starts_on_a_full_disk_is_there_to_read(tmp_path: Path) -> None:
    machine = Machine()
    async with Node.open(config(tmp_path), system=machine) as node:
        await node.create_user("alice", "pw")
        await (await connect(node, "alice")).send("alice@a.test", b"note")
    machine.free = 0
    async with Node.open(config(tmp_path, limits=Limits(disk_reserve_bytes=1)), system=machine) as node:
        with pytest.raises(ApiError, match="reserve") as full:
            await node.create_user("bob", "pw")
        assert full.value.code == "storage_full"
        assert [row["name"] for row in await call(node.config, "user.list", {})] == ["alice"]


async def test_a_full_disk_at_the_sender_does_not_end_its_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be noted as acknowledged now is noted later: a new link would bring the same again each second."""
    async with two_nodes(tmp_path) as (a, b):
        await befriend(a, b)
        alice, bob = await connect(a, "alice"), await connect(b, "bob")
        await alice.send("bob@b.test", b"before")
        await bob.message(b"before")
        running, submit, full = a.service.links[b.us.node], a.store.submit, True

        def refuse(command: Any, later: bool = False) -> Any:
            if not (full and isinstance(command, PeerAcked)):
                return submit(command, later)
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            future.set_exception(ApiError("storage_full", "full"))
            return future

        monkeypatch.setattr(a.store, "submit", refuse)
        monkeypatch.setattr(host, "TELL_AGAIN_S", 0.01)
        sent = await alice.send("bob@b.test", b"after")
        await bob.message(b"after")
        async with asyncio.timeout(WAIT_S):
            while a.host.refused["acknowledgements"] < 3:
                await alice.ask(api.Ping)
        assert (await registry(a))["acknowledgements to be stored again"].used == 1
        full = False
        await alice.state(sent.event, "delivered")
        assert a.service.links[b.us.node] is running


async def test_a_message_that_no_node_takes_for_30_days_has_failed(tmp_path: Path) -> None:
    machine = Machine()
    link_ = Link(backoff_cap_ms=1000)
    dead = "roost://" + "a" * 51 + "a@b.test?at=127.0.0.1:1"
    async with Node.open(Config(name="a.test", data_dir=str(tmp_path / "a"), link=link_), system=machine) as a:
        await a.create_user("alice", "pw")
        await call(a.config, "peer.add", {"link": dead})
        alice = await connect(a, "alice")
        sent = await alice.send("bob@b.test", b"hello")
        await a.upkeep.expire()
        assert (await alice.ask(api.GetState, sent.event)).to[0].state == "accepted"
        machine.ahead_ms, machine.awake = EXPIRY_MS + 1000, EXPIRY_MS + 1000  # so much time went by
        a.upkeep.look()
        assert a.upkeep.alarms == {}
        await a.upkeep.expire()
        failed = await alice.item(lambda item: isinstance(item, api.Failure))
        assert (failed.event, failed.code) == (sent.event, "expired")
        to = (await alice.ask(api.GetState, sent.event)).to[0]
        assert to.state == "failed"
        assert "30 days" in to.reason
        assert a.upkeep.expired == 1
        assert [m.body for m in (await alice.ask(api.GetHistory, "bob@b.test")).messages] == [b"hello"]


async def test_nothing_expires_while_the_clock_is_not_believed(tmp_path: Path) -> None:
    machine = Machine()
    async with Node.open(config(tmp_path), system=machine) as node:
        node.upkeep.look()
        machine.ahead_ms = DRIFT_MS_MAX - 5_000
        node.upkeep.look()
        assert node.upkeep.alarms == {}
        machine.ahead_ms = 10 * 365 * 86_400_000
        node.upkeep.look()
        assert list(node.upkeep.alarms) == ["clock"]
        machine.awake += 2 * EXPIRY_EVERY_MS
        machine.ahead_ms += 2 * EXPIRY_EVERY_MS
        node.upkeep.look()
        assert not node.upkeep.may_expire(), "it is due, and waits"
        machine.ahead_ms = 2 * EXPIRY_EVERY_MS
        node.upkeep.look()
        assert node.upkeep.alarms == {}
        assert node.upkeep.may_expire()

"""Each thing that `roost doctor` looks at is found where it is wrong, and not where it is right."""

import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from federation import service
from node import doctor
from node.admin import call
from node.config import Config, Federation, Limits, Log, Tls
from node.node import Node
from node.system import System
from tests.node.helpers import WAIT_S, befriend, config, connect, free_port, listening, two_nodes

DEAD = "roost://" + "a" * 51 + "a@dead.test?at=127.0.0.1:1"


async def problems(config: Config, **args: Any) -> list[str]:
    answer = await call(config, "doctor", args)
    assert answer["ok"] == (not answer["findings"])
    assert all(f["check"] in answer["checked"] and f["fix"] for f in answer["findings"])
    return [f"{f['check']}: {f['problem']}" for f in answer["findings"]]


async def test_a_node_that_is_well_has_no_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ANSWER_S", WAIT_S)
    monkeypatch.setattr(doctor, "reach_of", lambda number: "public")  # test nodes are on this machine only
    async with two_nodes(tmp_path) as (a, b):
        await befriend(a, b)
        alice = await connect(a, "alice")
        await alice.state((await alice.send("bob@b.test", b"hello")).event, "sent")
        assert await problems(a.config) == []


async def test_weak_settings_are_found(tmp_path: Path) -> None:
    weak = listening(tmp_path, federation=Federation("open"), tls=Tls(behind_proxy=True), log=Log("debug"))
    weak = Config(**{name: getattr(weak, name) for name in weak.__struct_fields__} | {"listen": "0.0.0.0:0"})
    async with Node.open(weak, listen=False):
        pass
    found = await problems(weak)
    for words in ("0.0.0.0:0 is no address", "any node that calls may write", "tell the proxy", "the log says more"):
        assert any(words in line for line in found), words


async def test_files_that_others_may_open_are_found(tmp_path: Path) -> None:
    settings = listening(tmp_path)
    file = tmp_path / "node.yaml"
    file.write_text("")
    async with Node.open(settings) as node:
        before = await problems(settings, file=str(file))
        assert not any("may open" in line or "may change" in line for line in before)
        os.chmod(node.config.data_path / "roost.db", 0o644)
        file.chmod(0o666)
        found = await problems(settings, file=str(file))
        assert any("others may open" in line and "roost.db (mode 644)" in line for line in found)
        assert any("others may change" in line and "node.yaml (mode 666)" in line for line in found)


class Machine(System):
    def __init__(self) -> None:
        super().__init__()
        self.free, self.ahead_ms = 1 << 40, 0

    def disk(self, path: Path) -> tuple[int, int]:
        return self.free, 1 << 40

    def wall_ms(self) -> int:
        return super().wall_ms() + self.ahead_ms


async def test_a_low_disk_and_a_clock_that_jumped_are_found(tmp_path: Path) -> None:
    machine = Machine()
    async with Node.open(config(tmp_path, limits=Limits(disk_reserve_bytes=1 << 20)), system=machine) as node:
        assert not any(line.startswith(("disk", "clock")) for line in await problems(node.config))
        machine.free = 3 << 20
        assert any("disk: 3 MiB are free, and below 1 MiB" in line for line in await problems(node.config))
        machine.free, machine.ahead_ms = 1 << 19, 10**9
        found = await problems(node.config)
        assert any(line.startswith("disk: 0 MiB are free") for line in found)
        assert any(line.startswith("clock: the clock was set") for line in found)


async def test_ports_that_do_not_answer_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ANSWER_S", WAIT_S)
    settings = listening(tmp_path)
    async with Node.open(settings) as node:
        assert not any(line.startswith("ports") for line in await problems(settings))
        monkeypatch.setattr(doctor, "ANSWER_S", 0.3)
        with socket.socket() as dead:  # bound, and nobody listens
            dead.bind(("127.0.0.1", 0))
            node.config = config(tmp_path, listen=f"127.0.0.1:{dead.getsockname()[1]}")
            found = await problems(settings)
        assert [line.partition(" port")[0] for line in found if line.startswith("ports")] == [
            "ports: UDP",
            "ports: TCP",
        ]
    assert "ports: the node does not run" in await problems(settings)


async def test_addresses_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    settings = listening(tmp_path, advertise=("nowhere.invalid:7701", "127.0.0.1:7701", "192.0.2.7:7701"))
    async with Node.open(settings):
        found = [line for line in await problems(settings) if line.startswith("addresses")]
    assert len(found) == 2
    assert "nowhere.invalid:7701, which our link gives, is not found" in found[0]
    assert "127.0.0.1:7701, which our link gives, leads to this machine only" in found[1]


async def test_peers_that_are_away_or_wait_for_an_answer_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "DIAL_TIMEOUT_S", 0.2)
    async with two_nodes(tmp_path) as (a, b):
        await call(a.config, "peer.add", {"link": DEAD})
        await call(b.config, "peer.add", {"link": str(a.link)})
        while b.us.node not in a.directory.peers:
            await problems(a.config)
        found = [line for line in await problems(a.config) if line.startswith("peers")]
        assert any("no link to dead.test: " in line for line in found)
        assert any("b.test asks to be accepted" in line for line in found)


async def test_what_peers_see_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_S", WAIT_S)
    monkeypatch.setattr(service, "CALL_BACK_S", WAIT_S)
    port, machine = free_port(), Machine()
    here, nowhere = f"127.0.0.1:{port}", "nowhere.invalid:7701"
    a_config = config(tmp_path, "a.test", listen=here, advertise=(here, nowhere))
    async with Node.open(a_config) as a, Node.open(listening(tmp_path, "b.test"), system=machine) as b:
        await a.create_user("alice", "pw")
        await b.create_user("bob", "pw")
        await befriend(a, b)
        alice = await connect(a, "alice")
        await alice.state((await alice.send("bob@b.test", b"hello")).event, "sent")
        found = [line for line in await problems(a_config) if "b.test" in line]
        assert len(found) == 1
        assert found[0].startswith(f"addresses: {nowhere}, which our link gives: b.test cannot call it (")
        machine.ahead_ms = -400_000
        found = [line for line in await problems(a_config) if "b.test" in line]
        assert len(found) == 1, "nobody is called back so soon again"
        assert re.fullmatch(r"clock: the clock of b\.test is (39\d|400) s behind ours", found[0])
        assert b.service.refused["call backs"] == 1
        assert a.service.links[b.us.node].state.up

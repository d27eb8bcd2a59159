"""L1, L3, L4: thousands of clients that do nothing, one that reads too slowly, and all of them coming back at once."""

import asyncio
import signal
from pathlib import Path

import pytest

from node import api
from node.config import Config, Limits
from node.node import Node
from tests.load import kit
from tests.load.crowd import Person
from tests.load.kit import MIB, all_of, crowds, furnish, middle, p99, served, show, size
from tests.node.helpers import free_port

IDLE_KIB_MAX = 100
BACK_S_MAX = 60.0
ACCEPTS_S_MAX = 10.0
WARM = 20
MAY_END = {"lost", "busy", "ConnectionRefusedError", "ConnectionResetError"}  # and then a client tries again


def busy_place(folder: Path, clients: int, host: str = "127.0.0.1") -> Config:
    port = free_port()
    limits = Limits(sessions=max(clients + WARM, Limits().sessions))
    return Config(
        name="a.test", data_dir=str(folder / "a"), listen=f"{host}:{port}", advertise=(f"127.0.0.1:{port}",),
        limits=limits,
    )  # fmt: skip


def port_of(config: Config) -> int:
    assert config.listen_at is not None
    return config.listen_at[1]


@pytest.mark.timeout(900 if kit.FULL else 120)
async def test_l1_an_idle_client_costs_little_memory_with_tls(tmp_path: Path) -> None:
    clients, processes = size(10_000, 200), size(4, 2)
    config = busy_place(tmp_path, clients, "0.0.0.0")  # elsewhere than on loopback the port speaks TLS
    await furnish(config, [f"user{n}" for n in range(max(1, clients // 10))], clients + WARM)
    async with served(config) as (node,):
        more = {"port": port_of(config), "tls": True, "parallel": 32}
        async with crowds(WARM, 1, **more) as first:  # what only the first ones cost
            await all_of(first, "up", 60)
        base, cpu = node.resident(), node.cpu_s()
        async with crowds(clients, processes, **more) as all_clients:
            said = await all_of(all_clients, "up", 600)
            assert sum(s["up"] for s in said) == clients
            assert not any(s["ends"] for s in said), said
            each_kib = (node.resident() - base) / clients / 1024
            cpu = node.cpu_s() - cpu
            pings = await all_of(all_clients, "ping", 120)
            idle = node.cpu_s()
            slowest = max(s["slowest_s"] for s in pings)
    show("L1", clients=clients, KiB_each=f"{each_kib:.1f}", base_MiB=base // MIB, CPU_s_to_connect=f"{cpu:.1f}",
         slowest_ping_ms=f"{slowest * 1000:.0f}", CPU_s=f"{idle:.1f}")  # fmt: skip
    assert each_kib <= IDLE_KIB_MAX


@pytest.mark.timeout(300 if kit.FULL else 120)
async def test_l3_a_slow_reader_holds_up_nobody_and_gets_all_in_the_end(tmp_path: Path) -> None:
    count, body = size(2_000, 150), bytes(16 << 10)
    config = busy_place(tmp_path, 10)
    await furnish(config, ["alice", "slow", "carol"], 3)
    async with Node.open(config) as node:
        alice, slow, carol = [await Person.come(port_of(config), f"token-{n}") for n in range(3)]
        slow.pause(True)
        latencies = []
        for number in range(count):
            marked = number.to_bytes(4, "big") + body
            sent = alice.send("slow@a.test", marked), alice.send("carol@a.test", marked)
            began = asyncio.get_running_loop().time()
            await carol.until(number + 1, 30)
            latencies.append(asyncio.get_running_loop().time() - began)
            assert await asyncio.gather(*sent) == ["accepted"] * 2
        (session,) = node.sessions["slow"]
        assert session.feed is not None
        held = session.feed._window_bytes
        assert session.feed._full
        assert held <= api.FEED_BYTES_MAX + api.FEED_BYTES_MAX // 4, "a page more than the window at most"
        before = len(slow.bodies)
        assert before < count
        slow.pause(False)
        await slow.until(count, 60)
        assert [int.from_bytes(b[:4], "big") for b in slow.bodies] == list(range(count)), "all of it, in order, once"
        for person in (alice, slow, carol):
            person.close()
            await person.gone
    show("L3", messages=count, held_KiB=held >> 10, read_before=before, others_ms_p50=f"{1000 * middle(latencies):.1f}",
         others_ms_p99=f"{1000 * p99(latencies):.1f}")  # fmt: skip


@pytest.mark.timeout(600 if kit.FULL else 120)
async def test_l4_all_clients_are_back_soon_after_a_crash(tmp_path: Path) -> None:
    clients, processes = size(5_000, 100), size(4, 2)
    hurry = 1.0 if kit.FULL else 0.1
    config = busy_place(tmp_path, clients)
    await furnish(config, [f"user{n}" for n in range(max(1, clients // 10))], clients + 1)
    loop = asyncio.get_running_loop()
    async with (
        served(config) as (node,),
        crowds(clients, processes, port=port_of(config), parallel=32, hurry=hurry) as all_clients,
    ):
        await all_of(all_clients, "up", 300)
        await node.end(signal.SIGKILL)
        await all_of(all_clients, "down", 60)
        await node.start()
        began, cpu = loop.time(), node.cpu_s()
        person = await Person.come(port_of(config), f"token-{clients}")
        assert await person.send("user0@a.test", b"in the middle of it") == "accepted"
        accepts_s = loop.time() - began
        person.close()
        after = await all_of(all_clients, "up", BACK_S_MAX + 30)
        back_s, cpu = loop.time() - began, node.cpu_s() - cpu
    refused = {end for s in after for end in s["ends"]} - MAY_END
    show(
        "L4",
        clients=clients,
        back_s=f"{back_s:.1f}",
        accepts_s=f"{accepts_s:.1f}",
        CPU_s=f"{cpu:.1f}",
        ends=[s["ends"] for s in after],
    )
    assert back_s <= BACK_S_MAX
    assert accepts_s <= ACCEPTS_S_MAX
    assert not refused, "nobody is locked out"

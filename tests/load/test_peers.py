"""L5, L6: peers that are not there cost the others nothing."""

import asyncio
import socket
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from federation.identity import NodeKey, check_chain, new_chain
from federation.ids import User
from federation.peers import FIRST_MS
from federation.ports import Channel, ChannelClosed
from federation.service import DIAL_TIMEOUT_S
from node import keys
from node.admin import call
from node.config import Config, Limits, Link
from node.core.peers import ChangePeer
from node.core.people import AddAccount
from node.core.send import Send
from node.node import Node
from node.storage.runner import InlineRunner
from tests.load import kit
from tests.load.crowd import Person
from tests.load.kit import MIB, Served, furnish, middle, p99, served, show, size
from tests.node.helpers import listening
from tests.sim.loop import SimLoop, SimSystem

WINDOW = 200
ROUNDS = 3


async def befriended(folder: Path, *names: str) -> list[Config]:
    """Nodes with a user of the same name as their first letter, accepted by the first of them and the other way."""
    limits = Limits(requests_per_second=10**6, peer_events_per_second=10**6)  # what a queue costs, not a rate
    configs = [listening(folder, name, limits=limits) for name in names]
    links = []
    for config in configs:
        await furnish(config, [config.name[0]], 2)
        async with Node.open(config, listen=False) as node:
            links.append(str(node.link))
    for config, link in zip(configs[1:], links[1:], strict=True):
        await call(configs[0], "peer.add", {"link": link})
        await call(config, "peer.add", {"link": links[0]})
    return configs


async def person(config: Config) -> Person:
    assert config.listen_at is not None
    found = await Person.come(config.listen_at[1], "token-0")
    found.address = f"{config.name[0]}@{config.name}"
    return found


async def flood(sender: Person, to: str, count: int) -> None:
    """Many sends, `WINDOW` of them unanswered at once; all are accepted."""
    for first in range(0, count, WINDOW):
        sent = [sender.send(to, number.to_bytes(4, "big")) for number in range(first, min(count, first + WINDOW))]
        assert set(await asyncio.gather(*sent)) == {"accepted"}


async def live(a: Served, sender: Person, others: Sequence[Person], count: int) -> tuple[float, list[float]]:
    """CPU seconds of node a, and how long each message took to the other person."""
    loop, cpu, took = asyncio.get_running_loop(), a.cpu_s(), []
    for number in range(count):
        other = others[number % len(others)]
        began, before = loop.time(), len(other.bodies)
        sent = sender.send(other.address, b"live")
        await other.until(before + 1, 30)
        took.append(loop.time() - began)
        assert await sent == "accepted"
    return a.cpu_s() - cpu, took


@pytest.mark.timeout(900 if kit.FULL else 120)
async def test_l5_a_dead_peer_with_a_long_queue_slows_nobody(tmp_path: Path) -> None:
    waiting, lively, count = size(100_000, 2_000), size(4, 1), size(1_000, 100)
    names = [f"{letter}.test" for letter in "acdefg"[: 2 + lively]]  # a sends; c is dead; the rest live
    a_config, dead_config, *live_configs = await befriended(tmp_path, *names)
    async with served(a_config, *live_configs) as (a, *_):
        alice = await person(a_config)
        others = [await person(config) for config in live_configs]
        await live(a, alice, others, 20)  # links are up
        memory = a.resident()
        before = [await live(a, alice, others, count) for _ in range(ROUNDS)]
        began = asyncio.get_running_loop().time()
        await flood(alice, "c@c.test", waiting)
        filled_s = asyncio.get_running_loop().time() - began
        after = [await live(a, alice, others, count) for _ in range(ROUNDS)]
        grown = a.resident() - memory
        cpu = min(cpu for cpu, _ in after) / min(cpu for cpu, _ in before)
        slower = min(p99(took) for _, took in after) / min(p99(took) for _, took in before)
        half = min(middle(took) for _, took in after) / min(middle(took) for _, took in before)
        async with served(dead_config):
            carol = await person(dead_config)
            began = asyncio.get_running_loop().time()
            await carol.until(waiting, 400)
            drained_s = asyncio.get_running_loop().time() - began
            assert [int.from_bytes(b, "big") for b in carol.bodies] == list(range(waiting)), "in order, each once"
            carol.close()
        for each in (alice, *others):
            each.close()
    show("L5", waiting=waiting, filled_s=f"{filled_s:.1f}", others_CPU=f"x{cpu:.2f}", p50=f"x{half:.2f}",
         p99=f"x{slower:.2f}", memory_MiB=f"+{grown / MIB:.1f}", drained_s=f"{drained_s:.1f}")  # fmt: skip
    assert grown <= 50 * MIB
    assert cpu <= (1.2 if kit.FULL else 1.6), "of the small case a few clock ticks are a lot"
    assert not kit.FULL or slower <= 1.2


def stranger(number: int) -> bytes:
    key = NodeKey(number.to_bytes(32, "big"))
    return check_chain(new_chain(key, key.public, bytes(32))).node


class Dead:
    """Peers that never answer: each call is noted, and takes all the time it may."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.calls: dict[str, list[float]] = {}
        self.open: set[str] = set()

    async def dial(self, address: str, timeout: float) -> Channel:
        assert address not in self.open, "one probe at a time"
        self.open.add(address)
        self.calls.setdefault(address, []).append(self._loop.time())
        try:
            async with asyncio.timeout(timeout):
                await asyncio.Event().wait()
        except TimeoutError:
            raise ChannelClosed("no answer") from None
        finally:
            self.open.discard(address)
        raise AssertionError


async def an_hour(folder: Path, loop: SimLoop, peers: int) -> Dead:
    """A node and its dead peers for an hour of virtual time; each minute somebody writes to all of them."""

    async def pause(point: str) -> None: ...

    dead = Dead(loop)
    runner = InlineRunner(folder / "roost.db", pause)
    config = Config(name="a.test", data_dir=str(folder))
    node = Node(config, keys.create(folder), SimSystem(loop, Random(1), 0), runner)
    await node.start(dead.dial)
    await node.store.submit(AddAccount("alice", ""))
    for number in range(1, peers + 1):
        await node.store.submit(ChangePeer(stranger(number), "accepted", f"n{number}.test", (f"n{number}.test:7701",)))
    node.own(node.service.run(), "federation")
    for minute in range(60):
        for number in range(1, peers + 1):
            to = User(stranger(number), "bob")
            await node.store.submit(Send("alice", b"d" * 16, f"k{minute}-{number}", to, "message", "text", b"hello"))
        until = loop.create_future()
        loop.call_later(60, until.set_result, None)
        await until
    await node.close()
    return dead


def test_l6_a_dead_peer_is_tried_once_in_a_back_off_whatever_waits_for_it(tmp_path: Path) -> None:
    peers = size(100, 20)
    cap_s = Config(name="a.test").link.backoff_cap_ms / 1000
    loop = SimLoop()
    cpu = time.process_time()
    dead = loop.run_until_complete(an_hour(tmp_path, loop, peers))
    loop.close()
    cpu = time.process_time() - cpu
    counts = [len(calls) for calls in dead.calls.values()]
    assert len(counts) == peers
    for calls in dead.calls.values():
        for number, (one, next_) in enumerate(pairwise(calls)):
            ceiling = min(cap_s, FIRST_MS / 1000 * 2**number)
            assert next_ - one >= DIAL_TIMEOUT_S + 0.1 * ceiling - 0.01
    show("L6", peers=peers, probes_an_hour_p50=middle(counts), most=max(counts), CPU_s_an_hour=f"{cpu:.1f}")
    assert middle(counts) <= 12 + 3600 / (cap_s / 2), (
        "twelve on the way up to the cap, then one in half a cap on average"
    )


async def elapsed(seconds: float) -> None:
    """That much real time, which is what this case is about."""
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(seconds, over.set_result, None)
    await over


def initials(sink: socket.socket) -> set[bytes]:
    """The connections that somebody tried to open to this port: their ids, from QUIC's long headers (RFC 9000 17.2)."""
    found = set()
    while True:
        try:
            data = sink.recv(2048)
        except BlockingIOError:
            return found
        if len(data) > 6 and data[0] & 0x80:
            found.add(data[6 : 6 + data[5]])


@pytest.mark.timeout(300 if kit.FULL else 120)
async def test_l6_a_hundred_dead_peers_cost_little_cpu(tmp_path: Path) -> None:
    peers, seconds, sinks = size(100, 10), size(60, 3), []
    config = listening(tmp_path, "a.test", link=Link())
    async with Node.open(config, listen=False) as node:
        for number in range(1, peers + 1):
            sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sink.setblocking(False)
            sink.bind(("127.0.0.1", 0))
            sinks.append(sink)
            at = f"127.0.0.1:{sink.getsockname()[1]}"
            await node.store.submit(ChangePeer(stranger(number), "accepted", f"n{number}.test", (at,)))
    loop = asyncio.get_running_loop()
    async with served(config) as (a,):
        await elapsed(seconds / 2)  # most is tried in the beginning
        began, cpu = loop.time(), a.cpu_s()
        await elapsed(seconds)
        share = (a.cpu_s() - cpu) / (loop.time() - began)
    counts = [len(initials(sink)) for sink in sinks]
    for sink in sinks:
        sink.close()
    show("L6", peers=peers, seconds=seconds, CPU=f"{100 * share:.1f} %", probes_each_at_most=max(counts))
    assert 0 < max(counts) <= 1 + 1.5 * seconds / DIAL_TIMEOUT_S
    assert not kit.FULL or share < 0.05, "the first seconds alone are when most is tried"

"""L7: twice as much of anything costs about twice the CPU time, never four times."""

import gc
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from federation.ids import User
from federation.wire import LogAck
from node import api
from node.config import Limits
from node.core.progress import PeerAcked
from node.node import Node
from node.storage import outgoing
from tests.contract.bench import Bench, Far
from tests.evil.kit import client, device
from tests.load.kit import FULL, show, size
from tests.node.helpers import Client, config

GROWTH_MAX = 2.3 if FULL else 3.0  # of so little the machine's other work is a part; four is what must not be
ROUNDS_MAX = 6
WINDOW = 512
FAST = Limits(requests_per_second=10**6)  # what things cost, not a rate

Measured = Callable[[Path, int], Awaitable[float]]


async def fill(alice: Client, n: int) -> None:
    """So many messages to Bob."""
    for first in range(0, n, 200):
        posts = range(first, min(n, first + 200))
        for number in [await alice.post(api.Send, f"k{i}", "bob@a.test", b"x" * 100) for i in posts]:
            await alice.answer(number)


async def mailbox(folder: Path, n: int) -> float:
    """A new device fetches a mailbox with `n` messages and acknowledges them."""
    async with Node.open(config(folder, limits=FAST)) as node:
        await node.create_user("alice")
        await node.create_user("bob")
        await device(node, "bob")  # that the mailbox waits for
        alice = await client(node.connect_inside(), token=(await device(node, "alice"))[1])
        await fill(alice, n)
        token = (await device(node, "bob"))[1]
        began = time.process_time()
        bob = await client(node.connect_inside(), token=token, resume=api.Cursor(node.store_text, 0))
        while sum(isinstance(item, api.Message) for item in bob.items) < n:
            await bob.pump()
        return time.process_time() - began


async def devices(folder: Path, n: int) -> float:
    """A message to a user with `n` devices that listen."""
    async with Node.open(config(folder, limits=FAST)) as node:
        await node.create_user("alice")
        await node.create_user("bob")
        alice = await client(node.connect_inside(), token=(await device(node, "alice"))[1])
        listening = [await client(node.connect_inside(), token=(await device(node, "bob"))[1]) for _ in range(n)]
        began = time.process_time()
        for number in range(8):
            await alice.send("bob@a.test", b"x%d" % number)
            for each in listening:
                await each.message(b"x%d" % number)
        return time.process_time() - began


async def backlog(folder: Path, n: int) -> float:
    """What waits for a peer is sent and acknowledged, in windows."""
    bench, far = Bench(f"sqlite:///{folder / 'roost.db'}"), Far()
    await bench.open()
    try:
        await bench.people("alice")
        await bench.befriend(far)
        for first in range(0, n, 1000):
            sends = [bench.send(f"k{i}", User(far.node, "bob")) for i in range(first, min(n, first + 1000))]
            assert not any(isinstance(done, Exception) for done in await bench.all(*sends))
        began, acked, turn = time.process_time(), 0, b""
        while acked < n:
            runs, turn, _ = await bench.store.read(outgoing.pending, far.node, turn, {}, set(), WINDOW, 1 << 20)
            (run,) = runs
            acked = run.after + len(run.events)
            head = run.of.head
            await bench.do(PeerAcked(far.node, LogAck(head.conversation, head.origin, head.incarnation, acked)))
        return time.process_time() - began
    finally:
        await bench.close()


async def page(folder: Path, n: int) -> float:
    """Pages of a conversation with `n` messages, all the way back."""
    async with Node.open(config(folder, limits=FAST)) as node:
        await node.create_user("alice")
        await node.create_user("bob")
        alice = await client(node.connect_inside(), token=(await device(node, "alice"))[1])
        await fill(alice, n)
        began, before = time.process_time(), None
        while True:
            found = await alice.ask(api.GetHistory, "bob@a.test", before, 100)
            if not found.more:
                return time.process_time() - began
            before = found.messages[0].event


CASES: dict[str, tuple[Measured, int, int]] = {
    "mailbox": (mailbox, 20_000, 2_000),
    "devices": (devices, 50, 25),
    "backlog": (backlog, 20_000, 4_000),
    "pages back": (page, 20_000, 1_000),
}


@pytest.mark.timeout(600 if FULL else 120)
@pytest.mark.parametrize("case", CASES)
async def test_l7_twice_as_much_costs_twice_the_time(tmp_path: Path, case: str) -> None:
    measure, full, small = CASES[case]
    n = size(full, small)
    best = [float("inf")] * 2
    for number in range(ROUNDS_MAX):  # the least of a few: a busy machine only ever adds
        for i in range(2):
            folder = tmp_path / f"{i}-{number}"
            folder.mkdir()
            gc.collect()
            best[i] = min(best[i], await measure(folder, (i + 1) * n))
        growth = best[1] / best[0]
        if number > 0 and growth <= GROWTH_MAX:
            break
    show(
        f"L7 {case}", n=n, CPU_ms=f"{1000 * best[0]:.0f}", twice_CPU_ms=f"{1000 * best[1]:.0f}", growth=f"{growth:.2f}"
    )
    assert growth <= GROWTH_MAX

"""D1 to D7, D9: disks that are full, broken, slow or gone; wrong clocks; few descriptors; a store that others hold."""

import asyncio
import os
import resource
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from node import api
from tests.faults.person import Person
from tests.faults.town import Served, Town, first, inject

FEW_FILES = 256
YEARS_S = 10 * 365 * 86400
STORE_UNUSABLE = 6  # exit code


def _mount(served: Served, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "roost-faults", served.folder], check=True)


async def _people(town: Town) -> tuple[Person, Person]:
    return await town.person("alice", "a"), await town.person("bob", "b")


async def _accepted(person: Person, seconds: float = 60) -> None:
    """Every message, also those that were refused for now: they are sent again."""
    async with asyncio.timeout(seconds):
        while not all(a.event for a in person.attempts):
            refused = len(person.codes)
            await person.served.settled()  # a moment: not more requests than a user may make
            person.again()
            await person.until(lambda n=refused: all(a.event for a in person.attempts) or len(person.codes) > n)  # type: ignore[misc]


def small_disk(town: Town) -> None:
    """Before the first start: the data of node a lie on a disk of 16 MiB."""
    served = town.nodes["a"]
    served.folder.mkdir()
    _mount(served, "size=16m")


async def d1(town: Town, whole: bool) -> None:
    """The disk fills: refused with `storage_full`, reads go on, and all is well once there is room again."""
    alice, bob = await _people(town)
    filler = town.nodes["a"].folder / "filler"
    for _ in range(5 if whole else 1):
        alice.write(bob.address, 20)
        await _accepted(alice)
        await asyncio.to_thread(_fill, filler)
        refused = len(alice.codes)
        while len(alice.codes) == refused:  # the store may have room of its own in files that it keeps
            alice.write(bob.address, 50)
            over = _refused_or_gone(alice, town.nodes["a"], refused)
            await alice.until(lambda done=over: done() or all(a.event for a in alice.attempts))  # type: ignore[misc]
        assert set(alice.codes) == {"storage_full"}, alice.codes[-1]
        assert len(await alice.history(bob.address)) >= 20
        filler.unlink()
        await _accepted(alice)
        town.rounds += 1
    assert alice.breaks == 0, "the node did not end"


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


async def d2(town: Town, whole: bool) -> None:
    """No space at the Nth write to the database, once or from then on."""
    alice, bob = await _people(town)
    side = town.nodes["a"]
    for number in range(1, 101, 3) if whole else (4, 12):
        for more in ("", "+"):
            await side.stop()
            if await side.serve(*inject("pwrite64", f"error=ENOSPC:when={number}{more}")):
                refused = len(alice.codes)
                alice.write(bob.address, 40)
                await alice.until(
                    lambda n=refused: (
                        all(a.event for a in alice.attempts) or len(alice.codes) > n or not side.up.is_set()
                    )  # type: ignore[misc]
                )
                if more:
                    await side.stop()
                    assert await side.serve(), side.said()
            if not side.up.is_set():
                assert await side.serve(), side.said()
            await _accepted(alice)
            town.rounds += 1
    assert set(alice.codes) <= {"storage_full", "busy", "failed"}, set(alice.codes)


async def d3(town: Town, whole: bool) -> None:
    """The disk fails at a sync, once or for ever: nothing is answered OK, the node ends, and starts clean."""
    alice, bob = await _people(town)
    side = town.nodes["a"]
    # Not of the folder: SQLite makes no promise before the node itself has synced that, with what the next start does.
    files = [side.database, side.database.with_name(side.database.name + "-wal")]
    for number in range(1, 21, 2) if whole else (3, 6):
        for more in ("", "+"):
            await side.stop()
            if await side.serve(*inject("fdatasync", f"error=EIO:when={number}{more}", only=files)):
                while side.up.is_set():
                    alice.write(bob.address, 8)
                    await first(side.gone(60), alice.until(lambda: all(a.event for a in alice.attempts)))
                    await side.settled()
            assert side.process is not None
            assert side.process.returncode == STORE_UNUSABLE, (side.process.returncode, side.said())
            assert "Traceback" not in side.said()
            assert await side.serve(), side.said()
            await _accepted(alice)
            town.rounds += 1


async def d4(town: Town, whole: bool) -> None:
    """The disk becomes read-only under the node, or cannot be read: refused or ended, never a false OK."""
    alice, bob = await _people(town)
    side = town.nodes["a"]
    for call, error in (("pwrite64,ftruncate", "EROFS"), ("pread64", "EIO")):
        for number in range(1, 60, 4) if whole else (5,):
            await side.stop()
            if await side.serve(*inject(call, f"error={error}:when={number}+")):
                had = len(alice.codes)
                alice.write(bob.address, 40)
                with suppress(TimeoutError):  # what is in memory needs no reading
                    await alice.until(_refused_or_gone(alice, side, had), 5)
                if side.up.is_set():
                    await side.stop()
            assert "Traceback" not in side.said(), side.said()
            assert await side.serve(), side.said()
            await _accepted(alice)
            town.rounds += 1


def _refused_or_gone(person: Person, side: Served, had: int) -> Callable[[], bool]:
    return lambda: len(person.codes) > had or not side.up.is_set()


async def d5(town: Town, whole: bool) -> None:
    """Half a second for each sync: slow, and nothing but slow."""
    alice, bob = await _people(town)
    side = town.nodes["a"]
    await side.stop()
    assert await side.serve(*inject("fdatasync", "delay_exit=500000"))
    latencies: list[float] = []
    pings: list[float] = []
    for _ in range(30 if whole else 6):
        started = time.monotonic()
        alice.write(bob.address, 8)
        answered = asyncio.ensure_future(alice.answered())
        while not answered.done():
            asked = time.monotonic()
            await alice.ask(api.Ping)
            pings.append(time.monotonic() - asked)
            await side.settled()
        await answered
        latencies.append(time.monotonic() - started)
        town.rounds += 1
    latencies = latencies[1:]  # the first one waited for a connection too
    assert statistics.median(pings) < 0.05, "the loop waits for the disk"
    assert statistics.quantiles(latencies, n=100)[98] < 3 * 0.5 + 1, latencies
    status = await side.admin("status")
    assert [peer["link"] for peer in status["peers"]] == ["up"], "a slow disk is no dead peer"


async def d6(town: Town, whole: bool) -> None:
    """Clocks that are an hour off, jump each second, or stand ten years ahead: order and delivery do not care."""
    alice, bob = await _people(town)
    for shift, names in (("3600", "a"), ("-3600", "a"), ("jitter", "b"), (str(YEARS_S), "ab")):
        os.environ["CLOCK"] = shift
        for name in names:
            await town.nodes[name].stop()
        for name in names:
            assert await town.nodes[name].serve(build="shifted_clock"), town.nodes[name].said()
        for _ in range(5 if whole else 1):
            alice.write(bob.address, 5)
            bob.write(alice.address, 5)
            await asyncio.gather(_accepted(alice), _accepted(bob))
            await bob.has([a.event for a in alice.attempts])
        town.rounds += 1


def _few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, FEW_FILES))


async def d7(town: Town, whole: bool) -> None:
    """A thousand strangers on a node with few descriptors: who is in stays in, and nothing spins."""
    alice, bob = await _people(town)
    side = town.nodes["a"]
    await side.stop()
    assert await side.serve(limits=_few_files)
    alice.write(bob.address, 5)
    await alice.answered()
    strangers: list[asyncio.StreamWriter] = []
    try:
        for _ in range(1000 if whole else 400):
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    strangers.append((await asyncio.open_connection("127.0.0.1", side.port))[1])
        breaks = alice.breaks
        alice.write(bob.address, 20)
        await alice.answered()
        assert alice.breaks == breaks
        before = side.cpu_s()
        with suppress(TimeoutError):
            await side.gone(2)
        assert side.cpu_s() - before < 1.0
    finally:
        for stranger in strangers:
            stranger.transport.abort()
    town.rounds += 1


async def d9(town: Town, whole: bool) -> None:
    """Another process holds the database: `busy`, later all goes on. And a log that cannot be written harms nobody."""
    alice, bob = await _people(town)
    side = town.nodes["a"]
    await side.stop()
    side.log = Path("/dev/full")
    assert await side.serve()
    for _ in range(3 if whole else 1):
        alice.write(bob.address, 10)
        await _accepted(alice)
        other = sqlite3.connect(side.database, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            had = len(alice.codes)
            alice.write(bob.address, 10)
            pings = 0
            while len(alice.codes) == had:
                asked = time.monotonic()
                await alice.ask(api.Ping)
                await side.settled()  # a moment: not more requests than a user may make
                assert time.monotonic() - asked < 2, "the loop waits for the other process"
                pings += 1
            assert alice.codes[-1] == "busy"
            assert pings > 1
        finally:
            other.close()
        await _accepted(alice)
        town.rounds += 1


def unmount(town: Town) -> None:
    for served in town.nodes.values():
        if os.path.ismount(served.folder):
            subprocess.run(["umount", "-l", served.folder], check=False)

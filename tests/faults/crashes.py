"""C1, C2, C3, C6, C8, C10: killed at the worst moments."""

import asyncio
import json
import os
import random
import signal
from asyncio.subprocess import DEVNULL, PIPE

from tests.faults.person import PASSWORD, Attempt
from tests.faults.town import Served, Town, first, inject


async def _pair(town: Town) -> None:
    await town.person("alice", "a")
    await town.person("bob", "b")


async def _kills(town: Town, calls: str, numbers: list[int]) -> None:
    """A round for each number: a node, each in turn, is served under a tracer that kills it at its Nth such call."""
    await _pair(town)
    alice, bob = town.people["alice"], town.people["bob"]
    for number in numbers:
        side = town.nodes["ab"[town.rounds % 2]]
        await side.stop()
        if await side.serve(*inject(calls, f"signal=KILL:when={number}")):
            while side.up.is_set():
                alice.write(bob.address, 8)
                bob.write(alice.address, 8)
                await first(side.gone(60), asyncio.gather(alice.answered(), bob.answered()))
        await _again(side)
        town.rounds += 1


async def _again(side: Served) -> None:
    """It was killed, and comes up as if nothing had been."""
    assert side.process is not None
    assert side.process.returncode == -signal.SIGKILL, side.said()
    assert await side.serve(), side.said()


async def c1(town: Town, whole: bool) -> None:
    await _kills(town, "fdatasync", list(range(1, 201, 4)) if whole else [2, 9, 5])


async def c2(town: Town, whole: bool) -> None:
    await _kills(town, "sendto", list(range(1, 161, 4)) if whole else [31, 20, 25])


async def c6(town: Town, whole: bool) -> None:
    """Each write: of a log, of a checkpoint, of the end."""
    await _kills(town, "pwrite64", list(range(1, 401, 10)) if whole else [7, 40])


async def c6_first_start(town: Town, whole: bool) -> None:
    """In the middle of making its tables, and of what a first start writes."""
    side = town.nodes["a"]
    for number in range(1, 60, 3) if whole else (2, 11):
        await side.stop()
        side.wipe()
        if await side.serve(*inject("pwrite64,fdatasync", f"signal=KILL:when={number}")):
            await side.stop(signal.SIGKILL)
        assert await side.serve(), side.said()
        town.rounds += 1
    await side.admin("peer.add", link=town.nodes["b"].link)
    await _pair(town)
    town.people["alice"].write("bob@b.test", 3)


async def c3(town: Town, whole: bool) -> None:
    """The receiver is killed between its commit and its word about it."""
    await _pair(town)
    alice, b = town.people["alice"], town.nodes["b"]
    for number in range(1, 21) if whole else (1, 3):
        await b.stop()
        os.environ["DIES_AT"] = str(number)
        assert await b.serve(build="+".join(filter(None, (b.build, "dies_before_acknowledging")))), b.said()
        async with asyncio.timeout(60):
            while b.up.is_set():
                alice.write("bob@b.test", 1)
                await first(b.gone(60), alice.answered())
                await b.settled()
        await _again(b)
        town.rounds += 1


async def c8(town: Town, whole: bool) -> None:
    """Random kills of three nodes, everybody writing to everybody."""
    chance = random.Random(8)
    people = [await town.person(user, node) for user, node in zip(("ann", "ben", "cem"), "abc", strict=True)]
    for _ in range(120 if whole else 4):
        for person in people:
            for other in people:
                if other is not person:
                    person.write(other.address, chance.randint(1, 12))
        watched = chance.choice(people)
        had = len([a for a in watched.attempts if a.event])
        await watched.until(lambda n=had, w=watched: len([a for a in w.attempts if a.event]) > n)  # type: ignore[misc]
        node = town.nodes[chance.choice("abc")]
        await node.stop(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        assert await node.serve(), node.said()
        town.rounds += 1


async def c10(town: Town, whole: bool) -> None:
    """A client is killed while it notes what it sends and what became of it: repeating the command is safe."""
    a = town.nodes["a"]
    await town.person("bob", "b")
    await a.admin("user.add", name="carol", password=PASSWORD)
    env = {**os.environ, "ROOST_HOME": str(a.folder.parent / "home")}

    async def roost(*args: str, wrap: list[str] | None = None) -> tuple[int | None, bytes]:
        process = await asyncio.create_subprocess_exec(
            *(wrap or []), *a.argv(*args, "--profile", "carol"), env=env, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
        out, _ = await process.communicate(PASSWORD.encode())
        return process.returncode, out

    assert (await roost("login", "carol@a.test", "--node", a.link, "--password-stdin"))[0] == 0
    killed = 0
    for number in range(1, 60, 2) if whole else (12, 29, 41):
        send = ("send", "bob@b.test", f"carol {number}", "--key", f"key-{number}", "--wait", "accepted", "--json")
        code, _ = await roost(*send, wrap=inject("pwrite64,fdatasync", f"signal=KILL:when={number}"))
        killed += code == -signal.SIGKILL
        code, out = await roost(*send)
        assert code == 0, out
        town.letters.append(Attempt(f"key-{number}", "bob@b.test", f"carol {number}", json.loads(out)["id"]))
        town.rounds += 1
    assert killed, "no round killed anything"

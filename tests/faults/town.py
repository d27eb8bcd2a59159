"""Served nodes as processes, people on them, and the check of what must hold afterwards (I1 to I7)."""

import asyncio
import os
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node import admin, config_file, witness
from node.config import Config
from tests.faults.person import PASSWORD, Attempt, Person, Wrong
from tests.node.helpers import free_port

READY_S = 30
SEEN_DEAD_S = 0.2  # a connection that broke because its node died: the process is gone this soon
STRACE = ["strace", "-f", "-qq", "-e", "signal=none"]  # its option --seccomp-bpf would switch injections off


def inject(calls: str, what: str, log: Path | None = None, *, only: Iterable[Path] = ()) -> list[str]:
    """Before a command: strace that lets some system calls fail, or kills at them: `signal=KILL:when=7`.

    `only`: those about these files, or about all.
    """
    about = [part for path in only for part in ("-P", str(path))]
    return [*STRACE, *about, "-o", str(log or "/dev/null"), "-e", f"trace={calls}", "-e", f"inject={calls}:{what}"]


async def first(*works: Awaitable[Any]) -> None:
    """Until one of them is over; its failure is raised, the others are given up."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


class Served:
    """One node, served or not."""

    def __init__(self, folder: Path, name: str, build: str = "", sets: dict[str, str] | None = None) -> None:
        self.folder, self.name, self.build = folder / name, name, build
        self.port = free_port()
        self.host, self.listen = "127.0.0.1", f"127.0.0.1:{self.port}"
        self.inside: tuple[str, ...] = ()  # before its commands: where they run
        self.up = asyncio.Event()
        self.sets = {"link.backoff_cap_ms": "1000", "log.level": "warning", **(sets or {})}
        self.process: Process | None = None
        self.link = ""
        self.log = folder / f"{name}.log"

    @property
    def conf(self) -> Path:
        return self.folder / "node.yaml"

    @property
    def config(self) -> Config:
        return config_file.load(self.conf, {})

    @property
    def database(self) -> Path:
        return next(self.folder.rglob("*.db"))

    def argv(self, *args: object, build: str = "") -> list[str]:
        module = ["tests.faults.builds", build] if build else ["node"]
        return [sys.executable, "-m", *module, *map(str, args)]

    async def init(self) -> None:
        sets = [word for pair in self.sets.items() for word in ("--set", "=".join(pair))]
        argv = self.argv("init", self.folder, "--name", self.name, "--listen", self.listen, *sets)
        made = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=PIPE)
        out, err = await made.communicate()
        assert made.returncode == 0, (out, err)

    async def launch(self, *wrap: str, build: str | None = None, limits: Any = None) -> Process:
        """Start the process; it may not come up."""
        assert self.process is None or self.process.returncode is not None
        argv = [*self.inside, *wrap, *self.argv("serve", "-c", self.conf, build=self.build if build is None else build)]
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *argv, stdout=PIPE, stderr=log, preexec_fn=limits, start_new_session=True
            )
        self.up.clear()
        return self.process

    async def serve(self, *wrap: str, build: str | None = None, limits: Any = None) -> bool:
        """Start and wait until it is ready; False when it ended before that."""
        process = await self.launch(*wrap, build=build, limits=limits)
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            line = (await process.stdout.readline()).decode()
        if not line.startswith("ready "):
            await self.gone()
            return False
        self.link = line.split()[-1]
        self.up.set()
        return True

    async def gone(self, seconds: float = 30) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        assert self.process is not None
        async with asyncio.timeout(seconds):
            code = await self.process.wait()
        self.up.clear()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # a node that strace left behind
        return code

    async def settled(self) -> None:
        """A connection broke: if the node died, notice it."""
        if self.process is not None:
            with suppress(TimeoutError):
                await self.gone(SEEN_DEAD_S)

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        return await self.gone()

    async def admin(self, op: str, **args: Any) -> Any:
        return await admin.call(self.config, op, args)

    def wipe(self) -> None:
        """As before its first start, but for its key."""
        for path in (*self.folder.rglob("*.db*"), *self.folder.rglob(witness.FILE)):
            path.unlink()

    def sound(self) -> None:
        """I7: SQLite finds its file whole."""
        with sqlite3.connect(self.database) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def cpu_s(self) -> float:
        """Processor time of its life so far."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def said(self) -> str:
        return self.log.read_text()[-2000:] if self.log.is_file() else ""


@dataclass
class Report:
    """What a case came to."""

    rounds: int = 0
    accepted: int = 0
    lost: int = 0
    doubled: int = 0
    unknown: int = 0  # sends that broke off, and were answered when they were sent again

    def row(self) -> str:
        return "\t".join(map(str, (self.rounds, self.accepted, self.unknown, self.lost, self.doubled)))


class Town:
    """Some nodes that accept each other, with people on them."""

    def __init__(self, folder: Path, names: str = "ab", build: str = "", **sets: str) -> None:
        self.nodes = {name: Served(folder, f"{name}.test", build, sets) for name in names}
        self.people: dict[str, Person] = {}
        self.letters: list[Attempt] = []  # sent by others than these people
        self.rounds = 0

    async def open(self) -> None:
        nodes = list(self.nodes.values())
        await asyncio.gather(*(node.init() for node in nodes))
        assert all(await asyncio.gather(*(node.serve() for node in nodes)))
        for node in nodes:
            for other in nodes:
                if other is not node:
                    await node.admin("peer.add", link=other.link)

    async def person(self, user: str, node: str) -> Person:
        served = self.nodes[node]
        await served.admin("user.add", name=user, password=PASSWORD)
        self.people[user] = Person(served, user)
        return self.people[user]

    async def close(self) -> None:
        for person in self.people.values():
            await person.stop()
        for node in self.nodes.values():
            if node.process is not None and node.process.returncode is None:
                await node.stop(signal.SIGKILL)
            if node.process is not None and node.process.stdout is not None:
                node.process._transport.close()  # type: ignore[attr-defined]

    async def check(self, seconds: float = 60) -> Report:
        """Everybody's sends are answered and everything arrived: then nothing is lost, doubled, or out of order."""
        people = list(self.people.values())
        report = Report(self.rounds)
        for person in people:
            await person.answered(seconds)
        due = {person.user: self._due(person) for person in people}
        for person in people:
            with suppress(TimeoutError):
                await person.has(due[person.user], seconds)
            report.lost += len(set(due[person.user]) - set(person.arrived))
        wrote = {a.text for person in people for a in person.attempts} | {a.text for a in self.letters}
        report.accepted += len(self.letters)
        for person in people:
            report.accepted += sum(bool(a.event) for a in person.attempts)
            report.unknown += person.unknown
            report.doubled += person.doubled
            for text, count in Counter(person.arrived.values()).items():
                report.doubled += count - 1
                if text not in wrote:
                    raise Wrong(f"{person.user} got {text!r}, which nobody wrote")
            if strange := set(person.arrived) - set(due[person.user]):
                raise Wrong(f"{person.user} got {len(strange)} messages of others, or second copies")
        if not report.lost:
            await self._orders(people)
        return report

    def _due(self, person: Person) -> list[str]:
        """What belongs into somebody's mailbox: what others sent them, and what they sent themselves."""
        sent = [(other.address, a) for other in self.people.values() for a in other.attempts]
        sent += [("", a) for a in self.letters]
        return [a.event for sender, a in sent if person.address in (a.to, sender)]

    async def _orders(self, people: list[Person]) -> None:
        """I3: the same order at both ends, and each sender's messages as they were written."""
        pairs = {tuple(sorted((p.address, a.to))) for p in people for a in p.attempts}
        for one, other in sorted(pairs):
            ends = [p for p in people if p.address in (one, other)]
            seen = [[m.event for m in await p.history(other if p.address == one else one)] for p in ends]
            if any(events != seen[0] for events in seen):
                raise Wrong(f"{one} and {other} see another order")
            for p in ends:
                to = other if p.address == one else one
                # One that was refused for now went out again behind others.
                mine = [a.event for a in p.attempts if a.to == to and not a.refusals]
                if [e for e in seen[0] if e in set(mine)] != mine:
                    raise Wrong(f"{p.address}'s messages to {to} lost their order")
            if len(set(seen[0])) != len(seen[0]):
                raise Wrong("a message stands twice in a history")

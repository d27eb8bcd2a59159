"""One run: build the world that the plan describes, let it break, heal it, wait until it is quiet, look at it."""

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from federation.ids import from_text
from node import api
from node.session import Session
from node.storage.runner import InlineRunner
from tests.sim import checker
from tests.sim.client import Client, Saying
from tests.sim.host import Host
from tests.sim.loop import OWNER, SimLoop
from tests.sim.net import Net, spell
from tests.sim.plan import Fault, Plan, draw

QUIET_S_MAX = 1_000  # virtual seconds from heal to empty queues, at most
Runs = list[tuple[bytes, int, int]]


class Line(NamedTuple):
    """One line of the trace; `key` and `runs` say which messages it is about."""

    ms: int
    who: str
    text: str
    key: str
    runs: Runs

    def __str__(self) -> str:
        return f"{self.ms / 1000:9.3f} s  {self.who:<22} {self.text}"


class World:
    """Everything in one run; `violations` is empty when the run is good."""

    def __init__(self, seed: int, loop: SimLoop, folder: Path, runner_type: Any = InlineRunner) -> None:
        chance = Random(seed)
        self.loop, self.folder, self.runner_type = loop, folder, runner_type
        self.plan: Plan = draw(chance)
        self.trace: list[Line] = []
        self.violations: list[str] = []
        self.healed = self.over = False
        self.tasks: list[asyncio.Future[Any]] = []
        self.net = Net(self, Random(chance.getrandbits(64)))
        self.hosts = {name: Host(self, name, Random(chance.getrandbits(64))) for name in self.plan.hosts}
        self.by_address = {host.address: host for host in self.hosts.values()}
        self.clients = [
            Client(self, self.hosts[host], user, number, Random(chance.getrandbits(64)))
            for user, host, number in self.plan.users
        ]
        self.watermarks: dict[tuple[Any, ...], api.Watermark] = {}

    # --- what happens -------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        try:
            await self._live()
        except Exception as error:
            self.violations.append(f"the run itself failed: {error!r}")
        await self._end()

    async def _live(self) -> None:
        for host in self.hosts.values():
            self.tasks.append(asyncio.ensure_future(host.run()))
        await asyncio.sleep(5)  # all of them are up long before
        for host in self.hosts.values():
            users = dict.fromkeys(user for user, name, _ in self.plan.users if name == host.name)
            await host.furnish(list(users), [other for other in self.hosts.values() if other is not host])
        for client in self.clients:
            self.tasks.append(asyncio.ensure_future(client.run()))
        start = self.loop.time() + 1
        for fault in self.plan.faults:
            if fault.kind == "restore":
                self.loop.call_at(start + fault.at - fault.seconds, self.hosts[fault.host].take_copy)
        for moment in sorted((*self.plan.writes, *self.plan.faults), key=lambda m: m.at):
            await asyncio.sleep(max(0.0, start + moment.at - self.loop.time()))
            if isinstance(moment, Fault):
                await self._break(moment)
            else:
                await self.clients[moment.client].say(
                    moment.key, moment.to, f"{moment.key} says hello".encode(), moment.kind
                )
        await asyncio.sleep(max(0.0, start + self.plan.seconds - self.loop.time()))
        await self._heal()

    async def _break(self, fault: Fault) -> None:
        host = self.hosts[fault.host]
        life, kind = host.life, fault.kind
        if kind in ("cut", "half-open", "partition", "blackhole"):
            self.note("the network", f"{kind}: {fault.host}, {fault.other}")
        if kind == "cut":
            self.net.cut(fault.host, fault.other)
        elif kind == "half-open":
            self.net.half_open(fault.host, fault.other)
        elif kind in ("partition", "blackhole"):
            self.net.part(fault.host, fault.other, silent=kind == "blackhole")
            self.loop.call_later(fault.seconds, self.net.heal)
        elif kind == "block":
            self.note(fault.host, f"blocks {fault.other}")
            other = self.hosts[fault.other]
            self.tasks.append(asyncio.ensure_future(host.decide(other, "blocked")))
            self.loop.call_later(fault.seconds, self._accept, host, other)
        elif kind == "full":
            self.note(fault.host, "has a full disk")
            host.full_until = self.loop.time() + fault.seconds
        elif kind == "client":
            for client in self.clients:
                if client.host is host:
                    client.drop()
        elif kind == "restore":
            host.set_back(told=bool(fault.count))
        elif life is not None and life.up:
            host.downtime = fault.seconds
            if kind == "crash at":
                life.armed = (fault.point, fault.count)
            elif kind == "crash":
                life.crash("crashes")
            else:
                self.tasks.append(asyncio.ensure_future(life.stop()))

    def _accept(self, host: Host, other: Host) -> None:
        self.tasks.append(asyncio.ensure_future(host.decide(other, "accepted")))

    async def _heal(self) -> None:
        """No more faults; every client comes back and says what it has."""
        self.note("the world", "heals")
        self.healed = True
        self.net.heal()
        for host in self.hosts.values():
            host.full_until = 0.0
            if host.life is not None:
                host.life.armed = None
        for client in self.clients:
            client.calm = True
            client.drop()
        until = self.loop.time() + QUIET_S_MAX
        quiet = 0
        while quiet < 3:  # a commit or a frame may be on its way while all queues look empty
            for a, b in permutations(self.hosts.values(), 2):
                if (
                    a.life is not None
                    and a.life.up
                    and a.life.node.directory.peers[b.keys.identity.node].state == "blocked"
                ):
                    await a.decide(b, "accepted")
            reason = checker.unfinished(self)
            quiet = 0 if reason else quiet + 1
            if self.loop.time() > until:
                self.violations.append(f"not quiet after {QUIET_S_MAX} s: {reason}")
                return
            await asyncio.sleep(1)
        self.note("the world", "is quiet")
        await checker.check(self)

    async def _end(self) -> None:
        """Stop in order; a task that failed, or that is left over, is a finding too."""
        for task in self.tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                self.violations.append(f"a task failed: {task.exception()!r}")
        self.over = True
        for host in self.hosts.values():
            if host.life is not None and host.life.up:
                await host.life.stop()
        for _ in range(5):
            await asyncio.sleep(0)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    # --- what is seen -------------------------------------------------------------------------------------------------
    def note(self, who: str, text: str, key: str = "", runs: Runs | None = None) -> None:
        self.trace.append(Line(round(self.loop.time() * 1000), who, text, key, runs or []))

    def note_frame(self, names: tuple[str, str], verb: str, raw: bytes) -> None:
        text, runs = spell(raw)
        who = names[0] if verb != "brings" else "the network"
        self.note(who, f"{verb} {names[1]}: {text}", "", runs)

    def accepted(self, name: str, saying: Saying) -> None:
        a = saying.accepted
        assert a is not None
        log = from_text(a.conversation, 32) + from_text(a.log, 16)
        self.note(name, f"{saying.key} is accepted as {a.log[:6]}:{a.seq}", saying.key, [(log, a.seq, a.seq)])

    def received(self, client: Client, item: api.Item) -> None:
        """What must hold at every moment: a place never changes its event, no event has two places, marks only rise."""
        if isinstance(item, api.Message):
            key = (item.body or b"").partition(b" ")[0].decode()
            self.note(client.name, f"has {key} at {item.position}", key)
            for position, old in client.stored.items():
                if client.host.old:
                    break  # a copy that does not know it yet gives places again: what it gives is told anew later
                if isinstance(old, api.Message) and (old.event == item.event) != (position == item.position):
                    self.violations.append(f"{client.name}: {key} at {item.position} and {position}")
        elif isinstance(item, api.Watermark):
            at = (client.name, item.conversation, item.origin, item.log, item.member)
            old = self.watermarks.get(at)
            if (
                old
                and not client.host.old
                and (item.sent < old.sent or item.delivered < old.delivered or item.read < old.read)
            ):
                self.violations.append(f"{client.name}: a state went back, from {old} to {item}")
            self.watermarks[at] = item

    def path(self, key: str) -> list[Line]:
        """One message's way through the run."""
        logs = [r for line in self.trace if line.key == key for r in line.runs]
        return [
            line
            for line in self.trace
            if line.key == key
            or any(a <= seq <= b for log, seq, _ in logs for other, a, b in line.runs if log == other)
        ]


class _Findings(logging.Handler):
    """An error that a living node logs is a finding."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        owner = OWNER.get()
        if owner is None or not owner.dead:
            self._world.violations.append(f"{record.name}: {record.getMessage()}")


@dataclass
class Outcome:
    seed: int
    world: World
    trace: list[str]
    violations: list[str]


@contextmanager
def _watched(world: World) -> Iterator[None]:
    handler, log = _Findings(world), logging.getLogger("roost")
    usual, level, spread = Session.__hash__, log.level, log.propagate
    Session.__hash__ = lambda self: int.from_bytes(self.nonce[:7], "big")  # type: ignore[method-assign]
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = spread
        log.setLevel(level)
        Session.__hash__ = usual  # type: ignore[method-assign]


def simulate(seed: int, runner_type: Any = InlineRunner) -> Outcome:
    """One whole run. The same seed gives the same trace, always."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="roost-sim-", dir=shared if shared.is_dir() else None))
    loop = SimLoop()
    try:
        world = World(seed, loop, folder, runner_type)

        def told(loop: asyncio.AbstractEventLoop, told: dict[str, Any]) -> None:
            world.violations.append(f"the loop was told: {told.get('message')} {told.get('exception')!r}")

        loop.set_exception_handler(told)
        with _watched(world):
            main = loop.create_task(world.run())
            loop.run_until_complete(main)
        return Outcome(seed, world, [str(line) for line in world.trace], world.violations)
    finally:
        loop.close()
        shutil.rmtree(folder, ignore_errors=True)

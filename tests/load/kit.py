"""What the load cases share: nodes and crowds as processes of their own, and what those cost.

`make load` runs every case at its full size and prints what it measured; `make test` runs the same cases small. A
bound that wall time would make a matter of luck on a shared machine is one on CPU time, memory or counts.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from node.config import Config
from node.config_file import render
from node.core.people import AddAccount, AddDevice
from node.node import Node
from node.system import token_hash
from tests.load.crowd import Orders
from tests.node.helpers import DEVICE_KEY

FULL = os.environ.get("LOAD") == "full"
ROOT = Path(__file__).parents[2]
START_S = 60.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


def size(full: int, small: int) -> int:
    return full if FULL else small


def show(case: str, **figures: Any) -> None:
    """One line for whoever runs `make load`."""
    sys.stderr.write(f"\n{case}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items()))


def middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * 99 // 100)]


class Served:
    """`roost serve` as a process of its own, so that its memory and CPU time are the node's alone."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._folder = config.data_path.parent
        self._file = self._folder / f"{config.name}.yaml"
        self._file.write_text(render(config))
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> "Served":
        with (self._folder / f"{self.config.name}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "node", "serve", "-c", str(self._file),
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        assert self._process.stdout is not None
        async with asyncio.timeout(START_S):
            line = (await self._process.stdout.readline()).decode()
        assert line.startswith(f"ready {self.config.name} "), (line, self.log()[-800:])
        self.link = line.split()[-1]
        return self

    def log(self) -> str:
        return (self._folder / f"{self.config.name}.log").read_text()

    async def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(how)
            async with asyncio.timeout(START_S):
                await self._process.wait()

    def _proc(self, name: str) -> str:
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/{name}").read_text()

    def cpu_s(self) -> float:
        """All that the process used so far."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def resident(self) -> int:
        """Bytes of it in memory now."""
        return int(self._proc("statm").split()[1]) * PAGE_BYTES


@asynccontextmanager
async def served(*configs: Config) -> AsyncIterator[list[Served]]:
    nodes = [Served(config) for config in configs]
    try:
        for node in nodes:
            await node.start()
        yield nodes
    finally:
        for node in nodes:
            await node.end(signal.SIGKILL)


async def furnish(config: Config, users: Sequence[str], devices: int = 0) -> None:
    """Accounts in a node that does not run, and devices in turn with the tokens `token-0` and so on: a login's slow
    password hash is not what is measured here."""
    async with Node.open(msgspec.structs.replace(config, listen=None)) as node:
        await asyncio.gather(*(node.store.submit(AddAccount(user, "")) for user in users))
        for number in range(devices):
            await _device(node, users[number % len(users)], number)


async def _device(node: Node, user: str, number: int) -> None:
    made, token = number.to_bytes(16, "big"), token_hash(f"token-{number}")
    await node.store.submit(AddDevice(made, user, "device", token, DEVICE_KEY.public))


class Crowd:
    """A process full of clients."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders

    async def start(self) -> "Crowd":
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.load.crowd", msgspec.json.encode(self.orders).decode(),
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        return self

    async def ask(self, what: str, within_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n".encode())
        async with asyncio.timeout(within_s):
            line = await self._process.stdout.readline()
        assert line, "the crowd died"
        found: dict[str, Any] = msgspec.json.decode(line)
        return found

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def crowds(count: int, processes: int, **orders: Any) -> AsyncIterator[list[Crowd]]:
    """`count` clients, shared out to so many processes."""
    share = count // processes
    made = [await Crowd(Orders(first=n * share, count=share, **orders)).start() for n in range(processes)]
    try:
        yield made
    finally:
        await asyncio.gather(*(crowd.end() for crowd in made))


async def all_of(made: Sequence[Crowd], what: str, within_s: float) -> list[dict[str, Any]]:
    return list(await asyncio.gather(*(crowd.ask(what, within_s) for crowd in made)))

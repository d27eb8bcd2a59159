"""Machines (network namespaces) on one bad wire, a node on each, and the test's own way in to every one of them."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.town import Town
from tests.faults.wire import mac

NUMBERS = itertools.count()
SAYS_S = 10


def ip(*words: object) -> None:
    try:
        subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True, timeout=20)
    except subprocess.CalledProcessError as error:
        raise OSError(f"ip {' '.join(map(str, words))}: {error.stderr.strip()}") from None


def missing() -> str:
    """Why this machine cannot be cut into several; empty where it can."""
    if os.geteuid() != 0:
        return "they need root"
    net = Net("a")
    try:
        net.build()
    except OSError as error:
        return str(error)
    finally:
        net.close()
    return ""


class Net:
    """Devices `wire` of the machines meet in the namespace `mid`; by device `test` each is reached from outside."""

    def __init__(self, names: str) -> None:
        self.names = names
        self._number = next(NUMBERS)
        self._tag = f"roost-{os.getpid()}-{self._number}"
        self._mid = f"{self._tag}-mid"
        self._wire: Process | None = None

    def space(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def inside(self, name: str) -> tuple[str, ...]:
        """Before a command: run it on that machine."""
        return ("ip", "netns", "exec", self.space(name))

    def address(self, name: str) -> str:
        """Where the other machines reach it."""
        return f"10.77.0.{self.names.index(name) + 1}"

    def outside(self, name: str, side: int = 2) -> str:
        """Where the test reaches it: no other test's network (RFC 6598)."""
        of_process = os.getpid() % (1 << 14)
        return f"100.{64 + (of_process >> 8)}.{of_process & 255}.{4 * self.names.index(name) + side}"

    def _door(self, name: str) -> str:
        return f"rt{os.getpid()}-{self._number}{name}"

    def build(self) -> None:
        """OSError where the machine cannot."""
        ip("netns", "add", self._mid)
        for i, name in enumerate(self.names):
            space, test = self.space(name), self._door(name)
            ip("netns", "add", space)
            ip("link", "add", "wire", "address", mac(i), "netns", space,
               "type", "veth", "peer", "name", name, "netns", self._mid)  # fmt: skip
            ip("link", "add", test, "type", "veth", "peer", "name", "test", "netns", space)
            ip("address", "add", f"{self.outside(name, 1)}/30", "dev", test)
            ip("link", "set", "dev", test, "up")
            ip("-n", space, "address", "add", f"{self.outside(name)}/30", "dev", "test")
            ip("-n", space, "address", "add", f"{self.address(name)}/24", "dev", "wire")
            for device in ("lo", "test", "wire"):
                ip("-n", space, "link", "set", "dev", device, "up")
            ip("-n", self._mid, "link", "set", "dev", name, "up")
            ip("netns", "exec", space, sys.executable, "-m", "tests.faults.wire", "--plain", "wire")

    async def start(self) -> None:
        argv = ["ip", "netns", "exec", self._mid, sys.executable, "-m", "tests.faults.wire", *self.names]
        self._wire = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE)

    async def set(self, *ways: str, **shape: Any) -> dict[str, int]:
        """Give ways (`ab`: from a to b; none: all) a `wire.Shape`; what the wire did so far."""
        every = [a + b for a in self.names for b in self.names if a != b]
        return await self._tell(ways or every, shape)

    async def seen(self) -> dict[str, int]:
        """What the wire did so far."""
        return await self._tell((), {})

    async def _tell(self, ways: Sequence[str], shape: dict[str, Any]) -> dict[str, int]:
        assert self._wire is not None
        assert self._wire.stdin is not None
        assert self._wire.stdout is not None
        self._wire.stdin.write(json.dumps({"ways": ways, "shape": shape}).encode() + b"\n")
        async with asyncio.timeout(SAYS_S):
            line = await self._wire.stdout.readline()
        assert line, "the wire broke: see its traceback"
        return {"quic calls": 0, "tcp calls": 0, "damaged": 0, "doubled": 0, "early": 0, "lost": 0, **json.loads(line)}

    def mtu(self, size: int) -> None:
        for name in self.names:
            ip("-n", self.space(name), "link", "set", "dev", "wire", "mtu", size)
            ip("-n", self._mid, "link", "set", "dev", name, "mtu", size)

    async def stop(self) -> None:
        if self._wire is not None:
            assert self._wire.stdin is not None
            self._wire.stdin.close()
            async with asyncio.timeout(SAYS_S):
                await self._wire.wait()
            self._wire._transport.close()  # type: ignore[attr-defined]

    def close(self) -> None:
        for name in self.names:  # at once; with its namespace it would go some time later
            subprocess.run(["ip", "link", "delete", "dev", self._door(name)], capture_output=True)
        for space in (self._mid, *map(self.space, self.names)):
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)


class NetTown(Town):
    """A town whose nodes are on machines of their own, which only the wire joins."""

    def __init__(self, folder: Path, names: str = "ab", build: str = "", **sets: str) -> None:
        super().__init__(folder, names, build, **sets)
        self.net = Net(names)
        for name, served in self.nodes.items():
            served.host, served.listen = self.net.outside(name), f"0.0.0.0:{served.port}"
            served.sets.setdefault("advertise", f"[{self.net.address(name)}:{served.port}]")
            served.inside = self.net.inside(name)

    async def open(self) -> None:
        self.net.build()
        await self.net.start()
        await super().open()
        for name in self.nodes:
            await self.links(name, "up")

    async def links(self, name: str, wanted: str, seconds: float = 60) -> list[dict[str, Any]]:
        """The peers as node `name` tells of them, once it says of all their links what is wanted."""
        async with asyncio.timeout(seconds):
            while True:
                peers: list[dict[str, Any]] = (await self.nodes[name].admin("status"))["peers"]
                if all(peer["link"] == wanted for peer in peers):
                    return peers
                await self.nodes[name].settled()  # a moment

    async def close(self) -> None:
        try:
            await super().close()
            await self.net.stop()
        finally:
            self.net.close()

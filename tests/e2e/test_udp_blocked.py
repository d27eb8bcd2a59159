"""Two machines (network namespaces) between which no UDP passes: every datagram is dropped without a word (N5)."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.box import PASSWORD, Box, free_port

START_S = 10.0  # N5
DIAL = """
import asyncio, json, sys
from federation.identity import NodeLink
from node.client import connect
async def main():
    wire = await connect(NodeLink.parse(sys.argv[1]))
    print(json.dumps([wire.channel.binding.kind, wire.channel.why]))
    await wire.close()
asyncio.run(main())
"""


class Walled(Box):
    """Commands run on the machine `at`, 0 or 1."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.at = 0
        self.names = [f"roost-{os.getpid()}-{i}" for i in range(2)]

    def argv(self, *args: object) -> list[str]:
        return ["ip", "netns", "exec", self.names[self.at], *super().argv(*args)]

    def build(self) -> None:
        """Raises `CalledProcessError` or `OSError` where the machine cannot."""
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", "w0", "netns", self.names[0], "type", "veth", "peer", "name", "w1", "netns", self.names[1])
        for i, name in enumerate(self.names):
            _ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", f"w{i}")
            for link in ("lo", f"w{i}"):
                _ip("-n", name, "link", "set", link, "up")
            _ip("-n", name, "rule", "add", "pref", "5", "lookup", "local")
            _ip("-n", name, "rule", "delete", "pref", "0")  # that of local addresses came before all others
            self.wall(name, i, "add")

    def wall(self, name: str, i: int, how: str) -> None:
        _ip("-n", name, "rule", how, "pref", "1", "iif", f"w{i}", "ipproto", "udp", "blackhole")

    def close(self) -> None:
        super().close()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True, timeout=20)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Walled]:
    box = Walled(tmp_path)
    try:
        try:
            if shutil.which("ip") is None or os.geteuid() != 0:
                raise OSError("network namespaces need root and the command `ip`")
            box.build()
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("CI") == "true":
                pytest.fail(f"no network namespaces: {error}")
            pytest.skip(f"no network namespaces: {error}")
        yield box
    finally:
        box.close()


def transports(box: Walled, names: tuple[str, ...], wanted: str) -> list[str]:
    """What both nodes say carries their link, once both say `wanted`; fails after START_S."""
    until = time.monotonic() + START_S
    while True:
        found = []
        for box.at, name in enumerate(names):
            (status,) = box.objects("status", "-c", box.conf(name))
            peer = status["peers"][0]
            found.append(peer["transport"] if peer["link"] == "up" else f"{peer['link']}: {peer['reason']}")
        # Where both called at once, one of two links is just being given up: then both ends say that they called.
        one_link = wanted != "tcp" or len(set(found)) == len(found)
        if one_link and all(text.partition(" ")[0] == wanted for text in found):
            return found
        assert time.monotonic() < until, found


@pytest.mark.timeout(120)
def test_links_and_clients_without_udp(box: Walled) -> None:
    names = ("a.test", "b.test")
    for box.at, name in enumerate(names):
        listen = f"10.77.0.{box.at + 1}:{free_port()}"
        box.good("init", box.conf(name).parent, "--name", name, "--listen", listen)
        box.serve(name)
        box.links[name] = box.good("link", "-c", box.conf(name)).split()[-1]
    for box.at, (name, user) in enumerate(zip(names, ("alice", "bob"), strict=True)):
        box.good("peer", "add", box.links[names[1 - box.at]], "-c", box.conf(name))
        box.good("user", "add", user, "--password-stdin", "-c", box.conf(name), stdin=PASSWORD)
    found = transports(box, names, "tcp")
    assert any("no answer over QUIC" in text for text in found), found
    assert any("the other node called over TCP" in text for text in found), found

    box.at = 1  # alice is on the other machine than her node
    box.login("alice", "a.test", "alice")
    began = time.monotonic()
    dialled = subprocess.run(
        [*box.argv()[:-2], "-c", DIAL, box.links["a.test"]], env=box.env, capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - began < START_S
    kind, why = json.loads(dialled.stdout)
    assert kind == "tcp", dialled
    assert "QUIC to 10.77.0.1" in why, why

    box.login("bob", "b.test", "bob")
    (sent,) = box.objects("send", "bob@b.test", "over TCP", "--profile", "alice", "--wait", "sent", "--timeout", 20)
    assert sent["state"] in ("sent", "delivered")
    assert [m["text"] for m in box.tail("bob", 1)] == ["over TCP"]

    for i, name in enumerate(box.names):  # the wall falls: the next call is QUIC's again
        box.wall(name, i, "delete")
    box.stop("b.test")
    box.at = 1
    box.serve("b.test")
    transports(box, names, "quic")

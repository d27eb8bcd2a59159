"""`roost demo`: two real nodes and a conversation between them; `roost chat`: the terminal client.

The command is the composition root of the distribution: it alone knows both the node and the terminal client.
The layering (tui over node over federation) stays true because `tui.run` is loaded by name, and only when a
person wants it.
"""

import asyncio
import importlib
import inspect
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from node.cli.node_commands import ask, make_node
from node.cli.outcome import CliError, Exit
from node.cli.script import converse
from node.cli.session import load_config, opened

if TYPE_CHECKING:
    from node.client import Client

READY_S = 20.0
STOP_S = 5.0
PASSWORD = "only for the demo"  # of users that live as long as the command
ENDS = (signal.SIGHUP, signal.SIGTERM)  # a closed terminal window, a shutdown
PEOPLE = (("alice", "left.test"), ("bob", "right.test"))


def add_to(app: App) -> None:
    app.command(chat)
    app.command(demo)


def chat(*, profile: Annotated[str, Parameter(help="A device on this machine, below $ROOST_HOME.")] = "default") -> int:
    """Open the terminal client."""
    return _screen("run_chat", _factory(profile))


def demo(
    *, script: Annotated[bool, Parameter(negative="", help="No terminal: a scripted conversation.")] = False
) -> int:
    """Start two nodes on this machine: type on the left, see it arrive on the right."""
    scripted = script or not (sys.stdin.isatty() and sys.stdout.isatty())
    with Stage() as stage:
        asyncio.run(stage.set_up())
        if scripted:
            return asyncio.run(_scripted())
        return _screen("run_demo", *(_factory(name) for name, _ in PEOPLE))


async def _scripted() -> int:
    (alice, left), (bob, right) = PEOPLE
    async with opened(alice) as a, opened(bob) as b:
        all_read = await converse(a, f"{alice}@{left}", b, f"{bob}@{right}")
    if not all_read:
        raise CliError(Exit.UNKNOWN, "timeout", "not every message was read in time", "run `roost demo --script` again")
    return Exit.REACHED


def _screen(name: str, *factories: Callable[[], Awaitable["Client"]]) -> int:
    result: Any = getattr(importlib.import_module("tui.run"), name)(*factories)
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    return int(result or 0)


def _factory(name: str) -> Callable[[], Awaitable["Client"]]:
    async def open_it() -> "Client":
        from node.client import Client

        return await Client.open_profile(name)

    return open_it


class Stage:
    """A scratch folder with two served nodes that know each other; nothing of it outlives the `with`."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="roost-demo-"))
        self._processes: list[subprocess.Popen[str]] = []
        self._home = os.environ.get("ROOST_HOME")
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stage":
        for number in ENDS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` wants it to go on
                self._handlers[number] = signal.signal(number, self._end)
        os.environ["ROOST_HOME"] = str(self._folder / "home")  # profiles of the demo never mix with the person's own
        return self

    def _end(self, number: int, _: object) -> None:
        """The nodes run in sessions of their own, so nobody else tells them that it is over."""
        for other in self._handlers:
            signal.signal(other, signal.SIG_IGN)
        if not os.isatty(0):  # no terminal (any more): nothing to put right, and who still writes to it gets stuck
            self._strike()
            os._exit(128 + number)
        raise SystemExit(128 + number)

    def __exit__(self, *_: object) -> None:
        self._strike()
        if self._home is None:
            os.environ.pop("ROOST_HOME", None)
        else:
            os.environ["ROOST_HOME"] = self._home
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _strike(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def set_up(self) -> None:
        """Two nodes served, accepted by each other, with a person logged in on each."""
        from node.client import Client

        print("starting two nodes ...", file=sys.stderr, flush=True)
        files = [make_node(self._folder / n, n, f"127.0.0.1:{_free_port()}", []) for _, n in PEOPLE]
        started = [self._start(file) for file in files]
        links = [_ready(process, file) for process, file in zip(started, files, strict=True)]
        configs = [load_config(file, []) for file in files]
        for config, other in zip(configs, reversed(links), strict=True):
            await ask(config, "peer.add", link=other)
        for (name, node), config, link in zip(PEOPLE, configs, links, strict=True):
            await ask(config, "user.add", name=name, password=PASSWORD)
            client = await Client.login(name, f"{name}@{node}", link, PASSWORD, "demo")
            await client.close()

    def _start(self, file: Path) -> "subprocess.Popen[str]":
        with open(file.parent / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "node", "serve", "-c", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl+C in the terminal is ours to handle
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        self._processes.append(process)
        return process


def _ready(process: "subprocess.Popen[str]", file: Path) -> str:
    """The link of a node that says it is ready."""
    out: IO[str] | None = process.stdout
    assert out is not None
    end = time.monotonic() + READY_S
    while select.select([out], [], [], max(end - time.monotonic(), 0))[0]:
        line = out.readline()
        if line.startswith("ready "):
            return line.split()[-1]
        if not line:
            break
    log = (file.parent / "log").read_text(errors="replace").strip().splitlines()[-1:]
    reason = log[0] if log else f"no answer in {READY_S:g} s"
    raise CliError(Exit.UNREACHABLE, "not_ready", f"node {file.parent.name} did not start: {reason}", "try again")


def _free_port() -> int:
    """A number that is free for TCP and UDP now."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port

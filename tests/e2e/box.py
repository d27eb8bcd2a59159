"""Two served nodes as processes, driven only through the documented command line."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

PASSWORD = "correct horse battery"


def free_port() -> int:
    """A port that was free a moment ago, for UDP and TCP."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Box:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "ROOST_HOME": str(folder / "home"), "HOME": str(folder), "NO_COLOR": "1"}
        self.served: dict[str, subprocess.Popen[str]] = {}
        self.links: dict[str, str] = {}

    def argv(self, *args: object) -> list[str]:
        return [sys.executable, "-m", "node", *map(str, args)]

    def run(self, *args: object, stdin: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*args), env=self.env, input=stdin, capture_output=True, text=True, timeout=timeout
        )

    def good(self, *args: object, stdin: str = "", timeout: float = 60) -> str:
        done = self.run(*args, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, (args, done.returncode, done.stdout[-500:], done.stderr[-500:])
        return done.stdout

    def conf(self, name: str) -> Path:
        return self.folder / name / "node.yaml"

    def serve(self, name: str, says: str = "", *more: str) -> str:
        """Its first line: `ready` or `held` and the node's name, which is the folder's unless given."""
        log = (self.folder / f"{name}.log").open("ab")
        argv = self.argv("serve", "-c", self.conf(name), "--set", "link.backoff_cap_ms=1000", *more)
        process = subprocess.Popen(argv, env=self.env, stdout=subprocess.PIPE, stderr=log, text=True)
        log.close()
        self.served[name] = process
        line = self.line(name)
        logged = (self.folder / f"{name}.log").read_text()[-800:]
        assert line.split()[:2] in (["ready", says or name], ["held", says or name]), (line, logged)
        return line

    def line(self, name: str) -> str:
        """What a served node prints next."""
        process = self.served[name]
        assert process.stdout is not None
        watchdog = threading.Timer(30, process.kill)
        watchdog.start()
        line = process.stdout.readline()
        watchdog.cancel()
        return line

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> int:
        process = self.served.pop(name)
        process.send_signal(how)
        code = process.wait(20)
        assert process.stdout is not None
        process.stdout.close()
        return code

    def close(self) -> None:
        for name in list(self.served):
            self.stop(name, signal.SIGKILL)

    def pair(self, **databases: str) -> None:
        """a.test with alice and b.test with bob, accepted by each other, both logged in; `a=URL` where not SQLite."""
        for name in ("a.test", "b.test"):
            url = databases.get(name[0])
            more = ["--set", f"database={url}"] if url else []
            self.good("init", self.conf(name).parent, "--name", name, "--listen", f"127.0.0.1:{free_port()}", *more)
            self.serve(name)
            self.links[name] = self.good("link", "-c", self.conf(name)).split()[-1]
        self.good("peer", "add", self.links["b.test"], "-c", self.conf("a.test"))
        self.good("peer", "add", self.links["a.test"], "-c", self.conf("b.test"))
        for user, name in (("alice", "a.test"), ("bob", "b.test")):
            self.good("user", "add", user, "--password-stdin", "-c", self.conf(name), stdin=PASSWORD)
            self.login(user, name, user)

    def login(self, user: str, name: str, profile: str) -> None:
        self.good(
            "login", f"{user}@{name}", "--node", self.links[name], "--password-stdin",
            "--profile", profile, "--device-name", profile, stdin=PASSWORD,
        )  # fmt: skip

    def objects(self, *args: object, stdin: str = "", timeout: float = 90) -> list[dict[str, Any]]:
        done = self.run(*args, "--json", stdin=stdin, timeout=timeout)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def tail(self, profile: str, count: int, *more: object) -> list[dict[str, Any]]:
        return self.objects("tail", "--profile", profile, "--count", count, "--timeout", 30, *more)

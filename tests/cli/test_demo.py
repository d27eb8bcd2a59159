"""`roost demo` as a process: however it is ended, its nodes and its folder go with it."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LEAVE_SCREEN = b"\x1b[?1049l"
ENDS = [signal.SIGHUP, signal.SIGTERM]


@pytest.fixture
def env(tmp_path: Path) -> Iterator[dict[str, str]]:
    yield {**os.environ, "TMPDIR": str(tmp_path), "TERM": "xterm-256color", "NO_COLOR": "1"}
    for pid in left(tmp_path):  # only after a failure
        os.kill(pid, signal.SIGKILL)


def left(folder: Path) -> list[int]:
    """Processes of a demo in this folder: its nodes have the path of their config in their arguments."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:
            continue  # ended meanwhile
    return found


def rest_of(window: int) -> bytes:
    rest = b""
    while True:
        try:
            chunk = os.read(window, 1 << 16)
        except OSError:  # the other side is gone
            chunk = b""
        if not chunk:
            return rest
        rest += chunk


def argv(*args: str) -> list[str]:
    return [sys.executable, "-m", "node", "demo", *args]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("moment", ["starting", "talking"])
def test_an_ended_script_leaves_nothing(tmp_path: Path, env: dict[str, str], end: signal.Signals, moment: str) -> None:
    process = subprocess.Popen(
        argv("--script"), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stderr is not None
    first = process.stderr if moment == "starting" else process.stdout
    assert first.readline().startswith(b"starting two nodes" if moment == "starting" else b"from ")
    if moment == "talking":
        assert len(left(tmp_path)) == 2
    process.send_signal(end)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + end, (out, err)
    assert left(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert b"Traceback" not in err


@pytest.mark.parametrize("end", [None, *ENDS], ids=["window", *(end.name for end in ENDS)])
def test_a_closed_window_leaves_nothing(tmp_path: Path, env: dict[str, str], end: signal.Signals | None) -> None:
    pid, window = pty.fork()
    if pid == 0:  # the demo, with the terminal as its own
        os.execve(sys.executable, argv(), env)
    try:
        shown = b""
        while b"bob@right.test" not in shown:  # the screen is drawn
            shown += os.read(window, 1 << 16)
        assert len(left(tmp_path)) == 2
        if end is None:
            os.close(window)
            window = -1
        else:
            os.kill(pid, end)
            assert LEAVE_SCREEN in rest_of(window)
        _, status = os.waitpid(pid, 0)
        pid = 0
        assert os.waitstatus_to_exitcode(status) == 128 + (end or signal.SIGHUP)
        assert left(tmp_path) == []
        assert list(tmp_path.iterdir()) == []
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if window >= 0:
            os.close(window)

"""Black box: the surface that scripts rely on, with real processes, real QUIC and `kill -9`."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.box import PASSWORD, Box


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    try:
        box.pair()
        yield box
    finally:
        box.close()


@pytest.mark.timeout(120)
def test_two_people_with_two_devices_each_while_a_node_is_stopped(box: Box) -> None:
    box.login("alice", "a.test", "alice2")
    box.login("bob", "b.test", "bob2")
    (sent,) = box.objects("send", "bob@b.test", "one", "--profile", "alice", "--wait", "sent", "--timeout", 20)
    assert sent["state"] in ("sent", "delivered")
    for profile in ("bob", "bob2"):
        assert [m["text"] for m in box.tail(profile, 1)] == ["one"]
    (own,) = box.tail("alice2", 1)
    assert (own["text"], own["from"]) == ("one", "alice@a.test")

    assert box.stop("b.test") == 0
    (waits,) = box.objects("send", "bob@b.test", "two", "--profile", "alice", "--wait", "accepted")
    assert waits["state"] == "accepted"
    why = box.good("why", waits["id"], "-c", box.conf("a.test"))
    assert "b.test" in why
    assert "waiting" in why
    box.serve("b.test")
    assert [m["text"] for m in box.tail("bob", 1)] == ["two"]
    box.good("send", "alice@a.test", "back", "--profile", "bob", "--wait", "sent", "--timeout", 20)
    assert [m["text"] for m in box.tail("alice", 1, "--read")] == ["back"]
    (state,) = box.objects("state", sent["id"], "--profile", "alice")
    assert state["to"][0]["address"] == "bob@b.test"
    assert state["to"][0]["state"] == "delivered"
    history = box.objects("history", "bob@b.test", "--profile", "alice")
    assert [m["text"] for m in history] == ["one", "two", "back"]
    theirs = box.objects("history", "alice@a.test", "--profile", "bob2")
    assert [m["id"] for m in theirs] == [m["id"] for m in history]


@pytest.mark.timeout(240)
def test_kill_9_of_either_node_during_a_stream_of_2000_messages(box: Box) -> None:
    stream_with_kills(box, 2000, {200: "b.test", 600: "a.test", 1000: "b.test", 1400: "a.test"})


@pytest.mark.postgres
@pytest.mark.timeout(240)
@pytest.mark.parametrize("side", ["a", "b"])
def test_the_same_stream_with_one_node_on_postgres(tmp_path: Path, empty_postgres: str, side: str) -> None:
    box = Box(tmp_path)
    try:
        box.pair(**{side: empty_postgres})
        stream_with_kills(box, 1000, {200: "b.test", 400: "a.test", 600: "b.test", 800: "a.test"})
        assert not list((tmp_path / f"{side}.test").rglob("roost.db*"))  # it was not SQLite after all
    finally:
        box.close()


def stream_with_kills(box: Box, count: int, kills: dict[int, str]) -> None:
    """Alice sends to Bob line by line; a node is killed and served again whenever so many were accepted."""
    lines = "".join(f"m{i}\n" for i in range(count))
    argv = box.argv("send", "bob@b.test", "-", "--profile", "alice", "--wait", "accepted", "--timeout", "150", "--json")
    sender = subprocess.Popen(argv, env=box.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert sender.stdin is not None
    assert sender.stdout is not None
    sender.stdin.write(lines)
    sender.stdin.close()
    out = []
    for number, line in enumerate(sender.stdout):
        out.append(line)
        if (name := kills.get(number)) is not None:
            box.stop(name, signal.SIGKILL)
            box.serve(name)
    sender.stdout.close()
    assert sender.wait(60) == 0
    assert len(out) == count
    got = [m["text"] for m in box.tail("bob", count)]
    said = [f"m{i}" for i in range(count)]
    assert got == said
    history = box.objects("history", "alice@a.test", "--profile", "bob", "--limit", 5000)
    assert [m["text"] for m in history] == said
    assert len({m["id"] for m in history}) == count


@pytest.mark.timeout(120)
def test_exit_codes(box: Box) -> None:
    def code(*args: object, stdin: str = "") -> int:
        done = box.run(*args, stdin=stdin)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode

    to = ("--profile", "alice", "--timeout", "5", "--json")
    assert code("send", "bob@nowhere.test", "x", *to) == 4  # refused: no such node known
    assert code("send", "nobody@b.test", "x", "--wait", "sent", *to) == 4  # refused by the other node
    assert code("send", "not an address", "x", *to) in (2, 4)
    assert code("send", "bob@b.test", "x", "--profile", "nobody") == 2
    assert code("login", "alice@a.test", "--node", box.links["a.test"], "--password-stdin", "--profile", "p",
                stdin="wrong") == 4  # fmt: skip
    assert code("serve", "-c", box.conf("a.test")) in (2, 6)  # in use
    box.stop("b.test")
    assert code("send", "bob@b.test", "x", "--wait", "sent", *to) == 3  # accepted, not sent in time
    box.stop("a.test")
    assert code("send", "bob@b.test", "x", *to) == 5
    assert PASSWORD not in "".join(p.read_text() for p in box.folder.glob("*.log"))

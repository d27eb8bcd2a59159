"""What stands in the way of a node: an exit code, and one line that names the thing and the next step."""

import fcntl
import io
import json
import socket
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from node.cli.app import main
from node.cli.outcome import Exit

Capture = pytest.CaptureFixture[str]
COMMANDS = (["serve"], ["link"], ["status"], ["check"], ["user", "list"], ["user", "add", "ann", "--password-stdin"])


def refusal(capsys: Capture, argv: list[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = main(argv)
    out, err = capsys.readouterr()
    assert err.startswith("roost: ")
    assert " Next: " in err
    assert err.count("\n") == 1, err
    if "--json" in argv:
        assert set(json.loads(out)["error"]) == {"code", "message"}
    return code, err


@pytest.fixture(autouse=True)
def stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))


def newer(made: Path) -> tuple[str, ...]:
    assert main(["status", "-c", str(made)]) == 0
    database = sqlite3.connect(made.parent / "data" / "roost.db")
    database.execute("UPDATE schema_version SET version_num = '9999'")
    database.commit()
    database.close()
    return "roost.db", "9999", "install the newer"


def exposed(made: Path) -> tuple[str, ...]:
    key = made.parent / "data" / "node.key"
    key.chmod(0o644)
    return str(key), "chmod 600"


def damaged(made: Path) -> tuple[str, ...]:
    (made.parent / "data" / "roost.db").write_bytes(b"no database" * 1000)
    return "roost.db is damaged: file is not a database", "roost verify"


def lost_key(made: Path) -> tuple[str, ...]:
    assert main(["status", "-c", str(made)]) == 0
    (made.parent / "data" / "node.key").unlink()
    return "node.key is missing", "backup"


@pytest.mark.parametrize("break_it", [newer, exposed, damaged, lost_key])
def test_a_store_that_cannot_be_used_is_6_and_stays_as_it_is(
    made: Path, capsys: Capture, break_it: Callable[[Path], tuple[str, ...]]
) -> None:
    words = break_it(made)
    before = {file.name: file.read_bytes() for file in (made.parent / "data").iterdir()}
    for command in COMMANDS:
        code, text = refusal(capsys, [*command, "-c", str(made)])
        assert code == Exit.STORE
        assert [word for word in words if word not in text] == []
    after = {file.name: file.read_bytes() for file in (made.parent / "data").iterdir()}
    assert {name: data for name, data in after.items() if data} == {name: data for name, data in before.items() if data}


def test_a_data_directory_in_use(made: Path, capsys: Capture) -> None:
    with open(made.parent / "data" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in COMMANDS:
            code, text = refusal(capsys, [*command, "-c", str(made)])
            assert code == Exit.STORE
            assert f"{made.parent / 'data'} is in use by another process" in text
    assert main(["status", "-c", str(made)]) == 0


def test_a_busy_port_and_a_foreign_address(made: Path, capsys: Capture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = refusal(capsys, ["serve", "-c", str(made), "--set", f"listen=127.0.0.1:{port}"])
    assert code == Exit.USAGE
    assert f"127.0.0.1:{port}: Address already in use" in text
    assert "--set listen=HOST:PORT" in text
    code, text = refusal(capsys, ["serve", "-c", str(made), "--set", "listen=192.0.2.99:7701"])
    assert code == Exit.USAGE
    assert "an address of this machine" in text


def test_a_setting_that_does_not_exist(made: Path, capsys: Capture) -> None:
    with made.open("a") as file:
        file.write("regstration: closed\n")
    number = made.read_text().count("\n")
    for command in COMMANDS:
        code, text = refusal(capsys, [*command, "-c", str(made)])
        assert code == Exit.USAGE
        assert f"{made}:{number}: unknown setting regstration; did you mean registration? Next: " in text


@pytest.mark.parametrize(
    ("argv", "exit", "words"),
    [
        (["user", "disable", "nobody"], Exit.REFUSED, "there is no user nobody"),
        (["user", "passwd", "nobody", "--password-stdin"], Exit.REFUSED, "there is no user nobody"),
        (["user", "add", "No Name", "--password-stdin"], Exit.USAGE, "user name 'No Name' is not allowed"),
        (["peer", "accept", "nowhere.test"], Exit.REFUSED, "no peer 'nowhere.test'"),
        (["peer", "add", "roost://x@b.test"], Exit.USAGE, "roost://"),
        (["invite", "revoke", "zzz"], Exit.REFUSED, "no such invite"),
        (["why", "zzz"], Exit.REFUSED, "'zzz' is not an id"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_not_there(made: Path, capsys: Capture, argv: list[str], exit: Exit, words: str) -> None:
    code, text = refusal(capsys, [*argv, "-c", str(made), "--json"])
    assert code == exit
    assert words in text

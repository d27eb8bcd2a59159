"""Commands of the administrator, with a fake node behind them."""

import io
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from node.cli.app import main
from node.cli.outcome import Exit
from tests.cli.fakes import FakeAdmin

LINK = "roost://" + "a" * 51 + "q@b.test?at=192.0.2.7:7701"


def test_init_makes_a_private_node_and_never_overwrites(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = made.parent / "data" / "node.key"
    before = key.read_bytes(), made.read_text()
    assert key.stat().st_mode & 0o077 == 0
    assert "data_dir: data\n" in made.read_text()
    assert main(["init", str(made.parent), "--name", "b.test", "--listen", "127.0.0.1:0"]) == Exit.REFUSED
    assert (key.read_bytes(), made.read_text()) == before
    assert [p.name for p in made.parent.iterdir() if p.name.startswith(".")] == []
    assert "nothing was changed" in capsys.readouterr().err


def test_init_refuses_bad_names_before_it_writes(tmp_path: Path) -> None:
    argv = ["init", str(tmp_path / "x"), "--listen", "127.0.0.1:0", "--name"]
    assert main([*argv, "Lab.Example"]) == Exit.USAGE
    assert main([*argv, "a.test", "--set", "nonsense=1"]) == Exit.USAGE
    assert not (tmp_path / "x" / "node.yaml").exists()
    assert not (tmp_path / "x" / "data").exists()


def test_init_keeps_overrides(tmp_path: Path) -> None:
    argv = ["init", str(tmp_path / "x"), "--listen", "127.0.0.1:0", "--name", "a.test"]
    assert main([*argv, "--set", "link.backoff_cap_ms=1000", "--set", "registration=invite"]) == 0
    written = (tmp_path / "x" / "node.yaml").read_text()
    assert "\n  backoff_cap_ms: 1000\n" in written
    assert "\nregistration: invite\n" in written


def test_link_is_the_last_token(made: Path, admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.answers["link"] = LINK
    capsys.readouterr()
    assert main(["link", "-c", str(made)]) == 0
    assert capsys.readouterr().out.split()[-1] == LINK


def test_a_password_loses_one_newline_only(made: Path, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(" two words \n\n"))
    assert main(["user", "add", "alice", "--password-stdin", "-c", str(made)]) == 0
    assert admin.asked == [("user.add", {"name": "alice", "password": " two words \n"})]


def test_without_a_terminal_a_password_is_never_asked_for(
    made: Path, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["user", "add", "alice", "-c", str(made)]) == Exit.USAGE
    assert admin.asked == []


@pytest.mark.parametrize(
    ("code", "exit"),
    [("name_taken", Exit.REFUSED), ("failed", Exit.UNKNOWN), ("store_unusable", Exit.STORE)],
)
def test_refused_administration(
    made: Path, admin: FakeAdmin, code: str, exit: Exit, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    admin.answers["user.disable"] = admin.AdminError(code, "it says no")
    assert main(["user", "disable", "alice", "-c", str(made), "--json"]) == exit
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"code": code, "message": "it says no"}}
    assert err.startswith("roost: it says no. Next: ")


def test_lists_are_tables_for_people_and_lines_for_programs(
    made: Path, admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.answers["peer.list"] = [{"name": "b.test", "state": "accepted"}, {"name": "c\x07", "state": "knock"}]
    capsys.readouterr()
    assert main(["peer", "list", "-c", str(made)]) == 0
    assert capsys.readouterr().out == "name     state\nb.test   accepted\nc\\u0007  knock\n"
    assert main(["peer", "list", "-c", str(made), "--json"]) == 0
    assert [json.loads(x)["state"] for x in capsys.readouterr().out.splitlines()] == ["accepted", "knock"]


def test_why_from_the_node(made: Path, admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.answers["why"] = {"event": "e", "summary": "waits", "hops": [{"at": 5, "what": "accepted"}]}
    capsys.readouterr()
    assert main(["why", "e", "-c", str(made), "--json"]) == 0
    hops = [{"at": 5, "what": "accepted", "detail": ""}]
    assert json.loads(capsys.readouterr().out) == {"id": "e", "summary": "waits", "hops": hops}


def test_the_node_blocks_a_user_of_another_one(
    made: Path, admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.answers["block.list"] = [{"who": "eve@b.test", "since": 5}]
    capsys.readouterr()
    for command in (["block", "eve@b.test"], ["unblock", "eve@b.test"], ["blocks"]):
        assert main([*command, "-c", str(made), "--json"]) == 0
    who = {"who": "eve@b.test"}
    assert admin.asked == [("block.add", who), ("block.remove", who), ("block.list", {})]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"who": "eve@b.test", "since": 5}


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from node.cli.app import main; main(['--help']);"
        "bad = {'textual', 'tui', 'sqlalchemy', 'aioquic', 'aiohttp', 'node.node'} & set(sys.modules);"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_yes_no_and_lists_are_shown_to_people_as_such(
    made: Path, admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.answers["peer.list"] = [{"name": "b.test", "addresses": ["192.0.2.7:7701", "b\x07:1"], "up": True}]
    capsys.readouterr()
    assert main(["peer", "list", "-c", str(made)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split("  ")[1:] == ["192.0.2.7:7701, b\\u0007:1", "yes"]


def test_what_is_missing_is_named_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, needs in ((["init"], "`roost init` needs DIR"), (["init", "x", "--name", "a.test"], "needs --listen")):
        assert main(argv) == Exit.USAGE
        assert needs in capsys.readouterr().err
    assert main(["send", "--help"]) == 0
    help = capsys.readouterr().out
    assert " TEXT " in help
    assert "--text" not in help


def test_a_wildcard_address_without_a_public_one_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["init", str(tmp_path / "x"), "--name", "a.test", "--listen", "0.0.0.0:0"]
    assert main(argv) == 0
    made = tmp_path / "x" / "node.yaml"
    assert main(["check", "-c", str(made)]) == 0
    assert capsys.readouterr().out.count("warning: 0.0.0.0:0 is no address that others can call") == 2
    assert main(["check", "-c", str(made), "--set", "advertise=[a.test:7701]", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_init_says_that_the_port_is_taken(
    tmp_path: Path, kind: socket.SocketKind, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        assert main(["init", str(tmp_path / "x"), "--name", "a.test", "--listen", listen, "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert f"another program listens on {listen} now" in warning


def test_status_for_people_is_without_what_only_programs_need(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["status", "-c", str(made)]) == 0
    shown = capsys.readouterr().out
    assert "users: 0" in shown
    assert "incarnation" not in shown
    assert main(["status", "-c", str(made), "--json"]) == 0
    assert "incarnation" in json.loads(capsys.readouterr().out)


QUEUE = {"peer": "b.test", "state": "accepted", "link": "down", "waiting": 3, "bytes": 900, "oldest": 0}


def test_queues_are_shown_with_why_they_wait(made: Path, admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    queue = QUEUE | {"next_s": 7, "reason": "b.test does not answer"}
    admin.answers["queue.list"] = [dict(queue), queue | {"next_s": None}, queue | {"next_s": 0}]
    capsys.readouterr()
    assert main(["queue", "list", "-c", str(made), "--peer", "b.test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == queue
    assert main(["queue", "list", "-c", str(made)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[-3:] == ["next", "try", "reason"]
    assert [re.split("  +", line)[-2] for line in lines] == ["in 7 s", "-", "now"]
    assert admin.asked == [("queue.list", {"peer": "b.test"}), ("queue.list", {"peer": ""})]


def test_a_queue_is_given_up_only_by_name(
    made: Path, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.answers["queue.expire"] = {"peer": "b.test", "failed": 3, "left": 1}
    admin.answers["queue.flush"] = {"flushed": ["b.test"]}
    assert main(["queue", "expire", "-c", str(made)]) == Exit.USAGE
    terminal = io.StringIO("c.test\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert main(["queue", "expire", "-c", str(made), "--peer", "b.test"]) == Exit.REFUSED
    assert admin.asked == []
    capsys.readouterr()
    assert main(["queue", "expire", "-c", str(made), "--peer", "b.test", "--yes"]) == 0
    assert capsys.readouterr().out.startswith("gave up 3 messages for b.test; their senders see it; 1 other")
    assert main(["queue", "flush", "-c", str(made)]) == 0
    assert capsys.readouterr().out == "trying b.test now\n"


def test_doctor_says_what_to_do_and_its_exit_code_tells(
    made: Path, admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = {"check": "disk", "problem": "3 MiB are free\x07", "fix": "make room"}
    admin.answers["doctor"] = {"ok": False, "checked": ["disk"], "findings": [finding]}
    capsys.readouterr()
    assert main(["doctor", "-c", str(made)]) == Exit.REFUSED
    assert capsys.readouterr().out == "disk: 3 MiB are free\\u0007. Fix: make room\n"
    admin.answers["doctor"] = {"ok": True, "checked": ["disk", "clock"], "findings": []}
    assert main(["doctor", "-c", str(made)]) == 0
    assert capsys.readouterr().out == "nothing to put right: looked at disk, clock\n"
    assert main(["doctor", "-c", str(made), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    assert admin.asked[0] == ("doctor", {"file": str(made)})


def test_verify_says_what_damage_means_and_ends_with_6(
    made: Path, admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = {
        "table": "events", "kind": "gap", "count": 2, "examples": ["ab 3\x07"], "means": "events are missing",
        "next": "restore a backup",
    }  # fmt: skip
    admin.answers["verify"] = {"ok": False, "rows": 7, "findings": [finding]}
    capsys.readouterr()
    assert main(["verify", "-c", str(made)]) == Exit.STORE
    assert capsys.readouterr().out == (
        "events: 2 x gap (ab 3\\u0007)\n  events are missing. Next: restore a backup.\n7 rows: damaged\n"
    )
    admin.answers["verify"] = {"ok": True, "rows": 7, "findings": []}
    assert main(["verify", "-c", str(made), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "rows": 7, "findings": []}


def test_quarantine_is_listed_replayed_and_dropped(
    made: Path, admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.answers["quarantine.list"] = [{"id": "abc", "from": "b.test", "error": "a bug"}]
    admin.answers["quarantine.replay"] = {"done": [], "refused": [{"id": "abc", "reason": "clock"}]}
    admin.answers["quarantine.drop"] = {"done": ["abc"], "refused": []}
    capsys.readouterr()
    assert main(["quarantine", "list", "-c", str(made)]) == 0
    assert "b.test" in capsys.readouterr().out
    assert main(["quarantine", "replay", "all", "-c", str(made)]) == Exit.REFUSED
    assert capsys.readouterr().out == "processed 0\nabc stays: clock\n"
    assert main(["quarantine", "drop", "abc", "-c", str(made)]) == 0
    assert capsys.readouterr().out == "dropped 1\n"
    assert admin.asked[-1] == ("quarantine.drop", {"id": "abc"})

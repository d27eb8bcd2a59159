"""Commands of the administrator, with a fake node behind them."""

import io
import json
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


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from node.cli.app import main; main(['--help']);"
        "bad = {'textual', 'tui', 'sqlalchemy', 'aioquic', 'aiohttp', 'node.node'} & set(sys.modules);"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

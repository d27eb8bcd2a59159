"""Exit codes and errors: one mapping, no tracebacks, one readable line."""

import importlib
import json
from pathlib import Path

import pytest

from node import api
from node.cli import outcome, output
from node.cli.app import main
from node.cli.outcome import Exit, explain, worst


@pytest.mark.parametrize(("module", "name", "exit"), [row[:3] for row in outcome.KNOWN])
def test_every_known_error_exists_and_keeps_its_code(module: str, name: str, exit: Exit) -> None:
    cls = getattr(importlib.import_module(module), name)
    error = cls.__new__(cls)
    Exception.__init__(error, "what happened")
    assert explain(error).exit == exit
    assert explain(error).next


def test_refusals_of_a_node_keep_their_code() -> None:
    problem = explain(api.ApiError("declined", "bob does not take messages from you"))
    assert (problem.exit, problem.code) == (Exit.REFUSED, "declined")
    assert explain(api.ApiError("busy", "stopping")).next == "try again later"


def test_a_lone_error_of_a_group_is_the_error() -> None:
    group = ExceptionGroup("tasks", [api.ApiError("blocked", "b.test is blocked here")])
    assert explain(group).code == "blocked"


def test_a_bug_is_one_line_and_a_private_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROOST_HOME", str(tmp_path))
    try:
        raise ZeroDivisionError("secret detail")
    except ZeroDivisionError as error:
        problem = explain(error)
    (file,) = (tmp_path / "crash").iterdir()
    assert problem.exit == Exit.BUG
    assert str(file) in problem.next
    assert "secret detail" not in problem.message + problem.next
    assert "secret detail" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_the_worst_of_many_asks_for_most_care() -> None:
    assert worst([]) == Exit.REACHED
    assert worst([Exit.REACHED, Exit.REFUSED, Exit.UNREACHABLE]) == Exit.REFUSED
    assert worst([Exit.REFUSED, Exit.UNKNOWN, Exit.REACHED]) == Exit.UNKNOWN


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["send", "bob@b.test"],
        ["send", "bob@b.test", "x", "--profile", "p", "--wait", "seen"],
        ["send", "bob@b.test", "x", "--profile", "p", "--timeout", "0"],
        ["send", "Bob@b.test", "x", "--profile", "p"],
        ["tail", "--profile", "p", "--kinds", "message,nothing"],
        ["history", "bob@", "--profile", "p"],
        ["login", "alice@a.test", "--node", "http://a.test", "--profile", "p"],
        ["peer", "add", "nonsense", "-c", "nowhere.yaml"],
        ["why", "x"],
        ["link", "-c", "/nowhere/node.yaml"],
    ],
)
def test_bad_usage_is_two_with_one_line_and_one_object(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "--json"] if argv[0] != "nonsense" else argv) == Exit.USAGE
    out, err = capsys.readouterr()
    assert err.startswith("roost: ")
    assert " Next: " in err
    assert err.count("\n") == 1
    if argv[0] != "nonsense":
        assert set(json.loads(out)["error"]) == {"code", "message"}


@pytest.mark.parametrize("argv", [["history", "\udcff", "--profile", "p"], ["devices", "rename", "d", "\udcfe"]])
def test_arguments_that_are_no_text_are_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "--json"]) == Exit.USAGE
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_text"


def test_help_and_version_are_no_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main([]) == 0
    assert main(["--version"]) == 0
    assert "send" in capsys.readouterr().out


def test_foreign_text_stays_on_its_line() -> None:
    assert output.safe("a\nb\x1b[31m\x9b\u202e") == "a\\nb\\u001b[31m\\u009b\\u202e"
    assert output.safe("Grüße 👩‍🚀") == "Grüße 👩‍🚀"

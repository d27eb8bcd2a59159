"""B20: names and texts of others cannot move the cursor, colour, ring, turn the reading direction, or begin a line."""

import ast
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from node import api
from node.cli import output
from node.cli.app import main
from node.client.model import Change, Conversation
from tests.cli.fakes import MINE, THEIRS, FakeAdmin, FakeClient

# newline, carriage return, ANSI colour, title and clipboard, C1, bell, backspace, right-to-left, isolates, separators,
# a tag character, NUL, DEL
NASTY = (
    "x\n2026-01-01 ERROR roost: forged\r\x1b[31mred\x1b]0;title\x07\x1b]52;c;aGk=\x1b\\\x9b31m\x08"
    "\u202etxt.exe\u2066\u2028\u2029\u200b\ufeff\U000e0041\x00\x7f\x85"
)
CLI = Path(output.__file__).parent


def clean(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@given(st.text())
def test_b20_safe_text_is_printable_and_stays_as_it_is(text: str) -> None:
    shown = output.safe(text)
    assert shown.replace("\u200d", "").isprintable()
    assert output.safe(shown) == shown


@given(st.recursive(st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner, max_size=4)))
def test_b20_an_object_is_one_printable_line_and_the_same_object(value: Any) -> None:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        output.obj({"value": value})
    (line, rest) = out.getvalue().split("\n")
    assert rest == ""
    assert line.replace("\u200d", "").isprintable()
    assert json.loads(line) == {"value": value}


class Nasty(FakeClient):
    """Everything that others choose is NASTY."""

    def __init__(self) -> None:
        super().__init__()
        self.address, self.shown, self.device = f"alice{NASTY}@a.test", NASTY, NASTY
        theirs = replace(THEIRS, id=NASTY, key=NASTY, conversation=NASTY, sender=NASTY, text=NASTY, kind=NASTY)
        lost = replace(MINE, id=NASTY, state="failed", reason=NASTY)
        self.changes = [
            Change("message", message=theirs),
            Change("state", message=lost),
            Change("request", conversation=Conversation(NASTY, NASTY)),
            Change("device", device=NASTY, detail=NASTY),
        ]

    async def history(self, target: str, limit: int) -> list[Any]:
        return [change.message for change in self.changes if change.message]

    async def state(self, id: str) -> api.States:
        return api.States(id, (api.Recipient(NASTY, "failed", 7, NASTY),))

    async def why(self, id: str) -> api.Why:
        return api.Why(id, NASTY, (api.Hop(7, NASTY, NASTY), api.Hop(0, NASTY)))

    async def devices(self) -> list[api.DeviceState]:
        return [api.DeviceState(NASTY, NASTY, 7)]

    async def requests(self) -> list[Conversation]:
        return [Conversation(NASTY, NASTY)]

    async def blocked(self) -> list[api.BlockState]:
        return [api.BlockState(NASTY, 7)]

    async def rename_device(self, device: str, name: str) -> None: ...

    async def revoke_device(self, device: str) -> None: ...

    async def logout(self) -> None: ...


AS = ["--profile", "alice"]
CLIENT = [
    ["send", "bob@b.test", NASTY, *AS],
    ["tail", "--count", "4", "--kinds", "message,state,request,device", "--from-start", *AS],
    ["history", "bob@b.test", *AS],
    ["state", NASTY, *AS],
    ["why", NASTY, *AS],
    ["profile", "--name", NASTY, *AS],
    ["devices", "list", *AS],
    ["devices", "rename", NASTY, NASTY, *AS],
    ["devices", "revoke", NASTY, *AS],
    ["requests", *AS],
    ["accept", NASTY, *AS],
    ["decline", NASTY, *AS],
    ["block", NASTY, *AS],
    ["unblock", NASTY, *AS],
    ["blocks", *AS],
    ["typing", NASTY, *AS],
    ["logout", *AS],
]
ADMIN = {
    "status": ["status"], "user.list": ["user", "list"], "invite.list": ["invite", "list"],
    "peer.list": ["peer", "list"], "peer.accept": ["peer", "accept", NASTY], "peer.block": ["peer", "block", NASTY],
    "peer.remove": ["peer", "remove", NASTY], "invite.revoke": ["invite", "revoke", NASTY], "why": ["why", NASTY],
    "block.list": ["blocks"], "block.add": ["block", NASTY], "block.remove": ["unblock", NASTY],
}  # fmt: skip
ROW = {"name": NASTY, NASTY: NASTY, "nested": {NASTY: [NASTY]}, "reason": NASTY, "peers": [{"name": NASTY}]}
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("command", CLIENT, ids=lambda command: command[0])
def test_b20_commands_of_people(
    command: list[str], json: bool, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.client.Client", Nasty(), raising=False)
    main([*command, *(["--json"] * json)])
    out, err = capsys.readouterr()
    assert out or err
    assert clean(out), repr(out)
    assert clean(err), repr(err)


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("op", ADMIN)
def test_b20_commands_of_administrators(
    op: str, json: bool, refused: bool, made: Path, admin: FakeAdmin, capsys: Capture
) -> None:
    row: Any = {"summary": NASTY, "hops": [{"what": NASTY, "detail": NASTY}]} if op == "why" else ROW
    answer: Any = [ROW, ROW] if op.endswith("list") else row
    admin.answers[op] = FakeAdmin.AdminError(NASTY, NASTY) if refused else answer
    capsys.readouterr()
    main([*ADMIN[op], "-c", str(made), *(["--json"] * json)])
    out, err = capsys.readouterr()
    assert out or err
    assert clean(out), repr(out)
    assert clean(err), repr(err)


def test_b20_nothing_of_the_command_line_writes_past_the_one_safe_way() -> None:
    found = []
    for file in sorted(CLI.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="print"), keywords=keywords):
                    to_stderr = any(k.arg == "file" for k in keywords)
                    if not to_stderr or (not all(_fixed(arg) for arg in node.args) and file.name != "output.py"):
                        found.append(f"{file.name}:{node.lineno}")
                case ast.Attribute(attr="write", value=ast.Attribute(attr="stdout")) if file.name != "output.py":
                    found.append(f"{file.name}:{node.lineno}")
    assert found == []


def _fixed(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)


def test_b20_a_log_record_is_one_line_whoevers_words_are_in_it() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(output.LogLines())
    log = logging.Logger("test")
    log.addHandler(handler)
    log.warning("link with %s refused: %s", NASTY, NASTY)
    (line,) = out.getvalue().rstrip("\n").split("\n")
    assert line.isprintable()
    try:
        raise ValueError(NASTY)
    except ValueError as error:
        log.error("failed: %r", error, exc_info=error)
    records = [line for line in out.getvalue().rstrip("\n").split("\n") if not line.startswith("    ")]
    assert len(records) == 2
    assert clean(out.getvalue())

"""Protocol and decision modules are pure: the same input and the same `now` give the same output, always."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATTERNS = (
    "federation/ids.py",
    "federation/identity.py",  # keys come from PyNaCl; a new one is made from a seed that is handed in
    "federation/event.py",
    "federation/wire.py",
    "federation/errors.py",
    "federation/framing.py",
    "federation/link.py",
    "federation/peers.py",
    "federation/reach.py",
    "federation/control.py",
    "federation/roster.py",
    "federation/changes.py",
    "federation/groups.py",
    "federation/cuts.py",
    "federation/lineage.py",
    "federation/forks.py",
    "federation/desk.py",
    "federation/voting.py",
    "federation/stewards.py",
    "node/core/*.py",
    "node/api.py",
    "node/coding.py",
    "tui/text.py",
    "tui/model.py",
)
FORBIDDEN = {
    *("asyncio", "socket", "time", "random", "os", "logging", "secrets", "threading"),
    *("aiohttp", "aioquic.asyncio", "aiosqlite", "asyncpg", "sqlalchemy"),
    *("concurrent", "multiprocessing", "queue", "select", "selectors", "signal", "ssl", "subprocess", "uuid"),
}
CLOCKS = {"now", "utcnow", "today"}  # of datetime: importing the type is fine, asking it the time is not

PURE = sorted({file for pattern in PATTERNS for file in ROOT.glob(pattern)})


def impurities(tree: ast.AST) -> list[str]:
    """What makes a module depend on more than its arguments, as `line: what`."""
    found: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                imported = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                imported = [module, *(f"{module}.{alias.name}" for alias in names)]
            case ast.AsyncFunctionDef(name=name):
                found.append(f"{node.lineno}: async def {name}")
                continue
            case ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                found.append(f"{getattr(node, 'lineno', 0)}: awaits")
                continue
            case ast.Attribute(attr=attr, value=ast.Name(id="datetime" | "date")) if attr in CLOCKS:
                found.append(f"{node.lineno}: asks the clock")
                continue
            case ast.Call(func=ast.Name(id="open" | "print" | "input" as name)):
                found.append(f"{node.lineno}: calls {name}()")
                continue
            case _:
                continue
        found += [
            f"{node.lineno}: imports {name}"
            for name in imported
            if any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN)
        ]
    return found


@pytest.mark.parametrize("file", PURE, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_pure_module_is_pure(file: Path) -> None:
    assert impurities(ast.parse(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_pattern_guards_a_module_that_is_gone(pattern: str) -> None:
    """A renamed module must take its guard along."""
    if not list(ROOT.glob(pattern)):
        pytest.skip(f"{pattern} is not written yet")


def test_the_guard_guards_something() -> None:
    assert len(PURE) >= 5


@pytest.mark.parametrize(
    "source",
    [
        "import os",
        "import os.path",
        "from time import monotonic",
        "from aioquic import asyncio",
        "import aioquic.asyncio as a",
        "def f():\n    import random",
        "async def f(): ...",
        "datetime.now()",
        "print(1)",
    ],
)
def test_the_guard_sees(source: str) -> None:
    assert impurities(ast.parse(source))


@pytest.mark.parametrize("source", ["from datetime import datetime", "import operator", "from aioquic import quic"])
def test_the_guard_lets_pass(source: str) -> None:
    assert not impurities(ast.parse(source))

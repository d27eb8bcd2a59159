"""What a program pays for an import: a bot never loads the server, the command never loads the screens."""

import importlib.util
import subprocess
import sys

import pytest

SERVER = (
    "sqlalchemy",
    "alembic",
    "asyncpg",
    "node.storage",
    "node.core",
    "node.gateway",
    "node.node",
)
SCREENS = ("textual", "tui")
BROWSER_SIDE = ("aiohttp.web",)


def loaded_by(statement: str) -> set[str]:
    """Names of all modules a fresh interpreter holds after one statement."""
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def present(name: str) -> bool:
    parts = name.split(".")
    return all(importlib.util.find_spec(".".join(parts[: n + 1])) is not None for n in range(len(parts)))


@pytest.mark.parametrize(
    ("statement", "module", "unwanted"),
    [
        ("import node", "node", SERVER + SCREENS + ("aiohttp", "aioquic")),
        ("import node.api", "node.api", SERVER + SCREENS + ("aiohttp", "aioquic", "asyncio")),
        ("import node.client", "node.client", SERVER + SCREENS + BROWSER_SIDE),
        (
            "from node.client import Client",
            "node.client.client",
            SERVER + SCREENS + BROWSER_SIDE,
        ),
        ("import node.__main__", "node.__main__", SERVER + SCREENS),
        (
            "import federation.link, federation.wire",
            "federation.wire",
            ("node", "tui", "asyncio", "aioquic"),
        ),
        ("import tui", "tui", SERVER),
    ],
)
def test_an_import_brings_nothing_it_does_not_need(statement: str, module: str, unwanted: tuple[str, ...]) -> None:
    if not present(module):
        pytest.skip(f"{module} is not written yet")
    assert sorted(loaded_by(statement) & set(unwanted)) == []

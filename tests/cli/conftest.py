"""Commands with a fake client or a fake node behind them, and stdin through a real pipe."""

import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import node
import node.client
from node.cli import pipe, send, session
from node.cli.app import main
from tests.cli.fakes import FakeAdmin, FakeClient


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROOST_HOME", str(tmp_path / "home"))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setitem(vars(node.client), "Client", fake)
    return fake


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> FakeAdmin:
    fake = FakeAdmin()
    monkeypatch.setitem(sys.modules, "node.admin", fake)
    monkeypatch.setattr(node, "admin", fake, raising=False)
    return fake


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The config of a node that is made and does not run."""
    folder = tmp_path / "a.test"
    assert main(["init", str(folder), "--name", "a.test", "--listen", "127.0.0.1:0"]) == 0
    return folder / "node.yaml"


Feed = Callable[[str], None]


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Feed:
    """Gives a command its stdin, through a real pipe, since commands read the bare descriptor."""

    async def lines(text: str) -> AsyncIterator[str]:
        reader, writer = os.pipe()
        os.write(writer, text.encode())
        os.close(writer)
        try:
            async for line in session.stdin_lines(reader):
                yield line
        finally:
            os.close(reader)

    def give(text: str) -> None:
        for module in (send, pipe):
            monkeypatch.setattr(module, "stdin_lines", lambda: lines(text))

    return give

"""The programs in docs/examples run as they stand, and say what docs/embedding.md says they do."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from tests.faults.cases import CASES

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic resolves annotations by module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fastapi_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("ROOST_DATA", str(tmp_path / "data"))
    module = load("fastapi_app")
    yield module
    del sys.modules[module.__name__]


def test_the_plain_program_prints_what_arrived(tmp_path: Path) -> None:
    argv = [sys.executable, "-W", "error::ResourceWarning", str(EXAMPLES / "embed.py"), str(tmp_path / "lab")]
    done = subprocess.run(argv, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "alice@lab.example: hello from inside an app",
        "bob has read it",
    ]


async def test_each_request_of_the_web_app_is_a_message_and_a_repeated_one_is_the_same(
    fastapi_app: ModuleType,
) -> None:
    app = fastapi_app.app
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as web,
    ):
        posts = [
            await web.post("/orders", json={"number": number, "text": text})
            for number, text in (("17", "two lamps"), ("18", "a chair"), ("17", "two lamps"))
        ]
        assert [post.status_code for post in posts] == [200, 200, 200]
        ids = [post.json()["id"] for post in posts]
        assert ids[0] == ids[2] != ids[1]
        told = (await web.get("/support")).json()
    assert told == [
        {"from": "orders@shop.example", "text": "17: two lamps"},
        {"from": "orders@shop.example", "text": "18: a chair"},
    ]


async def test_the_web_app_starts_again_on_what_it_left(fastapi_app: ModuleType) -> None:
    app = fastapi_app.app
    for number in ("1", "2"):
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as web,
        ):
            assert (await web.post("/orders", json={"number": number, "text": "again"})).status_code == 200
            told = (await web.get("/support")).json()
    assert [entry["text"] for entry in told] == ["1: again", "2: again"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_file_a_document_links_to_exists(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_source_file_a_document_names_exists(document: Path) -> None:
    named = set(re.findall(r"`((?:node|federation|tui|tests|docs)/[\w/.-]+)`", document.read_text(encoding="utf-8")))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_a_document_names_exists(document: Path) -> None:
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", document.read_text(encoding="utf-8"))
    assert [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")] == []


def test_every_case_of_the_guarantees_is_run() -> None:
    cells = re.findall(r"\|([^|]*)\|$", (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {case for cell in cells for case in re.findall(r"\b[CD]\d+\b", cell)} <= set(CASES)

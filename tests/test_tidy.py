"""Style is a test: what a reviewer would have to say twice is said here once."""

import ast
import importlib
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
# Longer than the limit, and better so. Each with its reason; an entry that no longer counts fails.
LONG_FILES: dict[str, str] = {"node/api.py": "the client protocol as one table of frames, read from top to bottom"}
LONG_FUNCTIONS: dict[str, str] = {}

ROOT_FILES = (
    *("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "Makefile", "node.example.yaml"),
    *("pyproject.toml", "requirements.lock", "requirements-dev.lock", ".ci/run"),
)
# Written in pieces, so that this file does not find itself.
MARKS = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
PLACES = re.compile(r"(?<![\w.:-])/(wo" r"rk|home/\w+|Users/\w+|ro" r"ot)/|/pyp" r"i/simple|file:" r"///")
CHATTER = re.compile(r"\b(iss" r"ue #\d|this sess" r"ion of|the bri" r"ef\b|as an A" r"I\b|cla" r"ude)", re.IGNORECASE)
RULE = re.compile(r"PROTOCOL\.md (\d+(?:\.\d+)*)((?:(?:,| and) \d+(?:\.\d+)+)*)")
RULE_DEFINED = re.compile(r"^(?:#+ |\*\*|- \*\*|- |\| )?(\d+(?:\.\d+)*)\.?(?:\*\*|\s)", re.MULTILINE)
PORT = re.compile(r"^(?:127\.0\.0\.1|0\.0\.0\.0|localhost|\[::1?\]):(\d+)$")
DOCUMENTED_PORT = 7701  # the one in our documents; tests may write it, and never listen on it
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".lock", ".json", ".tcss", ".sh", ".txt", ".mako", ".ini", ""}


def tracked() -> list[Path]:
    """Every text file that git has, or would take."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        names = [str(file.relative_to(ROOT)) for file in ROOT.rglob("*") if ".venv" not in file.parts]
    files = (ROOT / name for name in sorted(names) if name)
    return [file for file in files if file.is_file() and file.suffix in TEXT and "__pycache__" not in file.parts]


FILES = tracked()
OURS = [
    file for file in FILES if file.suffix == ".py" and file.relative_to(ROOT).parts[0] in ("node", "federation", "tui")
]
TESTS = [file for file in FILES if file.suffix == ".py" and file.relative_to(ROOT).parts[0] == "tests"]


def named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def matches(pattern: re.Pattern[str], files: list[Path]) -> list[str]:
    return [
        f"{named(file)}:{number}: {found.group()}"
        for file in files
        for number, line in enumerate(text(file).splitlines(), 1)
        if (found := pattern.search(line))
    ]


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node
        inner = f"{prefix}{node.name}." if isinstance(node, ast.ClassDef | ast.FunctionDef) else prefix
        yield from functions(node, inner)


def beyond(sizes: dict[str, int], limit: int, allowed: dict[str, str]) -> list[str]:
    """What is too long, and what is allowed to be and is not."""
    long = {name: size for name, size in sizes.items() if size > limit}
    found = [f"{name}: {size} lines, {limit} allowed" for name, size in long.items() if name not in allowed]
    return found + [f"{name} is allowed to be long and is not" for name in allowed if name not in long]


@pytest.mark.parametrize("name", ROOT_FILES)
def test_the_root_has_what_a_stranger_looks_for(name: str) -> None:
    assert (ROOT / name).is_file()


def test_no_file_is_too_long() -> None:
    assert beyond({named(file): len(text(file).splitlines()) for file in OURS}, FILE_LINES_MAX, LONG_FILES) == []


def test_no_function_is_too_long() -> None:
    sizes = {
        f"{named(file)}:{name}": (node.end_lineno or 0) - node.lineno + 1
        for file in OURS
        for name, node in functions(ast.parse(text(file)))
    }
    assert beyond(sizes, FUNCTION_LINES_MAX, LONG_FUNCTIONS) == []


def test_nothing_is_left_marked_for_later() -> None:
    assert matches(MARKS, FILES) == []


def test_no_file_names_somebodys_machine() -> None:
    assert matches(PLACES, FILES) == []


def test_no_file_talks_about_how_it_was_made() -> None:
    assert matches(CHATTER, [file for file in FILES if file.suffix != ".lock"]) == []


def test_no_bare_except() -> None:
    found = [
        f"{named(file)}:{node.lineno}"
        for file in OURS + TESTS
        for node in ast.walk(ast.parse(text(file)))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert found == []


def test_every_module_says_what_it_is() -> None:
    assert [named(file) for file in OURS if text(file).strip() and not ast.get_docstring(ast.parse(text(file)))] == []


def test_every_cited_protocol_rule_exists() -> None:
    cited = {
        number: f"{named(file)} cites PROTOCOL.md {number}"
        for file in OURS + TESTS
        for match in RULE.finditer(text(file))
        for number in re.findall(r"\d+(?:\.\d+)*", match.group(1) + match.group(2))
    }
    protocol = ROOT / "federation/PROTOCOL.md"
    if not protocol.exists():
        pytest.skip("federation/PROTOCOL.md is not written yet")
    defined = set(RULE_DEFINED.findall(text(protocol)))
    assert sorted(where for number, where in cited.items() if number not in defined) == []


def dotted(node: ast.expr) -> str:
    match node:
        case ast.Attribute(value=value, attr=attr):
            return f"{dotted(value)}.{attr}"
        case ast.Name(id=name):
            return name
        case _:
            return ""


def test_no_test_sleeps() -> None:
    """Sleeping is guessing. `asyncio.sleep(0)` only yields, and waiting for an event with a limit is fine."""
    found = []
    for file in TESTS:
        if "sim" in file.parts:
            continue  # its loop's time is virtual: a sleep there is a jump of the clock
        for node in ast.walk(ast.parse(text(file))):
            if not isinstance(node, ast.Call):
                continue
            name = dotted(node.func)
            yields = len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            if name == "time.sleep" or (name in ("asyncio.sleep", "sleep", "anyio.sleep") and not yields):
                found.append(f"{named(file)}:{node.lineno}")
    assert found == []


def test_no_test_binds_a_fixed_port() -> None:
    """Two runs at once must not meet. Names and documentation addresses may have any port."""
    found = []
    for file in TESTS:
        for node in ast.walk(ast.parse(text(file))):
            match node:
                case ast.Constant(value=str(value)) if port := PORT.match(value):
                    fixed = int(port.group(1)) not in (0, DOCUMENTED_PORT)
                case ast.keyword(arg="port", value=ast.Constant(value=int(number))):
                    fixed = number not in (0, DOCUMENTED_PORT)
                case _:
                    continue
            if fixed:
                found.append(f"{named(file)}:{getattr(node, 'lineno', 0)}")
    assert found == []


def commands() -> list[str]:
    """Every `roost ...` line in a code block of the README."""
    readme = ROOT / "README.md"
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text(readme) if readme.exists() else "", re.MULTILINE | re.DOTALL)
    lines = (line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines())
    return [line for line in lines if line.startswith("roost ")]


def test_every_command_in_the_readme_exists() -> None:
    try:
        app = importlib.import_module("node.cli.app").build()
    except ImportError:
        pytest.skip("node.cli is not written yet")
    unknown = []
    for line in commands():
        words = shlex.split(line, comments=True)[1:]
        if words and not words[0].startswith("-") and not app.parse_commands(words)[0]:
            unknown.append(line)
    assert unknown == []


def test_what_the_changelog_is_about_is_what_is_installed() -> None:
    project = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]
    changelog = text(ROOT / "CHANGELOG.md")
    assert "## Unreleased" in changelog or f"## {project['version']}" in changelog

"""node.yaml and `Config`: what they accept, and the words of every refusal."""

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from node import config_file
from node.config import Config, ConfigError, Federation, Limits, Link
from node.config_file import load, render

ROOT = Path(__file__).parents[2]
SIX = """\
name: lab.example
listen: "0.0.0.0:7701"
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "node.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(written(folder, text), overrides)
    return str(caught.value).removeprefix(f"{folder}/")


def uncommented(text: str) -> str:
    """Every setting switched on: a setting's # stands right before its key."""
    return re.sub(r"^#(?=(  )?[a-z])", "", text, flags=re.MULTILINE)


def test_the_example_is_fresh() -> None:
    shown = (ROOT / "node.example.yaml").read_text(encoding="utf-8")
    assert shown == config_file.HEADER + render(config_file.EXAMPLE), "run `make schema`"


def test_six_lines_are_enough_to_run(tmp_path: Path) -> None:
    lines = [line for line in render(config_file.EXAMPLE).splitlines() if line and line.strip()[0] != "#"]
    assert len(lines) == 6
    read = load(written(tmp_path, "\n".join(lines)))
    assert read == msgspec.structs.replace(config_file.EXAMPLE, data_dir=str(tmp_path / "data"))


def test_every_setting_is_in_the_example_with_its_default_or_a_valid_example(tmp_path: Path) -> None:
    text = uncommented((ROOT / "node.example.yaml").read_text(encoding="utf-8"))
    read = load(written(tmp_path, text))
    assert read.link == Link()
    assert read.limits == Limits()
    assert set(yaml.safe_load(text)) == set(msgspec.structs.asdict(config_file.EXAMPLE))


def test_what_is_rendered_reads_back_the_same(tmp_path: Path) -> None:
    made = Config(
        name="xn--bcher-kva.example",
        listen="[::]:0",
        data_dir=str(tmp_path / "a b: c"),
        database='postgresql+asyncpg://u:p"#@db/roost',
        advertise=("192.0.2.7:7701", "[2001:db8::7]:7701"),
        federation=Federation(policy="open"),
        link=Link(ping_ms=5_000),
        limits=Limits(sessions=7),
    )
    assert load(written(tmp_path, render(made))) == made


def test_a_config_made_in_code_needs_no_port() -> None:
    made = Config(name="lab.example", data_dir="lab")
    assert made.listen is None
    assert made.listen_at is None
    assert made.hints == ()
    assert made.database_url == "sqlite:///lab/roost.db"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "Lab.Example"}, "name: node name 'Lab.Example' is not allowed"),
        ({"listen": "7701"}, "listen: '7701' is not HOST:PORT"),
        ({"advertise": ["x"]}, "advertise: 'x' is not HOST:PORT"),
        ({"database": "sqlite:///x"}, "database: expected a postgresql+asyncpg:// URL"),
        ({"database": "postgresql+asyncpg://"}, "database: expected a host and a database"),
        ({"database": "postgresql+asyncpg://u:secret@db"}, "database: expected a host and a database"),
        ({"database": "postgresql+asyncpg:///roost"}, "database: expected a host and a database"),
        ({"database": "postgresql+asyncpg://u@db:port/roost"}, "database: expected a host and a database"),
        ({"data_dir": ""}, "data_dir: Expected `str` of length >= 1"),
        ({"registration": "public"}, "registration: Invalid enum value 'public'"),
        ({"link": {"ping_ms": 1}}, "link: Expected `int` >= 100 - at `$.ping_ms`"),
    ],
)
def test_a_config_made_in_code_is_checked_too(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**({"name": "lab.example"} | settings))  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "rest",
    ["u:p%40@db/roost", "db/roost", "u@[2001:db8::7]:5432/roost", "u:a/b@db:5432/r?ssl=require", "/r?host=/run/pg"],
)
def test_databases_that_are_understood(rest: str) -> None:
    url = f"postgresql+asyncpg://{rest}"
    assert Config(name="lab.example", database=url).database_url == url


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    read = load(written(tmp_path, SIX))
    assert read.data_path == tmp_path / "data"
    assert read.database_url == f"sqlite:///{tmp_path}/data/roost.db"
    assert read.hints == ("0.0.0.0:7701",)
    assert load(written(tmp_path, SIX + "data_dir: /srv/x\n")).data_dir == "/srv/x"


def test_a_section_with_every_line_commented_out_is_its_default(tmp_path: Path) -> None:
    assert load(written(tmp_path, SIX + "link:\n")).link == Link()


def test_no_port_may_be_asked_for(tmp_path: Path) -> None:
    assert load(written(tmp_path, "name: lab.example\nlisten: null\n")).listen is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "node.yaml: name is missing; add a line such as `name: lab.example`"),
        ("name: a.b", 'node.yaml: listen is missing; add a line such as `listen: "0.0.0.0:7701"`'),
        ("- a\n", "node.yaml:1: expected lines of the form `key: value`"),
        (SIX + "lissten: x", "node.yaml:3: unknown setting lissten; did you mean listen?"),
        (SIX + "ping_ms: 5", "node.yaml:3: unknown setting ping_ms; did you mean link.ping_ms?"),
        (SIX + "link:\n  pingms: 5", "node.yaml:4: unknown setting link.pingms; did you mean link.ping_ms?"),
        (SIX + "zzz: 5", "node.yaml:3: unknown setting zzz; `python -m node.config` prints all settings"),
        (SIX + "name: c.d", "node.yaml:3: name is set twice; the first is at {folder}/node.yaml:1"),
        (SIX + "link: 5", "node.yaml:3: link is a section: indent its settings on lines below it"),
        (SIX + "link:\n  ping_ms: soon", "node.yaml:4: link.ping_ms: Expected `int`, got `str`"),
        (SIX + "link:\n  ping_ms: 5", "node.yaml:4: link.ping_ms: Expected `int` >= 100"),
        (SIX + "link:\n  ping_ms: true", "node.yaml:4: link.ping_ms: Expected `int`, got `bool`"),
        (SIX + "link:\n  ping_ms: {a: 1}", "node.yaml:4: link.ping_ms: Expected `int`, got `object`"),
        (
            SIX + "link: &x\n  ping_ms: *x",
            "node.yaml:3: not valid YAML: found unconstructable recursive node; quote special signs",
        ),
        (
            SIX + "link:\n  ping_ms: 40000",
            "node.yaml:3: link.dead_after_ms: 30000 must be more than ping_ms (40000)",
        ),
        (
            SIX + "registration: public",
            "node.yaml:3: registration: Invalid enum value 'public'; one of closed, invite",
        ),
        (
            SIX + "advertise: lab.example:1",
            'node.yaml:3: advertise: Expected `array`, got `str`; for example ["lab.example:7701"]',
        ),
        (
            "name: a.b\nlisten: 7701",
            'node.yaml:2: listen: Expected `str | null`, got `int`; for example "0.0.0.0:7701"',
        ),
        ("name: a.b\nlisten: lab", "node.yaml:2: listen: 'lab' is not HOST:PORT, for example 192.0.2.7:7701"),
        ("name: 2026-00-01", "node.yaml:1: not a value: month must be in 1..12; quote what is meant as text"),
        ("name: a.b\nlisten: !!timestamp x", "node.yaml:2: not a value: "),
        (
            "name: [a",
            "node.yaml:1: not valid YAML: expected ',' or ']', but got '<stream end>'; quote special signs",
        ),
        (
            "name: a: c",
            "node.yaml:1: not valid YAML: mapping values are not allowed here; quote special signs",
        ),
    ],
)
def test_a_mistake_is_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    message = message.replace("{folder}", str(tmp_path))
    assert refusal(tmp_path, text).startswith(message) if message.endswith(": ") else refusal(tmp_path, text) == message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file or directory; `roost init` writes a new one"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not UTF-8 text"):
        load(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="is this a config file"):
        load(written(tmp_path, "#" * (config_file.CONFIG_BYTES_MAX + 1)))


def test_overrides_win(tmp_path: Path) -> None:
    text = SIX + "link:\n  ping_ms: 9000\n"
    overrides = [
        "link.ping_ms=8000",
        "listen=[::]:0",
        "tls.behind_proxy=true",
        "name=b.c",
        "advertise=[a:1, b:2]",
    ]
    read = load(written(tmp_path, text), overrides)
    assert read.link.ping_ms == 8000
    assert read.listen == "[::]:0"
    assert read.listen_at == ("::", 0)
    assert read.tls.behind_proxy
    assert read.name == "b.c"
    assert read.hints == ("a:1", "b:2")
    assert load(written(tmp_path, text), ["listen=null", "data_dir=7"]).listen is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("link.ping_ms", "--set link.ping_ms: write it as key=value"),
        ("link.ping=1", "--set link.ping=1: unknown setting link.ping; did you mean link.ping_ms?"),
        ("link=1", "--set link=1: unknown setting link; did you mean link.backoff_cap_ms?"),
        ("link.ping_ms=soon", "--set link.ping_ms=soon: link.ping_ms: Expected `int`, got `str`"),
        (
            "link.dead_after_ms=300",
            "--set link.dead_after_ms=300: link.dead_after_ms: 300 must be more than ping_ms (10000)",
        ),
        ("listen=2026-00-01", "--set listen=2026-00-01: listen: '2026-00-01' is not HOST:PORT"),
        ("name=B", "--set name=B: name: node name 'B' is not allowed: "),
    ],
)
def test_a_mistake_in_an_override_names_it(tmp_path: Path, override: str, message: str) -> None:
    assert refusal(tmp_path, SIX, override).startswith(message)

"""`node.yaml`: read with words for what is wrong with it, and written with every setting explained."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml
from msgspec import Meta
from msgspec.structs import FieldInfo, fields

from node.config import GROUPS, Config, ConfigError, Section

CONFIG_BYTES_MAX = 1 << 20


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The settings in a node.yaml, with `a.b=value` overrides on top; `ConfigError` for anything wrong."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "not UTF-8 text")
        raise ConfigError(f"{path}: {reason}; `roost init` writes a new one") from None
    return parse(path, text, overrides)


def parse(path: Path, text: str, overrides: Sequence[str] = ()) -> Config:
    """The same of a text; `path` is where it came from."""
    tree, where = _parse(path, text)
    for override in overrides:
        _override(tree, where, override)
    config = _build(Config, tree, where, "", str(path))
    if config.listen is None and not where.get("listen"):
        raise _missing(str(path), "listen", '"0.0.0.0:7701"')
    assert isinstance(config, Config)
    return msgspec.structs.replace(config, data_dir=str((path.parent / config.data_dir).resolve()))


NO_VALUE = (ValueError, LookupError, AttributeError, TypeError, OverflowError)


def _parse(path: Path, text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The file as plain values, and `file:line` of every dotted key."""
    where: dict[str, str] = {}
    if len(text) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes; is this a config file?")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return {}, where
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}:{root.start_mark.line + 1}: expected lines of the form `key: value`")
        return _mapping(loader, path, root, "", where), where
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}; quote special signs") from None
    finally:
        if loader is not None:
            loader.dispose()


def _mapping(loader: Any, path: Path, node: Any, prefix: str, where: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = f"{path}:{key_node.start_mark.line + 1}"
        key = str(_value(loader, line, key_node))
        name = f"{prefix}{key}"
        if key in values:
            raise ConfigError(f"{line}: {name} is set twice; the first is at {where[name]}")
        where[name] = line
        if isinstance(value_node, yaml.MappingNode) and not prefix:
            values[key] = _mapping(loader, path, value_node, f"{name}.", where)
        else:
            values[key] = _value(loader, line, value_node)
    return values


def _value(loader: Any, line: str, node: Any) -> Any:
    """What a node says. The library lets through how a date or number fails that only looks like one."""
    try:
        return loader.construct_object(node, deep=True)
    except NO_VALUE as error:
        raise ConfigError(f"{line}: not a value: {error}; quote what is meant as text") from None


def _override(tree: dict[str, Any], where: dict[str, str], override: str) -> None:
    origin = f"--set {override}"
    name, equals, text = override.partition("=")
    name = name.strip()
    known = dict(_settings(Config))
    if not equals:
        raise ConfigError(f"{origin}: write it as key=value")
    if name not in known:
        raise _unknown(origin, name)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, *NO_VALUE):
        value = text  # such as [::]:7701, which is text and no list
    if value is not None and not isinstance(value, str) and _is_text(known[name]):
        value = text
    at = tree
    *sections, last = name.split(".")
    for section in sections:
        inner = at.get(section)
        if not isinstance(inner, dict):
            inner = at[section] = {}
        at = inner
    at[last] = value
    where[name] = origin


def _build(cls: type[Any], values: dict[str, Any], where: dict[str, str], prefix: str, origin: str) -> Any:
    """One section from plain values, each checked on its own so that the error can name its line."""
    known = {field.name: field for field in fields(cls)}
    built: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            raise _unknown(where[name], name)
        section = _section(known[key])
        if section is None:
            try:
                built[key] = msgspec.convert(value, known[key].type)
            except msgspec.ValidationError as error:
                raise ConfigError(f"{where[name]}: {name}: {error}{_expected(known[key])}") from None
        elif value is None:  # every line of the section is commented out
            continue
        elif isinstance(value, dict):
            built[key] = _build(section, value, where, f"{name}.", where.get(name, origin))
        else:
            raise ConfigError(f"{where[name]}: {name} is a section: indent its settings on lines below it")
    for field in known.values():
        if field.required and field.name not in built:
            raise _missing(origin, f"{prefix}{field.name}", "lab.example")
    try:
        return cls(**built)
    except ConfigError as error:
        name = f"{prefix}{str(error).partition(':')[0]}"
        raise ConfigError(f"{where.get(name, origin)}: {prefix}{error}") from None


def _settings(cls: type[Any], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting by its dotted name."""
    for field in fields(cls):
        section = _section(field)
        if section is None:
            yield f"{prefix}{field.name}", field
        else:
            yield from _settings(section, f"{prefix}{field.name}.")


def _section(field: FieldInfo) -> type[Section] | None:
    kind = get_args(field.type)[0]
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _meta(field: FieldInfo) -> Meta:
    return next(meta for meta in get_args(field.type) if isinstance(meta, Meta))


def _is_text(field: FieldInfo) -> bool:
    kind = get_args(field.type)[0]
    return kind is str or kind == str | None


def _expected(field: FieldInfo) -> str:
    examples = _meta(field).examples
    choices = [str(choice) for choice in get_args(get_args(field.type)[0]) if isinstance(choice, str)]
    if choices:
        return f"; one of {', '.join(choices)}"
    return f"; for example {_scalar(examples[0])}" if examples else ""


def _unknown(origin: str, name: str) -> ConfigError:
    known = [name for name, _ in _settings(Config)] + [field.name for field in fields(Config) if _section(field)]
    last = {dotted.rpartition(".")[2]: dotted for dotted in known}  # the right word in the wrong section
    inside = [dotted for dotted in known if dotted.startswith(f"{name}.")]
    moved = [last[word] for word in difflib.get_close_matches(name.rpartition(".")[2], last, n=1)]
    close = inside or difflib.get_close_matches(name, known, n=1) or moved
    hint = f"did you mean {close[0]}?" if close else "`python -m node.config` prints all settings"
    return ConfigError(f"{origin}: unknown setting {name}; {hint}")


def _missing(origin: str, name: str, example: str) -> ConfigError:
    return ConfigError(f"{origin}: {name} is missing; add a line such as `{name}: {example}`")


# ---- writing ----

# Always written out: enough to run, and six lines with the section's own.
SHOWN = {"name", "listen", "data_dir", "registration", "federation.policy"}


def render(config: Config) -> str:
    """A whole node.yaml: what is set, and every other setting commented out with its meaning and default."""
    lines: list[str] = []
    for group, title in GROUPS.items():
        lines += ["", f"# ---- {title} ----"]
        for field in fields(Config):
            if (_meta(field).extra or {}).get("group") == group:
                lines += ["", *_rendered(field, getattr(config, field.name), field.name)]
    return "\n".join(lines[1:]) + "\n"


def _rendered(field: FieldInfo, value: Any, name: str) -> list[str]:
    section = _section(field)
    indent = "  " * name.count(".")
    if section is None:
        meta = _meta(field)
        on = name in SHOWN or (not field.required and value != field.default)
        shown = meta.examples[0] if meta.examples and not on else value
        comment = f"{indent}# {meta.description}"
        return [comment, f"{'' if on else '#'}{indent}{field.name}: {_scalar(shown)}"]
    inner = [_rendered(part, getattr(value, part.name), f"{name}.{part.name}") for part in fields(section)]
    on = any(not lines[1].startswith("#") for lines in inner)
    head = [f"# {(section.__doc__ or '').strip()}", f"{'' if on else '#'}{field.name}:"]
    return head + [line for lines in inner for line in lines]


def _scalar(value: Any) -> str:
    """A value on one line of YAML: a plain word, or JSON, which YAML reads alike."""
    if isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9.-]*", value) and yaml.safe_load(value) == value:
        return value
    return msgspec.json.encode(value).decode()


EXAMPLE = Config(name="lab.example", listen="0.0.0.0:7701", registration="invite")
HEADER = """\
# Settings of a Roost node. The six lines without a # are enough to run; the rest shows the defaults.
# `roost init` writes such a file, `roost check` explains mistakes in it.
# This copy is printed by `python -m node.config_file > node.example.yaml`.

"""

if __name__ == "__main__":
    print(HEADER + render(EXAMPLE), end="")

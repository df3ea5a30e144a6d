"""YAML with the scalars of version 1.2, with line numbers, and without keys that stand twice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agentenv.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlContent:
    """What a file holds.

    Attributes:
        data: the root mapping; empty for an empty file.
        lines: dotted key -> line, counted from 1.
    """

    data: dict[str, Any]
    lines: dict[str, int]


class _Loader(yaml.SafeLoader):
    """Reads `off` as text and `1e-3` as a number, unlike version 1.1."""


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what `_Loader` would take for something other than text."""


_NUMBER_STARTS = [*"-+.0123456789"]
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", _NUMBER_STARTS),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", _NUMBER_STARTS),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", _NUMBER_STARTS),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", ["<"]),
)
for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {}
    for _tag, _pattern, _starts in _SCALARS:
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _starts)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds these line separators into plain newlines unless the text is double-quoted
    style = '"' if any(separator in text for separator in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def read_yaml(path: Path) -> YamlContent:
    """Read a file whose root is a mapping.

    Raises:
        ConfigError: names file, line and column, and what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = did_you_mean(path.name, [item.name for item in path.parent.glob("*.y*ml")])
        raise ConfigError(f"{path}: no such file.{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    try:
        return _parse(text, path)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_problem(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not usable as configuration ({error})") from None


def read_scalar(text: str) -> object:
    """Read one value: a scalar, or a flow list or mapping such as `[1, 2]`.

    Raises:
        ConfigError: says what is wrong with the text.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is no YAML value{_problem(error)}; quote it to give it as text") from None


def write_yaml(data: object) -> str:
    """Return block-style text that `read_yaml` reads back to the same values, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)


def flow(value: object) -> str:
    """Return a value as one line of YAML, for tables and messages."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _parse(text: str, path: Path) -> YamlContent:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines = _key_lines(node, prefix="", path=path)
        data = None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()
    if data is None:
        return YamlContent(data={}, lines={})
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: the file holds a {type(data).__name__}; expected keys and values, e.g. `seed: 1`")
    return YamlContent(data=data, lines=lines)


def _key_lines(node: yaml.Node | None, *, prefix: str, path: Path) -> dict[str, int]:
    """Collect lines of keys; a key that stands twice is refused, because YAML would silently keep the last."""
    lines: dict[str, int] = {}
    if not isinstance(node, yaml.MappingNode):
        return lines
    for key_node, value_node in node.value:
        key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        if key in lines and key_node.value != "<<":
            raise ConfigError(f'{path}, line {line}: key "{key}" stands twice, first in line {lines[key]}; remove one')
        lines[key] = line
        lines.update(_key_lines(value_node, prefix=f"{key}.", path=path))
    return lines


def _problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    what = ", ".join(str(part) for part in parts if part) or str(error)
    return f"{where}: not valid YAML: {what}"

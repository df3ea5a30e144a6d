"""Typed configuration: a YAML file and dotted overrides become one frozen pydantic model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from agentenv.config_keys import (
    KeyRow,
    Place,
    accepts_only_text,
    allowed_text,
    count_keys,
    key_table,
    literal_options,
    reference_markdown,
    resolve,
    schema,
    section_keys,
    suggestion,
    variants_with,
)
from agentenv.errors import ConfigError, did_you_mean
from agentenv.redaction import without_secrets
from agentenv.yaml_file import YamlContent, flow, read_scalar, read_yaml, write_yaml

__all__ = [
    "Change",
    "Config",
    "KeyRow",
    "count_keys",
    "diff",
    "key_table",
    "load_config",
    "public_values",
    "public_yaml",
    "reference_markdown",
    "schema",
    "to_yaml",
]

Model = TypeVar("Model", bound=BaseModel)


class Config(BaseModel):
    """Base of every configuration section: frozen, and an unknown key is an error.

    The string below an attribute is its description in the reference page.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A key whose value differs between two configurations; the values are JSON texts, or "absent"."""

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def load_config(model_type: type[Model], path: str | Path | None, *, overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file, apply overrides and validate.

    Values are taken strictly: a bool is no number, a number no text. The scalars are those of YAML 1.2: `off` is text
    and `1e-3` a number.

    Args:
        model_type: the root section.
        path: YAML file; None starts from the defaults.
        overrides: `section.key=value`, later ones win; the value is read as YAML, except that a text key takes it as
            it stands. A whole section is replaced by `section={key: value}`.

    Raises:
        ConfigError: names file and line, or the override; every wrong key at once, with what is allowed.
    """
    content = YamlContent(data={}, lines={}) if path is None else read_yaml(Path(path).expanduser())
    data, sources = content.data, {key: f"{path}, line {line}" for key, line in content.lines.items()}
    for text in overrides:
        sources[_apply_override(model_type, text, data=data)] = f'override "{text}"'
    try:
        # strict mode on JSON input: lists may become tuples and text paths, but nothing else is converted
        return model_type.model_validate_json(_as_json(data), strict=True)
    except ValidationError as error:
        fallback = "configuration" if path is None else str(path)
        raise ConfigError("\n".join(_complaints(model_type, error, sources=sources, fallback=fallback))) from None


def to_yaml(config: BaseModel) -> str:
    """Return the resolved configuration, defaults included; `load_config` reads it back to an equal value."""
    return write_yaml(config.model_dump(mode="json"))


def diff(old: BaseModel, new: BaseModel) -> list[Change]:
    """Return the dotted keys on which two configurations differ, sorted by key."""
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return [Change(key=key, old=before.get(key, "absent"), new=after.get(key, "absent")) for key in keys]


def public_values(config: BaseModel) -> dict[str, object]:
    """Return JSON-plain nested values for trackers and reports, with the text of every secret replaced."""
    return {key: without_secrets(value, key=key) for key, value in config.model_dump(mode="json").items()}


def public_yaml(config: BaseModel) -> str:
    """Return what `to_yaml` returns, with the text of every secret replaced; for reports."""
    return write_yaml(public_values(config))


# Overrides.


def _apply_override(model_type: type[BaseModel], text: str, *, data: dict[str, Any]) -> str:
    """Write one override into `data`, which belongs to this load; return its key."""
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f'override "{text}" has no value; write it as section.key=value')
    place = resolve(model_type, key)
    if place is None:
        raise ConfigError(f'override "{text}": {_unknown(model_type, key)}')
    value = _override_value(raw.strip(), place=place, text=text)
    *parents, leaf = key.split(".")
    section = data
    for depth, name in enumerate(parents):
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            above = ".".join(parents[: depth + 1])
            raise ConfigError(f'override "{text}": "{above}" is {_shown(section)}, which has no keys')
    section[leaf] = value
    return key


def _override_value(raw: str, *, place: Place, text: str) -> object:
    if accepts_only_text(place.annotation) and raw[:1] not in ("'", '"') and raw not in ("null", "~"):
        return raw
    try:
        return read_scalar(raw)
    except ConfigError as error:
        raise ConfigError(f'override "{text}": {error}') from None


# Complaints.


def _complaints(
    model_type: type[BaseModel], error: ValidationError, *, sources: Mapping[str, str], fallback: str
) -> list[str]:
    lines: dict[tuple[str, str], str] = {}
    for item in error.errors(include_url=False):
        key = _dotted(model_type, cast("dict[str, Any]", item))
        group = "" if item["type"] in ("extra_forbidden", "missing") else "value"
        where = _source(key, sources=sources, fallback=fallback)
        lines.setdefault((key, group), f"{where}: {_complaint(model_type, key, item=cast('dict[str, Any]', item))}")
    return list(lines.values())


def _complaint(model_type: type[BaseModel], key: str, *, item: Mapping[str, Any]) -> str:
    kind = str(item["type"])
    if kind == "extra_forbidden":
        return _unknown(model_type, key)
    if kind == "missing":
        return f'key "{key}" is missing; expected {_expected(model_type, key)}'
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("value_error", "assertion_error"):
        return f'"{key}": {message}' if key else message
    place = resolve(model_type, key)
    options = literal_options(place.annotation) if place is not None else ()
    given = item["input"]
    hint = did_you_mean(given, options) if isinstance(given, str) else ""
    return f'"{key}" is {_shown(given)}; expected {_expected(model_type, key, otherwise=message)}.{hint}'


def _expected(model_type: type[BaseModel], key: str, *, otherwise: str = "a value") -> str:
    place = resolve(model_type, key)
    return allowed_text(place.annotation, metadata=place.metadata) if place is not None else otherwise


def _unknown(model_type: type[BaseModel], key: str) -> str:
    owners = variants_with(model_type, key)
    if owners:
        section, _, leaf = key.rpartition(".")
        return f'"{leaf}" does not go with the rest of section "{section}"; it belongs to {" and ".join(owners)}'
    near = suggestion(model_type, key)
    hint = f' Did you mean "{near}"?' if near else ""
    section, _, _ = key.rpartition(".")
    names = ", ".join(section_keys(model_type, section))
    where = f'"{section}"' if section else "the top level"
    return f'unknown key "{key}".{hint}' + (f" Keys of {where}: {names}." if names else "")


def _dotted(model_type: type[BaseModel], item: Mapping[str, Any]) -> str:
    """Return the key of an error, leaving out the tags that pydantic adds for members of a union."""
    parts: list[str] = []
    loc = item["loc"]
    for index, part in enumerate(loc):
        is_unknown = item["type"] == "extra_forbidden" and index == len(loc) - 1
        if is_unknown or resolve(model_type, ".".join([*parts, str(part)])) is not None:
            parts.append(str(part))
    return ".".join(parts)


def _source(key: str, *, sources: Mapping[str, str], fallback: str) -> str:
    """Return where a key, or the nearest section above it, was given."""
    while key:
        if key in sources:
            return sources[key]
        key = key.rpartition(".")[0]
    return fallback


def _shown(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}" (text)' if len(value) <= 80 else f'"{value[:80]}..." (text)'
    text = "a section" if isinstance(value, dict) and len(value) > 3 else flow(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _as_json(data: Mapping[str, Any]) -> str:
    try:
        return json.dumps(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"the configuration holds a value that is no plain YAML scalar, list or mapping ({error})"
        ) from None


def _flatten(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, prefix=f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = json.dumps(value)
    return flat

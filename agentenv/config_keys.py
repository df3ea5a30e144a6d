"""The dotted keys of a configuration type: looking them up, suggesting near misses, and the reference page."""

from __future__ import annotations

import difflib
import enum
import functools
import operator
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from agentenv.yaml_file import flow

_WORDS: dict[object, str] = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    Path: "path",
    SecretStr: "text (secret)",
    types.NoneType: "null",
}
_LIMITS = (
    ("ge", "at least {}"),
    ("gt", "above {}"),
    ("le", "at most {}"),
    ("lt", "below {}"),
    ("multiple_of", "a multiple of {}"),
    ("min_length", "length at least {}"),
    ("max_length", "length at most {}"),
    ("pattern", "matching {}"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """One row of the reference page.

    Attributes:
        key: dotted key.
        type: what is allowed, in words.
        default: as YAML; "required" where there is none.
        description: from the field, or the string below the attribute.
        variant: where several sections may stand in one place, what chooses this one, e.g. `name: hf`.
    """

    key: str
    type: str
    default: str
    description: str
    variant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What may stand under a key."""

    annotation: Any
    metadata: tuple[Any, ...] = ()


def resolve(model_type: type[BaseModel], key: str) -> Place | None:
    """Return what a dotted key stands for, or None where there is no such key.

    Keys below a mapping are free; below a list they are indices.
    """
    place = Place(annotation=model_type)
    for part in key.split("."):
        found = _below(place.annotation, part)
        if found is None:
            return None
        place = found
    return place


def section_keys(model_type: type[BaseModel], section: str) -> tuple[str, ...]:
    """Return the names that may stand in a section ("" is the root)."""
    place = resolve(model_type, section) if section else Place(annotation=model_type)
    if place is None:
        return ()
    return tuple(dict.fromkeys(name for model in models_in(place.annotation) for name in model.model_fields))


def suggestion(model_type: type[BaseModel], key: str) -> str:
    """Return the known key that was probably meant, wherever it stands, or ""."""
    known = list(dict.fromkeys(_all_keys(model_type, prefix="")))
    section, _, leaf = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    namesakes = [name for name in known if name.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
    if close and difflib.SequenceMatcher(None, leaf, close[0]).ratio() >= 0.8:
        return siblings[close[0]]
    if namesakes:
        return max(namesakes, key=lambda name: difflib.SequenceMatcher(None, key, name).ratio())
    if close:
        return siblings[close[0]]
    leaves = {name.rpartition(".")[2]: name for name in known}
    elsewhere = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)
    whole = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    return whole[0] if whole else (leaves[elsewhere[0]] if elsewhere else "")


def models_in(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the sections that an annotation allows; several for a union."""
    return tuple(item for item in _members(annotation) if isinstance(item, type) and issubclass(item, BaseModel))


def accepts_only_text(annotation: Any) -> bool:
    """Return True where nothing but text (or null) is allowed, so that `name=007` needs no quotes."""
    members = [item for item in _members(annotation) if item is not types.NoneType]
    return bool(members) and all(
        (isinstance(item, type) and issubclass(item, (str, Path, SecretStr)))
        or (get_origin(item) is Literal and all(isinstance(option, str) for option in get_args(item)))
        for item in members
    )


def literal_options(annotation: Any) -> tuple[str, ...]:
    """Return the texts among the options of an annotation."""
    options: list[str] = []
    for item in _members(annotation):
        if get_origin(item) is Literal:
            options += [option for option in get_args(item) if isinstance(option, str)]
        elif isinstance(item, type) and issubclass(item, enum.Enum):
            options += [str(member.value) for member in item]
        elif get_origin(item) in (list, tuple, set, frozenset, Sequence):
            options += [option for inner in get_args(item) if inner is not ... for option in literal_options(inner)]
    return tuple(options)


def allowed_text(annotation: Any, *, metadata: Sequence[Any] = ()) -> str:
    """Say in words what is allowed, e.g. `integer, at least 1` or `one of "rloo", "grpo"`."""
    words = [_word(item) for item in _members(annotation)]
    return ", ".join([" or ".join(dict.fromkeys(words)), *_limits(metadata)])


def schema(model_type: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a configuration type."""
    return model_type.model_json_schema()


def key_table(model_type: type[BaseModel]) -> list[KeyRow]:
    """Return a row for every key that takes a value, in the order of definition."""
    return list(_rows(model_type, prefix="", defaults=None))


def count_keys(model_type: type[BaseModel]) -> int:
    """Return the number of keys that take a value; what sections in one place have in common counts once."""
    return len({row.key for row in key_table(model_type)})


def variants_with(model_type: type[BaseModel], key: str) -> list[str]:
    """Return, where several sections may stand in one place, what chooses those that have this key."""
    section, _, leaf = key.rpartition(".")
    place = resolve(model_type, section) if section else Place(annotation=model_type)
    models = models_in(place.annotation) if place is not None else ()
    return [_variant(model) for model in models if leaf in model.model_fields] if len(models) > 1 else []


def reference_markdown(model_type: type[BaseModel]) -> str:
    """Return the reference page: a heading and a table for every section."""
    sections: dict[tuple[str, str], list[KeyRow]] = {}
    for row in key_table(model_type):
        sections.setdefault((row.key.rpartition(".")[0], row.variant), []).append(row)
    parts = []
    for (section, variant), rows in sections.items():
        chosen_by = f" with `{variant}`" if variant else ""
        parts.append(f"## `{section}`{chosen_by}\n" if section else "## Top level\n")
        about = _about(model_type, section, variant=variant)
        parts += [f"{about}\n"] if about else []
        parts.append("| Key | Allowed | Default | Meaning |\n| --- | --- | --- | --- |")
        parts += [
            f"| `{row.key}` | {_cell(row.type)} | `{_cell(row.default)}` | {_cell(row.description)} |" for row in rows
        ]
        parts.append("")
    return "\n".join(parts)


def _below(annotation: Any, part: str) -> Place | None:
    fields = [model.model_fields[part] for model in models_in(annotation) if part in model.model_fields]
    if fields:
        # sections that take each other's place may allow different values under one key
        either = functools.reduce(operator.or_, [field.annotation for field in fields])
        return Place(annotation=either, metadata=tuple(fields[0].metadata))
    for item in _members(annotation):
        if isinstance(item, type) and issubclass(item, BaseModel):
            continue
        origin, inner = get_origin(item) or item, get_args(item)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return Place(annotation=inner[1] if len(inner) == 2 else Any)
        if origin in (list, tuple, set, frozenset, Sequence) and part.isdigit():
            return Place(annotation=inner[0] if inner else Any)
        if item in (Any, object):
            return Place(annotation=Any)
    return None


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union, with `Annotated` and type aliases taken off."""
    if isinstance(annotation, getattr(typing, "TypeAliasType", ())):
        return _members(annotation.__value__)
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for item in get_args(annotation) for member in _members(item))
    return (annotation,)


def _word(item: Any) -> str:
    if item in _WORDS:
        return _WORDS[item]
    origin, inner = get_origin(item), get_args(item)
    if origin is Literal:
        return f"one of {', '.join(_option(option) for option in inner)}"
    if isinstance(item, type) and issubclass(item, enum.Enum):
        return f"one of {', '.join(_option(member.value) for member in item)}"
    if isinstance(item, type) and issubclass(item, BaseModel):
        return f"a section with {', '.join(item.model_fields)}"
    if origin in (list, tuple, set, frozenset, Sequence) and inner:
        if origin is tuple and ... not in inner:
            return f"a list [{', '.join(allowed_text(one) for one in inner)}]"
        return f"a list of {allowed_text(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(inner) == 2:
        return f"keys with {allowed_text(inner[1])}"
    return "anything" if item in (Any, object) else getattr(item, "__name__", str(item))


def _option(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else flow(value)


def _limits(metadata: Sequence[Any]) -> list[str]:
    texts: list[str] = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            texts += _limits(item.metadata)
            continue
        for name, template in _LIMITS:
            limit = getattr(item, name, None)
            if isinstance(limit, (int, float, str)):
                texts.append(template.format(limit))
    return texts


def _all_keys(model_type: type[BaseModel], *, prefix: str) -> Iterator[str]:
    for name, field in model_type.model_fields.items():
        yield f"{prefix}{name}"
        for section in models_in(field.annotation):
            yield from _all_keys(section, prefix=f"{prefix}{name}.")


def _rows(
    model_type: type[BaseModel], *, prefix: str, defaults: BaseModel | None, variant: str = ""
) -> Iterator[KeyRow]:
    for name, field in model_type.model_fields.items():
        key, sections = f"{prefix}{name}", models_in(field.annotation)
        is_given = isinstance(defaults, model_type)
        default = getattr(defaults, name) if is_given else _own_default(field)
        if len(sections) != len(_members(field.annotation)):
            yield KeyRow(
                key=key,
                type=allowed_text(field.annotation, metadata=field.metadata),
                default="required" if field.is_required() and not is_given else _default_text(default),
                description=" ".join((field.description or "").split()),
                variant=variant,
            )
        for section in sections:
            yield from _rows(
                section,
                prefix=f"{key}.",
                defaults=default if isinstance(default, section) else None,
                variant=_variant(section) if len(sections) > 1 else variant,
            )


def _variant(model: type[BaseModel]) -> str:
    """Return what chooses a section among several: the values of its `name`."""
    field = model.model_fields.get("name")
    return f"name: {' or '.join(literal_options(field.annotation))}" if field is not None else model.__name__


def _own_default(field: FieldInfo) -> object:
    if field.is_required() or field.default_factory_takes_validated_data:
        return None
    return field.get_default(call_default_factory=True)


def _default_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return "hidden"
    if isinstance(value, BaseModel):
        return flow(value.model_dump(mode="json"))
    if isinstance(value, enum.Enum):
        return flow(value.value)
    if isinstance(value, (tuple, set, frozenset)):
        return flow(list(value))
    return flow(str(value) if isinstance(value, Path) else value)


def _about(model_type: type[BaseModel], section: str, *, variant: str) -> str:
    place = resolve(model_type, section) if section else Place(annotation=model_type)
    models = models_in(place.annotation) if place is not None else ()
    if len(models) > 1:
        models = tuple(model for model in models if _variant(model) == variant)
    first_paragraphs = [(model.__dict__.get("__doc__") or "").strip().split("\n\n")[0] for model in models]
    return " ".join(" ".join(first_paragraphs).split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

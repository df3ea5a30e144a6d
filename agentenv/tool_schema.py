"""From a function's signature and docstring to the JSON schema that a model reads, and back to checked arguments."""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pydantic

from agentenv.errors import ToolError, ToolSchemaError, did_you_mean

ARGUMENT_PREFIX = "argument_"
"""Keeps parameter names such as `json` or `copy` apart from pydantic's own attributes."""

MAX_ECHOED_CHARS = 80
"""How much of a wrong name is repeated to the model."""

MAX_DEPTH = 64
"""Deepest nesting of arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSchema:
    """What a function says about itself.

    Attributes:
        description: the docstring before its sections.
        parameters: JSON schema of the arguments object.
        arguments_model: validates the arguments; its fields carry `ARGUMENT_PREFIX`, their aliases are the names.
        takes_self: the function is a method that still needs its owner.
    """

    description: str
    parameters: Mapping[str, object]
    arguments_model: type[pydantic.BaseModel]
    takes_self: bool


def schema_of(function: Callable[..., object]) -> ToolSchema:
    """Read the schema of a function.

    Raises:
        ToolSchemaError: names what is missing or cannot be expressed.
    """
    where = f"tool {function.__qualname__}"
    doc = inspect.getdoc(function)
    if not doc:
        raise ToolSchemaError(f"{where} has no docstring; its first paragraph tells the model what the tool does")
    summary, documented = parse_docstring(doc)
    try:
        hints = typing.get_type_hints(function, localns=_late_names(function), include_extras=True)
    except NameError as error:
        raise ToolSchemaError(
            f"{where}: a type hint cannot be resolved ({error}); import it at module level"
        ) from error
    parameters = list(inspect.signature(function).parameters.values())
    takes_self = bool(parameters) and parameters[0].name in ("self", "cls")
    model = pydantic.create_model(
        function.__name__,
        __config__=pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False),
        **_fields(parameters[takes_self:], hints, documented=documented, where=where),
    )
    try:
        schema = model.model_json_schema()
    except pydantic.errors.PydanticInvalidForJsonSchema as error:
        raise ToolSchemaError(f"{where}: a parameter type has no JSON schema ({error})") from error
    return ToolSchema(
        description=summary,
        parameters=cast(Mapping[str, object], _for_model(schema)),
        arguments_model=model,
        takes_self=takes_self,
    )


def _fields(
    parameters: list[inspect.Parameter], hints: Mapping[str, object], *, documented: Mapping[str, str], where: str
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ToolSchemaError(f"{where}: parameter {parameter.name!r} must be an ordinary named parameter")
        if parameter.name not in hints:
            raise ToolSchemaError(
                f"{where}: parameter {parameter.name!r} has no type hint; the schema is made from hints"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        told = documented.get(parameter.name)
        described: dict[str, Any] = {} if told is None else {"description": told}
        fields[ARGUMENT_PREFIX + parameter.name] = (
            hints[parameter.name],
            pydantic.Field(default, alias=parameter.name, **described),
        )
    unknown = [name for name in documented if ARGUMENT_PREFIX + name not in fields]
    if unknown:
        raise ToolSchemaError(
            f"{where}: the docstring documents {', '.join(unknown)}, which the signature does not have"
        )
    return fields


_SECTION = re.compile(r"^(Args|Arguments|Returns|Raises|Yields|Example|Examples|Note|Notes):\s*$")
_ARGUMENT = re.compile(r"^(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


def parse_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """Split a Google-style docstring into the text before its sections and the argument descriptions."""
    summary: list[str] = []
    arguments: dict[str, str] = {}
    section, current = "", ""
    for line in doc.splitlines():
        header = _SECTION.match(line)
        if header:
            section, current = header.group(1), ""
        elif not section:
            summary.append(line)
        elif section in ("Args", "Arguments") and line.strip():
            entry = _ARGUMENT.match(line.strip())
            indent = len(line) - len(line.lstrip())
            if entry and indent <= 4:
                current = entry.group(1)
                arguments[current] = entry.group(2)
            elif current:
                arguments[current] += " " + line.strip()
    return "\n".join(summary).strip(), arguments


def _late_names(function: Callable[..., object]) -> dict[str, object]:
    """Names from closures, so that tools defined inside functions may use local types."""
    if not isinstance(function, types.FunctionType):
        return {}
    return dict(inspect.getclosurevars(function).nonlocals)


_SCHEMA_ORDER = ("type", "description", "enum", "properties", "items", "required")


def _for_model(schema: object) -> object:
    """Return the schema as a model should read it: type first, without pydantic's titles and strictness flag.

    A property that is itself called `title` stays. Unknown arguments are refused when a call is validated, so the
    prompt need not spend tokens on saying so.
    """
    if isinstance(schema, list):
        return [_for_model(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, object] = {key: None for key in _SCHEMA_ORDER if key in schema}
    for key, value in schema.items():
        if key in ("properties", "$defs") and isinstance(value, dict):
            out[key] = {name: _for_model(item) for name, item in value.items()}
        elif key not in ("title", "additionalProperties") or isinstance(value, dict):
            out[key] = _for_model(value)
    return out


def check_size(arguments: Mapping[str, object], *, name: str, max_chars: int) -> None:
    """Refuse arguments that are too long, too deep, or hold numbers that JSON does not have; nothing read them yet.

    Args:
        arguments: as decoded from the model's text.
        name: of the tool.
        max_chars: allowed length of all keys and texts together; every other value counts as one.

    Raises:
        ToolError: in words for the model.
    """
    room = max_chars
    open_values: list[tuple[object, int]] = [(arguments, 0)]
    while open_values:
        value, depth = open_values.pop()
        if isinstance(value, str):
            room -= len(value)
        elif isinstance(value, Mapping):
            room -= sum(map(len, map(str, value)))
            open_values.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, (list, tuple)):
            room -= len(value)
            open_values.extend((item, depth + 1) for item in value[: max(room, 0)])
        elif isinstance(value, float) and not math.isfinite(value):
            raise ToolError(f"invalid arguments for {name}: they hold {value}, which is not a JSON number")
        if room < 0:
            raise ToolError(
                f"invalid arguments for {name}: too long; at most {max_chars:,} characters are allowed in one call"
            )
        if depth > MAX_DEPTH:
            raise ToolError(f"invalid arguments for {name}: nested too deeply; at most {MAX_DEPTH} levels are allowed")


def explain(error: pydantic.ValidationError, *, name: str, parameters: Mapping[str, object]) -> str:
    """Say to the model what is wrong with the arguments of the tool called `name`."""
    problems: list[str] = []
    known = list(cast(Mapping[str, object], parameters.get("properties", {})))
    for item in error.errors(include_url=False)[:5]:
        path = ".".join(str(part) for part in item["loc"])[:MAX_ECHOED_CHARS] or "arguments"
        text = item["msg"]
        if item["type"] == "extra_forbidden":
            hint = did_you_mean(str(item["loc"][-1])[:MAX_ECHOED_CHARS], known)
            text = f"unknown argument; allowed: {', '.join(known) or 'none'}.{hint}"
        problems.append(f"{path}: {text}")
    return f"invalid arguments for {name}: " + "; ".join(problems)

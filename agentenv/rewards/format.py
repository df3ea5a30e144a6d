"""Whether a text keeps a form: JSON of a schema, tagged sections, or a pattern."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentenv.errors import UsageError

MAX_CHARS = 1_000_000
"""A longer text keeps no form."""

_FENCED = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)```", re.DOTALL)


def json_in(text: str) -> object:
    """Return the JSON value that a text is, or that its only fenced block holds.

    NaN, infinities and repeated keys are not JSON here.

    Raises:
        ValueError: there is none.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"the text has {len(text):,} characters; at most {MAX_CHARS:,} are read")
    blocks = _FENCED.findall(text)
    body = blocks[0] if len(blocks) == 1 else text
    try:
        return json.loads(body, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("the text is nested too deeply") from None


def matches_schema(text: str, schema: Mapping[str, object]) -> float:
    """Return 1.0 when the JSON in a text complies with a JSON schema (draft 2020-12 unless it names another), else 0.0.

    Args:
        text: what the agent wrote; read by `json_in`.
        schema: trusted; it must not refer to other documents.

    Raises:
        UsageError: the schema is wrong, or jsonschema is not installed.
    """
    validator = _validator(json.dumps(schema, sort_keys=True))
    try:
        value = json_in(text)
    except ValueError:
        return 0.0
    try:
        return float(validator.is_valid(value))
    except RecursionError:
        return 0.0


def has_sections(text: str, names: Sequence[str]) -> float:
    """Return 1.0 when a text is these tagged sections in this order and nothing else, else 0.0.

    `has_sections(text, ["think", "answer"])` wants `<think>...</think><answer>...</answer>`; every tag stands there
    exactly once, and none of the sections is empty.
    """
    if not names or any(not re.fullmatch(r"\w+", name) for name in names):
        raise UsageError(f"section names are {list(names)!r}; at least one word of letters, digits and _ is needed")
    position = 0
    for name in names:
        opening, closing = f"<{name}>", f"</{name}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            return 0.0
        start, end = text.index(opening), text.index(closing)
        if text[position:start].strip() or not text[start + len(opening) : end].strip():
            return 0.0
        position = end + len(closing)
    return float(not text[position:].strip())


def matches_pattern(text: str, pattern: str | re.Pattern[str], *, max_chars: int = 100_000) -> float:
    """Return 1.0 when a whole text matches a regular expression, else 0.0; a longer text than `max_chars` does not.

    The pattern must not backtrack without bounds: the text is the agent's, and matching cannot be interrupted.
    """
    return float(len(text) <= max_chars and re.fullmatch(pattern, text) is not None)


@functools.lru_cache(maxsize=256)
def _validator(schema_text: str) -> Any:
    try:
        import jsonschema
        import jsonschema.validators
    except ImportError as error:
        raise UsageError('JSON schemas need jsonschema; run `pip install "agentenv[schema]"`') from error
    schema = json.loads(schema_text)
    cls = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        cls.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise UsageError(f"the JSON schema is wrong: {error.message}") from error
    return cls(schema)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object repeats a key")
    return made


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")

"""What a tool returned, as content that a model can read."""

from __future__ import annotations

import json
from typing import Any, cast

import pydantic

from agentenv.content import MAX_IMAGES, Image, joined
from agentenv.errors import UsageError


def encodable(text: str) -> str:
    """Return the text with lone surrogates, which JSON escapes can smuggle in and no tokenizer takes, replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def clipped(text: str, max_chars: int) -> str:
    """Return the beginning and the end of a text that is too long, and say how much was left out between them."""
    if len(text) <= max_chars:
        return text
    head = (max_chars + 1) // 2
    tail = max_chars - head
    return f"{text[:head]}\n[... {len(text) - max_chars:,} characters omitted]\n{text[len(text) - tail :]}"


def as_tool_content(value: object, *, max_chars: int) -> tuple[str, tuple[Image, ...]]:
    """Return what a tool gave back as text and the images in it: an `Image`, or a list of texts and images.

    Items of such a list that are neither are shown as `as_tool_text` shows them.

    Args:
        value: what the tool returned.
        max_chars: longer texts are clipped; with images, each text between them.

    Raises:
        UsageError: an image is damaged, or there are too many.
    """
    if isinstance(value, Image):
        value = (value,)
    if not (isinstance(value, (list, tuple)) and any(isinstance(item, Image) for item in value)):
        return encodable(clipped(as_tool_text(value), max_chars)), ()
    text, images = joined(
        item if isinstance(item, Image) else encodable(clipped(as_tool_text(item), max_chars)) for item in value
    )
    if len(images) > MAX_IMAGES:
        raise UsageError(f"the tool returned {len(images)} images; at most {MAX_IMAGES} are allowed")
    for image in images:
        _ = image.size  # a damaged file is the tool's failure, and is found here
    return text, images


def as_tool_text(value: object) -> str:
    """Return what a tool gave back as text: strings unchanged, models and containers as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return "ok"
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump_json()
    return json.dumps(value, default=_jsonable, ensure_ascii=False)


def _jsonable(value: object) -> object:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in cast(Any, value).__dataclass_fields__}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "tolist"):
        return cast(Any, value).tolist()
    return str(value)

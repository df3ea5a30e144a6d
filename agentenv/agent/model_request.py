"""What a program asks of the model, whichever API it speaks, and how its JSON is read without trusting it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from agentenv.errors import AgentEnvError, UsageError
from agentenv.messages import Message, Role, message_from_dict
from agentenv.renderer import ToolSpecs

MAX_TOOLS = 512
MAX_STOPS = 16

_NAME = re.compile(r"[\w.-]{1,128}", re.ASCII)
_SHOWN_CHARS = 80


class RequestError(AgentEnvError):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        field: of the body, e.g. `"messages[2].content"`; "" where no field is to blame.
        code: for programs, e.g. `"context_length_exceeded"`.
        is_final: True where trying again cannot help.
    """

    def __init__(
        self, message: str, *, status: int = 400, field: str = "", code: str = "", is_final: bool = True
    ) -> None:
        super().__init__(message)
        self.status = status
        self.field = field
        self.code = code
        self.is_final = is_final


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One call of a program.

    Attributes:
        model: the name that the program gave; any is taken.
        messages: the conversation, or what is new of it where `previous` names its beginning.
        instructions: a system message before it; "" is none.
        tools: schemas that the model is offered; empty where the program sent none.
        max_tokens: bound of the turn; None leaves it to the episode.
        stop: strings before which the text ends.
        num_choices: turns to sample from this point.
        previous: id of the response that this goes on from.
        is_kept: the response may be gone on from by its id.
        is_streamed: the answer is sent as events.
        wants_usage: a stream ends with its usage.
        wants_logprobs: the answer carries log-probs.
        wants_token_ids: the answer carries token ids.
        wants_reasoning: the answer carries reasoning.
        ignored: fields of the body that were not looked at.
    """

    model: str
    messages: tuple[Message, ...]
    instructions: str = ""
    tools: ToolSpecs = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    num_choices: int = 1
    previous: str = ""
    is_kept: bool = False
    is_streamed: bool = False
    wants_usage: bool = False
    wants_logprobs: bool = False
    wants_token_ids: bool = False
    wants_reasoning: bool = True
    ignored: tuple[str, ...] = ()


class Body:
    """A JSON object that came from outside; every read names the field where it is not what it must be.

    `null` is the same as absent, as clients send it for what they leave out.

    Args:
        value: the decoded object.
        at: where it stands, e.g. `"messages[2]"`; "" is the top.
    """

    __slots__ = ("_seen", "_value", "at")

    def __init__(self, value: Mapping[str, object], *, at: str = "") -> None:
        self._value = value
        self.at = at
        self._seen: set[str] = set()

    def get(self, key: str) -> object:
        """Return a field as it came."""
        self._seen.add(key)
        return self._value.get(key)

    def path(self, key: str) -> str:
        """Return the name of a field for errors."""
        return f"{self.at}.{key}" if self.at else key

    def wrong(self, key: str, expected: str) -> RequestError:
        """Return the error that says what came and what was expected."""
        return RequestError(
            f"{self.path(key)} is {shown(self._value.get(key))}; expected {expected}", field=self.path(key)
        )

    def text(self, key: str, *, is_required: bool = False) -> str:
        """Return a text; "" where it may be left out and is."""
        value = self.get(key)
        if isinstance(value, str) and (value or not is_required):
            return value
        if value is None and not is_required:
            return ""
        raise self.wrong(key, "a text" if not is_required else "a text that is not empty")

    def number(self, key: str, *, low: int, high: int | None = None) -> int | None:
        """Return a whole number; None where it is left out."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            raise self.wrong(key, f"a whole number of at least {low}" + (f" and at most {high}" if high else ""))
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return true or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def part(self, key: str) -> Body | None:
        """Return an object inside; None where it is left out."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return Body(cast(Mapping[str, object], value), at=self.path(key))

    def parts(self, key: str) -> list[Body]:
        """Return a list of objects; empty where it is left out."""
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, "a list of objects")
        for index, item in enumerate(value):
            if not isinstance(item, Mapping):
                at = f"{self.path(key)}[{index}]"
                raise RequestError(f"{at} is {shown(item)}; expected an object", field=at)
        return [Body(item, at=f"{self.path(key)}[{index}]") for index, item in enumerate(value)]

    def stops(self, key: str) -> tuple[str, ...]:
        """Return stop strings: a text, or a list of texts."""
        value = self.get(key)
        stops = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
            raise self.wrong(key, f"a text, or at most {MAX_STOPS} of them, none of them empty")
        return tuple(cast(list[str], stops))

    def refuse(self, *keys: str, why: str) -> None:
        """Refuse fields that ask for something which is not done; empty ones ask for nothing."""
        for key in keys:
            if self.get(key) not in (None, False, [], {}, "", 0):
                raise RequestError(f"{self.path(key)} is not supported: {why}", field=self.path(key))

    def ignored(self) -> tuple[str, ...]:
        """Return the names of the fields that nobody read."""
        unread = self._value.keys() - self._seen
        return tuple(sorted(name for name in unread if self._value[name] is not None)) if unread else ()


def shown(value: object) -> str:
    """Return what came, short enough for an error."""
    if isinstance(value, (Mapping, list)):
        return "an object" if isinstance(value, Mapping) else f"a list of {len(value)}"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return "missing" if value is None else text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def tool_spec(tool: Body, *, schema_key: str) -> Mapping[str, object]:
    """Return a function tool as chat templates expect it.

    Args:
        tool: holds name, description and schema.
        schema_key: under which the schema stands.
    """
    name = tool.text("name", is_required=True)
    if not _NAME.fullmatch(name):
        raise tool.wrong("name", "letters, digits, '_', '-' and '.', at most 128 of them")
    description = tool.text("description")
    schema = tool.get(schema_key)
    if schema is not None and not isinstance(schema, Mapping):
        raise tool.wrong(schema_key, "a JSON schema")
    function: dict[str, object] = {"name": name}
    if description:
        function["description"] = description
    function["parameters"] = {"type": "object", "properties": {}} if schema is None else schema
    return {"type": "function", "function": function}


def unique_tools(body: Body, specs: Iterable[Mapping[str, object]], *, key: str = "tools") -> ToolSpecs:
    """Return the tools of a request, after a look at their names and number."""
    tools = tuple(specs)
    names = {cast(Mapping[str, object], spec["function"])["name"] for spec in tools}
    if len(names) != len(tools) or len(tools) > MAX_TOOLS:
        raise body.wrong(key, f"at most {MAX_TOOLS} tools, no two of the same name")
    return tools


def read_message(role: Role, content: str | Sequence[Mapping[str, object]], *, at: str, **fields: object) -> Message:
    """Build a message; errors name where it stands.

    Args:
        role: who speaks.
        content: text, or parts in the OpenAI chat shape.
        at: its path in the body.
        **fields: further ones of the OpenAI chat shape.
    """
    try:
        return message_from_dict({"role": role, "content": content, **fields})
    except UsageError as error:
        raise RequestError(f"{at}: {error}", field=at) from error


def content_parts(body: Body, key: str, *, kinds: Mapping[str, str]) -> str | Sequence[Mapping[str, object]]:
    """Return content as chat messages carry it: a text, or text and image parts.

    Args:
        body: holds it.
        key: under which.
        kinds: the part types of this API, each mapped to `"text"`, `"image"` or `"refusal"`.
    """
    value = body.get(key)
    if value is None or isinstance(value, str):
        return value or ""
    return [content_part(part, kinds=kinds) for part in body.parts(key)]


def content_part(part: Body, *, kinds: Mapping[str, str]) -> Mapping[str, object]:
    """Return one part of a content list as chat messages carry it."""
    kind = kinds.get(part.text("type", is_required=True))
    if kind is None:
        raise part.wrong("type", f"one of {', '.join(kinds)}")
    if kind == "image":
        return _image_part(part)
    key = "refusal" if kind == "refusal" else "text"
    return {"type": "text", "text": part.text(key)}


def _image_part(part: Body) -> Mapping[str, object]:
    """Return a picture as chat messages carry it, from the shape of any of the three APIs."""
    if part.get("source") is not None:
        source = part.part("source")
        assert source is not None
        if source.text("type") == "url":
            url = source.text("url", is_required=True)
        else:
            kind, data = source.text("media_type", is_required=True), source.text("data", is_required=True)
            url = f"data:{kind};base64,{data}"
    elif isinstance(part.get("image_url"), str):
        url = part.text("image_url", is_required=True)
    else:
        nested = part.part("image_url")
        if nested is None:
            raise part.wrong("image_url", "an object with a url")
        url = nested.text("url", is_required=True)
    return {"type": "image_url", "image_url": {"url": url}}

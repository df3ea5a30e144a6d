"""Tools: `@tool` turns a documented function into a schema, and `Toolbox` validates and runs the model's calls."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import re
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast, overload

import pydantic

from agentenv.content import Image
from agentenv.errors import ToolError, ToolSchemaError, UsageError, boundary, did_you_mean
from agentenv.messages import ToolCall, ToolResult
from agentenv.offload import call_hook, is_async
from agentenv.tool_content import as_tool_content, encodable
from agentenv.trace import traced

F = TypeVar("F", bound=Callable[..., object])

DEFAULT_TIMEOUT_S = 30.0

ARGUMENT_PREFIX = "argument_"
"""Keeps parameter names such as `json` or `copy` apart from pydantic's own attributes."""

MAX_ECHOED_CHARS = 80
"""How much of a wrong name is repeated to the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOptions:
    """What `@tool` declares about a function.

    Attributes:
        read_only: the tool changes nothing that others can see.
        timeout_s: deadline of one call.
        inline: True promises that a synchronous function returns within a millisecond; it then runs on the event
            loop. None takes the environment's own promise, False always uses a worker thread.
        parallel: calls of one turn may run at the same time; else they run in order of appearance.
    """

    read_only: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    inline: bool | None = None
    parallel: bool = False


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A callable with a name, a JSON schema and a policy.

    Attributes:
        name: what the model writes.
        description: first paragraph of the docstring.
        parameters: JSON schema of the arguments object.
        function: the callable; keyword arguments only.
        options: declared policy.
        arguments_model: validates the arguments; its fields carry `ARGUMENT_PREFIX`, their aliases are the names.
        takes_self: the function is a method that still needs its owner.
    """

    name: str
    description: str
    parameters: Mapping[str, object]
    function: Callable[..., object]
    options: ToolOptions
    arguments_model: type[pydantic.BaseModel]
    takes_self: bool = False

    @functools.cached_property
    def spec(self) -> dict[str, object]:
        """The OpenAI function-calling entry, as chat templates expect it; one object for all bound copies."""
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": dict(self.parameters)},
        }

    def bind(self, owner: object) -> Tool:
        """Return this tool as a method of `owner`; a plain function needs none and stays as it is."""
        if not self.takes_self:
            return self
        bound = replace(self, function=functools.partial(self.function, owner), takes_self=False)
        bound.__dict__["spec"] = self.spec  # fills the cache of the copy
        return bound

    def read_arguments(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """Validate the model's arguments.

        Raises:
            ToolError: names every field that is wrong and what was expected, in words for the model.
        """
        try:
            values = self.arguments_model.model_validate(arguments)
        except pydantic.ValidationError as error:
            raise ToolError(_explain(self, error)) from None
        except RecursionError:
            raise ToolError(f"{self.name}: arguments are nested too deeply") from None
        # model_fields_set keeps the function's own defaults; getattr keeps nested models as objects
        return {name[len(ARGUMENT_PREFIX) :]: getattr(values, name) for name in values.model_fields_set}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One line of the audit log of tool calls."""

    tool: str
    arguments: Mapping[str, object]
    is_error: bool
    result_sha256: str
    duration_s: float


def _never() -> bool:
    return False


@dataclass(kw_only=True)
class Toolbox:
    """The tools of one episode and what may be done with them.

    Attributes:
        tools: by name.
        inline_default: the environment's promise for tools that make none.
        audit: who, what, arguments, result digest, time; kept when `keep_audit`.
    """

    tools: Mapping[str, Tool]
    inline_default: bool = False
    keep_audit: bool = False
    audit: list[AuditEntry] = field(default_factory=list)

    @functools.cached_property
    def specs(self) -> tuple[dict[str, object], ...]:
        """Schemas for the chat template."""
        return tuple(tool.spec for tool in self.tools.values())

    @functools.cached_property
    def never_waits(self) -> bool:
        """True when no tool can suspend: every one is synchronous and inline."""
        return all(not is_async(tool.function) and self._is_inline(tool) for tool in self.tools.values())

    async def run_all(self, calls: Sequence[ToolCall], *, is_over: Callable[[], bool] = _never) -> list[ToolResult]:
        """Run the calls of one turn; results stand in the order of the calls.

        Neighbouring calls of tools declared `parallel` run at the same time, the others one after the other.

        Args:
            calls: of one assistant turn.
            is_over: asked before every call; once it says True the rest is refused, so that no turn can go on
                playing an episode that one of its calls has ended.

        Raises:
            EpisodeError: with side `"tool"`; calls that ran beside the failing one are cancelled.
        """
        results: list[ToolResult] = []
        start = 0
        while start < len(calls):
            if is_over():
                return results + [refused(call, _EPISODE_OVER) for call in calls[start:]]
            end = start + 1
            while end < len(calls) and self._is_parallel(calls[start]) and self._is_parallel(calls[end]):
                end += 1
            if end == start + 1:
                results.append(await self.run(calls[start]))
            else:
                results.extend(await self._together(calls[start:end]))
            start = end
        return results

    async def _together(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.run(call)) for call in calls]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _is_parallel(self, call: ToolCall) -> bool:
        tool = self.tools.get(call.name)
        return tool is not None and tool.options.parallel

    def _is_inline(self, tool: Tool) -> bool:
        return self.inline_default if tool.options.inline is None else tool.options.inline

    @traced("tool")
    async def run(self, call: ToolCall) -> ToolResult:
        """Run one call and return what the model is told.

        Malformed attempts, unknown names, refused arguments and `ToolError` become error results. Anything else
        that a tool raises, or a deadline that it misses, is an infrastructure failure.

        Raises:
            EpisodeError: with side `"tool"`.
        """
        started = time.perf_counter() if self.keep_audit else 0.0
        images: tuple[Image, ...] = ()
        try:
            (content, images), is_error = await self._content(call), False
        except ToolError as refused:
            content, is_error = encodable(f"Error: {refused}"), True
        if self.keep_audit:
            digest = hashlib.sha256(b"".join([content.encode(), *(image.data for image in images)])).hexdigest()
            duration_s = time.perf_counter() - started
            self.audit.append(
                AuditEntry(
                    tool=call.name,
                    arguments=call.arguments,
                    is_error=is_error,
                    result_sha256=digest,
                    duration_s=duration_s,
                )
            )
        name = encodable(call.name[:MAX_ECHOED_CHARS])
        return ToolResult(call_id=call.call_id, name=name, content=content, is_error=is_error, images=images)

    async def _content(self, call: ToolCall) -> tuple[str, tuple[Image, ...]]:
        if call.status != "ok":
            raise ToolError(_MALFORMED[call.status])
        tool = self.tools.get(call.name)
        if tool is None:
            allowed, name = ", ".join(self.tools) or "none", call.name[:MAX_ECHOED_CHARS]
            raise ToolError(f'unknown tool "{name}". Available tools: {allowed}.{did_you_mean(name, self.tools)}')
        arguments = tool.read_arguments(call.arguments)
        with boundary("tool", tool.name):
            value = await call_hook(
                tool.function,
                kwargs=arguments,
                inline=self._is_inline(tool),
                timeout_s=tool.options.timeout_s,
                side="tool",
                where=tool.name,
            )
            return as_tool_content(value)


_MALFORMED: Mapping[str, str] = {
    "invalid_json": 'the tool call is not valid JSON. Write {"name": ..., "arguments": {...}}.',
    "unclosed_block": "the tool call was not closed.",
    "missing_name": 'the tool call has no "name".',
    "malformed_structure": 'the tool call must be an object {"name": ..., "arguments": {...}}.',
    "unknown_tool": "the tool does not exist.",
}


_EPISODE_OVER = "not run; an earlier call of this turn ended the episode."


def refused(call: ToolCall, why: str) -> ToolResult:
    """Return the error result of a call that was not run."""
    name = encodable(call.name[:MAX_ECHOED_CHARS])
    return ToolResult(call_id=call.call_id, name=name, content=f"Error: {why}", is_error=True)


@overload
def tool(function: F) -> F: ...


@overload
def tool(
    *,
    read_only: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    inline: bool | None = None,
    parallel: bool = False,
) -> Callable[[F], F]: ...


def tool(function: Callable[..., object] | None = None, **options: Any) -> Any:
    """Mark a function or method as a tool.

    Type hints and the Google-style docstring become the JSON schema; both are required, because the model reads
    nothing else.

    Raises:
        ToolSchemaError: at decoration, naming what is missing.
    """
    if function is None:
        return lambda decorated: tool_marked(decorated, ToolOptions(**options))
    return tool_marked(function, ToolOptions(**options))


def tool_marked(function: F, options: ToolOptions) -> F:
    """Attach the schema of `function` to it and return it."""
    function.__agentenv_tool__ = _make_tool(function, options)  # type: ignore[attr-defined]
    return function


def as_tool(function: Callable[..., object]) -> Tool:
    """Return the tool that `@tool` made of a plain function, bound if it is a bound method.

    Raises:
        UsageError: the function is not decorated.
    """
    made = getattr(function, "__agentenv_tool__", None)
    if made is None:
        name = getattr(function, "__qualname__", repr(function))
        raise UsageError(f"{name} is not a tool; decorate it with @tool")
    owner = getattr(function, "__self__", None)
    return made if owner is None else made.bind(owner)


@functools.lru_cache(maxsize=256)
def tools_of_class(cls: type) -> tuple[Tool, ...]:
    """Return the tools that a class declares, base classes first, in order of definition; overrides replace.

    A shared plain function becomes a tool of a class with `name = staticmethod(function)`.
    """
    found: dict[str, Tool] = {}
    for base in reversed(cls.__mro__):
        for name, member in vars(base).items():
            made = getattr(getattr(member, "__func__", member), "__agentenv_tool__", None)  # staticmethods wrap it
            if made is not None:
                found[name] = made
            elif name in found:
                del found[name]  # a subclass removed the tool by overriding it with something else
    return tuple(found.values())


def _make_tool(function: Callable[..., object], options: ToolOptions) -> Tool:
    name = function.__name__
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
    fields: dict[str, Any] = {}
    parameters = inspect.signature(function).parameters
    takes_self = next(iter(parameters), "") in ("self", "cls")
    for parameter in list(parameters.values())[takes_self:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ToolSchemaError(f"{where}: parameter {parameter.name!r} must be an ordinary named parameter")
        if parameter.name not in hints:
            raise ToolSchemaError(
                f"{where}: parameter {parameter.name!r} has no type hint; the schema is made from hints"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        described: dict[str, Any] = (
            {"description": documented.pop(parameter.name)} if parameter.name in documented else {}
        )
        fields[ARGUMENT_PREFIX + parameter.name] = (
            hints[parameter.name],
            pydantic.Field(default, alias=parameter.name, **described),
        )
    if documented:
        raise ToolSchemaError(
            f"{where}: the docstring documents {', '.join(documented)}, which the signature does not have"
        )
    model = pydantic.create_model(
        name, __config__=pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True), **fields
    )
    try:
        schema = model.model_json_schema()
    except pydantic.errors.PydanticInvalidForJsonSchema as error:
        raise ToolSchemaError(f"{where}: a parameter type has no JSON schema ({error})") from error
    return Tool(
        name=name,
        description=summary,
        parameters=cast(Mapping[str, object], _for_model(schema)),
        function=function,
        options=options,
        arguments_model=model,
        takes_self=takes_self,
    )


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


def _explain(tool: Tool, error: pydantic.ValidationError) -> str:
    problems: list[str] = []
    known = list(cast(Mapping[str, object], tool.parameters.get("properties", {})))
    for item in error.errors(include_url=False)[:5]:
        path = ".".join(str(part) for part in item["loc"])[:MAX_ECHOED_CHARS] or "arguments"
        text = item["msg"]
        if item["type"] == "extra_forbidden":
            hint = did_you_mean(str(item["loc"][-1])[:MAX_ECHOED_CHARS], known)
            text = f"unknown argument; allowed: {', '.join(known) or 'none'}.{hint}"
        problems.append(f"{path}: {text}")
    return f"invalid arguments for {tool.name}: " + "; ".join(problems)


def toolbox_of(tools: Sequence[Tool], *, inline_default: bool = False, keep_audit: bool = False) -> Toolbox:
    """Return a toolbox over the given tools.

    Raises:
        UsageError: two tools share a name.
    """
    by_name: dict[str, Tool] = {}
    for item in tools:
        if item.name in by_name:
            raise UsageError(f'two tools are called "{item.name}"; the model could not tell them apart, rename one')
        by_name[item.name] = item
    return Toolbox(tools=by_name, inline_default=inline_default, keep_audit=keep_audit)

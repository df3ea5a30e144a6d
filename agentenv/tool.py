"""Tools: `@tool` turns a documented function into a schema, and `Toolbox` validates and runs the model's calls."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, overload

import pydantic

from agentenv.content import Image
from agentenv.errors import DeadlineExceeded, EpisodeError, ToolError, UsageError, boundary, did_you_mean
from agentenv.messages import ToolCall, ToolResult
from agentenv.offload import call_hook, is_async
from agentenv.tool_audit import AuditEntry, Outcome
from agentenv.tool_content import as_tool_content, encodable
from agentenv.tool_policy import ToolPolicy
from agentenv.tool_schema import ARGUMENT_PREFIX, MAX_ECHOED_CHARS, check_size, explain, schema_of
from agentenv.trace import traced

F = TypeVar("F", bound=Callable[..., object])

DEFAULT_TIMEOUT_S = 30.0

MAX_OUTPUT_CHARS = 65_536
"""Of one result, unless the tool says otherwise."""

MAX_ARGUMENT_CHARS = 1_000_000
"""Of the arguments of one call, unless the tool says otherwise."""

NUM_TRIES = 3
"""Of one call of an idempotent tool."""

RETRY_PAUSE_S = 0.1
"""Before the second try; each further pause is four times as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOptions:
    """What `@tool` declares about a function.

    Attributes:
        read_only: the tool changes nothing that others can see.
        reaches_outside: it talks to something beyond the episode, such as a network; the policy then asks for
            permission by name unless it is `read_only`.
        idempotent: calling it twice does what calling it once does, so a call whose infrastructure fails is tried
            again, up to `NUM_TRIES` times within the deadline.
        timeout_s: deadline of one call, all tries together.
        inline: True promises that a synchronous function returns within a millisecond; it then runs on the event
            loop. None takes the environment's own promise, False always uses a worker thread.
        parallel: calls of one turn may run at the same time; else they run in order of appearance.
        max_output_chars: of a longer result the model sees the beginning, the end, and how much was left out.
        max_argument_chars: a call with longer arguments is refused.
    """

    read_only: bool = False
    reaches_outside: bool = False
    idempotent: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    inline: bool | None = None
    parallel: bool = False
    max_output_chars: int = MAX_OUTPUT_CHARS
    max_argument_chars: int = MAX_ARGUMENT_CHARS


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
        check_size(arguments, name=self.name, max_chars=self.options.max_argument_chars)
        try:
            values = self.arguments_model.model_validate(arguments)
        except pydantic.ValidationError as error:
            raise ToolError(explain(error, name=self.name, parameters=self.parameters)) from None
        except RecursionError:
            raise ToolError(f"{self.name}: arguments are nested too deeply") from None
        # model_fields_set keeps the function's own defaults; getattr keeps nested models as objects
        return {name[len(ARGUMENT_PREFIX) :]: getattr(values, name) for name in values.model_fields_set}


def _never() -> bool:
    return False


@dataclass(kw_only=True)
class Toolbox:
    """The tools of one episode and what may be done with them.

    Attributes:
        tools: by name.
        inline_default: the environment's promise for tools that make none.
        policy: which of the tools may be called; the others are not offered.
        caller: who calls, for the audit log; environments write their name, task and seed.
        keep_audit: False keeps no audit log.
        audit: every call in order of its end: who, what, arguments, result digest, time.
    """

    tools: Mapping[str, Tool]
    inline_default: bool = False
    policy: ToolPolicy = field(default_factory=ToolPolicy)
    caller: str = ""
    keep_audit: bool = True
    audit: list[AuditEntry] = field(default_factory=list)

    @functools.cached_property
    def specs(self) -> tuple[dict[str, object], ...]:
        """Schemas for the chat template, of the tools that the policy allows."""
        return tuple(tool.spec for tool in self.tools.values() if not self.policy.refusal(tool.name, tool.options))

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
                return results + [self.refuse(call, _EPISODE_OVER) for call in calls[start:]]
            if start and any(earlier.call_id == calls[start].call_id for earlier in calls[:start]):
                results.append(self.refuse(calls[start], _TAKEN_ID))
                start += 1
                continue
            end = start + 1
            ids = {call.call_id for call in calls[:end]}
            while end < len(calls) and self._is_parallel(calls[start]) and self._is_parallel(calls[end]):
                if calls[end].call_id in ids:
                    break
                ids.add(calls[end].call_id)
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
        images: tuple[Image, ...] = ()
        outcome: Outcome = "refused"
        clock = (time.time(), time.perf_counter())
        try:
            tool, arguments = self._admit(call)
            outcome = "error"
            content, images = await self._value(call, tool, arguments)
            outcome = "ok"
        except ToolError as told:
            content = encodable(f"Error: {told}")
        except BaseException:
            self._record(call, "failed", clock=clock)
            raise
        self._record(call, outcome, clock=clock, content=content, images=images)
        name = encodable(call.name[:MAX_ECHOED_CHARS])
        return ToolResult(call_id=call.call_id, name=name, content=content, is_error=outcome != "ok", images=images)

    def refuse(self, call: ToolCall, why: str) -> ToolResult:
        """Return the error result of a call that is not run, and record it."""
        result = refused(call, why)
        self._record(call, "refused", clock=(time.time(), time.perf_counter()), content=result.content)
        return result

    def _admit(self, call: ToolCall) -> tuple[Tool, dict[str, object]]:
        """Return the tool and the checked arguments, or raise `ToolError`."""
        if call.status != "ok":
            raise ToolError(_MALFORMED[call.status])
        tool = self.tools.get(call.name)
        if tool is None:
            name = call.name[:MAX_ECHOED_CHARS]
            allowed = [each.name for each in self.tools.values() if not self.policy.refusal(each.name, each.options)]
            known = ", ".join(allowed) or "none"
            raise ToolError(f'unknown tool "{name}". Available tools: {known}.{did_you_mean(name, allowed)}')
        refusal = self.policy.refusal(tool.name, tool.options)
        if refusal:
            raise ToolError(refusal)
        return tool, tool.read_arguments(call.arguments)

    async def _value(self, call: ToolCall, tool: Tool, arguments: dict[str, object]) -> tuple[str, tuple[Image, ...]]:
        """Call the tool, and an idempotent one again after a failure while its deadline allows."""
        if not tool.options.idempotent:
            return await self._try(tool, arguments, timeout_s=tool.options.timeout_s)
        pause_s, ends = RETRY_PAUSE_S, time.perf_counter() + tool.options.timeout_s
        for _ in range(NUM_TRIES - 1):
            clock = (time.time(), time.perf_counter())
            try:
                return await self._try(tool, arguments, timeout_s=ends - clock[1])
            except DeadlineExceeded:
                raise
            except EpisodeError:
                if time.perf_counter() + pause_s >= ends:
                    raise
                self._record(call, "retried", clock=clock)
            if is_async(tool.function) or not self._is_inline(tool):  # an inline function may not wait
                await asyncio.sleep(pause_s)
            pause_s *= 4
        return await self._try(tool, arguments, timeout_s=ends - time.perf_counter())

    async def _try(
        self, tool: Tool, arguments: dict[str, object], *, timeout_s: float
    ) -> tuple[str, tuple[Image, ...]]:
        with boundary("tool", tool.name):
            value = await call_hook(
                tool.function,
                kwargs=arguments,
                inline=self._is_inline(tool),
                timeout_s=timeout_s,
                side="tool",
                where=tool.name,
            )
            return as_tool_content(value, max_chars=tool.options.max_output_chars)

    def _record(
        self,
        call: ToolCall,
        outcome: Outcome,
        *,
        clock: tuple[float, float],
        content: str = "",
        images: tuple[Image, ...] = (),
    ) -> None:
        if self.keep_audit:
            digest = hashlib.sha256(content.encode())
            for image in images:
                digest.update(image.data)
            self.audit.append(
                AuditEntry(
                    caller=self.caller,
                    call_id=call.call_id,
                    tool=call.name,
                    arguments=call.arguments,
                    outcome=outcome,
                    result_sha256=digest.hexdigest(),
                    started_at_s=clock[0],
                    duration_s=time.perf_counter() - clock[1],
                )
            )


_MALFORMED: Mapping[str, str] = {
    "invalid_json": 'the tool call is not valid JSON. Write {"name": ..., "arguments": {...}}.',
    "unclosed_block": "the tool call was not closed.",
    "missing_name": 'the tool call has no "name".',
    "malformed_structure": 'the tool call must be an object {"name": ..., "arguments": {...}}.',
    "unknown_tool": "the tool does not exist.",
}


_EPISODE_OVER = "not run; an earlier call of this turn ended the episode."
_TAKEN_ID = "not run; an earlier call of this turn has the same id."


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
    reaches_outside: bool = False,
    idempotent: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    inline: bool | None = None,
    parallel: bool = False,
    max_output_chars: int = MAX_OUTPUT_CHARS,
    max_argument_chars: int = MAX_ARGUMENT_CHARS,
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
    schema = schema_of(function)
    return Tool(
        name=function.__name__,
        description=schema.description,
        parameters=schema.parameters,
        function=function,
        options=options,
        arguments_model=schema.arguments_model,
        takes_self=schema.takes_self,
    )


def toolbox_of(tools: Sequence[Tool], *, inline_default: bool = False, policy: ToolPolicy | None = None) -> Toolbox:
    """Return a toolbox over the given tools.

    Raises:
        UsageError: two tools share a name.
    """
    return Toolbox(tools=by_name(tools), inline_default=inline_default, policy=policy or ToolPolicy())


def by_name(tools: Sequence[Tool]) -> dict[str, Tool]:
    """Return tools by their name.

    Raises:
        UsageError: two tools share a name.
    """
    found: dict[str, Tool] = {}
    for item in tools:
        if item.name in found:
            raise UsageError(f'two tools are called "{item.name}"; the model could not tell them apart, rename one')
        found[item.name] = item
    return found

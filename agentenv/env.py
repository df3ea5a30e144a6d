"""`AgentEnv`, a `gymnasium.Env` whose actions are assistant turns, and `ToolEnv`, which adds tools."""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import gymnasium
import numpy as np

from agentenv.errors import DataError, UsageError, boundary, did_you_mean
from agentenv.messages import Message, ToolCall, as_messages, message_from_dict
from agentenv.offload import call_hook, is_async, run_inline, run_now
from agentenv.proof import Proof
from agentenv.random_arguments import random_arguments
from agentenv.reward import Reward, Rubric, rewards_of_class
from agentenv.spaces import Action, MessageSpace, TextSpace
from agentenv.splits import Split
from agentenv.step import Step as Step
from agentenv.step import has_terminated, info_of, observation_of
from agentenv.tasks import Task, as_task
from agentenv.text_calls import parse_turn
from agentenv.tool import Tool, Toolbox, as_tool, by_name, toolbox_of, tools_of_class
from agentenv.tool_policy import ToolPolicy
from agentenv.toolkit import Kits, Toolkit
from agentenv.trajectory import StopReason
from agentenv.vision import described_content

Prompt = str | Message | Sequence[Message | Mapping[str, object]]


_NOTHING: Mapping[str, float] = {}


class AgentEnv(Proof, gymnasium.Env[str, Action]):
    """A task that is solved by talking. Authors write `setup`, `respond` and `@reward` methods.

    The observation is the new text, the action one assistant turn: a string, or a message dict. `info` carries
    `messages` (the new ones, as dicts), `reward_components` and `stop_reason` ("" while the episode goes on).

    Args:
        max_turns: assistant turns after which the episode is truncated.
        split: `"train"` or `"test"`; environments draw disjoint content for them.
        hook_timeout_s: deadline of `setup` and `respond`, where they are not inline.
        render_mode: None or `"ansi"`.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - declared so by Gymnasium

    inline: ClassVar[bool] = False
    """Promise that synchronous hooks return within a millisecond: they then run on the event loop, not in threads."""

    waits_for_others: bool = False
    """True while other episodes belong to this one: a step then waits for them, as long as the episode may last."""

    difficulties: ClassVar[tuple[int, int]] = (1, 5)
    """Easiest and hardest value of the option `difficulty`, where a class has it."""

    def __init__(
        self,
        *,
        max_turns: int = 16,
        split: Split = "train",
        hook_timeout_s: float = 60.0,
        render_mode: str | None = None,
    ) -> None:
        if max_turns < 1:
            raise UsageError(f"max_turns is {max_turns}; at least 1 is needed")
        if split not in ("train", "test"):
            raise UsageError(f'split is {split!r}; allowed are "train" and "test"')
        self.max_turns = max_turns
        self.split: Split = split
        self.hook_timeout_s = hook_timeout_s
        self.render_mode = render_mode
        self.task = Task(task_id="")
        self.conversation: list[Message] = []
        self.rubric = Rubric(
            components=tuple(component.bind(self) for component in _own_rewards(type(self))), inline_default=self.inline
        )
        self.observation_space = TextSpace()
        self.action_space = self._action_space()
        self._base_seed: int | None = None
        self._num_resets = 0
        self._num_turns = 0
        self._stop: StopReason | None = None
        self._state: Literal["new", "open", "done", "failed", "closed"] = "new"

    # What authors write.

    def setup(self, rng: np.random.Generator, task: Task) -> Prompt | Awaitable[Prompt]:
        """Build the initial state and return the opening prompt. All chance comes from `rng`. May be async."""
        return task.prompt

    def respond(self, text: str) -> Prompt | Awaitable[Prompt]:
        """Answer an assistant's text; call `self.finish()` to end the episode. May be async."""
        self.finish()
        return ""

    def teardown(self) -> Awaitable[None] | None:
        """Free what `setup` took; runs exactly once if `setup` ran. May be async."""

    def sample_task(self, rng: np.random.Generator) -> Task:
        """Return the task of an episode for which none was given."""
        return Task(task_id="")

    def finish(self, reason: StopReason = StopReason.COMPLETED) -> None:
        """End the episode after this turn."""
        self._stop = reason

    @property
    def num_turns(self) -> int:
        """Assistant turns so far, the running one included."""
        return self._num_turns

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of the turn and end components of its reward."""
        return self.rubric.names

    @property
    def turn_component_names(self) -> tuple[str, ...]:
        """Names of those that every turn has."""
        return tuple(component.name for component in self.rubric.turn)

    @property
    def tool_specs(self) -> tuple[dict[str, object], ...]:
        """Schemas of the tools that the model may call."""
        return ()

    def offer_only(self, names: Sequence[str]) -> None:
        """Offer, for the rest of the episode, only these of the present tools; calls of others are refused.

        Raises:
            DataError: a name is not among the present tools.
        """
        if names:
            raise DataError(_not_offered(self, names, offered=()))

    # The asynchronous contract that the agent loop drives.

    async def reset_async(self, *, seed: int | None = None, task: Task | None = None) -> Step:
        """Start an episode; same seed and task, same episode."""
        if self._state == "closed":
            raise UsageError(f"{type(self).__name__} was closed; make a new one")
        await self._teardown_once()
        if seed is not None or self._base_seed is None:
            self._base_seed = secrets.randbits(62) if seed is None else seed
            self._num_resets = 0
        # resets are counted from the last seed, so the next unseeded reset is a function of that seed too
        rng = np.random.default_rng((self._base_seed, self._num_resets, self.split == "test"))
        self._num_resets += 1
        # a setup that fails leaves no episode to step, yet what it took is still torn down
        self._state, self._stop, self._num_turns = "failed", None, 0
        with boundary("env", _place(type(self), "setup")):
            self.task = task if task is not None else self.sample_task(rng)
            opening = as_messages(cast(Prompt, await self._call(self.setup, rng, self.task)))
            if not opening:
                raise UsageError("setup returned no message; return the prompt")
        self.conversation = list(opening)
        self._state = "open"
        return Step(messages=opening, reward_components=_NOTHING, turn_reward_components=_NOTHING, stop_reason=None)

    async def step_async(self, turn: Message) -> Step:
        """Play one assistant turn.

        Raises:
            UsageError: the episode is over, or was never started.
            EpisodeError: env, tool or reward failed; the episode cannot go on.
        """
        self._require_open("step")
        self._state = "failed"  # until the turn is played to its end
        self._num_turns += 1
        self.conversation.append(turn)
        messages, num_malformed = await self._play(turn)
        self.conversation.extend(messages)
        if self._stop is None and self._num_turns >= self.max_turns:
            self._stop = StopReason.MAX_TURNS
        return await self._scored(messages, num_malformed)

    async def truncate_async(self, reason: StopReason) -> Step:
        """End the episode from outside (a budget ran out); terminal rewards are still computed."""
        self._require_open("truncate")
        self._stop = reason
        self._state = "failed"
        components = await self.rubric.score_end()
        self._state = "done"
        return Step(messages=(), reward_components=components, turn_reward_components=_NOTHING, stop_reason=reason)

    async def close_async(self) -> None:
        """Free everything; idempotent."""
        try:
            await self._teardown_once()
        finally:
            self._state = "closed"

    # Gymnasium's synchronous facade over the same coroutines.

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode; `options={"task": row}` chooses the task."""
        gymnasium.Env.reset(self, seed=seed)  # keeps Gymnasium's own np_random, for wrappers that read it
        given = (options or {}).get("task")
        step = self._run(self.reset_async(seed=seed, task=None if given is None else as_task(given)))
        return observation_of(step.messages), self._info(step)

    def step(self, action: Action) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one assistant turn, given as text or as a message dict."""
        return self.outcome(self._run(self.step_async(self.read_action(action))))

    def outcome(self, step: Step) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Return a step as Gymnasium tells it: observation, reward, terminated, truncated, info."""
        has_ended = has_terminated(step.stop_reason)
        return (
            observation_of(step.messages),
            sum(step.reward_components.values(), 0.0),
            has_ended,
            step.stop_reason is not None and not has_ended,
            self._info(step),
        )

    def truncate(self, reason: StopReason = StopReason.MAX_TOKENS) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """End the episode from outside; same shape as `step`."""
        step = self._run(self.truncate_async(reason))
        return "", sum(step.reward_components.values(), 0.0), False, True, self._info(step)

    def render(self) -> str | None:  # type: ignore[override]
        """Return the conversation as text in mode `"ansi"`."""
        if self.render_mode != "ansi":
            return None
        return "\n".join(f"[{message.role}] {_readable(message)}" for message in self.conversation)

    def close(self) -> None:
        """Free everything; idempotent."""
        if self._state != "closed":
            self._run(self.close_async())

    def read_action(self, action: Action | Message) -> Message:
        """Turn an action into an assistant message; garbage becomes text, never an exception."""
        if isinstance(action, Message):
            return action
        if isinstance(action, str):
            if not self.tool_specs:
                return Message(role="assistant", content=action)
            return parse_turn(action, id_prefix=f"call_{self._num_turns}")
        try:
            return replace(message_from_dict({"role": "assistant", "content": "", **action}), role="assistant")
        except (UsageError, TypeError, ValueError, RecursionError):
            return Message(role="assistant", content=_garbage_text(action))

    # Private.

    async def _play(self, turn: Message) -> tuple[tuple[Message, ...], int]:
        with boundary("env", _place(type(self), "respond")):
            reply = await self._call(self.respond, turn.content)
            return (() if reply in ("", None) else as_messages(cast(Prompt, reply))), 0

    async def _scored(self, messages: tuple[Message, ...], num_malformed: int) -> Step:
        turn_components: Mapping[str, float] = await self.rubric.score_turn() if self.rubric.turn else _NOTHING
        components = turn_components
        if self._stop is not None:
            components = {**turn_components, **await self.rubric.score_end()}
        self._state = "open" if self._stop is None else "done"
        return Step(
            messages=messages,
            reward_components=components,
            turn_reward_components=turn_components,
            stop_reason=self._stop,
            num_malformed_calls=num_malformed,
        )

    async def _call(self, hook: Callable[..., object], *args: object) -> object:
        where = _place(type(self), getattr(hook, "__name__", "hook"))
        return await call_hook(hook, *args, inline=self.inline, timeout_s=self.hook_timeout_s, side="env", where=where)

    async def _teardown_once(self) -> None:
        if self._state in ("open", "done", "failed"):
            self._state = "new"
            try:
                with boundary("env", _place(type(self), "teardown")):
                    await self._call(self.teardown)
            finally:
                await self._free()

    async def _free(self) -> None:
        """Free what the environment's own machinery took for the episode."""

    def _run(self, coroutine: Any) -> Any:
        return run_inline(coroutine) if self._never_waits() else run_now(coroutine)

    def _never_waits(self) -> bool:
        return _hooks_never_wait(type(self))

    def _require_open(self, verb: str) -> None:
        if self._state != "open":
            why = {
                "new": "has not begun; call reset first",
                "done": "is over; call reset first",
                "failed": "failed and cannot go on; call reset first",
                "closed": "was closed; make a new environment",
            }[self._state]
            raise UsageError(f"{verb} on {type(self).__name__}: the episode {why}")

    def _action_space(self) -> MessageSpace:
        return MessageSpace()

    def _info(self, step: Step) -> dict[str, Any]:
        return info_of(step, component_names=self.rubric.names)


class ToolEnv(AgentEnv):
    """An environment whose agent acts through `@tool` methods; a turn without a call is its final answer."""

    max_parallel_calls: ClassVar[int] = 8
    """Calls of one turn that are run; the model is told about the rest."""
    max_malformed_turns: ClassVar[int] = 3
    """Consecutive turns with nothing but malformed calls after which the episode ends with `parse_error`."""

    tool_policy: ClassVar[ToolPolicy] = ToolPolicy()
    """Which of the tools may be called."""

    def __init__(self, **options: Any) -> None:
        self.kits = Kits(type(self))
        tools = [item.bind(self) for item in tools_of_class(type(self))]
        self.toolbox: Toolbox = toolbox_of(
            [*tools, *self.kits.tools], inline_default=self.inline, policy=self.tool_policy
        )
        super().__init__(**options)
        self._malformed_turns = 0
        self._first_toolbox: Toolbox | None = None

    def use_tools(self, tools: Sequence[Tool]) -> None:
        """Replace the tools: from `setup` for this episode, from the constructor for all of them."""
        self.toolbox = replace(self.toolbox, tools=by_name(tools))

    def attach(self, *items: Toolkit | Callable[..., object]) -> None:
        """Add toolkits, or functions with `@tool`: from `setup` for this episode, from the constructor for all of them.

        A toolkit is closed when its episode is over, one of the constructor's when the environment is closed.
        """
        tools = list(self.toolbox.tools.values())
        for item in items:
            if not isinstance(item, Toolkit):
                tools.append(as_tool(item))
                continue
            item.joined(self)
            self.kits.add(item, lasting=self._first_toolbox is None)
            tools.extend(item.tools)
        self.use_tools(tools)

    def offer_only(self, names: Sequence[str]) -> None:
        """Offer, for the rest of the episode, only these of the present tools; calls of others are refused."""
        missing = [name for name in names if name not in self.toolbox.tools]
        if missing:
            raise DataError(_not_offered(self, missing, offered=tuple(self.toolbox.tools)))
        self.toolbox = replace(self.toolbox, tools={name: self.toolbox.tools[name] for name in names})

    def answer(self, text: str) -> Prompt | Awaitable[Prompt]:
        """Take a turn without tool calls; by default it ends the episode. May be async."""
        self.finish()
        return ""

    @property
    def tool_specs(self) -> tuple[dict[str, object], ...]:
        """Schemas of the tools that the model may call."""
        return self.toolbox.specs

    def random_action(self, rng: np.random.Generator) -> str | Message:
        """Call a random tool with random arguments of the right types."""
        names = list(self.toolbox.tools)
        if not names:
            return super().random_action(rng)
        name = names[int(rng.integers(len(names)))]
        arguments = random_arguments(self.toolbox.tools[name].parameters, rng)
        return tool_turn(name, arguments, call_id=f"call_{self._num_turns}_0")

    async def reset_async(self, *, seed: int | None = None, task: Task | None = None) -> Step:
        """Start an episode; same seed and task, same episode."""
        if self._state != "closed":
            await self._teardown_once()
        self._malformed_turns = 0
        # the tools and the audit log of one episode must not be seen by the next
        if self._first_toolbox is None:
            self._first_toolbox = self.toolbox
        self.toolbox = replace(self._first_toolbox, audit=[])
        if self.kits.attached:
            self.toolbox.tools = self.kits.renew(self, self.toolbox.tools)
        step = await super().reset_async(seed=seed, task=task)
        self.toolbox.caller = f"{type(self).__name__}/{self.task.task_id}/seed {self._base_seed}.{self._num_resets - 1}"
        return step

    async def close_async(self) -> None:
        """Free everything; idempotent."""
        try:
            await super().close_async()
        finally:
            await self._close_kits(self.kits.take_lasting())

    async def _play(self, turn: Message) -> tuple[tuple[Message, ...], int]:
        calls = turn.tool_calls
        if not calls:
            self._malformed_turns = 0
            with boundary("env", _place(type(self), "answer")):
                reply = await self._call(self.answer, turn.content)
                return (() if reply in ("", None) else as_messages(cast(Prompt, reply))), 0
        allowed = self.max_parallel_calls
        results = await self.toolbox.run_all(calls[:allowed], is_over=self._is_stopped)
        too_many = f"not run; at most {allowed} tool calls are allowed in one turn."
        results += [self.toolbox.refuse(call, too_many) for call in calls[allowed:]]
        if self._stop is StopReason.COMPLETED:
            self._stop = StopReason.TOOL_STOPPED
        malformed = sum(call.status != "ok" for call in calls)
        self._malformed_turns = self._malformed_turns + 1 if malformed == len(calls) else 0
        if self._stop is None and self._malformed_turns >= self.max_malformed_turns:
            self._stop = StopReason.PARSE_ERROR
        return tuple(result.to_message() for result in results), malformed

    def _is_stopped(self) -> bool:
        return self._stop is not None

    def _action_space(self) -> MessageSpace:
        return MessageSpace(tuple(self.toolbox.tools))

    def _never_waits(self) -> bool:
        return self.toolbox.never_waits and super()._never_waits() and self.kits.close_never_waits

    async def _free(self) -> None:
        await self._close_kits(self.kits.take_open())

    async def _close_kits(self, kits: Sequence[Toolkit]) -> None:
        if not kits:
            return
        try:
            with boundary("env", _place(type(kits[0]), "close")):
                await self._call(kits[0].close)
        finally:
            await self._close_kits(kits[1:])  # the others are freed whatever one of them does


def tool_turn(name: str, arguments: Mapping[str, object], *, call_id: str = "call_0", content: str = "") -> Message:
    """Return an assistant turn with one tool call."""
    call = ToolCall(call_id=call_id, name=name, arguments=arguments)
    return Message(role="assistant", content=content, tool_calls=(call,))


def group_rewards(env_class: type[AgentEnv]) -> tuple[Reward, ...]:
    """Return the components of an environment class that score whole groups."""
    return tuple(component for component in rewards_of_class(env_class) if component.when == "group")


def _not_offered(env: AgentEnv, names: Sequence[str], *, offered: Sequence[str]) -> str:
    named = ", ".join(names)
    return (
        f"task {env.task.task_id}: field 'tools' names {named}; {type(env).__name__} offers "
        f"{', '.join(offered) or 'no tool'}.{did_you_mean(names[0], offered)}"
    )


def _own_rewards(cls: type[AgentEnv]) -> tuple[Reward, ...]:
    return tuple(component for component in rewards_of_class(cls) if component.when != "group")


@functools.lru_cache(maxsize=1024)
def _place(cls: type[AgentEnv], hook: str) -> str:
    """Return the name of a hook for errors."""
    return f"{cls.__name__}.{hook}"


@functools.lru_cache(maxsize=256)
def _hooks_never_wait(cls: type[AgentEnv]) -> bool:
    """True when no hook or reward of the class can suspend, so that no event loop is needed."""
    hooks = [getattr(cls, name) for name in ("setup", "respond", "teardown", "answer") if hasattr(cls, name)]
    rewards = _own_rewards(cls)
    return (
        cls.inline
        and not any(is_async(hook) for hook in hooks)
        and not any(is_async(component.function) or component.inline is False for component in rewards)
    )


def _readable(message: Message) -> str:
    calls = [f"{call.name}({json.dumps(dict(call.arguments), default=str)})" for call in message.tool_calls]
    return " ".join([described_content(message), *calls]).strip()


def _garbage_text(action: object) -> str:
    try:
        return str(action)
    except RecursionError:
        return f"<{type(action).__name__}, nested too deeply to be shown>"

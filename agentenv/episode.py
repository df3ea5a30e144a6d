"""One episode while it is played: what an agent may do, the budgets, and the record that becomes a trajectory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import model_validator

from agentenv.config import Config
from agentenv.context import ContextConfig
from agentenv.engine.protocol import Completion, Engine, SamplingParams, check_completion
from agentenv.env import AgentEnv, Step
from agentenv.errors import EngineError, boundary
from agentenv.extension import extended
from agentenv.messages import Image, Message, images_of
from agentenv.offload import within
from agentenv.recorder import Recorder
from agentenv.renderer import Renderer, ToolSpecs
from agentenv.seeds import derive_seed
from agentenv.tasks import Task, tool_choice
from agentenv.trace import traced
from agentenv.trajectory import StopReason, Trajectory


class Sampling(Config):
    """How the policy's tokens are drawn."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass; 1 is off."""
    top_k: int = 0
    """0 is off."""


class Limits(Config):
    """Budgets of one episode. Tokens are counted by the model's tokenizer; times are wall-clock seconds."""

    max_turn_tokens: int = 512
    """Tokens that the policy may write in one turn."""
    max_episode_tokens: int = 8192
    """Tokens that the policy may write in one episode."""
    max_context_tokens: int = 16384
    """Length of prompt and completion together."""
    context: ContextConfig = ContextConfig()
    """What happens when that length is nearly reached."""
    max_observation_tokens: int = 4096
    """Tokens of one tool result or environment message; longer ones are cut, with a marker."""
    step_timeout_s: float = 120.0
    """One environment step, its tools included; terminal rewards have as long again."""
    episode_timeout_s: float = 900.0
    """One episode, from reset to its last step."""

    @model_validator(mode="after")
    def _summary_fits(self) -> Limits:
        context = self.context
        room = int((1 - context.threshold) * self.max_context_tokens)
        if context.when_full == "summarise" and room < context.max_summary_tokens:
            raise ValueError(
                f"above context.threshold {context.threshold} of max_context_tokens {self.max_context_tokens} there "
                f"are {room} tokens; context.max_summary_tokens is {context.max_summary_tokens}. Lower one of the two"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSpec:
    """Which episode to play.

    Attributes:
        env_id: registered id.
        env_kwargs: constructor arguments.
        task: None lets the environment choose by seed.
        seed: of the environment; equal for all members of a group.
        group_id: which group the episode belongs to.
        member: index within the group.
        run_seed: of the run; sampling seeds derive from (run, group, member, attempt, turn).
        attempt: counts retries.
    """

    env_id: str
    env_kwargs: Mapping[str, object] = field(default_factory=dict)
    task: Task | None = None
    seed: int = 0
    group_id: str = "0"
    member: int = 0
    run_seed: int = 0
    attempt: int = 0

    def derived_seed(self, *parts: int | str) -> int:
        """Return a seed that belongs to this episode and the given purpose."""
        return derive_seed(self.run_seed, self.group_id, self.member, self.attempt, *parts)

    def session_id(self) -> str:
        """Return the name of the episode for engines; fixed width, because some abort by prefix."""
        return f"{self.derived_seed('session'):016x}"


class Episode:
    """A running episode. Agents drive it; it keeps the record and watches budgets.

    Args:
        spec: which episode.
        env: a fresh environment; the runner owns and closes it.
        engine: where tokens come from.
        renderer: of the engine's model.
        limits: budgets.
        sampling: how tokens are drawn.
    """

    def __init__(
        self,
        spec: EpisodeSpec,
        *,
        env: AgentEnv,
        engine: Engine,
        renderer: Renderer,
        limits: Limits,
        sampling: Sampling,
    ) -> None:
        self.spec = spec
        self.env = env
        self.engine = engine
        self.renderer = renderer
        self.limits = limits
        self.sampling = sampling
        self.session_id = spec.session_id()
        self.recorder = Recorder()
        self.stop_reason: StopReason | None = None
        self.reward_components: Mapping[str, float] = {}
        self.tools: tuple[dict[str, object], ...] = ()  # known once the environment has started
        self.conversation: list[Message] = []
        self.counts: dict[str, float] = {}
        self._opening: tuple[Message, ...] | None = None
        self._started = time.perf_counter()
        self._engine_s = 0.0
        self._never_waits = False

    async def reset(self) -> tuple[Message, ...]:
        """Start the environment; returns the opening messages, observations cut to their budget.

        Only the first call starts anything; the runner makes it, because the task decides who plays.

        Raises:
            EpisodeError: side `"env"`.
            DataError: the task's row names a tool that the environment does not offer.
        """
        if self._opening is not None:
            return self._opening
        with boundary("env", f"{self.spec.env_id} reset"):
            step = await self.env.reset_async(seed=self.spec.seed, task=self.spec.task)
        names = tool_choice(self.env.task)
        if names is not None:
            self.env.offer_only(names)
        self.tools = self.env.tool_specs
        self._never_waits = self.env._never_waits()
        opening = self._cut(step.messages)
        self.conversation.extend(opening)
        self._opening = opening
        return opening

    def begin(self, messages: Sequence[Message] | None = None, *, tools: ToolSpecs | None = None) -> None:
        """Begin a token sequence with a fresh rendering; a second call is a break in history.

        Args:
            messages: what the policy is shown; the conversation by default.
            tools: those that the template is given; all by default.
        """
        shown = self.conversation if messages is None else messages
        ids = self.renderer.prompt_ids(shown, tools=self.tools if tools is None else tools)
        self.recorder.begin(ids, images=images_of(shown))

    def room(self, *, num_prompt_tokens: int | None = None, turn_tokens: int | None = None) -> int:
        """Return how many tokens the next turn may have; 0 or less when a budget is exhausted.

        Args:
            num_prompt_tokens: length of its prompt; None is the recorded sequence.
            turn_tokens: instead of `max_turn_tokens`.
        """
        prompt = len(self.recorder.token_ids) if num_prompt_tokens is None else num_prompt_tokens
        return min(
            self.limits.max_turn_tokens if turn_tokens is None else turn_tokens,
            self.limits.max_episode_tokens - self.recorder.num_sampled,
            self.limits.max_context_tokens - prompt,
        )

    def exhausted(self, *, num_prompt_tokens: int | None = None) -> StopReason:
        """Return which budget leaves no room."""
        prompt = len(self.recorder.token_ids) if num_prompt_tokens is None else num_prompt_tokens
        is_full = prompt >= self.limits.max_context_tokens
        return StopReason.CONTEXT_OVERFLOW if is_full else StopReason.MAX_TOKENS

    async def generate(self, *, turn_tokens: int | None = None) -> Completion:
        """Sample the next turn after the recorded ids, and record it.

        Args:
            turn_tokens: tokens at most, instead of `max_turn_tokens`.

        Raises:
            EpisodeError: side `"engine"`.
        """
        recorder = self.recorder
        completion = await self.sample(
            recorder.token_ids,
            max_tokens=self.room(turn_tokens=turn_tokens),
            turn=recorder.num_turns,
            images=recorder.images,
        )
        self.recorder.sample(completion)
        return completion

    @traced("generate")
    async def sample(
        self, prompt_ids: Sequence[int], *, max_tokens: int, turn: int, images: Sequence[Image] = ()
    ) -> Completion:
        """Sample a turn after any prompt, without recording it.

        Args:
            prompt_ids: the whole prompt.
            max_tokens: at least 1.
            turn: number of the turn; its seed derives from it.
            images: of the prompt, one for every run of placeholder ids.

        Raises:
            EpisodeError: side `"engine"`.
        """
        sampling = SamplingParams(
            max_tokens=max_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            top_k=self.sampling.top_k,
            stop_ids=self.renderer.stop_ids,
            seed=self.spec.derived_seed("turn", turn),
        )
        started = time.perf_counter()
        with boundary("engine", "generate"):
            completion = await self.engine.generate(
                prompt_ids,
                sampling,
                session_id=self.session_id,
                deadline_s=self.time_left_s(),
                images=images,
            )
            check_completion(completion)
            if completion.finish_reason == "abort":
                raise EngineError(f"the engine aborted the request after {len(completion.token_ids)} tokens")
        self._engine_s += time.perf_counter() - started
        return completion

    def record(self, completion: Completion) -> None:
        """Record a turn that did not come from the engine (a scripted policy)."""
        self.recorder.sample(completion)

    @traced("step")
    async def step(self, turn: Message, *, turn_index: int = -1) -> tuple[Message, ...]:
        """Play the assistant's turn in the environment; returns the new messages, cut to their budget.

        Sets `stop_reason` and `reward_components` when the environment ended.

        Args:
            turn: what the assistant says.
            turn_index: which recorded turn it is; the last one by default.

        Raises:
            EpisodeError: env, tool or reward failed, or the step ran past its deadline.
        """
        if self._never_waits:
            step = await self.env.step_async(turn)
        else:
            where = f"{self.spec.env_id} step"
            timeout_s = self.time_left_s() if self.env.waits_for_others else self.limits.step_timeout_s
            step = await within(self.env.step_async(turn), timeout_s=timeout_s, side="env", where=where)
        self.recorder.judge(
            num_tool_calls=len(turn.tool_calls),
            num_malformed_calls=step.num_malformed_calls,
            reward_components=step.turn_reward_components,
            turn=turn_index,
        )
        if step.stop_reason is not None:
            self._end(step)
        messages = self._cut(step.messages)
        self.conversation.append(turn)
        self.conversation.extend(messages)
        return messages

    async def truncate(self, reason: StopReason) -> None:
        """End the episode because a budget is exhausted; terminal rewards are still computed."""
        step = await within(
            self.env.truncate_async(reason),
            timeout_s=self.limits.step_timeout_s,
            side="env",
            where=f"{self.spec.env_id} scoring",
        )
        self._end(step)

    def observe(
        self,
        messages: Sequence[Message],
        *,
        is_closed: bool,
        history: Sequence[Message] | None = None,
        tools: ToolSpecs | None = None,
    ) -> None:
        """Append new messages to the record; where the template rewrites history, begin a new sequence.

        A new one begins also where the policy wrote an image placeholder: left in the prompt, it would take the place
        of an image. Rendered anew it is text.

        Args:
            messages: what the policy is shown next.
            is_closed: True when the sampled turn ended with a stop id.
            history: all that it is shown, `messages` included, for a fresh rendering; the conversation by default.
            tools: those that the template is given; all by default.
        """
        shown_tools = self.tools if tools is None else tools
        ids = self.renderer.continuation_ids(messages, is_closed=is_closed, tools=shown_tools)
        if ids is None or self.renderer.holds_placeholder(self.recorder.last_turn_ids):
            shown = self.conversation if history is None else history
            ids = self._added(shown, num_new=len(messages), is_closed=is_closed, tools=shown_tools)
        if ids is None:
            self.begin(history, tools=tools)
        else:
            self.recorder.observe(ids, images=images_of(messages))

    def count(self, name: str, by: float = 1.0) -> None:
        """Add to a metric of the trajectory."""
        self.counts[name] = self.counts.get(name, 0.0) + by

    def time_left_s(self) -> float:
        """Return the seconds until the episode's deadline, at least a millisecond."""
        return max(0.001, self.limits.episode_timeout_s - (time.perf_counter() - self._started))

    def trajectory(self, *, stop_reason: StopReason, error: str = "") -> Trajectory:
        """Return the record. Rewards of infrastructure failures are dropped: they say nothing about the policy."""
        return Trajectory(
            env_id=self.spec.env_id,
            task_id=self.env.task.task_id,
            group_id=self.spec.group_id,
            member=self.spec.member,
            seed=self.spec.seed,
            stop_reason=stop_reason,
            turns=self.recorder.turns(),
            sequences=self.recorder.sequences(),
            reward_components={} if error else dict(self.reward_components),
            messages=tuple(self.conversation),
            error=error,
            metrics={
                "episode_s": time.perf_counter() - self._started,
                "engine_s": self._engine_s,
                "history_breaks": float(self.recorder.num_breaks),
                **self.counts,
            },
            attempt=self.spec.attempt,
        )

    def _added(
        self, history: Sequence[Message], *, num_new: int, is_closed: bool, tools: ToolSpecs
    ) -> tuple[int, ...] | None:
        """Return what follows the record where the template does not say it in general; None where it is rewritten."""
        if self.renderer.holds_placeholder(self.recorder.last_turn_ids):
            return None
        known = self.recorder.token_ids
        whole = extended(
            self.renderer, known, history, num_known=len(history) - num_new, is_closed=is_closed, tools=tools
        )
        return None if whole is None else whole[len(known) :]

    def _end(self, step: Step) -> None:
        self.stop_reason = step.stop_reason
        turn_names = step.turn_reward_components
        self.reward_components = {k: v for k, v in step.reward_components.items() if k not in turn_names}

    def _cut(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        limit = self.limits.max_observation_tokens
        # a character is at most four bytes
        if all(len(message.content) * 4 <= limit and not message.images for message in messages):
            return messages
        if any(message.images for message in messages):
            _ = self.renderer.vision  # a model that reads text only is the caller's mistake, not the environment's
        with boundary("env", f"{self.spec.env_id} observation"):
            return tuple(self.renderer.cut(message, max_tokens=limit, keep="middle") for message in messages)

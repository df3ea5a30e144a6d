"""One episode while it is played: what an agent may do, the budgets, and the record that becomes a trajectory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from agentenv.config import Config
from agentenv.engine.protocol import Completion, Engine, SamplingParams, check_completion
from agentenv.env import AgentEnv, Step
from agentenv.errors import EngineError, boundary
from agentenv.messages import Message
from agentenv.offload import within
from agentenv.recorder import Recorder
from agentenv.renderer import CutSide, Renderer
from agentenv.seeds import derive_seed
from agentenv.tasks import Task
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
    max_observation_tokens: int = 4096
    """Tokens of one tool result or environment message; longer ones are cut, with a marker."""
    keep_observation: CutSide = "middle"
    """Which side of a cut observation stays: head, tail, or both ("middle" is cut out)."""
    step_timeout_s: float = 120.0
    """One environment step, its tools included."""
    episode_timeout_s: float = 900.0
    """One episode, from reset to its last step."""
    scoring_timeout_s: float = 120.0
    """Grace for terminal rewards after the episode ended or ran out of budget."""


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
        self.tools = env.tool_specs
        self.conversation: list[Message] = []
        self._started = time.perf_counter()
        self._engine_s = 0.0
        self._never_waits = False

    async def reset(self) -> tuple[Message, ...]:
        """Start the environment; returns the opening messages, observations cut to their budget."""
        with boundary("env", f"{self.spec.env_id} reset"):
            step = await self.env.reset_async(seed=self.spec.seed, task=self.spec.task)
        self.tools = self.env.tool_specs
        self._never_waits = self.env._never_waits()
        opening = self._cut(step.messages)
        self.conversation.extend(opening)
        return opening

    def room(self) -> int:
        """Return how many tokens the next turn may have; 0 or less when a budget is exhausted."""
        return min(
            self.limits.max_turn_tokens,
            self.limits.max_episode_tokens - self.recorder.num_sampled,
            self.limits.max_context_tokens - len(self.recorder.token_ids),
        )

    async def generate(self) -> Completion:
        """Sample the next turn after the recorded ids, and record it.

        Raises:
            EpisodeError: side `"engine"`.
        """
        turn = self.recorder.num_turns
        sampling = SamplingParams(
            max_tokens=self.room(),
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            top_k=self.sampling.top_k,
            stop_ids=self.renderer.stop_ids,
            seed=self.spec.derived_seed("turn", turn),
        )
        started = time.perf_counter()
        with boundary("engine", "generate"):
            completion = await self.engine.generate(
                self.recorder.token_ids, sampling, session_id=self.session_id, deadline_s=self._time_left_s()
            )
            check_completion(completion)
            if completion.finish_reason == "abort":
                raise EngineError(f"the engine aborted the request after {len(completion.token_ids)} tokens")
        self._engine_s += time.perf_counter() - started
        self.recorder.sample(completion)
        return completion

    def record(self, completion: Completion) -> None:
        """Record a turn that did not come from the engine (a scripted policy)."""
        self.recorder.sample(completion)

    async def step(self, turn: Message) -> tuple[Message, ...]:
        """Play the assistant's turn in the environment; returns the new messages, cut to their budget.

        Sets `stop_reason` and `reward_components` when the environment ended.

        Raises:
            EpisodeError: env, tool or reward failed, or the step ran past its deadline.
        """
        if self._never_waits:
            step = await self.env.step_async(turn)
        else:
            where = f"{self.spec.env_id} step"
            step = await within(
                self.env.step_async(turn), timeout_s=self.limits.step_timeout_s, side="env", where=where
            )
        self.recorder.judge(
            num_tool_calls=len(turn.tool_calls),
            num_malformed_calls=step.num_malformed_calls,
            reward_components=step.turn_reward_components,
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
            timeout_s=self.limits.scoring_timeout_s,
            side="env",
            where=f"{self.spec.env_id} scoring",
        )
        self._end(step)

    def observe(self, messages: tuple[Message, ...], *, is_closed: bool) -> None:
        """Append new messages to the record; where the template rewrites history, begin a new sequence.

        Args:
            messages: what the environment said.
            is_closed: True when the sampled turn ended with a stop id.
        """
        ids = self.renderer.continuation_ids(messages, is_closed=is_closed, tools=self.tools)
        if ids is not None:
            self.recorder.observe(ids)
        else:
            self.recorder.begin(self.renderer.prompt_ids(self.conversation, tools=self.tools))

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
            },
            attempt=self.spec.attempt,
        )

    def _end(self, step: Step) -> None:
        self.stop_reason = step.stop_reason
        turn_names = step.turn_reward_components
        self.reward_components = {k: v for k, v in step.reward_components.items() if k not in turn_names}

    def _cut(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        limit = self.limits.max_observation_tokens
        if all(len(message.content) * 4 <= limit for message in messages):  # a character is at most four bytes
            return messages
        return tuple(
            Message(
                role=message.role,
                content=self.renderer.cut_text(message.content, max_tokens=limit, keep=self.limits.keep_observation),
                tool_call_id=message.tool_call_id,
                name=message.name,
            )
            for message in messages
        )

    def _time_left_s(self) -> float:
        return max(0.001, self.limits.episode_timeout_s - (time.perf_counter() - self._started))

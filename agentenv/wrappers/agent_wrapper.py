"""`AgentWrapper`: a `gymnasium.Wrapper` whose hooks see turns and steps, in Gymnasium's loop and under the runner."""

from __future__ import annotations

from collections.abc import Container, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from agentenv.errors import UsageError, boundary
from agentenv.messages import Message, message_from_dict
from agentenv.reward import Reward
from agentenv.spaces import Action
from agentenv.step import Step, has_terminated, info_of, observation_of
from agentenv.tasks import Task
from agentenv.trajectory import StopReason

GymnasiumStep = tuple[str, float, bool, bool, dict[str, Any]]

SILENCE = Message(role="assistant", content="")
"""The turn that `after` is given where the episode was ended from outside, so that nobody spoke."""

_NOTHING: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """A turn that a wrapper answers itself: the environment never sees it, yet it counts as a turn.

    Attributes:
        messages: what the agent is told instead.
    """

    messages: tuple[Message, ...]


Verdict = Message | Withheld | StopReason
"""What becomes of a turn: it is played (perhaps changed), answered by the wrapper, or ends the episode unplayed."""


class AgentWrapper(gymnasium.Wrapper[str, Action, str, Action], RecordConstructorArgs):
    """Base of the wrappers. Subclasses override `opening`, `before` and `after`; all three are plain functions.

    It wraps an `AgentEnv`, another wrapper of ours, or (in Gymnasium's loop only) one of Gymnasium's wrappers around
    them. What it does not define it takes from the environment, so agents, policies and the runner see one contract.

    Args:
        env: what is wrapped.
        **arguments: constructor arguments of the subclass, recorded so that the spec can make it again.

    Raises:
        UsageError: `env` is no environment of this package.
    """

    component: str = ""
    """Name of the reward component that the wrapper adds; "" for none."""

    def __init__(self, env: gymnasium.Env[str, Action], **arguments: Any) -> None:
        if not hasattr(env.unwrapped, "step_async") and not hasattr(env, "step_async"):
            raise UsageError(
                f"{type(self).__name__} wraps environments of agentenv, not {type(env.unwrapped).__name__}; "
                "wrap a plain Gymnasium environment in Verbaliser first"
            )
        RecordConstructorArgs.__init__(self, **arguments)
        gymnasium.Wrapper.__init__(self, env)
        self._num_withheld = 0
        if self.component and self.component in self._inner("component_names"):
            raise UsageError(f"there is a reward component {self.component!r} already; give this wrapper another name")

    # What subclasses write.

    def opening(self, step: Step) -> Step:
        """Return what the agent is shown at first; called after every reset."""
        return step

    def before(self, turn: Message) -> Verdict:
        """Decide what becomes of an assistant's turn."""
        return turn

    def after(self, turn: Message, step: Step) -> Step:
        """Return what the agent gets for its turn; `turn` is what it said, before anything was changed."""
        return step

    def paid(self, step: Step, value: float) -> Step:
        """Add the wrapper's own reward component to a step.

        Raises:
            EpisodeError: side `"reward"`: the value is not finite.
        """
        own = {self.component: Reward(name=self.component, function=float).check(value)}
        return replace(
            step,
            reward_components={**step.reward_components, **own},
            turn_reward_components={**step.turn_reward_components, **own},
        )

    # The contract of an environment, as far as a wrapper changes it.

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of all per-episode reward components, the wrapper's own at the end."""
        return (*self._inner("component_names"), *([self.component] if self.component else []))

    @property
    def turn_component_names(self) -> tuple[str, ...]:
        """Names of the components that every turn has."""
        return (*self._inner("turn_component_names"), *([self.component] if self.component else []))

    @property
    def num_turns(self) -> int:
        """Assistant turns so far, those included that never reached the environment."""
        return self._inner("num_turns") + self._num_withheld

    async def reset_async(self, *, seed: int | None = None, task: Task | None = None) -> Step:
        """Start an episode."""
        self._num_withheld = 0
        return self._opened(await self._next().reset_async(seed=seed, task=task))

    async def step_async(self, turn: Message) -> Step:
        """Play one assistant turn; as `AgentEnv.step_async`."""
        inner, script, given = self._next(), self._script(turn), None
        while True:
            try:
                wanted = script.send(given)
            except StopIteration as done:
                return done.value
            play = inner.step_async if isinstance(wanted, Message) else inner.truncate_async
            given = await play(wanted)

    async def truncate_async(self, reason: StopReason) -> Step:
        """End the episode from outside."""
        step = await self._next().truncate_async(reason)
        return self._after(SILENCE, step)

    async def close_async(self) -> None:
        """Free everything; idempotent."""
        await self._next().close_async()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode."""
        self._num_withheld = 0
        _, info = self.env.reset(seed=seed, options=options)
        step = self._opened(_step_of(info, turn_names=()))
        return observation_of(step.messages), {**info, **self._info(step)}

    def step(self, action: Action) -> GymnasiumStep:
        """Play one assistant turn, given as text or as a message dict."""
        turn: Message = self.read_action(action)
        script, last, given = self._script(turn), _Sums(), None
        turn_names = self._inner("turn_component_names")
        num_malformed = sum(call.status != "ok" for call in turn.tool_calls)
        while True:
            try:
                wanted = script.send(given)
            except StopIteration as done:
                return self._outcome(done.value, last)
            if isinstance(wanted, Message):
                out = cast(GymnasiumStep, self.env.step(cast(Action, wanted.to_dict())))
            else:
                out = self._inner("truncate")(wanted)
            given = _step_of(out[4], turn_names=turn_names, num_malformed=num_malformed)
            last = last.plus(out, given)

    def truncate(self, reason: StopReason = StopReason.MAX_TOKENS) -> GymnasiumStep:
        """End the episode from outside; same shape as `step`."""
        out = self._inner("truncate")(reason)
        step = _step_of(out[4], turn_names=())
        return self._outcome(self._after(SILENCE, step), _Sums().plus(out, step))

    def __getattr__(self, name: str) -> Any:
        """Take what a wrapper does not define from the environment."""
        if name.startswith("_") or name == "env":  # before the constructor has run there is none to ask
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return self._inner(name)

    # Private.

    def _script(self, turn: Message) -> Generator[Message | StopReason, Step | None, Step]:
        """Say what is to be played or truncated, one thing after the other, and return the step."""
        with boundary("env", f"{type(self).__name__}.before"):
            verdict = self.before(turn)
        if isinstance(verdict, Withheld):
            self._require_open("step")
            self._num_withheld += 1
            step = Step(
                messages=verdict.messages,
                reward_components=_NOTHING,
                turn_reward_components=_NOTHING,
                stop_reason=None,
                num_malformed_calls=sum(call.status != "ok" for call in turn.tool_calls),
            )
        else:
            step = yield verdict
            assert step is not None
        if step.stop_reason is None and self._num_withheld and self.num_turns >= self._inner("max_turns"):
            ended = yield StopReason.MAX_TURNS
            assert ended is not None
            components = {**step.reward_components, **ended.reward_components}
            step = replace(step, reward_components=components, stop_reason=ended.stop_reason)
        return self._after(turn, step)

    def _opened(self, step: Step) -> Step:
        with boundary("env", f"{type(self).__name__}.opening"):
            return self.opening(step)

    def _after(self, turn: Message, step: Step) -> Step:
        with boundary("env", f"{type(self).__name__}.after"):
            return self.after(turn, step)

    def _outcome(self, step: Step, sums: _Sums) -> GymnasiumStep:
        # a wrapper of Gymnasium in between may have changed the reward: what is ours is added to it
        reward = sums.reward + sum(step.reward_components.values(), 0.0) - sums.components
        ended = step.stop_reason is not None and not sums.is_over
        terminated = sums.terminated or (ended and has_terminated(step.stop_reason))
        truncated = sums.truncated or (ended and not has_terminated(step.stop_reason))
        return observation_of(step.messages), reward, terminated, truncated, {**sums.info, **self._info(step)}

    def _info(self, step: Step) -> dict[str, Any]:
        return info_of(step, component_names=self.component_names)

    def _never_waits(self) -> bool:
        return self._next()._never_waits()

    def _require_open(self, verb: str) -> None:
        self._inner("_require_open")(verb)

    def _inner(self, name: str) -> Any:
        return self.env.get_wrapper_attr(name)

    def _next(self) -> Any:
        """Return the wrapped environment for the runner's contract, which Gymnasium's wrappers do not have."""
        if hasattr(self.env, "step_async"):
            return self.env
        raise UsageError(
            f"{type(self).__name__} stands around Gymnasium's {type(self.env).__name__}, through which the runner "
            "cannot play; wrap what `make_bare` returns, or pass the option `wrap`"
        )


class _Sums(NamedTuple):
    """What Gymnasium's tuples of one turn add up to; a turn may be played and then truncated."""

    reward: float = 0.0
    components: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Mapping[str, Any] = {}

    @property
    def is_over(self) -> bool:
        return self.terminated or self.truncated

    def plus(self, out: GymnasiumStep, step: Step) -> _Sums:
        return _Sums(
            reward=self.reward + out[1],
            components=self.components + sum(step.reward_components.values(), 0.0),
            terminated=self.terminated or out[2],
            truncated=self.truncated or out[3],
            info=out[4],
        )


def _step_of(info: Mapping[str, Any], *, turn_names: Container[str], num_malformed: int = 0) -> Step:
    """Read a step back from `info`, in which components that were not scored stand as 0."""
    stop, components = info["stop_reason"], info["reward_components"]
    of_turn = {name: value for name, value in components.items() if name in turn_names}
    return Step(
        messages=tuple(message_from_dict(message) for message in info["messages"]),
        reward_components=components if stop else of_turn,
        turn_reward_components=of_turn,
        stop_reason=StopReason(stop) if stop else None,
        num_malformed_calls=num_malformed,
    )

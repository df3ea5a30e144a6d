"""An environment that does harm where it is told to, and a runner that plays it once badly and once well."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentenv import Message, ToolEnv, reward, tool, tool_turn
from agentenv.engine.protocol import Engine
from agentenv.engine.scripted import ScriptedEngine
from agentenv.episode import EpisodeSpec, Limits
from agentenv.renderer import Renderer
from agentenv.runner import Runner, RunnerConfig
from agentenv.tally import EpisodeTally
from agentenv.trajectory import StopReason, Trajectory

ENV_ID = "test/Harmful-v0"
Harm = Callable[[], object]


def nothing() -> None:
    """Do no harm."""


@dataclass
class Told:
    """Where harm is done, how, and what was torn down."""

    where: str = ""
    harm: Harm = nothing
    num_teardowns: int = 0
    closed: list[str] = field(default_factory=list)

    def at(self, where: str) -> object:
        return self.harm() if where == self.where else None


class InThread(ToolEnv):
    """Synchronous hooks, run in threads. Reward 1."""

    def __init__(self, told: Told, **options: Any) -> None:
        self.told = told
        super().__init__(hook_timeout_s=0.3, **options)

    def setup(self, rng, task):
        self.told.at("setup")
        return "go"

    def answer(self, text):
        self.told.at("step")
        self.finish()
        return ""

    def teardown(self):
        self.told.num_teardowns += 1
        self.told.at("close")

    @tool(timeout_s=0.3)
    def act(self) -> str:
        """Act."""
        self.told.at("tool")
        return "ok"

    @reward(timeout_s=0.3)
    def score(self) -> float:
        self.told.at("reward")
        return 1.0 if self.told.where != "value" else self.told.harm()  # type: ignore[return-value]


class Inline(InThread):
    """The same on the event loop."""

    inline = True


class Awaited(InThread):
    """The same as coroutines."""

    async def setup(self, rng, task):  # type: ignore[override]
        await self._do("setup")
        return "go"

    async def answer(self, text):  # type: ignore[override]
        await self._do("step")
        self.finish()
        return ""

    async def teardown(self):  # type: ignore[override]
        self.told.num_teardowns += 1
        await self._do("close")

    @tool(timeout_s=0.3)
    async def act(self) -> str:  # type: ignore[override]
        """Act."""
        await self._do("tool")
        return "ok"

    @reward(timeout_s=0.3)
    async def score(self) -> float:  # type: ignore[override]
        await self._do("reward")
        return 1.0

    async def _do(self, where: str) -> None:
        await asyncio.sleep(0)
        done = self.told.at(where)
        if asyncio.iscoroutine(done):
            await done


def script(renderer: Renderer) -> list[Sequence[int]]:
    """Call the tool, then say that it is done."""
    return [
        renderer.turn_ids(tool_turn("act", {})),
        renderer.turn_ids(Message(role="assistant", content="done")),
    ]


def runner_of(
    renderer: Renderer,
    make: Callable[[EpisodeSpec], ToolEnv],
    *,
    engine: Engine | None = None,
    limits: Limits | None = None,
    max_retries: int = 0,
    max_episodes: int = 512,
) -> Runner:
    """Return a runner that counts."""
    config = RunnerConfig(max_retries=max_retries, limits=limits or Limits(), max_episodes=max_episodes)
    used = ScriptedEngine(script(renderer)) if engine is None else engine
    runner = Runner(engine=used, renderer=renderer, config=config, make_env=make)
    runner.tally = EpisodeTally()
    return runner


def tally_of(runner: Runner) -> EpisodeTally:
    """Return what a runner of `runner_of` has counted."""
    assert runner.tally is not None
    return runner.tally


def spec(index: int) -> EpisodeSpec:
    """Return episode number `index`."""
    return EpisodeSpec(env_id=ENV_ID, group_id=str(index))


async def bad_then_good(
    renderer: Renderer,
    kind: type[InThread],
    told: Told,
    *,
    limits: Limits | None = None,
    timeout_s: float = 10.0,
) -> tuple[Trajectory, Runner]:
    """Play an episode with the fault and one without it; the second must be scored 1, and both be counted.

    Returns:
        The first trajectory, and the runner.
    """

    def make(which: EpisodeSpec) -> ToolEnv:
        return kind(told if which.group_id == "0" else Told())

    runner = runner_of(renderer, make, limits=limits)
    async with asyncio.timeout(timeout_s):
        bad = await runner.run_episode(spec(0))
        good = await runner.run_episode(spec(1))
    assert (good.stop_reason, good.reward) == (StopReason.COMPLETED, 1.0)
    assert runner.tally is not None
    ended = {reason: count for reason, count in runner.tally.num_ended.items() if count}
    assert ended == {bad.stop_reason: 1, StopReason.COMPLETED: 1}
    assert not runner.running
    assert runner.admission.num_running == 0
    return bad, runner

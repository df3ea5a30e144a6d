"""The runner: statuses, retries, deadlines, cancellation, groups, and close exactly once."""

import asyncio
import math

import pytest

from agentenv import StopReason, ToolEnv, reward, tool, tool_turn
from agentenv.agent.policy import PolicyAgent
from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.episode import EpisodeSpec, Limits, Sampling
from agentenv.runner import GroupSpec, Runner, RunnerConfig

SPEC = EpisodeSpec(env_id="test/Probe-v0")


class Probe(ToolEnv):
    """Fails where it is told to."""

    inline = True

    def __init__(self, fail: str = "", **options):
        self.fail, self.num_teardowns, self.num_setups = fail, 0, 0
        super().__init__(**options)

    def setup(self, rng, task):
        self.num_setups += 1
        if self.fail == "setup":
            raise OSError("no database")
        return "go"

    def teardown(self):
        self.num_teardowns += 1
        if self.fail == "close":
            raise OSError("cannot close")

    def answer(self, text):
        if self.fail == "answer":
            raise KeyError("x")
        self.finish()
        return ""

    @tool
    def act(self) -> str:
        """Act."""
        if self.fail == "tool":
            raise ConnectionError("server down")
        return "ok"

    @tool(timeout_s=0.05)
    async def hang(self) -> str:
        """Hang."""
        await asyncio.sleep(60)
        return "never"

    @reward
    def score(self) -> float:
        return {"nan": math.nan, "none": None, "text": "1.0"}.get(self.fail, 1.0)  # type: ignore[return-value]


def runner_of(renderer, script, *, fail="", faults=None, envs=None, latency_s=0.0, **config):
    made = [] if envs is None else envs

    def make_env(spec):
        made.append(Probe(fail))
        return made[-1]

    engine = ScriptedEngine(script, faults=faults, latency_s=latency_s)
    return Runner(engine=engine, renderer=renderer, config=RunnerConfig(**config), make_env=make_env)


@pytest.mark.parametrize(
    ("fail", "turn", "status"),
    [
        ("setup", "done", StopReason.ENV_ERROR),
        ("answer", "done", StopReason.ENV_ERROR),
        ("close", "done", StopReason.ENV_ERROR),
        ("tool", tool_turn("act", {}), StopReason.TOOL_ERROR),
        ("", tool_turn("hang", {}), StopReason.TOOL_ERROR),
        ("nan", "done", StopReason.REWARD_ERROR),
        ("none", "done", StopReason.REWARD_ERROR),
        ("text", "done", StopReason.REWARD_ERROR),
    ],
)
async def test_a_failure_becomes_a_trajectory_with_a_status_and_no_reward(renderer, fail, turn, status):
    envs = []
    ids = renderer.turn_ids(turn if not isinstance(turn, str) else _say(turn))

    trajectory = await runner_of(renderer, [ids], fail=fail, envs=envs, max_retries=0).run_episode(SPEC)

    assert trajectory.stop_reason is status
    assert trajectory.error
    assert not trajectory.is_scored
    assert trajectory.reward == 0
    assert trajectory.reward_components == {}
    assert [env.num_teardowns for env in envs] == [env.num_setups for env in envs] == [1]


async def test_a_successful_episode_closes_its_environment_once(renderer):
    envs = []
    trajectory = await runner_of(renderer, [renderer.turn_ids(_say("done"))], envs=envs).run_episode(SPEC)
    assert trajectory.reward_components == {"score": 1.0}
    assert [env.num_teardowns for env in envs] == [1]


@pytest.mark.fault(
    "engine fails, aborts, sends NaN or too few log-probs",
    then="the retry is scored",
    metric="agentenv_episode_retries_total",
)
@pytest.mark.parametrize("fault", ["fail_every", "abort_every", "bad_logprob_every", "short_logprobs_every"])
async def test_an_engine_fault_is_retried_once_and_the_second_attempt_counts(renderer, fault):
    # requests 0, 2, 4 ... are answered well, 1, 3, 5 ... are hit: with retries every second episode needs one
    script = [renderer.turn_ids(_say("done"))]
    runner = runner_of(renderer, script, faults=Faults(**{fault: 2}), max_retries=1)

    first, second = await runner.run_episode(SPEC), await runner.run_episode(SPEC)

    assert (first.attempt, second.attempt) == (0, 1)
    assert first.is_scored
    assert second.is_scored
    assert runner.num_retries == 1


async def test_an_engine_that_hangs_ends_with_the_episode_deadline(renderer):
    limits = Limits(episode_timeout_s=0.1)
    script = [renderer.turn_ids(_say("done"))]
    runner = runner_of(renderer, script, faults=Faults(hang_every=1), max_retries=0, limits=limits)

    trajectory = await asyncio.wait_for(runner.run_episode(SPEC), timeout=5)

    assert trajectory.stop_reason in (StopReason.DEADLINE, StopReason.ENGINE_ERROR)
    assert not trajectory.is_scored


async def test_cancelling_the_runner_closes_every_environment(renderer):
    envs = []
    script = [renderer.turn_ids(_say("done"))]
    runner = runner_of(renderer, script, envs=envs, latency_s=30)
    task = asyncio.create_task(runner.run_group(GroupSpec(group_id="g", env_id=SPEC.env_id, size=5)))
    await asyncio.sleep(0.05)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [env.num_teardowns for env in envs] == [1] * 5
    assert runner.admission.num_running == 0


async def test_leaving_the_stream_of_groups_early_cancels_the_rest(renderer):
    envs = []
    runner = runner_of(renderer, [renderer.turn_ids(_say("done"))], envs=envs, latency_s=0.01, max_episodes=4)
    stream = runner.run(GroupSpec(group_id=str(i), env_id=SPEC.env_id) for i in range(100))

    async for _ in stream:
        break
    await stream.aclose()

    assert len(envs) < 20
    assert all(env.num_teardowns == 1 for env in envs)


async def test_groups_come_back_in_the_order_given_and_never_more_than_allowed_run_at_once(renderer):
    running, most = 0, 0

    class Counting(Probe):
        async def setup(self, rng, task):  # type: ignore[override]
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001 * float(rng.random()))
            return "go"

        def teardown(self):
            nonlocal running
            running -= 1

    engine = ScriptedEngine([renderer.turn_ids(_say("done"))])
    runner = Runner(
        engine=engine, renderer=renderer, config=RunnerConfig(max_episodes=3), make_env=lambda spec: Counting()
    )
    specs = [GroupSpec(group_id=str(i), env_id=SPEC.env_id, seed=i, size=2) for i in range(10)]

    groups = await runner.run_all(specs)

    assert [group.group_id for group in groups] == [str(i) for i in range(10)]
    assert most <= 3


async def test_members_of_a_group_share_the_environment_seed_and_differ_in_their_sampling_seed(renderer):
    engine = ScriptedEngine([renderer.turn_ids(tool_turn("guess", {"number": 8}))], keep_exchanges=True)
    runner = Runner(engine=engine, renderer=renderer)

    group = await runner.run_group(GroupSpec(group_id="g", env_id="agentenv/GuessNumber-v0", seed=3, size=4))

    assert len({t.messages[2].content for t in group.trajectories}) == 1
    first_turns = [e.request.sampling.seed for e in engine.exchanges if e.request.turn == 0]
    assert len(set(first_turns)) == 4


async def test_the_same_seeds_play_the_same_episodes(renderer):
    async def once():
        runner = Runner(engine=ScriptedEngine([()]), renderer=renderer, agent=PolicyAgent("demonstrate"))
        specs = [GroupSpec(group_id=str(i), env_id="agentenv/GuessNumber-v0", seed=i, size=3) for i in range(5)]
        return [[t.messages for t in group.trajectories] for group in await runner.run_all(specs)]

    assert await once() == await once()


async def test_group_rewards_are_added_once_the_group_is_complete(renderer):
    from agentenv.reward import Reward, best_of_group, score_group

    runner = Runner(engine=ScriptedEngine([()]), renderer=renderer, agent=PolicyAgent("demonstrate"))
    group = await runner.run_group(GroupSpec(group_id="g", env_id="agentenv/GuessNumber-v0", seed=3, size=8))
    best = Reward(name="best", function=best_of_group, when="group", weight=0.5, inline=True)

    scored = await score_group([best], group.trajectories)

    returns = [t.reward for t in group.trajectories]
    assert len(set(returns)) == 2, "the seed must give a mixed group"
    expected = 0.5 if sorted(returns)[3] + sorted(returns)[4] < 2 else 0.0
    assert [t.reward_components["best"] for t in scored] == [expected * value for value in returns]


async def test_observations_are_cut_by_tokens_with_a_marker(renderer):
    class Long(ToolEnv):
        """Says much."""

        inline = True

        def setup(self, rng, task):
            return "go"

        @tool
        def read(self) -> str:
            """Read."""
            return "é" * 500

    engine = ScriptedEngine([renderer.turn_ids(tool_turn("read", {})), renderer.turn_ids(_say("done"))])
    config = RunnerConfig(limits=Limits(max_observation_tokens=101))
    trajectory = await Runner(
        engine=engine, renderer=renderer, config=config, make_env=lambda spec: Long()
    ).run_episode(SPEC)

    content = trajectory.messages[2].content
    assert "tokens omitted" in content
    # 101 byte tokens: 51 at the head, 50 at the tail; "é" is two of them and never cut in half
    assert content.count("é") in (50, 51)
    assert "\ufffd" not in content


async def test_an_agent_that_returns_early_is_named(renderer):
    class Lazy:
        async def play(self, episode):
            await episode.reset()

    runner = Runner(
        engine=ScriptedEngine([()]),
        renderer=renderer,
        agent=Lazy(),
        make_env=lambda spec: Probe(),
        config=RunnerConfig(max_retries=0),
    )
    trajectory = await runner.run_episode(SPEC)
    assert trajectory.stop_reason is StopReason.ENV_ERROR
    assert "Lazy returned before the episode ended" in trajectory.error


async def test_sampling_parameters_reach_the_engine(renderer):
    engine = ScriptedEngine([renderer.turn_ids(_say("done"))], keep_exchanges=True)
    runner = Runner(
        engine=engine,
        renderer=renderer,
        sampling=Sampling(temperature=0.7, top_p=0.9, top_k=5),
        make_env=lambda spec: Probe(),
    )
    await runner.run_episode(SPEC)
    asked = engine.exchanges[0].request.sampling
    assert (asked.temperature, asked.top_p, asked.top_k, asked.stop_ids) == (0.7, 0.9, 5, renderer.stop_ids)


def _say(text):
    from agentenv import Message

    return Message(role="assistant", content=text)

"""`check_env` finds each broken promise, and finds nothing where all are kept."""

import asyncio
import random

import pytest

from agentenv import AgentEnv, Task, ToolEnv, check_env, register, reward, tool
from agentenv.check import CheckReport, CheckResult
from agentenv.check_promises import PROMISES
from agentenv.errors import CheckFailed, UsageError
from agentenv.tool import as_tool


class Coin(ToolEnv):
    """Call heads or tails. Reward: 1.0 if right, else 0.0."""

    inline = True
    oracle_threshold = 1.0
    random_threshold = 0.8

    def setup(self, rng, task):
        self.side = ("heads", "tails")[int(rng.integers(2))]
        self.called = ""
        return f"Coin {int(rng.integers(10**9))}: heads or tails?"

    @tool
    def call(self, side: str) -> str:
        """Call the coin.

        Args:
            side: heads or tails.
        """
        self.called = side
        self.finish()
        return self.side

    @reward(low=0.0, high=1.0)
    def right(self) -> float:
        return float(self.called == self.side)

    def oracle(self):
        return self.turn(self.side)

    def random_action(self, rng):
        return self.turn(("heads", "tails")[int(rng.integers(2))])

    def cheat(self, rng):
        return self.turn("heads or tails")

    def turn(self, side):
        return f'<tool_call>{{"name": "call", "arguments": {{"side": "{side}"}}}}</tool_call>'


def failures(env, **options):
    report = check_env(env, num_seeds=12, raise_on_failure=False, **options)
    return {result.name: result.detail for result in report.failures}


def test_an_honest_environment_passes_as_id_as_class_and_as_instance():
    register("test/Coin-v0", f"{__name__}:Coin")
    for env in ("test/Coin-v0", Coin, Coin()):
        report = check_env(env, num_seeds=12)
        assert report.is_ok
        assert len(report.rows) == len(PROMISES) == 17
        assert all(status in ("ok", "skipped") for _, status, _ in report.rows)
    rows = check_env("test/Coin-v0", num_seeds=12).rows
    assert [(name, detail) for name, status, detail in rows if status == "skipped"] == [
        ("its README describes it", "registered without a README.md beside its module")
    ]


def test_an_instance_is_copied_and_stays_fresh():
    env = Coin()
    check_env(env, num_seeds=12)
    assert env.conversation == []
    env.reset(seed=0)
    with pytest.raises(UsageError, match="was played already"):
        check_env(env)


def test_an_asynchronous_environment_with_threads_passes():
    class Slow(Coin):
        inline = False

        async def setup(self, rng, task):  # type: ignore[override]
            await asyncio.sleep(0)
            return super().setup(rng, task)

        async def teardown(self):
            await asyncio.sleep(0)

    check_env(Slow, num_seeds=12)


def test_weak_oracles_and_lucky_random_policies_are_found():
    class Weak(Coin):
        random_threshold = 0.1

        def oracle(self):
            return self.turn("heads")

    found = failures(Weak)
    assert set(found) == {"the oracle solves it", "the random policy does not"}
    assert "1 is promised" in found["the oracle solves it"]
    assert "at most 0.1 is promised" in found["the random policy does not"]


def test_an_environment_without_an_oracle_is_skipped_there():
    class NoOracle(AgentEnv):
        inline = True

        def setup(self, rng, task):
            return f"Say {int(rng.integers(10**9))}."

    report = check_env(NoOracle, num_seeds=5)
    assert ("the oracle solves it", "skipped", "it has no oracle") in report.rows


def test_chance_from_outside_the_seed_is_found():
    class Global(Coin):
        def setup(self, rng, task):
            super().setup(rng, task)
            return f"Coin {random.random()}"

    found = failures(Global)
    assert "observation and info differ at reset" in found["same seed, same episode"]


def test_state_that_leaks_from_one_episode_into_the_next_is_found():
    class Leaky(Coin):
        num_episodes = 0

        def setup(self, rng, task):
            super().setup(rng, task)
            self.num_episodes += 1
            return f"Episode {self.num_episodes}"

    assert "a fresh and a used environment" in failures(Leaky)["same seed, same episode"]


def test_an_environment_that_stumbles_over_garbage_is_found():
    class Fragile(Coin):
        def answer(self, text):
            int(text)
            self.finish()
            return ""

    found = failures(Fragile)
    assert "raised EpisodeError: env failure in Fragile.answer: ValueError" in found["garbage actions never raise"]


def test_an_info_that_changes_its_shape_or_takes_a_reserved_key_is_found():
    class Changing(Coin):
        def _info(self, step):
            return {**super()._info(step), **({"extra": 1} if step.stop_reason else {})}

    class Reserved(Coin):
        def _info(self, step):
            return {**super()._info(step), "episode": {}}

    assert "info changes its shape" in failures(Changing)["info has one shape"]
    assert "info has the keys ['episode']" in failures(Reserved)["info has one shape"]


def test_rewards_that_are_no_floats_are_found():
    class Integers(Coin):
        def step(self, action):
            observation, value, terminated, truncated, info = super().step(action)
            return observation, int(value), terminated, truncated, info

    assert "(int); a finite float is needed" in failures(Integers)["rewards are finite floats"]


def test_what_gymnasium_itself_warns_of_is_a_failure():
    class Truncating(Coin):
        def __init__(self, **options):
            super().__init__(**{"max_turns": 1, **options})

        def answer(self, text):
            return "go on"

    class BadSpace(Coin):
        def step(self, action):  # type: ignore[override]
            observation, *rest = super().step(action)
            return (observation.encode(), *rest)

    assert "truncates after 1 step" in failures(Truncating)["passes Gymnasium's own check without a warning"]
    assert "passes Gymnasium's own check without a warning" in failures(BadSpace)


def test_steps_after_the_end_that_are_played_are_found():
    class Endless(Coin):
        def _require_open(self, verb):
            if self._state == "done":
                self._state = "open"
            super()._require_open(verb)

    assert failures(Endless)["a step outside an episode is a clear error"] == "step after the end raised no UsageError"


def test_a_teardown_that_runs_too_often_or_never_is_found():
    class Often(Coin):
        async def close_async(self):
            await self._call(self.teardown)
            await super().close_async()

    class Never(Coin):
        async def _teardown_once(self):
            self._state = "new"

    assert "never reset: teardown ran 1 times; expected 0" in failures(Often)["teardown runs once on every path"]
    assert "teardown ran 0 times; expected 1" in failures(Never)["teardown runs once on every path"]


def test_equal_splits_are_found():
    class Same(Coin):
        def __init__(self, *, split="train", **options):
            super().__init__(**options)

    assert failures(Same) == {"train and test share no task": "12 seeds give the same episodes in train and test"}


def test_a_truth_in_the_tool_schema_is_found():
    class Telling(Coin):
        def setup(self, rng, task):
            opening = super().setup(rng, task)

            def call(side: str) -> str:
                return self.call(side)

            call.__doc__ = f"Call the coin; {self.side} is right."
            self.use_tools([as_tool(tool(call))])
            return opening

    assert "which solves the episode" in failures(Telling)["tool schemas hide the ground truth"]


def test_a_ground_truth_of_the_task_in_the_schema_is_found():
    class Telling(Coin):
        def sample_task(self, rng):
            return Task(task_id="t", answer=f"code{int(rng.integers(1000))}")

        def setup(self, rng, task):
            opening = super().setup(rng, task)

            def call(side: str) -> str:
                return self.call(side)

            call.__doc__ = f"Call the coin. {task.answer}"
            self.use_tools([as_tool(tool(call))])
            return opening

    assert "holds 'code" in failures(Telling)["tool schemas hide the ground truth"]


def test_arguments_that_json_cannot_hold_are_found():
    register("test/Unplain-v0", f"{__name__}:Unplain")
    assert "the spec survives JSON" in failures("test/Unplain-v0", env_kwargs={"judge": len})


class Unplain(Coin):
    def __init__(self, *, judge=None, **options):
        self.judge = judge
        super().__init__(**options)


def test_the_failure_lists_every_broken_promise():
    class Weak(Coin):
        def oracle(self):
            return self.turn("neither")

    with pytest.raises(CheckFailed) as raised:
        check_env(Weak, num_seeds=5)
    assert str(raised.value).startswith("Weak breaks 1 of 17 promises:\n- the oracle solves it: mean return")


def test_wrong_use_is_told():
    with pytest.raises(UsageError, match="no environment is registered"):
        check_env("test/Nothing-v0")
    with pytest.raises(UsageError, match='no option "hihg"'):
        check_env("agentenv/GuessNumber-v0", env_kwargs={"hihg": 3})
    with pytest.raises(UsageError, match="num_seeds is 0"):
        check_env(Coin, num_seeds=0)
    with pytest.raises(UsageError, match="env_kwargs go with an id or a class"):
        check_env(Coin(), env_kwargs={"max_turns": 3})
    with pytest.raises(UsageError, match='"the orcle solves it" is no promise'):
        check_env(Coin, leave_out=["the orcle solves it"])
    with pytest.raises(UsageError, match="not int"):
        check_env(7)  # type: ignore[arg-type]


def test_a_report_prints_one_line_per_promise():
    results = (
        CheckResult(name="short", status="ok", detail=""),
        CheckResult(name="longer", status="FAILED", detail="x"),
    )
    report = CheckReport(name="a/B-v0", results=results)
    assert str(report) == "a/B-v0\nok      short\nFAILED  longer  x"
    assert report.rows == (("short", "ok", ""), ("longer", "FAILED", "x"))
    assert not report.is_ok

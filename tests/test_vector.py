"""The vector environment: members, masked resets, and one type per info key."""

import asyncio

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from agentenv import ToolEnv, register, reward, tool, tool_turn
from agentenv.envs.guess_number.env import GuessNumber
from agentenv.errors import EpisodeError, UsageError
from agentenv.vector import AgentVectorEnv

GUESS = "agentenv/GuessNumber-v0"


class Slow(ToolEnv):
    """Its tool waits until two members wait."""

    both = asyncio.Barrier(2)

    def setup(self, rng, task):
        return task.text or "go"

    @tool
    async def meet(self) -> str:
        """Wait for the other."""
        await asyncio.wait_for(self.both.wait(), 5)
        return "met"

    @tool
    def crash(self) -> str:
        """Crash."""
        raise OSError("disk")

    @reward
    def none(self):
        return 0


register("test/Slow-v0", f"{__name__}:Slow")


def text(*answers):
    return [tool_turn("guess", {"number": number}).to_dict() for number in answers]


def guessing(env) -> GuessNumber:
    assert isinstance(env, GuessNumber)
    return env


def secrets(vector):
    return [guessing(env).secret for env in vector.envs]


def test_make_vec_picks_the_vector_environment_with_autoreset_disabled():
    vector = gymnasium.make_vec(GUESS, num_envs=3, high=7)

    assert isinstance(vector, AgentVectorEnv)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert [guessing(env).high for env in vector.envs] == [7, 7, 7]
    assert len(vector.action_space.sample()) == 3
    vector.close()


def test_one_seed_becomes_one_seed_per_member():
    vector = AgentVectorEnv(GUESS, num_envs=3, high=1000)
    vector.reset(seed=5)
    by_int = secrets(vector)
    vector.reset(seed=[5, 6, 7])

    assert secrets(vector) == by_int
    assert len(set(by_int)) > 1


def test_members_end_on_their_own_and_wait_for_a_masked_reset():
    vector = AgentVectorEnv(GUESS, num_envs=2)
    vector.reset(seed=0)
    first, second = secrets(vector)
    miss = second % 15 + 1

    observations, rewards, terminated, truncated, infos = vector.step(text(first, miss))
    assert observations[0] == "correct"
    assert rewards.tolist() == [1.0, 0.0]
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, False])
    assert infos["stop_reason"].tolist() == ["tool_stopped", ""]

    # the ended member ignores its action, the other goes on
    observations, rewards, terminated, truncated, infos = vector.step(text(first, second))
    assert observations == ("", "correct")
    assert rewards.tolist() == [0.0, 1.0]
    assert terminated.tolist() == [False, True]

    observations, infos = vector.reset(seed=9, options={"reset_mask": np.array([True, False])})
    assert observations[0].startswith("Guess my number")
    assert observations[1] == ""
    assert guessing(vector.envs[1]).is_found
    _, rewards, terminated, _, _ = vector.step(text(secrets(vector)[0], 1))
    assert (rewards.tolist(), terminated.tolist()) == ([1.0, 0.0], [True, False])


def test_every_info_key_has_one_type_and_one_value_per_member():
    vector = AgentVectorEnv(GUESS, num_envs=2)
    _, opening = vector.reset(seed=0)
    *_, played = vector.step(["nonsense", text(1)[0]])
    *_, waiting = vector.step(["nonsense", text(1)[0]])

    for info in (opening, played, waiting):
        assert {key: type(value) for key, value in info.items()} == {
            "messages": np.ndarray,
            "stop_reason": np.ndarray,
            "reward_components": dict,
        }
        assert info["messages"].shape == info["stop_reason"].shape == (2,)
        assert info["reward_components"]["found"].dtype == np.float64


def test_a_truncated_member_is_not_terminated():
    vector = AgentVectorEnv(GUESS, num_envs=1, max_turns=1, max_guesses=3)
    vector.reset(seed=0)
    miss = secrets(vector)[0] % 15 + 1
    _, _, terminated, truncated, infos = vector.step(text(miss))
    assert (terminated.tolist(), truncated.tolist()) == ([False], [True])
    assert infos["stop_reason"].tolist() == ["max_turns"]

    *_, infos = vector.step(text(miss))
    assert infos["stop_reason"].tolist() == [""]


def test_asynchronous_tools_of_different_members_overlap():
    vector = AgentVectorEnv("test/Slow-v0", num_envs=2)
    vector.reset(seed=0)
    observations, *_ = vector.step([tool_turn("meet", {}).to_dict()] * 2)
    assert observations == ("met", "met")


def test_each_member_can_be_given_its_task():
    vector = AgentVectorEnv("test/Slow-v0", num_envs=2)
    observations, _ = vector.reset(seed=0, options={"tasks": [{"prompt": "one"}, {"prompt": "ünï 漢"}]})
    assert observations == ("one", "ünï 漢")


def test_a_failing_member_is_raised_as_itself():
    vector = AgentVectorEnv("test/Slow-v0", num_envs=2)
    vector.reset(seed=0)
    with pytest.raises(EpisodeError, match="tool failure in crash: OSError: disk"):
        vector.step([tool_turn("crash", {}).to_dict(), "done"])
    vector.close()


def test_wrong_use_is_told():
    vector = AgentVectorEnv(GUESS, num_envs=2)
    with pytest.raises(UsageError, match=r"members \[0, 1\] were never reset"):
        vector.step(text(1, 2))
    with pytest.raises(UsageError, match=r"reset_mask has shape \(3,\); expected \(2,\)"):
        vector.reset(options={"reset_mask": np.ones(3, dtype=bool)})
    with pytest.raises(UsageError, match="3 seeds were given for 2 environments"):
        vector.reset(seed=[1, 2, 3])
    vector.reset(seed=0, options={"reset_mask": np.array([True, False])})
    with pytest.raises(UsageError, match=r"members \[1\] were never reset"):
        vector.step(text(1, 2))
    vector.reset(seed=0)
    with pytest.raises(UsageError, match="1 actions were given for 2 environments"):
        vector.step(text(1))


def test_closing_closes_every_member():
    vector = AgentVectorEnv(GUESS, num_envs=2)
    vector.reset(seed=0)
    vector.close()
    for env in vector.envs:
        with pytest.raises(UsageError, match="was closed"):
            env.step("1")

"""Wrappers: the same hooks in Gymnasium's loop and under the runner, stackable, named by option, remade by spec."""

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as gymnasium_check_env

from agentenv import register
from agentenv.agent.policy import PolicyAgent
from agentenv.episode import EpisodeSpec
from agentenv.errors import EpisodeError, UsageError
from agentenv.messages import Message
from agentenv.player import byte_runner
from agentenv.wrappers import (
    ActionMasking,
    AgentWrapper,
    FormatPenalty,
    HistoryWindow,
    RecordToStore,
    RewardShaping,
    TokenBudget,
    Withheld,
)
from tests.wrappers.games import Steps, climb, make, make_bare

STEPS = "test/Steps-v0"
HERE = "tests.wrappers.games"
register(STEPS, f"{HERE}:Steps")

ALL = [
    "format_penalty",
    {"name": "token_budget", "kwargs": {"max_tokens": 500, "announce": True}},
    {"name": "history_window", "kwargs": {"num_exchanges": 2}},
    {"name": "reward_shaping", "kwargs": {"potential": f"{HERE}:height_left"}},
    {"name": "action_masking", "kwargs": {"mask": f"{HERE}:no_big_steps"}},
]


class Swallow(AgentWrapper):
    """Answers every turn itself."""

    def before(self, turn):
        return Withheld(messages=(Message(role="user", content="no"),))


class Broken(AgentWrapper):
    """Has a mistake in a hook."""

    def after(self, turn, step):
        raise KeyError("oops")


def plays(env, actions, *, seed=0):
    env.reset(seed=seed)
    return [env.step(action) for action in actions]


@pytest.mark.parametrize(
    ("wrapper", "kwargs"),
    [
        (FormatPenalty, {}),
        (TokenBudget, {"max_tokens": 1000}),
        (HistoryWindow, {}),
        (RewardShaping, {"potential": f"{HERE}:height_left"}),
        (ActionMasking, {"mask": {"climb": None, "rest": None}}),
        (RecordToStore, {}),
    ],
)
def test_every_wrapper_passes_gymnasiums_check_with_the_one_warning_that_it_is_a_wrapper(
    wrapper: Any, kwargs: Any, tmp_path: Path
):
    if wrapper is RecordToStore:
        kwargs = {"folder": str(tmp_path / "store")}
    env = wrapper(gymnasium.make(STEPS, disable_env_checker=True).unwrapped, **kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gymnasium_check_env(env)

    told = [str(w.message) for w in caught if not issubclass(w.category, (ResourceWarning, DeprecationWarning))]
    assert [text for text in told if "different from the unwrapped version" not in text] == []
    env.close()


def test_a_stack_of_all_wrappers_passes_gymnasiums_check_and_reaches_the_top():
    env = make(STEPS, wrap=ALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gymnasium_check_env(env)
    env = make(STEPS, wrap=ALL)
    _, rewards, *_ = zip(*plays(env, [climb(1), climb(2)]), strict=True)

    # effort 0.25 a turn, shaping +1 and then 0 - (-2) = +2, and 1.0 at the top
    assert rewards == (0.25 + 1.0, 0.25 + 2.0 + 1.0)
    env.close()


def test_gymnasiums_loop_and_the_runners_contract_see_the_same_steps():
    asked = [climb(1), climb(9), "hm", "<tool_call>{</tool_call>", climb(2)]
    through_gymnasium = make_bare(STEPS, wrap=ALL)
    through_vector = gymnasium.make_vec(STEPS, num_envs=1, wrap=ALL)  # uses reset_async and step_async
    one, _ = through_gymnasium.reset(seed=3)
    many, _ = through_vector.reset(seed=3)
    assert (one,) == many

    terminated = False
    for action in asked:
        text, value, terminated, truncated, info = through_gymnasium.step(action)
        texts, values, ends, cuts, infos = through_vector.step([action])
        assert (text,) == texts
        assert (value, terminated, truncated) == (values[0], ends[0], cuts[0])
        assert info["reward_components"] == {name: row[0] for name, row in infos["reward_components"].items()}
        assert info["stop_reason"] == infos["stop_reason"][0]
    assert terminated
    through_gymnasium.close()
    through_vector.close()


def test_a_wrapped_environment_makes_itself_again_from_the_json_of_its_spec():
    env = make(STEPS, wrap=ALL, height=2)
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))

    assert json.loads(env.spec.to_json())["additional_wrappers"][0]["name"] == "FormatPenalty"
    assert str(again) == str(env)
    assert again.reset(seed=0) == env.reset(seed=0)
    assert again.step(climb(2)) == env.step(climb(2))
    env.close()
    again.close()


def test_wrappers_of_gymnasium_and_ours_stack_in_any_order():
    inner = gymnasium.wrappers.TransformReward(FormatPenalty(gymnasium.make(STEPS)), lambda value: 10 * float(value))
    env = gymnasium.wrappers.RecordEpisodeStatistics(
        RewardShaping(gymnasium.wrappers.TimeLimit(inner, max_episode_steps=2), potential=f"{HERE}:height_left")
    )
    first, second = plays(env, [climb(1), climb(1)])

    # what a wrapper in between made of the reward is kept, and the shaping is added to it
    assert first[1] == 10 * 0.25 + 1.0
    assert second[2:4] == (False, True)
    assert second[4]["episode"]["r"] == 10 * 0.5 + 2.0
    env.close()


async def test_the_runner_plays_a_wrapped_environment_that_only_its_options_name():
    spec = EpisodeSpec(env_id=STEPS, env_kwargs={"wrap": ALL, "height": 3})
    trajectory = await byte_runner(PolicyAgent("oracle")).run_episode(spec)

    assert trajectory.error == ""
    assert [turn.reward_components for turn in trajectory.turns] == [
        {"effort": 0.25, "format_penalty": 0.0, "shaping": 1.0},
        {"effort": 0.25, "format_penalty": 0.0, "shaping": 1.0},
        {"effort": 0.25, "format_penalty": 0.0, "shaping": 1.0},
    ]
    assert trajectory.reward_components == {"at_top": 1.0}
    assert "Allowed now: climb with 1, 2; rest" in trajectory.messages[2].content


async def test_a_wrapper_around_gymnasiums_own_tells_the_runner_what_to_do():
    env = FormatPenalty(gymnasium.make(STEPS))
    with pytest.raises(UsageError, match="pass the option `wrap`"):
        await env.reset_async(seed=0)


def test_a_vector_environment_of_wrapped_members_keeps_them_apart():
    vector = gymnasium.make_vec(STEPS, num_envs=3, wrap=ALL, height=2)
    vector.reset(seed=0)
    _, rewards, ends, _, infos = vector.step([climb(2), climb(1), "hm"])

    assert rewards.tolist() == [0.25 + 2 + 1, 0.25 + 1, 0.0]
    assert ends.tolist() == [True, False, False]
    assert infos["reward_components"]["shaping"].tolist() == [2.0, 1.0, 0.0]
    vector.reset(options={"reset_mask": np.array([True, False, False])})
    _, rewards, *_ = vector.step([climb(1)] * 3)
    assert rewards.tolist() == [1.25, 2.25, 1.25]
    vector.close()


def test_turns_that_a_wrapper_answers_count_and_the_episode_still_ends():
    env = Swallow(Steps(max_turns=3))
    steps = plays(env, [climb(1)] * 3)

    assert [step[0] for step in steps] == ["no", "no", "no"]
    assert [step[2:4] for step in steps] == [(False, False), (False, False), (False, True)]
    assert steps[-1][4]["stop_reason"] == "max_turns"
    with pytest.raises(UsageError, match="is over"):
        env.step(climb(1))


def test_a_mistake_in_a_hook_is_a_failure_of_the_environment():
    env = Broken(Steps())
    env.reset(seed=0)
    with pytest.raises(EpisodeError, match=r"env failure in Broken.after: KeyError"):
        env.step("hm")


def test_two_wrappers_cannot_pay_under_one_name():
    with pytest.raises(UsageError, match="'format_penalty' already"):
        FormatPenalty(FormatPenalty(Steps()))
    env = FormatPenalty(FormatPenalty(Steps()), name="second")
    env.reset(seed=0)
    assert env.step("<tool_call>{</tool_call>")[1] == pytest.approx(-0.2)


def test_a_plain_environment_is_sent_to_the_verbaliser():
    with pytest.raises(UsageError, match="wrap a plain Gymnasium environment in Verbaliser first"):
        FormatPenalty(gymnasium.make("CliffWalking-v1"))


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (["format_penalties"], 'Did you mean "format_penalty"'),
        ([{"name": "format_penalty", "kwargs": {"penalti": 1}}], 'Did you mean "penalty"'),
        ([{"name": "token_budget"}], "wrapper token_budget needs max_tokens"),
        ([{"nam": "format_penalty"}], "expected a name, or {name"),
        (7, "option wrap is int"),
        (["json:loads"], "wrapper json:loads is 'loads', which is no gymnasium.Wrapper"),
        (["no.such.module:X"], "cannot be imported"),
    ],
)
def test_a_wrong_option_says_what_is_allowed(wrap, told):
    with pytest.raises(UsageError, match=told):
        make_bare(STEPS, wrap=wrap)


def test_an_unknown_option_of_the_environment_still_names_the_near_miss():
    with pytest.raises(UsageError, match='Did you mean "wrap"'):
        make_bare(STEPS, wrapp=["format_penalty"])

"""What each shipped wrapper does, in numbers that can be worked out by hand."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env

from agentenv import tool_turn
from agentenv.agent.policy import PolicyAgent
from agentenv.content import Image
from agentenv.env import Step
from agentenv.episode import EpisodeSpec
from agentenv.errors import EpisodeError, UsageError
from agentenv.messages import Message
from agentenv.player import byte_runner
from agentenv.store import TrajectoryStore
from agentenv.wrappers import (
    ActionMasking,
    FormatPenalty,
    HistoryWindow,
    RecordToStore,
    RewardShaping,
    TokenBudget,
    Verbaliser,
)
from tests.wrappers.games import Steps, climb, make, make_bare

HERE = "tests.wrappers.games"


def begun(env: Any, *, seed: int = 0) -> Any:
    env.reset(seed=seed)
    return env


# format penalty


@pytest.mark.parametrize(
    ("action", "cost"),
    [
        ("hm", 0.0),
        (climb(1), 0.0),
        ("<tool_call>{</tool_call>", 0.5),
        ("<tool_call>{</tool_call><tool_call>{</tool_call>", 0.5),
        (tool_turn("jump", {}).to_dict(), 0.5),
        (tool_turn("climb", {"how": "fast"}).to_dict(), 0.0),
    ],
)
def test_malformed_and_unknown_calls_cost_once_a_turn(action, cost):
    env = begun(FormatPenalty(Steps(), penalty=0.5))
    assert env.step(action)[4]["reward_components"]["format_penalty"] == -cost


def test_a_pattern_is_asked_of_the_text_of_every_turn():
    env = begun(FormatPenalty(Steps(), pattern=r"^<think>.*</think>"))
    assert env.step("<think>a\nb</think> go")[1] == 0.0
    assert env.step("go")[1] == -0.1


@pytest.mark.parametrize(("kwargs", "told"), [({"penalty": 0}, "above 0"), ({"pattern": "("}, "no regular expression")])
def test_a_wrong_penalty_is_refused(kwargs, told):
    with pytest.raises(UsageError, match=told):
        FormatPenalty(Steps(), **kwargs)


# token budget


def test_the_turn_that_goes_over_the_budget_is_not_played_and_the_end_is_scored():
    env = begun(TokenBudget(Steps(height=2), max_tokens=9))
    # climb {"steps": 1}: climb { " steps " : 1 } are 8 words and marks
    assert env.step(climb(2))[4]["stop_reason"] == "tool_stopped"

    env = begun(TokenBudget(Steps(height=2), max_tokens=9))
    env.step(climb(1))
    text, _, terminated, truncated, info = env.step("one two")
    assert (text, terminated, truncated, info["stop_reason"]) == ("", False, True, "max_tokens")
    assert env.unwrapped.num_turns == 1


def test_what_is_left_of_the_budget_is_told_and_every_episode_begins_with_all_of_it():
    env = TokenBudget(Steps(), max_tokens=9, announce=True)
    for _ in range(2):
        assert env.reset(seed=0)[0] == "Climb 3 steps.\n[9 of 9 tokens are left]"
        assert env.step("one, two")[0] == "go on\n[6 of 9 tokens are left]"


def test_a_tokenizer_of_a_model_counts_its_own_tokens(tmp_path):
    from agentenv.byte_tokenizer import byte_backend

    byte_backend().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    env = begun(TokenBudget(Steps(), max_tokens=4, tokenizer=str(tmp_path)))
    assert env.step("abcd")[2:4] == (False, False)
    assert env.step("e")[2:4] == (False, True)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(UsageError, match="at least 1"):
        TokenBudget(Steps(), max_tokens=0)


# history window


def test_an_observation_holds_the_task_and_the_last_exchanges():
    env = begun(HistoryWindow(Steps(height=9), num_exchanges=1))
    assert env.step(climb(1))[0] == "Task:\nClimb 9 steps.\n\nNow:\n> climb(steps=1)\nstep 1"
    env.step("hm")
    text = "Task:\nClimb 9 steps.\n\nEarlier:\n> hm\ngo on\n\nNow:\n> climb(steps=2)\nstep 3"
    assert env.step(climb(2))[0] == text


def test_a_window_forgets_the_last_episode_and_older_exchanges():
    env = HistoryWindow(Steps(height=9), num_exchanges=1, show_opening=False)
    for _ in range(2):
        env.reset(seed=0)
        env.step(climb(1))
        env.step(climb(2))
        assert env.step("hm")[0] == "Earlier:\n> climb(steps=2)\nstep 3\n\nNow:\n> hm\ngo on"


def test_pictures_stay_where_they_stood_in_the_text():
    env = HistoryWindow(Steps(), num_exchanges=0, show_opening=False)
    picture = Image(data=b"\x89PNG\r\n\x1a\n", position=2)
    answer = Message(role="tool", content="a b", images=(picture,))
    step = Step(messages=(answer,), reward_components={}, turn_reward_components={}, stop_reason=None)
    shown = env.after(Message(role="assistant", content="hm"), step).messages[0]

    assert shown.content == "Now:\n> hm\na b"
    assert shown.content[shown.images[0].position :] == "b"


# reward shaping


def test_shaping_adds_up_to_minus_the_first_potential_whatever_was_done():
    for turns in ([1, 1, 1], [3], [2, 1]):
        env = begun(RewardShaping(Steps(height=3), potential=f"{HERE}:height_left"))
        total = sum(env.step(climb(count))[4]["reward_components"]["shaping"] for count in turns)
        assert total == 3.0  # the potential of the beginning is -3


def test_discount_and_weight_are_those_of_the_equation():
    env = begun(RewardShaping(Steps(height=3), potential=f"{HERE}:height_left", weight=2.0, discount=0.5))
    assert env.step(climb(1))[4]["reward_components"]["shaping"] == 2.0 * (0.5 * -2 - -3)


def test_a_potential_that_is_no_number_is_a_failure_of_the_reward():
    env = begun(RewardShaping(Steps(), potential=f"{HERE}:nothing_finite"))
    with pytest.raises(EpisodeError, match="reward failure in shaping"):
        env.step(climb(1))


def test_a_potential_must_be_something_that_can_be_called():
    with pytest.raises(UsageError, match="module:name"):
        RewardShaping(Steps(), potential="height_left")


# action masking


def test_a_masked_call_is_answered_and_never_reaches_the_environment():
    env: Any = ActionMasking(Steps(), mask=f"{HERE}:no_big_steps")
    assert env.reset(seed=0)[0] == "Climb 3 steps.\nAllowed now: climb with 1, 2"
    text, reward, *_ = env.step(climb(3))

    assert text == ("Error: climb(3) is not allowed now. Allowed now: climb with 1, 2\nAllowed now: climb with 1, 2")
    assert (reward, env.unwrapped.position, env.unwrapped.num_turns, env.num_turns) == (0.0, 0, 0, 1)


def test_of_several_calls_the_allowed_ones_are_played_and_answers_keep_their_places():
    jump: Any = tool_turn("jump", {}).to_dict()
    calls = [*climb(1)["tool_calls"], *jump["tool_calls"], *climb(2)["tool_calls"]]
    calls = [{**call, "id": f"call_{place}"} for place, call in enumerate(calls)]
    env = begun(ActionMasking(Steps(), mask={"climb": None}, announce=False))
    text, *_, info = env.step({"role": "assistant", "content": "", "tool_calls": calls})

    assert text == "step 1\nError: jump may not be called now. Allowed now: climb\nstep 3"
    assert [message["name"] for message in info["messages"]] == ["climb", "jump", "climb"]


def test_true_is_not_one_for_a_mask():
    env = begun(ActionMasking(Steps(), mask={"climb": [1]}, announce=False))
    env.step(tool_turn("climb", {"steps": True}).to_dict())
    assert env.unwrapped.position == 0


def test_an_environment_that_does_not_say_what_is_allowed_needs_a_mask():
    with pytest.raises(UsageError, match="does not say what is allowed; give a mask"):
        ActionMasking(Steps())
    with pytest.raises(UsageError, match="null for all"):
        ActionMasking(Steps(), mask={"climb": "up"})


# recording


def test_episodes_of_several_environments_come_into_one_store(tmp_path):
    folder = tmp_path / "store"
    envs = [make_bare("agentenv/GuessNumber-v0", wrap=[_record(folder)]) for _ in range(2)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
        is_over = False
        while not is_over:
            *_, terminated, truncated, _ = env.step(env.oracle().to_dict())
            is_over = terminated or truncated
    assert not folder.exists()  # two episodes wait for a third, or for the last environment to close
    envs[0].close()
    assert not folder.exists()
    envs[1].close()

    stored = list(TrajectoryStore(folder).scan(phase="recorded"))
    assert [(one.trajectory.seed, one.trajectory.reward) for one in stored] == [(0, 1.0), (1, 1.0)]
    assert stored[0].trajectory.messages[0].role == "user"
    assert stored[0].trajectory.messages[-1].role == "tool"
    assert len(stored[0].trajectory.turns) == sum(m.role == "assistant" for m in stored[0].trajectory.messages)


def test_turn_and_end_rewards_are_stored_apart_in_gymnasiums_loop_too(tmp_path):
    env = RecordToStore(FormatPenalty(Steps(height=2)), folder=str(tmp_path / "store"))
    env.reset(seed=4)
    env.step(climb(1))
    env.step(climb(1))
    env.reset(seed=5)
    env.truncate()
    env.close()

    played, cut = (one.trajectory for one in TrajectoryStore(tmp_path / "store").scan())
    turn = {"effort": 0.25, "format_penalty": 0.0}
    assert [one.reward_components for one in played.turns] == [turn, turn]
    assert played.reward_components == {"at_top": 1.0}
    assert (cut.seed, cut.turns, cut.stop_reason.value) == (5, (), "max_tokens")


async def test_the_runner_records_through_the_wrapper_what_it_played(tmp_path):
    spec = EpisodeSpec(env_id="agentenv/Wordle-v0", env_kwargs={"wrap": [_record(tmp_path / "store")]}, seed=8)
    trajectory = await byte_runner(PolicyAgent("oracle")).run_episode(spec)

    (stored,) = TrajectoryStore(tmp_path / "store").scan()
    assert stored.trajectory.messages == trajectory.messages
    assert stored.trajectory.reward == trajectory.reward


def test_a_store_in_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        RecordToStore(Steps(), folder=str(tmp_path / "no" / "store"))


def _record(folder):
    return {"name": "record_to_store", "kwargs": {"folder": str(folder), "episodes_per_file": 3}}


# verbaliser


class Switch(gymnasium.Env):
    """Two lamps and a dial; the action sets one of three values."""

    observation_space = spaces.Dict(
        {
            "lamps": spaces.MultiBinary(2),
            "dial": spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float64),
            "mode": spaces.Tuple((spaces.Discrete(3), spaces.MultiDiscrete([4, 4]))),
        }
    )
    action_space = spaces.Discrete(3, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._seen(0), {"action_mask": np.array([1, 0, 1])}

    def step(self, action):
        assert 5 <= action <= 7
        return self._seen(action), float(action), action == 7, False, {}

    def _seen(self, action):
        return {
            "lamps": np.array([action % 2, 1], dtype=np.int8),
            "dial": np.array([0.123456, -1.0]),
            "mode": (np.int64(2), np.array([1, 3])),
        }


def test_nested_observations_become_text_and_actions_go_by_name_or_number():
    env = Verbaliser(Switch(), action_names=["low", "middle", "high"], observation_names=["first", "second"])
    opening, _ = env.reset(seed=0)
    assert opening.endswith("Actions: 0 low, 1 middle, 2 high.\n\ndial: 0.1235, -1\nlamps: 0, 1\nmode: 2, 1, 3")

    assert env.step("Low.")[1] == 5.0
    assert env.step(tool_turn("act", {"action": "1"}).to_dict())[1] == 6.0
    text, reward, *_ = env.step("sideways")
    assert (reward, text) == (0.0, "That is no action. Say one of: low, middle, high.")
    text, reward, terminated, truncated, _ = env.step("high")
    assert (reward, terminated, truncated) == (7.0, True, False)
    assert text.endswith("The game is over.")


def test_the_verbaliser_passes_gymnasiums_check_and_our_wrappers_go_around_it():
    gymnasium_check_env(Verbaliser(gymnasium.make("CliffWalking-v1").unwrapped), skip_render_check=True)
    env = TokenBudget(FormatPenalty(Verbaliser(gymnasium.make("CliffWalking-v1"))), max_tokens=50)
    env.reset(seed=0)
    assert env.step("0")[1] == -1.0
    assert env.step("<tool_call>{</tool_call>")[1] == -0.1
    assert env.step("9 " * 60)[4]["stop_reason"] == "max_tokens"
    env.close()


async def test_the_runner_plays_what_the_verbaliser_made():
    from agentenv.episode import Sampling
    from agentenv.runner import Runner

    def made(spec: EpisodeSpec) -> Any:
        return FormatPenalty(Verbaliser(Switch(), max_turns=40))

    base = byte_runner(PolicyAgent("random"))
    runner = Runner(
        engine=base.engine,
        renderer=base.renderer,
        agent=base.agent,
        config=base.config,
        sampling=Sampling(),
        make_env=made,
    )
    trajectory = await runner.run_episode(EpisodeSpec(env_id="test/Switch", seed=1))
    assert trajectory.error == ""
    assert trajectory.turns[-1].reward_components == {"game_reward": 7.0, "format_penalty": 0.0}


def test_the_mask_of_a_game_is_what_action_masking_takes_by_itself():
    env = ActionMasking(Verbaliser(Switch(), action_names=["low", "middle", "high"]))
    env.reset(seed=0)
    assert "middle" in env.step(tool_turn("act", {"action": "middle"}).to_dict())[0]
    assert env.unwrapped is not env
    assert env.num_turns == 1


@pytest.mark.parametrize(
    ("action_space", "observation_space", "told"),
    [
        (spaces.Box(0, 1), spaces.Discrete(2), "Discrete is needed"),
        (spaces.Discrete(2), spaces.Box(0, 255, (64, 64, 3)), "12,288 numbers"),
    ],
)
def test_what_cannot_be_told_in_words_is_refused(action_space, observation_space, told):
    env = Switch()
    env.action_space, env.observation_space = action_space, observation_space
    with pytest.raises(UsageError, match=told):
        Verbaliser(env)


def test_what_talks_already_needs_no_verbaliser():
    with pytest.raises(UsageError, match="talks already"):
        Verbaliser(make("agentenv/GuessNumber-v0"))

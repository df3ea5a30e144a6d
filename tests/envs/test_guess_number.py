"""GuessNumber: hints, endings, and no way around the limit."""

import numpy as np
import pytest

from agentenv import Message, ToolCall, tool_turn
from agentenv.envs.guess_number.env import GuessNumber
from agentenv.errors import UsageError


def started(secret, **options):
    env = GuessNumber(**options)
    env.reset(seed=0)
    env.secret = secret
    return env


def guess(env, number):
    return env.step(tool_turn("guess", {"number": number}).to_dict())


def test_hints_narrow_the_range_until_the_number_is_found():
    env = started(11)
    assert guess(env, 8)[0] == "higher 9 15"
    assert guess(env, 12)[0] == "lower 9 11"
    assert guess(env, 3)[0] == "higher 9 11"  # a wasted guess widens nothing
    observation, value, terminated, truncated, info = guess(env, 11)
    assert (observation, value, terminated, truncated) == ("correct", 1.0, True, False)
    assert info["reward_components"] == {"found": 1.0}


def test_the_last_wrong_guess_ends_the_episode_with_nothing():
    env = started(15, max_guesses=2)
    assert guess(env, 1)[1:4] == (0.0, False, False)
    assert guess(env, 2)[1:4] == (0.0, True, False)


def test_many_guesses_in_one_turn_do_not_pass_the_limit():
    env = started(8, max_guesses=2)
    calls = tuple(ToolCall(call_id=f"c{n}", name="guess", arguments={"number": n}) for n in range(1, 9))
    _, value, terminated, _, _ = env.step(Message(role="assistant", content="", tool_calls=calls).to_dict())
    assert (value, terminated, env.num_guesses) == (0.0, True, 2)


@pytest.mark.parametrize("action", ["11", "The number is 11.", "correct", '{"number": 11}'])
def test_saying_the_number_without_the_tool_earns_nothing(action):
    assert started(11).step(action)[1] == 0.0


def test_a_refused_argument_uses_no_guess():
    env = started(11)
    observation, *_ = guess(env, "eleven")
    assert "Input should be a valid integer" in observation
    assert env.num_guesses == 0


@pytest.mark.parametrize("high", [2, 3, 15, 16, 1000])
def test_halving_always_finds_the_number_within_the_default_guesses(high):
    env = GuessNumber(high=high)
    for secret in {1, 2, high // 2, high - 1, high}:
        env.reset(seed=0)
        env.secret = secret
        value, is_over = 0.0, False
        while not is_over:
            _, value, is_over, _, _ = env.step(env.oracle().to_dict())
        assert value == 1.0


def test_the_demonstration_stays_within_the_remaining_range():
    env = started(11)
    guess(env, 8)
    rng = np.random.default_rng(0)
    numbers = {env.demonstrate(rng).tool_calls[0].arguments["number"] for _ in range(200)}
    assert numbers == set(range(9, 16))


def test_one_number_is_no_game():
    with pytest.raises(UsageError, match="high is 1"):
        GuessNumber(high=1)

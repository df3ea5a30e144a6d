"""Environments with a user: who hears what, how episodes end, and what is recorded."""

import numpy as np
import pytest

from agentenv import Message, ToolCall, make_bare, reward, tool, tool_turn
from agentenv.episode import EpisodeSpec
from agentenv.errors import EpisodeError, UsageError
from agentenv.player import open_player, parse_player
from agentenv.users import Fact, Slot, UserBrief, UserEnv, Want

CITY = Slot(name="city", label="city", asked_by=("city", "where"))


class Taxi(UserEnv):
    """Send a taxi where the user wants. Reward: 1.0 if the city was asked for and is right."""

    inline = True

    def setup(self, rng, task):
        self.sent = ""
        brief = UserBrief(wants=(Want(text="I want a taxi."),), facts=(Fact(slot=CITY, value="Oslo"),), max_turns=6)
        return self.meet(brief, rng, system="You send taxis.")

    @tool
    def send(self, city: str) -> str:
        """Send a taxi.

        Args:
            city: where to.
        """
        self.sent = city
        return "sent"

    @reward(low=0.0, high=1.0)
    def right(self):
        return float(self.sent == "Oslo" and "city" in self.asked)


def test_the_opening_is_the_system_message_and_the_users_first_words():
    env = Taxi()
    _, info = env.reset(seed=0)
    assert [message["role"] for message in info["messages"]] == ["system", "user"]
    assert "I want a taxi." in info["messages"][1]["content"]


def test_text_goes_to_the_user_calls_to_the_tools_and_the_users_leaving_ends_it():
    env = Taxi()
    env.reset(seed=0)
    observation, *_, info = env.step("Where to?")
    assert "Oslo" in observation
    assert info["messages"][0]["role"] == "user"
    assert env.step(tool_turn("send", {"city": "Oslo"}).to_dict())[0] == "sent"
    _, value, terminated, truncated, info = env.step("It is on its way.")
    assert (value, terminated, truncated, info["stop_reason"]) == (1.0, True, False, "completed")
    assert (env.user_end, env.said) == ("satisfied", ["Where to?", "It is on its way."])


def test_words_beside_a_call_are_not_heard():
    env = Taxi()
    env.reset(seed=0)
    call = ToolCall(call_id="a", name="send", arguments={"city": "Oslo"})
    env.step(Message(role="assistant", content="What is the city?", tool_calls=(call,)).to_dict())
    assert (env.said, env.asked) == ([], frozenset())


def test_the_same_seed_gives_the_same_user():
    def played():
        env = Taxi()
        return [env.reset(seed=7)[0], *(env.step(text)[0] for text in ("Where to?", "Hm?"))]

    assert played() == played()


def test_a_model_can_play_the_user_and_the_environment_waits_for_it():
    env = Taxi(user="tests.users.model_people:polite")
    observation, info = env.reset(seed=0)
    assert info["messages"][1]["content"] == "Please help me."
    assert "Please help me." in observation
    assert env.step("Where to?")[0] == "I do not know."
    observation, _, terminated, *_ = env.step("Bye.")
    assert (observation, terminated, env.user_end) == ("Goodbye.", True, "satisfied")
    env.close()


@pytest.mark.parametrize("name", ["Clarify", "Preference", "RetailService", "TravelBooking"])
def test_every_shipped_environment_with_a_user_lets_a_model_play_it(name):
    env = make_bare(f"agentenv/{name}-v0", user="tests.users.model_people:polite")
    _, info = env.reset(seed=0)
    assert info["messages"][-1] == {"role": "user", "content": "Please help me."}
    assert env.step("What do you want?")[0] == "I do not know."
    assert env.step("Bye.")[1:3] == (0.0, True)
    env.close()


def test_a_looping_model_user_truncates_the_episode():
    env = Taxi(user="tests.users.model_people:looping")
    env.reset(seed=0)
    env.step("a")
    _, value, terminated, truncated, info = env.step("b")
    assert (value, terminated, truncated, info["stop_reason"]) == (0.0, False, True, "max_turns")
    assert env.user is not None
    assert (env.user_end, env.user.counts["loops"]) == ("looped", 1)
    env.close()


async def test_a_hanging_model_user_is_a_failure_and_no_reward():
    env = Taxi(user="tests.users.model_people:hanging")
    with pytest.raises(EpisodeError) as caught:
        await env.reset_async(seed=0)
    assert caught.value.side == "engine"
    await env.close_async()


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("nothing", "expected an import string module:function"),
        ("no.such.module:x", "cannot import"),
        ("tests.users.model_people:missing", "cannot import"),
        ("tests.users.model_people:RENDERER", "expected a function"),
        ("tests.users.model_people:nobody", "lacks begin, reply, close, revealed"),
    ],
)
def test_a_user_that_cannot_be_made_is_an_error_that_says_why(target, told):
    with pytest.raises((UsageError, EpisodeError), match=told):
        Taxi(user=target).reset(seed=0)


async def test_the_users_turns_are_recorded_in_the_trajectory():
    async with open_player(parse_player("oracle")) as runner:
        trajectory = await runner.run_episode(EpisodeSpec(env_id="agentenv/Clarify-v0", seed=3))
    roles = [message.role for message in trajectory.messages]
    assert roles[:4] == ["system", "user", "assistant", "user"]
    assert trajectory.reward == 1.0


def test_scripted_users_never_make_an_event_loop():
    env = Taxi()
    env.reset(seed=np.random.default_rng(0).integers(10).item())
    assert env._never_waits()
    assert not Taxi(user="tests.users.model_people:polite")._never_waits()

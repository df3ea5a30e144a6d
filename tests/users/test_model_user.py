"""The model-driven user: what a model says is checked before the agent hears it."""

import asyncio

import pytest

from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.errors import EpisodeError, UsageError
from agentenv.renderer import Renderer
from agentenv.users import Fact, Slot, UserBrief, Want
from agentenv.users.model import ModelUser, ModelUserOptions, role_prompt

CITY = Slot(name="city", label="city", asked_by=("city",))
BRIEF = UserBrief(
    wants=(Want(text="I want a taxi."),),
    facts=(Fact(slot=CITY, value="New Oslo"),),
    goal="Pay less than 20 euros.",
    secrets=("less than 20 euros",),
    max_turns=4,
)
RENDERER = Renderer(byte_tokenizer(), family="qwen3")
STOP = RENDERER.stop_ids[0]


def speaking(*texts, brief=BRIEF, options=None, **engine):
    scripted = ScriptedEngine([[*byte_tokenizer().encode(text), STOP] for text in texts], keep_exchanges=True, **engine)
    return ModelUser(brief, engine=scripted, renderer=RENDERER, seed=5, options=options), scripted


async def test_it_opens_answers_and_ends_when_the_model_says_so():
    user, engine = speaking("Hi, a taxi please.", "To New Oslo.", "Thanks, bye. [END]")
    assert (await user.begin()).text == "Hi, a taxi please."
    assert user.revealed == set()
    assert (await user.reply("Where to?")).text == "To New Oslo."
    assert user.revealed == {"city"}
    last = await user.reply("It is booked.")
    assert (last.text, last.end) == ("Thanks, bye.", "satisfied")
    await user.close()
    # the agent's words are what the model reads as its user's
    prompt = byte_tokenizer().decode(engine.exchanges[1].request.prompt_ids)
    assert "user\nWhere to?" in prompt
    assert "assistant\nHi, a taxi please." in prompt


@pytest.mark.parametrize(
    "leak", ["I must pay less than 20 euros.", "LESS THAN 20 EUROS!", "less-than  20\neuros", "l e s s than20euros"]
)
async def test_a_turn_that_says_a_secret_is_drawn_again(leak):
    user, engine = speaking(leak, "A cheap one, please.")
    assert (await user.begin()).text == "A cheap one, please."
    assert user.counts["leaks"] == 1
    seeds = [exchange.request.sampling.seed for exchange in engine.exchanges]
    assert len(set(seeds)) == 2


async def test_a_user_who_only_leaks_refuses_instead():
    user, engine = speaking("It must cost less than 20 euros.")
    turn = await user.begin()
    assert (turn.text, turn.end) == ("I would rather not say.", None)
    assert user.counts["leaks"] == len(engine.exchanges) == ModelUserOptions().max_attempts


async def test_a_goal_that_is_no_secret_may_be_said():
    open_brief = UserBrief(wants=BRIEF.wants, goal=BRIEF.goal)
    user, _ = speaking("It must cost less than 20 euros.", brief=open_brief)
    assert (await user.begin()).text == "It must cost less than 20 euros."


async def test_an_empty_turn_is_drawn_again_and_a_tool_call_is_no_speech():
    user, _ = speaking("", '<tool_call>\n{"name": "x", "arguments": {}}\n</tool_call>', "Hello.")
    assert (await user.begin()).text == "Hello."
    assert user.counts["empty"] == 2


async def test_a_looping_user_is_stopped_and_counted():
    user, _ = speaking("Where is my taxi?", options=ModelUserOptions(max_repeats=2))
    ends = [(await user.begin()).end, (await user.reply("Soon.")).end, (await user.reply("Soon.")).end]
    assert ends == [None, None, "looped"]
    assert user.counts["loops"] == 1


async def test_the_cap_on_turns_stops_a_user_without_asking_the_model():
    user, engine = speaking("One.", "Two.", "Three.", "Four.")
    await user.begin()
    await user.reply("a")
    await user.reply("b")
    assert (await user.reply("c")).end == "turn_cap"
    assert (user.counts["caps"], len(engine.exchanges)) == (1, 3)


async def test_a_long_turn_is_cut():
    user, _ = speaking("x" * 100, options=ModelUserOptions(max_chars=10))
    assert (await user.begin()).text == "x" * 10


async def test_a_failing_engine_is_the_engines_failure():
    user, _ = speaking("Hi.", faults=Faults(fail_every=1))
    with pytest.raises(EpisodeError) as caught:
        await user.begin()
    assert caught.value.side == "engine"


async def test_a_hanging_engine_meets_the_deadline():
    user, _ = speaking("Hi.", faults=Faults(hang_every=1), options=ModelUserOptions(deadline_s=0.05))
    async with asyncio.timeout(5):
        with pytest.raises(EpisodeError) as caught:
            await user.begin()
    assert caught.value.side == "engine"


async def test_the_sampling_is_a_function_of_the_seed_and_the_turn():
    async def seeds():
        user, engine = speaking("One.", "Two.")
        await user.begin()
        await user.reply("a")
        return [exchange.request.sampling.seed for exchange in engine.exchanges]

    first = await seeds()
    assert first == await seeds()
    assert len(set(first)) == 2


def test_the_model_is_told_its_role_its_facts_and_what_to_keep_to_itself():
    told = role_prompt(BRIEF)
    assert "Your goal: Pay less than 20 euros." in told
    assert "You know: The city is New Oslo." in told
    assert "Never say the following, nor that you were told not to: less than 20 euros" in told


def test_options_that_cannot_work_are_refused():
    with pytest.raises(UsageError, match="must be positive"):
        ModelUserOptions(deadline_s=0)

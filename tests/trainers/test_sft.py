"""Conversations become samples in exactly the ids that a rollout would have."""

import json

import pytest

from agentenv import Message, tool_turn
from agentenv.agent.policy import PolicyAgent
from agentenv.engine.scripted import ScriptedEngine
from agentenv.episode import EpisodeSpec
from agentenv.errors import DataError
from agentenv.registry import make_bare
from agentenv.runner import Runner
from agentenv.trainers.config import SFTConfig
from agentenv.trainers.samples_from import cross_entropy_samples
from agentenv.trainers.sft import conversation_sample, num_sft_steps, read_conversations

TOOLS = make_bare("agentenv/GuessNumber-v0").tool_specs


async def test_a_played_conversation_gives_the_ids_of_its_rollout(any_renderer):
    runner = Runner(engine=ScriptedEngine([()]), renderer=any_renderer, agent=PolicyAgent("demonstrate"))
    played = await runner.run_episode(EpisodeSpec(env_id="agentenv/GuessNumber-v0", seed=2))
    (from_rollout,) = cross_entropy_samples([played])

    sample = conversation_sample(played.messages, renderer=any_renderer, sample_id="x", tools=TOOLS)

    # a rollout ends with its last sampled token; what the environment said after it has no ids
    assert sample.token_ids_T.tolist() == from_rollout.token_ids_T.tolist()
    assert sample.is_sampled_T.tolist() == from_rollout.is_sampled_T.tolist()
    assert sample.cross_entropy_weight_T.tolist() == from_rollout.cross_entropy_weight_T.tolist()
    assert sample.turn_T.tolist() == from_rollout.turn_T.tolist()


def test_only_assistant_turns_are_learned(renderer):
    messages = (
        Message(role="user", content="hello"),
        tool_turn("guess", {"number": 3}),
        Message(role="tool", content="higher 4 15", tool_call_id="call_0", name="guess"),
        Message(role="assistant", content="I give up."),
    )
    sample = conversation_sample(messages, renderer=renderer, sample_id="x", tools=TOOLS)
    learned = renderer.decode(sample.token_ids_T[sample.is_sampled_T].tolist())
    assert learned == (
        '<tool_call>\n{"name": "guess", "arguments": {"number": 3}}\n</tool_call><|im_end|>I give up.<|im_end|>'
    )


def test_a_conversation_without_an_assistant_is_refused(renderer):
    with pytest.raises(DataError, match="no assistant turn"):
        conversation_sample((Message(role="user", content="x"),), renderer=renderer, sample_id="x")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x"}, "field 'messages' is missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "field 'role' is 'robot'"),
        ({"messages": 3}, "field 'messages'"),
        ({"messages": [], "tools": "{"}, "'tools' is text that is not JSON"),
        ({"messages": [], "tools": [1]}, "expected a list of function schemas"),
    ],
)
def test_a_bad_row_is_named_with_file_row_and_field(tmp_path, row, said):
    file = tmp_path / "talk.jsonl"
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    file.write_text(json.dumps(good) + "\n" + json.dumps(row))
    with pytest.raises(DataError) as error:
        read_conversations(file)
    assert "talk.jsonl, row 1" in str(error.value)
    assert said in str(error.value)


def test_the_number_of_steps_counts_the_last_short_batch():
    assert num_sft_steps(SFTConfig(batch_size=32, num_epochs=2), num_samples=65) == 6

"""Episodes with images: from the environment to the engine, into the record and back out of the store."""

import asyncio
from typing import Any

import pytest

from agentenv import ToolEnv, reward, tool, tool_turn
from agentenv.byte_tokenizer import byte_tokenizer, vision_byte_tokenizer
from agentenv.engine.scripted import ScriptedEngine, ScriptedRequest
from agentenv.episode import EpisodeSpec, Limits
from agentenv.errors import DataError, ToolError, UsageError
from agentenv.messages import Image, Message, images_of
from agentenv.renderer import Renderer
from agentenv.runner import Runner, RunnerConfig
from agentenv.store import TrajectoryStore
from agentenv.trainers.samples_from import assign, cross_entropy_samples
from agentenv.trainers.sft import conversation_sample
from agentenv.trajectory import Group, StopReason, Trajectory
from agentenv.transcript import transcript_of
from tests.engine.small_engines import engine_of
from tests.engine.small_models import qwen3
from tests.engine.small_vision_models import picture
from tests.test_vision import runs

CARD = picture(112, 56)  # 4 x 2 merged patches of 28 x 28: 8 tokens
CLOSE_UP = picture(56, 56, seed=1)  # 4 tokens
BROKEN = Image(data=CARD.data[:60])


class Cards(ToolEnv):
    """Say what is on the card; looking closer shows one corner of it. Reward 1 for saying "seven"."""

    inline = True
    card = CARD
    said = ""

    def setup(self, rng: Any, task: Any) -> Message:
        return Message(role="user", content="Which card is this? ", images=(self.card.at(20),))

    @tool
    def zoom(self, corner: str) -> list[object]:
        """Look closer.

        Args:
            corner: e.g. "left".
        """
        if corner == "nowhere":
            raise ToolError("no such corner")
        if corner == "torn":
            return ["torn: ", BROKEN]
        return [f"{corner}: ", CLOSE_UP, " and ", {"again": 1}, CLOSE_UP]

    def answer(self, text: str) -> str:
        self.said = text
        self.finish()
        return ""

    @reward
    def is_seven(self) -> float:
        return float(self.said == "seven")


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(vision_byte_tokenizer(), family="qwen3-vl")


def script(renderer: Renderer, *turns: Message | str) -> list[tuple[int, ...]]:
    said = [Message(role="assistant", content=turn) if isinstance(turn, str) else turn for turn in turns]
    return [renderer.turn_ids(message) for message in said]


def zoom(corner: str = "left") -> Message:
    return tool_turn("zoom", {"corner": corner})


async def play(
    renderer: Renderer, engine: Any, *, env: type[ToolEnv] = Cards, limits: Limits | None = None
) -> Trajectory:
    config = RunnerConfig(limits=limits or Limits(), max_retries=0)
    runner = Runner(engine=engine, renderer=renderer, config=config, make_env=lambda spec: env())
    return await runner.run_episode(EpisodeSpec(env_id="tests/Cards-v0"))


async def test_the_engine_gets_one_image_for_every_run_of_placeholders_in_order(renderer):
    engine = ScriptedEngine(script(renderer, zoom(), "seven"), keep_exchanges=True)
    trajectory = await play(renderer, engine)

    first, second = (exchange.request for exchange in engine.exchanges)
    placeholder = renderer.vision.token_id
    assert [image.digest for image in first.images] == [CARD.digest]
    assert runs(first.prompt_ids, placeholder) == [8]
    assert [image.digest for image in second.images] == [CARD.digest, CLOSE_UP.digest, CLOSE_UP.digest]
    assert runs(second.prompt_ids, placeholder) == [8, 4, 4]
    # prompt and completion stand in the next prompt as they were
    assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
    (sequence,) = trajectory.sequences
    assert sequence.images == second.images
    assert trajectory.reward == 1.0
    shown = trajectory.messages[2]
    assert shown.content == 'left:  and {"again": 1}'
    assert [image.position for image in shown.images] == [6, 23]


async def test_the_trajectory_comes_back_from_the_store_with_its_images(renderer, tmp_path):
    trajectory = await play(renderer, ScriptedEngine(script(renderer, zoom(), "seven")))
    store = TrajectoryStore(tmp_path)
    store.append([trajectory], step=3, phase="eval")
    (stored,) = store.scan()
    assert stored.trajectory.messages == trajectory.messages
    assert [one.images for one in stored.trajectory.sequences] == [one.images for one in trajectory.sequences]
    assert images_of(stored.trajectory.messages) == images_of(trajectory.messages)


async def test_people_see_where_images_stood(renderer):
    trajectory = await play(renderer, ScriptedEngine(script(renderer, zoom(), "seven")))
    text = transcript_of(trajectory, step=0, phase="eval").text
    assert "[user] Which card is this? [image 112x56]" in text
    assert '[tool] left: [image 56x56] and {"again": 1}[image 56x56]' in text


async def test_a_damaged_image_of_the_environment_fails_its_episode_only(renderer):
    class TornCards(Cards):
        card = BROKEN

    trajectory = await play(renderer, ScriptedEngine(script(renderer, "seven")), env=TornCards)
    assert trajectory.stop_reason is StopReason.ENV_ERROR
    assert "the image cannot be read" in trajectory.error


async def test_a_damaged_image_of_a_tool_fails_its_episode_as_the_tools_fault(renderer):
    trajectory = await play(renderer, ScriptedEngine(script(renderer, zoom("torn"), "seven")))
    assert trajectory.stop_reason is StopReason.TOOL_ERROR
    assert "zoom: UsageError: the image cannot be read" in trajectory.error


async def test_a_refused_call_carries_no_images(renderer):
    trajectory = await play(renderer, ScriptedEngine(script(renderer, zoom("nowhere"), "seven")))
    assert trajectory.messages[2].content == "Error: no such corner"
    assert trajectory.messages[2].images == ()
    assert trajectory.reward == 1.0


async def test_images_for_a_text_model_stop_the_run_at_once():
    text_only = Renderer(byte_tokenizer(), family="qwen3")
    with pytest.raises(UsageError, match="bytes reads text only"):
        await play(text_only, ScriptedEngine([text_only.turn_ids(Message(role="assistant", content="seven"))]))


async def test_the_embedded_engine_refuses_images_and_says_what_takes_them(renderer):
    engine = engine_of(qwen3())
    try:
        trajectory = await play(renderer, engine)
    finally:
        await engine.close()
    assert trajectory.stop_reason is StopReason.ENGINE_ERROR
    assert "the embedded engine serves text models" in trajectory.error


async def test_an_observation_beyond_its_budget_keeps_whole_images(renderer):
    engine = ScriptedEngine(script(renderer, zoom(), "seven"))
    trajectory = await play(renderer, engine, limits=Limits(max_observation_tokens=10))
    prompt, _, shown, _ = trajectory.messages
    assert [image.digest for image in prompt.images] == [CARD.digest]  # 8 tokens and 2 markers: just as many
    assert prompt.content == "\n[... 20 tokens omitted ...]\n"
    assert [image.digest for image in shown.images] == [CLOSE_UP.digest]  # 6 of 10 tokens; the second does not fit
    assert len(runs(trajectory.sequences[0].token_ids, renderer.vision.token_id)) == 2


async def test_the_context_budget_counts_image_tokens(renderer):
    prompt = len(renderer.prompt_ids((Cards().setup(None, None),), tools=Cards().tool_specs))
    engine = ScriptedEngine(script(renderer, "seven"))
    trajectory = await play(renderer, engine, limits=Limits(max_context_tokens=prompt))
    assert trajectory.stop_reason is StopReason.CONTEXT_OVERFLOW
    enough = await play(renderer, engine, limits=Limits(max_context_tokens=prompt + 6))
    assert enough.stop_reason is StopReason.COMPLETED


async def test_a_placeholder_that_the_policy_writes_never_takes_the_place_of_an_image(renderer):
    placeholder = renderer.vision.token_id
    (call, end) = script(renderer, zoom(), "seven")

    def speak(request: ScriptedRequest) -> tuple[int, ...]:
        return (placeholder, *call) if request.turn == 0 else end

    engine = ScriptedEngine(speak, keep_exchanges=True)
    trajectory = await play(renderer, engine)

    second = engine.exchanges[1].request
    assert runs(second.prompt_ids, placeholder) == [8, 4, 4]
    assert len(second.images) == 3
    assert len(trajectory.sequences) == 2
    assert trajectory.metrics["history_breaks"] == 1.0
    assert trajectory.turns[0].sequence == 0  # what was sampled stays as it was
    assert trajectory.sequences[0].token_ids[trajectory.turns[0].start] == placeholder
    assert "<\u200b|image_pad|>" in renderer.decode(second.prompt_ids)


async def test_many_members_of_a_group_see_the_same_image(renderer):
    engine = ScriptedEngine(script(renderer, "seven"), latency_s=0.001, keep_exchanges=True)
    await asyncio.gather(*(play(renderer, engine) for _ in range(8)))
    assert {exchange.request.prompt_ids for exchange in engine.exchanges} == {engine.exchanges[0].request.prompt_ids}
    assert all(exchange.request.images[0].digest == CARD.digest for exchange in engine.exchanges)


# The trainer reads text only.


async def test_training_on_images_is_refused_and_says_what_is_supported(renderer):
    trajectory = await play(renderer, ScriptedEngine(script(renderer, "seven")))
    said = "1 images in its prompt, and the trainer reads token ids only. Supported are training of text models"
    with pytest.raises(UsageError, match=said):
        assign([Group(group_id="0", trajectories=(trajectory,))], advantage="rloo")
    with pytest.raises(UsageError, match=said):
        cross_entropy_samples([trajectory])


def test_demonstrations_with_images_are_refused(renderer):
    messages = (Message(role="user", content="", images=(CARD,)), Message(role="assistant", content="seven"))
    with pytest.raises(DataError, match="row 3: a message has images, and the trainer reads text only"):
        conversation_sample(messages, renderer=renderer, sample_id="row 3")


def test_gymnasium_users_find_images_in_the_messages_of_info():
    env = Cards(render_mode="ansi")
    text, info = env.reset(seed=0)
    assert text == "Which card is this? "
    kinds = [part["type"] for part in info["messages"][0]["content"]]
    assert kinds == ["text", "image_url"]
    assert env.render() == "[user] Which card is this? [image 112x56]"

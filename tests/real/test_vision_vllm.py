"""The real vLLM with images, against transformers: counts of tokens, log-probs, caches. Runs in vLLM's environment."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from transformers import AutoImageProcessor, AutoProcessor

from agentenv import ToolEnv, tool, tool_turn
from agentenv.agent.chat import ChatAgent
from agentenv.agent.policy import record_spoken
from agentenv.content import segments
from agentenv.engine.protocol import Completion, SamplingParams
from agentenv.engine.server_config import ServerConfig
from agentenv.engine.vllm import VLLMEngine
from agentenv.episode import Episode, EpisodeSpec, Limits
from agentenv.errors import EngineError
from agentenv.messages import Image, Message, images_of
from agentenv.renderer import Renderer
from agentenv.runner import Runner, RunnerConfig
from agentenv.tokenizer import load_tokenizer
from agentenv.trajectory import StopReason
from tests.engine.small_vision_models import Kind, decoded, load_model, picture, reference_logprobs, save_model

try:
    importlib.import_module("torchvision")  # vLLM's image and video processors need it
except Exception as error:
    pytest.skip(
        f"torchvision cannot be imported ({error}): pip install --no-deps torchvision; beside a CPU torch also call "
        "agentenv.engine.torchvision_beside_cpu_torch.install(SITE_PACKAGES)",
        allow_module_level=True,
    )

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]

CARD, CLOSE_UP = picture(100, 60, seed=1), picture(90, 200, seed=2, media_type="image/jpeg")
TOLERANCE = 5e-3  # float32; vLLM's vision tower orders its sums differently


@dataclass(frozen=True, kw_only=True)
class Seeing:
    """An engine and what is needed to check it."""

    engine: VLLMEngine
    renderer: Renderer
    model: Any
    folder: Path

    def reference(self, token_ids: Any, images: Any) -> list[float]:
        processor = AutoImageProcessor.from_pretrained(self.folder)
        return reference_logprobs(self.model, token_ids, images, processor=processor).tolist()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["qwen2-vl", "qwen3-vl"])
async def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Seeing]:
    kind: Kind = request.param
    folder = save_model(tmp_path_factory.mktemp("model"), kind=kind)
    config = ServerConfig(
        name="vllm",
        place="in_process",
        max_length=1024,
        max_slots=8,
        cache_tokens=8192,
        dtype="float32",
        options={"enforce_eager": True},
    )
    engine = await VLLMEngine.open(folder, config=config)
    yield Seeing(
        engine=engine,
        renderer=Renderer(load_tokenizer(folder)),
        model=load_model(folder, kind=kind),
        folder=folder,
    )
    await engine.close()


class Cards(ToolEnv):
    """Shows a card in the prompt, and a corner of it when asked to zoom in."""

    inline = True

    def setup(self, rng: Any, task: Any) -> Message:
        return Message(role="user", content="Which card is this? ", images=(CARD.at(12),))

    @tool
    def zoom(self, corner: str) -> list[str | Image]:
        """Look closer.

        Args:
            corner: e.g. "left".
        """
        return [f"{corner}: ", CLOSE_UP, " again: ", CARD]

    def answer(self, text: str) -> str:
        if self.num_turns > 2:
            self.finish()
        return "Look closer."


class ZoomingAgent(ChatAgent):
    """The model speaks, but its second turn is a call of the tool."""

    async def speak(self, episode: Episode) -> Completion:
        if episode.recorder.num_turns == 1:
            return record_spoken(episode, tool_turn("zoom", {"corner": "left"}))
        return await super().speak(episode)


def runs(token_ids: Any, token: int) -> list[int]:
    return [len(list(group)) for value, group in groupby(token_ids) if value == token]


async def ask(seeing: Seeing, messages: tuple[Message, ...], **options: Any) -> tuple[list[int], Completion]:
    ids = seeing.renderer.prompt_ids(messages)
    sampling = SamplingParams(**{"max_tokens": 8, "seed": 3, **options})
    completion = await seeing.engine.generate(
        ids, sampling, session_id="0" * 16, deadline_s=300, images=images_of(messages)
    )
    return list(ids), completion


async def test_an_episode_with_images_in_prompt_and_tool_result_has_the_log_probs_of_transformers(seeing):
    limits = Limits(max_turn_tokens=12, max_context_tokens=1024, step_timeout_s=300)
    runner = Runner(
        engine=seeing.engine,
        renderer=seeing.renderer,
        agent=ZoomingAgent(),
        config=RunnerConfig(limits=limits, max_retries=0),
        make_env=lambda spec: Cards(),
    )
    trajectory = await runner.run_episode(EpisodeSpec(env_id="tests/Cards-v0"))

    assert trajectory.error == ""
    assert trajectory.stop_reason in (StopReason.COMPLETED, StopReason.MAX_TOKENS)
    (sequence,) = trajectory.sequences
    count = seeing.renderer.vision.num_tokens
    assert runs(sequence.token_ids, seeing.renderer.vision.token_id) == [count(CARD), count(CLOSE_UP), count(CARD)]
    assert len(sequence.images) == 3
    expected = seeing.reference(sequence.token_ids.tolist(), sequence.images)
    spoken = [turn for turn in trajectory.turns if turn.weight_versions[0].version >= 0]
    assert [trajectory.turns.index(turn) for turn in spoken] == [0, 2]
    for turn in spoken:
        assert turn.num_tokens > 0
        differences = sequence.logprobs[turn.start : turn.end] - expected[turn.start - 1 : turn.end - 1]
        assert abs(differences).max() < TOLERANCE


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 1), (1, 190), (32, 32), (100, 60), (60, 100), (255, 257), (640, 480), (1000, 7), (41, 43), (500, 500)],
)
async def test_vllm_reads_every_size_as_the_tokens_that_were_counted(seeing, width, height):
    image = picture(width, height)
    message = Message(role="user", content="What is this?", images=(image,))
    # the engine refuses a completion whose prompt, as vLLM expanded it, is not the one that it was given
    ids, completion = await ask(seeing, (message,), max_tokens=1)
    assert runs(ids, seeing.renderer.vision.token_id) == [seeing.renderer.vision.num_tokens(image)]
    assert len(completion.token_ids) == 1


async def test_a_prompt_with_another_number_of_placeholders_is_refused(seeing):
    image = picture(64, 64)
    ids = seeing.renderer.prompt_ids((Message(role="user", content="", images=(image,)),))
    place = ids.index(seeing.renderer.vision.token_id)
    longer = (*ids[:place], ids[place], *ids[place:])
    for prompt, images in ((longer, (image,)), (ids, (image, image)), (ids, (picture(200, 200),))):
        with pytest.raises(EngineError):
            await seeing.engine.generate(
                prompt, SamplingParams(max_tokens=1), session_id="0" * 16, deadline_s=300, images=images
            )


async def test_an_image_of_the_same_size_is_never_served_from_the_cache_of_another(seeing):
    for seed in (1, 2, 1):
        message = Message(role="user", content="Describe it. " * 8, images=(picture(64, 64, seed=seed),))
        ids, completion = await ask(seeing, (message,))
        expected = seeing.reference([*ids, *completion.token_ids], message.images)[len(ids) - 1 :]
        differences = [abs(got - true) for got, true in zip(completion.logprobs, expected, strict=True)]
        assert max(differences) < TOLERANCE


async def test_the_rendering_is_that_of_the_models_processor(seeing):
    """The whole of transformers' processor, which needs torchvision and so cannot be asked elsewhere."""
    messages = (
        Message(role="user", content="Look: here?", images=(CARD.at(6), CLOSE_UP.at(6))),
        Message(role="assistant", content="I see."),
        Message(role="user", content="And this?", images=(picture(41, 43, position=9),)),
    )
    processor: Any = AutoProcessor.from_pretrained(seeing.folder)
    expected = processor.apply_chat_template(
        [_with_pixels(message) for message in messages],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
    )
    assert list(seeing.renderer.prompt_ids(messages)) == list(expected["input_ids"][0])


def _with_pixels(message: Message) -> dict[str, Any]:
    """Return a message as transformers wants it; its own decoder needs torchvision's native library."""
    parts = [
        {"type": "image", "image": decoded(piece)} if isinstance(piece, Image) else {"type": "text", "text": piece}
        for piece in segments(message.content, message.images)
    ]
    return {"role": message.role, "content": parts}

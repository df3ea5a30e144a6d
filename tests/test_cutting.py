"""Observations cut to a budget: images whole or named, order and positions kept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv.byte_tokenizer import vision_byte_tokenizer
from agentenv.messages import Message
from agentenv.renderer import Renderer
from tests.engine.small_vision_models import picture


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(vision_byte_tokenizer(), family="qwen3-vl")


def test_a_message_within_its_budget_is_not_touched(renderer):
    message = Message(role="tool", content="seen", images=(picture(100, 60),))
    num_tokens = renderer.vision.num_tokens(message.images[0])
    assert renderer.cut(message, max_tokens=num_tokens + 2 + 4) == message


def test_images_are_whole_or_left_out_with_a_note(renderer):
    small, large = picture(56, 56, position=1), picture(560, 560, position=2)  # 4 and 400 tokens, 2 markers each
    message = Message(role="tool", content="abc", images=(small, large))

    cut = renderer.cut(message, max_tokens=405)

    assert cut.images == (small,)
    assert cut.content == "ab[image 560x560 omitted: 402 tokens]c"
    # the last image has precedence and takes the whole budget: "a[image 56x56 omitted: 6 tokens]bc" goes
    assert renderer.cut(message, max_tokens=402, keep="tail") == Message(
        role="tool", content="\n[... 34 tokens omitted ...]\n", images=(large.at(0),)
    )


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(max_size=60),
    places=st.lists(st.integers(0, 70), max_size=3),
    max_tokens=st.integers(0, 60),
    keep=st.sampled_from(["head", "tail", "middle"]),
)
def test_cutting_keeps_order_and_budget_wherever_images_stand(renderer, text, places, max_tokens, keep):
    images = tuple(picture(56, 56, seed=seed, position=place) for seed, place in enumerate(sorted(places)))
    cut = renderer.cut(Message(role="tool", content=text, images=images), max_tokens=max_tokens, keep=keep)

    kept = [image.digest for image in cut.images]
    assert kept == [image.digest for image in images if image.digest in kept]
    assert len(kept) == min(len(images), max_tokens // 6)
    assert [image.position for image in cut.images] == sorted(image.position for image in cut.images)
    assert all(0 <= image.position <= len(cut.content) for image in cut.images)
    room = max_tokens - 6 * len(kept)
    mark = 1 + len("[... 999 tokens omitted ...]") + 1
    character = 3  # a cut through a character of four bytes keeps it whole
    assert len(cut.content.encode("utf-8", "replace")) <= room + mark + character

"""The tiny tokenizer and model: lossless, merging, rendered like Qwen3, and deterministic."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from renderers.configs import Qwen3RendererConfig
from renderers.qwen3 import Qwen3Renderer

from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.protocol import SamplingParams
from agentenv.errors import UsageError
from agentenv.messages import Message, ToolCall
from agentenv.trainers.model import load_policy
from agentenv.trainers.tiny import (
    CONTROL_TOKENS,
    MARKUP_TOKENS,
    TinyConfig,
    make_tiny_model,
    make_tiny_tokenizer,
    save_tiny,
)

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "guess",
            "description": "Guess the number, naïvely.",
            "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
        },
    }
]


def call(number: int, **extra: Any) -> dict[str, Any]:
    function = {"name": "guess", "arguments": {"number": number}}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}], **extra}


USER = {"role": "user", "content": "Guess my number from 1 to 15."}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "7"}],
    "two questions": [USER, {"role": "assistant", "content": "7"}, USER, {"role": "assistant", "content": "8"}],
    "tool turns": [
        USER,
        call(8),
        {"role": "tool", "content": "higher 9 15"},
        call(12, content="Then higher."),
        {"role": "tool", "content": "correct"},
    ],
    "two calls in a turn": [
        USER,
        {**call(8), "tool_calls": call(8)["tool_calls"] + call(9)["tool_calls"]},
        {"role": "tool", "content": "higher 9 15"},
        {"role": "tool", "content": "higher 10 15"},
        {"role": "assistant", "content": "I give up."},
    ],
    "arguments as text": [
        USER,
        {"role": "assistant", "content": "x", "tool_calls": [{"name": "guess", "arguments": '{"number":1}'}]},
    ],
    "reasoning": [USER, call(8, reasoning_content="Halve it.\n"), {"role": "tool", "content": "higher 9 15"}],
    "reasoning in the text": [USER, {"role": "assistant", "content": "<think>\nHalve it.\n</think>\n\nEight."}],
    "old reasoning": [USER, {"role": "assistant", "content": "7", "reasoning_content": "Hm."}, USER],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Guess"}, {"type": "text", "text": " it."}]}],
    "a result in a question": [{"role": "user", "content": " <tool_response>5</tool_response> "}, call(3)],
    "a late system message": [USER, {"role": "system", "content": "Hurry."}, {"role": "assistant", "content": "\n7"}],
}


def transcripts(count: int = 60) -> list[list[Message]]:
    def turn(index: int, number: int) -> list[Message]:
        call = ToolCall(call_id=f"call_{index}_0", name="guess", arguments={"number": number})
        reply = f"{('higher', 'lower')[number % 2]} {number} 15"
        return [Message(role="assistant", content="", tool_calls=(call,)), Message(role="tool", content=reply)]

    prompt = Message(role="user", content="Guess my number from 1 to 15.")
    return [[prompt, *turn(0, index % 15 + 1), *turn(1, index % 7 + 1)] for index in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_tiny(path, transcripts(), tools=TOOLS, config=TinyConfig(template="qwen3"), seed=0)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_policy(folder).tokenizer


@pytest.mark.parametrize("enable_thinking", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_chat_template_renders_what_the_qwen3_renderer_renders(
    tokenizer: Any, name: str, tools: list[Any] | None, enable_thinking: bool
):
    renderer: Any = Qwen3Renderer(tokenizer, Qwen3RendererConfig(enable_thinking=enable_thinking))
    for opens_turn in (False, True):
        expected = renderer.render_ids(CONVERSATIONS[name], tools=tools, add_generation_prompt=opens_turn)
        options = {"add_generation_prompt": opens_turn, "enable_thinking": enable_thinking}

        ids = tokenizer.apply_chat_template(CONVERSATIONS[name], tools=tools, return_dict=False, **options)
        text = tokenizer.apply_chat_template(CONVERSATIONS[name], tools=tools, tokenize=False, **options)

        assert text == tokenizer.decode(expected)
        assert ids == expected


def test_the_compact_template_is_the_same_markup_without_instructions_and_line_breaks(tmp_path: Path):
    save_tiny(tmp_path, transcripts(), tools=TOOLS, config=TinyConfig(template="compact"), seed=0)
    compact: Any = load_policy(tmp_path).tokenizer
    messages = [message.to_dict() for message in transcripts(8)[7][:3]]

    ids = compact.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True, return_dict=False)

    assert compact.decode(ids) == (
        "<|im_start|>system guess(number)<|im_end|><|im_start|>user Guess my number from 1 to 15.<|im_end|>"
        '<|im_start|>assistant <tool_call>{"name": "guess", "arguments": {"number": 8}}</tool_call><|im_end|>'
        "<tool_response>higher 8 15</tool_response><|im_start|>assistant "
    )
    assert len(ids) < 40


def test_boilerplate_merges_so_that_a_call_takes_few_tokens(tokenizer: Any):
    text = '<tool_call>\n{"name": "guess", "arguments": {"number": 12}}\n</tool_call><|im_end|>'

    tokens = [tokenizer.decode([token_id]) for token_id in tokenizer.encode(text)]

    name_and_key = '{"name": "guess", "arguments": {"number": '
    assert tokens == ["<tool_call>", "\n", name_and_key, "12", "}}", "\n", "</tool_call>", "<|im_end|>"]


def test_whole_numbers_below_100_are_single_tokens_wherever_they_stand(tokenizer: Any):
    for number in range(100):
        ids = tokenizer.encode(f"from{number}:")
        assert str(number) in [tokenizer.decode([token_id]) for token_id in ids]
        assert len(tokenizer.encode(str(number))) == 1


@given(text=st.text())
def test_any_text_survives_encoding(tokenizer: Any, text: str):
    plain = text.replace("<", "")  # control tokens decode to themselves as well, but are not plain text

    assert tokenizer.decode(tokenizer.encode(plain)) == plain


def test_no_learned_token_crosses_a_newline_a_number_or_a_control_token(tokenizer: Any):
    reserved = CONTROL_TOKENS + MARKUP_TOKENS
    for token_id in range(len(tokenizer)):
        token = tokenizer.decode([token_id])
        if token in reserved:
            continue
        assert token == "\n" or "\n" not in token
        assert token.isdecimal() or not any(character in "0123456789" for character in token)
        assert not any(name in token for name in reserved)


def test_control_tokens_are_special_and_markup_is_not(tokenizer: Any):
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}

    assert added == {**dict.fromkeys(CONTROL_TOKENS, True), **dict.fromkeys(MARKUP_TOKENS, False)}
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.encode("".join(added)) == sorted(tokenizer.added_tokens_decoder)


def test_training_twice_gives_the_same_tokenizer():
    texts = [json.dumps({"text": "abc abd " * index}) for index in range(9)]

    first, second = (make_tiny_tokenizer(texts, vocab_size=400).get_vocab() for _ in range(2))

    assert first == second
    assert len(first) <= 400


def test_a_vocabulary_without_room_for_bytes_and_numbers_is_refused():
    with pytest.raises(UsageError, match="vocab_size is 354; bytes, numbers and control tokens alone take 355"):
        make_tiny_tokenizer(["a"], vocab_size=354)


def test_the_default_model_has_two_blocks_of_width_64():
    model = make_tiny_model(400, seed=0)

    # per block: 4 projections of 64 x 64, 3 of 64 x 192, 2 norms of 64, 2 head norms of 16; then embedding and norm
    assert model.num_parameters() == 2 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64 + 2 * 16) + 400 * 64 + 64
    assert model.config.rope_parameters == {"rope_type": "default", "rope_theta": 500.0}
    assert 0.095 < model.model.embed_tokens.weight.std().item() < 0.105


def test_weights_are_a_function_of_the_seed_and_the_global_state_is_left_alone():
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)

    first, second, other = (make_tiny_model(300, seed=seed).state_dict() for seed in (0, 0, 1))

    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_heads_of_odd_size_are_refused():
    with pytest.raises(
        UsageError, match="hidden_size 60 does not divide into 4 heads of even size; take a multiple of 8"
    ):
        make_tiny_model(300, seed=0, hidden_size=60)


def test_the_configuration_sets_the_sizes(tmp_path: Path):
    config = TinyConfig(vocab_size=360, hidden_size=32, num_layers=1, num_heads=2)

    save_tiny(tmp_path, transcripts(3), config=config, seed=0)

    model = load_policy(tmp_path).model.causal_lm
    assert (
        model.config.to_dict().items()
        >= {
            "vocab_size": 360,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 2048,
        }.items()
    )


def test_the_folder_is_served_by_the_engine_and_stops_at_the_end_of_a_turn(folder: Path):
    policy = load_policy(folder)
    tokenizer: Any = policy.tokenizer
    engine = HFEngine.from_pretrained(folder, config=HFEngineConfig(max_length=256))
    end = tokenizer.eos_token_id
    prompt = tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    sampling = SamplingParams(max_tokens=200, stop_ids=(end,), seed=0)

    completion = asyncio.run(engine.generate(prompt, sampling, session_id="s", deadline_s=60))

    assert engine.vocab_size == policy.model.vocab_size == len(tokenizer)
    assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == end)

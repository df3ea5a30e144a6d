"""A small Qwen3 and a tokenizer trained on the spot: real files of a real architecture, made in a second.

Quickstart, tests and documentation train it on a laptop. The tokenizer keeps every byte, so it is lossless on any text,
and merges what the given texts repeat: JSON boilerplate becomes a few long tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import tokenizers
import torch
from pydantic import Field
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.chat_template_utils import render_jinja_template

from agentenv.byte_tokenizer import CONTROL_TOKENS, MARKUP_TOKENS
from agentenv.config import Config
from agentenv.errors import UsageError
from agentenv.messages import Message

NUM_NUMBERS = 100
"""Whole numbers 0..99 are single tokens."""

_NUM_BYTES = 256
_NUM_FIXED = _NUM_BYTES + (NUM_NUMBERS - 10) + len(CONTROL_TOKENS) + len(MARKUP_TOKENS)
# a newline always stands alone, so a text encodes to the same ids whether a template or a renderer split it there;
# digits go by twos, so no number hides inside a longer token; a role is never merged with what is said in it
_PIECES = r"\n|[0-9]{1,2}|(?:assistant|user|system) "

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}{%- for part in content -%}{{ part if part is string else part.text }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set found = namespace(query=messages | length - 1, searching=true) -%}
{%- for message in messages | reverse -%}
{%- if found.searching and message.role == 'user' -%}
{%- set said = text(message.content) | trim -%}
{%- if not (said.startswith('<tool_response>') and said.endswith('</tool_response>')) -%}
{%- set found.query = messages | length - loop.index -%}{%- set found.searching = false -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if tools -%}
{{ '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' -%}{{ text(messages[0].content) + '\\n\\n' }}{%- endif -%}
{{ tools_header }}
{%- for tool in tools -%}{{ '\\n' + (tool | tojson) }}{%- endfor -%}
{{ tools_footer + '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' -%}
{{ '<|im_start|>system\\n' + text(messages[0].content) + '<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}
{{ '<|im_start|>' + message.role + '\\n' + text(message.content) + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' -%}
{%- set content = text(message.content) -%}
{%- set reasoning = '' -%}
{%- if message.reasoning_content is string -%}
{%- set reasoning = message.reasoning_content -%}
{%- elif '</think>' in content -%}
{%- set halves = content.split('</think>', 1) -%}
{%- set reasoning = halves[0].split('<think>')[-1].lstrip('\\n').rstrip('\\n') -%}
{%- set content = halves[1].lstrip('\\n') -%}
{%- endif -%}
{%- set is_fresh = loop.index0 > found.query and (loop.last or reasoning) -%}
{%- set is_unthinking = enable_thinking is defined and not enable_thinking and not reasoning -%}
{{ '<|im_start|>assistant\\n' }}
{%- if is_fresh or is_unthinking -%}
{{ '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else -%}{{ content }}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{{ '\\n' if content or not loop.first }}
{{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' }}
{{- function.arguments if function.arguments is string else function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- elif message.role == 'tool' -%}
{{ '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' }}
{{- '\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response>' }}
{{- '<|im_end|>\\n' if loop.last or loop.nextitem.role != 'tool' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}
{%- endif -%}
"""
"""Renders what Qwen3's chat format prescribes, with tools, calls, results and reasoning."""

# the wire format that Qwen3 was trained on; a renderer must produce it to the byte
_TOOLS_HEADER = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""
_TOOLS_FOOTER = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


# The same markup without instructions or line breaks: a small model learns the format from examples, and every token of
# a prompt is paid for in every training step.
COMPACT_TEMPLATE = (
    "{%- if tools -%}<|im_start|>system"
    "{%- for tool in tools -%}{{ ' ' + tool.function.name + '(' + "
    "tool.function.parameters.properties | join(', ') + ')' }}{%- endfor -%}<|im_end|>{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'tool' -%}<tool_response>{{ message.content }}</tool_response>"
    "{%- else -%}<|im_start|>{{ message.role + ' ' + message.content }}"
    "{%- for call in message.tool_calls or [] -%}<tool_call>"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}</tool_call>{%- endfor -%}"
    "<|im_end|>{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>{{ 'assistant ' }}{%- endif -%}"
)


class TinyConfig(Config):
    """A small Qwen3 made on the spot."""

    max_length: ClassVar[int] = 2048
    """Positions of the model."""
    template: Literal["compact", "qwen3"] = "compact"
    """Chat format: Qwen3's own, or the same markup without instructions and line breaks."""

    vocab_size: int = Field(default=768, ge=_NUM_FIXED)
    """Tokens at most: 256 bytes, the numbers up to 99, the control tokens, and merges for the rest."""
    hidden_size: int = Field(default=64, ge=16)
    """Width; a multiple of num_heads."""
    num_layers: int = Field(default=2, ge=1)
    """Blocks."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads; each is hidden_size / num_heads wide, which must be even."""


def make_tiny_tokenizer(
    texts: Iterable[str], *, vocab_size: int = 768, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """Train byte-pair encoding on texts, without a split into words, so that whole phrases merge.

    Args:
        texts: what the model will read and write; control and markup tokens in them are cut out first, so no merge
            reaches across one.
        vocab_size: tokens at most, fixed ones included; at least 355. Merges seen only once are not made.
        chat_template: Jinja text; None is Qwen3's chat format.

    Returns:
        A tokenizer with Qwen3's control tokens. Every text encodes without loss.

    Raises:
        UsageError: `vocab_size` leaves no room for the fixed tokens.
    """
    if vocab_size < _NUM_FIXED:
        raise UsageError(f"vocab_size is {vocab_size}; bytes, numbers and control tokens alone take {_NUM_FIXED}")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = BpeTrainer(
        vocab_size=vocab_size - (_NUM_FIXED - _NUM_BYTES),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    between = re.compile("|".join(map(re.escape, CONTROL_TOKENS + MARKUP_TOKENS)))
    # digits are left out: the numbers get their tokens below, whatever the texts contain
    pieces = (re.sub("[0-9]+", "\n", piece) for text in texts for piece in between.split(text))
    backend.train_from_iterator(pieces, trainer)
    return _wrap(_with_numbers(backend), chat_template=qwen3_template() if chat_template is None else chat_template)


def make_tiny_model(
    vocab_size: int,
    *,
    seed: int,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    num_key_heads: int | None = None,
    max_length: int = 2048,
    initializer_range: float = 0.1,
    tie_embeddings: bool = True,
) -> Qwen3ForCausalLM:
    """Make a randomly initialised Qwen3, 3 x hidden_size wide in its MLP, with a rotation base of 500.

    Args:
        vocab_size: ids to embed.
        seed: of the weights; the global random state is left as it was.
        hidden_size: width.
        num_layers: blocks.
        num_heads: attention heads.
        num_key_heads: heads of keys and values; None is `num_heads`.
        max_length: positions.
        initializer_range: standard deviation of the weights; at 0.02, usual for large models, training sits on a
            plateau.
        tie_embeddings: True shares input and output embedding.

    Raises:
        UsageError: the width does not divide into heads of even size.
    """
    if hidden_size % (2 * num_heads):
        raise UsageError(
            f"hidden_size {hidden_size} does not divide into {num_heads} heads of even size; take a multiple of "
            f"{2 * num_heads}"
        )
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads if num_key_heads is None else num_key_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=max_length,
        initializer_range=initializer_range,
        tie_word_embeddings=tie_embeddings,
        # short sequences: the slowest rotation should still turn within them
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).eval()


def save_tiny(
    folder: str | Path,
    conversations: Iterable[Sequence[Message]],
    *,
    tools: Sequence[Mapping[str, object]] = (),
    config: TinyConfig | None = None,
    seed: int,
) -> None:
    """Train a tokenizer on conversations, make a model for it, and save both as a Hugging Face folder.

    Args:
        folder: made if missing.
        conversations: examples of what will be said; they are rendered with the chat template.
        tools: schemas that stand in every prompt.
        config: sizes.
        seed: of the weights.
    """
    config = TinyConfig() if config is None else config
    template = COMPACT_TEMPLATE if config.template == "compact" else qwen3_template()
    texts = [
        _render([message.to_dict() for message in said], tools=tools, chat_template=template) for said in conversations
    ]
    tokenizer = make_tiny_tokenizer(texts, vocab_size=config.vocab_size, chat_template=template)
    model = make_tiny_model(
        len(tokenizer),
        seed=seed,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        max_length=config.max_length,
    )
    vocab = tokenizer.get_vocab()
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id = vocab["<|im_end|>"], vocab["<|endoftext|>"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _with_numbers(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Give each number from 10 on an id and a merge; pieces of digits hold nothing else, so no rank conflicts."""
    content = json.loads(backend.to_str())
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    for number in range(10, NUM_NUMBERS):
        text = str(number)
        vocab[text] = len(vocab)
        merges.append([text[0], text[1]])
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _wrap(backend: tokenizers.Tokenizer, *, chat_template: str) -> PreTrainedTokenizerFast:
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def qwen3_template() -> str:
    """Return Qwen3's chat template, with the two fixed texts of the tool section set at its top."""
    return (
        f"{{%- set tools_header = {_TOOLS_HEADER!r} -%}}{{%- set tools_footer = {_TOOLS_FOOTER!r} -%}}" + CHAT_TEMPLATE
    )


def _render(messages: list[dict[str, object]], *, tools: Sequence[Mapping[str, object]], chat_template: str) -> str:
    rendered, _ = render_jinja_template(
        conversations=[messages], tools=[dict(tool) for tool in tools] or None, chat_template=chat_template
    )
    return rendered[0]

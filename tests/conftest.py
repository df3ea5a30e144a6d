"""Shared fixtures: renderers that need no file, one per kind of template path."""

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share few cores; threads that spin for each other cost minutes

import pytest
from tokenizers import AddedToken

from agentenv.byte_tokenizer import byte_backend, byte_tokenizer
from agentenv.renderer import Renderer
from agentenv.tokenizer import LeanTokenizer, wrap_tokenizer

LLAMA_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
)

# a template of nobody's family: the generic path must cope with it
PLAIN_TEMPLATE = (
    "{%- if tools %}[tools{% for tool in tools %} {{ tool.function.name }}{% endfor %}]<|im_end|>\n{% endif %}"
    "{%- for message in messages %}[{{ message.role }}]{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    """A Qwen3 renderer over bytes."""
    return Renderer(byte_tokenizer(), family="qwen3")


@pytest.fixture(scope="session")
def llama_renderer() -> Renderer:
    """A Llama 3 renderer over bytes."""
    backend = byte_backend()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LLAMA_TOKENS])
    return Renderer(LeanTokenizer(backend, name_or_path="bytes-llama", eos_token="<|eot_id|>"), family="llama-3")


@pytest.fixture(scope="session")
def template_renderer() -> Renderer:
    """A renderer over an opaque chat template."""
    return Renderer(wrap_tokenizer(full_tokenizer(PLAIN_TEMPLATE)), family="template")


@pytest.fixture(params=["qwen3", "llama-3", "template"])
def any_renderer(request: pytest.FixtureRequest) -> Renderer:
    """Each kind of template path in turn."""
    names = {"qwen3": "renderer", "llama-3": "llama_renderer", "template": "template_renderer"}
    return request.getfixturevalue(names[request.param])


def full_tokenizer(chat_template: str) -> Any:
    """Return a Hugging Face tokenizer over bytes with the given chat template."""
    from transformers import PreTrainedTokenizerFast

    full = PreTrainedTokenizerFast(tokenizer_object=byte_backend(), eos_token="<|im_end|>", pad_token="<|endoftext|>")
    full.chat_template = chat_template
    return full

"""A tokenizer that needs no file: bytes, plus the control tokens of the Qwen3 chat format.

It lets scripted policies, tests and documentation run the real token loop where there is no model.
"""

from __future__ import annotations

import functools

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from agentenv.tokenizer import LeanTokenizer
from agentenv.vision import ImageTokens

CONTROL_TOKENS: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Tokens that only a template may write."""
MARKUP_TOKENS: tuple[str, ...] = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
"""Tokens that a model writes too."""
VISION_TOKENS: tuple[str, ...] = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""Tokens around and in place of images."""


def byte_backend() -> tokenizers.Tokenizer:
    """Return a fresh Rust tokenizer: one token per byte, then the control and markup tokens."""
    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    return backend


@functools.cache
def byte_tokenizer() -> LeanTokenizer:
    """Return the shared byte tokenizer; render with family `"qwen3"`."""
    return LeanTokenizer(byte_backend(), name_or_path="bytes", eos_token="<|im_end|>")


@functools.cache
def vision_byte_tokenizer() -> LeanTokenizer:
    """Return the shared byte tokenizer of a model that sees; render with family `"qwen3-vl"`."""
    backend = byte_backend()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in VISION_TOKENS])
    placeholder = backend.token_to_id("<|image_pad|>")
    assert placeholder is not None
    vision = ImageTokens(token_id=placeholder)
    return LeanTokenizer(backend, name_or_path="bytes-vision", eos_token="<|im_end|>", vision=vision)

"""Small random Qwen3 models on disk, and what transformers says about the answers of an engine that serves them."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agentenv.byte_tokenizer import byte_backend
from agentenv.engine.protocol import Completion, Engine, SamplingParams, check_completion
from agentenv.engine.server_config import ServerConfig
from agentenv.trainers.tiny import make_tiny_model

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}
MAX_LENGTH = 1024


def saved_model(
    folder: Path, *, dtype: torch.dtype = torch.float32, tied: bool = True, initializer_range: float = 0.1
) -> PreTrainedModel:
    """Save a model of 0.9M parameters with its tokenizer, and return it."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_backend(), eos_token="<|im_end|>")
    made: Any = make_tiny_model(
        len(tokenizer),
        seed=0,
        hidden_size=128,
        num_layers=4,
        tie_embeddings=tied,
        max_length=MAX_LENGTH,
        initializer_range=initializer_range,
    )
    model: PreTrainedModel = made.to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def server_config(dtype: torch.dtype = torch.float32, **fields: Any) -> ServerConfig:
    """Return a configuration that fits the model and a small machine."""
    name = str(dtype).removeprefix("torch.")
    defaults: dict[str, Any] = {
        "name": "vllm",
        "max_length": MAX_LENGTH,
        "max_slots": 64,
        "cache_tokens": 65536,
        "dtype": name,
        "device": "cpu",
    }
    return ServerConfig(**{**defaults, **fields})


def changed(model: PreTrainedModel, *, seed: int = 1, size: float = 0.05) -> PreTrainedModel:
    """Return a copy with other values in every parameter, embeddings and norms included, `size` apart."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=generator) * size).to(parameter.dtype))
    return other


def prompt_of(length: int, *, seed: int = 0) -> list[int]:
    """Return random ids."""
    return random.Random(seed).choices(range(256), k=length)


async def ask(
    engine: Engine, prompt: Sequence[int], *, session: str = "s", deadline_s: float = 90.0, **sampling: Any
) -> Completion:
    """Sample, 30 tokens with seed 3 unless told otherwise."""
    params = SamplingParams(**{"max_tokens": 30, "seed": 3, **sampling})
    return await engine.generate(prompt, params, session_id=session, deadline_s=deadline_s)


async def some_steps(engine: Engine) -> None:
    """Wait until the engine has made some 20 steps: requests that were there before have as many tokens, or more."""
    await ask(engine, [1, 2, 3], max_tokens=20)


@torch.no_grad()
def reference(model: PreTrainedModel, token_ids: Sequence[int], *, temperature: float = 1.0) -> Tensor:
    """Return log p(token t | tokens before it) of tokens 1, 2, ... by transformers."""
    token_T = torch.tensor(list(token_ids))
    logit_TV = model(input_ids=token_T[None], use_cache=False).logits[0].double() / temperature
    return logit_TV[:-1].log_softmax(-1).gather(1, token_T[1:, None])[:, 0]


def distance(
    model: PreTrainedModel,
    prompt: Sequence[int],
    completion: Completion,
    *,
    temperature: float = 1.0,
    start: int = 0,
    end: int | None = None,
) -> float:
    """Return the largest difference of the completion's log-probs `[start, end)` from transformers'."""
    check_completion(completion, vocab_size=model.config.vocab_size)
    expected_T = reference(model, [*prompt, *completion.token_ids], temperature=temperature)[len(prompt) - 1 :]
    got_T = torch.tensor(list(completion.logprobs), dtype=torch.float64)
    return float((got_T - expected_T)[start:end].abs().max())

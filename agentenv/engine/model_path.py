"""Refuses a model that no engine can load, before anything is started for it."""

from __future__ import annotations

import re
from pathlib import Path

from agentenv.errors import ModelError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def checked_model(model: str | Path) -> str:
    """Return the absolute path of a model folder, or a Hub id as it is.

    Raises:
        ModelError: there is no such folder, or it lacks a configuration or weights.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json; name the folder that holds the model itself")
        if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            raise ModelError(f"{folder} has a config.json but no weights (*.safetensors); was the model saved whole?")
        return str(folder.resolve())
    name = str(model)
    if folder.exists():
        raise ModelError(f"{folder} is a file; name the folder that holds it")
    # "owner/name" may be a mistyped path: where the first part is a folder here, it is one
    if not _HUB_ID.fullmatch(name) or name.startswith((".", "-")) or Path(name.partition("/")[0]).is_dir():
        raise ModelError(f"{folder}: no such folder; name a model folder, or a Hub id such as Qwen/Qwen3-0.6B")
    return name

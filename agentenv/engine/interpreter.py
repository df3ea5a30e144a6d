"""Finds the Python that has an engine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

from agentenv.engine.engine_venv import engine_python
from agentenv.engine.server_config import ServerConfig
from agentenv.errors import UsageError


def interpreter_with(config: ServerConfig) -> str:
    """Return the interpreter that runs an engine's server.

    It is the one that is configured, else this one if the engine is installed beside us, else the environment that
    `agentenv engines install` made.

    Raises:
        UsageError: there is none; says how to get one.
    """
    if config.python is not None:
        path = os.path.expanduser(config.python)
        found = shutil.which(path)
        if found is None:
            raise UsageError(f"engine.python is {config.python!r}, which is no program; name an interpreter")
        return found
    if importlib.util.find_spec(config.name) is not None:
        return sys.executable
    installed = engine_python(config.name)
    if installed is None:
        raise UsageError(
            f"{config.name} is not installed; run `agentenv engines install {config.name}` for an environment of its "
            "own, or set engine.python to an interpreter that has it"
        )
    return installed

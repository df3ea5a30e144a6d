"""Isolated execution of code that a model wrote: one protocol, several back ends, the strongest that works is used."""

from agentenv.sandbox_settings import SandboxSettings, sandbox_settings, use_sandbox
from agentenv.tools.sandbox.choice import Choice, chosen, close_sandboxes, execute, open_sandbox
from agentenv.tools.sandbox.sandbox import (
    Cell,
    Completed,
    Ending,
    FileInfo,
    Isolation,
    Limits,
    Sandbox,
    SandboxBackend,
)

__all__ = [
    "Cell",
    "Choice",
    "Completed",
    "Ending",
    "FileInfo",
    "Isolation",
    "Limits",
    "Sandbox",
    "SandboxBackend",
    "SandboxSettings",
    "chosen",
    "close_sandboxes",
    "execute",
    "open_sandbox",
    "sandbox_settings",
    "use_sandbox",
]

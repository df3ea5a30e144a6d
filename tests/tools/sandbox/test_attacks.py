"""The shipped attacks against bubblewrap, and that none is ever played without a border."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentenv.errors import UsageError
from agentenv.sandbox_settings import SandboxSettings
from agentenv.tools.sandbox.attacks import attack as attack_module
from agentenv.tools.sandbox.attacks.attack import GOT, KINDS, Arena, Attack, Broken, Seen, judge
from agentenv.tools.sandbox.attacks.canaries import Canaries, planted
from agentenv.tools.sandbox.attacks.command import markdown, summary
from agentenv.tools.sandbox.attacks.suite import ATTACKS, Result, attacks_of, run_suite
from agentenv.tools.sandbox.choice import make_backend
from agentenv.tools.sandbox.sandbox import Completed, Isolation, Limits, Sandbox, SandboxBackend
from agentenv.tools.sandbox.unconfined import ALLOWED_BY

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@pytest.fixture
async def under_attack() -> AsyncIterator[tuple[SandboxBackend, Canaries]]:
    """A back end that was opened after the bait was set out."""
    with planted() as canaries:
        backend = make_backend(SandboxSettings(), "bwrap")
        yield backend, canaries
        await backend.close()


async def results_of(
    backend: SandboxBackend, canaries: Canaries, attacks: tuple[Attack, ...], *, timeout_s: float = 110.0
) -> list[Result]:
    async with asyncio.timeout(timeout_s):
        return [result async for result in run_suite(backend, canaries, attacks)]


@needs_bwrap
@pytest.mark.parametrize("kind", KINDS)
async def test_bubblewrap_holds_every_attack(kind: str, under_attack: tuple[SandboxBackend, Canaries]):
    attacks = attacks_of([kind])
    results = await results_of(*under_attack, attacks)
    assert [(r.attack.name, r.status, r.detail) for r in results if r.status != "held"] == []
    assert len(results) == len(attacks) > 0


class Borderless:
    """Runs a program as a plain process, as nobody and in an empty folder, and says that it isolates."""

    name = "borderless"
    isolation: Isolation = "strong"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: list[str] = []

    async def execute(self, code: str, *, stdin: str = "", limits: Limits) -> Completed:
        self.programs.append(code)
        user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        done = await asyncio.to_thread(
            subprocess.run,
            ["/usr/bin/env", "python3", "-I", "-c", code],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=30,
            **user,
        )
        return Completed(ending="exited", exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr)

    async def open(self, *, limits: Limits) -> Sandbox:
        raise AssertionError("no attack may get this far")

    async def close(self) -> None:
        """Nothing is open."""


async def test_a_back_end_that_only_claims_a_border_is_found_out_before_any_attack(tmp_path: Path):
    # the control as well: bait that nothing protects is taken, and that is seen
    with planted() as canaries:
        backend = Borderless(tmp_path)
        with pytest.raises(UsageError, match="reads the files or variables of this machine"):
            await results_of(backend, canaries, ATTACKS)
        assert len(backend.programs) == 1
        assert "print(os.environ.get('AGENTENV_CHECK_CANARY'))" in backend.programs[0]


async def test_no_attack_is_played_where_nothing_isolates(tmp_path: Path):
    backend = Borderless(tmp_path)
    backend.isolation = "none"
    refused = pytest.raises(UsageError, match="would stop processes, fill disks and change files of this machine")
    with planted() as canaries, refused:
        await results_of(backend, canaries, ATTACKS)
    assert backend.programs == []


def test_no_attack_removes_or_moves_anything_by_an_absolute_path():
    removes = re.compile(r"rm -|rmtree|unlink|os\.remove|rmdir|shutil\.move|os\.rename|os\.replace|\bmv ")
    allowed = {
        '(lambda: os.replace("<<target_file>>"',  # bait
        'lambda: os.unlink("<<target_file>>")',
        'os.rmdir(os.path.join(folder, "<<mark>>"))',  # made by the same attack a line above
        "shutil.rmtree(folder, ignore_errors=True)",  # likewise: a folder named by the mark
    }
    found = []
    for path in sorted(Path(attack_module.__file__).parent.glob("*.py")):
        if path.name in ("canaries.py", "leftovers.py"):
            continue
        for line in path.read_text().splitlines():
            absolute = re.search(r"[\s'\"]/\w|<<|folder", line)
            if removes.search(line) and absolute and not any(words in line for words in allowed):
                found.append(f"{path.name}: {line.strip()}")
    assert found == []


def test_every_class_has_attacks_and_no_name_comes_twice():
    counts = Counter(attack.kind for attack in ATTACKS)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 6
    assert [name for name, count in Counter((a.kind, a.name) for a in ATTACKS).items() if count > 1] == []


@needs_bwrap
def test_an_attack_that_did_not_run_proves_nothing():
    with planted() as canaries:
        arena = Arena(backend=make_backend(SandboxSettings(), "bwrap"), canaries=canaries)
        with pytest.raises(Broken, match="did not run to its end"):
            judge(arena, Seen(text="SyntaxError: invalid syntax", ending="exited"), finishes=True)
        with pytest.raises(Broken, match="the secret came out"):
            judge(arena, Seen(text=f"x {canaries.secret} y", ending="exited"), finishes=False)
        with pytest.raises(Broken, match="GOT a socket"):
            judge(arena, Seen(text=f"{GOT} a socket", ending="exited"), finishes=False)


def test_bait_that_is_taken_is_seen_once():
    with planted() as canaries:
        assert (canaries.changes(), canaries.heard()) == ("", [])
        (canaries.folder / "new.txt").write_text("x")
        assert canaries.changes() == "files were made on the host: new.txt"
        (canaries.folder / "target.txt").write_text("x")
        assert canaries.changes() == "a file of the host was changed"
        assert canaries.changes() == ""
        code = f"import socket; socket.create_connection(('127.0.0.1', {canaries.places['tcp_port']}))"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
        assert canaries.heard() == ["TCP"]
        assert canaries.heard() == []
        assert canaries.secret not in "".join(canaries.places.values())
    assert not canaries.folder.exists()


def test_a_reduced_back_end_may_fail_only_what_it_lacks():
    exempt = {attack.needs for attack in ATTACKS if not attack.must_hold("reduced")}
    assert exempt == {"disk quota", "process table", "own network", "own /dev/shm"}
    assert all(attack.must_hold("strong") for attack in ATTACKS)


def test_a_class_that_is_none_is_refused():
    with pytest.raises(UsageError, match='Did you mean "network"'):
        attacks_of(["netwrk"])


def test_the_page_counts_what_held_by_class():
    network, sql = attacks_of(["network"])[:2], attacks_of(["sql"])[:1]
    results = [
        Result(attack=network[0], status="held", detail="", took_s=0.5),
        Result(attack=network[1], status="FAILED", detail="reached the host", took_s=0.25),
        Result(attack=sql[0], status="skipped", detail="cannot", took_s=0.0),
    ]
    assert summary("bwrap", results) == "bwrap held 1 of 3 attacks, 1 FAILED, 1 skipped"
    page = markdown("bwrap", "strong", results)
    # two attacks of the class, one held, 0.5 + 0.25 s
    assert "| network | 2 | 1 | 0.8 |" in page
    assert f"| sql | {sql[0].name} | must hold |" in page


@needs_bwrap
def test_the_command_prints_a_table_and_says_by_its_exit_code_what_held():
    done = subprocess.run(
        [sys.executable, "-m", "agentenv", "check", "sandbox", "--backend", "bwrap", "--only", "sql"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"bwrap held {len(attacks_of(['sql']))} of" in done.stdout


def test_the_command_refuses_to_attack_without_isolation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ALLOWED_BY, "1")
    done = subprocess.run(
        [sys.executable, "-m", "agentenv", "check", "sandbox", "--backend", "none", "--only", "network"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode != 0
    assert "played against a border only" in done.stdout + done.stderr
    assert "held" not in done.stdout

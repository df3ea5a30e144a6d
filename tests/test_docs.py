"""The documentation says what is: its code runs, its commands parse, its keys, files and metrics exist."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup

from agentenv.cli import app
from agentenv.config import load_config
from agentenv.trainers.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BASE = {"env": {"id": "agentenv/GuessNumber-v0"}, "model": {"path": "path/to/model"}}


def blocks(page: str, kind: str) -> list[str]:
    """Return the fenced blocks of a kind."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for name, body in FENCE.findall(text) if name == kind]


def pages_with(kind: str) -> list[str]:
    """Return the pages that have such a block."""
    return [page for page in PAGES if blocks(page, kind)]


def commands(page: str) -> Iterator[list[str]]:
    """Yield every `agentenv ...` command of a page, in blocks and in running text, as words."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for body in blocks(page, "bash") for line in body.replace("\\\n", " ").splitlines()]
    for line in [*lines, *re.findall(r"`(agentenv [^`]*)`", FENCE.sub("", text))]:
        words = shlex.split(line, comments=True)
        if words and words[0] == "agentenv":
            yield words[1:]


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path):
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    ran = subprocess.run(
        [sys.executable, str(program)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))])
def test_every_command_of_a_page_parses(page):
    for words in commands(page):
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while rest and isinstance(command, TyperGroup) and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"agentenv {' '.join(words)}: there is no command {rest[0]!r}"
            command = command.commands[rest.pop(0)]
        if rest:  # without arguments, running text only names the command
            command.make_context("agentenv", rest)


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))])
def test_every_run_file_and_override_of_a_page_is_valid(page):
    for words in commands(page):
        if words[:1] in (["train"], ["quickstart"]):
            overrides = [word for word in words if re.match(r"[a-z_.]+=", word)]
            path = words[1] if words[0] == "train" and len(words) > 1 else "examples/runs/quickstart.yaml"
            load_config(RunConfig, ROOT / path, overrides=overrides)


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_the_yaml_blocks_of_a_page_are_valid_parts_of_a_run_file(page, tmp_path):
    for index, body in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{index}.yaml"
        path.write_text(yaml.safe_dump({**BASE, **yaml.safe_load(body)}), encoding="utf-8")
        load_config(RunConfig, path)


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "runs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_run_file_is_valid(path):
    assert load_config(RunConfig, path).name == path.stem


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:agentenv|envs|tools|trainers|examples|tests|docs)/[\w./-]+)`", text))
    files = {name for name in named if not re.search(r"-v\d+$|NAME", name)}
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_every_entry_of_a_tree_exists(page):
    tree = next(body for body in blocks(page, "text") if body.startswith("agentenv/"))
    folders: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        del folders[depth:]
        path = ROOT.joinpath(*folders, name)
        assert path.exists(), f"{page}: {path.relative_to(ROOT)}"
        assert path.is_dir() == name.endswith("/")
        for beside in re.findall(r"\b\w+\.py\b", line)[1:]:
            assert (path.parent / beside).exists(), f"{page}: {beside}"
        folders.append(name)


def test_the_generated_page_is_up_to_date_and_a_stale_one_is_noticed(tmp_path, capsys):
    script = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
    page = tmp_path / "config.md"

    assert script["main"](["--check"]) == 0, "run `python docs/make_reference.py`"
    assert script["main"]([], page=page) == 0
    assert script["main"](["--check"], page=page) == 0

    page.write_text(
        page.read_text(encoding="utf-8").replace("`trainer.num_steps`", "`trainer.steps`"), encoding="utf-8"
    )
    assert script["main"](["--check"], page=page) == 1
    assert "run `python docs/make_reference.py`" in capsys.readouterr().err


def test_every_page_is_in_the_navigation():
    # the file holds no tags of its own, so the plain loader reads it
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(_leaves(navigation)) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)

"""Environments of engines are made whole or not at all, once, and never over what somebody else put there."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import textwrap
import threading
import zipfile
from pathlib import Path

import pytest

import agentenv
from agentenv.engine.engine_venv import MARK, PINS, RECIPES, EngineVenv, Recipe, installed_venvs, read_venv
from agentenv.engine.install import copy_package, install_engine
from agentenv.errors import EngineError, UsageError
from tests.engine.processes import processes, until

# a build backend of a few lines, so that an editable install needs no other package
BACKEND = textwrap.dedent(
    """
    import os, zipfile

    def build_editable(folder, config_settings=None, metadata_directory=None):
        name = "agentenv-0.0.1-py3-none-any.whl"
        with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
            wheel.writestr("agentenv_checkout.pth", os.getcwd())
            about = "agentenv-0.0.1.dist-info"
            wheel.writestr(about + "/METADATA", "Metadata-Version: 2.1\\nName: agentenv\\nVersion: 0.0.1\\n")
            wheel.writestr(about + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
            wheel.writestr(about + "/RECORD", "")
        return name
    """
)


def wheel(folder: Path, name: str, *, version: str = "1.0", requires: str = "") -> None:
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}/__init__.py", f"version = {version!r}\n")
        about = f"{name}-{version}.dist-info"
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")


class Shop:
    """A folder of small wheels, a checkout, and a recipe over them."""

    def __init__(self, folder: Path) -> None:
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        wheel(self.wheels, "toytorch")
        wheel(self.wheels, "toyengine", version="3.2", requires="toymissing")
        self.source = folder / "checkout"
        self.source.mkdir()
        (self.source / "backend.py").write_text(BACKEND)
        (self.source / "agentenv_marker.py").write_text("")
        (self.source / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            '[project]\nname = "agentenv"\nversion = "0.0.1"\ndependencies = ["toyneed"]\n'
        )
        self.pins = folder / "pins.txt"
        self.pins.write_text("# two packages\ntoytorch==1.0\ntoyengine==3.2\n")
        self.said: list[str] = []

    def recipe(self, *, is_complete: bool = True) -> Recipe:
        return Recipe(name="vllm", device="cpu", pins=self.pins, is_complete=is_complete, package="toyengine")

    def install(self, *, is_complete: bool = True, to: Path | None = None) -> EngineVenv:
        return install_engine(
            "vllm",
            to=to,
            device="cpu",
            pip_args=["--no-index", "--find-links", str(self.wheels)],
            report=self.said.append,
            recipe=self.recipe(is_complete=is_complete),
            source=self.source,
        )


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Shop:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    return Shop(tmp_path)


def answer(python: str, program: str) -> str:
    return subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_of_two_that_install_at_once_one_makes_the_environment_and_the_other_waits_for_it(shop):
    found: list[EngineVenv] = []
    threads = [threading.Thread(target=lambda: found.append(shop.install())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    venv = found[0]
    assert found == [venv, venv]
    assert sum(line == "installing toytorch==1.0" for line in shop.said) == 1
    assert any("waiting for it" in line for line in shop.said)
    assert (venv.name, venv.version, venv.agentenv) == ("vllm", "3.2", agentenv.__version__)
    assert Path(venv.folder) == shop.recipe().folder
    # pins without their requirements: toymissing is nowhere, and nobody asked for it
    assert answer(venv.python, "import toyengine, toytorch; print(toyengine.version)") == "3.2"
    # editable: the checkout itself is on the path
    assert answer(venv.python, "import agentenv_marker; print(agentenv_marker.__file__)").startswith(str(shop.source))
    assert installed_venvs() == [venv]
    assert not Path(venv.folder + ".log").exists()


@pytest.mark.slow
def test_pins_that_leave_the_rest_to_the_engine_are_resolved_and_what_we_need_moves_none_of_them(shop, tmp_path):
    wheel(shop.wheels, "toymissing")
    wheel(shop.wheels, "toytorch", version="2.0")
    wheel(shop.wheels, "toyneed", requires="toytorch")
    venv = shop.install(is_complete=False, to=tmp_path / "here")
    assert venv.python == str(tmp_path / "here" / "bin" / "python")
    assert read_venv(tmp_path / "here") == venv
    assert installed_venvs() == []  # a chosen folder is for engine.python
    assert answer(venv.python, "import toymissing, toyneed, toytorch; print(toytorch.version)") == "1.0"


@pytest.mark.slow
def test_a_failed_installation_says_why_is_not_found_and_is_made_anew(shop):
    (shop.wheels / "toytorch-1.0-py3-none-any.whl").unlink()
    with pytest.raises(EngineError, match=r"installing toytorch==1\.0 failed.*--pip-arg=--extra-index-url"):
        shop.install()
    assert installed_venvs() == []

    (shop.recipe().folder / "half").write_text("of the first attempt")
    wheel(shop.wheels, "toytorch")
    venv = shop.install()
    assert not (Path(venv.folder) / "half").exists()
    assert installed_venvs() == [venv]


def test_other_pins_make_another_environment_and_other_comments_do_not(shop):
    folder = shop.recipe().folder
    shop.pins.write_text("# said otherwise\ntoytorch==1.0\n\ntoyengine==3.2\n")
    assert shop.recipe().folder == folder
    shop.pins.write_text("toytorch==1.0\ntoyengine==3.3\n")
    assert shop.recipe().folder != folder
    assert shop.recipe(is_complete=False).folder != shop.recipe().folder


def test_a_folder_that_is_not_ours_is_left_alone(shop, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="no environment of ours"):
        shop.install(to=mine)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_when_the_installer_is_killed_its_steps_end_too_and_the_next_one_starts_anew(shop):
    program = (
        "import sys; from agentenv.engine.install import _Installer; from pathlib import Path;"
        "from agentenv.engine.engine_venv import RECIPES;"
        "one = _Installer(RECIPES[0], folder=Path(sys.argv[1]), pip_args=[], report=print);"
        "one._run('a long step', ['sleep', '61.75'])"
    )
    installer = subprocess.Popen([sys.executable, "-c", program, str(shop.wheels / "x")])
    assert until(lambda: processes("sleep", "61.75") != [])
    installer.send_signal(signal.SIGKILL)
    installer.wait()
    assert until(lambda: processes("sleep", "61.75") == [])


def test_an_installed_package_is_copied_with_what_it_says_of_itself(tmp_path):
    site, about = tmp_path / "site", "toy-1.0.dist-info"
    for name in ("toy/__init__.py", "toy/pins/a.txt", f"{about}/METADATA", f"{about}/entry_points.txt"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n" if "METADATA" in name else name)
    record = ["toy/__init__.py", "toy/pins/a.txt", "../../bin/toy", f"{about}/METADATA", f"{about}/entry_points.txt"]
    (site / about / "RECORD").write_text("".join(f"{name},,\n" for name in record))
    toy = importlib.metadata.Distribution.at(site / about)

    copy_package(toy, tmp_path / "target")

    copied = sorted(str(path.relative_to(tmp_path / "target")) for path in (tmp_path / "target").rglob("*.*"))
    assert copied == [about, f"{about}/entry_points.txt", "toy/__init__.py", "toy/pins/a.txt"]
    assert (tmp_path / "target" / about / "METADATA").exists()
    assert not (tmp_path / "bin").exists()

    (site / about / "RECORD").unlink()
    with pytest.raises(EngineError, match="which files it has"):
        copy_package(importlib.metadata.Distribution.at(site / about), tmp_path / "target")


def test_a_mark_that_cannot_be_read_means_unfinished(tmp_path):
    assert read_venv(tmp_path) is None
    for text in ("", "{half", '{"name": "vllm"}', "[]"):
        (tmp_path / MARK).write_text(text)
        assert read_venv(tmp_path) is None


def test_every_shipped_recipe_pins_what_it_installs():
    assert {(recipe.name, recipe.device) for recipe in RECIPES} == {
        (name, device) for name in ("vllm", "sglang") for device in ("cpu", "cuda")
    }
    for recipe in RECIPES:
        lines = recipe.requirements()
        assert all("==" in line for line in lines)
        assert not any("://" in line or line.startswith("-") for line in lines)
        if recipe.is_complete:
            assert lines[0] == "torch==2.13.0+cpu"
            assert any(line.startswith(f"{recipe.package}==") for line in lines)
    assert sorted(path.name for path in PINS.iterdir()) == sorted(recipe.pins.name for recipe in RECIPES)

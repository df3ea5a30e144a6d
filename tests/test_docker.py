"""Images: linted, pinned, without root, made of this project's own steps; the compose file fits its schema."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.image_steps import instructions, user_steps
from tests.test_cluster_examples import ROOT, SCHEMAS, program

DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))


def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def problems(found: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(json.loads((SCHEMAS / "compose.schema.json").read_text()))
    return [error.message for error in validator.iter_errors(found)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path):
    command = [program("hadolint"), "-c", str(ROOT / ".hadolint.yaml"), str(path)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_ends_without_root_and_is_made_of_make_install(path):
    steps = instructions(path.read_text())
    base = next(rest for keyword, rest in steps if keyword == "FROM")

    assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", base)
    assert [rest for keyword, rest in steps if keyword == "USER"] == ["10001"]
    assert not any(keyword == "ADD" for keyword, _ in steps)
    assert "bubblewrap" in path.read_text()
    assert any(keyword == "RUN" and "make install" in rest for keyword, rest in user_steps(path.read_text()))
    assert not any("apt-get" in rest for _, rest in user_steps(path.read_text()))


def test_the_compose_file_fits_its_schema_and_a_misspelt_key_does_not():
    found = compose()
    assert problems(found) == []

    found["services"]["trainer"]["helthcheck"] = {}
    assert len(problems(found)) == 1


def test_engines_are_reached_by_the_trainer_alone_and_with_a_key():
    found = compose()
    services = found["services"]

    assert found["networks"] == {"inside": {"internal": True}}
    assert all(service["networks"] == ["inside"] and "ports" not in service for service in services.values())
    engines = {name: service for name, service in services.items() if name.startswith("engine-")}
    assert len(engines) == 2
    for engine in engines.values():
        assert engine["environment"]["AGENTENV_API_KEY"].startswith("${AGENTENV_API_KEY:?")
        assert "/health" in engine["healthcheck"]["test"][-1]
    assert services["trainer"]["depends_on"] == {name: {"condition": "service_healthy"} for name in engines}


def test_no_gpu_is_given_to_two_services():
    reserved = [
        number
        for service in compose()["services"].values()
        for device in service["deploy"]["resources"]["reservations"]["devices"]
        for number in device["device_ids"]
    ]

    assert sorted(reserved) == ["0", "1", "2"]


def test_images_are_built_without_what_git_does_not_have():
    ignored = Path(ROOT / ".dockerignore").read_text().split()

    assert {".git", ".venv", "runs"} <= set(ignored)

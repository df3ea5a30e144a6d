"""The files that start a run on a cluster are what their own tools read, and start what exists here."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from agentenv.config import load_config
from agentenv.trainers.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "cluster"
SCHEMAS = Path(__file__).resolve().parent / "schemas"
SCRIPTS = sorted([*EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*.sbatch")])


def program(name: str) -> str:
    """Return a program of this environment."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found is not None, f"{name} is missing; `make install` brings it"
    return found


def document(name: str) -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / name).read_text())


def schema(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text())


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound_to_bash_and_shellcheck(path):
    subprocess.run(["bash", "-n", path], check=True, timeout=30)
    checked = subprocess.run([program("shellcheck"), path], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.sbatch")), ids=lambda path: path.name)
def test_every_sbatch_directive_is_an_option_of_sbatch_with_a_value_where_it_wants_one(path):
    lines = path.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [(i, line) for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    known = [
        line for line in (SCHEMAS / "sbatch_options.txt").read_text().split() if re.fullmatch(r"[a-z-]+[=?]?", line)
    ]
    kinds = {name.rstrip("=?"): name[-1] if name[-1] in "=?" else "" for name in known}

    assert directives
    for index, line in directives:
        assert index < first_command, f"sbatch stops reading at the first command, so it never sees {line}"
        (argument,) = shlex.split(line)[1:]
        matched = re.fullmatch(r"--([a-z-]+)(=(\S+))?", argument)
        assert matched, line
        kind = kinds.get(matched[1])
        assert kind is not None, f"sbatch has no option --{matched[1]}"
        assert kind == "?" or (kind == "=") == (matched[3] is not None), line
    values = dict(re.findall(r"--([a-z-]+)=(\S+)", "\n".join(line for _, line in directives)))
    assert re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", values["time"])
    assert re.fullmatch(r"([BR]+:)?(INT|TERM|USR1|USR2|\d+)(@\d+)?", values["signal"])


@pytest.mark.parametrize(
    ("name", "of"), [("kuberay.yaml", "rayjob"), ("skypilot.yaml", "skypilot"), ("dstack.yaml", "dstack")]
)
def test_a_file_fits_its_schema_and_a_misspelt_key_does_not(name, of):
    validator = jsonschema.Draft202012Validator(schema(of))
    found = document(name)

    assert [error.message for error in validator.iter_errors(found)] == []
    first = next(iter(found))
    misspelt = {**found, f"{first}s": found[first]}
    assert not validator.is_valid(misspelt)


def test_the_rayjob_asks_for_what_its_pods_have():
    spec = document("kuberay.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"]["spec"]] + [
        group["template"]["spec"] for group in cluster["workerGroupSpecs"] for _ in range(group["replicas"])
    ]
    gpus = {pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for pod in pods}

    assert f"cluster.nodes={len(pods)}" in spec["entrypoint"]
    assert gpus == {re.search(r"gpus_per_node=(\d+)", spec["entrypoint"])[1]}  # pyright: ignore[reportOptionalSubscript]
    for pod in pods:
        names = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= names
        assert pod["securityContext"]["runAsUser"] == 10001  # the user of docker/*.Dockerfile


@pytest.mark.parametrize("name", ["skypilot.yaml", "dstack.yaml"])
def test_the_shell_inside_a_file_is_sound(name):
    found = document(name)
    parts = [found["setup"], found["run"]] if name == "skypilot.yaml" else ["\n".join(found["commands"])]
    for part in parts:
        script = f"#!/usr/bin/env bash\n{part}"
        told = subprocess.run(
            [program("shellcheck"), "-e", "SC2086", "-"], input=script, capture_output=True, text=True, timeout=60
        )
        assert told.returncode == 0, told.stdout


def test_the_run_that_the_files_start_is_a_run_and_so_are_their_overrides():
    keys = ["cluster.address=auto", "cluster.nodes=2", "cluster.gpus_per_node=8", "output_dir=/runs"]
    config = load_config(RunConfig, EXAMPLES / "run.yaml", overrides=keys)
    text = "".join(path.read_text() for path in EXAMPLES.iterdir() if path.is_file())

    assert config.trainer.checkpoint_every <= 20
    for key in set(re.findall(r"\bcluster\.([a-z_]+)=", text)):
        assert key in ("address", "nodes", "gpus_per_node", "placement")

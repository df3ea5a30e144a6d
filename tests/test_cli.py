"""The command line as a person meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def agentenv(*arguments, stdin="", code=0, cwd=ROOT, variables=None):
    command = [sys.executable, "-c", "from agentenv.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_help_names_every_command():
    out = agentenv("--help")
    for command in ("play", "eval", "train", "quickstart", "replay", "list", "doctor", "config", "check", "prepare"):
        assert command in out


def test_version():
    from agentenv import __version__

    assert agentenv("--version").strip() == f"agentenv {__version__}"


def test_a_rank_ends_with_the_code_and_the_words_of_any_other_process():
    ranked = {"RANK": "1", "WORLD_SIZE": "2"}
    assert agentenv("--version", variables=ranked) == agentenv("--version")
    assert "Did you mean" in agentenv("eval", "agentenv/GuesNumber-v0", code=2, variables=ranked)
    assert "No such command" in agentenv("nonsense", code=2, variables=ranked)


def test_a_person_plays_in_the_terminal():
    out = agentenv("play", "agentenv/GuessNumber-v0", stdin="guess 8\nguess number=4\nI give up\n")
    assert "Guess my number from 1 to 15" in out
    assert "guess> " in out
    assert "completed  reward" in out


def test_a_person_may_leave():
    assert "left the game" in agentenv("play", "agentenv/GuessNumber-v0", stdin="")


def test_the_oracle_plays():
    assert "tool_stopped  reward 1" in agentenv("play", "agentenv/GuessNumber-v0", "--policy", "oracle")


def test_evaluation_prints_json():
    out = json.loads(agentenv("eval", "agentenv/GuessNumber-v0", "--policy", "oracle", "-n", 10, "--json"))
    assert out["success_rate"] == 1.0
    assert out["num_episodes"] == 10


def test_an_unknown_environment_gets_a_suggestion_and_exit_code_2():
    out = agentenv("eval", "agentenv/GuesNumber-v0", code=2)
    assert 'Did you mean "agentenv/GuessNumber-v0"?' in out
    assert "Traceback" not in out


def test_an_unknown_environment_option_gets_a_suggestion():
    assert 'Did you mean "high"?' in agentenv(
        "play", "agentenv/GuessNumber-v0", "--policy", "oracle", "--env", "hig=3", code=2
    )


def test_the_engine_policy_needs_a_model():
    assert "--model" in agentenv("eval", "agentenv/GuessNumber-v0", "--policy", "engine", code=2)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("algorithm.advntage=rloo", 'Did you mean "algorithm.advantage"?'),
        ("algorithm.advantage=grpoo", 'Did you mean "grpo"?'),
        ("trainer.num_steps=many", "trainer.num_steps"),
        ("trainer.num_steps", "section.key=value"),
    ],
)
def test_a_wrong_override_is_explained(override, said):
    out = agentenv("train", "examples/runs/quickstart.yaml", override, "--dry-run", code=2)
    assert said in out
    assert "Traceback" not in out


def test_a_dry_run_prints_the_resolved_configuration_and_writes_nothing(tmp_path):
    out = agentenv(
        "train", "examples/runs/quickstart.yaml", f"output_dir={tmp_path}", "trainer.num_steps=7", "--dry-run"
    )
    assert "num_steps: 7" in out
    assert list(tmp_path.iterdir()) == []


def test_a_broken_yaml_file_is_named_with_its_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("env:\n  id: [unclosed\n")
    assert "run.yaml" in agentenv("train", file, code=2)


def test_the_schema_and_the_number_of_keys_stay_small():
    schema = json.loads(agentenv("config", "--schema"))
    assert "env" in schema["properties"]
    from agentenv.config import count_keys
    from agentenv.trainers.config import RunConfig

    assert count_keys(RunConfig) < 130


def test_checking_an_environment_prints_its_promises():
    assert "oracle" in agentenv("check", "env", "agentenv/GuessNumber-v0", "--num-seeds", 40)


def test_the_catalogue_lists_what_ships_by_family_with_its_scores():
    out = agentenv("list")
    for name in ("GuessNumber", "Calculator", "GSM8K", "Wordle"):
        assert f"agentenv/{name}-v0" in out
    assert out.index("tools") < out.index("agentenv/Calculator-v0") < out.index("games") < out.index("agentenv/Wordle")

    rows = {row["id"]: row for row in json.loads(agentenv("list", "--json"))}
    guess = rows["agentenv/GuessNumber-v0"]
    assert (guess["family"], guess["oracle"], guess["num_seeds"]) == ("games", 1.0, 200)
    assert 0.1 < guess["random"] < 0.4
    assert (rows["agentenv/Calculator-v0"]["difficulty"], rows["agentenv/Calculator-v0"]["levels"]) == (2, 5)


def test_a_new_environment_keeps_every_promise_and_is_played_by_its_import_string(tmp_path):
    out = agentenv("new", "env", "CountVowels", "--to", tmp_path)
    assert "agentenv check env count_vowels.env:CountVowels" in out

    checked = agentenv("check", "env", "count_vowels.env:CountVowels", cwd=tmp_path)
    assert "FAILED" not in checked
    assert "skipped" not in checked
    played = agentenv("eval", "count_vowels.env:CountVowels", "-n", 5, "--json", cwd=tmp_path)
    assert json.loads(played)["success_rate"] == 1.0
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "count_vowels"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert tests.returncode == 0, tests.stdout

    assert "exists already" in agentenv("new", "env", "CountVowels", "--to", tmp_path, code=2)
    assert "write it like CountVowels" in agentenv("new", "env", "count-vowels", "--to", tmp_path, code=2)
    assert "cannot import" in agentenv("check", "env", "no_such_module:Nothing", code=2)

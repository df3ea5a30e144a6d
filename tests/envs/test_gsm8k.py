"""GSM8K: where the rows come from, which answers earn the reward, and what the oracle makes of the solutions."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from agentenv import Task, make_bare, tool_turn
from agentenv.envs.gsm8k.env import GSM8K
from agentenv.envs.gsm8k.files import BUNDLED, find_file, load_split
from agentenv.envs.gsm8k.prepare import INSTRUCTION
from agentenv.envs.gsm8k.solution import read_solution
from agentenv.errors import DataError, EpisodeError


def row(question="How many?", truth="7", **extra):
    return {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"split": "train", "index": 0, "answer": f"#### {truth}", "question": question, **extra},
    }


def write(folder, split="train", rows=None):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{split}.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows or [row()]), file)
    return file


@pytest.fixture(autouse=True)
def no_prepared_data(monkeypatch, tmp_path):
    monkeypatch.delenv("AGENTENV_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty cache"))


# data


def test_a_sample_of_200_rows_per_split_ships_with_the_package():
    train, test = load_split(None, split="train"), load_split(None, split="test")
    assert (len(train), len(test)) == (200, 200)
    assert not {task.text for task in train} & {task.text for task in test}
    assert "MIT License" in (BUNDLED / "LICENSE").read_text()
    assert all(task.text.endswith(INSTRUCTION) for task in train)


def test_data_is_looked_for_in_path_then_variable_then_cache_then_sample(monkeypatch, tmp_path):
    assert find_file(None, split="test") == BUNDLED / "test.parquet"

    cached = write(tmp_path / "cache" / "agentenv" / "gsm8k", "test")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert find_file(None, split="test") == cached

    named = write(tmp_path / "data" / "gsm8k", "test")
    monkeypatch.setenv("AGENTENV_DATA", str(tmp_path / "data"))
    assert find_file(None, split="test") == named

    given = write(tmp_path / "given", "test")
    assert find_file(str(tmp_path / "given"), split="test") == given
    assert find_file(str(given), split="train") == given


def test_a_path_that_leads_nowhere_is_told_and_never_replaced_by_the_sample(tmp_path):
    with pytest.raises(DataError, match="no such file; `agentenv prepare gsm8k` writes it"):
        find_file(str(tmp_path / "missing"), split="train")
    write(tmp_path / "half", "train")
    with pytest.raises(DataError, match=r"half/test.parquet: no such file"):
        find_file(str(tmp_path / "half"), split="test")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "?"}], "column 'prompt' is missing"),
        ([row(), row(truth="seven")], "row 1: field 'reward_model.ground_truth' is 'seven'; expected a number"),
        ([row(truth="")], "row 0: field 'reward_model.ground_truth' is ''; expected a number"),
        ([{**row(), "prompt": 7}], "row 0: field 'prompt': a prompt is int"),
        ([{**row(), "prompt": None}], "row 0: field 'prompt': a prompt is NoneType"),
        ([{**row(), "reward_model": "7"}], "row 0: field 'reward_model' is str; expected a struct"),
        ([{**row(), "extra_info": 3}], "row 0: field 'extra_info' is int; expected a struct"),
    ],
)
def test_a_bad_file_is_told_with_row_field_and_what_was_expected(tmp_path, rows, message):
    file = write(tmp_path, rows=rows)
    with pytest.raises(EpisodeError) as raised:
        GSM8K(path=str(file)).reset(seed=0)
    assert isinstance(raised.value.__cause__, DataError)
    assert str(file) in str(raised.value)
    assert message in str(raised.value)


def test_truncated_and_empty_files_are_told(tmp_path):
    file = write(tmp_path, rows=[row(question=f"How many {i}?") for i in range(100)])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable parquet file, perhaps truncated"):
        load_split(str(file), split="train")
    file.write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        load_split(str(file), split="train")


def test_a_given_row_is_played_instead_of_a_drawn_one():
    env = GSM8K()
    observation, _ = env.reset(seed=0, options={"task": row("Wie viele Äpfel? 漢")})
    assert observation == "Wie viele Äpfel? 漢"
    assert env.step("#### 7")[1] == 1.0

    with pytest.raises(EpisodeError, match="the ground truth is ''; expected a number"):
        env.reset(seed=0, options={"task": Task(task_id="x")})


# secrets


def test_the_truth_is_in_no_schema_and_no_info_and_the_prompt_is_the_row():
    env = GSM8K()
    schema = json.dumps(env.tool_specs)
    for seed in range(50):
        observation, info = env.reset(seed=seed)
        (message,) = info["messages"]
        assert json.dumps(env.tool_specs) == schema
        assert observation == message["content"] == env.task.text
        assert {**info, "messages": ()} == {"messages": (), "reward_components": {"correct": 0.0}, "stop_reason": ""}
        *_, info = env.step(tool_turn("calculate", {"expression": "0+0"}).to_dict())
        assert [m["content"] for m in info["messages"]] == ["0"]


# rewards


@pytest.mark.parametrize(
    ("truth", "text"),
    [
        ("1200", "#### 1,200"),
        ("1,200", "#### 1200"),
        ("18", "So #### $18 per day."),
        ("18", "#### 18.00"),
        ("18", "\\boxed{18}"),
        ("18", "\\boxed{18\\text{ dollars}}"),
        ("0.5", "#### 1/2"),
        ("0.5", "\\boxed{\\frac{1}{2}}"),
        ("-3", "#### -3"),
        ("5", "#### 4\nNo, wait.\n#### 5"),
        ("70000", "#### **70,000**"),
    ],
)
def test_equal_numbers_earn_the_reward_however_they_are_written(truth, text):
    env = GSM8K()
    env.reset(seed=0, options={"task": row(truth=truth)})
    assert env.step(text)[1:3] == (1.0, True)


@pytest.mark.parametrize(
    "text",
    ["", "18", "The answer is 18.", "#### 18.01", "#### -18", "#### 18 19 no: #### 19", "18 #### ", "#### 17 or 18"],
)
def test_unmarked_or_wrong_numbers_earn_nothing(text):
    env = GSM8K()
    env.reset(seed=0, options={"task": row(truth="18")})
    assert env.step(text)[1:3] == (0.0, True)


# the oracle


def test_every_annotation_becomes_a_call_with_the_text_before_it():
    solution = read_solution("She has 48/2 = <<48/2=24>>24.\nIn all 48+24 = <<48+24=72>>72.\n#### 72", answer="72")
    assert solution.calls == (("She has 48/2 =", "48/2"), ("24.\nIn all 48+24 =", "48+24"))
    assert solution.conclusion == "72.\n#### 72"


@pytest.mark.parametrize(
    ("text", "expressions"),
    [
        ("<<5>>5 #### 5", []),
        ("<<5=5>>5 #### 5", []),
        ("<<=5>>5 #### 5", []),
        ("<<>>5 #### 5", []),
        ("<<x*2=5>>5 #### 5", []),
        ("<<2*=5>>5 #### 5", []),
        ("<<.5*10=5>>5 #### 5", [".5*10"]),
        ("<<10-5>>5 #### 5", ["10-5"]),
        ("<<2+3=5=5>>5 #### 5", ["2+3"]),
        ("<<50*10%=5>>5 #### 5", ["50*10%"]),
        ("<<1,000/200=5>>5 #### 5", ["1,000/200"]),
        ("<<2+3=5 #### 5", []),
        ("", []),
    ],
)
def test_irregular_annotations_are_calculated_where_they_are_arithmetic(text, expressions):
    solution = read_solution(text, answer="5")
    assert [expression for _, expression in solution.calls] == expressions
    assert solution.conclusion.endswith("#### 5")


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_oracle_solves_every_bundled_row_without_an_error(split):
    env = make_bare("agentenv/GSM8K-v0", split=split)
    assert isinstance(env, GSM8K)
    for task in env.tasks:
        env.reset(seed=0, options={"task": task})
        value, is_over = 0.0, False
        while not is_over:
            observation, value, terminated, truncated, _ = env.step(env.oracle().to_dict())
            is_over = terminated or truncated
            assert not observation.startswith("Error")
        assert value == 1.0


def test_a_row_without_a_solution_is_answered_at_once():
    env = GSM8K()
    env.reset(seed=0, options={"task": {"prompt": "?", "reward_model": {"ground_truth": "7"}}})
    assert env.step(env.oracle().to_dict())[1] == 1.0

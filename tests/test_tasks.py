"""Tasks from rows and files, what is said about bad ones, and the seeded order."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from agentenv.errors import DataError, UsageError
from agentenv.messages import Message
from agentenv.tasks import Task, TaskOrder, as_task, load_tasks, task_from_row

ROW = {
    "data_source": "somewhere",
    "prompt": [{"role": "user", "content": "How many?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "7"},
    "extra_info": {"index": 3, "split": "train"},
}


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_a_row_with_the_widely_used_columns_becomes_a_task():
    task = task_from_row(ROW)

    assert task.prompt == (Message(role="user", content="How many?"),)
    assert (task.task_id, task.answer, task.text) == ("3", "7", "How many?")
    assert task.data["ability"] == "math"
    assert "reward_model" not in task.data


def test_a_plain_prompt_and_answer_are_enough():
    task = task_from_row({"prompt": "How many?", "answer": 7, "id": "q1"})
    assert (task.task_id, task.text, task.answer) == ("q1", "How many?", "7")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "field 'prompt': a prompt is NoneType"),
        ({"prompt": 7}, "field 'prompt': a prompt is int"),
        ({"prompt": [None]}, "field 'prompt': a prompt item is NoneType"),
        ({"prompt": [{"role": "boss", "content": "x"}]}, "field 'prompt': message field 'role' is 'boss'"),
        ({"prompt": [{"role": "user", "content": 3}]}, "field 'prompt': message field 'content' is int"),
        ({"reward_model": "7"}, "field 'reward_model' is str; expected a struct"),
        ({"extra_info": [1]}, "field 'extra_info' is list; expected a struct"),
    ],
)
def test_a_bad_row_is_told_with_place_field_and_what_was_expected(change, message):
    with pytest.raises(DataError) as raised:
        task_from_row({**ROW, **change}, where="a.parquet, row 4")
    assert str(raised.value).startswith("a.parquet, row 4: ")
    assert message in str(raised.value)


def test_a_row_without_a_prompt_lists_what_it_has():
    with pytest.raises(DataError, match="field 'prompt' is missing; found question, answer"):
        task_from_row({"question": "?", "answer": "7"})


def test_parquet_and_jsonl_of_the_same_rows_load_alike(tmp_path):
    write_parquet(tmp_path / "a.parquet", [ROW])
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW) + "\n\n")

    (one,), (two,) = load_tasks(tmp_path / "a.parquet"), load_tasks(tmp_path / "a.jsonl")
    assert (one.prompt, one.answer, one.task_id) == (two.prompt, two.answer, two.task_id)


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "one"}\n')
    first = load_tasks(file)
    assert load_tasks(file) is first

    file.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    assert len(load_tasks(file)) == 2


def test_files_that_cannot_be_read_are_named(tmp_path):
    good = write_parquet(tmp_path / "good.parquet", [ROW] * 50).read_bytes()
    bad = {
        "empty.parquet": (b"", "the file is empty"),
        "cut.parquet": (good[: len(good) // 2], "not a readable parquet file, perhaps truncated"),
        "text.parquet": (b"hello", "not a readable parquet file"),
        "empty.jsonl": (b"", "the file is empty"),
        "blank.jsonl": (b"\n\n", "the file holds no rows"),
        "broken.jsonl": (b'{"prompt": "a"}\n{"prompt"', "row 1: not valid JSON"),
        "list.jsonl": (b"[1]\n", "row 0: a row is list; expected an object"),
        "latin.jsonl": ('{"prompt": "ü"}'.encode("latin-1"), "not UTF-8"),
        "a.csv": (b"prompt\n", "unknown kind of file '.csv'; expected .parquet or .jsonl"),
    }
    for name, (content, message) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as raised:
            load_tasks(tmp_path / name)
        assert name in str(raised.value)
        assert message in str(raised.value)
    with pytest.raises(DataError, match="no such file"):
        load_tasks(tmp_path / "missing.parquet")


def test_parquet_with_a_missing_column_or_a_wrong_type_is_told_by_column_and_row(tmp_path):
    without = write_parquet(tmp_path / "without.parquet", [{"question": "?"}])
    with pytest.raises(DataError, match=r"without.parquet: column 'prompt' is missing; found question"):
        load_tasks(without)

    numbers = write_parquet(tmp_path / "numbers.parquet", [{"prompt": 1}, {"prompt": 2}])
    with pytest.raises(DataError, match=r"numbers.parquet, row 0: field 'prompt': a prompt is int"):
        load_tasks(numbers)

    holed = write_parquet(tmp_path / "holed.parquet", [{"prompt": "a"}, {"prompt": None}])
    with pytest.raises(DataError, match=r"holed.parquet, row 1: field 'prompt': a prompt is NoneType"):
        load_tasks(holed)

    no_rows = tmp_path / "no_rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), no_rows)
    with pytest.raises(DataError, match="the file holds no rows"):
        load_tasks(no_rows)


def test_reset_options_take_a_task_or_a_row():
    task = Task(task_id="x")
    assert as_task(task) is task
    assert as_task(ROW).answer == "7"
    with pytest.raises(UsageError, match=r'options\["task"\] is int'):
        as_task(7)


def test_every_epoch_is_a_fresh_permutation_of_all_tasks():
    order = TaskOrder(num_tasks=50, seed=3)
    first, second = [order.at(i) for i in range(50)], [order.at(i) for i in range(50, 100)]

    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_the_order_is_a_function_of_seed_and_position():
    assert [TaskOrder(num_tasks=9, seed=1).at(i) for i in (70, 5, 70)] == [
        TaskOrder(num_tasks=9, seed=1).at(i) for i in (70, 5, 70)
    ]
    assert [TaskOrder(num_tasks=99, seed=1).at(i) for i in range(20)] != [
        TaskOrder(num_tasks=99, seed=2).at(i) for i in range(20)
    ]
    state = str(np.random.get_state())
    TaskOrder(num_tasks=9, seed=1).at(1)
    assert str(np.random.get_state()) == state


def test_an_unshuffled_order_walks_the_source():
    assert [TaskOrder(num_tasks=3, seed=0, shuffle=False).at(i) for i in range(5)] == [0, 1, 2, 0, 1]


def test_there_is_no_order_of_nothing():
    with pytest.raises(UsageError, match="no tasks"):
        TaskOrder(num_tasks=0, seed=0)

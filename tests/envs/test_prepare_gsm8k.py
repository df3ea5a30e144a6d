"""Preparing GSM8K: what is written, and what is refused without leaving anything behind."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from agentenv.envs.gsm8k.env import GSM8K
from agentenv.envs.gsm8k.prepare import INSTRUCTION, prepare
from agentenv.errors import DataError

GOOD = {"question": "Two and three?", "answer": "2+3 = <<2+3=5>>5\n#### 5"}


def source(folder, train=(GOOD,), test=(GOOD,)):
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("test", test)):
        lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in rows]
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(folder)


def test_rows_get_the_widely_used_columns(tmp_path):
    thousands = {"question": "Wie viel? 漢", "answer": "Fertig.\n#### 1,200"}
    written = prepare(source(tmp_path / "in", train=(GOOD, thousands)), out=str(tmp_path / "out"))

    assert written == [tmp_path / "out" / "train.parquet", tmp_path / "out" / "test.parquet"]
    assert pyarrow.parquet.read_table(written[0]).to_pylist()[1] == {
        "data_source": "openai/gsm8k",
        "prompt": [{"content": f"Wie viel? 漢\n{INSTRUCTION}", "role": "user"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "1200"},
        "extra_info": {"split": "train", "index": 1, "answer": "Fertig.\n#### 1,200", "question": "Wie viel? 漢"},
    }


def test_the_instruction_is_short_and_names_tool_and_ending():
    assert len(INSTRUCTION) < 80
    assert "calculator" in INSTRUCTION
    assert "####" in INSTRUCTION


def test_without_an_out_folder_the_environment_finds_the_rows(monkeypatch, tmp_path):
    monkeypatch.delenv("AGENTENV_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    written = prepare(source(tmp_path / "in"))

    assert written[0] == tmp_path / "cache" / "agentenv" / "gsm8k" / "train.parquet"
    assert [task.answer for task in GSM8K().tasks] == ["5"]


def test_parquet_sources_are_read_too(tmp_path):
    for split in ("train", "test"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD, GOOD]), tmp_path / f"{split}.parquet")
    written = prepare(str(tmp_path), out=str(tmp_path / "out"))
    assert [pyarrow.parquet.read_metadata(file).num_rows for file in written] == [2, 2]


def test_preparing_again_writes_the_same_bytes(tmp_path):
    first = [file.read_bytes() for file in prepare(source(tmp_path / "in"), out=str(tmp_path / "out"))]
    assert [file.read_bytes() for file in prepare(str(tmp_path / "in"), out=str(tmp_path / "out"))] == first


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"answer": "#### 5"}, "field 'question' is missing; found answer"),
        ({"question": "?"}, "field 'answer' is missing; found question"),
        ({}, "field 'question' is missing; found no field"),
        ({"question": 5, "answer": "#### 5"}, "field 'question' is int; expected text"),
        ({"question": None, "answer": "#### 5"}, "field 'question' is NoneType; expected text"),
        ({"question": " ", "answer": "#### 5"}, "field 'question' is empty; expected text"),
        ({"question": "?", "answer": ["#### 5"]}, "field 'answer' is list; expected text"),
        ({"question": "?", "answer": "5"}, "field 'answer' has 0 times ####; expected one"),
        ({"question": "?", "answer": "#### 4 #### 5"}, "field 'answer' has 2 times ####; expected one"),
        ({"question": "?", "answer": "#### five"}, "field 'answer' ends with #### 'five'; expected a number"),
        ({"question": "?", "answer": "####"}, "field 'answer' ends with #### ''; expected a number"),
        ([1, 2], "a row is list; expected an object with question and answer"),
        ('{"question": "?", "ans', "not valid JSON in UTF-8"),
    ],
)
def test_a_malformed_row_is_named_and_nothing_is_written(tmp_path, bad, message):
    folder, out = source(tmp_path / "in", test=(GOOD, bad)), tmp_path / "out"
    with pytest.raises(DataError) as raised:
        prepare(folder, out=str(out))
    assert str(raised.value).startswith(f"{tmp_path}/in/test.jsonl, row 1: ")
    assert message in str(raised.value)
    assert not out.exists()


def test_a_failure_keeps_what_was_prepared_before(tmp_path):
    out = tmp_path / "out"
    before = [file.read_bytes() for file in prepare(source(tmp_path / "in"), out=str(out))]
    with pytest.raises(DataError):
        prepare(source(tmp_path / "in", train=(GOOD, GOOD), test=("oops",)), out=str(out))
    assert [file.read_bytes() for file in (out / "train.parquet", out / "test.parquet")] == before
    assert sorted(file.name for file in out.iterdir()) == ["test.parquet", "train.parquet"]


def test_bad_sources_are_told(tmp_path):
    with pytest.raises(DataError, match=r"train.jsonl: the file holds no rows"):
        prepare(source(tmp_path / "empty", train=()), out=str(tmp_path / "out"))

    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "train.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(DataError, match=r"half: test.jsonl or test.parquet is missing; found train.jsonl"):
        prepare(str(tmp_path / "half"), out=str(tmp_path / "out"))

    with pytest.raises(DataError, match="is a file; name the folder"):
        prepare(str(tmp_path / "half" / "train.jsonl"), out=str(tmp_path / "out"))
    with pytest.raises(DataError, match="no such folder, nor an id of the Hub such as openai/gsm8k"):
        prepare(str(tmp_path / "nowhere"), out=str(tmp_path / "out"))

    (tmp_path / "cut").mkdir()
    for split in ("train", "test"):
        (tmp_path / "cut" / f"{split}.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="not a readable parquet file, perhaps truncated"):
        prepare(str(tmp_path / "cut"), out=str(tmp_path / "out"))

    latin = tmp_path / "in"
    source(latin)
    (latin / "train.jsonl").write_bytes('{"question": "ü"}'.encode("latin-1"))
    with pytest.raises(DataError, match="row 0: not valid JSON in UTF-8"):
        prepare(str(latin), out=str(tmp_path / "out"))


def test_a_folder_that_cannot_be_written_is_told_and_left_clean(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        prepare(source(tmp_path / "in"), out=str(tmp_path / "file"))

    out = tmp_path / "out"
    (out / "test.parquet").mkdir(parents=True)  # the second rename fails
    with pytest.raises(DataError, match="cannot be written"):
        prepare(str(tmp_path / "in"), out=str(out))
    assert not [file for file in out.iterdir() if file.name.endswith(".tmp")]


def test_the_hub_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)  # as if it were not installed
    with pytest.raises(DataError, match=r'pip install "agentenv\[datasets\]"'):
        prepare("openai/gsm8k", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()

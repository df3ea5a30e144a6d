"""Turn the GSM8K questions, from a folder or from the Hub, into the task files that `agentenv/GSM8K-v0` reads."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentenv.envs.calculator.answer import first_number
from agentenv.envs.gsm8k.files import SPLITS, cache_folder
from agentenv.errors import DataError

INSTRUCTION = "Use the calculator. End with #### and the number."
"""Closes every prompt."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_Row = dict[str, object]


def prepare(source: str, *, out: str | None = None) -> list[Path]:
    """Write `train.parquet` and `test.parquet`.

    Columns: `data_source`, `prompt`, `ability`, `reward_model{style, ground_truth}` and
    `extra_info{split, index, answer, question}`. Both files are checked whole before the first is written, and each
    is renamed into place when complete.

    Args:
        source: a folder with `train.jsonl` and `test.jsonl` (or `.parquet`) with the columns `question` and `answer`,
            or the id of a data set on the Hub, such as `openai/gsm8k`.
        out: folder to write to; the user's cache by default, where the environment finds it.

    Returns:
        The written files.

    Raises:
        DataError: names the file, the row and the field that is wrong, and what was expected; nothing is written.
    """
    tables = {split: _prompts(rows, split=split) for split, rows in _read_source(source).items()}
    return _write_all(tables, cache_folder() if out is None else Path(out).expanduser())


def _read_source(source: str) -> dict[str, list[_Row]]:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return {split: list(_checked(_file_rows(_find(folder, split)))) for split in SPLITS}
    if folder.is_file():
        raise DataError(f"{folder} is a file; name the folder that holds train.jsonl and test.jsonl")
    if not _HUB_ID.fullmatch(source):
        raise DataError(f"{source}: no such folder, nor an id of the Hub such as openai/gsm8k")
    return {split: list(_checked(_hub_rows(source, split))) for split in SPLITS}


def _find(folder: Path, split: str) -> Path:
    for name in (f"{split}.jsonl", f"{split}.parquet"):
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(item.name for item in folder.iterdir())[:10]) or "nothing"
    raise DataError(f"{folder}: {split}.jsonl or {split}.parquet is missing; found {found}")


def _file_rows(file: Path) -> Iterator[tuple[str, object]]:
    rows = _jsonl_rows(file) if file.suffix == ".jsonl" else _parquet_rows(file)
    is_empty = True
    for index, row in enumerate(rows):
        is_empty = False
        yield f"{file}, row {index}", row
    if is_empty:
        raise DataError(f"{file}: the file holds no rows; expected objects with the fields question and answer")


def _jsonl_rows(file: Path) -> Iterator[object]:
    with file.open("rb") as lines:
        for index, line in enumerate(lines):
            try:
                yield json.loads(line.decode("utf-8"))
            except ValueError as error:  # JSON and UTF-8 errors alike
                raise DataError(f"{file}, row {index}: not valid JSON in UTF-8 ({error})") from error


def _parquet_rows(file: Path) -> Iterator[object]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable parquet file, perhaps truncated ({error})") from error


def _hub_rows(source: str, split: str) -> Iterator[tuple[str, object]]:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        hint = 'install the extra with `pip install "agentenv[datasets]"`, or pass a folder with the files'
        raise DataError(f"{source}: no such folder, and the Hub needs the package `datasets`; {hint}") from error
    try:
        loaded = datasets.load_dataset(source, "main", split=split)
    except Exception as error:  # the library raises errors of many packages
        raise DataError(f"{source}: split {split} could not be loaded from the Hub ({error})") from error
    for index, row in enumerate(loaded):
        yield f"{source} {split}, row {index}", row


def _checked(rows: Iterable[tuple[str, object]]) -> Iterator[_Row]:
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: a row is {type(row).__name__}; expected an object with question and answer")
        question, answer = (_text_field(row, field, where=where) for field in ("question", "answer"))
        marks = answer.count("####")
        if marks != 1:
            raise DataError(f"{where}: field 'answer' has {marks} times ####; expected one, before the final number")
        truth = answer.partition("####")[2].strip().replace(",", "")
        if first_number(truth) is None:
            raise DataError(f"{where}: field 'answer' ends with #### {truth!r}; expected a number")
        yield {"question": question, "answer": answer, "truth": truth}


def _text_field(row: Mapping[Any, Any], field: str, *, where: str) -> str:
    if field not in row:
        raise DataError(f"{where}: field '{field}' is missing; found {', '.join(map(str, row)) or 'no field'}")
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        shown = "empty" if isinstance(value, str) else type(value).__name__
        raise DataError(f"{where}: field '{field}' is {shown}; expected text")
    return value


def _prompts(rows: Sequence[_Row], *, split: str) -> list[_Row]:
    return [
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": f"{row['question']}\n{INSTRUCTION}"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": row["truth"]},
            "extra_info": {"split": split, "index": index, "answer": row["answer"], "question": row["question"]},
        }
        for index, row in enumerate(rows)
    ]


def _write_all(tables: Mapping[str, list[_Row]], folder: Path) -> list[Path]:
    import pyarrow
    import pyarrow.parquet

    beside = {split: folder / f".{split}.parquet.{os.getpid()}.tmp" for split in tables}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in tables.items():
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), beside[split], compression="zstd")
        return [beside[split].replace(folder / f"{split}.parquet") for split in tables]
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error})") from error
    finally:
        for file in beside.values():
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

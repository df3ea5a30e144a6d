"""Rows of parquet and JSONL files; whatever is wrong is named with file and row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from agentenv.errors import DataError

Row = Mapping[str, object]


def read_rows(path: str | Path, *, column: str) -> Iterator[tuple[str, Row]]:
    """Yield `(where, row)`; `where` names file and row for later complaints.

    Args:
        path: a `.parquet`, `.jsonl` or `.json` (one object per line) file.
        column: must be there.

    Raises:
        DataError: the file is missing, empty, truncated, of another kind, or a row or the column is not there.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty")
    if file.suffix == ".parquet":
        rows = _parquet_rows(file, column=column)
    elif file.suffix in (".jsonl", ".json"):
        rows = _jsonl_rows(file, column=column)
    else:
        raise DataError(f"{file}: unknown kind of file {file.suffix!r}; expected .parquet or .jsonl")
    is_empty = True
    for index, row in enumerate(rows):
        is_empty = False
        yield f"{file}, row {index}", row
    if is_empty:
        raise DataError(f"{file}: the file holds no rows")


def _parquet_rows(file: Path, *, column: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable parquet file, perhaps truncated ({error})") from error
    if column not in table.column_names:
        raise DataError(f"{file}: column '{column}' is missing; found {', '.join(table.column_names)}")
    yield from table.to_pylist()


def _jsonl_rows(file: Path, *, column: str) -> Iterator[Row]:
    with open(file, encoding="utf-8") as lines:
        try:
            for index, line in enumerate(lines):
                if line.strip():
                    yield _json_row(line, where=f"{file}, row {index}", column=column)
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 ({error})") from error


def _json_row(line: str, *, where: str, column: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row is {type(row).__name__}; expected an object")
    if column not in row:
        raise DataError(f"{where}: field '{column}' is missing; found {', '.join(row) or 'no field'}")
    return row

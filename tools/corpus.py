"""A corpus of passages for search, read from a folder of texts, JSONL or parquet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentenv.errors import DataError, UsageError
from agentenv.rows import Row, read_rows

SUFFIXES = (".txt", ".md", ".rst")
"""Of the files that are read from a folder."""

PASSAGE_CHARS = 1_000
"""Of a file of a folder that is longer than this, paragraphs are put together up to this length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What a search finds.

    Attributes:
        passage_id: names it; unique in its corpus.
        text: what is searched and shown.
        title: searched and shown too; may be empty.
    """

    passage_id: str
    text: str
    title: str = ""


def read_corpus(path: Path | str, *, passage_chars: int = PASSAGE_CHARS) -> tuple[Passage, ...]:
    """Read a corpus.

    Args:
        path: a folder, whose text files are cut into passages named `file#1`, `file#2`, ...; or a `.jsonl` or
            `.parquet` file with a column `text` and perhaps `id` and `title`.
        passage_chars: length up to which paragraphs of a file are put together.

    Raises:
        DataError: the corpus is empty, or a file or row cannot be read; names it.
    """
    if passage_chars < 1:
        raise UsageError(f"passage_chars is {passage_chars}; at least 1 is needed")
    place = Path(path).expanduser()
    if place.is_dir():
        passages = tuple(_from_folder(place, passage_chars=passage_chars))
        if not passages:
            raise DataError(f"{place}: the corpus is empty; no text in files that end with {', '.join(SUFFIXES)}")
        return passages
    passages = tuple(_from_row(row, where, index) for index, (where, row) in enumerate(read_rows(place, column="text")))
    _check_ids(passages, where=str(place))
    return passages


def digest(passages: Sequence[Passage]) -> str:
    """Return a name for the content of a corpus: SHA-256, as hexadecimal digits."""
    sha = hashlib.sha256()
    for passage in passages:
        parts = [part.encode("utf-8", "surrogatepass") for part in (passage.passage_id, passage.title, passage.text)]
        sha.update(b"".join(len(part).to_bytes(8, "little") + part for part in parts))
    return sha.hexdigest()


def _from_folder(folder: Path, *, passage_chars: int) -> Iterator[Passage]:
    for file in sorted(folder.rglob("*")):
        if file.suffix not in SUFFIXES or not file.is_file():
            continue
        name = file.relative_to(folder).as_posix()
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 ({error}); save it as UTF-8 or take it out of the folder") from None
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error})") from error
        for number, passage in enumerate(_cut(text, passage_chars), start=1):
            yield Passage(passage_id=f"{name}#{number}", text=passage)


def _cut(text: str, max_chars: int) -> Iterator[str]:
    """Yield paragraphs put together up to a length; one that is longer by itself is cut."""
    held = ""
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        rest = paragraph.strip()
        if held and len(held) + len(rest) + 2 > max_chars:
            yield held
            held = ""
        held = f"{held}\n\n{rest}" if held and rest else held or rest
        while len(held) > max_chars:
            yield held[:max_chars]
            held = held[max_chars:]
    if held:
        yield held


def _from_row(row: Row, where: str, index: int) -> Passage:
    values = {"id": row.get("id", index), "title": row.get("title") or "", "text": row["text"]}
    for name in ("title", "text"):
        if not isinstance(values[name], str):
            raise DataError(f"{where}: field '{name}' is {type(values[name]).__name__}; expected text")
    if not isinstance(values["id"], (str, int)):
        raise DataError(f"{where}: field 'id' is {type(values['id']).__name__}; expected text or a whole number")
    return Passage(passage_id=str(values["id"]), title=str(values["title"]), text=str(values["text"]))


def _check_ids(passages: Iterable[Passage], *, where: str) -> None:
    seen: set[str] = set()
    for passage in passages:
        if passage.passage_id in seen:
            raise DataError(f"{where}: two rows have the id {passage.passage_id!r}; ids must be unique")
        seen.add(passage.passage_id)

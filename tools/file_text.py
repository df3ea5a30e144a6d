"""What file tools do with one text: show lines, replace a passage, insert lines, find matches. All pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from agentenv.errors import ToolError

MAX_PATTERN_CHARS = 200
MAX_LINE_CHARS = 500
"""Of a line as it is shown; the rest is left out."""


def clean_path(path: str) -> str:
    """Return a path relative to the working folder in its shortest form; `""` is the folder itself.

    Raises:
        ToolError: the path is empty, leads out of the folder, or cannot be a path.
    """
    if not path.strip() or "\0" in path or len(path) > 1000:
        raise ToolError("a path has 1 to 1000 characters and no NUL")
    if path.startswith(("/", "~")):
        raise ToolError(f'the path "{path[:80]}" must be relative to the working folder')
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if not parts:
                raise ToolError(f'the path "{path[:80]}" leads out of the working folder')
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def numbered(text: str, *, first: int, last: int | None) -> str:
    """Return lines `first` to `last` (from 1, both included; None is the end) with their numbers.

    Raises:
        ToolError: there are no such lines.
    """
    lines = text.splitlines()
    if not lines:
        return "(the file is empty)"
    end = len(lines) if last is None else last
    if not 1 <= first <= len(lines) or end < first:
        raise ToolError(f"lines {first} to {end} cannot be shown; the file has lines 1 to {len(lines)}")
    width = len(str(min(end, len(lines))))
    return "\n".join(f"{first + index:>{width}}\t{_shown(line)}" for index, line in enumerate(lines[first - 1 : end]))


def replaced(text: str, old: str, new: str) -> tuple[str, int]:
    """Return the text with the only occurrence of `old` replaced, and the line where it began.

    Raises:
        ToolError: `old` is empty, occurs nowhere, or more than once.
    """
    if not old:
        raise ToolError("the text to replace is empty; to add lines, insert them")
    start = text.find(old)
    if start < 0:
        raise ToolError("the text to replace does not occur in the file; it must match exactly, spaces included")
    again = text.find(old, start + 1)
    if again >= 0:
        where = ", ".join(str(_line_of(text, place)) for place in (start, again))
        raise ToolError(
            f"the text to replace occurs more than once (lines {where}, ...); give more of what is around it"
        )
    return text[:start] + new + text[start + len(old) :], _line_of(text, start)


def inserted(text: str, lines: str, *, after: int) -> str:
    """Return the text with whole lines put in after line `after`; 0 puts them first.

    Raises:
        ToolError: there is no such line.
    """
    present = text.splitlines(keepends=True)
    if not 0 <= after <= len(present):
        raise ToolError(f"there is no line {after}; the file has {len(present)} lines, and 0 is before the first")
    if after and not present[after - 1].endswith("\n"):
        present[after - 1] += "\n"
    added = lines if lines.endswith("\n") or not lines else lines + "\n"
    return "".join([*present[:after], added, *present[after:]])


def matches(path: str, text: str, wanted: str) -> Iterator[str]:
    """Yield `path:line: text` for every line that contains `wanted`, upper and lower case alike."""
    low = wanted.casefold()
    for number, line in enumerate(text.splitlines(), start=1):
        if low in line.casefold():
            yield f"{path}:{number}: {_shown(line.strip())}"


def check_wanted(wanted: str) -> None:
    """Refuse a search for nothing, or for something too long.

    Raises:
        ToolError: in words for the model.
    """
    if not wanted.strip() or len(wanted) > MAX_PATTERN_CHARS or re.search(r"[\r\n]", wanted):
        raise ToolError(f"search for 1 to {MAX_PATTERN_CHARS} characters of one line")


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _shown(line: str) -> str:
    return line if len(line) <= MAX_LINE_CHARS else f"{line[:MAX_LINE_CHARS]}[... {len(line) - MAX_LINE_CHARS} more]"

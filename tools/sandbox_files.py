"""The file tools of `files.Files` over the working folder of a sandbox: the same names, schemas and answers."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace

from agentenv.errors import ToolError
from agentenv.tool import Tool
from agentenv.tools.file_text import clean_path
from agentenv.tools.files import Files
from agentenv.tools.sandbox.sandbox import FileInfo, Sandbox

MAX_FILE_BYTES = 1 << 20
"""Of a file that is shown, edited or searched."""

MAX_SEARCHED_BYTES = 8 << 20
"""Of all files of one search."""

Open = Callable[[], Awaitable[Sandbox]]


def tools_over(open_sandbox: Open) -> list[Tool]:
    """Return the file tools over the sandbox that the function returns."""
    return [replace(item, function=functools.partial(_run, open_sandbox, item.name)) for item in Files().tools]


class _Mirror(Files):
    """A tree with the paths and sizes of a working folder, in which only the files of one call have their text."""

    def __init__(self, infos: dict[str, FileInfo]) -> None:
        super().__init__(dict.fromkeys(infos, ""), max_files=1 << 30, max_chars=1 << 40)
        self.infos = infos

    def size(self, path: str) -> int:
        return self.infos[path].size


async def _run(open_sandbox: Open, name: str, **arguments: object) -> str:
    sandbox = await open_sandbox()
    found = await sandbox.list_files()
    mirror = _Mirror({info.path: info for info in found if info.kind == "file"})
    loaded: dict[str, str] = {}
    for path in _needed(mirror, name, arguments):
        text = await _text(sandbox, path, is_searched=name == "search_files")
        if text is not None:
            loaded[path] = mirror.tree[path] = text
    answer: str = getattr(mirror, name)(**arguments)
    if name in ("create_file", "replace_text", "insert_lines"):
        path = clean_path(str(arguments["path"]))
        await sandbox.write_file(path, _bytes(mirror.tree[path]))
    return answer


def _needed(mirror: _Mirror, name: str, arguments: dict[str, object]) -> list[str]:
    """Return the files whose text a call reads."""
    if name in ("list_files", "create_file"):
        return []
    if name != "search_files":
        path = clean_path(str(arguments["path"]))
        return [path] if path in mirror.tree else []
    left, needed = MAX_SEARCHED_BYTES, []
    for path in mirror.below(str(arguments.get("folder", "."))):
        size = mirror.infos[path].size
        if size <= min(left, MAX_FILE_BYTES):
            needed.append(path)
            left -= size
    return needed


async def _text(sandbox: Sandbox, path: str, *, is_searched: bool) -> str | None:
    """Return a file's text; None for one that a search passes over."""
    data = await sandbox.read_file(path, max_bytes=MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        if is_searched:
            return None
        raise ToolError(f'"{path}" has more than {MAX_FILE_BYTES:,} bytes, which is too much for this tool')
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        if is_searched:
            return None
        raise ToolError(f'"{path}" is no text in UTF-8') from None


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ToolError("the text holds a lone surrogate, which UTF-8 cannot write") from None

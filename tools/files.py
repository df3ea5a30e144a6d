"""File tools over a tree of texts in memory, for environments that need no sandbox: view, create, edit, search."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from agentenv.errors import ToolError, UsageError, did_you_mean
from agentenv.tool import tool
from agentenv.toolkit import Toolkit
from agentenv.tools import file_text

MAX_MATCHES = 100


class Files(Toolkit):
    """A tree of text files.

    Args:
        tree: what stands there at the beginning, by path; folders are the paths' beginnings.
        max_files: how many files there may be.
        max_chars: of all files together.

    Attributes:
        tree: texts by path; the environment may read and change it.
    """

    def __init__(
        self, tree: Mapping[str, str] | None = None, *, max_files: int = 1_000, max_chars: int = 10_000_000
    ) -> None:
        if max_files < 1 or max_chars < 1:
            raise UsageError(f"max_files is {max_files} and max_chars {max_chars}; at least 1 is needed")
        self.tree = {file_text.clean_path(path): text for path, text in (tree or {}).items()}
        self._max_files = max_files
        self._max_chars = max_chars

    @tool(read_only=True)
    def list_files(self, folder: str = ".") -> str:
        """List the files below a folder, with their sizes.

        Args:
            folder: relative to the working folder.
        """
        found = self.below(folder)
        return "\n".join(f"{path} ({self.size(path)})" for path in found) or "There are no files."

    @tool(read_only=True)
    def view_file(self, path: str, first_line: int = 1, last_line: int | None = None) -> str:
        """Show a text file with line numbers.

        Args:
            path: relative to the working folder.
            first_line: counted from 1.
            last_line: included; leave it out for the end of the file.
        """
        return file_text.numbered(self._read(path), first=first_line, last=last_line)

    @tool
    def create_file(self, path: str, text: str) -> str:
        """Write a text file, in place of an older one of the same path.

        Args:
            path: relative to the working folder; missing folders are made.
            text: the whole content.
        """
        cleaned = file_text.clean_path(path)
        is_new = cleaned not in self.tree
        self._write(cleaned, text)
        return f"{'Created' if is_new else 'Replaced'} {cleaned} ({len(text.splitlines())} lines)."

    @tool
    def replace_text(self, path: str, old: str, new: str) -> str:
        """Replace a passage that occurs exactly once in a text file.

        Args:
            path: relative to the working folder.
            old: the passage, exactly as it stands there, without line numbers.
            new: what to put in its place; may be empty.
        """
        text, line = file_text.replaced(self._read(path), old, new)
        self._write(file_text.clean_path(path), text)
        return f"Replaced at line {line}."

    @tool
    def insert_lines(self, path: str, after_line: int, text: str) -> str:
        """Insert whole lines into a text file.

        Args:
            path: relative to the working folder.
            after_line: number of the line after which they come; 0 puts them first.
            text: the lines.
        """
        changed = file_text.inserted(self._read(path), text, after=after_line)
        self._write(file_text.clean_path(path), changed)
        return f"Inserted {len(text.splitlines())} lines after line {after_line}."

    @tool(read_only=True)
    def search_files(self, text: str, folder: str = ".") -> str:
        """Find the lines that contain a text, upper and lower case alike.

        Args:
            text: what to look for, as it is written; not a pattern.
            folder: relative to the working folder.
        """
        file_text.check_wanted(text)
        found = (line for path in self.below(folder) for line in file_text.matches(path, self.tree[path], text))
        lines = list(itertools.islice(found, MAX_MATCHES + 1))
        if len(lines) > MAX_MATCHES:
            lines[MAX_MATCHES] = f"(the first {MAX_MATCHES} lines; there are more)"
        return "\n".join(lines) or "No line contains it."

    def size(self, path: str) -> int:
        """Return the size of a file, as it is listed."""
        return len(self.tree[path])

    def below(self, folder: str) -> list[str]:
        """Return the paths below a folder, sorted.

        Raises:
            ToolError: there is no such folder.
        """
        cleaned = file_text.clean_path(folder)
        if not cleaned:
            return sorted(self.tree)
        found = sorted(path for path in self.tree if path == cleaned or path.startswith(f"{cleaned}/"))
        if not found:
            raise ToolError(f'there is no folder "{cleaned[:80]}"')
        return found

    def _read(self, path: str) -> str:
        cleaned = file_text.clean_path(path)
        if cleaned not in self.tree:
            raise ToolError(f'there is no file "{cleaned[:80]}".{did_you_mean(cleaned[:80], self.tree)}')
        return self.tree[cleaned]

    def _write(self, path: str, text: str) -> None:
        if not path:
            raise ToolError("the path names the working folder itself; a file's path is needed")
        parents = {path[:index] for index, letter in enumerate(path) if letter == "/"}
        blocking = parents & self.tree.keys()
        if blocking:
            raise ToolError(f'"{min(blocking)[:80]}" is a file, so it cannot hold "{path[:80]}"')
        if any(other.startswith(f"{path}/") for other in self.tree):
            raise ToolError(f'"{path[:80]}" is a folder')
        if path not in self.tree and len(self.tree) >= self._max_files:
            raise ToolError(f"there are {len(self.tree)} files, and no more are allowed")
        others = sum(len(content) for name, content in self.tree.items() if name != path)
        if others + len(text) > self._max_chars:
            raise ToolError(f"the files would hold {others + len(text):,} characters; {self._max_chars:,} are allowed")
        self.tree[path] = text

"""A file system in memory: text files and folders by absolute path, bounded in size."""

from __future__ import annotations

from typing import NoReturn

MAX_NODES = 500
"""Files and folders together."""
MAX_FILE_CHARS = 20_000
MAX_TOTAL_CHARS = 60_000
MAX_PATH_CHARS = 500


class ShellError(Exception):
    """A command failed; the text is what it prints."""


class FileSystem:
    """Files and folders below `/`.

    Attributes:
        files: content by absolute path.
        folders: absolute paths; `/` is always there.
    """

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.folders: set[str] = {"/"}

    def __eq__(self, other: object) -> bool:
        """True where both hold the same folders and files; newlines at the end of a file make no difference."""
        if not isinstance(other, FileSystem):
            return NotImplemented
        return self.folders == other.folders and self._stripped() == other._stripped()

    __hash__ = None  # type: ignore[assignment]

    def copy(self) -> FileSystem:
        """Return an independent copy."""
        made = FileSystem()
        made.files, made.folders = dict(self.files), set(self.folders)
        return made

    def exists(self, path: str) -> bool:
        """True for a file or a folder."""
        return path in self.files or path in self.folders

    def read(self, path: str) -> str:
        """Return the content of a file."""
        if path in self.folders:
            raise ShellError(f"{path}: Is a directory")
        if path not in self.files:
            raise _missing(path)
        return self.files[path]

    def write(self, path: str, content: str) -> None:
        """Create or replace a file."""
        if path in self.folders:
            raise ShellError(f"{path}: Is a directory")
        self._require_room(path)
        if len(content) > MAX_FILE_CHARS:
            raise ShellError(f"{path}: File too large; at most {MAX_FILE_CHARS} characters are allowed")
        if sum(map(len, self.files.values())) + len(content) > MAX_TOTAL_CHARS:
            raise ShellError(f"No space left on device; at most {MAX_TOTAL_CHARS} characters are allowed")
        self.files[path] = content

    def make_folder(self, path: str, *, with_parents: bool = False) -> None:
        """Create a folder; with parents, missing ones too, and an existing one is fine."""
        if with_parents:
            missing = [folder for folder in (*_ancestors(path), path) if folder not in self.folders]
            for folder in missing:
                self.make_folder(folder)
            return
        if self.exists(path):
            raise ShellError(f"{path}: File exists")
        self._require_room(path)
        self.folders.add(path)

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with everything below it."""
        if path == "/":
            raise ShellError("/: refusing to remove the root")
        if not self.exists(path):
            raise _missing(path)
        for below in self.below(path):
            self._forget(below)
        self._forget(path)

    def copy_to(self, source: str, target: str) -> None:
        """Copy a file or a whole folder to a new path."""
        if source in self.files:
            self.write(target, self.files[source])
            return
        if source not in self.folders:
            raise _missing(source)
        if _is_within(target, source):
            raise ShellError(f"{source}: cannot copy a directory into itself")
        nodes = self.below(source)
        if target not in self.folders:
            self.make_folder(target)
        for node in nodes:
            moved = target.rstrip("/") + node[len(source.rstrip("/")) :]
            if node in self.files:
                self.write(moved, self.files[node])
            elif moved not in self.folders:
                self.make_folder(moved)

    def move_to(self, source: str, target: str) -> None:
        """Move a file or a whole folder to a new path."""
        if source == target:
            raise ShellError(f"{source}: source and target are the same")
        if source == "/":
            raise ShellError("/: refusing to move the root")
        self.copy_to(source, target)
        self.remove(source)

    def children(self, path: str) -> list[str]:
        """Return the names in a folder, sorted."""
        if path not in self.folders:
            _refuse_listing(path, is_file=path in self.files)
        start = _prefix(path)
        return sorted({node[len(start) :] for node in self._below(start) if "/" not in node[len(start) :]})

    def below(self, path: str) -> list[str]:
        """Return all paths below a folder, sorted; none for a file."""
        return sorted(self._below(_prefix(path)))

    def _below(self, start: str) -> list[str]:
        return [node for node in (*self.files, *self.folders) if node.startswith(start) and node != "/"]

    def _require_room(self, path: str) -> None:
        parent = parent_of(path)
        if parent not in self.folders:
            raise ShellError(f"{path}: {'Not a directory' if parent in self.files else 'No such file or directory'}")
        if len(path) > MAX_PATH_CHARS:
            raise ShellError("File name too long")
        if not self.exists(path) and len(self.files) + len(self.folders) >= MAX_NODES:
            raise ShellError(f"No space left on device; at most {MAX_NODES} files and folders are allowed")

    def _forget(self, path: str) -> None:
        self.files.pop(path, None)
        self.folders.discard(path)

    def _stripped(self) -> dict[str, str]:
        return {path: content.rstrip("\n") for path, content in self.files.items()}


def absolute(path: str, *, folder: str) -> str:
    """Return the absolute form of a path that is relative to a folder, without `.`, `..` and doubled slashes."""
    parts: list[str] = []
    for part in (path if path.startswith("/") else f"{folder}/{path}").split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def parent_of(path: str) -> str:
    """Return the folder that holds an absolute path."""
    return path.rpartition("/")[0] or "/"


def name_of(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition("/")[2]


def _ancestors(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[:count]) for count in range(1, len(parts))]


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(_prefix(folder))


def _prefix(folder: str) -> str:
    return folder.rstrip("/") + "/"


def _missing(path: str) -> ShellError:
    return ShellError(f"{path}: No such file or directory")


def _refuse_listing(path: str, *, is_file: bool) -> NoReturn:
    raise ShellError(f"{path}: Not a directory") if is_file else _missing(path)

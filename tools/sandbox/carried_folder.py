"""The working folder of an episode whose sandbox keeps nothing between calls: it lives here, as plain data."""

from __future__ import annotations

import io
import posixpath
import tarfile
from dataclasses import dataclass
from typing import Literal

from agentenv.errors import ToolError
from agentenv.tools.sandbox.sandbox import FileInfo, Limits

_MAX_LINKS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file, folder or link.

    Attributes:
        kind: as in `FileInfo`; nothing else is kept.
        data: of a file.
        target: of a link.
        is_executable: of a file.
    """

    kind: Literal["file", "folder", "link"]
    data: bytes = b""
    target: str = ""
    is_executable: bool = False


class CarriedFolder:
    """Files by their paths. Nothing here is ever a file of the host, so a path or link can lead nowhere else.

    Args:
        limits: `work_bytes`, `work_files` and `file_bytes` are kept.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._entries: dict[str, Entry] = {}

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """Return the beginning of a file; raises ToolError where there is none."""
        found = self._entries.get(self._resolved(path))
        if found is None or found.kind != "file":
            raise ToolError(f"{path!r} is no file")
        return found.data[:max_bytes]

    def write(self, path: str, data: bytes) -> None:
        """Write a file and the folders above it; raises ToolError where it does not fit."""
        place = self._resolved(path)
        if not place or (place in self._entries and self._entries[place].kind != "file"):
            raise ToolError(f"{path!r} is a folder")
        parts = place.split("/")
        folders = ["/".join(parts[:index]) for index in range(1, len(parts))]
        if any(self._entries.get(folder, Entry(kind="folder")).kind != "folder" for folder in folders):
            raise ToolError(f"{path!r} goes through a file")
        old = self._entries.get(place)
        new = {folder: Entry(kind="folder") for folder in folders}
        self._keep(
            {
                **self._entries,
                **new,
                place: Entry(kind="file", data=data, is_executable=bool(old and old.is_executable)),
            }
        )

    def list(self, path: str) -> tuple[FileInfo, ...]:
        """Return everything below a folder, sorted by path."""
        top = self._resolved(path)
        if top and (top not in self._entries or self._entries[top].kind != "folder"):
            raise ToolError(f"{path!r} is no folder")
        below = sorted(name for name in self._entries if not top or name.startswith(f"{top}/"))
        return tuple(
            FileInfo(path=name, kind=self._entries[name].kind, size=len(self._entries[name].data)) for name in below
        )

    def pack(self) -> bytes:
        """Return everything as an uncompressed tar."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, entry in sorted(self._entries.items()):
                info = tarfile.TarInfo(name)
                info.size, info.linkname = len(entry.data), entry.target
                info.type = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}[entry.kind]
                info.mode = 0o755 if entry.kind == "folder" or entry.is_executable else 0o644
                tar.addfile(info, io.BytesIO(entry.data))
        return buffer.getvalue()

    def unpack(self, packed: bytes) -> None:
        """Replace everything by what a tar holds; members that are none of ours or lead out are left out.

        Raises:
            ToolError: it is no tar, or does not fit.
        """
        entries: dict[str, Entry] = {}
        left = self._limits.work_bytes
        try:
            with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
                for info in tar:
                    name = posixpath.normpath(info.name)
                    if name == "." or name.startswith(("/", "..")) or len(entries) > self._limits.work_files:
                        continue
                    left -= info.size
                    if left < 0 or info.size > len(packed):
                        raise ToolError(f"the folder holds more than {self._limits.work_bytes:,} bytes")
                    entry = _entry(tar, info)
                    if entry is not None:
                        entries[name] = entry
        except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
            raise ToolError(f"this is no tar of a folder: {error}") from error
        for name in list(entries):
            for parent in _parents(name):
                above = entries.setdefault(parent, Entry(kind="folder"))
                if above.kind != "folder":  # a member below a link
                    entries.pop(name, None)
        self._keep(entries)

    def _keep(self, entries: dict[str, Entry]) -> None:
        total = sum(len(entry.data) for entry in entries.values())
        if total > self._limits.work_bytes or len(entries) > self._limits.work_files:
            raise ToolError(
                f"{total:,} bytes in {len(entries):,} files do not fit into {self._limits.work_bytes:,} bytes and "
                f"{self._limits.work_files:,} files"
            )
        largest = max((len(entry.data) for entry in entries.values()), default=0)
        if largest > self._limits.file_bytes:
            raise ToolError(f"a file of {largest:,} bytes is larger than {self._limits.file_bytes:,}")
        self._entries = entries

    def _resolved(self, path: str) -> str:
        """Follow links inside of the folder; raises ToolError for what leads out."""
        rest = [part for part in path.removeprefix("/work/").split("/") if part not in ("", ".")]
        if "\0" in path or (path.startswith("/") and not path.startswith("/work/") and path != "/work"):
            raise ToolError(f"{path!r} is not below the working folder")
        done: list[str] = []
        num_links = 0
        while rest:
            part = rest.pop(0)
            if part == "..":
                if not done:
                    raise ToolError(f"{path!r} leads out of the working folder")
                done.pop()
                continue
            entry = self._entries.get("/".join([*done, part]))
            if entry is None or entry.kind != "link":
                done.append(part)
                continue
            num_links += 1
            if num_links > _MAX_LINKS or entry.target.startswith("/"):
                raise ToolError(f"{path!r} leads out of the working folder through a link")
            rest = [step for step in entry.target.split("/") if step not in ("", ".")] + rest
        return "/".join(done)


def _entry(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Entry | None:
    if info.isreg():
        file = tar.extractfile(info)
        assert file is not None  # of a regular member
        return Entry(kind="file", data=file.read(), is_executable=bool(info.mode & 0o100))
    if info.isdir():
        return Entry(kind="folder")
    return Entry(kind="link", target=info.linkname) if info.issym() else None


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:index]) for index in range(1, len(parts))]

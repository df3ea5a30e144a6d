"""The working folder, served to the outside by process 1 of a session: no path leads out, no link is trusted."""

from __future__ import annotations

import base64
import ctypes
import errno
import os
import stat
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from .frames import Frame

_OPENAT2 = 437
_NO_MAGIC_LINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_MOST_DEPTH = 64
_LIST_CHUNK = 1000
_COPY_BYTES = 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The model asked for a file that it may not have, or that is not there; the text is for the model."""


class WorkFolder:
    """Files below one folder.

    Args:
        path: the folder.
        most_bytes: what a snapshot may hold.
        most_files: how many files, folders and links a snapshot may hold.
    """

    def __init__(self, path: str, *, most_bytes: int, most_files: int) -> None:
        self._most_bytes = most_bytes
        self._most_files = most_files
        self._root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def read(self, path: str, *, offset: int, size: int) -> Frame:
        """Return `{"data": base64, "is_end": bool}`."""
        with self._opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Refused(f"{path} is not a regular file")
            data = os.pread(fd, size, offset)
        return {"data": base64.b64encode(data).decode("ascii"), "is_end": len(data) < size}

    def write(self, path: str, *, data: str, is_first: bool) -> Frame:
        """Write or append base64 data; folders on the way are made."""
        folder, _, name = path.rstrip("/").rpartition("/")
        if not name or name in (".", ".."):
            raise Refused(f"{path!r} names no file")
        self._make_folders(folder, is_strict=False)
        flags = os.O_WRONLY | os.O_NONBLOCK | (os.O_CREAT | os.O_TRUNC if is_first else os.O_APPEND)
        with self._opened(path, flags) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Refused(f"{path} is not a regular file")
            _write_all(fd, base64.b64decode(data), path)
        return {}

    def entries(self, path: str) -> Iterator[list[tuple[str, str, int]]]:
        """Yield chunks of (path, kind, size) of all below a folder."""
        chunk: list[tuple[str, str, int]] = []
        for name, info in self._walk(path):
            chunk.append((name, _kind(info.st_mode), info.st_size))
            if len(chunk) == _LIST_CHUNK:
                yield chunk
                chunk = []
        yield chunk

    def snapshot(self, target: IO[bytes]) -> None:
        """Write everything as a tar; refused when it is larger, deeper or more than the limits allow."""
        found = [(name, info) for name, info in self._walk(".") if _kind(info.st_mode) != "other"]
        size = sum(info.st_size for _, info in found)
        deep = next((name for name, _ in found if name.count("/") >= _MOST_DEPTH), "")
        if size > self._most_bytes or len(found) > self._most_files or deep:
            why = (
                f"{deep[:40]}... lies deeper than {_MOST_DEPTH} folders"
                if deep
                else f"{len(found)} files, {size:,} bytes"
            )
            limits = f"at most {self._most_files} files and {self._most_bytes:,} bytes are allowed"
            raise Refused(f"the working folder does not fit a snapshot: {why}; {limits}")
        with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for name, info in found:
                self._add(archive, name, info)

    def restore(self, source: IO[bytes]) -> None:
        """Empty the folder, then unpack a tar of regular files, folders and links."""
        self.clear()
        room, count = self._most_bytes, 0
        try:
            with tarfile.open(fileobj=source, mode="r|") as archive:
                for member in archive:
                    count += 1
                    room -= member.size
                    if room < 0 or count > self._most_files:
                        raise Refused("the snapshot holds more than the working folder may hold")
                    self._unpack(archive, member)
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise Refused(f"this is no snapshot: {error}") from None

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._root)

    @contextmanager
    def _opened(self, path: str, flags: int, *, is_strict: bool = False) -> Iterator[int]:
        try:
            fd = _open_beneath(self._root, path, flags, is_strict=is_strict)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.ELOOP):
                raise Refused(f"{path} leads out of the working folder, or through a chain of links") from None
            raise Refused(f"{path}: {os.strerror(error.errno or 0)}") from None
        except ValueError:
            raise Refused("a path holds no NUL") from None
        try:
            yield fd
        finally:
            os.close(fd)

    def _walk(self, path: str) -> Iterator[tuple[str, os.stat_result]]:
        waiting = [path]
        while waiting:
            folder = waiting.pop()
            # below the folder that was asked for, nothing is reached through a link
            with self._opened(folder, os.O_RDONLY | os.O_DIRECTORY, is_strict=folder != path) as fd:
                for name in sorted(os.listdir(fd)):
                    try:
                        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    below = name if folder == "." else f"{folder}/{name}"
                    yield below, info
                    if stat.S_ISDIR(info.st_mode) and below.count("/") <= _MOST_DEPTH and _is_open(info):
                        waiting.append(below)

    def _make_folders(self, path: str, *, is_strict: bool) -> None:
        made = ""
        for part in path.split("/"):
            if not part or part == ".":
                continue
            with self._opened(made or ".", os.O_PATH | os.O_DIRECTORY, is_strict=is_strict) as fd:
                if part == "..":
                    raise Refused(f"{path}: write it without ..")
                try:
                    os.mkdir(part, 0o755, dir_fd=fd)
                except FileExistsError:
                    pass
                except OSError as error:
                    raise Refused(f"{path}: {os.strerror(error.errno or 0)}") from None
            made = f"{made}/{part}" if made else part

    def _add(self, archive: tarfile.TarFile, name: str, info: os.stat_result) -> None:
        member = tarfile.TarInfo(name)
        member.mode, member.mtime = stat.S_IMODE(info.st_mode), int(info.st_mtime)
        if stat.S_ISDIR(info.st_mode):
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        elif stat.S_ISLNK(info.st_mode):
            member.type = tarfile.SYMTYPE
            folder, _, last = name.rpartition("/")
            with self._opened(folder or ".", os.O_PATH | os.O_DIRECTORY, is_strict=True) as fd:
                member.linkname = os.readlink(last, dir_fd=fd)
            archive.addfile(member)
        else:
            member.size = info.st_size
            with self._opened(name, os.O_RDONLY | os.O_NONBLOCK, is_strict=True) as fd:
                archive.addfile(member, _Exactly(fd, info.st_size))  # type: ignore[arg-type]

    def _unpack(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = member.name
        if name.startswith("/") or ".." in name.split("/") or not name.strip("./"):
            raise Refused(f"the snapshot holds a path that leads out: {name!r}")
        if not (member.isdir() or member.issym() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
            raise Refused(f"the snapshot holds {name!r}, which is no file, folder or link")
        if member.isdir():
            self._make_folders(name, is_strict=True)
            return
        folder, _, last = name.rstrip("/").rpartition("/")
        self._make_folders(folder, is_strict=True)
        with self._opened(folder or ".", os.O_PATH | os.O_DIRECTORY, is_strict=True) as fd:
            try:
                if member.issym():
                    os.symlink(member.linkname, last, dir_fd=fd)
                else:
                    _copy_member(archive, member, last, fd)
            except OSError as error:
                raise Refused(f"{name}: {os.strerror(error.errno or 0)}") from None

    def clear(self) -> None:
        """Remove everything, whatever its depth: folders are moved up to the root before they are emptied."""
        moved = 0
        with self._opened(".", os.O_RDONLY | os.O_DIRECTORY) as root:
            while names := os.listdir(root):
                for name in names:
                    if not stat.S_ISDIR(os.stat(name, dir_fd=root, follow_symlinks=False).st_mode):
                        os.unlink(name, dir_fd=root)
                        continue
                    os.chmod(name, 0o700, dir_fd=root)
                    with self._opened(name, os.O_RDONLY | os.O_DIRECTORY, is_strict=True) as fd:
                        for inner in os.listdir(fd):
                            if stat.S_ISDIR(os.stat(inner, dir_fd=fd, follow_symlinks=False).st_mode):
                                moved += 1
                                os.chmod(inner, 0o700, dir_fd=fd)
                                os.rename(inner, f".removed-{os.getpid()}-{moved}", src_dir_fd=fd, dst_dir_fd=root)
                            else:
                                os.unlink(inner, dir_fd=fd)
                    os.rmdir(name, dir_fd=root)


class _Exactly:
    """Reads a file as if it had kept the size that its header promises, whatever the code does to it meanwhile."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._left = size

    def read(self, size: int) -> bytes:
        wanted = min(size, self._left)
        data = os.read(self._fd, wanted)
        self._left -= wanted
        while len(data) < wanted and (more := os.read(self._fd, wanted - len(data))):
            data += more
        return data + bytes(wanted - len(data))


def _copy_member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, folder: int) -> None:
    source = archive.extractfile(member)
    assert source is not None
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, member.mode & 0o777, dir_fd=folder)
    try:
        while data := source.read(_COPY_BYTES):
            _write_all(fd, data, member.name)
    finally:
        os.close(fd)


def _open_beneath(root: int, path: str, flags: int, *, is_strict: bool) -> int:
    if "\0" in path:
        raise ValueError("NUL in a path")
    resolve = _BENEATH | _NO_MAGIC_LINKS | (_NO_SYMLINKS if is_strict else 0)
    mode = 0o644 if flags & os.O_CREAT else 0
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    fd = _libc.syscall(ctypes.c_long(_OPENAT2), ctypes.c_int(root), os.fsencode(path), how, ctypes.c_size_t(len(how)))
    if fd < 0:
        raise OSError(ctypes.get_errno(), path)
    return fd


def _write_all(fd: int, data: bytes, path: str) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise Refused(f"{path}: {os.strerror(error.errno or 0)}") from None


def _is_open(info: os.stat_result) -> bool:
    return info.st_mode & 0o500 == 0o500


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"

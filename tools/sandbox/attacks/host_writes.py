"""Attacks that write to the host, directly or through what the host does with their files."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable

from agentenv.errors import ToolError
from agentenv.tools.sandbox.attacks.attack import Arena, Attack, Broken, Kind, next_command_works, program, untouched

_KIND: Kind = "host files written"


def _writes_through(name: str, prepare: str, path: str) -> Attack:
    """The host's own file call is led out of the working folder."""

    async def play(arena: Arena) -> None:
        async with arena.episode() as sandbox:
            await sandbox.run(["sh", "-c", arena.fill(prepare)])
            with contextlib.suppress(ToolError):
                await sandbox.write_file(arena.fill(path), b"written by the attack")
            await next_command_works(sandbox)
        _raise_changes(arena)

    return Attack(name=name, kind=_KIND, play=play)


def _restores(name: str, members: Callable[[Arena], list[tuple[tarfile.TarInfo, bytes]]]) -> Attack:
    """A snapshot that was tampered with is unpacked."""

    async def play(arena: Arena) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for info, data in members(arena):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data) if data else None)
        async with arena.episode() as sandbox:
            with contextlib.suppress(ToolError):
                await sandbox.restore(buffer.getvalue())
            done = await sandbox.run(["sh", "-c", "cat *; ls -R"])
            if arena.canaries.secret in done.stdout:
                raise Broken("the restored folder shows the secret")
            await next_command_works(sandbox)
        _raise_changes(arena)

    return Attack(name=name, kind=_KIND, play=play)


def _raise_changes(arena: Arena) -> None:
    changes = arena.canaries.changes()
    if changes:
        raise Broken(changes)


def _member(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o666
    return info


def _climbing(arena: Arena) -> list[tuple[tarfile.TarInfo, bytes]]:
    folder = str(arena.canaries.folder)
    return [
        (_member("../" * 12 + f"{folder[1:]}/new.txt"), b"x"),
        (_member(f"{folder}/absolute.txt"), b"x"),
        (_member(f"a/../{'../' * 9}{folder[1:]}/folded.txt"), b"x"),
    ]


def _linking(arena: Arena) -> list[tuple[tarfile.TarInfo, bytes]]:
    folder = str(arena.canaries.folder)
    return [
        (_member("out", kind=tarfile.SYMTYPE, link=folder), b""),
        (_member("out/new.txt"), b"x"),
        (_member("file", kind=tarfile.SYMTYPE, link=f"{folder}/target.txt"), b""),
        (_member("file"), b"x"),
        (_member("hard", kind=tarfile.LNKTYPE, link=f"{folder}/target.txt"), b""),
        (_member("hard"), b"x"),
        (_member("read", kind=tarfile.LNKTYPE, link=f"{folder}/secret.txt"), b""),
    ]


def _special(_: Arena) -> list[tuple[tarfile.TarInfo, bytes]]:
    device = _member("device", kind=tarfile.CHRTYPE)
    device.devmajor, device.devminor = 1, 1
    owned = _member("owned.sh")
    owned.mode, owned.uid, owned.gid = 0o6777, 0, 0
    return [(device, b""), (_member("pipe", kind=tarfile.FIFOTYPE), b""), (owned, b"x")]


ATTACKS = (
    program(
        "overwrites, renames and deletes a file of the host",
        _KIND,
        """
import os
for attempt in (lambda: open("<<target_file>>", "w").write("x"), lambda: os.truncate("<<target_file>>", 0),
                lambda: os.replace("<<target_file>>", "<<folder>>/moved"), lambda: os.unlink("<<target_file>>"),
                lambda: os.chmod("<<target_file>>", 0)):
    try:
        attempt()
    except OSError:
        pass
""",
        untouched,
    ),
    program(
        "makes files and folders on the host",
        _KIND,
        """
import os
for attempt in (lambda: open("<<folder>>/new.txt", "w").close(), lambda: os.mkdir("<<folder>>/new"),
                lambda: os.symlink("/", "<<folder>>/link"), lambda: os.mkfifo("<<folder>>/pipe")):
    try:
        attempt()
    except OSError:
        pass
""",
        untouched,
    ),
    program(
        "opens the host's kernel settings for writing",
        _KIND,
        """
import os
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger",
             "/proc/sys/vm/overcommit_memory", "/sys/kernel/uevent_helper", "/sys/power/state",
             "/sys/module/kernel/parameters/crash_kexec_post_notifiers"):
    try:
        os.close(os.open(path, os.O_WRONLY))
        print(f"GOT {path} open for writing")
    except OSError:
        pass
""",
    ),
    program(
        "opens control groups for writing",
        _KIND,
        """
import os
for folder, folders, files in os.walk("/sys/fs/cgroup"):
    if folder.count("/") >= 6:
        folders.clear()
    for name in files:
        if name in ("cgroup.procs", "memory.max", "memory.limit_in_bytes", "release_agent", "pids.max"):
            try:
                os.close(os.open(os.path.join(folder, name), os.O_WRONLY))
                print(f"GOT {folder}/{name} open for writing")
                raise SystemExit
            except OSError:
                pass
""",
    ),
    program(
        "opens the interpreter and its library for writing",
        _KIND,
        """
import os, shutil, site, sys, sysconfig
for path in (os.__file__, sys.executable, os.path.realpath(sys.executable), shutil.which("sh"), "/usr/bin/env"):
    try:
        os.close(os.open(path, os.O_WRONLY))
        print(f"GOT {path} open for writing")
    except (OSError, TypeError):
        pass
for folder in (sysconfig.get_path("stdlib"), *site.getsitepackages(), "/usr/bin", "/usr/lib", "/"):
    try:
        os.mkdir(os.path.join(folder, "<<mark>>"))
        os.rmdir(os.path.join(folder, "<<mark>>"))
        print(f"GOT a folder in {folder}")
    except OSError:
        pass
""",
    ),
    _writes_through("leaves a link for the host to write", "ln -s <<target_file>> link", "link"),
    _writes_through("leaves a link to a folder", "ln -s <<folder>> inner", "inner/new.txt"),
    _writes_through("leaves a dangling link", "ln -s <<folder>>/new.txt link", "link"),
    _writes_through("names a path above the folder", "true", "../../../../../../../..<<folder>>/new.txt"),
    _writes_through("names an absolute path", "true", "<<folder>>/new.txt"),
    _restores("packs members that climb out of a snapshot", _climbing),
    _restores("packs links into a snapshot and writes through them", _linking),
    _restores("packs devices and set-user-id files into a snapshot", _special),
)

"""Attacks that read what belongs to the host or to another episode."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import Awaitable, Callable

from agentenv.errors import ToolError
from agentenv.tools.sandbox.attacks.attack import Arena, Attack, Broken, Kind, next_command_works, program, shell
from agentenv.tools.sandbox.sandbox import Sandbox

_KIND: Kind = "host files read"

_SHOW = """
import os
def listed(path):
    try:
        return os.listdir(path)
    except OSError:
        return []
def show(path):
    try:
        with open(path, "rb") as file:
            print(file.read(4096).decode("utf-8", "replace"))
    except OSError:
        pass
"""


def _through_files(name: str, prepare: str, path: str) -> Attack:
    """An artefact that the attack leaves behind is read by the host's own file calls."""

    async def play(arena: Arena) -> None:
        async with arena.episode() as sandbox:
            await sandbox.run(["sh", "-c", arena.fill(prepare)])
            await _reads_no_secret(arena, sandbox, arena.fill(path))
            await next_command_works(sandbox)

    return Attack(name=name, kind=_KIND, play=play)


async def _reads_no_secret(arena: Arena, sandbox: Sandbox, path: str) -> None:
    try:
        data = await asyncio.wait_for(sandbox.read_file(path), timeout=20.0)
    except ToolError:
        return
    except TimeoutError:
        raise Broken(f"read_file({path!r}) hung") from None
    if arena.canaries.secret.encode() in data:
        raise Broken(f"read_file({path!r}) gave the secret")


async def _snapshot_follows_links(arena: Arena) -> None:
    async with arena.episode() as sandbox:
        script = "ln -s <<secret_file>> link; ln -s <<folder>> folder; mkfifo pipe; echo mine > mine.txt"
        await sandbox.run(["sh", "-c", arena.fill(script)])
        packed = await asyncio.wait_for(sandbox.snapshot(), timeout=20.0)
        if arena.canaries.secret.encode() in packed:
            raise Broken("the snapshot holds the secret")
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            names = tar.getnames()
        if not any(name.endswith("mine.txt") for name in names):
            raise Broken(f"the snapshot lacks the episode's own file: {names}")
        listed = [info.path for info in await sandbox.list_files()]
        if any(path.startswith("folder/") for path in listed):
            raise Broken(f"list_files followed a link: {listed}")
        await next_command_works(sandbox)


async def _races_links(arena: Arena) -> None:
    """A thread swaps a file for a link to the secret while the host reads it."""
    swap = """
import os, threading
def swap():
    while True:
        for make in (lambda: open("new", "w").close(), lambda: os.symlink("<<secret_file>>", "new")):
            try:
                make()
                os.replace("new", "raced")
            except OSError:
                pass
threading.Thread(target=swap, daemon=True).start()
"""
    async with arena.episode() as sandbox:
        await sandbox.python(arena.fill(swap))
        for _ in range(100):
            await _reads_no_secret(arena, sandbox, "raced")
        await next_command_works(sandbox)


async def _reads_a_pipe(arena: Arena) -> None:
    async with arena.episode() as sandbox:
        await sandbox.run(["mkfifo", "pipe"])
        await _reads_no_secret(arena, sandbox, "pipe")
        await next_command_works(sandbox)


def _sibling(name: str, spy: Callable[[Arena, Sandbox], Awaitable[str]]) -> Attack:
    """A second episode, open at the same time, holds a secret of its own."""

    async def play(arena: Arena) -> None:
        kept = f"{arena.canaries.secret[:9]}sibling"
        async with arena.episode() as victim, arena.episode() as attacker:
            await victim.write_file("sibling.txt", kept.encode())
            await victim.python(f"kept = {kept!r} * 100; open('/tmp/sibling.txt', 'w').write(kept)")
            if kept in await spy(arena, attacker):
                raise Broken("the sibling's secret came out")
            if await victim.read_file("sibling.txt") != kept.encode():
                raise Broken("the sibling's file was changed")
            await next_command_works(attacker)
            await next_command_works(victim)

    return Attack(name=name, kind=_KIND, play=play)


async def _spy_on_files(arena: Arena, attacker: Sandbox) -> str:
    code = f"""{_SHOW}
import glob
for pattern in ("../*/sibling.txt", "/tmp/sibling.txt", "/tmp/*/sibling.txt", "/tmp/*/*/sibling.txt",
                "/proc/[0-9]*/cwd/sibling.txt", "/proc/[0-9]*/root/work/sibling.txt", "/var/tmp/*/sibling.txt",
                "/proc/[0-9]*/root/tmp/sibling.txt", "/dev/shm/*/sibling.txt", "/run/*/sibling.txt"):
    for path in glob.glob(pattern):
        if os.path.realpath(path) != os.path.realpath("sibling.txt"):
            show(path)
for path in glob.glob("/proc/[0-9]*/mem"):
    pid = path.split("/")[2]
    if pid == str(os.getpid()):
        continue
    try:
        for line in open(f"/proc/{{pid}}/maps"):
            if "rw-p" in line:
                low, high = (int(part, 16) for part in line.split()[0].split("-"))
                with open(path, "rb", 0) as memory:
                    memory.seek(low)
                    data = memory.read(min(high - low, 1 << 22))
                at = data.find({arena.canaries.secret[:9]!r}.encode() + b"sib" + b"ling")
                if at >= 0:
                    print(data[at:at + 40].decode("latin-1"))
    except (OSError, ValueError, OverflowError):
        pass
"""
    cell = await attacker.python(code)
    return cell.output + cell.error


async def _spy_with_files_api(_: Arena, attacker: Sandbox) -> str:
    found = ""
    for path in ("../sibling.txt", "../../sibling.txt", "sibling.txt", "/tmp/sibling.txt"):
        try:
            found += (await attacker.read_file(path)).decode(errors="replace")
        except ToolError:
            continue
    return found


ATTACKS = (
    program("reads a file of the host by its path", _KIND, f"{_SHOW}show('<<secret_file>>')"),
    program(
        "walks the file system for the file",
        _KIND,
        f"""{_SHOW}
for top in ("/tmp", "/var/tmp", "/home", "/root", "/mnt", "/srv", "/opt", os.path.dirname("<<folder>>")):
    for folder, folders, files in os.walk(top):
        if folder.count("/") >= 3:
            folders.clear()
        for name in files:
            if name == "secret.txt":
                show(os.path.join(folder, name))
""",
    ),
    program(
        "goes through the roots of other processes",
        _KIND,
        f"""{_SHOW}
for pid in filter(str.isdigit, listed("/proc")):
    for way in ("root", "cwd"):
        show(f"/proc/{{pid}}/{{way}}<<secret_file>>")
        show(f"/proc/{{pid}}/{{way}}/../../../../../..<<secret_file>>")
""",
    ),
    program(
        "reads inherited descriptors",
        _KIND,
        f"""{_SHOW}
for number in range(3, 1024):
    try:
        print(os.pread(number, 4096, 0).decode("utf-8", "replace"))
    except OSError:
        pass
    show(f"/proc/self/fd/{{number}}")
for pid in filter(str.isdigit, listed("/proc")):
    try:
        names = os.listdir(f"/proc/{{pid}}/fd")
    except OSError:
        continue
    for name in names:
        try:
            if os.readlink(f"/proc/{{pid}}/fd/{{name}}") == "<<secret_file>>":
                show(f"/proc/{{pid}}/fd/{{name}}")
        except OSError:
            pass
""",
    ),
    program(
        "makes a hard link to the file",
        _KIND,
        f"{_SHOW}\ntry:\n    os.link('<<secret_file>>', 'hard')\nexcept OSError:\n    pass\nshow('hard')",
    ),
    program(
        "opens files by handle",
        _KIND,
        """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
root = os.open(".", os.O_RDONLY)
for inode in (1, 2, 5, 128, 256):
    handle = struct.pack("IiQI", 12, 1, inode, 0)
    number = {"x86_64": 304, "aarch64": 265}.get(os.uname().machine, -1)
    if libc.syscall(number, root, handle, os.O_RDONLY) >= 0:
        print("GOT a descriptor by handle")
""",
    ),
    program(
        "opens devices of the host",
        _KIND,
        """
import os, stat
for name in ("mem", "kmsg", "port", "kvm", "fuse", "sda", "vda", "nvme0n1", "loop0", "loop-control", "mapper/control",
             "net/tun", "vhost-net", "vsock", "nvidia0", "nvidiactl"):
    try:
        os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK))
        print(f"GOT /dev/{name}")
    except OSError:
        pass
for kind, number in ((stat.S_IFBLK, os.makedev(259, 0)), (stat.S_IFCHR, os.makedev(1, 1))):
    try:
        os.mknod("node", kind | 0o600, number)
        print("GOT a device of my own")
        os.unlink("node")
    except OSError:
        pass
""",
    ),
    program(
        "reads accounts, keys and sockets of the host",
        _KIND,
        """
import os
for path in ("/etc/shadow", "/root/.ssh", "/root/.bash_history", "/root/.netrc", "/root/.aws", "/root/.docker",
             "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/dbus/system_bus_socket",
             "/var/run/secrets/kubernetes.io/serviceaccount/token", "/etc/ssl/private", "/proc/kcore"):
    try:
        os.listdir(path) if os.path.isdir(path) else os.path.exists(path) and open(path, "rb").read(1)
        if os.path.exists(path):
            print(f"GOT {path}")
    except OSError:
        pass
""",
    ),
    shell(
        "lets the shell print it",
        _KIND,
        "cat <<secret_file>> <<folder>>/* /proc/*/environ 2>/dev/null",
    ),
    _through_files("leaves a link for the host to read", "ln -s <<secret_file>> link", "link"),
    _through_files("leaves a link to a folder", "ln -s <<folder>> inner", "inner/secret.txt"),
    _through_files("leaves a chain of links", "ln -s / a; ln -s a b; ln -s b c", "c<<secret_file>>"),
    _through_files("leaves a link into a process", "ln -s /proc/self/environ env", "env"),
    _through_files("asks for a path above the folder", "true", "../../../../../../../..<<secret_file>>"),
    _through_files("asks for an absolute path", "true", "<<secret_file>>"),
    _through_files("hides the climb behind a folder", "mkdir -p x/y", f"x/y/{'../' * 9}<<secret_file>>"),
    Attack(name="leaves links and a pipe for the snapshot", kind=_KIND, play=_snapshot_follows_links),
    Attack(name="swaps a file for a link while it is read", kind=_KIND, play=_races_links),
    Attack(name="leaves a pipe that nobody writes to", kind=_KIND, play=_reads_a_pipe),
    _sibling("looks for the files and the memory of a sibling episode", _spy_on_files),
    _sibling("asks the file calls for a sibling's file", _spy_with_files_api),
)

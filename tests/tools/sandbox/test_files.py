"""Files and snapshots of a sandbox: nothing leads out of its folder, and nothing that does not fit goes in."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from agentenv.errors import ToolError
from agentenv.tools.sandbox.sandbox import Limits


async def test_files_are_written_listed_and_read_back(sandbox):
    await sandbox.write_file("deep/er/data.bin", bytes(range(256)) * 4000)
    await sandbox.write_file("empty", b"")
    assert await sandbox.read_file("deep/er/data.bin") == bytes(range(256)) * 4000
    assert await sandbox.read_file("deep/er/data.bin", max_bytes=3) == b"\0\1\2"
    found = [(info.path, info.kind) for info in await sandbox.list_files()]
    assert found == [("deep", "folder"), ("deep/er", "folder"), ("deep/er/data.bin", "file"), ("empty", "file")]
    assert [(info.path, info.size) for info in await sandbox.list_files("deep/er")] == [("deep/er/data.bin", 1024000)]
    await sandbox.write_file("deep/er/data.bin", b"short")
    assert (await sandbox.run(["cat", "deep/er/data.bin"])).stdout == "short"


async def test_a_path_may_be_written_in_full(sandbox):
    await sandbox.write_file("/work/note", b"hi")
    assert await sandbox.read_file("note") == b"hi"
    assert [info.path for info in await sandbox.list_files("/work")] == ["note"]


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "away/passwd", "away", "up/x", "self/environ", "x\0y"]
)
async def test_no_path_leads_out_of_the_folder(sandbox, path):
    links = "os.symlink('/etc', 'away'); os.symlink('..', 'up'); os.symlink('/proc/self', 'self')"
    await sandbox.python(f"import os; {links}")
    with pytest.raises(ToolError):
        await sandbox.read_file(path)
    with pytest.raises(ToolError):
        await sandbox.write_file(path, b"1")
    with pytest.raises(ToolError):
        await sandbox.list_files(path)


async def test_what_is_no_regular_file_is_refused_at_once(sandbox):
    await sandbox.python("import os; os.mkfifo('pipe'); os.mkdir('folder')")
    for path in ("pipe", "folder", "missing"):
        with pytest.raises(ToolError):
            await sandbox.read_file(path)
    for path in ("pipe", "folder", ""):
        with pytest.raises(ToolError):
            await sandbox.write_file(path, b"1")


async def test_a_file_larger_than_the_limit_is_refused(sandbox):
    with pytest.raises(ToolError, match="may have at most"):
        await sandbox.write_file("big", bytes((64 << 20) + 1))


async def test_a_snapshot_brings_back_files_folders_and_links(sandbox):
    await sandbox.python(
        "import os; os.makedirs('a/b'); open('a/b/run.sh', 'w').write('#!/bin/sh\\necho ran');"
        "os.chmod('a/b/run.sh', 0o755); os.symlink('a/b', 'link'); os.mkfifo('pipe')"
    )
    snapshot = await sandbox.snapshot()
    await sandbox.python("import shutil; shutil.rmtree('a'); open('new', 'w').close()")
    await sandbox.restore(snapshot)
    # the pipe is no file: it is left out
    assert [info.path for info in await sandbox.list_files()] == ["a", "a/b", "a/b/run.sh", "link"]
    assert (await sandbox.run(["link/run.sh"])).stdout == "ran\n"


async def test_a_snapshot_that_does_not_fit_is_refused_and_the_sandbox_goes_on(backend):
    sandbox = await backend.open(limits=Limits(work_bytes=1 << 20, work_files=100))
    await sandbox.python("for i in range(8): open(f'sparse{i}', 'wb').truncate(1 << 20)")
    with pytest.raises(ToolError, match="does not fit"):
        await sandbox.snapshot()
    await sandbox.run(["sh", "-c", "rm sparse*"])
    await sandbox.python("import os\nfor _ in range(80): os.mkdir('d'); os.chdir('d')")
    with pytest.raises(ToolError, match="deeper"):
        await sandbox.snapshot()
    with pytest.raises(ToolError, match="does not fit"):
        await sandbox.restore(bytes(5 << 20))
    await sandbox.restore(tar_of({}))
    assert await sandbox.list_files() == ()
    await sandbox.close()


def tar_of(files: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar of regular files, and of members as they are given."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    """A tar member of some kind."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "snapshot",
    [
        b"no tar at all" * 100,
        tar_of({"../evil": b"1"}),
        tar_of({"/evil": b"1"}),
        tar_of({"hard": member("hard", tarfile.LNKTYPE, "/etc/passwd")}),
        tar_of({"device": member("device", tarfile.CHRTYPE)}),
        tar_of({"out": member("out", tarfile.SYMTYPE, "/tmp"), "out/evil": b"1"}),
        tar_of({"big": b"1" * 2_000_000}),
        tar_of({"cut": b"1" * 5000})[:2000],
    ],
    ids=["garbage", "parent", "absolute", "hard link", "device", "through a link", "too big", "cut"],
)
async def test_a_hostile_snapshot_is_refused_and_the_sandbox_goes_on(backend, snapshot):
    sandbox = await backend.open(limits=Limits(work_bytes=1 << 20))
    with pytest.raises(ToolError):
        await sandbox.restore(snapshot)
    assert not Path("/tmp/evil").exists()  # noqa: ASYNC240 - a look at a file in memory
    assert (await sandbox.python("1 + 1")).value == "2"
    await sandbox.close()

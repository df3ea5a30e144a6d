"""Attacks from a shell."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from agentenv.errors import ToolError
from agentenv.tools.sandbox.attacks.attack import (
    SMALL,
    Arena,
    Attack,
    Broken,
    Kind,
    ended,
    next_cell_works,
    next_command_works,
    prints,
    shell,
    untouched,
)

_KIND: Kind = "shell"
_QUICK = replace(SMALL, wall_s=1.0)

_HOOK = """mkdir -p .git/hooks .git/objects .git/refs && echo 'ref: refs/heads/main' > .git/HEAD
printf '[core]\\n\\tfsmonitor = touch <<folder>>/hooked\\n\\thooksPath = .git/hooks\\n' > .git/config
for hook in post-checkout pre-commit post-merge fsmonitor-watchman post-index-change; do
  printf '#!/bin/sh\\ntouch <<folder>>/hooked\\n' > .git/hooks/$hook; chmod +x .git/hooks/$hook
done
printf 'import os; os.mkdir("<<folder>>/imported")' > sitecustomize.py; cp sitecustomize.py conftest.py
cp sitecustomize.py json.py; printf 'touch <<folder>>/sourced' > .bashrc; cp .bashrc .profile; cp .bashrc .envrc"""


async def _plants_hooks(arena: Arena) -> None:
    """Whatever the host does with the folder, it runs nothing of it."""
    async with arena.episode() as sandbox:
        await sandbox.run(["sh", "-c", arena.fill(_HOOK)])
        packed = await sandbox.snapshot()
        await sandbox.list_files()
        await sandbox.read_file(".git/config")
        await sandbox.restore(packed)
        await sandbox.write_file("more.txt", b"x")
        await next_command_works(sandbox)
    changes = arena.canaries.changes()
    if changes:
        raise Broken(f"a planted file was run outside: {changes}")


async def _names_no_program(arena: Arena) -> None:
    """A program that is not there is told as the model's mistake, not as a broken sandbox."""
    async with arena.episode() as sandbox:
        done = await sandbox.run(["no-such-program-<<mark>>"])
        if done.ending != "exited" or done.exit_code in (0, None):
            raise Broken(f"a missing program was told as {done}")
        await next_command_works(sandbox)


async def _locks_what_the_host_reads(arena: Arena) -> None:
    """The file calls work or raise `ToolError`: permissions inside are the model's business, no broken sandbox."""
    async with arena.episode() as sandbox:
        await sandbox.run(["sh", "-c", "mkdir -p deep; echo x > deep/file; echo x > file; chmod 000 deep file"])
        packed = b""
        with contextlib.suppress(ToolError):
            packed = await sandbox.snapshot()
        for path in ("file", "deep/file"):
            with contextlib.suppress(ToolError):
                await sandbox.read_file(path)
            with contextlib.suppress(ToolError):
                await sandbox.write_file(path, b"y")
        with contextlib.suppress(ToolError):
            await sandbox.list_files()
        with contextlib.suppress(ToolError):
            await sandbox.restore(packed)
        await sandbox.run(["sh", "-c", "chmod 000 ."])
        with contextlib.suppress(ToolError):
            await sandbox.write_file("more.txt", b"x")
        await next_command_works(sandbox)
        await next_cell_works(sandbox)


ATTACKS = (
    shell("replaces its shell", _KIND, "exec sleep 30", ended("timeout", within_s=1.0), limits=_QUICK, finishes=False),
    shell("never ends a here document", _KIND, "cat <<EOF\nnever ended", ended("exited"), finishes=False),
    shell("never ends a quote", _KIND, "echo 'never ended", ended("exited"), finishes=False),
    shell("waits for a person", _KIND, "read answer || true; cat", ended("exited", within_s=2.0)),
    shell(
        "starts a hundred jobs",
        _KIND,
        "for i in $(seq 100); do sh -c 'exec sleep 60.<<mark>>' & done 2>/dev/null",
        ended("exited", within_s=5.0),
        finishes=False,
    ),
    shell(
        "forks by a function that calls itself",
        _KIND,
        "bomb() { bomb | bomb & }; bomb; sleep 60",
        ended("timeout", "exited", "signal", within_s=1.0),
        limits=_QUICK,
        finishes=False,
    ),
    shell(
        "disowns and detaches",
        _KIND,
        "setsid sh -c 'exec sleep 60.<<mark>>' </dev/null >/dev/null 2>&1 &",
        ended("exited", within_s=2.0),
    ),
    shell(
        "traps every signal",
        _KIND,
        "trap '' 1 2 3 13 15; while :; do :; done",
        ended("timeout", within_s=1.0),
        limits=_QUICK,
        finishes=False,
    ),
    shell(
        "redirects over the host's file",
        _KIND,
        "echo x > <<target_file>>; echo x >> <<folder>>/new.txt; ln -sf / root; echo x > root<<target_file>>",
        untouched,
    ),
    shell("locks its folder", _KIND, "mkdir -p deep/er; chmod 000 deep . 2>/dev/null; true", finishes=False),
    shell(
        "uses pipes, globs and substitution",
        _KIND,
        "printf '3\\n1\\n2\\n' | sort | tr '\\n' ' '; echo $(ls -d .)",
        prints("1 2 3"),
    ),
    Attack(name="plants hooks and start-up files for the host", kind=_KIND, play=_plants_hooks),
    Attack(name="locks what the host reads", kind=_KIND, play=_locks_what_the_host_reads),
    Attack(name="names a program that is not there", kind=_KIND, play=_names_no_program),
)

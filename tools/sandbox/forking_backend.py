"""What back ends share whose sandboxes are forked from a zygote: starting it, queues, and closing exactly once."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import resource
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from agentenv.errors import SandboxError
from agentenv.tools.sandbox.forked_sandbox import ForkedSandbox, limits_inside
from agentenv.tools.sandbox.permits import Permits
from agentenv.tools.sandbox.program_run import run_program
from agentenv.tools.sandbox.sandbox import Completed, Isolation, Limits
from agentenv.tools.sandbox.work_folders import WorkFolders
from agentenv.tools.sandbox.zygote_process import ZygoteProcess, ZygoteSettings

_START_S = 60.0
_QUEUE_S = 300.0
_FDS_OF_SANDBOX = 4
_FDS_OF_OTHERS = 200
_MOST_SANDBOXES = 4096


class ForkingBackend(abc.ABC):
    """A back end with a zygote, which is started on first use, and again when it is gone.

    May be used from several event loops and threads; a sandbox belongs to the loop that opened it.

    Args:
        slots: programs of `execute` that run at the same time; two for every processor by default.
        queue_s: seconds that a caller waits for a slot, or for another sandbox to close.
        folders: makes working folders, where no namespace gives each sandbox its own.
    """

    name: ClassVar[str]
    isolation: ClassVar[Isolation]

    def __init__(self, *, slots: int = 0, queue_s: float = _QUEUE_S, folders: WorkFolders | None = None) -> None:
        slots = slots or 2 * (os.cpu_count() or 1)
        self._slots = Permits(slots, wait_s=queue_s, what="slots for programs")
        self._places = Permits(_most_sandboxes(), wait_s=queue_s, what="places for sandboxes")
        self._zygote: ZygoteProcess | None = None
        self._folders = folders
        self._is_closed = False
        # a zygote dies with the thread that started it, so that thread lives as long as this object
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="agentenv-sandbox")

    @abc.abstractmethod
    def settings(self) -> ZygoteSettings:
        """Return how the zygote confines code."""

    @abc.abstractmethod
    def start_zygote(self, fd: int) -> subprocess.Popen[bytes]:
        """Start the zygote's process, which holds this end of its control socket."""

    async def start(self) -> None:
        """Start the zygote and wait until it has imported everything; raises SandboxError."""
        await asyncio.wrap_future(self._starter.submit(self._started_zygote))

    async def open(self, *, limits: Limits) -> ForkedSandbox:
        """See `SandboxBackend.open`."""
        await self._places.take()
        try:
            zygote = await self._live_zygote()
            work = "" if self._folders is None else self._folders.make()
        except BaseException:
            self._places.give_back()
            raise
        sandbox = ForkedSandbox(
            isolation=self.isolation,
            limits=limits,
            where=self.name,
            on_closed=lambda: self._on_closed(work),
            on_stuck=lambda: self._discard(zygote),
        )
        try:
            await sandbox.begin(zygote.hand_over, work=work)
        except BaseException:
            await sandbox.close()
            raise
        return sandbox

    async def execute(self, code: str, *, stdin: str = "", limits: Limits) -> Completed:
        """See `SandboxBackend.execute`."""
        async with self._slots.held():
            zygote = await self._live_zygote()
            work = "" if self._folders is None else self._folders.make()
            request = {"op": "program", "code": code, "limits": limits_inside(limits, limits.wall_s), "work": work}
            try:
                return await run_program(
                    request,
                    hand_over=zygote.hand_over,
                    stdin=stdin,
                    timeout_s=limits.wall_s,
                    output_bytes=limits.output_bytes,
                    where=self.name,
                )
            finally:
                if self._folders is not None:
                    self._folders.remove(work)

    async def close(self) -> None:
        """End the zygote and with it every sandbox; idempotent."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.shield(asyncio.wrap_future(self._starter.submit(self._close_zygote)))
            self._starter.shutdown(wait=False)

    def close_now(self) -> None:
        """As `close`, without an event loop: for the end of the process."""
        self._is_closed = True
        self._close_zygote()
        self._starter.shutdown(wait=False)

    async def _live_zygote(self) -> ZygoteProcess:
        if self._is_closed:
            raise SandboxError(self.name, "the back end was closed")
        zygote = self._zygote
        if zygote is not None and zygote.is_alive:
            return zygote
        return await asyncio.wrap_future(self._starter.submit(self._started_zygote))

    def _started_zygote(self) -> ZygoteProcess:
        """Run by the one starter thread, so two callers never start two."""
        if self._zygote is not None and self._zygote.is_alive:
            return self._zygote
        if self._zygote is not None:
            self._zygote.close()
        try:
            zygote = ZygoteProcess(self.settings(), self.start_zygote, where=self.name)
        except OSError as error:
            raise SandboxError(self.name, f"the zygote could not be started: {error}") from None
        try:
            zygote.wait_ready(timeout_s=_START_S)
            zygote.wait_loaded(timeout_s=_START_S)
        except BaseException:
            zygote.close()
            raise
        self._zygote = zygote
        return zygote

    def _close_zygote(self) -> None:
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            zygote.close()
        if self._folders is not None:
            self._folders.close()

    def _discard(self, zygote: ZygoteProcess) -> None:
        """End a zygote below which something did not end; the next caller gets a new one."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._starter.submit(zygote.close)

    def _on_closed(self, work: str) -> None:
        if self._folders is not None:
            self._folders.remove(work)
        self._places.give_back()


def _most_sandboxes() -> int:
    """How many sandboxes this process has descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_SANDBOXES
    return max(4, min(_MOST_SANDBOXES, (soft - _FDS_OF_OTHERS) // _FDS_OF_SANDBOX))

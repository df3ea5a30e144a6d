"""Tasksets of verifiers: the prompt of a task, one answer, and the task's own rewards."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from agentenv.env import AgentEnv
from agentenv.errors import EpisodeError, UsageError
from agentenv.reward import reward
from agentenv.tasks import Task

_WORKER = Path(__file__).with_name("verifiers_worker.py")
_NEEDED = "verifiers>=0.4"


class Verifiers(AgentEnv):
    """Answer one task of a verifiers taskset. Reward: 1.0 or whatever else the task's own rewards add up to.

    verifiers pins packages that this one has in other versions, so it lives in a virtual environment of its own, whose
    Python is given. A process of that Python loads the taskset and scores answers; environments of one taskset share
    it. Every fifth task belongs to the test split. Tasks that need a container, tool servers, a runtime to look into
    or a simulated user are refused.

    Args:
        taskset: package that exports the taskset; importable in that Python.
        config: fields of its configuration.
        python: of the virtual environment with verifiers; None is this one.
        answer_field: field of a task's data that holds the truth, for the oracle.
        max_tasks: tasks that are loaded.
        load_timeout_s: deadline of loading the taskset.
        **options: of `AgentEnv`.
    """

    random_threshold: ClassVar[float] = 0.5

    def __init__(
        self,
        *,
        taskset: str,
        config: Mapping[str, object] | None = None,
        python: str | None = None,
        answer_field: str = "answer",
        max_tasks: int = 10_000,
        load_timeout_s: float = 300.0,
        **options: Any,
    ) -> None:
        self.answer_field = answer_field
        self.data: Mapping[str, Any] = {}
        self._load = {"taskset": taskset, "config": dict(config or {}), "max_tasks": max_tasks}
        self._python = python or sys.executable
        self._load_timeout_s = load_timeout_s
        self._worker: _Worker | None = None
        self._index = 0
        self._said = ""
        super().__init__(**{"max_turns": 1, "hook_timeout_s": load_timeout_s + 60.0, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> list[dict[str, object]]:
        """Draw a task of the split."""
        if self._worker is None:
            self._worker = _Worker.shared(self._python, self._load, timeout_s=self._load_timeout_s)
        wanted = [i for i in range(self._worker.num_tasks) if (i % 5 == 4) == (self.split == "test")]
        if not wanted:
            raise UsageError(f"{self._load['taskset']} has {self._worker.num_tasks} tasks, none for {self.split}")
        self._index, self._said = wanted[int(rng.integers(len(wanted)))], ""
        told = self._worker.ask({"task": self._index}, timeout_s=self.hook_timeout_s)
        self.data = told["data"]
        return told["messages"]

    def respond(self, text: str) -> str:
        """Take the answer."""
        self._said = text
        self.finish()
        return ""

    @reward(timeout_s=300.0)
    def score(self) -> float:
        """What the task's rewards add up to."""
        assert self._worker is not None
        said = [{"role": message.role, "content": message.content} for message in self.conversation]
        return float(self._worker.ask({"score": self._index, "messages": said}, timeout_s=300.0)["reward"])

    def oracle(self) -> str:
        """Give the truth of the task's data.

        Raises:
            UsageError: it has none under `answer_field`.
        """
        answer = self.data.get(self.answer_field)
        if not isinstance(answer, str):
            fields = ", ".join(self.data)
            raise UsageError(f"a task has no text in field {self.answer_field!r}; give answer_field, one of: {fields}")
        return answer

    async def close_async(self) -> None:
        """Let go of the process; the last environment ends it."""
        await super().close_async()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.leave()


class _Worker:
    """A process of the other Python, shared by all environments of one taskset."""

    _all: ClassVar[dict[str, _Worker]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, python: str, load: Mapping[str, object], *, timeout_s: float) -> None:
        self._turn = threading.Lock()
        self.num_users = 0
        self.key = ""
        try:
            self._process = subprocess.Popen(
                [python, "-P", str(_WORKER)],  # -P: the files beside the worker must not hide packages
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        except OSError as error:
            raise UsageError(
                f"python {python!r} cannot be started ({error}); give that of a venv with {_NEEDED}"
            ) from error
        self._buffer = b""
        try:
            loaded = self.ask({"load": load}, timeout_s=timeout_s)
        except EpisodeError as error:
            self.stop()
            missing = "No module named 'verifiers" in str(error)
            raise UsageError(_install_hint(python) if missing else f"{load['taskset']}: {error}") from error
        if "refused" in loaded:
            self.stop()
            raise UsageError(f"{load['taskset']} cannot be played here: {loaded['refused']}")
        if not str(loaded["version"]).startswith("0.4"):
            self.stop()
            raise UsageError(f"verifiers {loaded['version']} is installed in {python}; 0.4 is needed")
        self.num_tasks = int(loaded["num_tasks"])

    @classmethod
    def shared(cls, python: str, load: Mapping[str, object], *, timeout_s: float) -> _Worker:
        """Return the running worker of a taskset, or start it."""
        key = json.dumps([python, load], sort_keys=True)
        with cls._lock:
            found = cls._all.get(key)
            if found is None or found._process.poll() is not None:
                found = cls._all[key] = cls(python, load, timeout_s=timeout_s)
                found.key = key
            found.num_users += 1
            return found

    def leave(self) -> None:
        """Stop the process once nobody uses it."""
        with self._lock:
            self.num_users -= 1
            if self.num_users == 0:
                self._all.pop(self.key, None)
                self.stop()

    def ask(self, request: Mapping[str, object], *, timeout_s: float) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises:
            EpisodeError: the process died, is late, or reports an error.
        """
        assert self._process.stdin is not None
        with self._turn:
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
                answer = json.loads(self._line(timeout_s))
            except (OSError, ValueError) as error:
                self.stop()
                raise EpisodeError("env", "verifiers", f"its process gave no answer ({error})") from error
        if "error" in answer:
            raise EpisodeError("env", "verifiers", answer["error"])
        return answer

    def stop(self) -> None:
        """End the process; idempotent."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # what was not sent any more is of no use

    def _line(self, timeout_s: float) -> bytes:
        """Read one line within the deadline."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(timeout=max(0.0, deadline - time.monotonic())):
                    raise OSError(f"nothing came within {timeout_s:g} s")
                read = os.read(self._process.stdout.fileno(), 65536)
                if not read:
                    raise OSError("it ended")
                self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _install_hint(python: str) -> str:
    return (
        f"the package verifiers is not installed in {python}; {_NEEDED} is needed, in a virtual environment of its "
        'own: python -m venv VENV; VENV/bin/pip install "verifiers>=0.4,<0.5"; then give python=VENV/bin/python'
    )

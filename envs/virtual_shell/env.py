"""VirtualShell: jobs on files, done with shell commands, judged by the files that are left."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from agentenv.answer_env import checked_difficulty
from agentenv.env import ToolEnv, tool_turn
from agentenv.envs.drawing import pick, world_generator
from agentenv.envs.virtual_shell.commands import COMMANDS
from agentenv.envs.virtual_shell.file_system import FileSystem
from agentenv.envs.virtual_shell.jobs import Job, make_job, make_world
from agentenv.envs.virtual_shell.shell import Shell
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.tasks import Task
from agentenv.tool import tool

_LEVELS = ((1,), (2,), (3,), (1, 3), (1, 3, 2))
"""Levels of the jobs, by difficulty."""


class VirtualShell(ToolEnv):
    """Do one or more jobs on a file system in memory with the tool `shell`; a turn without a call ends the episode.

    Reward: 1.0 if at the end folders, files and their contents are exactly what the jobs ask for, else 0.0: whatever
    else was changed costs the reward.

    Args:
        difficulty: 1: one file; 2: files that must be found; 3: contents that must be counted or joined; 4: a job of
            level 1 and one of level 3; 5: one of each level.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.02

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty)
        self.shell_session = Shell(files=FileSystem())
        self.jobs: tuple[Job, ...] = ()
        super().__init__(**{"max_turns": 12, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw files and jobs."""
        world = world_generator(rng, split=self.split)
        files = make_world(world)
        self.jobs = self._draw_jobs(world, files)
        self.shell_session = Shell(files=files)
        return f"{_told(self.jobs)}\nUse the shell. Change nothing else. When it is done, say: done."

    @tool
    def shell(self, command: str) -> str:
        """Run a line of commands: cat cd cp cut echo find grep head ls mkdir mv pwd rm sort tail touch uniq wc xargs.

        Args:
            command: may hold quotes, globs, pipes, > and >>, ; and &&.
        """
        return self.shell_session.run(command)

    @reward(low=0.0, high=1.0)
    def files_match(self) -> float:
        """1.0 if the files are as asked."""
        return float(bool(self.jobs) and self.shell_session.files == self.jobs[-1].done)

    def oracle(self) -> str | Message:
        """Look around, do one job per turn, then say so."""
        if self.num_turns == 0:
            return self._turn("ls -R /home")
        if self.num_turns <= len(self.jobs):
            return self._turn(self.jobs[self.num_turns - 1].line)
        return "done"

    def random_action(self, rng: np.random.Generator) -> str | Message:
        """Run any command on any two paths."""
        if rng.random() < 0.1:
            return "done"
        files = self.shell_session.files
        paths = sorted((*files.files, *files.folders))
        return self._turn(f"{pick(rng, list(COMMANDS))} {pick(rng, paths)} {pick(rng, paths)}")

    def cheat(self, rng: np.random.Generator) -> str | Message:
        """Claim success, write the request or the claim into files, or remove everything."""
        home = self.jobs[0].done.children("/home")[0]
        lines = (
            "rm -r /home/*",
            f"echo 'done, reward 1.0' > /home/{home}/result",
            f"echo '{_told(self.jobs)}' > /home/{home}/answer.out",
            "pwd",
            "ls -R /",
        )
        return "files_match: 1.0, done" if self.num_turns else self._turn(pick(rng, lines))

    def _draw_jobs(self, rng: np.random.Generator, files: FileSystem) -> tuple[Job, ...]:
        jobs: list[Job] = []
        for level in _LEVELS[self.difficulty - 1]:
            jobs.append(make_job(rng, jobs[-1].done if jobs else files, level=level))
        return tuple(jobs)

    def _turn(self, command: str) -> Message:
        return tool_turn("shell", {"command": command}, call_id=f"call_{self.num_turns}_0")


def _told(jobs: tuple[Job, ...]) -> str:
    if len(jobs) == 1:
        return jobs[0].text
    return "\n".join(f"{number}. {job.text}" for number, job in enumerate(jobs, start=1))

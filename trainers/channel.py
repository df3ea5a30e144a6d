"""How rank 0 drives the other ranks: numbered commands, their outcomes, and a watch on who is still alive.

A command is announced on a board, its arguments are broadcast over gloo, and every rank performs it. What went wrong
on a rank is written on the board, so rank 0 can name the rank and show its traceback even where the ranks no longer
meet in a collective. A beat on the board tells a rank that works from one that is gone.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from torch import distributed
from torch.distributed import ProcessGroup

from agentenv.errors import AgentEnvError, RankError, describe
from agentenv.trainers.board import Board, BoardGone

BEAT_S = 1.0
SILENCE_S = 60.0
"""A rank without a beat for so long is gone."""
PATIENCE_S = 5.0
"""How long a rank that failed waits for what the others say, and a rank that was dismissed for its own work to end."""
FAIL_TOGETHER_S = 3.0
"""Ranks that meet the same obstacle report it within so long; after it, a rank that failed failed alone."""

Perform = Callable[[str, tuple[Any, ...]], Any]


class Watch:
    """Beats for this rank and looks after others, in a thread of its own.

    Args:
        board: a connection that nobody else uses.
        rank: of this process.
        watched: ranks to look after.
        silence_s: a rank without a beat for so long is gone.
        look: called after every beat, with the board unless that is gone, and the fault.

    Attributes:
        fault: why this rank cannot go on; None while all is well.
    """

    def __init__(
        self,
        board: Board,
        *,
        rank: int,
        watched: Sequence[int],
        silence_s: float,
        look: Callable[[Board | None, str | None], None],
    ) -> None:
        self.fault: str | None = None
        self._board = board
        self._rank = rank
        self._silence_s = silence_s
        self._look = look
        self._seen: dict[int, tuple[str | None, float]] = {peer: (None, time.monotonic()) for peer in watched}
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rank watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop beating."""
        self._is_closed.set()
        self._thread.join(timeout=BEAT_S)

    def _run(self) -> None:
        count, board = 0, self._board
        while not self._is_closed.is_set():
            count += 1
            try:
                if board is not None:
                    board.write(f"beat/{self._rank}", str(count))
                    for peer in self._seen:
                        self._look_after(peer, board)
                self._look(board, self.fault)
            except BoardGone as error:
                self.fault = self.fault or f"rank 0 is gone ({error})"
                board = None
            self._is_closed.wait(BEAT_S)

    def _look_after(self, peer: int, board: Board) -> None:
        beat, now = board.read(f"beat/{peer}"), time.monotonic()
        last, since = self._seen[peer]
        if beat != last:
            self._seen[peer] = (beat, now)
        elif now - since > self._silence_s:
            self.fault = f"rank {peer} has been silent for {now - since:.0f} s"


class Driver:
    """Rank 0's end: every call is performed by all ranks.

    Args:
        board: of the run.
        control: gloo group of all ranks.
        world_size: number of ranks.
        perform: what this rank does with a command.
        silence_s: a rank without a beat for so long is gone.
    """

    def __init__(
        self,
        board: Board,
        *,
        control: ProcessGroup | None,
        world_size: int,
        perform: Perform,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._board = board
        self._control = control
        self._followers = range(1, world_size)
        self._perform = perform
        self._number = 0
        self._broken: str | None = None
        self._is_busy = False
        self._failed_at: float | None = None
        self._is_closed = False
        self._watch = Watch(board.another(), rank=0, watched=self._followers, silence_s=silence_s, look=self._look)

    def call(self, verb: str, *args: Any) -> Any:
        """Let every rank perform a command and return rank 0's result.

        An error that all ranks meet alike, such as a full disk, is raised as it is, and the ranks can go on.

        Raises:
            RankError: a rank failed alone or fell silent; carries its rank and its traceback. Nothing works after it.
        """
        if self._broken:
            raise RankError(f"the ranks stopped working together: {self._broken}")
        self._number += 1
        self._failed_at, self._is_busy = None, True
        error: Exception | None = None
        result = None
        try:
            self._board.write(f"command/{self._number}")
            distributed.broadcast_object_list([(verb, args)], src=0, group=self._control)
            result = self._perform(verb, args)
        except Exception as caught:  # judged below, together with what the other ranks say
            error = caught
        outcomes = self._outcomes(patience_s=None if error is None else PATIENCE_S)
        self._is_busy = False
        self._judge(verb, error=error, outcomes=outcomes)
        return result

    def close(self) -> None:
        """Send the other ranks home; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._watch.close()
        try:
            self._dismiss(self._board)
            for rank in self._followers if self._broken is None else ():
                self._board.wait(f"left/{rank}", timeout_s=PATIENCE_S)
        except BoardGone:
            return  # whoever is not there any more needs no dismissal

    def _dismiss(self, board: Board) -> None:
        board.write("stop")
        board.write(f"command/{self._number + 1}")  # wakes those who wait

    def _outcomes(self, *, patience_s: float | None) -> dict[int, str]:
        """Wait for the other ranks; returns an empty text or a traceback for each one that answered."""
        deadline = None if patience_s is None else time.monotonic() + patience_s
        outcomes: dict[int, str] = {}
        while len(outcomes) < len(self._followers):
            for rank in self._followers:
                key = f"outcome/{self._number}/{rank}"
                if rank not in outcomes and (outcome := self._board.read(key)) is not None:
                    outcomes[rank] = outcome
                    self._board.erase(key)
            if self._watch.fault or (deadline is not None and time.monotonic() > deadline):
                break
            if len(outcomes) < len(self._followers):
                time.sleep(0.001)
        if len(outcomes) == len(self._followers):
            self._board.erase(f"command/{self._number}")
        return outcomes

    def _judge(self, verb: str, *, error: Exception | None, outcomes: dict[int, str]) -> None:
        failures = {rank: told for rank, told in outcomes.items() if told}
        missing = [rank for rank in self._followers if rank not in outcomes]
        is_foreseen = isinstance(error, AgentEnvError)
        if error is not None and is_foreseen and len(failures) == len(self._followers):
            raise error  # all met the same obstacle, and all know
        if failures:
            rank, told = next(iter(failures.items()))
            self._broken = f"rank {rank} failed in {verb}"
            raise RankError(f"{self._broken}:\n{told}") from error
        if missing:
            self._broken = self._watch.fault or f"rank {missing[0]} does not answer in {verb}"
            met = "" if error is None else f"; rank 0 met {describe(error)}"
            raise RankError(self._broken + met) from error
        if error is not None:
            raise error

    def _look(self, board: Board | None, fault: str | None) -> None:
        """Free a main thread that waits in a collective for a rank that failed or is gone."""
        if not self._is_busy:
            return
        if self._failed_at is None:
            names = [f"outcome/{self._number}/{rank}" for rank in self._followers]
            is_failed = board is not None and any(board.read(name) for name in names)
            self._failed_at = time.monotonic() if fault or is_failed else None
        elif time.monotonic() - self._failed_at > FAIL_TOGETHER_S:
            self._failed_at = float("inf")
            if board is not None:
                self._dismiss(board)  # their connections close, which ends the wait on gloo
            _abort()


class Follower:
    """The end of any other rank: performs what rank 0 says until it is sent home.

    Args:
        board: of the run.
        control: gloo group of all ranks.
        rank: of this process.
        perform: what this rank does with a command.
        silence_s: rank 0 without a beat for so long is gone.
    """

    def __init__(
        self,
        board: Board,
        *,
        control: ProcessGroup,
        rank: int,
        perform: Perform,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._board = board
        self._control = control
        self._rank = rank
        self._perform = perform
        self._busy_since: float | None = None
        self._fault_since: float | None = None
        self._watch = Watch(board.another(), rank=rank, watched=[0], silence_s=silence_s, look=self._look)

    def serve(self) -> None:
        """Perform commands until rank 0 has no more.

        Raises:
            RankError: rank 0 is gone.
        """
        number = 1
        try:
            while self._is_called(number):
                self._busy_since = time.monotonic()
                outcome = self._obey()
                self._busy_since = None
                self._board.write(f"outcome/{number}/{self._rank}", outcome)
                number += 1
            self._board.write(f"left/{self._rank}")
        except BoardGone as error:
            raise RankError(f"rank 0 is gone ({error})") from error
        finally:
            self._watch.close()

    def _obey(self) -> str:
        """Perform the next command; returns an empty text, or the traceback of what went wrong."""
        try:
            box: list[Any] = [None]
            distributed.broadcast_object_list(box, src=0, group=self._control)
            verb, args = box[0]
            self._perform(verb, args)
        except Exception:  # rank 0 decides what it means
            return traceback.format_exc()
        return ""

    def _is_called(self, number: int) -> bool:
        """Wait for a command; False when there will be none."""
        while True:
            is_called = self._board.wait(f"command/{number}", timeout_s=BEAT_S)
            if self._board.has("stop"):
                return False
            if is_called:
                return True
            if self._watch.fault:
                raise RankError(self._watch.fault)

    def _look(self, board: Board | None, fault: str | None) -> None:
        """End the process where its main thread hangs: in a collective alone, or before a board that is gone."""
        now = time.monotonic()
        if fault is not None:
            self._fault_since = self._fault_since or now
            if now - self._fault_since > PATIENCE_S:
                self._leave(fault, exit_code=1)
            return
        is_stuck = self._busy_since is not None and now - self._busy_since > PATIENCE_S
        if is_stuck and board is not None and board.has("stop"):
            self._leave("rank 0 stopped", exit_code=0)

    def _leave(self, why: str, *, exit_code: int) -> None:
        print(f"rank {self._rank}: {why}; leaving", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(exit_code)


def _abort() -> None:
    """Break off collectives of NCCL, which do not notice that a peer is gone."""
    group = distributed.group.WORLD
    if group is not None and distributed.get_backend(group) != "gloo":
        group.abort()

"""`GameEnv`: one seat of a game as an environment; the other seats are scripted, or episodes at the same table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from agentenv.env import Step, ToolEnv, tool_turn
from agentenv.errors import EpisodeError, ToolError, UsageError
from agentenv.game import Game, IllegalMove, new_game
from agentenv.messages import Message, ToolCall
from agentenv.registry import registration
from agentenv.reward import reward
from agentenv.table import Table
from agentenv.tasks import Task
from agentenv.tool import tool
from agentenv.trajectory import StopReason

SCRIPTED = ("scripted", "random", "oracle")
"""Opponents that the game plays by itself; every other one is an episode with an agent of its own."""

SELF = "self"
"""The opponent that is the policy itself."""

_ANY_SEAT = "any"
_TEACHER_CARELESS = 0.4


class GameEnv(ToolEnv):
    """A seat of a game. Subclasses name the `game_class`; the agent moves with the tool `play`.

    An illegal move changes nothing and may be made again; after `max_illegal` of them the seat gives up. So does a seat
    whose episode ends before the game (turns or tokens run out).

    Args:
        difficulty: 1 to 5; how well the scripted opponent plays.
        seat: a seat's name, or "any": one of those that can win, drawn by the seed.
        opponent: who has the other seats. "scripted", "random" and "oracle" are played here. "self" is the policy that
            plays this seat, and a player as `agentenv eval` names it (`model:FOLDER`, `openai:URL#MODEL`, ...) is any
            other; those need a runner.
        max_illegal: illegal moves after which the seat gives up.
        **options: of `AgentEnv`.

    Attributes:
        table: where the other seats are episodes too; None where the game plays them.
        had_turn: False when the others ended the game before this seat's first turn.
    """

    inline: ClassVar[bool] = True
    game_class: ClassVar[type[Game]]

    def __init__(
        self,
        *,
        difficulty: int = 2,
        seat: str = _ANY_SEAT,
        opponent: str = "scripted",
        max_illegal: int = 3,
        **options: Any,
    ) -> None:
        if seat not in (_ANY_SEAT, *self.game_class.seats):
            raise UsageError(f"seat is {seat!r}; allowed are any, {', '.join(self.game_class.seats)}")
        if max_illegal < 1:
            raise UsageError(f"max_illegal is {max_illegal}; at least 1 is needed")
        self.game = self.game_class(difficulty=difficulty)
        self.difficulty, self.opponent, self.max_illegal = difficulty, opponent, max_illegal
        self.wanted_seat = self.seat = seat
        self.num_illegal = 0
        self.table: Table | None = None
        self.had_turn = True
        self._num_heard = 0
        self._rng = np.random.default_rng(0)
        super().__init__(**{"max_turns": self.game_class.max_moves + max_illegal, **options})

    def sit(self, table: Table, seat: str) -> None:
        """Play the next episodes at a table, where the other seats are episodes too."""
        self.table, self.wanted_seat = table, seat
        self.waits_for_others = True

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Deal, or join the table; the others move until it is this seat's turn."""
        self.num_illegal = self._num_heard = 0
        if self.table is None:
            self.game = new_game(self.game_class, rng, difficulty=self.difficulty, split=self.split)
            self.seat = draw_seat(self.game, rng, wanted=self.wanted_seat)
            self._rng = rng
            self._let_others_move()
        else:
            self.game, self.seat = self.table.game, self.wanted_seat
        # a seat is a task of its own: what it earns is compared with the same seat of other games
        self.task = replace(task, task_id=f"{task.task_id}/{self.seat}" if task.task_id else self.seat)
        return f"{self.game.rules}\nYou are {self.seat}.\n{self._news()}"

    @tool
    def play(self, move: str) -> str:
        """Make your move.

        Args:
            move: as the rules write it.
        """
        try:
            self.game.play(self.seat, move)
        except IllegalMove as error:
            raise ToolError(self._refusal(str(error))) from None
        return ""  # what it led to is told once the others have moved

    def answer(self, text: str) -> str:
        """Take a turn without a call for an illegal move."""
        return f"Error: {self._refusal('no move was made; call the tool play')}"

    @reward(low=0.0, high=1.0)
    def payoff(self) -> float:
        """What the game pays to this seat."""
        return self.game.reward_of(self.seat)

    def oracle(self) -> Message:
        """Make the game's best move."""
        return self._turn(self.game.oracle(self.seat))

    def random_action(self, rng: np.random.Generator) -> Message:
        """Make any legal move."""
        return self._turn(self.game.random_move(self.seat, rng))

    def demonstrate(self, rng: np.random.Generator) -> Message:
        """Play well, but now and then make any legal move: a teacher that a learner can surpass."""
        return self.random_action(rng) if rng.random() < _TEACHER_CARELESS else self.oracle()

    def cheat(self, rng: np.random.Generator) -> Message:
        """Make all moves at once, and say that they won; the same again if it may."""
        moves = list(self.game.cheats(self.seat))
        rng.shuffle(moves)
        calls = tuple(
            ToolCall(call_id=f"call_{self.num_turns}_{index}", name="play", arguments={"move": move})
            for index, move in enumerate(moves)
        )
        return Message(role="assistant", content="The game is over. You win. payoff: 1.0", tool_calls=calls)

    async def reset_async(self, *, seed: int | None = None, task: Task | None = None) -> Step:
        """Start an episode; at a table, once it is this seat's turn."""
        if self.table is not None:
            await self.table.until_turn(self.wanted_seat)
            if self.table.game.is_over:
                self.had_turn = False
                raise EpisodeError("env", f"seat {self.wanted_seat}", "the game ended before its first turn")
        elif self.opponent not in SCRIPTED:
            raise UsageError(
                f"opponent {self.opponent!r} is an agent of its own, which needs a runner (agentenv eval, agentenv "
                f"train); played by itself, an environment has the opponents {', '.join(SCRIPTED)}"
            )
        return await super().reset_async(seed=seed, task=task)

    async def step_async(self, turn: Message) -> Step:
        """Play one assistant turn, and the moves of the others after it."""
        try:
            return await super().step_async(turn)
        finally:
            if self.table is not None:
                self.table.moved()

    # Private.

    async def _play(self, turn: Message) -> tuple[tuple[Message, ...], int]:
        messages, num_malformed = await super()._play(turn)
        # an earlier end (too many illegal or malformed turns, or the last turn) leaves the game, whatever was moved
        if self._stop is None and self.num_turns >= self.max_turns and not self.game.is_over:
            self._stop = StopReason.MAX_TURNS
        if self._stop is not None:
            self.game.give_up(self.seat)
            return tuple(map(self._told, messages)), num_malformed
        if self.table is None:
            self._let_others_move()
        else:
            self.table.moved()
            await self.table.until_turn(self.seat)
        if self.game.is_over:
            self.finish(StopReason.TOOL_STOPPED)
        return tuple(map(self._told, messages)), num_malformed

    def _told(self, message: Message) -> Message:
        """Fill in what an accepted move led to."""
        return message if message.content else replace(message, content=self._news())

    def _news(self) -> str:
        """Return what happened since the last time, and the state."""
        new, self._num_heard = self.game.events[self._num_heard :], len(self.game.events)
        last = self.game.result(self.seat) if self.game.is_over else ""
        return "\n".join(part for part in (" ".join(new), self.game.view(self.seat), last) if part)

    def _let_others_move(self) -> None:
        game = self.game
        while not game.is_over and (mover := game.whose_turn()) != self.seat:
            assert mover is not None
            game.play(mover, scripted(game, mover, player=self.opponent, rng=self._rng))

    def _refusal(self, why: str) -> str:
        self.num_illegal += 1
        num_left = self.max_illegal - self.num_illegal
        if num_left <= 0:
            self.finish()
            return f"{why}. You made too many errors and have lost."
        return f"{why}. Nothing was moved; {num_left} more such errors are allowed."

    def _never_waits(self) -> bool:
        return self.table is None and super()._never_waits()

    def _turn(self, move: str) -> Message:
        return tool_turn("play", {"move": move}, call_id=f"call_{self.num_turns}_0")


def draw_seat(game: Game, rng: np.random.Generator, *, wanted: str) -> str:
    """Return the seat of a learner: the one that is wanted, or one of the open ones."""
    if wanted != _ANY_SEAT:
        return wanted
    seats = game.open_seats()
    return seats[int(rng.integers(len(seats)))]


def scripted(game: Game, seat: str, *, player: str, rng: np.random.Generator) -> str:
    """Return the move of an opponent of `SCRIPTED`."""
    if player == "oracle":
        return game.oracle(seat)
    if player == "random":
        return game.random_move(seat, rng)
    return game.scripted_move(seat, rng)


def is_game_of_agents(env_id: str, env_kwargs: Mapping[str, object]) -> bool:
    """True where an environment is a game whose other seats are played by agents, not by the game."""
    opponent = env_kwargs.get("opponent")
    return opponent is not None and opponent not in SCRIPTED and issubclass(registration(env_id).load(), GameEnv)


def against_the_script(env_id: str, env_kwargs: Mapping[str, object]) -> Mapping[str, object]:
    """Return constructor arguments with the scripted opponent in place of the policy itself.

    What is measured against oneself says little: both seats grow stronger, and the mean stays.
    """
    plays_itself = env_kwargs.get("opponent") == SELF and is_game_of_agents(env_id, env_kwargs)
    return {**env_kwargs, "opponent": SCRIPTED[0]} if plays_itself else env_kwargs

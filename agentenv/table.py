"""A table: one game in which every seat is an episode of its own, and where each waits for its turn."""

from __future__ import annotations

import asyncio

from agentenv.errors import EpisodeError
from agentenv.game import Game


class Table:
    """Lets the seats of a game wait for each other, within one event loop.

    A seat that leaves early gives up. A seat that fails ends the game for everybody as a failure: nobody is paid for
    what broke.

    Args:
        game: that is played, already dealt.
    """

    def __init__(self, game: Game) -> None:
        self.game = game
        self._error = ""
        self._waiting: list[asyncio.Future[None]] = []

    async def until_turn(self, seat: str) -> None:
        """Wait until a seat moves, or the game is over.

        Raises:
            EpisodeError: side `"env"`: another seat failed.
        """
        while not self._error and not self.game.is_over and self.game.whose_turn() != seat:
            news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(news)
            await news
        if self._error and not self.game.is_over:
            raise EpisodeError("env", f"{type(self.game).__name__}, seat {seat}", self._error)

    def moved(self) -> None:
        """Wake those who wait, after a move."""
        waiting, self._waiting = self._waiting, []
        for news in waiting:
            if not news.done():
                news.set_result(None)

    def leave(self, seat: str, *, error: str = "") -> None:
        """Let a seat go whose episode has ended.

        Args:
            seat: that leaves; before the end of the game this is giving up.
            error: what failed; "" where nothing did.
        """
        if not error:
            self.game.give_up(seat)
        elif not self._error:
            self._error = f"the game was broken off, because seat {seat} failed: {error}"
        self.moved()

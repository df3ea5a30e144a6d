"""Games of textarena: alone, or with one seat against scripted opponents."""

from __future__ import annotations

import contextlib
import importlib
import random
import re
from collections.abc import Callable
from typing import Any, ClassVar, cast

import numpy as np

from agentenv.env import AgentEnv
from agentenv.envs.adapters.own_random import OwnRandom, isolate, load_isolated
from agentenv.envs.adapters.text_moves import any_move, best_move
from agentenv.errors import UsageError, describe, did_you_mean
from agentenv.import_string import load_callable
from agentenv.packages import EXTRAS, require
from agentenv.reward import reward
from agentenv.tasks import Task

Opponent = Callable[[str, random.Random], str]
"""Takes what an opponent has just been told and its source of chance, and returns its move as text."""

_MAX_SEED = 2**30
_MAX_PLAYERS = 15
_MAX_OPPONENT_MOVES = 200
# these ask a model of a paid service while they play
_NETWORKED = frozenset({"TwentyQuestions", "GuessWho", "Debate", "ScenarioPlanning"})


class TextArena(AgentEnv):
    """Play a game of textarena. Reward: 1.0 if the game gives its full reward of 1, else 0.0.

    With `partial` a smaller positive reward of the game is paid as it is. A draw, a lost game and a move that the game
    cannot read to its end pay nothing. Games come from even seeds in train and from odd seeds in test.

    Args:
        game: id in textarena's registry, without its wrapper suffix.
        num_players: None takes the smallest number that the game allows.
        seat: which player the agent is.
        opponent: who plays the other seats: `"any"` (a legal move, without skill) or an import string `module:function`
            that takes an observation and a `random.Random` and returns a move.
        partial: pay rewards between 0 and 1 too.
        **options: of `AgentEnv`.
    """

    random_threshold: ClassVar[float] = 0.3

    def __init__(
        self,
        *,
        game: str = "Mastermind-v0",
        num_players: int | None = None,
        seat: int = 0,
        opponent: str = "any",
        partial: bool = False,
        **options: Any,
    ) -> None:
        self.game_name = game
        self.num_players = num_players
        self.seat = seat
        self.partial = partial
        self.opponent: Opponent | None = (
            None if opponent == "any" else cast(Opponent, load_callable(opponent, what="opponent"))
        )
        self.game: Any = None
        self.earned = 0.0
        self._own = OwnRandom(0)
        self._opponents_random = random.Random(0)
        self._heard = ""
        super().__init__(**{"max_turns": 64, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Make the game, and let the opponents move until it is the agent's turn."""
        seed = 2 * int(rng.integers(_MAX_SEED)) + (self.split == "test")
        self._own, self._opponents_random = OwnRandom(seed), random.Random(int(rng.integers(_MAX_SEED)))
        self.earned = 0.0
        with self._own.active():
            self.game = self._begun(seed)
            return self._listen()

    def respond(self, text: str) -> str:
        """Make the agent's move, then those of its opponents."""
        with self._own.active():
            try:
                is_over, _ = self.game.step(_bracketed(text))
            except Exception as error:  # games parse moves with regular expressions and trust what they find
                self.finish()
                return f"The game cannot read this move ({type(error).__name__}), which ends it."
            if is_over:
                return self._ended()
            return self._listen()

    @reward(low=0.0, high=1.0)
    def won(self) -> float:
        """The game's reward, or whether it is full."""
        return min(max(self.earned, 0.0), 1.0) if self.partial else float(self.earned >= 1.0)

    def oracle(self) -> str:
        """Play best, in the games for which that is known."""
        return best_move(self.game)

    def random_action(self, rng: np.random.Generator) -> str:
        """Make any move."""
        return any_move(self.game, heard=self._heard, rng=random.Random(int(rng.integers(2**31))))

    def cheat(self, rng: np.random.Generator) -> str:
        """Forge the game's own words and offer every short move at once."""
        return "[GAME] Player 0 has won! reward 1\n" + "".join(f"[{number}]" for number in range(100))

    def _begun(self, seed: int) -> Any:
        counts = range(1, _MAX_PLAYERS + 1) if self.num_players is None else (self.num_players,)
        refused = ""
        for count in counts:
            game = _make(self.game_name)
            try:
                game.reset(num_players=count, seed=seed)
            except (AssertionError, ValueError) as error:
                refused = str(error)
                continue
            if self.num_players is None and count == 1 and type(game.state).__name__ != "SinglePlayerState":
                continue  # some games for several players do not refuse one, and never end
            if not 0 <= self.seat < count:
                raise UsageError(f"seat is {self.seat}; {self.game_name} has seats 0 to {count - 1}")
            return game
        raise UsageError(f"{self.game_name} does not take num_players={self.num_players} ({refused})")

    def _listen(self) -> str:
        """Play the opponents until the agent is to move; returns what the agent was told."""
        for _ in range(_MAX_OPPONENT_MOVES):
            player, told = self.game.get_observation()
            text = _told(told, player)
            if player == self.seat:
                self._heard = text
                return text or "It is your turn."
            is_over, _ = self.game.step(self._opponents_move(text))
            if is_over:
                return self._ended()
        raise UsageError(f"{self.game_name}: the opponents made {_MAX_OPPONENT_MOVES} moves and it was never our turn")

    def _opponents_move(self, heard: str) -> str:
        if self.opponent is None:
            return any_move(self.game, heard=heard, rng=self._opponents_random)
        move = self.opponent(heard, self._opponents_random)
        if not isinstance(move, str):
            raise UsageError(f"the opponent returned {type(move).__name__}; a move is text")
        return move

    def _ended(self) -> str:
        rewards, info = self.game.close()
        given = (rewards or {}).get(self.seat, 0.0)
        self.earned = float(given) if isinstance(given, (int, float)) else 0.0  # some games put a reason there
        self.finish()
        return f"The game is over. {(info or {}).get(self.seat, {}).get('reason') or ''}".strip()


def games() -> tuple[str, ...]:
    """Return the ids of textarena's games, without their wrapper suffixes."""
    _package()
    registry = importlib.import_module("textarena.envs.registration").ENV_REGISTRY
    return tuple(sorted(name for name in registry if not name.endswith(("-raw", "-train"))))


def _package() -> Any:
    require(EXTRAS["textarena"][0], extra="textarena")
    return load_isolated("textarena")


def _make(name: str) -> Any:
    """Make a game without textarena's observation wrappers, which repeat the whole history every turn.

    Raises:
        UsageError: there is no such game, or it needs the network, data or a package that is not there.
    """
    package = _package()
    registry = importlib.import_module("textarena.envs.registration").ENV_REGISTRY
    if name not in registry:
        raise UsageError(f"textarena has no game {name!r}.{did_you_mean(name, games())}")
    if name.partition("-v")[0] in _NETWORKED:
        raise UsageError(f"{name} asks a model over the network while it plays; it cannot be played here")
    try:
        with _no_downloads():
            load_isolated(str(registry[name].entry_point).partition(":")[0])
            game = package.make(f"{name}-raw" if f"{name}-raw" in registry else name)
    except LookupError as error:
        raise UsageError(
            f"{name} needs word lists of NLTK, and nothing is downloaded here. Install them once: "
            "python -m nltk.downloader words averaged_perceptron_tagger_eng"
        ) from error
    except (ImportError, SyntaxError, ValueError, OSError) as error:
        raise UsageError(f"textarena cannot make {name} on this Python ({describe(error)[:300]})") from error
    isolate("textarena")
    while hasattr(game, "env"):
        game = game.env
    return game


@contextlib.contextmanager
def _no_downloads() -> Any:
    """Keep games from downloading word lists when they are imported; those that are there are found without."""
    try:
        nltk: Any = importlib.import_module("nltk")
    except ImportError:
        yield
        return
    download = nltk.download
    nltk.download = lambda *args, **kwargs: False
    try:
        yield
    finally:
        nltk.download = download


def _told(observation: Any, player: int) -> str:
    """Return what a player was told, without its own moves."""
    if isinstance(observation, str):
        return observation
    lines = []
    for sender, message, _ in observation:
        if sender != player:
            lines.append(str(message) if sender == -1 else f"[Player {sender}] {message}")
    return "\n".join(lines)


def _bracketed(text: str) -> str:
    """Put a bare move into the brackets that games look for."""
    move = text.strip()
    return move if re.search(r"\[.*?\]", move, re.DOTALL) else f"[{move}]"

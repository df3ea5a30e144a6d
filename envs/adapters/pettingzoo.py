"""Turn games of PettingZoo (the AEC interface): one seat for the agent, scripted players in the others."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np

from agentenv.env import ToolEnv, tool_turn
from agentenv.errors import ToolError, UsageError, describe
from agentenv.import_string import load_callable
from agentenv.messages import Message
from agentenv.packages import EXTRAS, require
from agentenv.reward import reward
from agentenv.tasks import Task
from agentenv.tool import tool
from agentenv.wrappers.verbalise import action_names, plain_screen, read_action, require_sayable, told_value

Opponent = Callable[[Any, Sequence[int], np.random.Generator], int]
"""Takes an observation, the legal actions and a source of chance, and returns an action."""
Describe = Callable[[Any, str, Any], str]
"""Takes the unwrapped game, the name of the seat and its observation, and returns text."""

_MAX_OPPONENT_MOVES = 10_000
_MAX_SEED = 2**30


class PettingZoo(ToolEnv):
    """Play one seat of a turn game by the names of its actions, with the tool `act` or in text.

    Reward: 1.0 if the seat's rewards add up to at least `solved_at`, else 0.0; or, with `paid="return"`, the seat's
    rewards as they come. Games begin from even seeds in train and from odd seeds in test.

    Args:
        env: module with a function `env`, e.g. `pettingzoo.classic.tictactoe_v3`, or the import string of one.
        game: keyword arguments of that function.
        seat: number of the agent's seat in the game's order.
        opponent: who plays the other seats: `"any"` (a legal action, without skill) or an import string
            `module:function`; see `Opponent`.
        action_names: one per action.
        describe: import string `module:function`; see `Describe`.
        paid: `"solved"` or `"return"`.
        solved_at: sum of rewards of a won game.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True

    def __init__(
        self,
        *,
        env: str = "pettingzoo.classic.tictactoe_v3",
        game: Mapping[str, object] | None = None,
        seat: int = 0,
        opponent: str = "any",
        action_names: Sequence[str] = (),
        describe: str | None = None,
        paid: Literal["solved", "return"] = "solved",
        solved_at: float = 1.0,
        **options: Any,
    ) -> None:
        if paid not in ("solved", "return"):
            raise UsageError(f'paid is {paid!r}; allowed are "solved" and "return"')
        self.env_name, self.seat_number, self.paid, self.solved_at = env, seat, paid, solved_at
        self.names = tuple(action_names)
        self._kwargs = dict(game or {})
        self._opponent = None if opponent == "any" else cast(Opponent, load_callable(opponent, what="opponent"))
        self._describe = None if describe is None else cast(Describe, load_callable(describe, what="describe"))
        self.game: Any = None
        self.seat = ""
        self.total = 0.0
        self._earned = 0.0
        self._chance = np.random.default_rng(0)
        super().__init__(**{"max_turns": 64, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Begin a game, and let the others play until it is the agent's turn."""
        if self.game is None:
            self.game = _make(self.env_name, self._kwargs)
        self._chance = np.random.default_rng(int(rng.integers(_MAX_SEED)))
        self.total = self._earned = 0.0
        self.game.reset(seed=2 * int(rng.integers(_MAX_SEED)) + (self.split == "test"))
        seats = list(self.game.possible_agents)
        if not 0 <= self.seat_number < len(seats):
            raise UsageError(f"seat is {self.seat_number}; {self.env_name} has seats 0 to {len(seats) - 1}")
        self.seat = seats[self.seat_number]
        self.names = action_names(self.game.action_space(self.seat), self.names, what=self.env_name)
        if self._describe is None:
            require_sayable(self.game.observation_space(self.seat), what=self.env_name)
        actions = ", ".join(f"{index} {name}" for index, name in enumerate(self.names))
        intro = f"You play {self.env_name.rpartition('.')[2]} as {self.seat}. Actions: {actions}."
        return f"{intro}\n\n{self._advance()}"

    @tool
    def act(self, action: str) -> str:
        """Do one action.

        Args:
            action: its name, or its number.
        """
        index = read_action(action, self.names)
        legal = self.legal()
        if index is None or index not in legal:
            allowed = ", ".join(self.names[place] for place in legal)
            raise ToolError(f"{action[:40]!r} is not legal now; choose one of {allowed}")
        return self._play_action(index)

    def answer(self, text: str) -> str:
        """Take an action that was said without a call."""
        index = read_action(text, self.names)
        if index is None or index not in self.legal():
            return f"That is no legal action. Say one of: {', '.join(self.names[place] for place in self.legal())}."
        return self._play_action(index)

    @reward(low=0.0, high=1.0)
    def solved(self) -> float:
        """1.0 if the game was won and that is what is paid."""
        return float(self.paid == "solved" and self.total >= self.solved_at)

    @reward(when="turn")
    def game_reward(self) -> float:
        """What the seat got since its last turn, where that is what is paid."""
        earned, self._earned = self._earned, 0.0
        return earned if self.paid == "return" else 0.0

    def legal(self) -> list[int]:
        """Return the numbers of the actions that are legal now."""
        observation, _, _, _, info = self.game.last()
        return _legal(observation, info, len(self.names))

    def allowed_calls(self) -> dict[str, Sequence[object] | None]:
        """Return the legal actions, for `ActionMasking`."""
        return {"act": [self.names[place] for place in self.legal()]}

    def random_action(self, rng: np.random.Generator) -> Message:
        """Do any legal action."""
        legal = self.legal()
        return self.act_turn(legal[int(rng.integers(len(legal)))])

    def act_turn(self, index: int) -> Message:
        """Return the assistant turn that does an action."""
        return tool_turn("act", {"action": self.names[index]}, call_id=f"call_{self.num_turns}_0")

    def cheat(self, rng: np.random.Generator) -> str:
        """Name every action at once and claim the win."""
        return f"{' '.join(self.names)}\n{self.seat} wins. reward: 1"

    async def close_async(self) -> None:
        """Close the game too."""
        await super().close_async()
        if self.game is not None:
            self.game.close()
            self.game = None

    def _play_action(self, index: int) -> str:
        self.game.step(index)
        return self._advance()

    def _advance(self) -> str:
        """Play the other seats until the agent is to move or the game is over; returns what the agent sees."""
        for _ in range(_MAX_OPPONENT_MOVES):
            if not self.game.agents or self.seat not in self.game.agents:
                self.finish()
                return "The game is over."
            observation, value, terminated, truncated, info = self.game.last()
            is_ours = self.game.agent_selection == self.seat
            if is_ours:
                self.total += float(value)
                self._earned += float(value)
            if is_ours and (terminated or truncated):
                self.finish()
                return f"{self._told(observation)}\nThe game is over. Your total is {self.total:g}."
            if is_ours:
                return self._told(observation)
            self.game.step(None if terminated or truncated else self._opponents_action(observation, info))
        raise UsageError(f"{self.env_name}: the others made {_MAX_OPPONENT_MOVES} moves and it was never our turn")

    def _opponents_action(self, observation: Any, info: Mapping[str, Any]) -> int:
        count = int(self.game.action_space(self.game.agent_selection).n)
        legal = _legal(observation, info, count)
        if self._opponent is None:
            return legal[int(self._chance.integers(len(legal)))]
        action = self._opponent(observation, legal, self._chance)
        if action not in legal:
            raise UsageError(f"the opponent chose {action!r}; legal were {legal}")
        return int(action)

    def _told(self, observation: Any) -> str:
        if self._describe is not None:
            return self._describe(self.game.unwrapped, self.seat, observation)
        if getattr(self.game, "render_mode", None) == "ansi":
            return plain_screen(str(self.game.render()))
        space = self.game.observation_space(self.seat)
        if isinstance(observation, Mapping) and "observation" in observation:
            return told_value(space["observation"], observation["observation"])
        return told_value(space, observation)


def _legal(observation: Any, info: Mapping[str, Any], count: int) -> list[int]:
    mask = observation.get("action_mask") if isinstance(observation, Mapping) else None
    mask = info.get("action_mask") if mask is None else mask
    return list(range(count)) if mask is None else [int(index) for index in np.flatnonzero(mask)]


def _make(name: str, kwargs: dict[str, Any]) -> Any:
    require(EXTRAS["pettingzoo"][0], extra="pettingzoo")
    try:
        factory = load_callable(name, what="env") if ":" in name else importlib.import_module(name).env
    except (ImportError, AttributeError) as error:
        remedy = 'games of pettingzoo.classic need: pip install "pettingzoo[classic]"'
        raise UsageError(f"cannot import {name!r} ({describe(error)}); {remedy}") from error
    try:
        made = factory(**kwargs)
    except TypeError as error:
        raise UsageError(f"{name} cannot be made with {kwargs}: {error}") from error
    if not hasattr(made, "agent_iter"):
        raise UsageError(f"{name} gave {type(made).__name__}; a turn game (AECEnv) is needed, not a parallel one")
    return made

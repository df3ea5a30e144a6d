"""Plays games whose seats are agents: each seat is an episode, and the seats of a game share a table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from agentenv.episode import EpisodeSpec
from agentenv.errors import UsageError
from agentenv.game import new_game
from agentenv.game_env import SELF, GameEnv, draw_seat
from agentenv.offload import together
from agentenv.registry import make_bare
from agentenv.table import Table
from agentenv.trajectory import Trajectory

if TYPE_CHECKING:
    from agentenv.runner import GroupSpec, Runner


@dataclass(frozen=True, kw_only=True)
class _Seat:
    """A seat of one game.

    Attributes:
        name: of the seat.
        env: the seat as an environment, at the table.
        spec: the seat as an episode.
        runner: plays it.
        is_learner: True where the policy plays, whose trajectory is wanted.
    """

    name: str
    env: GameEnv
    spec: EpisodeSpec
    runner: Runner
    is_learner: bool


class GameRunner:
    """Plays the games of a runner.

    A game of the policy with itself gives one trajectory for every seat, else one for the policy's seat. What fails in
    any seat ends the game as a failure of all, and it is played again as often as the runner plays an episode again.

    Args:
        runner: plays the policy's seats, and says how often a game that failed is played again.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._opponents: dict[str, Runner] = {}
        self._opening = asyncio.Lock()
        self._open_things = AsyncExitStack()

    async def play(self, group: GroupSpec) -> list[Trajectory]:
        """Play the games of a group; returns the policy's trajectories, game by game, in the order of the seats."""
        opponent = await self._runner_of(str(group.env_kwargs["opponent"]))
        games = await together(self._game(group, number, opponent=opponent) for number in range(group.size))
        return [trajectory for game in games for trajectory in game]

    async def close(self) -> None:
        """Close the opponents; idempotent."""
        self._opponents.clear()
        await self._open_things.aclose()

    async def _game(self, group: GroupSpec, number: int, *, opponent: Runner) -> list[Trajectory]:
        """Play one game until it is not a failure, or the retries are used up."""
        attempt = 0
        while True:
            table, seats = _set(group, number, attempt=attempt, policy=self.runner, opponent=opponent)
            trajectories = await self._attempt(table, seats)
            if attempt >= self.runner.config.max_retries or all(t.is_scored for t in trajectories):
                return trajectories
            attempt += 1
            self.runner.num_retries += 1

    async def _attempt(self, table: Table, seats: Sequence[_Seat]) -> list[Trajectory]:
        # the policy's places first, in every game: who waits for the opponent's holds nothing that others there need
        runners = list(dict.fromkeys([self.runner, *(seat.runner for seat in seats)]))
        entered: list[Runner] = []
        ended: list[Trajectory] = []
        try:
            for runner in runners:
                await runner.admission.enter(sum(seat.runner is runner for seat in seats))
                entered.append(runner)
            ended = await self._play(table, seats)
        finally:
            sizes = {seat.name: t.num_tokens for seat, t in zip(seats, ended, strict=False)}
            for seat in seats:
                if seat.runner in entered:
                    seat.runner.admission.leave(num_tokens=sizes.get(seat.name, 0))
        # a seat that the others left without a turn has nothing to learn from
        played = [(seat, trajectory) for seat, trajectory in zip(seats, ended, strict=True) if seat.env.had_turn]
        for seat, trajectory in played:
            if seat.runner.tally is not None:
                seat.runner.tally.add(trajectory)
        return [trajectory for seat, trajectory in played if seat.is_learner]

    async def _play(self, table: Table, seats: Sequence[_Seat]) -> list[Trajectory]:
        async def episode(seat: _Seat) -> Trajectory:
            trajectory = await seat.runner.attempt(seat.spec, make_env=lambda spec: seat.env)
            table.leave(seat.name, error="" if trajectory.is_scored else trajectory.error)
            return trajectory

        return await together(map(episode, seats))

    async def _runner_of(self, opponent: str) -> Runner:
        """Return who plays the other seats; a player is opened once and kept."""
        if opponent == SELF:
            return self.runner
        from agentenv.player import PlayerOptions, open_player, parse_player

        async with self._opening:
            if opponent not in self._opponents:
                options = PlayerOptions(limits=self.runner.config.limits, temperature=self.runner.sampling.temperature)
                opened = open_player(parse_player(opponent), options=options)
                self._opponents[opponent] = await self._open_things.enter_async_context(opened)
        return self._opponents[opponent]


def _set(group: GroupSpec, number: int, *, attempt: int, policy: Runner, opponent: Runner) -> tuple[Table, list[_Seat]]:
    """Deal a game and put everybody at the table.

    The deal and the policy's seat are those that the environment draws from this seed when it is played by itself.
    """
    envs = [make_bare(group.env_id, **group.env_kwargs)]
    first = envs[0]
    assert isinstance(first, GameEnv)
    names = first.game_class.seats
    envs += [make_bare(group.env_id, **group.env_kwargs) for _ in names[1:]]
    rng = np.random.default_rng((group.seed, 0, first.split == "test"))
    game = new_game(first.game_class, rng, difficulty=first.difficulty, split=first.split)
    learners = names if opponent is policy else (draw_seat(game, rng, wanted=first.wanted_seat),)
    if group.task is not None:
        raise UsageError(f"{group.env_id} deals its games by seed and takes no task rows; leave out env.tasks")
    table = Table(game)
    seats: list[_Seat] = []
    for name, env in zip(names, cast("list[GameEnv]", envs), strict=True):
        env.sit(table, name)
        is_learner = name in learners
        spec = EpisodeSpec(
            env_id=group.env_id,
            env_kwargs=group.env_kwargs,
            seed=group.seed,
            group_id=group.group_id if is_learner else f"{group.group_id}/{name}",
            member=number * len(learners) + (learners.index(name) if is_learner else 0),
            run_seed=group.run_seed,
            attempt=attempt,
        )
        runner = policy if is_learner else opponent
        seats.append(_Seat(name=name, env=env, spec=spec, runner=runner, is_learner=is_learner))
    return table, seats

"""A turn game of PettingZoo: take one, two or three stones; who takes the last one wins."""

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv


class Stones(AECEnv):
    """Two players; the seed decides how many stones there are."""

    metadata = {"name": "stones_v0", "render_modes": []}  # noqa: RUF012

    def __init__(self, *, in_info=False):
        super().__init__()
        self.in_info = in_info
        self.render_mode = None
        self.possible_agents = ["first", "second"]
        self.left = 0
        left, mask = spaces.Discrete(100), spaces.MultiBinary(3)
        self._seen = left if in_info else spaces.Dict({"observation": left, "action_mask": mask})
        self._actions = spaces.Discrete(3)

    def observation_space(self, agent):
        return self._seen

    def action_space(self, agent):
        return self._actions

    def reset(self, seed=None, options=None):
        self.left = int(np.random.default_rng(seed).integers(9, 60))
        self.agents = list(self.possible_agents)
        self.agent_selection = self.agents[0]
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {agent: self._info() for agent in self.agents}

    def observe(self, agent):
        left = np.int64(self.left)
        return left if self.in_info else {"observation": left, "action_mask": self._mask()}

    def step(self, action):
        if self.terminations[self.agent_selection]:
            self._was_dead_step(action)
            return
        agent = self.agent_selection
        other = self.possible_agents[1 - self.possible_agents.index(agent)]
        self._cumulative_rewards[agent] = 0.0
        assert self._mask()[action]
        self.left -= action + 1
        self.rewards = dict.fromkeys(self.agents, 0.0)
        if self.left == 0:
            self.rewards = {agent: 1.0, other: -1.0}
            self.terminations = dict.fromkeys(self.agents, True)
        self.agent_selection = other
        self.infos = {agent: self._info() for agent in self.agents}
        self._accumulate_rewards()

    def _mask(self):
        return np.array([count <= self.left for count in (1, 2, 3)], dtype=np.int8)

    def _info(self):
        return {"action_mask": self._mask()} if self.in_info else {}


def env(**kwargs):
    """Make the game."""
    return Stones(**kwargs)


def told(game, seat, observation):
    """Describe the game."""
    return f"{game.left} stones are left, {seat}."


def greedy(observation, legal, rng):
    """Take as many as possible."""
    return legal[-1]


def cheater(observation, legal, rng):
    """Take more than there are."""
    return 7

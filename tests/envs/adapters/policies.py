"""Plays whole episodes of adapted environments with their own policies."""

import random
from typing import Any

import numpy as np

import agentenv
from agentenv import Message

make_bare: Any = agentenv.make_bare
"""Untyped, so that tests read what an environment has beyond the common contract."""


def global_states() -> tuple[object, bytes]:
    """Return the states of the global generators of `random` and `numpy.random`."""
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes()


def play(env, policy, *, seed):
    """Play one episode; returns its return and the texts that the agent saw."""
    rng = np.random.default_rng(seed)
    text, _ = env.reset(seed=seed)
    seen, total, is_over = [text], 0.0, False
    while not is_over:
        turn = policy(env, rng)
        text, value, terminated, truncated, _ = env.step(turn.to_dict() if isinstance(turn, Message) else turn)
        seen.append(text)
        total += value
        is_over = terminated or truncated
    return total, seen


def mean_return(env, policy, *, num_seeds):
    """Return the mean return over seeds 0, 1, ..."""
    return sum(play(env, policy, seed=seed)[0] for seed in range(num_seeds)) / num_seeds


def oracle(env, rng):
    """The environment's best policy."""
    return env.oracle()


def at_random(env, rng):
    """The environment's policy without skill."""
    return env.random_action(rng)


def cheating(env, rng):
    """The environment's cheat."""
    return env.cheat(rng)

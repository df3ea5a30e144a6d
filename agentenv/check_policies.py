"""The policies that `check_env` plays, and the record of what an environment gave back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np

from agentenv.env import AgentEnv
from agentenv.errors import CheckFailed
from agentenv.messages import Message
from agentenv.spaces import Action

PolicyName = Literal["oracle", "random", "garbage", "cheat", "demonstrate"]
POLICIES: tuple[PolicyName, ...] = ("oracle", "random", "garbage", "cheat")
"""Those that every promise is about."""


class PlayedStep(NamedTuple):
    """What `step` returned; the first one of an episode holds what `reset` returned."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


Episode = tuple[PlayedStep, ...]


def play(env: AgentEnv, policy: PolicyName, *, seed: int | None) -> Episode:
    """Reset with the seed and play one episode to its end.

    Raises:
        CheckFailed: it did not end within `max_turns`.
    """
    observation, info = env.reset(seed=seed)
    opening = PlayedStep(observation, 0.0, False, False, info)
    return (opening, *play_on(env, policy, seed=0 if seed is None else seed))


def play_on(env: AgentEnv, policy: PolicyName, *, seed: int) -> Episode:
    """Play the running episode to its end; the policy's own chance comes from the seed."""
    rng = policy_rng(env, policy, seed=seed)
    steps: list[PlayedStep] = []
    for _ in range(env.max_turns):
        steps.append(PlayedStep(*env.step(act(env, policy, rng))))
        if steps[-1].terminated or steps[-1].truncated:
            return tuple(steps)
    raise CheckFailed(f"{policy} policy: the episode did not end within max_turns = {env.max_turns} steps")


def policy_rng(env: AgentEnv, policy: PolicyName, *, seed: int) -> np.random.Generator:
    """Return a policy's own chance, and seed the action space with it."""
    rng = np.random.default_rng((seed, get_args(PolicyName).index(policy)))
    env.action_space.seed(int(rng.integers(2**31)))
    return rng


def act(env: AgentEnv, policy: PolicyName, rng: np.random.Generator) -> Action:
    """Return the next action of a policy."""
    if policy == "garbage":
        return env.action_space.sample()
    draw = {"random": env.random_action, "cheat": env.cheat, "demonstrate": env.demonstrate}
    turn = env.oracle() if policy == "oracle" else draw[policy](rng)
    return turn.to_dict() if isinstance(turn, Message) else turn


def garbage_actions(env: AgentEnv) -> tuple[Action, ...]:
    """Return texts and message dicts that no environment should stumble over, calls of its own tools included."""
    names = [str(cast(Mapping[str, object], spec["function"])["name"]) for spec in env.tool_specs] or ["no_tool"]
    calls = [
        {"role": "assistant", "content": "", "tool_calls": ({"function": {"name": name, "arguments": arguments}},)}
        for name in names
        for arguments in _GARBAGE_ARGUMENTS
    ]
    written = [f'<tool_call>{{"name": "{name}", "arguments": {{"a": "\\ud800"}}}}</tool_call>' for name in names]
    env.action_space.seed(0)
    samples = [env.action_space.sample() for _ in range(20)]
    return cast("tuple[Action, ...]", (*_GARBAGE, *calls, *written, *samples))


_GARBAGE: tuple[object, ...] = (
    "",
    " \n\t",
    "\x00",
    "\ud800 lone surrogate",
    "ünï漢字🙂\u202eright to left",
    "9" * 5000,
    "a" * 200_000,
    "#### ",
    "#### 1e999",
    "\\boxed{",
    "[" * 20_000,
    '{"a": ' * 20_000,
    "<tool_call>",
    "<tool_call></tool_call>",
    "<tool_call>{</tool_call>",
    "<tool_call>[1, 2]</tool_call>",
    '<tool_call>{"name": 7}</tool_call>',
    '<tool_call>{"name": "no_such_tool"}</tool_call>',
    '<tool_call>{"name": "x", "arguments": "not an object"}</tool_call>',
    "<tool_call>" + "[" * 20_000 + "</tool_call>",
    "<tool_call>" * 1000,
    '<tool_call>{"name": "a", "arguments": {}}</tool_call>' * 50,
    {},
    {"role": "user", "content": "not mine"},
    {"content": None},
    {"content": ["text", 7]},
    {"content": "x", "tool_calls": "abc"},
    {"content": "x", "tool_calls": (None, 7, {}, {"function": 3}, {"function": {"name": ""}})},
    {"content": "x", "tool_calls": ({"status": "no such status", "function": {"name": "x"}},)},
    {"content": "x", "tool_calls": ({"function": {"name": "x", "arguments": "{"}},)},
    {"content": "x", "tool_calls": ({"function": {"name": "x" * 100_000, "arguments": {"y" * 100_000: 1}}},)},
    {1: 2},
    None,
    7,
    b"bytes",
    ["a", "list"],
)

_GARBAGE_ARGUMENTS: tuple[object, ...] = (
    None,
    "",
    "[]",
    "{",
    {},
    [],
    {"unknown argument": 1},
    {1: 2},
    {"\ud800": "\ud800"},
    {"x" * 100_000: None},
)

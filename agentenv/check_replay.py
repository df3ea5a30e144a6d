"""Same seed, same episode, wherever it is played: in other processes, and among many episodes at once.

`python -m agentenv.check_replay` reads a JSON list of environments from standard input and prints a digest of each.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentenv.check_policies import Episode, PlayedStep, PolicyName, act, policy_rng
from agentenv.check_subject import Skipped, Subject
from agentenv.env import AgentEnv
from agentenv.errors import CheckFailed
from agentenv.offload import run_now
from agentenv.registry import Registration, registration

NUM_CONCURRENT = 64
HASH_SEEDS = (1, 2)
"""Of the two interpreters: sets of strings have another order in each."""
_SEEDS_ELSEWHERE = 3
_TIMEOUT_S = 300.0


def same_in_other_processes(subject: Subject) -> str:
    """Play in two fresh interpreters with other hash seeds, and here; all three must agree."""
    if subject.spec is None:
        raise Skipped("not registered, so no other process can make it")
    if not subject.is_deterministic:
        raise Skipped("registered as nondeterministic")
    found = check_processes([subject.name], env_kwargs=subject.env_kwargs)[subject.name]
    if found:
        raise CheckFailed(found)
    return f"hash seeds {', '.join(map(str, HASH_SEEDS))}; {_SEEDS_ELSEWHERE} seeds of every policy"


def check_processes(env_ids: Sequence[str], *, env_kwargs: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Play environments in two fresh interpreters and in this process.

    Args:
        env_ids: registered ids.
        env_kwargs: constructor arguments of all of them.

    Returns:
        by id: where the episodes differ; empty where they are the same.

    Raises:
        CheckFailed: an interpreter failed as a whole.
    """
    entries = [registration(env_id) for env_id in env_ids]
    jobs = [
        {"id": e.env_id, "entry_point": e.entry_point, "kwargs": {**e.kwargs, **(env_kwargs or {})}} for e in entries
    ]
    elsewhere = [_digests_elsewhere(jobs, hash_seed=hash_seed) for hash_seed in HASH_SEEDS]
    here = _digests(jobs)
    out: dict[str, str] = {}
    for env_id, policies in here.items():
        wrong = [name for name, digest in policies.items() if any(d[env_id].get(name) != digest for d in elsewhere)]
        out[env_id] = f"episodes differ from process to process; policies: {', '.join(wrong)}" if wrong else ""
    return out


def _digests_elsewhere(jobs: Sequence[Mapping[str, Any]], *, hash_seed: int) -> dict[str, dict[str, str]]:
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", "agentenv.check_replay"],
        input=json.dumps(jobs),
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise CheckFailed(f"a fresh interpreter could not play: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _digests(jobs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return by id and policy the digest of the episodes."""
    out: dict[str, dict[str, str]] = {}
    for job in jobs:
        env_class = Registration(env_id=job["id"], entry_point=job["entry_point"]).load()

        def make(made: type[AgentEnv] = env_class, job: Mapping[str, Any] = job, **more: Any) -> AgentEnv:
            return made(**{**job["kwargs"], **more})

        subject = Subject(name=job["id"], make=make, num_seeds=_SEEDS_ELSEWHERE, spec=None, splits=False)
        out[job["id"]] = {policy: digest_of(subject.episodes(policy)) for policy in subject.policies}
    return out


def digest_of(episodes: Sequence[Episode]) -> str:
    """Return a digest of everything that the episodes showed."""
    return hashlib.sha256(repr(episodes).encode("utf-8", "backslashreplace")).hexdigest()


def same_among_many(subject: Subject) -> str:
    """Play 64 episodes at once on one event loop; each must be the one that is played alone."""
    if not subject.is_deterministic:
        raise Skipped("registered as nondeterministic")
    policy: PolicyName = "oracle" if subject.has_oracle else "random"
    alone = [subject.episodes(policy)[seed] for seed in range(min(subject.num_seeds, NUM_CONCURRENT))]
    together = run_now(_play_together(subject, policy, num_seeds=len(alone)))
    for index, episode in enumerate(together):
        seed = index % len(alone)
        if digest_of([episode]) != digest_of([alone[seed]]):
            raise CheckFailed(f"{policy} policy, seed {seed}: episode {index} of {NUM_CONCURRENT} at once is another")
    return f"{len(together)} episodes, {policy} policy"


async def _play_together(subject: Subject, policy: PolicyName, *, num_seeds: int) -> list[Episode]:
    envs = [subject.make() for _ in range(NUM_CONCURRENT)]
    playing = [play_async(env, policy, seed=index % num_seeds) for index, env in enumerate(envs)]
    episodes = await asyncio.gather(*playing)
    for env in envs:
        await env.close_async()
    return list(episodes)


async def play_async(env: AgentEnv, policy: PolicyName, *, seed: int) -> Episode:
    """Play one episode through the asynchronous contract; other episodes run between any two turns.

    Raises:
        CheckFailed: it did not end within `max_turns`.
    """
    rng: np.random.Generator = policy_rng(env, policy, seed=seed)
    steps = [PlayedStep(*env.outcome(await env.reset_async(seed=seed)))]
    for _ in range(env.max_turns):
        await asyncio.sleep(0)
        step = await env.step_async(env.read_action(act(env, policy, rng)))
        steps.append(PlayedStep(*env.outcome(step)))
        if step.stop_reason is not None:
            return tuple(steps)
    raise CheckFailed(f"{policy} policy: the episode did not end within max_turns = {env.max_turns} steps")


def _main() -> None:
    sys.stdout.write(json.dumps(_digests(json.loads(sys.stdin.read()))) + "\n")


if __name__ == "__main__":
    _main()

"""Megabytes per CPU-second that the trajectory store appends, fsync included, and scans.

256 episodes of 8 turns and 16,384 tokens each, with a conversation of ordinary length. A megabyte is one of content:
ids, log-probs, masks and text.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from agentenv.messages import Message
from agentenv.store import TrajectoryStore
from agentenv.trajectory import StopReason, TokenSequence, Trajectory, Turn
from tests.bench.measure import cpu_seconds, figure

EPISODES, TURNS, TOKENS = 256, 8, 16_384
LEAST_MB_PER_S = 200.0
TEXT = "I look the record up before I answer, and say what I do not know. " * 16


def figures() -> list[dict[str, object]]:
    """Measure and return the figures, each with its target."""
    episodes = [_episode(index) for index in range(EPISODES)]
    num_bytes = sum(
        sum(s.token_ids.nbytes + s.logprobs.nbytes + s.is_sampled.nbytes for s in episode.sequences)
        + len(TEXT) * len(episode.messages)
        for episode in episodes
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "trajectories"

        def append() -> None:
            shutil.rmtree(place, ignore_errors=True)
            TrajectoryStore(place).append(episodes, step=1, phase="rl")

        def scan() -> None:
            assert sum(1 for _ in TrajectoryStore(place).scan()) == EPISODES

        append_s, scan_s = cpu_seconds(append, repeats=3), cpu_seconds(scan, repeats=3)
    return [
        figure("store_append", num_bytes / append_s / 1e6, unit="MB/CPU-s", at_least=LEAST_MB_PER_S),
        figure("store_scan", num_bytes / scan_s / 1e6, unit="MB/CPU-s", at_least=LEAST_MB_PER_S),
    ]


def _episode(index: int) -> Trajectory:
    rng = np.random.default_rng(index)
    is_sampled = np.arange(TOKENS) % 64 < 32
    sequence = TokenSequence(
        token_ids=rng.integers(0, 150_000, TOKENS).astype(np.int32),
        logprobs=np.where(is_sampled, -rng.random(TOKENS), 0).astype(np.float32),
        is_sampled=is_sampled,
    )
    size = TOKENS // TURNS
    turns = tuple(
        Turn(sequence=0, start=turn * size, end=turn * size + size // 2, finish_reason="stop") for turn in range(TURNS)
    )
    said = [Message(role=role, content=TEXT) for _ in range(TURNS) for role in ("assistant", "user")]
    return Trajectory(
        env_id="agentenv/GuessNumber-v0",
        task_id=str(index),
        group_id=str(index // 8),
        member=index % 8,
        seed=index,
        stop_reason=StopReason.COMPLETED,
        turns=turns,
        sequences=(sequence,),
        reward_components={"found": 1.0},
        messages=tuple(said),
    )


if __name__ == "__main__":
    for line in figures():
        print(json.dumps(line))

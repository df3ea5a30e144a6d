"""The agent loop: CPU per episode with a scripted engine, in process, with latency, and over HTTP to a mock server.

An episode has three turns with one tool call each. Every prompt, argument and tool result is different, so that no
text cache can help; `repeating` shows GuessNumber, where groups share prompts and replies recur.
"""

import asyncio
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from agentenv import ToolEnv, tool, tool_turn
from agentenv.engine.http import JsonClient
from agentenv.engine.protocol import Completion
from agentenv.engine.scripted import ScriptedEngine
from agentenv.memory import relax_garbage_collection
from agentenv.renderer import Renderer
from agentenv.runner import GroupSpec, Runner, RunnerConfig
from agentenv.trajectory import VersionSpan

sys.path.insert(0, str(Path(__file__).parent))
from measure import async_cpu_seconds, figure
from text import bench_tokenizer

EPISODES = 1024


class Lookup(ToolEnv):
    """Three look-ups of made-up records."""

    inline: ClassVar[bool] = True

    def setup(self, rng, task):
        self.number = int(rng.integers(10**9))
        self.count = 0
        return f"Find the owner of record {self.number}, then the owner's office, then its telephone."

    @tool
    def look_up(self, kind: str, key: int) -> str:
        """Look a record up.

        Args:
            kind: owner, office or telephone.
            key: number of the record.
        """
        self.count += 1
        if self.count == 3:
            self.finish()
        return f"{kind} of {key}: {(self.number * 7919 + key) % 10**9}, room {key % 1013}"


def runner_of(engine, renderer, *, max_episodes, is_unique):
    config = RunnerConfig(max_episodes=max_episodes, max_tokens=10**9)
    make_env = (lambda spec: Lookup()) if is_unique else None
    return Runner(engine=engine, renderer=renderer, config=config, make_env=make_env)


def specs(counter, count):
    kwargs = {"max_guesses": 3}
    return [
        GroupSpec(group_id=str(next(counter)), env_id="agentenv/GuessNumber-v0", env_kwargs=kwargs, seed=next(counter))
        for _ in range(count)
    ]


def unique_replies(renderer, count):
    """Return a script of replies that never repeat, rendered before the clock starts."""
    pool = [
        tuple(
            renderer.turn_ids(tool_turn("look_up", {"kind": kind, "key": 1000 * i + j}))
            for j, kind in enumerate(("owner", "office", "telephone"))
        )
        for i in range(count)
    ]
    taken = itertools.cycle(range(count))
    chosen: dict[str, int] = {}

    def script(request):
        if request.turn == 0:
            chosen[request.session_id] = next(taken)
        return pool[chosen[request.session_id]][request.turn]

    return script


async def cost(*, max_episodes, is_unique=True, latency_s=0.0, episodes=EPISODES, repeats=5):
    """Return CPU-ms per episode and episodes per wall second."""
    renderer = Renderer(bench_tokenizer(), family="qwen3")
    if is_unique:
        script = unique_replies(renderer, episodes * (repeats + 1))
    else:
        wrong = [renderer.turn_ids(tool_turn("guess", {"number": n})) for n in range(16, 32)]
        script = lambda request: wrong[(request.index * 7 + request.turn) % 16]  # noqa: E731
    engine = ScriptedEngine(script, latency_s=latency_s)
    counter = itertools.count()

    async def play():
        runner = runner_of(engine, renderer, max_episodes=max_episodes, is_unique=is_unique)
        groups = await runner.run_all(specs(counter, episodes))
        assert all(len(group.trajectories[0].turns) == 3 for group in groups)

    cpu_s, wall_s = await async_cpu_seconds(play, repeats=repeats)
    return 1000 * cpu_s / episodes, episodes / wall_s


class HttpEngine(ScriptedEngine):
    """Asks a server for every completion; what an engine over HTTP costs the runner."""

    def __init__(self, port):
        super().__init__([()])
        self.client = JsonClient(f"http://127.0.0.1:{port}")

    async def generate(self, prompt_ids, sampling, *, session_id, deadline_s, images=()):
        body = {
            "input_ids": prompt_ids,
            "rid": session_id,
            "sampling_params": {"max_new_tokens": sampling.max_tokens, "temperature": sampling.temperature},
        }
        answer = await self.client.post("/generate", body, deadline_s=deadline_s)
        ids = answer["output_ids"]
        return Completion(
            token_ids=ids,
            logprobs=answer["logprobs"],
            finish_reason="stop",
            weight_versions=(VersionSpan(version=0, start=0, end=len(ids)),),
        )


def _port(server):
    """Read the port that the mock server printed."""
    assert server.stdout is not None
    return int(server.stdout.readline())


async def http_cost():
    """Return CPU-ms per episode against a mock server in another process."""
    renderer = Renderer(bench_tokenizer(), family="qwen3")
    wrong = [renderer.turn_ids(tool_turn("guess", {"number": n})) for n in range(16, 32)]
    replies = [{"output_ids": list(ids), "logprobs": [-0.5] * len(ids)} for ids in wrong]
    server = subprocess.Popen(  # noqa: ASYNC220 - before the clock starts
        [sys.executable, str(Path(__file__).parent / "mock_server.py"), json.dumps(replies)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        engine = HttpEngine(_port(server))
        counter = itertools.count()

        async def play():
            await runner_of(engine, renderer, max_episodes=64, is_unique=False).run_all(specs(counter, EPISODES))

        cpu_s, _ = await async_cpu_seconds(play, repeats=3)
        await engine.client.close()
        return 1000 * cpu_s / EPISODES
    finally:
        server.kill()
        server.wait()


def figures():
    """Measure everything, with the collector set as `agentenv train` sets it."""
    relax_garbage_collection()
    at_64, _ = asyncio.run(cost(max_episodes=64))
    at_512, _ = asyncio.run(cost(max_episodes=512))
    repeating, _ = asyncio.run(cost(max_episodes=64, is_unique=False))
    _, rate = asyncio.run(cost(max_episodes=512, latency_s=0.05, episodes=4096, repeats=3))
    return [
        figure("runner_cpu_ms_per_episode_64", at_64, unit="ms", at_most=0.60),
        figure("runner_cpu_512_over_64", at_512 / at_64, unit="ratio", at_most=1.3),
        figure("runner_cpu_ms_per_episode_repeating", repeating, unit="ms"),
        figure("runner_episodes_per_s_50ms_512", rate, unit="1/s", at_least=1700),
        figure("runner_cpu_ms_per_episode_http", asyncio.run(http_cost()), unit="ms", at_most=1.0),
    ]


if __name__ == "__main__":
    for line in figures():
        print(json.dumps(line))

"""Weight updates from a trainer to a receiver in another process, by each transport: CPU time of both sides and MB/s.

Parameters are float32: the 0.85M of the bench model, and 100M in 100 tensors. The receiver checks every byte and copies
it into its model. What counts is the CPU time of trainer and receiver from the call to the acknowledgement; MB/s is
megabytes of the whole model per CPU-second of both together, also for `delta`, which sends one tensor in ten.
`python -m tests.bench weight_sync` prints one JSON line per figure.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from agentenv.engine.protocol import Ack, WeightManifest
from agentenv.engine.receiver import WeightReceiver
from agentenv.engine.receiver_server import ReceiverServer
from agentenv.engine.scripted import ScriptedEngine
from agentenv.engine.weights import named_weights, weights_checksum
from agentenv.trainers.sync.link import ReceiverLink
from agentenv.trainers.sync.publisher import Publisher
from agentenv.trainers.sync.transports import Broadcast, Disk, SharedMemory, Transport
from tests.bench.bench_train import bench_model
from tests.bench.measure import figure

TOKEN = "bench"
UPDATES = {"0.85m": 6, "100m": 3}
LEAST_MB_PER_S = 200.0


class Holder(ScriptedEngine):
    """An engine that only holds weights: it copies them in and proves what it has."""

    def __init__(self) -> None:
        super().__init__([()])
        self.held: dict[str, Tensor] = {}

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Copy the tensors."""
        await super().update_weights(manifest)
        for name, tensor in manifest.tensors.items():
            assert isinstance(tensor, Tensor)
            self.held.setdefault(name, torch.empty_like(tensor)).copy_(tensor)
        return Ack(version=manifest.version, checksum=weights_checksum(self.held))


def figures() -> list[dict[str, object]]:
    """Measure and return the figures."""
    torch.set_num_threads(1)
    return asyncio.run(_figures())


async def _figures() -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    for size, weights in {"0.85m": named_weights(bench_model()), "100m": hundred_million()}.items():
        num_bytes = sum(tensor.nbytes for tensor in weights.values())
        for way in ("shm", "gloo", "disk", "delta"):
            cpu_s, wall_s = await _cost(way, weights, num_updates=UPDATES[size])
            rate = num_bytes / cpu_s / 1e6
            least = LEAST_MB_PER_S if size == "100m" else None
            lines += [
                figure(f"weight_sync_{way}_{size}_cpu_ms", 1000 * cpu_s, unit="CPU-ms of both sides"),
                figure(f"weight_sync_{way}_{size}_wall_ms", 1000 * wall_s, unit="ms"),
                figure(f"weight_sync_{way}_{size}", rate, unit="MB/CPU-s", at_least=least),
            ]
    return lines


def hundred_million() -> dict[str, Tensor]:
    """Return 100 tensors of a million elements."""
    generator = torch.Generator().manual_seed(0)
    return {f"layers.{i}.weight": torch.randn(1000, 1000, generator=generator) for i in range(100)}


async def _cost(way: str, weights: Mapping[str, Tensor], *, num_updates: int) -> tuple[float, float]:
    """Return the smallest CPU and wall seconds of an update; `delta` changes one tensor in ten."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.bench_weight_sync", "receive",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    changed = dict(weights)
    costs: list[tuple[float, float]] = []
    try:
        port = int(await process.stdout.readline())
        with tempfile.TemporaryDirectory() as folder:
            transport: Transport = Broadcast(backend="gloo") if way == "gloo" else SharedMemory()
            if way == "disk":
                transport = Disk(folder)
            link = await ReceiverLink.connect("127.0.0.1", port, token=TOKEN, sender="bench")
            publisher = Publisher(link, transport, sends_changes=way == "delta")
            for version in range(1, 2 + num_updates):
                for name in list(weights)[::10]:
                    changed[name] = changed[name] + 1e-3
                process.stdin.write(b"\n")
                theirs = float(await process.stdout.readline())
                ours, started = time.process_time(), time.perf_counter()
                await publisher.publish(changed, version=version)
                wall_s, ours = time.perf_counter() - started, time.process_time() - ours
                process.stdin.write(b"\n")
                costs.append((ours + float(await process.stdout.readline()) - theirs, wall_s))
            await publisher.close()
    finally:
        process.kill()
        await process.wait()
    return min(costs[1:])  # the first one meets an empty receiver


async def _receive() -> None:
    """Serve a holder; every line on standard input is answered with the CPU-seconds used so far."""
    torch.set_num_threads(1)
    engine = Holder()
    server = ReceiverServer(WeightReceiver(engine, held=lambda: engine.held), token=TOKEN)
    print(await server.start(), flush=True)
    while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        print(time.process_time(), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["receive"]:
        asyncio.run(_receive())
    else:
        for line in figures():
            print(json.dumps(line))

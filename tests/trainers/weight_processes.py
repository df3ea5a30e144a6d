"""The two sides of a weight update as programs: an engine that receives, and a trainer that dies half-way.

python -m tests.trainers.weight_processes receive TOKEN            prints its port, and a line of JSON per question
python -m tests.trainers.weight_processes die KIND PORT TOKEN HOW  sends one bucket, then dies or hangs
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time

from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.protocol import SamplingParams
from agentenv.engine.receiver import WeightReceiver
from agentenv.engine.receiver_server import ReceiverServer
from agentenv.engine.shared_weights import SharedWeights
from agentenv.engine.transfer import prepare
from agentenv.engine.weights import named_weights
from agentenv.trainers.sync.link import ReceiverLink
from agentenv.trainers.sync.transports import Broadcast
from tests.engine.small_models import qwen3

BUCKET_BYTES = 4000


async def receive(token: str) -> None:
    """Serve an engine; every line on standard input is answered with what it samples greedily, and its version."""
    engine = HFEngine(qwen3(seed=0), config=HFEngineConfig(max_length=64, max_slots=4))
    receiver = WeightReceiver(engine, dtype="float32", held=engine.held_weights)
    server = ReceiverServer(receiver, token=token)
    print(await server.start(), flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        sampling = SamplingParams(max_tokens=8, temperature=0.0)
        said = await engine.generate([5, 6, 7], sampling, session_id="s", deadline_s=20)
        health = await engine.health()
        print(json.dumps({"version": health.version, "logprobs": list(said.logprobs)}), flush=True)
    await server.close()


async def die(kind: str, port: int, token: str, how: str) -> None:
    """Send half an update, then be killed (`kill`), or never say anything again (`stop`)."""
    link = await ReceiverLink.connect("127.0.0.1", port, token=token, sender="doomed")
    update = prepare(named_weights(qwen3(seed=2)), version=2, sender="doomed", bucket_bytes=BUCKET_BYTES)
    assert len(update.manifest.buckets) > 3
    if kind == "shm":
        weights = SharedWeights(update)
        weights.write_bucket(0)
        place = {"kind": "shm", "folder": weights.info.folder}
        asking = asyncio.create_task(
            link.ask({"manifest": update.manifest.to_json(), "transport": place}, timeout_s=60)
        )
    else:
        group = Broadcast(backend="gloo")
        place = group.open(update)
        asking = asyncio.create_task(
            link.ask({"manifest": update.manifest.to_json(), "transport": dict(place)}, timeout_s=60)
        )
        await asyncio.to_thread(group.send_bucket, 0)
    await asyncio.sleep(0.5)  # the receiver has the bucket
    print(time.time(), flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        await asking
    except Exception as error:
        print(time.time(), error, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        asyncio.run(receive(sys.argv[2]))
    else:
        asyncio.run(die(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]))

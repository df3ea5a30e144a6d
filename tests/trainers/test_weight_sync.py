"""Weights between processes: every transport delivers every bit; nothing torn, damaged, stale or foreign is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from agentenv.engine.bucket_files import bucket_path, write_bucket
from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.protocol import Ack, LoraAdapter, SamplingParams
from agentenv.engine.receiver import WeightReceiver
from agentenv.engine.receiver_server import ReceiverServer
from agentenv.engine.scripted import ScriptedEngine
from agentenv.engine.transfer import prepare
from agentenv.engine.weights import named_weights, weights_checksum
from agentenv.errors import EngineError, UsageError
from agentenv.trainers.sync.link import ReceiverLink
from agentenv.trainers.sync.publisher import Publisher
from agentenv.trainers.sync.transports import Broadcast, CudaIpc, Disk, SharedMemory
from tests.engine.small_models import qwen3

TOKEN = "secret"
BUCKET_BYTES = 4000
DETECTED_S = 5.0


class EngineProcess:
    """An engine in another process; see `weight_processes`."""

    def __init__(self, process, port):
        self.process = process
        self.port = port

    async def ask(self):
        self.process.stdin.write(b"\n")
        return json.loads(await asyncio.wait_for(self.process.stdout.readline(), 30))


async def program(*args) -> Any:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.trainers.weight_processes", *args,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture
async def elsewhere():
    process = await program("receive", TOKEN)
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 60))
        yield EngineProcess(process, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def publishing(port, transport, *, sender="trainer", **options):
    link = await ReceiverLink.connect("127.0.0.1", port, token=TOKEN, sender=sender)
    publisher = Publisher(link, transport, bucket_bytes=BUCKET_BYTES, **options)
    try:
        yield publisher
    finally:
        await publisher.close()


@contextlib.asynccontextmanager
async def receiving(engine, **options):
    """A receiver in this process; yields its port."""
    server = ReceiverServer(WeightReceiver(engine, **options), token=TOKEN)
    try:
        yield await server.start()
    finally:
        await server.close()


def small_engine():
    return HFEngine(qwen3(seed=0), config=HFEngineConfig(max_length=64, max_slots=4))


async def logprobs(weights_seed):
    """What an engine with these weights says to the programs' prompt."""
    engine = HFEngine(qwen3(seed=weights_seed), config=HFEngineConfig(max_length=64, max_slots=4))
    sampling = SamplingParams(max_tokens=8, temperature=0.0)
    said = await engine.generate([5, 6, 7], sampling, session_id="s", deadline_s=20)
    await engine.close()
    return list(said.logprobs)


def transport(kind, folder):
    if kind == "disk":
        return Disk(folder)
    return Broadcast(backend="gloo") if kind == "gloo" else SharedMemory()


@pytest.mark.parametrize("kind", ["shm", "gloo", "disk"])
async def test_an_engine_in_another_process_serves_what_was_published(kind, elsewhere, tmp_path):
    assert (await elsewhere.ask())["logprobs"] == await logprobs(0)

    async with publishing(elsewhere.port, transport(kind, tmp_path)) as publisher:
        for version, seed in ((1, 11), (4, 12)):  # the second one over the group of the first
            weights = named_weights(qwen3(seed=seed))
            ack = await publisher.publish(weights, version=version)

            assert ack == Ack(version=version, checksum=weights_checksum(weights), dtype="float32")
            assert await elsewhere.ask() == {"version": version, "logprobs": await logprobs(seed)}

    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.parametrize("kind", ["shm", "gloo"])
async def test_a_trainer_killed_in_the_middle_of_an_update_has_changed_nothing(kind, elsewhere, tmp_path):
    doomed = await program("die", kind, str(elsewhere.port), TOKEN, "kill")
    await asyncio.wait_for(doomed.stdout.readline(), 60)
    await doomed.wait()
    killed = time.monotonic()

    assert await elsewhere.ask() == {"version": 0, "logprobs": await logprobs(0)}
    weights = named_weights(qwen3(seed=3))
    async with publishing(elsewhere.port, transport(kind, tmp_path)) as publisher:  # the engine is free again at once
        await publisher.publish(weights, version=2)
    assert time.monotonic() - killed < DETECTED_S
    assert await elsewhere.ask() == {"version": 2, "logprobs": await logprobs(3)}


@pytest.mark.parametrize("kind", ["shm", "gloo"])
async def test_a_trainer_that_falls_silent_half_way_is_found_out_in_time(kind, elsewhere):
    silent = await program("die", kind, str(elsewhere.port), TOKEN, "stop")
    fell_silent = float((await asyncio.wait_for(silent.stdout.readline(), 60)).split()[0])
    found_out, told = (await asyncio.wait_for(silent.stdout.readline(), 30)).split(b" ", 1)
    await silent.wait()

    assert float(found_out) - fell_silent < DETECTED_S
    assert b"torn" in told
    assert await elsewhere.ask() == {"version": 0, "logprobs": await logprobs(0)}


async def test_an_engine_that_is_killed_is_an_error_for_the_trainer(elsewhere):
    async with publishing(elsewhere.port, SharedMemory()) as publisher:
        await publisher.publish(named_weights(qwen3(seed=1)), version=1)
        elsewhere.process.kill()
        await elsewhere.process.wait()

        started = time.monotonic()
        with pytest.raises(EngineError, match="hung up"):
            await publisher.publish(named_weights(qwen3(seed=2)), version=2)

        assert time.monotonic() - started < DETECTED_S


class FlippedOnTheWay(Disk):
    """A disk that changes one bit of the second bucket."""

    def open(self, update):
        place = super().open(update)
        path = bucket_path(Path(place["folder"]), 1)
        content = bytearray(path.read_bytes())
        content[-2] ^= 0x01
        path.write_bytes(bytes(content))
        return place


async def test_one_flipped_bit_is_refused_and_the_old_weights_serve_on(tmp_path):
    engine = small_engine()
    async with receiving(engine) as port, publishing(port, FlippedOnTheWay(tmp_path)) as publisher:
        with pytest.raises(EngineError, match="bucket 1 of version 1 is damaged"):
            await publisher.publish(named_weights(qwen3(seed=1)), version=1)

    assert (await engine.health()).version == 0
    assert weights_checksum(engine.held_weights()) == weights_checksum(named_weights(qwen3(seed=0)))


async def test_versions_never_go_backwards():
    engine = small_engine()
    async with receiving(engine) as port, publishing(port, SharedMemory()) as publisher:
        await publisher.publish(named_weights(qwen3(seed=1)), version=5)
        for stale in (5, 4):
            with pytest.raises(EngineError, match="versions must grow"):
                await publisher.publish(named_weights(qwen3(seed=2)), version=stale)

        assert weights_checksum(engine.held_weights()) == weights_checksum(named_weights(qwen3(seed=1)))
        await publisher.publish(named_weights(qwen3(seed=2)), version=6)


async def test_a_second_trainer_is_refused_until_the_first_one_leaves():
    async with receiving(small_engine()) as port:
        async with publishing(port, SharedMemory(), sender="first") as first:
            with pytest.raises(EngineError, match="second wants to send weights, but first owns this engine"):
                await ReceiverLink.connect("127.0.0.1", port, token=TOKEN, sender="second")
            await first.publish(named_weights(qwen3(seed=1)), version=1)
        await asyncio.sleep(0.1)
        async with publishing(port, SharedMemory(), sender="second") as second:
            await second.publish(named_weights(qwen3(seed=2)), version=2)


async def test_the_weights_of_a_sender_that_does_not_own_the_engine_are_refused():
    receiver = WeightReceiver(small_engine())
    await receiver.claim("owner")
    update = prepare(named_weights(qwen3(seed=1)), version=1, sender="thief")

    with pytest.raises(EngineError, match="thief sends weights, but owner owns this engine"):
        await receiver.update(update.manifest, iter([update.bucket(0)]))


async def test_a_wrong_token_gets_nothing():
    async with receiving(small_engine()) as port:
        with pytest.raises(EngineError, match="token"):
            await ReceiverLink.connect("127.0.0.1", port, token="guessed", sender="trainer")


class Counting(SharedMemory):
    """Shared memory that remembers how many tensors were sent."""

    def open(self, update):
        self.num_sent = sum(map(len, update.manifest.buckets))
        return super().open(update)


async def test_only_tensors_that_changed_since_the_acknowledged_version_are_sent():
    engine = small_engine()
    weights = {name: tensor.clone() for name, tensor in named_weights(qwen3(seed=1)).items()}
    shared = Counting()
    async with (
        receiving(engine, dtype="float32", held=engine.held_weights) as port,
        publishing(port, shared, sends_changes=True) as publisher,
    ):
        await publisher.publish(weights, version=1)
        assert shared.num_sent == len(weights)

        weights["model.norm.weight"][0] += 1
        ack = await publisher.publish(weights, version=2)

        assert shared.num_sent == 1
        assert ack.checksum == weights_checksum(weights) == weights_checksum(engine.held_weights())

        with pytest.raises(EngineError, match="must grow"):
            await publisher.publish(weights, version=2)
        await publisher.publish(weights, version=3)  # nothing was acknowledged since: everything is sent
        assert shared.num_sent == len(weights)


async def test_changes_to_another_version_than_the_engine_holds_are_refused():
    engine = small_engine()
    receiver = WeightReceiver(engine, held=engine.held_weights)
    await receiver.claim("trainer")
    base = prepare(named_weights(qwen3(seed=0)), version=-1, sender="trainer").manifest
    update = prepare(named_weights(qwen3(seed=1)), version=1, sender="trainer", base=base)

    with pytest.raises(EngineError, match=r"changes version -1, but the engine has version 0; send everything"):
        await receiver.update(update.manifest, iter([update.bucket(0)]))


async def test_a_source_that_ends_too_early_is_a_torn_update():
    receiver = WeightReceiver(small_engine())
    await receiver.claim("trainer")
    update = prepare(named_weights(qwen3(seed=1)), version=1, sender="trainer", bucket_bytes=BUCKET_BYTES)

    with pytest.raises(EngineError, match=r"1 of \d+ buckets came: the update is torn"):
        await receiver.update(update.manifest, iter([update.bucket(0)]))


def tensors_of(manifest) -> dict[str, Any]:
    return dict(manifest.tensors)


class Forgetful(ScriptedEngine):
    """Acknowledges other bits than it was given, once."""

    has_forgotten = False
    resumed = 0

    async def resume(self):
        self.resumed += 1
        await super().resume()

    async def update_weights(self, manifest):
        await super().update_weights(manifest)
        self.given = manifest
        checksum = weights_checksum(tensors_of(manifest)) if self.has_forgotten else "f" * 32
        self.has_forgotten = True
        return Ack(version=manifest.version, checksum=checksum)


async def test_an_engine_that_holds_other_bits_stays_paused_until_an_update_succeeds():
    engine = Forgetful([()])
    async with receiving(engine) as port, publishing(port, SharedMemory()) as publisher:
        with pytest.raises(EngineError, match="stays paused"):
            await publisher.publish({"w": torch.ones(3)}, version=1)
        assert engine.resumed == 0

        await publisher.publish({"w": torch.ones(3)}, version=2)
        assert engine.resumed == 1


async def test_an_adapter_travels_alone_and_with_its_shape():
    engine = Forgetful([()])
    engine.has_forgotten = True
    adapter = LoraAdapter(rank=2, alpha=4.0, target_modules=("q_proj",))
    matrices = {"q_proj.lora_A.weight": torch.randn(2, 4), "q_proj.lora_B.weight": torch.zeros(4, 2)}
    async with receiving(engine) as port, publishing(port, SharedMemory()) as publisher:
        await publisher.publish(matrices, version=1, adapter=adapter)

    assert engine.given.adapter == adapter
    assert {n: t.tolist() for n, t in tensors_of(engine.given).items()} == {n: t.tolist() for n, t in matrices.items()}


async def test_a_model_that_does_not_fit_is_refused_by_the_engine_which_serves_on():
    engine = small_engine()
    async with receiving(engine) as port, publishing(port, SharedMemory()) as publisher:
        with pytest.raises(EngineError, match="weights are missing"):
            await publisher.publish({"model.norm.weight": torch.ones(32)}, version=1)

    said = await engine.generate([1, 2], SamplingParams(max_tokens=2), session_id="s", deadline_s=20)
    assert len(said.token_ids) == 2


async def test_a_half_written_folder_has_no_name_yet(tmp_path):
    full = tmp_path / "full"
    full.write_text("a file where a folder should go")
    with pytest.raises(UsageError, match="weights cannot go to"):
        Disk(full / "x")
    disk = Disk(tmp_path)
    update = prepare({"w": torch.ones(3)}, version=1)
    (tmp_path / f"version-1-{update.manifest.nonce[:8]}.part").mkdir()  # as a writer that died leaves it

    with pytest.raises(EngineError, match="could not be written"):
        disk.open(update)
    with pytest.raises(EngineError, match="could not be written"):
        write_bucket(tmp_path / "gone", 0, {"w": torch.ones(3)}, nonce="n", is_durable=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what to do without a GPU")
def test_ways_between_gpus_say_what_to_take_where_there_is_none():
    for make in (CudaIpc, lambda: Broadcast(backend="nccl")):
        with pytest.raises(UsageError, match="take shared memory"):
            make()

"""Weights handed through a file in shared memory: exact, checked before use, and removed exactly once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from agentenv.engine.bucket_files import bucket_path
from agentenv.engine.protocol import LoraAdapter
from agentenv.engine.shared_weights import AdapterFolder, SharedWeights, SharedWeightsInfo, received_weights
from agentenv.engine.transfer import TransferManifest, prepare
from agentenv.engine.weights import weights_checksum
from agentenv.errors import EngineError


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(5, 3, generator=generator),
        "a.weight": torch.randn(4, generator=generator).to(torch.bfloat16),
        "steps": torch.arange(6).view(2, 3),
        "empty": torch.zeros(0, 2),
    }


def received(info):
    return {name: tensor.clone() for name, tensor in received_weights(info).items()}


@contextlib.contextmanager
def written(sent, **options):
    with SharedWeights(prepare(sent, **options)) as weights:
        weights.write()
        yield weights


def test_tensors_arrive_bit_for_bit_in_the_order_they_were_given():
    sent = tensors()
    with written(sent, version=3) as weights:
        got = received(weights.info)

    assert list(got) == ["b.weight", "a.weight", "steps", "empty"]
    assert all(torch.equal(got[name], sent[name]) and got[name].dtype == sent[name].dtype for name in sent)
    assert weights.info.manifest.version == 3
    assert weights.info.manifest.checksum == weights_checksum(sent)


def test_floating_tensors_are_cast_to_the_engines_dtype_and_others_are_not():
    sent = tensors()
    with written(sent, version=1, dtype=torch.bfloat16) as weights:
        got = received(weights.info)

    assert got["b.weight"].dtype == torch.bfloat16
    assert torch.equal(got["b.weight"], sent["b.weight"].to(torch.bfloat16))
    assert got["steps"].dtype == torch.int64
    assert weights.info.manifest.checksum == weights_checksum(sent, dtype=torch.bfloat16)


def test_tied_and_transposed_tensors_are_stored_by_value():
    base = torch.arange(6.0).view(2, 3)
    with written({"one": base, "other": base, "turned": base.T}, version=1) as weights:
        got = received(weights.info)

    assert torch.equal(got["one"], base)
    assert torch.equal(got["other"], base)
    assert torch.equal(got["turned"], base.T)


def test_the_description_survives_json():
    with written(tensors(), version=1) as weights:
        again = SharedWeightsInfo.from_json(json.loads(json.dumps(weights.info.to_json())))

    assert again == weights.info
    said = weights.info.manifest.to_json()
    for broken in ({}, {"manifest": said}, {"folder": "/x"}):
        with pytest.raises(EngineError, match="not a description"):
            SharedWeightsInfo.from_json(broken)
    for broken in ({}, {**said, "tensors": 3}, {**said, "version": "x"}, {**said, "buckets": [["a.weight"]]}):
        with pytest.raises(EngineError, match="not a manifest"):
            TransferManifest.from_json(broken)


def test_the_folder_is_private_and_goes_exactly_once():
    weights = SharedWeights(prepare(tensors(), version=1))
    folder = Path(weights.info.folder)
    assert folder.stat().st_mode & 0o777 == 0o700

    weights.remove()
    assert not [name for name in os.listdir(folder.parent) if name.startswith(folder.name)]
    folder.write_text("somebody else's, under the same name")
    weights.remove()

    assert folder.exists()
    folder.unlink()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "no weights"),
        ({"w": [1.0]}, "not a torch tensor: w"),
        ({"w": torch.tensor([1.0, float("inf")])}, "not finite in the engine's dtype: w"),
        ({"w": torch.tensor([1e5], dtype=torch.float64)}, "not finite"),
    ],
)
def test_weights_that_cannot_be_sent_leave_no_file(bad, message):
    before = set(os.listdir("/dev/shm"))

    with pytest.raises(EngineError, match=message):
        SharedWeights(prepare(bad, version=1, dtype=torch.float16))

    assert {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("agentenv-weights-")} == set()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_one_element_that_is_not_finite_is_found_wherever_it_stands(dtype, value):
    weights = torch.full((300, 300), torch.finfo(dtype).max, dtype=dtype)
    prepare({"w": weights, "scale": -weights}, version=1)
    weights[-1, -1] = value

    with pytest.raises(EngineError, match="not finite in the engine's dtype: w"):
        prepare({"w": weights}, version=1)


def flip_last_byte(path):
    content = bytearray(Path(path).read_bytes())
    content[-1] ^= 0x40
    Path(path).write_bytes(bytes(content))


def cut(path):
    os.truncate(path, os.path.getsize(path) - 1)


def scribble(path):
    size = os.path.getsize(path)
    Path(path).write_bytes(b"\xff" * size)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(flip_last_byte, "damaged"), (cut, "torn"), (scribble, "cannot be read")],
)
def test_a_damaged_or_torn_file_is_refused(damage, message):
    with written({"w": torch.arange(50.0)}, version=1) as weights:
        damage(bucket_path(Path(weights.info.folder), 0))
        with pytest.raises(EngineError, match=message):
            received(weights.info)


def test_a_file_of_another_update_is_refused():
    with written(tensors(), version=1) as weights:
        lie = dataclasses.replace(weights.info.manifest, nonce="0" * 32)
        with pytest.raises(EngineError, match="another weight update"):
            received(dataclasses.replace(weights.info, manifest=lie))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "other tensors than announced"),
        ({"shape": (15,)}, "other tensors than announced"),
        ({"checksum": "0" * 32}, "damaged"),
    ],
)
def test_other_dtypes_shapes_and_bits_are_refused(change, message):
    with written(tensors(), version=1) as weights:
        first, *rest = weights.info.manifest.tensors
        lie = dataclasses.replace(weights.info.manifest, tensors=(dataclasses.replace(first, **change), *rest))
        with pytest.raises(EngineError, match=message):
            received(dataclasses.replace(weights.info, manifest=lie))


def test_other_names_are_refused():
    with written(tensors(), version=1) as weights:
        lie = dataclasses.replace(weights.info.manifest, buckets=(("a.weight", "steps", "empty"),))
        with pytest.raises(EngineError, match=r"other names than announced: b\.weight"):
            received(dataclasses.replace(weights.info, manifest=lie))


def test_a_receiver_that_comes_first_takes_each_bucket_as_it_is_written():
    sent = {f"w{i}": torch.full((1000,), float(i)) for i in range(6)}
    update = prepare(sent, version=1, bucket_bytes=8000)
    assert [len(bucket) for bucket in update.manifest.buckets] == [2, 2, 2]
    got = {}
    with SharedWeights(update) as weights:
        reading = threading.Thread(target=lambda: got.update(received(weights.info)))
        reading.start()
        for index in range(3):
            time.sleep(0.02)
            weights.write_bucket(index)
        reading.join(timeout=20)

    assert list(got) == list(sent)
    assert all(torch.equal(got[name], sent[name]) for name in sent)


def test_a_receiver_gives_up_at_once_where_the_owner_gave_up():
    update = prepare({"a": torch.ones(10), "b": torch.ones(10)}, version=7, bucket_bytes=40)
    weights = SharedWeights(update)
    weights.write_bucket(0)
    threading.Timer(0.1, weights.remove).start()

    started = time.monotonic()
    with pytest.raises(EngineError, match=r"bucket-00001.safetensors of version 7 never came, its sender is gone"):
        received(weights.info)

    assert time.monotonic() - started < 2


def test_an_update_to_what_is_held_sends_only_what_changed():
    held = {"a": torch.ones(3), "b": torch.ones(3), "steps": torch.zeros(1, dtype=torch.int64)}
    before = prepare(held, version=1).manifest
    update = prepare({**held, "b": torch.tensor([1.0, 1.0, 2.0])}, version=2, base=before)
    other_model = prepare({"a": torch.ones(4)}, version=2, base=before)

    assert update.manifest.buckets == (("b",),)
    assert update.manifest.base_version == 1
    assert update.manifest.checksum == weights_checksum({**held, "b": torch.tensor([1.0, 1.0, 2.0])})
    assert other_model.manifest.base_version is None  # names or shapes differ: everything is sent


def test_what_a_killed_owner_left_behind_is_removed_by_the_next_and_a_living_owners_file_is_not():
    program = (
        "import os, signal, torch; from agentenv.engine.shared_weights import SharedWeights; "
        "from agentenv.engine.transfer import prepare; "
        "print(SharedWeights(prepare({'w': torch.ones(2)}, version=1)).info.folder, flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    orphan = Path(killed.stdout.strip())
    assert orphan.exists()

    with SharedWeights(prepare(tensors(), version=1)) as living:
        assert not orphan.exists()
        with SharedWeights(prepare(tensors(), version=2)):
            assert Path(living.info.folder).exists()


def test_nothing_is_left_where_the_owner_gives_up_while_a_thread_still_writes():
    sent = {f"tensor {i}": torch.zeros(64) for i in range(30)}
    for pause in range(40):
        weights = SharedWeights(prepare(sent, version=1, bucket_bytes=256))
        folder = Path(weights.info.folder)
        writer = threading.Thread(target=write_until_refused, args=(weights,))
        writer.start()
        time.sleep(pause * 1e-4)
        weights.remove()
        writer.join(timeout=10)
        assert not folder.exists()
        assert not folder.with_suffix(".lock").exists()


def write_until_refused(weights):
    with contextlib.suppress(EngineError):
        weights.write()


def test_an_adapter_folder_is_what_peft_writes():
    from peft import LoraConfig
    from safetensors.torch import load_file

    sent = {"base_model.model.q_proj.lora_A.weight": torch.randn(2, 4)}
    folder = AdapterFolder(sent, LoraAdapter(rank=2, alpha=4.0, target_modules=("q_proj",)))
    config: Any = LoraConfig.from_pretrained(str(folder.path))
    got = load_file(folder.path / "adapter_model.safetensors")

    assert (config.r, config.lora_alpha, set(config.target_modules or ())) == (2, 4.0, {"q_proj"})
    assert torch.equal(got["base_model.model.q_proj.lora_A.weight"], sent["base_model.model.q_proj.lora_A.weight"])
    assert folder.checksum == weights_checksum(sent)
    folder.remove()
    folder.remove()
    assert not folder.path.exists()
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(folder.path.name)]

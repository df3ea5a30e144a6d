"""SGLang's requests and answers in translation, and the proof that weights arrived."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from agentenv.engine.protocol import SamplingParams
from agentenv.engine.sglang_protocol import (
    RequestIds,
    ServerFacts,
    generate_body,
    parse_release,
    parse_version,
    read_completion,
    read_vocabulary_probe,
)
from agentenv.engine.sglang_weights import checkpoint_shapes, misfits, prepare_weights, unproven_names, weights_folder
from agentenv.errors import EngineError, UsageError
from agentenv.messages import Image
from agentenv.trajectory import VersionSpan

RECORDINGS = Path(__file__).parent / "sglang_http"
PICTURE = Image(data=b"\x89PNG")


def facts(**changes: Any) -> ServerFacts:
    values: dict[str, Any] = {
        "release": (0, 5, 23),
        "model_path": "m",
        "weight_version": "default",
        "vocab_size": 320,
        "max_length": 100,
        "max_prompt_tokens": 99,
        "dtype": "float32",
        "device": "cpu",
        "tp_size": 1,
        "takes_images": True,
        "image_token_id": 7,
    }
    return ServerFacts(**{**values, **changes})


def body_of(ids: list[int], *, images: tuple[Image, ...] = (), **sampling: Any) -> dict[str, Any]:
    params = SamplingParams(**{"max_tokens": 50, **sampling})
    return generate_body(ids, params, request_id="r", facts=facts(), images=images)


def recorded(name: str) -> dict[str, Any]:
    return json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))["response"]["body"]


def read(answer: dict[str, Any], *, num_prompt_tokens: int = 8) -> Any:
    return read_completion(answer, num_prompt_tokens=num_prompt_tokens, facts=facts(), version=3)


def test_a_recorded_answer_reads_as_a_completion():
    completion = read(recorded("generate_stop_token_ids"))
    assert list(completion.token_ids) == [186, 17, 227, 223]
    assert completion.logprobs[0] == pytest.approx(-3.074881, abs=1e-5)
    assert completion.finish_reason == "stop"
    assert completion.weight_versions == (VersionSpan(version=0, start=0, end=4),)
    assert completion.num_cached_tokens == 7


def test_an_answer_of_a_release_without_spans_has_the_version_that_served_when_it_was_asked():
    answer = recorded("generate_logprob_t1")
    del answer["meta_info"]["weight_versions"]
    assert read(answer).weight_versions == (VersionSpan(version=3, start=0, end=6),)


def test_an_answer_from_the_queue_is_an_empty_abort():
    answer = recorded("generate_aborted_in_queue")
    completion = read({**answer, "output_ids": []})
    assert (completion.finish_reason, list(completion.token_ids)) == ("abort", [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt_tokens": 9}, "read 9 prompt tokens, 8 were sent"),
        ({"output_token_logprobs": [[-1.0, 5, None]]}, "log-probs of 1 other"),
        ({"output_token_logprobs": None}, "cannot be read"),
        ({"finish_reason": None}, "cannot be read"),
        ({"finish_reason": {"type": "stop", "matched": "NaN happened"}}, "not to be trained on"),
        ({"weight_versions": [{"version": "mine", "start": 0, "end": 6}]}, "another trainer set"),
        ({"weight_versions": [{"version": "1", "start": 0, "end": 5}]}, "cover 5 of 6"),
    ],
)
def test_an_answer_that_must_not_be_trained_on_is_refused(change, said):
    answer = recorded("generate_logprob_t1")
    answer["meta_info"] |= change
    with pytest.raises(EngineError, match=said):
        read(answer)


def test_sampling_goes_over_as_sglang_spells_it():
    params = body_of([1, 2], temperature=0.5, top_k=0, top_p=0.9, stop_ids=(3,), seed=2**64 + 5)["sampling_params"]
    assert (params["temperature"], params["top_k"], params["top_p"]) == (0.5, -1, 0.9)
    assert (params["stop_token_ids"], params["ignore_eos"], params["no_stop_trim"]) == ([3], False, True)
    assert params["sampling_seed"] == 5
    assert body_of([1])["sampling_params"]["ignore_eos"] is True
    assert body_of([1] * 60)["sampling_params"]["max_new_tokens"] == 40
    assert body_of([1])["logprob_start_len"] == -1
    with pytest.raises(EngineError, match="stop ids"):
        body_of([1], stop_ids=(320,))


def test_a_picture_is_one_placeholder_for_sglang_and_a_run_of_them_for_us():
    body = body_of([1, 7, 7, 7, 2, 7, 7, 3], images=(PICTURE, PICTURE))
    assert body["input_ids"] == [1, 7, 2, 7, 3]
    assert body["image_data"] == ["data:image/png;base64,iVBORw=="] * 2
    with pytest.raises(EngineError, match="1 pictures came, but the prompt has 2 runs"):
        body_of([1, 7, 7, 2, 7], images=(PICTURE,))
    with pytest.raises(EngineError, match="not known on this machine"):
        generate_body(
            [7], SamplingParams(max_tokens=1), request_id="r", facts=facts(image_token_id=None), images=(PICTURE,)
        )


@pytest.mark.parametrize(("text", "version"), [("default", 0), ("0", 0), ("17", 17)])
def test_versions_are_numbers(text, version):
    assert parse_version(text) == version


def test_releases_compare_as_numbers():
    assert parse_release("0.5.21.post1") == (0, 5, 21) > parse_release("0.5.9") == (0, 5, 9)


def test_a_vocabulary_is_read_from_the_refusal_that_names_it():
    assert read_vocabulary_probe("logit_bias must has keys in [0, 96], got 2147483647.") == 97
    with pytest.raises(UsageError, match="give vocab_size"):
        read_vocabulary_probe('{"output_ids": [1]}')


def test_ids_are_unique_and_none_begins_as_another_ends():
    ids = RequestIds()
    made = [ids.next() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert {len(one) for one in made} == {len(made[0])}


def weights() -> dict[str, torch.Tensor]:
    shapes = {"q_proj": (8, 4), "k_proj": (4, 4), "v_proj": (4, 4), "gate_proj": (6, 4), "up_proj": (6, 4)}
    generator = torch.Generator().manual_seed(0)
    made = {f"model.layers.0.{n}.weight": torch.randn(s, generator=generator) for n, s in shapes.items()}
    made["model.layers.0.down_proj.weight"] = torch.randn(4, 6, generator=generator)
    return made | {"model.embed_tokens.weight": torch.randn(10, 4, generator=generator)}


def padded(tensor: torch.Tensor, *, rows: int = 0, columns: int = 0) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, columns, 0, rows))


def summed(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def as_sglang_holds(sent: dict[str, torch.Tensor]) -> dict[str, str]:
    """Fuse and pad as a CPU SGLang does: vocabularies to 64 rows, intermediate sizes to 32."""
    layer = {
        name: sent[f"model.layers.0.{name}.weight"] for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    }
    return {
        "model.layers.0.qkv_proj.weight": summed(torch.cat([layer["q_proj"], layer["k_proj"], layer["v_proj"]])),
        "model.layers.0.gate_up_proj.weight": summed(
            torch.cat([padded(layer["gate_proj"], rows=26), padded(layer["up_proj"], rows=26)])
        ),
        "model.layers.0.down_proj.weight": summed(padded(sent["model.layers.0.down_proj.weight"], columns=26)),
        "model.embed_tokens.weight": summed(padded(sent["model.embed_tokens.weight"], rows=54)),
        "lm_head.weight": summed(padded(sent["model.embed_tokens.weight"], rows=54)),
    }


def test_fused_padded_and_tied_parameters_are_proven():
    assert unproven_names(weights(), as_sglang_holds(weights())) == ([], [])


@pytest.mark.parametrize("name", list(weights()))
def test_one_changed_bit_is_found_out(name):
    held = weights()
    held[name].view(torch.int32).view(-1)[3] ^= 1
    differing, unknown = unproven_names(weights(), as_sglang_holds(held))
    assert differing
    assert not unknown


def test_names_are_compared_with_those_that_sglang_builds_from_them():
    sent, parameters = weights(), as_sglang_holds(weights())
    assert misfits(sent, parameters) == ([], [])
    assert misfits({**sent, "stray": torch.zeros(1)}, parameters) == (["stray"], [])
    del sent["model.layers.0.k_proj.weight"], sent["model.layers.0.q_proj.weight"], sent["model.layers.0.v_proj.weight"]
    assert misfits(sent, parameters) == ([], ["model.layers.0.qkv_proj.weight"])
    assert misfits({"other.way": torch.zeros(1)}, {"its.own": ""}) == ([], [])


def test_views_are_cut_loose_and_cast_and_a_large_model_goes_in_pieces():
    whole = torch.randn(6, 4)
    prepared = prepare_weights({"a": whole[:2], "b": whole[2:]}, dtype="bfloat16", shapes={})
    assert all(t.dtype == torch.bfloat16 for t in prepared.tensors.values())
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in prepared.tensors.values())
    assert [list(bucket) for bucket in prepared.buckets()] == [["a", "b"]]
    assert [list(bucket) for bucket in prepared.buckets(max_bytes=20)] == [["a"], ["b"]]


def test_a_head_that_the_checkpoint_ties_may_come_along_if_it_is_the_same():
    embedding = torch.randn(3, 2)
    shapes = {"model.embed_tokens.weight": (3, 2)}
    both = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    assert list(prepare_weights(both, dtype="", shapes=shapes).tensors) == ["model.embed_tokens.weight"]
    with pytest.raises(EngineError, match="are one tensor in SGLang"):
        prepare_weights({**both, "lm_head.weight": embedding + 1}, dtype="", shapes=shapes)


def test_a_folder_of_weights_is_removed_on_every_path_and_those_of_the_dead_too():
    with weights_folder({"a": torch.ones(2)}) as folder:
        assert checkpoint_shapes(str(folder)) == {"a": (2,)}
        orphan = folder.parent / "agentenv-sglang-999999999-x"
        orphan.mkdir()
    assert not folder.exists()
    with pytest.raises(RuntimeError), weights_folder({"a": torch.ones(2)}) as folder:
        raise RuntimeError
    assert not folder.exists()
    assert not orphan.exists()
    assert f"-{os.getpid()}-" in folder.name

"""What goes over the wire of the SGLang stand-in: the shapes of its answers, and how weights are read."""

from __future__ import annotations

import base64
import datetime
import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agentenv.engine.sglang_protocol import HEADROOM
from agentenv.engine.sglang_stand_in_model import StandInRequest, Weights

SAMPLING_FIELDS = (
    "max_new_tokens",
    "stop",
    "stop_token_ids",
    "stop_regex",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "min_new_tokens",
    "n",
    "json_schema",
    "regex",
    "ebnf",
    "structural_tag",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "no_stop_trim",
    "stream_interval",
    "logit_bias",
    "sampling_seed",
    "custom_params",
    "beam_width",
    "watermark",
    "choice",
)
"""What `sampling_params` may hold; anything else is refused."""

SESSION_MESSAGE = "must run between begin_weight_update() and end_weight_update()"

PAUSED_UPDATE_MESSAGE = (
    "Weights were updated, but the cache was not flushed because requests are still running or queued. "
    "Retract or finish them, then call /flush_cache."
)


def model_info(model_path: str, *, version: str) -> dict[str, Any]:
    """Return what `/model_info` answers."""
    return {
        "model_path": model_path,
        "served_model_name": model_path,
        "tokenizer_path": model_path,
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": version,
        "load_format": "auto",
        "reasoning_parser": None,
        "tool_call_parser": None,
        "disaggregation_mode": "null",
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "model_type": "stand_in",
        "architectures": ["StandIn"],
    }


def server_info(model_path: str, *, version: str, release: str, context_length: int) -> dict[str, Any]:
    """Return the part of what `/server_info` answers that a client can use."""
    return {
        "model_path": model_path,
        "context_length": None,
        "device": "cpu",
        "dtype": "float32",
        "tp_size": 1,
        "dp_size": 1,
        "skip_tokenizer_init": True,
        "weight_version": version,
        "max_total_num_tokens": 16384,
        "max_req_input_len": context_length - HEADROOM,
        "version": release,
    }


def completion_answer(
    request: StandInRequest, *, reason: Literal["stop", "length", "abort"], version: str
) -> dict[str, Any]:
    """Return what `/generate` answers."""
    count = len(request.output_ids)
    info: dict[str, Any] = {
        "id": request.request_id,
        "finish_reason": _finish_reason(request, reason),
        "weight_version": version,
        "input_token_logprobs": [],
        "output_token_logprobs": [
            [logprob, token, None] for logprob, token in zip(request.logprobs, request.output_ids, strict=True)
        ],
        "output_token_logprobs_length": count,
        "completion_tokens": count,
        "weight_versions": _spans(request.versions, count=count) or [{"version": version, "start": 0, "end": 0}],
    }
    if request.was_read and not (reason == "abort" and request.abort_message != "Aborted"):
        info |= {
            "prompt_tokens": len(request.prompt_ids),
            "num_retractions": request.num_retractions,
            "reasoning_tokens": 0,
            "cached_tokens": request.num_cached,
            "cached_tokens_details": {"device": request.num_cached, "host": 0} if request.num_cached else None,
            "dp_rank": None,
        }
    return {"output_ids": request.output_ids, "meta_info": info}


def read_payload(payload: str) -> Weights:
    """Return the weights of a base64 pickle of `[(name, tensor), ...]`; only what rebuilds tensors is unpickled.

    Raises:
        pickle.UnpicklingError: it holds anything else.
    """
    named = _TensorUnpickler(io.BytesIO(base64.b64decode(payload, validate=True))).load()
    return {name: tensor.float().numpy() for name, tensor in named}


def read_folder(model_path: str) -> Weights:
    """Return the weights of a folder of safetensors files.

    Raises:
        OSError: there is none.
    """
    from safetensors.numpy import load_file

    files = sorted(Path(model_path).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no safetensors in {model_path}")
    return {name: value for file in files for name, value in load_file(file).items()}


def join_group(body: Mapping[str, Any]) -> Any:
    """Join a trainer's gloo group as its rank 1, the way SGLang does; blocks until it is complete."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    timeout = datetime.timedelta(seconds=20)
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        body["master_address"], body["master_port"], body["world_size"], is_master=False, timeout=timeout
    )
    prefixed = distributed_c10d.PrefixStore(f"{body['group_name']}/{body['group_name']}//cpu/", store)
    make: Any = distributed_c10d.ProcessGroupGloo
    return make(prefixed, body["rank_offset"], body["world_size"], timeout)


def receive_broadcast(group: Any, *, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> Weights:
    """Return what the trainer broadcasts to a group, float32 tensors in the given order; blocks."""
    import torch
    import torch.distributed as dist

    options = dist.BroadcastOptions()
    options.rootRank = 0
    weights: Weights = {}
    for name, shape in zip(names, shapes, strict=True):
        tensor = torch.empty(list(shape))
        group.broadcast([tensor], options).wait()
        weights[name] = tensor.numpy()
    return weights


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            from torch._utils import _rebuild_tensor_v2

            return _rebuild_tensor_v2
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda data: torch.load(io.BytesIO(data), weights_only=True)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"{module}.{name} has no place among weights")


def _finish_reason(request: StandInRequest, reason: Literal["stop", "length", "abort"]) -> dict[str, Any]:
    if reason == "stop":
        return {"type": "stop", "matched": request.matched}
    if reason == "length":
        return {"type": "length", "length": len(request.output_ids)}
    if request.abort_message == "Aborted":
        return {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
    return {"type": "abort", "message": request.abort_message}


def _spans(versions: Sequence[tuple[str, int]], *, count: int) -> list[dict[str, Any]]:
    """Version spans of an output; a version that sampled nothing has none."""
    ends = [*(start for _, start in versions[1:]), count]
    spans = [
        {"version": version, "start": start, "end": min(end, count)}
        for (version, start), end in zip(versions, ends, strict=False)
    ]
    return [span for span in spans if span["end"] > span["start"]]

"""SGLang's requests and answers, translated to and from our own; shared by its server and its in-process engine."""

from __future__ import annotations

import base64
import itertools
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from agentenv.engine.protocol import Completion, FinishReason, SamplingParams, check_completion
from agentenv.errors import EngineError, UsageError
from agentenv.messages import Image
from agentenv.trajectory import VersionSpan

SESSION_RELEASE = (0, 5, 21)
"""The first release whose weight updates stand between begin_weight_update and end_weight_update."""

FIRST_VERSION = "default"
"""What SGLang calls weights that nobody gave a version; read as version 0."""

HEADROOM = 6
"""Tokens of a context that SGLang keeps from a prompt."""

_VOCABULARY_PROBE = "2147483647"  # no vocabulary holds this id
_MAX_SEED = 2**63 - 1
_SHOWN = 300


class SGLangTransport(Protocol):
    """The way to one SGLang: its HTTP server, or its engine inside this process.

    Every wait ends with `DeadlineExceeded`; an SGLang that is gone, refuses, or answers what cannot be read raises
    `EngineError`.
    """

    async def generate(self, body: Mapping[str, object], *, deadline_s: float) -> Mapping[str, Any]:
        """Run one request of the shape that `generate_body` gives."""
        ...

    async def abort(self, request_id: str) -> None:
        """End the request whose id begins with `request_id`; empty ends every one. Unknown ids are ignored."""
        ...

    async def control(self, verb: str, body: Mapping[str, object], *, deadline_s: float) -> Mapping[str, Any]:
        """Call a control verb, e.g. `"begin_weight_update"`; what it refuses raises `EngineError`."""
        ...

    async def flush_cache(self) -> bool:
        """Drop the prefix cache; False where requests that run or wait forbid it."""
        ...

    async def weight_version(self) -> str:
        """Return the version that is served, as SGLang spells it."""
        ...

    async def load(self) -> SGLangLoad | None:
        """Return what it has to do; None where this release does not say."""
        ...

    async def close(self) -> None:
        """Let go of it; idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SGLangLoad:
    """What a running SGLang has to do.

    Attributes:
        num_running: requests that it computes.
        num_waiting: requests in its queue.
        cache_use: share of its key-value cache that is held, in [0, 1]; of the fullest rank.
    """

    num_running: int
    num_waiting: int
    cache_use: float


def read_load(ranks: Sequence[Mapping[str, Any]]) -> SGLangLoad:
    """Add up what the data-parallel ranks say.

    Raises:
        EngineError: figures are missing or no numbers.
    """
    try:
        return SGLangLoad(
            num_running=sum(int(rank["num_running_reqs"]) for rank in ranks),
            num_waiting=sum(int(rank["num_waiting_reqs"]) for rank in ranks),
            cache_use=min(1.0, max((float(rank.get("token_usage") or 0.0) for rank in ranks), default=0.0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"SGLang's load cannot be read: {error!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What a running SGLang says about itself.

    Attributes:
        release: of SGLang, e.g. `(0, 5, 23)`.
        model_path: folder or Hub id, as it was started with.
        weight_version: as SGLang spells it.
        vocab_size: ids lie in `[0, vocab_size)`; one outside kills the server.
        max_length: tokens of prompt and output together, at most.
        max_prompt_tokens: of one prompt, at most.
        dtype: of the weights, e.g. `"bfloat16"`; empty where it does not say.
        device: e.g. `"cpu"`.
        tp_size: tensor-parallel ranks, each of which takes weights of its own.
        takes_images: True for vision-language models.
        image_token_id: placeholder that a picture is read as; None where the model's folder is not on this machine.
    """

    release: tuple[int, ...]
    model_path: str
    weight_version: str
    vocab_size: int
    max_length: int
    max_prompt_tokens: int
    dtype: str
    device: str
    tp_size: int
    takes_images: bool
    image_token_id: int | None = None

    @property
    def has_update_session(self) -> bool:
        """True where weight updates stand between begin and end."""
        return self.release >= SESSION_RELEASE


class RequestIds:
    """Hands out ids of one width, unique across clients: SGLang aborts all whose id begins as the given one."""

    def __init__(self) -> None:
        self._client = uuid.uuid4().hex
        self._count = itertools.count()

    def next(self) -> str:
        """Return a new id."""
        return f"{self._client}-{next(self._count):012x}"


def read_facts(
    model_info: Mapping[str, Any], server_info: Mapping[str, Any], *, vocab_size: int, max_length: int
) -> ServerFacts:
    """Read what `/model_info` and `/server_info` answer.

    Args:
        model_info: of a generating model.
        server_info: the server's arguments, and what it worked out from them.
        vocab_size: see `vocabulary_probe`.
        max_length: our own limit; the server's may be lower.

    Raises:
        UsageError: it serves no generating model, or is no SGLang that we know.
        EngineError: an answer lacks what every release says.
    """
    if model_info.get("is_generation") is False:
        raise UsageError(
            f"SGLang serves {model_info.get('model_path')}, which generates no text; serve a language model"
        )
    try:
        release = parse_release(str(server_info["version"]))
        model_path = started_from(model_info, server_info)
        config = read_model_config(model_path)
        prompt_limit = int(server_info.get("max_req_input_len") or max_length)
        context = server_info.get("context_length") or config.get("max_position_embeddings") or prompt_limit + HEADROOM
        return ServerFacts(
            release=release,
            model_path=model_path,
            weight_version=str(model_info.get("weight_version", FIRST_VERSION)),
            vocab_size=vocab_size,
            max_length=min(max_length, int(context)),
            # it takes prompts shorter than its limit, and one token must fit behind them
            max_prompt_tokens=min(max_length, int(context), prompt_limit) - 1,
            dtype=_dtype(str(server_info.get("dtype") or "auto"), config=config),
            device=str(server_info.get("device") or "cuda"),
            tp_size=int(server_info.get("tp_size") or 1),
            takes_images=bool(model_info.get("has_image_understanding")),
            image_token_id=config.get("image_token_id"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"SGLang's account of itself cannot be read: {error!r}") from error


def parse_release(text: str) -> tuple[int, ...]:
    """Return a release as numbers, e.g. `(0, 5, 21)` for `"0.5.21.post1"`.

    Raises:
        ValueError: it does not begin with three numbers.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    if found is None:
        raise ValueError(f"release {text!r}")
    return tuple(int(part) for part in found.groups())


def parse_version(text: str) -> int:
    """Return a weight version as a number; weights that nobody gave a version are 0.

    Raises:
        EngineError: somebody else named it.
    """
    if text == FIRST_VERSION:
        return 0
    if not re.fullmatch(r"\d{1,18}", text):
        raise EngineError(f"SGLang serves weights of version {text!r}, which another trainer set; versions are numbers")
    return int(text)


def vocabulary_probe() -> dict[str, object]:
    """Return a request that SGLang refuses before it runs anything, naming the size of its vocabulary.

    No endpoint tells the size, and an id outside kills the server, so it must be known before the first prompt.
    """
    return {"input_ids": [0], "sampling_params": {"max_new_tokens": 1, "logit_bias": {_VOCABULARY_PROBE: 0.0}}}


def read_vocabulary_probe(refusal: str) -> int:
    """Return the size of the vocabulary that a refused probe names.

    Raises:
        UsageError: it names none.
    """
    found = re.search(r"\[0, (\d+)\]", refusal)
    if found is None:
        raise UsageError(f"SGLang does not say how large its vocabulary is, but {refusal[:_SHOWN]!r}; give vocab_size")
    return int(found[1]) + 1


def check_prompt(prompt_ids: Sequence[int], *, facts: ServerFacts) -> list[int]:
    """Return the ids as plain integers.

    Raises:
        EngineError: none came, too many, or one that is outside the vocabulary.
    """
    ids = [int(token) for token in prompt_ids]
    if not ids:
        raise EngineError("an empty prompt came; at least one token is needed")
    if len(ids) > facts.max_prompt_tokens:
        raise EngineError(
            f"a prompt of {len(ids)} tokens came; this SGLang takes {facts.max_prompt_tokens} at most, "
            "raise engine.max_length or shorten the prompt"
        )
    if not 0 <= min(ids) <= max(ids) < facts.vocab_size:
        wrong = next(token for token in ids if not 0 <= token < facts.vocab_size)
        raise EngineError(f"token id {wrong} came; ids of this model lie in [0, {facts.vocab_size})")
    return ids


def generate_body(
    prompt_ids: Sequence[int],
    sampling: SamplingParams,
    *,
    request_id: str,
    facts: ServerFacts,
    images: Sequence[Image] = (),
) -> dict[str, object]:
    """Return the body of `/generate`.

    Args:
        prompt_ids: checked.
        sampling: how to sample.
        request_id: unique, of fixed width.
        facts: of the SGLang that takes it.
        images: one for every run of placeholder ids.

    Raises:
        EngineError: pictures came for a text model, or a stop id is outside the vocabulary.
    """
    if images and not facts.takes_images:
        raise EngineError(f"{len(images)} pictures came, but SGLang serves {facts.model_path}, which reads text only")
    if any(not 0 <= token < facts.vocab_size for token in sampling.stop_ids):
        raise EngineError(f"stop ids {sampling.stop_ids} came; ids of this model lie in [0, {facts.vocab_size})")
    params: dict[str, object] = {
        "max_new_tokens": min(sampling.max_tokens, facts.max_length - len(prompt_ids)),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        # the model's own end of text stops as well, unless nothing at all is to stop; it cannot be told apart
        "ignore_eos": not sampling.stop_ids,
        "skip_special_tokens": False,
        "no_stop_trim": True,
    }
    if sampling.stop_ids:
        params["stop_token_ids"] = list(sampling.stop_ids)
    if sampling.seed is not None:
        params["sampling_seed"] = sampling.seed & _MAX_SEED  # heeded in deterministic mode only
    body: dict[str, object] = {
        "rid": request_id,
        "input_ids": _with_single_placeholders(prompt_ids, images=images, facts=facts) if images else list(prompt_ids),
        "sampling_params": params,
        "return_logprob": True,
        "logprob_start_len": -1,  # 0 would score the prompt, and read it again instead of from the cache
        "stream": False,
    }
    if images:
        body["image_data"] = [f"data:{image.media_type};base64,{_base64(image.data)}" for image in images]
    return body


def read_completion(
    answer: Mapping[str, Any], *, num_prompt_tokens: int, facts: ServerFacts, version: int
) -> Completion:
    """Read the answer to `/generate`.

    Args:
        answer: the whole object.
        num_prompt_tokens: how many were sent; a picture's count must be the same on both sides.
        facts: of the SGLang that answered.
        version: what served when the request was sent: the version of all tokens where a release gives no spans.

    Raises:
        EngineError: it cannot be read, or must not be trained on.
    """
    try:
        info = answer["meta_info"]
        pairs = info["output_token_logprobs"]
        token_ids = [int(token) for token in answer["output_ids"]]
        logprobs = [float(pair[0]) for pair in pairs]
        scored_ids = [int(pair[1]) for pair in pairs]
        reason = info["finish_reason"]["type"]
        spans = info.get("weight_versions")
        num_cached = int(info.get("cached_tokens") or 0)
        num_read = info.get("prompt_tokens")  # a request that was aborted in the queue has none
        versions = (
            (VersionSpan(version=version, start=0, end=len(token_ids)),)
            if spans is None
            else tuple(
                VersionSpan(version=parse_version(span["version"]), start=span["start"], end=span["end"])
                for span in spans
            )
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise EngineError(f"SGLang's answer cannot be read ({error!r}): {_shown(answer)}") from error
    if scored_ids != token_ids:
        raise EngineError(f"SGLang returned {len(token_ids)} ids, but log-probs of {len(scored_ids)} other ones")
    if num_read is not None and num_read != num_prompt_tokens:
        raise EngineError(
            f"SGLang read {num_read} prompt tokens, {num_prompt_tokens} were sent; "
            "the renderer and the engine count a picture's tokens differently"
        )
    if reason not in ("stop", "length", "abort") or "NaN" in str(info["finish_reason"].get("matched", "")):
        raise EngineError(f"SGLang finished for a reason that is not to be trained on: {info['finish_reason']}")
    completion = Completion(
        token_ids=token_ids,
        logprobs=logprobs,
        finish_reason=cast(FinishReason, reason),
        weight_versions=versions,
        num_cached_tokens=num_cached,
    )
    check_completion(completion, vocab_size=facts.vocab_size)
    return completion


def started_from(model_info: Mapping[str, Any], server_info: Mapping[str, Any]) -> str:
    """Return the folder or Hub id of the model.

    After an update from disk, SGLang names the folder of that update as its model; then the one that it was started
    with tells more.
    """
    named = [str(model_info["model_path"]), *(str(i["model_path"]) for i in (server_info,) if "model_path" in i)]
    named.append(str(model_info.get("tokenizer_path")))
    return next((path for path in named if read_model_config(path)), named[0])


def local_vocab_size(model_path: str) -> int | None:
    """Return the vocabulary size that a model folder on this machine states; None where there is none."""
    size = read_model_config(model_path).get("vocab_size")
    return size if isinstance(size, int) else None


def read_model_config(model_path: str) -> dict[str, Any]:
    """The text part of a model folder's config.json; empty where the folder is not on this machine."""
    try:
        config = json.loads((Path(model_path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict):
        return {}
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _dtype(stated: str, *, config: Mapping[str, Any]) -> str:
    if stated == "auto":
        own = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
        # where it may choose, SGLang halves the precision of float32 models
        halved = "bfloat16" if str(config.get("model_type")).startswith("gemma") else "float16"
        return halved if own == "float32" else own
    return {"half": "float16", "float": "float32"}.get(stated, stated)


def _with_single_placeholders(prompt_ids: Sequence[int], *, images: Sequence[Image], facts: ServerFacts) -> list[int]:
    """SGLang expands one placeholder per picture by itself; how many it made of it is checked in the answer."""
    token = facts.image_token_id
    if token is None:
        raise EngineError(
            f"pictures came, but which id stands for one in {facts.model_path} is not known on this machine"
        )
    single = [
        this for before, this in itertools.pairwise((None, *prompt_ids)) if not (this == token and before == token)
    ]
    count = single.count(token)
    if count != len(images):
        raise EngineError(f"{len(images)} pictures came, but the prompt has {count} runs of their placeholder {token}")
    return [int(this) for this in single if this is not None]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _shown(answer: object) -> str:
    text = str(answer)
    return text[:_SHOWN] + ("..." if len(text) > _SHOWN else "")

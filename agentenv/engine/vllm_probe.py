"""Finds out what a vLLM server can do, and writes the requests of its two endpoints for token ids."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from agentenv.engine.http import JsonClient, RefusedRequest
from agentenv.engine.protocol import SamplingParams
from agentenv.engine.server_config import ServerConfig
from agentenv.engine.vllm_answers import read_completions_answer, read_tokens_answer, version_number
from agentenv.engine.vllm_settings import (
    ModelFacts,
    check_version,
    collapse_pictures,
    image_token_id,
    model_vocab_size,
    sampling_fields,
)
from agentenv.errors import EngineError
from agentenv.messages import Image

TOKENS_PATH = "/inference/v1/generate"
COMPLETIONS_PATH = "/v1/completions"
PROBE_S = 30.0
"""Deadline of a question about the server."""

_FIRST = "default"  # vLLM's name for weights that nobody has named

LogprobScale = Literal["unmasked", "masked", "raw"]
"""What a server's log-probs are of: after the temperature and before the masks, after both, or before both."""

SCALES: dict[LogprobScale, str] = {
    "unmasked": "those before top-p and top-k",
    "masked": "those after top-p and top-k",
    "raw": "those before the temperature",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What `connect` found out about a server.

    Attributes:
        model: the name that requests ask for.
        facts: limits of the model.
        version: of the weights, as the server calls them.
        dtype: of the weights; empty where the server does not say.
        takes_tokens: it has the endpoint for token ids.
        has_dev_mode: it can be paused and updated.
        logprob_scale: what its log-probs are of.
    """

    model: str
    facts: ModelFacts
    version: int
    dtype: str
    takes_tokens: bool
    has_dev_mode: bool
    logprob_scale: LogprobScale


async def ask_server(client: JsonClient, config: ServerConfig) -> ServerFacts:
    """Find out what a server is, in an order in which the first wrong answer says the most.

    Raises:
        EngineError: no vLLM server that can be used answers there.
        UsageError: it is another version than was tested.
        DeadlineExceeded: it does not answer in time.
    """
    version = (await client.get("/version", deadline_s=PROBE_S)).get("version")
    if not isinstance(version, str):
        raise EngineError(f"{client.base_url} answers, but not as a vLLM server does; is another program there?")
    check_version(version)
    await client.probe("/health", deadline_s=PROBE_S)
    card = _model_card(await client.get("/v1/models", deadline_s=PROBE_S), client.base_url)
    folder = str(card.get("root") or card["id"])
    facts = ModelFacts(
        vocab_size=model_vocab_size(folder),
        max_length=min(config.max_length, int(card.get("max_model_len") or config.max_length)),
        image_token_id=image_token_id(folder),
    )
    number, dtype = await _weights_of(client)
    about = ServerFacts(
        model=str(card["id"]),
        facts=facts,
        version=number or 0,
        dtype=dtype,
        takes_tokens=True,
        has_dev_mode=number is not None,
        logprob_scale="raw",
    )
    return await _try_out(client, about)


def _model_card(answer: Mapping[str, Any], url: str) -> Mapping[str, Any]:
    cards = answer.get("data")
    for card in cards if isinstance(cards, list) else ():
        if isinstance(card, dict) and isinstance(card.get("id"), str) and not card.get("parent"):
            return card
    raise EngineError(f"{url}/v1/models names no model")


async def _weights_of(client: JsonClient) -> tuple[int | None, str]:
    """Return version and dtype of a server's weights; no version where it runs without development routes."""
    try:
        info = await client.get("/weight_info", deadline_s=PROBE_S)
    except RefusedRequest as error:
        if error.status == 404:
            return None, ""
        raise
    if (await client.get("/is_paused", deadline_s=PROBE_S)).get("is_paused"):
        raise EngineError(
            f"the server at {client.base_url} is paused, perhaps by a trainer that died during an update; restart it"
        )
    name = str(info.get("weight_version"))
    if name == _FIRST:
        await client.command("/update_weight_version", {"new_version": "0"}, deadline_s=PROBE_S)
    settings = (await client.get("/server_info?config_format=json", deadline_s=PROBE_S)).get("vllm_config")
    model = settings.get("model_config") if isinstance(settings, dict) else None
    dtype = str(model.get("dtype", "")) if isinstance(model, dict) else ""
    return version_number(name), dtype.removeprefix("torch.")


async def _try_out(client: JsonClient, about: ServerFacts) -> ServerFacts:
    """Sample a token twice, which tells the endpoint, and by the log-probs what they are of.

    Both requests give the likeliest token. Greedy log-probs are at temperature 1. With top_k 1 and temperature 2, a
    server that masks says 0, one that ignores the temperature says the same as before, and ours says neither.
    """
    greedy = SamplingParams(max_tokens=1, temperature=0.0)
    narrow = SamplingParams(max_tokens=1, temperature=2.0, top_k=1, seed=0)
    prompt = [0]
    try:
        first = await client.post(TOKENS_PATH, tokens_request(prompt, greedy, model=about.model), deadline_s=PROBE_S)
        second = await client.post(TOKENS_PATH, tokens_request(prompt, narrow, model=about.model), deadline_s=PROBE_S)
        pair = [read_tokens_answer(answer, version=None)[0].logprobs[0] for answer in (first, second)]
    except RefusedRequest as error:
        if error.status not in (403, 404):
            raise
        about = replace(about, takes_tokens=False)
        bodies = [completions_request(prompt, sampling, model=about.model) for sampling in (greedy, narrow)]
        answers = [await client.post(COMPLETIONS_PATH, body, deadline_s=PROBE_S) for body in bodies]
        pair = [read_completions_answer(answer, version=0)[0].logprobs[0] for answer in answers]
    if abs(pair[1]) < 1e-6 < abs(pair[0]):
        return replace(about, logprob_scale="masked")
    return replace(about, logprob_scale="raw" if abs(pair[1] - pair[0]) < 1e-6 else "unmasked")


def tokens_request(
    prompt: list[int],
    sampling: SamplingParams,
    *,
    model: str,
    images: Sequence[Image] = (),
    facts: ModelFacts | None = None,
) -> dict[str, object]:
    """Return the body for the endpoint that takes token ids; pictures need `facts`."""
    body: dict[str, object] = {"token_ids": prompt, "model": model, "sampling_params": sampling_fields(sampling)}
    if images and facts is not None:
        body |= {
            "token_ids": collapse_pictures(prompt, images, facts=facts),
            "content_parts": [{"type": "image_url", "url": _data_url(image)} for image in images],
            "return_token_ids": True,
        }
    return body


def completions_request(prompt: list[int], sampling: SamplingParams, *, model: str) -> dict[str, object]:
    """Return the body for the completions endpoint."""
    fields = sampling_fields(sampling)
    del fields["detokenize"]  # the endpoint decides by itself
    return {"prompt": prompt, "model": model, "return_token_ids": True, **fields}


def _data_url(image: Image) -> str:
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"

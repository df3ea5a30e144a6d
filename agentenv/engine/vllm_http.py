"""vLLM over HTTP: a server that runs somewhere behind the engine protocol, and the command that starts one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from agentenv.engine.engine_metrics import EngineLoad, read_engine_load
from agentenv.engine.http import JsonClient, RefusedRequest
from agentenv.engine.protocol import Ack, Completion, EngineHealth, PauseMode, SamplingParams, WeightManifest
from agentenv.engine.server_config import ServerCommand, ServerConfig
from agentenv.engine.vllm_answers import read_completions_answer, read_tokens_answer
from agentenv.engine.vllm_probe import (
    COMPLETIONS_PATH,
    PROBE_S,
    SCALES,
    TOKENS_PATH,
    ServerFacts,
    ask_server,
    completions_request,
    tokens_request,
)
from agentenv.engine.vllm_settings import (
    NO_ADAPTERS,
    OLD_WEIGHTS_SERVE,
    check_expansion,
    checked_prompt,
    engine_arguments,
    update_failure,
    weight_backend,
)
from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError, UsageError, describe
from agentenv.messages import Image

_CONTROL_S = 300.0  # pause, update and what belongs to them; publishing has a deadline of its own
_HEALTH_S = 5.0
_KEEPALIVE_S = 3.0  # vLLM closes a connection that was idle for 5 s

DEV_MODE = "pause and weight updates need a server started with VLLM_SERVER_DEV_MODE=1, as `agentenv serve` does"
SCALE_OUT = "start the server with --enable-scale-out, as `agentenv serve` does"


class VLLMServer:
    """Speaks to one running vLLM server. Implements `Engine`; made by `connect`.

    The server belongs to whoever started it: `close` closes connections only.
    """

    def __init__(self, client: JsonClient, *, config: ServerConfig, about: ServerFacts) -> None:
        self.config = config
        self.vocab_size = about.facts.vocab_size
        self._client = client
        self._about = about
        self._facts = about.facts
        self._version = about.version
        self._num_requests = 0
        self._update_lock = asyncio.Lock()
        self._is_paused = False
        self._is_closed = False
        self._failure = ""
        self._sender: Any = None
        self._adapters: Any = None

    @classmethod
    async def connect(cls, url: str, *, config: ServerConfig) -> VLLMServer:
        """Find out what runs at `url` and whether it can be used.

        Args:
            url: e.g. `"http://127.0.0.1:8000"`.
            config: limits, API key, how weights travel.

        Raises:
            EngineError: nothing runs there, it is no vLLM, or it does not answer as vLLM does.
            UsageError: it is another version of vLLM than was tested.
            DeadlineExceeded: it does not answer in time.
        """
        headers = {} if config.api_key is None else {"Authorization": f"Bearer {config.api_key.get_secret_value()}"}
        client = JsonClient(url, headers=headers, keepalive_s=_KEEPALIVE_S)
        try:
            return cls(client, config=config, about=await ask_server(client, config))
        except BaseException:
            await client.close()
            raise

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        session_id: str,
        deadline_s: float,
        images: Sequence[Image] = (),
    ) -> Completion:
        """Sample a continuation; see `Engine.generate`. Closing the connection aborts the request in the server.

        Raises:
            EngineError: the prompt, the pictures or the sampling cannot be served, or the server failed.
            EngineClosed: this engine was closed.
            DeadlineExceeded: after `deadline_s` seconds, waiting and pauses included.
        """
        self._refuse_if_unusable()
        self._refuse_wrong_logprobs(sampling)
        prompt = checked_prompt(prompt_ids, self._facts)
        adapter = self._adapters.take() if self._adapters is not None else None
        model = self._about.model if adapter is None else adapter.name
        version = self._version
        self._num_requests += 1
        try:
            if self._about.takes_tokens:
                body = tokens_request(prompt, sampling, model=model, images=images, facts=self._facts)
                answer = await self._client.post(TOKENS_PATH, body, deadline_s=deadline_s)
            elif images:
                raise EngineError(f"pictures need vLLM's endpoint for token ids; {SCALE_OUT}")
            else:
                body = completions_request(prompt, sampling, model=model)
                answer = await self._client.post(COMPLETIONS_PATH, body, deadline_s=deadline_s)
        except EngineError:
            self._refuse_if_unusable()
            raise
        finally:
            self._num_requests -= 1
            if self._adapters is not None:
                await self._adapters.give_back(adapter)
        self._refuse_if_unusable()
        if self._about.takes_tokens:
            completion, seen = read_tokens_answer(answer, version=None if adapter is None else adapter.version)
        else:
            completion, seen = read_completions_answer(answer, version=version)
        if images:
            check_expansion(prompt, seen)
        return completion

    async def end_session(self, session_id: str) -> None:
        """Do nothing: vLLM's prefix cache is shared by all sessions and evicts by itself."""

    async def forget_prefixes(self) -> None:
        """Drop every cached prefix; running requests read their tokens again."""
        self._refuse_without_dev_mode()
        await self._command("/reset_prefix_cache?reset_running_requests=true")

    async def pause(self, mode: PauseMode = "abort") -> None:
        """Stop generating; see `Engine.pause`. Requests that come during a pause wait for `resume` in both modes."""
        self._refuse_without_dev_mode()
        await self._command(f"/pause?mode={mode}&clear_cache=false")
        self._is_paused = True

    async def resume(self) -> None:
        """Go on after `pause`; a server whose weights are torn stays paused until an update succeeds."""
        self._is_paused = False
        if not self._failure:
            self._refuse_without_dev_mode()
            await self._command("/resume")

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Take a whole model or an adapter; see `VLLMEngine.update_weights`, which promises the same.

        Raises:
            EngineError: the server cannot take weights, somebody else gave it weights, the version is not newer, or
                the weights do not fit; then the old weights serve on, and the text says so. After any other failure
                nothing is served until an update succeeds.
            EngineClosed: this engine was closed.
        """
        self._refuse_if_closed()
        self._refuse_without_dev_mode()
        if not self._about.takes_tokens:
            raise EngineError(f"after an update every token must name its weights, for which {SCALE_OUT}")
        async with self._update_lock:
            if manifest.version <= self._version:
                raise EngineError(
                    f"weights of version {manifest.version} came, but the engine has version {self._version}; "
                    f"versions must grow. {OLD_WEIGHTS_SERVE}"
                )
            await self._refuse_foreign_weights()
            if manifest.adapter is not None:
                return await self._update_adapter(manifest)
            was_paused = self._is_paused
            if not was_paused:
                await self.pause("keep")
            try:
                return await self._update_model(manifest)
            finally:
                if not was_paused:
                    await self.resume()

    async def health(self) -> EngineHealth:
        """Say whether requests can be served; a paused server can, later."""
        is_ready = not (self._is_closed or self._failure)
        load: EngineLoad | None = None
        if is_ready:
            try:
                await self._client.probe("/health", deadline_s=_HEALTH_S)
                page = await self._client.exchange("GET", "/metrics", deadline_s=_HEALTH_S)
                load = read_engine_load(page.content.decode(errors="replace"))
            except (EngineError, DeadlineExceeded):
                is_ready = False
        num_running = min(self._num_requests, self.config.max_slots)
        return EngineHealth(
            is_ready=is_ready,
            version=self._version,
            num_running=num_running,
            # the server's own queue may hold requests of others, and begins before ours is full
            num_waiting=max(self._num_requests - num_running, 0 if load is None else load.num_waiting),
            cache_use=0.0 if load is None else load.cache_use,
        )

    async def close(self) -> None:
        """Close all connections, which aborts our requests; idempotent."""
        if not self._is_closed:
            self._is_closed = True
            await self._client.close()
            if self._adapters is not None:
                self._adapters.close()

    async def _update_model(self, manifest: WeightManifest) -> Ack:
        from agentenv.engine.vllm_sync import WeightSender

        if self._sender is None:
            self._sender = WeightSender(
                _Control(self._client), backend=weight_backend(self.config), dtype=self._about.dtype
            )
        try:
            checksum = await self._sender.send(manifest)
            # while paused: running requests give up their keys and values and are read again after `resume`
            await self._command("/reset_prefix_cache?reset_running_requests=true")
            if self._facts.image_token_id is not None:
                await self._command("/reset_encoder_cache")
        except BaseException as error:
            is_harmless = not self._sender.has_begun or _says_old_weights_serve(error)
            if not is_harmless:
                await self._break(f"weight update to version {manifest.version} failed: {describe(error)}")
            if not isinstance(error, Exception) or isinstance(error, UsageError):
                raise
            raise EngineError(update_failure(manifest.version, error, is_harmless=is_harmless)) from error
        self._version = manifest.version
        self._failure = ""
        if self._adapters is not None:
            await self._adapters.clear()
        return Ack(version=self._version, checksum=checksum, dtype=self._about.dtype)

    async def _update_adapter(self, manifest: WeightManifest) -> Ack:
        from agentenv.engine.vllm_adapters import AdapterShelf

        if self._adapters is None:
            self._adapters = AdapterShelf(load=self._load_adapter, unload=self._unload_adapter)
        checksum = await self._adapters.put(manifest)
        self._version = manifest.version
        await self._command("/update_weight_version", {"new_version": str(manifest.version)})
        return Ack(version=self._version, checksum=checksum)

    async def _load_adapter(self, adapter: Any) -> None:
        body = {"lora_name": adapter.name, "lora_path": str(adapter.folder.path)}
        try:
            await self._client.command("/v1/load_lora_adapter", body, deadline_s=_CONTROL_S)
        except RefusedRequest as error:
            if error.status == 404 and b"adapter" not in error.content.lower():
                raise EngineError(
                    f"an adapter came, but {NO_ADAPTERS}, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
                ) from error
            raise

    async def _unload_adapter(self, adapter: Any) -> None:
        await self._client.command("/v1/unload_lora_adapter", {"lora_name": adapter.name}, deadline_s=_CONTROL_S)

    async def _break(self, failure: str) -> None:
        """Serve nothing from now on, and fail what waits; the server stays paused."""
        self._failure = failure
        # a server that is down has failed its requests already
        with contextlib.suppress(EngineError, DeadlineExceeded):
            await self._command("/abort_requests", {"request_ids": []})

    async def _refuse_foreign_weights(self) -> None:
        info = await self._client.get("/weight_info", deadline_s=PROBE_S)
        found = str(info.get("weight_version"))
        if found != str(self._version):
            raise EngineError(
                f"the server at {self._client.base_url} has weights {found!r}, this trainer gave it version "
                f"{self._version}: somebody else updates it too. Give every trainer servers of its own"
            )

    async def _command(self, path: str, body: Mapping[str, object] | None = None) -> None:
        """Post what may be posted twice."""
        self._refuse_if_closed()
        try:
            await self._client.command(path, body, deadline_s=_CONTROL_S)
        except (RefusedRequest, EngineClosed):
            raise
        except EngineError:
            # after an answer of 500 the server closes the connection without saying so, and this was the next to use it
            await self._client.command(path, body, deadline_s=_CONTROL_S)

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise EngineClosed("the engine was closed; connect anew")

    def _refuse_if_unusable(self) -> None:
        self._refuse_if_closed()
        if self._failure:
            raise EngineError(f"the engine serves nothing until a weight update succeeds: {self._failure}")

    def _refuse_without_dev_mode(self) -> None:
        if not self._about.has_dev_mode:
            raise EngineError(f"the server at {self._client.base_url} only generates; {DEV_MODE}")

    def _refuse_wrong_logprobs(self, sampling: SamplingParams) -> None:
        """Refuse sampling whose log-probs this server would report of another distribution."""
        scale = self._about.logprob_scale
        is_scaled = sampling.temperature not in (0.0, 1.0)
        is_masked = sampling.temperature != 0 and (sampling.top_p < 1 or sampling.top_k > 0)
        if (scale == "raw" and is_scaled) or (scale == "masked" and is_masked):
            raise EngineError(
                f"this server's log-probs are {SCALES[scale]}, so with temperature {sampling.temperature:g}, top_p "
                f"{sampling.top_p:g} and top_k {sampling.top_k} they would be wrong; start it with `agentenv serve`"
                + (", or with --logprobs-mode processed_logprobs" if scale == "raw" and not is_masked else "")
            )


class _Control:
    """vLLM's weight transfer verbs over HTTP; see `WeightControl`."""

    def __init__(self, client: JsonClient) -> None:
        self._client = client

    async def init_transfer(self, init_info: dict[str, Any]) -> None:
        await self._client.command("/init_weight_transfer_engine", {"init_info": init_info}, deadline_s=_CONTROL_S)

    async def start_update(self) -> None:
        await self._client.command("/start_weight_update", deadline_s=_CONTROL_S)

    async def update(self, update_info: dict[str, Any]) -> None:
        if "ipc_handles" in update_info:
            raise UsageError(
                "weight_sync ipc over HTTP would need pickled handles; take nccl or shm, or an engine in process"
            )
        await self._client.command("/update_weights", {"update_info": update_info}, deadline_s=_CONTROL_S)

    async def finish_update(self, version: str) -> None:
        await self._client.command("/finish_weight_update", {"weight_version": version}, deadline_s=_CONTROL_S)

    async def num_workers(self) -> int:
        return int((await self._client.get("/get_world_size", deadline_s=PROBE_S))["world_size"])


def vllm_command(config: ServerConfig, *, model: str, port: int, python: str) -> ServerCommand:
    """Return how to start a vLLM server that everything here works with, bound to this host.

    Args:
        config: limits, dtype, device, vLLM's own options; an API key goes into the environment, never into `argv`.
        model: a model folder or a Hub id.
        port: to listen on.
        python: interpreter that has vLLM and this package.

    Raises:
        UsageError: a setting that vLLM cannot follow.
    """
    arguments = engine_arguments(config, model=model)
    flags: dict[str, JsonValue] = {
        "host": "127.0.0.1",
        "port": port,
        "enable_scale_out": True,  # the endpoint that takes token ids and names the weights of every token
        "enable_prompt_tokens_details": True,
        "disable_uvicorn_access_log": True,
    }
    env = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if Path(model).expanduser().is_dir():
        env |= {"HF_HUB_OFFLINE": "1"}
    if arguments.get("enable_lora"):
        env |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    if config.api_key is not None:
        env |= {"VLLM_API_KEY": config.api_key.get_secret_value()}
    # `vllm serve` itself does not start from the CPU wheel: it asks for the version of a package named vllm
    argv = [python, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in {**flags, **arguments}.items():
        argv += _flag(name, value)
    return ServerCommand(argv=tuple(argv), env=env)


def _flag(name: str, value: JsonValue) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, list):
        return [flag, *(item if isinstance(item, str) else json.dumps(item) for item in value)]
    return [flag, value if isinstance(value, str) else json.dumps(value)]


def _says_old_weights_serve(error: BaseException) -> bool:
    """Look into the whole answer: messages show only its beginning."""
    content = error.content.decode("utf-8", "replace") if isinstance(error, RefusedRequest) else str(error)
    return OLD_WEIGHTS_SERVE in content

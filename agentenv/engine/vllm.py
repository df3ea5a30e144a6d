"""vLLM in this process: `AsyncLLM` behind the engine protocol, with weights updated in flight."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import io
import itertools
import os
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from agentenv.engine.protocol import (
    Ack,
    Completion,
    EngineHealth,
    FinishReason,
    PauseMode,
    SamplingParams,
    WeightManifest,
)
from agentenv.engine.server_config import ServerConfig
from agentenv.engine.vllm_owner import owned_processes
from agentenv.engine.vllm_settings import (
    INSTALL,
    NO_ADAPTERS,
    OLD_WEIGHTS_SERVE,
    ModelFacts,
    check_expansion,
    check_options,
    check_version,
    checked_prompt,
    collapse_pictures,
    engine_arguments,
    image_token_id,
    sampling_fields,
    update_failure,
    weight_backend,
)
from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError, UsageError, describe
from agentenv.messages import Image
from agentenv.trajectory import VersionSpan

T = TypeVar("T")

_CLOSE_TIMEOUT_S = 10.0
_WATCH_S = 0.5  # between two looks at whether the engine process lives
_DIED = "vLLM's engine process died while this request was in it"
_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


class VLLMEngine:
    """Serves one model with vLLM's `AsyncLLM`, whose core runs in a child process. Implements `Engine`.

    Made by `open`. vLLM's in-process API belongs to the event loop that it was first used on; use one loop.
    """

    def __init__(self, llm: Any, *, facts: ModelFacts, config: ServerConfig, version: int) -> None:
        self.config = config
        self.vocab_size = facts.vocab_size
        self._llm: Any = llm
        self._facts = facts
        self._version = version
        self._sampling_class, self._final_only = _request_types()
        self._count = itertools.count()
        self._running: dict[str, asyncio.Timeout] = {}
        self._watcher = asyncio.get_running_loop().create_task(self._watch(), name="vllm watcher")
        self._update_lock = asyncio.Lock()
        self._is_paused = False
        self._is_closed = False
        self._failure = ""
        self._sender: Any = None
        self._adapters: Any = None

    @classmethod
    async def open(cls, model: str | Path, *, config: ServerConfig, version: int = 0) -> VLLMEngine:
        """Start vLLM on a model and wait until it can serve.

        Args:
            model: a Hugging Face model folder or a Hub id.
            config: limits, dtype, device, vLLM's own options.
            version: of the weights that the folder holds.

        Raises:
            UsageError: vLLM is missing or another version, or the configuration does not fit it.
            EngineError: vLLM did not start within `config.startup_timeout_s`.
        """
        _import_vllm()
        arguments = engine_arguments(config, model=str(model))
        starting = asyncio.create_task(asyncio.to_thread(_start, arguments))
        try:
            llm = (await asyncio.wait_for(asyncio.shield(starting), config.startup_timeout_s)).pop()
        except TimeoutError:
            starting.add_done_callback(_shut_down_late)
            raise EngineError(f"vLLM did not start within {config.startup_timeout_s:g} s") from None
        except asyncio.CancelledError:
            starting.add_done_callback(_shut_down_late)
            raise
        facts = ModelFacts(
            vocab_size=llm.model_config.get_vocab_size(),
            max_length=llm.model_config.max_model_len,
            image_token_id=image_token_id(str(model)),
        )
        await llm.update_weight_version(str(version))
        return cls(llm, facts=facts, config=config, version=version)

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        session_id: str,
        deadline_s: float,
        images: Sequence[Image] = (),
    ) -> Completion:
        """Sample a continuation; see `Engine.generate`.

        Raises:
            EngineError: the prompt or the pictures cannot be served, or vLLM failed.
            EngineClosed: the engine was closed.
            DeadlineExceeded: after `deadline_s` seconds, waiting and pauses included.
        """
        self._refuse_if_unusable()
        prompt = checked_prompt(prompt_ids, self._facts)
        request: dict[str, Any] = {"type": "token", "prompt_token_ids": prompt}
        if images:
            request = {
                "prompt_token_ids": collapse_pictures(prompt, images, facts=self._facts),
                "multi_modal_data": {"image": [_decoded(image) for image in images]},
            }
        fields = sampling_fields(sampling)
        adapter = self._adapters.take() if self._adapters is not None else None
        try:
            output = await self._final_output(
                request, fields, session_id=session_id, deadline_s=deadline_s, adapter=adapter
            )
        finally:
            if self._adapters is not None:
                await self._adapters.give_back(adapter)
        if images:
            check_expansion(prompt, output.prompt_token_ids)
        return _completion(output, adapter_version=None if adapter is None else adapter.version)

    async def end_session(self, session_id: str) -> None:
        """Do nothing: vLLM's prefix cache is shared by all sessions and evicts by itself."""

    async def forget_prefixes(self) -> None:
        """Drop every cached prefix; running requests read their tokens again."""
        await self._call(self._llm.reset_prefix_cache(reset_running_requests=True))

    async def pause(self, mode: PauseMode = "abort") -> None:
        """Stop generating.

        Args:
            mode: `"abort"` ends all requests in the engine with what they have; `"keep"` continues them after
                `resume`. Requests that come during a pause wait for `resume` in both modes.
        """
        self._is_paused = True
        await self._call(self._llm.pause_generation(mode=mode, clear_cache=False))

    async def resume(self) -> None:
        """Go on after `pause`; an engine whose weights are torn stays paused until an update succeeds."""
        self._is_paused = False
        if not self._failure:
            await self._call(self._llm.resume_generation())

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Take a whole model or an adapter, and drop every cached prefix.

        A whole model falls between two tokens: running requests are read again under the new weights, so later
        log-probs are those of the new weights. An adapter is for requests that come later; running ones keep theirs.
        Pauses by itself where the caller has not.

        Returns:
            The version, the checksum of what arrived, and the engine's dtype.

        Raises:
            EngineError: the version is not newer, or the weights do not fit; then the old weights serve on, and the
                text says so. After any other failure nothing is served until an update succeeds.
            EngineClosed: the engine was closed.
        """
        if self._is_closed:
            raise EngineClosed("the engine was closed; weights cannot be updated")
        async with self._update_lock:
            if manifest.version <= self._version:
                raise EngineError(
                    f"weights of version {manifest.version} came, but the engine has version {self._version}; "
                    f"versions must grow. {OLD_WEIGHTS_SERVE}"
                )
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
        """Say whether requests can be served; a paused engine can, later."""
        is_dead = not self._is_closed and self._llm.errored
        num_running = min(len(self._running), self.config.max_slots)
        return EngineHealth(
            is_ready=not (self._is_closed or self._failure or is_dead),
            version=self._version,
            num_running=num_running,
            num_waiting=len(self._running) - num_running,
        )

    async def close(self) -> None:
        """Fail every request with `EngineClosed` and end vLLM's processes; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._watcher.cancel()
        await self._abort_all()
        llm, self._llm, self._sender = self._llm, None, None
        if llm.output_handler is not None:
            llm.output_handler.cancel()  # or it takes the end of the engine process for a failure
        await asyncio.to_thread(llm.shutdown, _CLOSE_TIMEOUT_S)
        if self._adapters is not None:
            self._adapters.close()

    async def _final_output(
        self, request: dict[str, Any], fields: dict[str, Any], *, session_id: str, deadline_s: float, adapter: Any
    ) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError  # pyright: ignore[reportMissingImports]

        params = self._sampling_class(**fields, **self._final_only)
        request_id = f"{session_id}-{next(self._count)}"
        lora = None if adapter is None else _lora_request(adapter)
        scope = asyncio.timeout(deadline_s)
        output: Any = None
        try:
            async with scope:
                self._running[request_id] = scope
                # cancelled here, vLLM's generator aborts the request in the engine
                async for answer in self._llm.generate(request, params, request_id, lora_request=lora):
                    output = answer
        except TimeoutError:
            if not scope.expired():
                raise
            self._refuse_if_unusable()
            if self._llm.errored:
                raise EngineError(_DIED) from None
            raise DeadlineExceeded(
                "engine", "VLLMEngine.generate", f"no completion within {deadline_s:g} s (session {session_id!r})"
            ) from None
        except EngineDeadError as error:
            self._refuse_if_unusable()
            raise EngineError(_DIED) from error
        except Exception as error:  # whatever vLLM raises about one request
            self._refuse_if_unusable()
            raise EngineError(f"vLLM failed on a request: {describe(error.__cause__ or error)}") from error
        finally:
            self._running.pop(request_id, None)
        self._refuse_if_unusable()
        return output

    async def _update_model(self, manifest: WeightManifest) -> Ack:
        from agentenv.engine.vllm_sync import WeightSender

        dtype = str(self._llm.model_config.dtype).removeprefix("torch.")
        if self._sender is None:
            self._sender = WeightSender(_Control(self._llm), backend=weight_backend(self.config), dtype=dtype)
        try:
            checksum = await self._sender.send(manifest)
            # while paused: running requests give up their keys and values and are read again after `resume`
            await self._llm.reset_prefix_cache(reset_running_requests=True)
            if self._facts.image_token_id is not None:
                await self._llm.reset_encoder_cache()
        except BaseException as error:
            is_harmless = not self._sender.has_begun or OLD_WEIGHTS_SERVE in str(error)
            if not is_harmless:
                await self._break(f"weight update to version {manifest.version} failed: {describe(error)}")
            if not isinstance(error, Exception) or isinstance(error, UsageError):
                raise
            raise EngineError(update_failure(manifest.version, error, is_harmless=is_harmless)) from error
        self._version = manifest.version
        self._failure = ""
        if self._adapters is not None:
            await self._adapters.clear()
        return Ack(version=self._version, checksum=checksum, dtype=dtype)

    async def _update_adapter(self, manifest: WeightManifest) -> Ack:
        from agentenv.engine.vllm_adapters import AdapterShelf

        if self._llm.vllm_config.lora_config is None:
            raise EngineError(f"an adapter came, but {NO_ADAPTERS}")
        if self._adapters is None:
            self._adapters = AdapterShelf(load=self._load_adapter, unload=self._unload_adapter)
        checksum = await self._adapters.put(manifest)
        self._version = manifest.version
        await self._call(self._llm.update_weight_version(str(manifest.version)))
        return Ack(version=self._version, checksum=checksum)

    async def _load_adapter(self, adapter: Any) -> None:
        if not await self._call(self._llm.add_lora(_lora_request(adapter))):
            raise EngineError(f"vLLM did not load the adapter of version {adapter.version}")

    async def _unload_adapter(self, adapter: Any) -> None:
        await self._call(self._llm.remove_lora(adapter.number))

    async def _watch(self) -> None:
        """End all waits once the engine process is dead; vLLM does so only after it has cleaned up, in its own time."""
        while not self._llm.errored:  # noqa: ASYNC110 - a flag is all that vLLM has
            await asyncio.sleep(_WATCH_S)
        for scope in list(self._running.values()):
            with contextlib.suppress(RuntimeError):  # it is just ending
                scope.reschedule(0)

    async def _break(self, failure: str) -> None:
        """Serve nothing from now on, and fail what waits; vLLM is paused."""
        self._failure = failure
        await self._abort_all()

    async def _abort_all(self) -> None:
        if self._running and not self._llm.errored:
            await self._llm.abort(list(self._running))

    async def _call(self, call: Coroutine[Any, Any, T]) -> T:
        """Wait for a call into vLLM that belongs to no request."""
        if self._is_closed:
            call.close()
            raise EngineClosed("the engine was closed; make a new one")
        try:
            return await call
        except Exception as error:  # whatever vLLM raises
            raise EngineError(f"vLLM failed: {describe(error)}") from error

    def _refuse_if_unusable(self) -> None:
        if self._is_closed:
            raise EngineClosed("the engine was closed; make a new one")
        if self._failure:
            raise EngineError(f"the engine serves nothing until a weight update succeeds: {self._failure}")


class _Control:
    """vLLM's weight transfer verbs, in process; see `WeightControl`."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    async def init_transfer(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
            WeightTransferInitRequest,
        )

        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def start_update(self) -> None:
        await self._llm.start_weight_update()

    async def update(self, update_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
            WeightTransferUpdateRequest,
        )

        await self._llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def finish_update(self, version: str) -> None:
        await self._llm.finish_weight_update(version)

    async def num_workers(self) -> int:
        return self._llm.vllm_config.parallel_config.world_size_across_dp


def _import_vllm() -> ModuleType:
    """Return the package, or say how to get it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # read by vLLM when it is imported
    try:
        vllm: Any = importlib.import_module("vllm")
    except ImportError as error:
        raise UsageError(f"vLLM cannot be imported here ({describe(error)}); {INSTALL}") from error
    check_version(vllm.__version__)
    return vllm


def _start(arguments: dict[str, Any]) -> list[Any]:
    """Return a running AsyncLLM, alone in a list; blocks for half a minute.

    vLLM keeps exceptions of its start, whose frames would hold what this thread returns to the program's end.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]

    check_options(list(arguments), [field.name for field in dataclasses.fields(AsyncEngineArgs)])
    try:
        with owned_processes():
            return [AsyncLLM.from_engine_args(AsyncEngineArgs(**{"disable_log_stats": True, **arguments}))]
    except Exception as error:  # whatever vLLM raises while it starts; its own log has the details
        raise EngineError(f"vLLM did not start: {describe(error)}") from error


def _shut_down_late(starting: asyncio.Task[list[Any]]) -> None:
    """End an engine that came up after nobody waited for it any more."""
    if not starting.cancelled() and starting.exception() is None:
        starting.result().pop().shutdown()


def _request_types() -> tuple[Any, dict[str, Any]]:
    """Return vLLM's SamplingParams and the fields that make one answer per request, with flat log-probs."""
    module: Any = importlib.import_module("vllm.sampling_params")
    final_only = module.RequestOutputKind.FINAL_ONLY
    return module.SamplingParams, {"output_kind": final_only, "flat_logprobs": True, "skip_clone": True}


def _lora_request(adapter: Any) -> Any:
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    return LoRARequest(lora_name=adapter.name, lora_int_id=adapter.number, lora_path=str(adapter.folder.path))


def _decoded(image: Image) -> Any:
    try:
        from PIL import Image as Pictures
    except ImportError as error:
        raise UsageError('pictures need pillow; run `pip install "agentenv[vision]"`') from error
    try:
        return Pictures.open(io.BytesIO(image.data)).convert("RGB")
    except OSError as error:
        raise EngineError(f"a picture of {len(image.data)} bytes cannot be read: {describe(error)}") from error


def _completion(output: Any, *, adapter_version: int | None) -> Completion:
    """Read vLLM's answer.

    Args:
        output: its RequestOutput.
        adapter_version: of the adapter that sampled all tokens; None where the model itself did.
    """
    answer = output.outputs[0]
    finish = _FINISH.get(answer.finish_reason)
    if finish is None:
        raise EngineError(f"vLLM ended a request with finish reason {answer.finish_reason!r}")
    token_ids = list(answer.token_ids)
    if adapter_version is None:
        spans = tuple(
            VersionSpan(version=int(span.version), start=span.start, end=span.end)
            for span in answer.weight_versions or ()
        )
    else:
        spans = (VersionSpan(version=adapter_version, start=0, end=len(token_ids)),)
    return Completion(
        token_ids=token_ids,
        logprobs=answer.logprobs.logprobs if token_ids else [],
        finish_reason=finish,
        weight_versions=spans,
        num_cached_tokens=output.num_cached_tokens or 0,
    )

"""The embedded engine: continuous batching over a static cache of slots, in process, for any Hugging Face causal LM.

One asyncio task on the caller's event loop runs a forward pass inline and then lets the other tasks run, so with inline
environments a whole run is a deterministic function of seeds and request order.

Shapes: N slots that sample in a step, V vocabulary.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from agentenv.config import Config
from agentenv.engine.decoder import make_decoder
from agentenv.engine.kv_cache import SlotCache
from agentenv.engine.protocol import (
    Ack,
    Completion,
    EngineHealth,
    FinishReason,
    PauseMode,
    SamplingParams,
    WeightManifest,
)
from agentenv.engine.sampling import draw, seed_state
from agentenv.engine.slots import Request, SlotTable
from agentenv.engine.step import Step, StepPlanner
from agentenv.engine.weights import load_causal_lm, load_weights, named_weights, weights_checksum
from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError, ModelError, describe
from agentenv.messages import Image

__all__ = ["HFEngine", "HFEngineConfig", "weights_checksum"]

IntArray = npt.NDArray[np.int64]

_OWN_SEED = 0  # of requests that bring none
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class HFEngineConfig(Config):
    """The embedded engine."""

    max_step_tokens: ClassVar[int] = 4096
    """Tokens of one forward pass besides one per slot; longer prompts are read over several."""
    shares_prefixes: ClassVar[bool] = True
    """Copy what another request already computed of the same prompt start, as the episodes of a group have it."""

    name: Literal["hf"] = "hf"
    """Which engine."""
    max_length: int = Field(default=2048, ge=2)
    """Tokens of prompt and output together, at most."""
    max_slots: int = Field(default=64, ge=1)
    """Requests that run at once; further ones wait. Idle slots keep their session's prefix."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Of weights and cache; auto keeps the model's."""
    device: str = "auto"
    """Where to run: auto is the model's own device, or the first GPU for a model loaded from a folder."""


class HFEngine:
    """Serves one Hugging Face causal LM. Implements `agentenv.engine.protocol.Engine`.

    Args:
        model: any causal LM whose attention goes through transformers' attention interface. It is copied, unless
            `keeps_model` is set.
        config: limits, dtype, device.
        version: version of the weights that `model` has.
        keeps_model: the caller hands the model over; it is changed and must not be used elsewhere.

    Raises:
        ModelError: the architecture cannot be served, or `max_length` exceeds the model's positions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        config: HFEngineConfig | None = None,
        version: int = 0,
        keeps_model: bool = False,
    ) -> None:
        self.config = HFEngineConfig() if config is None else config
        _check_positions(model, max_length=self.config.max_length)
        self._model = _prepared(model if keeps_model else copy.deepcopy(model), config=self.config)
        self._decoder = make_decoder(self._model, max_length=self.config.max_length)
        embedding: Any = self._model.get_input_embeddings()
        self.vocab_size: int = embedding.weight.shape[0]
        self._version = version
        limits = {"max_slots": self.config.max_slots, "max_length": self.config.max_length}
        self._cache = SlotCache(**limits)
        self._slots = SlotTable(**limits)
        self._waiting: deque[Request] = deque()
        self._planner = StepPlanner(
            slots=self._slots,
            cache=self._cache,
            max_step_tokens=max(self.config.max_step_tokens, self.config.max_slots + 1),  # prompts are always read on
            shares_prefixes=self.config.shares_prefixes,
            vocab_size=self.vocab_size,
            device=embedding.weight.device,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._num_requests = 0
        self._num_admitted = 0
        self._is_paused = False
        self._is_closed = False
        self._failure = ""

    @classmethod
    def from_pretrained(cls, path: str | Path, *, config: HFEngineConfig | None = None, version: int = 0) -> HFEngine:
        """Load a model folder and serve it.

        Raises:
            ModelError: the folder cannot be loaded, or the architecture cannot be served.
        """
        config = HFEngineConfig() if config is None else config
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load_causal_lm(path, dtype=_DTYPES.get(config.dtype), device=device)
        return cls(model, config=config, version=version, keeps_model=True)

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
            EngineError: pictures came, the prompt is empty, too long or holds an id outside the vocabulary, or the
                engine failed.
            EngineClosed: the engine was closed.
            DeadlineExceeded: after `deadline_s` seconds, waiting and pauses included.
        """
        self._refuse_if_unusable()
        if images:
            raise EngineError(
                f"{len(images)} pictures came; the embedded engine serves text models, take vllm or sglang"
            )
        self._follow_loop()
        request = self._new_request(prompt_ids, sampling, session_id=session_id)
        self._waiting.append(request)
        self._wake()
        try:
            async with asyncio.timeout(deadline_s):
                return await request.result
        except TimeoutError:
            raise DeadlineExceeded(
                "engine", "HFEngine.generate", f"no completion within {deadline_s:g} s (session {session_id!r})"
            ) from None
        finally:
            self._drop(request)

    async def end_session(self, session_id: str) -> None:
        """Give up the session's cached prefix; unknown sessions are ignored."""
        self._slots.end_session(session_id)

    async def forget_prefixes(self) -> None:
        """Drop every cached prefix; running requests read their tokens again. An idle engine is then as good as new."""
        self._slots.forget_cache()
        if not self._slots.num_running:
            self._slots.clear()
            self._cache.free()

    async def pause(self, mode: PauseMode = "abort") -> None:
        """Stop generating.

        Args:
            mode: `"abort"` ends running requests with what they have; `"keep"` continues them after `resume`.
                Requests that wait for a slot stay in line in both modes.
        """
        self._is_paused = True
        if mode == "abort":
            for slot, _ in self._slots.running():
                self._finish(slot, finish_reason="abort")

    async def resume(self) -> None:
        """Go on after `pause`."""
        self._is_paused = False
        self._wake()

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Copy new weights in and drop every cached prefix.

        The change falls between two tokens. Running requests are read again under the new weights, so later
        log-probs are those of the new weights, and their completion says which version sampled which token. A failed
        engine serves again after a successful update.

        Returns:
            The version, and `weights_checksum` of the weights as the engine holds them.

        Raises:
            EngineError: the version is not newer, names or shapes differ, or a weight is not finite. Nothing changed.
            EngineClosed: the engine was closed.
        """
        if self._is_closed:
            raise EngineClosed("the engine was closed; weights cannot be updated")
        if manifest.version <= self._version:
            raise EngineError(
                f"weights of version {manifest.version} came, but the engine has version {self._version}; "
                "versions must grow"
            )
        load_weights(self._model, manifest.tensors)
        self._decoder.refresh()
        self._version = manifest.version
        self._failure = ""
        self._slots.forget_cache()
        for slot, request in self._slots.running():
            request.versions.append((self._version, int(self._slots.length_S[slot] - self._slots.prompt_S[slot])))
        own = named_weights(self._model)
        dtype = str(self._model.dtype).removeprefix("torch.")
        return Ack(version=self._version, checksum=weights_checksum(own), dtype=dtype)

    def held_weights(self) -> Mapping[str, Tensor]:
        """Return the weights that are served, by their name and by reference; do not change them."""
        return named_weights(self._model)

    async def health(self) -> EngineHealth:
        """Say whether requests can be served; a paused engine can, later."""
        return EngineHealth(
            is_ready=not self._is_closed and not self._failure,
            version=self._version,
            num_running=self._slots.num_running,
            num_waiting=len(self._waiting),
        )

    async def close(self) -> None:
        """Fail every request with `EngineClosed` and free the cache; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._fail_all(EngineClosed("the engine was closed while this request was in it"))
        self._cache.free()

    def _refuse_if_unusable(self) -> None:
        if self._is_closed:
            raise EngineClosed("the engine was closed; make a new one")
        if self._failure:
            raise EngineError(f"the engine failed earlier ({self._failure}); update its weights or make a new one")

    def _new_request(self, prompt_ids: Sequence[int], sampling: SamplingParams, *, session_id: str) -> Request:
        prompt = _checked_prompt(prompt_ids, vocab_size=self.vocab_size, max_length=self.config.max_length)
        self._num_requests += 1
        state = seed_state(_OWN_SEED, stream=self._num_requests)
        return Request(
            prompt_ids=prompt,
            sampling=sampling,
            session_id=session_id,
            seed_state=state if sampling.seed is None else seed_state(sampling.seed),
            result=asyncio.get_running_loop().create_future(),
        )

    def _follow_loop(self) -> None:
        """Leave behind what an event loop that is gone never finished: nobody can wait for it any more."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._task = None
            self._waiting.clear()
            for slot, _ in self._slots.running():
                self._slots.release(slot)

    def _wake(self) -> None:
        """Start the step loop unless it runs."""
        if self._task is None and self._has_work():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="hf engine")

    def _has_work(self) -> bool:
        is_stopped = self._is_paused or self._is_closed or bool(self._failure)
        return not is_stopped and (self._slots.num_running > 0 or len(self._waiting) > 0)

    async def _run(self) -> None:
        """The step loop; it ends when nothing is left to do, and `_wake` starts the next one."""
        task = asyncio.current_task()
        try:
            while self._task is task and self._has_work():
                try:
                    self._step()
                except Exception as error:  # whatever a model raises must reach those who wait for it
                    self._break(error)
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            if self._task is task:
                self._fail_all(EngineError("the engine's event loop was shut down while this request was in it"))
            raise
        finally:
            if self._task is task:
                self._task = None

    def _step(self) -> None:
        """Admit, run one forward pass, sample, finish."""
        while self._waiting and self._slots.has_room:
            self._admit(self._waiting.popleft())
        if not self._slots.num_running:
            return
        moves = self._slots.compact()
        with torch.inference_mode():
            if moves is not None:
                self._cache.move(moves.source, moves.target, num_places=moves.num_places)
            step = self._planner.next_step()
            logit_NV = self._decoder.forward(
                step.token_T, position_T=step.position_T, plan=step.plan, select_N=step.select_N
            )
            self._slots.computed_S[step.slots] += step.advances
            if len(step.sampled_N):
                self._sample(logit_NV, step)

    def _admit(self, request: Request) -> None:
        self._num_admitted += 1
        request.arrival = self._num_admitted
        request.versions.append((self._version, 0))
        self._slots.admit(request, max_length=self.config.max_length)

    def _sample(self, logit_NV: Tensor, step: Step) -> None:
        """Draw a token for every slot that is up to date, and finish those that are done."""
        slot_N = step.sampled_N
        drawn_N, drawn_logprob_N = draw(logit_NV, step.rows, uniform_B=step.uniform_UN[step.age])
        self._planner.note_drawn(drawn_N)
        token_N, logprob_N = _to_host(drawn_N, drawn_logprob_N)
        is_bad_N = ~np.isfinite(logprob_N)
        if is_bad_N.any():
            for slot in slot_N[is_bad_N].tolist():
                self._fail_slot(slot)
            slot_N, token_N, logprob_N = slot_N[~is_bad_N], token_N[~is_bad_N], logprob_N[~is_bad_N]
        stopped, full = self._slots.record(slot_N, token_R=token_N, logprob_R=logprob_N)
        for slot in stopped.tolist():
            self._finish(slot, finish_reason="stop")
        for slot in full.tolist():
            self._finish(slot, finish_reason="length")

    def _finish(self, slot: int, *, finish_reason: FinishReason) -> None:
        completion = self._slots.completion(slot, finish_reason=finish_reason)
        request = self._slots.release(slot)
        if not request.result.done():
            request.result.set_result(completion)

    def _fail_slot(self, slot: int) -> None:
        """End one request whose logits are not finite, and leave nothing of it in the cache."""
        position = int(self._slots.length_S[slot])
        self._slots.computed_S[slot] = 0
        self._cache.erase(slot)
        request = self._slots.release(slot)
        if not request.result.done():
            request.result.set_exception(
                EngineError(f"the model's logits at position {position} are not finite; its weights are broken")
            )

    def _break(self, error: Exception) -> None:
        """Fail everything after a forward pass raised; the engine says so in `health` until weights come."""
        self._failure = describe(error)
        failure = EngineError(f"the engine's forward pass failed: {self._failure}")
        failure.__cause__ = error
        self._fail_all(failure)

    def _fail_all(self, error: EngineError) -> None:
        running = [self._slots.release(slot) for slot, _ in self._slots.running()]
        for request in (*running, *self._waiting):
            if not request.result.done():
                request.result.set_exception(error)
        self._waiting.clear()
        # a pass may have died half-way through writing the cache
        self._slots.forget_cache()
        self._cache.free()

    def _drop(self, request: Request) -> None:
        """Take a request out at once, wherever it is; one that has ended is nowhere."""
        if request.result.done() and not request.result.cancelled():
            return
        for slot, running in self._slots.running():
            if running is request:
                self._slots.release(slot)
                return
        if request in self._waiting:
            self._waiting.remove(request)


def _check_positions(model: PreTrainedModel, *, max_length: int) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise ModelError(
            f"max_length is {max_length}, but {type(model).__name__} has {positions} positions; "
            f"set max_length to at most {positions}"
        )


def _prepared(model: PreTrainedModel, *, config: HFEngineConfig) -> PreTrainedModel:
    """Return the model in evaluation mode, without gradients, in the dtype and on the device of the config."""
    movable: Any = model
    if config.dtype != "auto":
        movable = movable.to(_DTYPES[config.dtype])
    if config.device != "auto":
        movable = movable.to(config.device)
    movable.zero_grad(set_to_none=True)
    return movable.requires_grad_(False).eval()


def _checked_prompt(prompt_ids: Sequence[int], *, vocab_size: int, max_length: int) -> IntArray:
    prompt = np.asarray(prompt_ids)
    if prompt.ndim != 1 or len(prompt) == 0 or prompt.dtype.kind not in "iu":
        raise EngineError(
            f"prompt_ids has shape {prompt.shape} and dtype {prompt.dtype}; a non-empty list of integers is needed"
        )
    is_outside = (prompt < 0) | (prompt >= vocab_size)
    if is_outside.any():
        position = int(is_outside.argmax())
        raise EngineError(
            f"prompt_ids[{position}] is {prompt[position]}; ids must lie in [0, {vocab_size}). "
            "Do tokenizer and model belong together?"
        )
    if len(prompt) >= max_length:
        raise EngineError(
            f"the prompt has {len(prompt)} tokens, but max_length is {max_length} for prompt and output together; "
            "shorten the prompt or raise max_length"
        )
    return prompt.astype(np.int64)


def _to_host(token_N: Tensor, logprob_N: Tensor) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """Bring both to the host in one transfer, which is the step's only synchronisation."""
    if token_N.device.type == "cpu":
        return token_N.numpy(), logprob_N.numpy()
    # ids are exact in float64
    both = torch.stack((token_N.double(), logprob_N.double())).cpu().numpy()
    return both[0].astype(np.int64), both[1].astype(np.float32)

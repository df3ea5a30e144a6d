"""What both ways of driving SGLang have in common: the engine's verbs over a transport."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agentenv.engine.protocol import Ack, Completion, EngineHealth, PauseMode, SamplingParams, WeightManifest
from agentenv.engine.server_config import ServerConfig
from agentenv.engine.sglang_protocol import (
    RequestIds,
    ServerFacts,
    SGLangLoad,
    SGLangTransport,
    check_prompt,
    generate_body,
    parse_version,
    read_completion,
)
from agentenv.engine.sglang_update import Proof, WeightUpdates
from agentenv.errors import AgentEnvError, DeadlineExceeded, EngineClosed, EngineError, UsageError
from agentenv.messages import Image

CONTROL_TIMEOUT_S = 60.0
"""For pausing, resuming and flushing."""

ABORT_TIMEOUT_S = 5.0
"""For telling SGLang that an answer is no longer wanted."""


class SGLangVerbs:
    """One SGLang. Implements `agentenv.engine.protocol.Engine`.

    Args:
        transport: the way to it; closed with this engine.
        facts: what it said about itself.
        config: limits, and how weights travel.
        host: its address, as seen from here.
        is_own: True where it was started by us, on this machine.
    """

    def __init__(
        self, transport: SGLangTransport, *, facts: ServerFacts, config: ServerConfig, host: str, is_own: bool
    ) -> None:
        self.facts = facts
        self.vocab_size = facts.vocab_size
        self.proof = Proof()
        """What the last weight update proved."""
        self.transport = transport
        self._updates = WeightUpdates(transport, facts=facts, sync=config.weight_sync, host=host, is_own=is_own)
        self._version = parse_version(facts.weight_version)
        self._ids = RequestIds()
        self._in_flight: set[str] = set()
        self._aborts: set[asyncio.Task[None]] = set()
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._updating = asyncio.Lock()
        self._torn = ""
        self._is_closed = False

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

        SGLang stops at the model's own end-of-text ids too, wherever stop ids are given.

        Raises:
            EngineError: the prompt is empty, too long or holds an id outside the vocabulary, the weights are half
                updated, or SGLang failed or answered what must not be trained on.
            EngineClosed: the engine was closed.
            DeadlineExceeded: after `deadline_s` seconds, pauses included; the request is aborted.
        """
        self._refuse_if_unusable()
        ids = check_prompt(prompt_ids, facts=self.facts)
        request_id = self._ids.next()
        body = generate_body(ids, sampling, request_id=request_id, facts=self.facts, images=images)
        scope = asyncio.timeout(deadline_s)
        try:
            async with scope:
                # a request that reaches a paused SGLang cannot be aborted, so it waits here
                await self._is_open.wait()
                self._refuse_if_unusable()
                version = self._version
                self._in_flight.add(request_id)
                answer = await self.transport.generate(body, deadline_s=deadline_s)
        except (TimeoutError, DeadlineExceeded) as error:
            self._abort_soon(request_id)
            if isinstance(error, TimeoutError) and not scope.expired():
                raise
            raise DeadlineExceeded(
                "engine", "SGLang generate", f"no completion within {deadline_s:g} s (session {session_id!r})"
            ) from None
        except asyncio.CancelledError:
            self._abort_soon(request_id)
            raise
        except EngineError as error:
            if self._is_closed:
                raise EngineClosed("the engine was closed while this request was in it") from error
            raise
        finally:
            self._in_flight.discard(request_id)
        self._refuse_if_closed()
        return read_completion(answer, num_prompt_tokens=len(ids), facts=self.facts, version=version)

    async def end_session(self, session_id: str) -> None:
        """Do nothing: SGLang's cache is a tree of prefixes that forgets the least used first."""

    async def forget_prefixes(self) -> None:
        """Drop every cached prefix; running requests are read again.

        Raises:
            EngineError: SGLang refused, or is gone.
        """
        if await self.transport.flush_cache():
            return
        was_open = self._is_open.is_set()
        await self.pause("keep")
        try:
            if not await self.transport.flush_cache():
                raise EngineError("SGLang would not drop its prefix cache, though it is paused")
        finally:
            if was_open:
                await self.resume()

    async def pause(self, mode: PauseMode = "abort") -> None:
        """Stop generating.

        Args:
            mode: `"abort"` ends running requests with what they have; `"keep"` takes them back into the queue, and
                reads them again after `resume`, under the weights that are then there.
        """
        self._refuse_if_closed()
        was_open = self._is_open.is_set()
        self._is_open.clear()
        try:
            await self._control("pause_generation", {"mode": "retract" if mode == "keep" else "abort"})
        except BaseException:
            if was_open:
                self._is_open.set()
            raise

    async def resume(self) -> None:
        """Go on after `pause`.

        Raises:
            EngineError: the weights are half updated; SGLang stays paused until an update succeeds.
        """
        self._refuse_if_closed()
        if self._torn:
            raise EngineError(f"SGLang stays paused, {self._torn}; update its weights again or start a new one")
        await self._control("continue_generation", {})
        self._is_open.set()

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Send new weights, drop the prefix cache, and prove what arrived; pauses and resumes unless it is paused.

        Requests that run are taken back and read again under the new weights, so their later log-probs are those of
        the new weights, and their completion says which version sampled which token.

        Returns:
            The version, and `weights_checksum` of what was sent in the dtype in which SGLang holds it. `proof` says
            how many of its parameters were found bit-equal to that.

        Raises:
            EngineError: the version is not newer, another trainer set one in between, or names, shapes or values do
                not fit: nothing changed. Or the transfer failed: SGLang stays paused, and serves nothing.
            UsageError: an adapter came.
            EngineClosed: the engine was closed.
        """
        self._refuse_if_closed()
        if manifest.adapter is not None:
            raise UsageError(
                "SGLang takes no LoRA adapters here: its LoRA does not run on CPU, where this could be checked; "
                "merge the adapter and send whole weights, or take vllm"
            )
        async with self._updating:
            await self._refuse_stale(manifest.version)
            weights = await self._updates.prepare(manifest.tensors)
            was_open = self._is_open.is_set()
            if was_open:
                await self.pause("keep")
            try:
                if self._torn:
                    await self._updates.abandon()
                await self._updates.begin(weights)
            except BaseException:
                if was_open:
                    await self.resume()
                raise
            self._torn = f"its update to version {manifest.version} broke off"
            try:
                await self._updates.load(weights, version=manifest.version)
            except BaseException:
                await self._updates.abandon()
                raise
            await self._updates.end(weights)
            self.proof = await self._updates.verify(weights, version=manifest.version)
            self._version = manifest.version
            self._torn = ""
            if was_open:
                await self.resume()
            return Ack(version=manifest.version, checksum=weights.checksum, dtype=self.facts.dtype)

    async def health(self) -> EngineHealth:
        """Say whether requests can be served; a paused engine can, later.

        It asks for the version, which a paused SGLang answers at once; its own health check would generate a token,
        and wait 20 s for it.
        """
        is_ready = not self._is_closed and not self._torn
        load: SGLangLoad | None = None
        if is_ready:
            try:
                await self.transport.weight_version()
                load = await self.transport.load()
            except AgentEnvError:
                is_ready = False
        if load is None:
            return EngineHealth(
                is_ready=is_ready, version=self._version, num_running=len(self._in_flight), num_waiting=0
            )
        return EngineHealth(
            is_ready=is_ready,
            version=self._version,
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            cache_use=load.cache_use,
        )

    async def close(self) -> None:
        """Abort what is in flight, let SGLang go on if it was paused here, and let go of it; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        was_open = self._is_open.is_set()
        self._is_open.set()  # those who wait find it closed
        for request_id in self._in_flight:
            self._abort_soon(request_id)
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                if self._aborts:
                    await asyncio.wait(set(self._aborts))
                await self._updates.close()
                if not was_open and not self._torn:
                    await self._control("continue_generation", {})
        except (TimeoutError, AgentEnvError):
            pass  # it is gone, or does not answer: there is nothing left to tidy
        finally:
            await self.transport.close()

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise EngineClosed("the engine was closed; make a new one")

    def _refuse_if_unusable(self) -> None:
        self._refuse_if_closed()
        if self._torn:
            raise EngineError(f"SGLang serves nothing, {self._torn}; update its weights again or start a new one")

    async def _refuse_stale(self, version: int) -> None:
        if version <= self._version:
            raise EngineError(
                f"weights of version {version} came, but SGLang has version {self._version}; versions must grow"
            )
        served = parse_version(await self.transport.weight_version())
        if served != self._version and not self._torn:
            raise EngineError(
                f"SGLang serves weights of version {served}, this trainer gave it {self._version}: another one updates "
                "it too; give every trainer an engine of its own"
            )

    def _abort_soon(self, request_id: str) -> None:
        """Tell SGLang, without making whoever was cancelled wait for it."""
        if request_id not in self._in_flight:
            return
        task = asyncio.get_running_loop().create_task(self._abort(request_id))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def _abort(self, request_id: str) -> None:
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                await self.transport.abort(request_id)
        except (TimeoutError, AgentEnvError):
            pass  # the connection is closed as well, which SGLang notices by itself, a little later

    async def _control(self, verb: str, body: dict[str, object]) -> None:
        await self.transport.control(verb, body, deadline_s=CONTROL_TIMEOUT_S)

"""The steps by which new weights enter one SGLang: session, transfer, version, proof; each with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agentenv.engine.server_config import WeightSync
from agentenv.engine.sglang_protocol import ServerFacts, SGLangTransport, parse_version
from agentenv.errors import AgentEnvError, EngineError, UsageError
from agentenv.offload import within

if TYPE_CHECKING:  # torch stays out until weights are sent
    from agentenv.engine.sglang_weights import PreparedWeights
    from agentenv.engine.weight_group import WeightGroup

STEP_TIMEOUT_S = 100.0
"""For every step of an update; less than the trainer allows for the whole."""

Way = Literal["tensor", "disk", "gloo", "nccl"]

_ABANDON_TIMEOUT_S = 5.0
_DISK_BYTES = 512 << 20  # above, writing to shared memory beats base64 in JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What is known of the weights after an update, beyond that SGLang reported success and serves the new version.

    Attributes:
        num_parameters: that SGLang summed; 0 where its sums cannot be recomputed (on GPUs and with several ranks).
        num_proven: whose bits were found equal to what was sent.
    """

    num_parameters: int = 0
    num_proven: int = 0


class WeightUpdates:
    """Brings new weights into one SGLang. The caller has paused it.

    Args:
        transport: the way to it.
        facts: what it is.
        sync: how weights travel; see `way`.
        host: its address, as seen from here.
        is_own: True where it was started by us, on this machine.
    """

    def __init__(
        self, transport: SGLangTransport, *, facts: ServerFacts, sync: WeightSync, host: str, is_own: bool
    ) -> None:
        if sync in ("shm", "ipc"):
            raise UsageError(f"weight_sync is {sync}, which vLLM has; SGLang takes auto, tensor, disk, gloo or nccl")
        if sync == "nccl" and facts.device == "cpu":
            raise UsageError("weight_sync is nccl, which needs GPUs, but SGLang runs on CPU; take auto, tensor or gloo")
        self._transport = transport
        self._facts = facts
        self._sync: WeightSync = sync
        self._host = host
        self._is_own = is_own
        self._group: WeightGroup | None = None
        self._shapes: Mapping[str, tuple[int, ...]] | None = None

    async def prepare(self, tensors: Mapping[str, object]) -> PreparedWeights:
        """Check and cast the trainer's tensors; nothing is sent.

        Raises:
            EngineError: they do not fit the model.
        """
        from agentenv.engine.sglang_weights import checkpoint_shapes, prepare_weights

        if self._shapes is None:
            # vision-language models load under other names than transformers gives them
            self._shapes = {} if self._facts.takes_images else checkpoint_shapes(self._facts.model_path)
        parameters: Mapping[str, str] = {}
        if not self._shapes:
            parameters = _sums(await self._control("weights_checker", {"action": "checksum"}))
        return await asyncio.to_thread(
            prepare_weights, tensors, dtype=self._facts.dtype, shapes=self._shapes, parameters=parameters
        )

    async def begin(self, weights: PreparedWeights) -> None:
        """Do what must stand before the first byte; a failure has changed nothing.

        Raises:
            EngineError: another update is under way, or no process group came about.
        """
        way = self.way(weights)
        if way in ("gloo", "nccl") and self._group is None:
            await self._join(way)
        if self._has_session(way):
            await self._control("begin_weight_update", {})

    async def load(self, weights: PreparedWeights, *, version: int) -> None:
        """Send everything; the last piece carries the version and drops the prefix cache.

        Raises:
            EngineError: a piece did not arrive. SGLang may hold a mixture.
        """
        way = self.way(weights)
        if way == "disk":
            await self._load_from_disk(weights, version=version)
            return
        buckets = list(weights.buckets())
        for index, bucket in enumerate(buckets):
            is_last = index == len(buckets) - 1
            last: dict[str, object] = {"weight_version": str(version)} if is_last else {}
            options = {"flush_cache": is_last, **last}
            if way == "tensor":
                await self._load_tensors(bucket, options)
            else:
                await self._load_broadcast(bucket, options)

    async def end(self, weights: PreparedWeights) -> None:
        """Close the session: SGLang brings what came into the form that it computes with."""
        if self._has_session(self.way(weights)):
            await self._control("end_weight_update", {})

    async def abandon(self) -> None:
        """Close a session that may have stayed open, which would refuse the next one."""
        if self._facts.has_update_session:
            with contextlib.suppress(AgentEnvError):  # it was closed, or SGLang is gone
                await self._transport.control("end_weight_update", {}, deadline_s=_ABANDON_TIMEOUT_S)

    async def verify(self, weights: PreparedWeights, *, version: int) -> Proof:
        """Ask SGLang what it holds now.

        Raises:
            EngineError: another version, or other bits than were sent.
        """
        served = parse_version(await self._transport.weight_version())
        if served != version:
            raise EngineError(f"SGLang serves weights of version {served} after an update to {version}")
        if self._facts.device != "cpu" or self._facts.tp_size != 1:
            return Proof()
        from agentenv.engine.sglang_weights import unproven_names

        answer = await self._control("weights_checker", {"action": "checksum"})
        sums = _sums(answer)
        differing, unknown = await asyncio.to_thread(unproven_names, weights.tensors, sums)
        if differing:
            raise EngineError(
                f"SGLang holds other weights than version {version} that was sent: {', '.join(differing[:5])}"
                + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
            )
        if len(unknown) == len(sums):
            raise EngineError(
                f"SGLang holds nothing that goes by a name of version {version}, e.g. {unknown[0]} is its own"
            )
        return Proof(num_parameters=len(sums), num_proven=len(sums) - len(unknown))

    async def close(self) -> None:
        """Give the process group up; idempotent."""
        group, self._group = self._group, None
        if group is not None:
            try:
                await self._control("destroy_weights_update_group", {"group_name": group.name})
            finally:
                group.leave()

    def way(self, weights: PreparedWeights) -> Way:
        """How these weights travel: with `auto`, inside requests, or by shared memory to an engine of ours if large."""
        if self._sync == "auto":
            return "disk" if self._is_own and weights.num_bytes > _DISK_BYTES else "tensor"
        assert self._sync not in ("shm", "ipc")
        return self._sync

    def _has_session(self, way: Way) -> bool:
        return way != "disk" and self._facts.has_update_session

    async def _load_tensors(self, bucket: Mapping[str, Any], options: Mapping[str, object]) -> None:
        from agentenv.engine.sglang_weights import tensor_payload

        payload = await asyncio.to_thread(tensor_payload, bucket)
        body = {"serialized_named_tensors": [payload] * self._facts.tp_size, **options}
        await self._control("update_weights_from_tensor", body)

    async def _load_broadcast(self, bucket: Mapping[str, Any], options: Mapping[str, object]) -> None:
        group = self._group
        assert group is not None
        body = {
            "names": list(bucket),
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in bucket.values()],
            "shapes": [list(tensor.shape) for tensor in bucket.values()],
            "group_name": group.name,
            **options,
        }
        try:
            await _both(
                self._control("update_weights_from_distributed", body),
                lambda: group.broadcast(bucket.values()),
            )
        except BaseException:
            self._group = None  # a group that lost step is of no more use
            group.leave()
            raise

    async def _load_from_disk(self, weights: PreparedWeights, *, version: int) -> None:
        from agentenv.engine.sglang_weights import weights_folder

        with weights_folder(weights.tensors) as folder:
            body = {"model_path": str(folder), "weight_version": str(version), "flush_cache": True}
            await self._control("update_weights_from_disk", body)

    async def _join(self, backend: Way) -> None:
        from agentenv.engine.weight_group import WeightGroup

        group = WeightGroup(
            backend=backend, num_ranks=self._facts.tp_size, server_host=self._host, timeout_s=STEP_TIMEOUT_S
        )
        body = {
            "master_address": group.address,
            "master_port": group.port,
            "rank_offset": 1,
            "world_size": group.world_size,
            "group_name": group.name,
            "backend": backend,
        }
        try:
            await _both(self._control("init_weights_update_group", body), group.join)
        except BaseException:
            group.leave()
            raise
        self._group = group

    async def _control(self, verb: str, body: Mapping[str, object]) -> Mapping[str, Any]:
        return await self._transport.control(verb, body, deadline_s=STEP_TIMEOUT_S)


async def _both(request: Awaitable[object], ours: Callable[[], None]) -> None:
    """Do our part of a collective step in a thread while SGLang does its own; the first failure ends the wait.

    A thread that waits for a rank that will not come ends with the group's own timeout.
    """
    here = asyncio.ensure_future(
        within(asyncio.to_thread(ours), timeout_s=STEP_TIMEOUT_S, side="engine", where="group")
    )
    there = asyncio.ensure_future(request)
    try:
        done, _ = await asyncio.wait({here, there}, return_when=asyncio.FIRST_EXCEPTION)
        for step in done:
            step.result()
    finally:
        for step in (here, there):
            step.cancel()


def _sums(answer: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {str(name): str(value) for name, value in answer["ranks"][0]["checksums"].items()}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EngineError(f"SGLang's checksums cannot be read: {error!r}") from error

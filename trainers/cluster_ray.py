"""Ray's part of a site: what is reserved, the actors that run in it, and what their failures mean."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from agentenv.errors import AgentEnvError, ClusterError, PeerLost, PlacementError, describe
from agentenv.trainers.cluster_layout import Layout, NodeResources

RESERVE_TIMEOUT_S = 60.0
"""Seconds until what is asked for must be free."""
MAX_WAITING_GROUPS = 10_000
_PASSED_NAMES = ("PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG")
_PASSED_PREFIXES = ("AGENTENV_", "HF_", "WANDB_", "NCCL_", "GLOO_", "TORCH", "TOKENIZERS_", "VLLM_", "SGLANG_", "OTEL_")


@dataclass(frozen=True, slots=True, kw_only=True)
class RayPeer:
    """An actor. Implements `agentenv.trainers.cluster_peer.Peer`.

    Attributes:
        handle: of the actor.
        name: role, number and node.
        host: address of its node.
    """

    handle: Any
    name: str
    host: str

    def send(self, verb: str, *args: object) -> Any:
        """See `Peer.send`."""
        method = getattr(self.handle, verb)
        if verb == "alive":
            method = method.options(concurrency_group="watch")
        return method.remote(*args)

    async def receive(self, ref: Any, *, verb: str, timeout_s: float | None) -> Any:
        """See `Peer.receive`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await ref
        except RayTaskError as error:
            raise failure(error, who=self.name, verb=verb) from None
        except RayActorError as error:
            raise PeerLost(f"{self.name} was lost during {verb}: {error}") from None
        except TimeoutError:
            raise ClusterError(f"{self.name} did not answer {verb} within {timeout_s:g} s") from None
        except RayError as error:
            raise ClusterError(f"{self.name} failed in {verb}: {describe(error)}") from None

    def kill(self) -> None:
        """See `Peer.kill`."""
        ray.kill(self.handle)


def failure(error: RayTaskError, *, who: str, verb: str) -> AgentEnvError:
    """Return what a remote exception means here: our own as it is, anything else with the remote traceback."""
    cause = error.cause
    if isinstance(cause, AgentEnvError):
        cause.add_note(f"in {who}, {verb}")
        return cause
    return ClusterError(f"{who} failed in {verb}: {describe(cause)}\n{error}")


class Placement:
    """A reserved part of the cluster; make it with `reserve`.

    Args:
        group: Ray's reservation, a bundle per node.
        hosts: address of every node, in order.
        labels: name of every node for people.
    """

    def __init__(self, group: PlacementGroup, *, hosts: Sequence[str], labels: Sequence[str]) -> None:
        self._group = group
        self._hosts, self._labels = hosts, labels

    def spawn(
        self,
        made: type,
        *args: object,
        role: str,
        node: int,
        num_cpus: float,
        num_gpus: float = 0.0,
        env: Mapping[str, str] | None = None,
        is_stateless: bool = False,
        **kwargs: object,
    ) -> RayPeer:
        """Start an actor.

        Args:
            made: its class; with coroutine methods it serves many calls at once.
            args: of the class.
            role: what it is, with its number.
            node: where.
            num_cpus: of the node's reservation.
            num_gpus: likewise.
            env: variables beside those that are always passed.
            is_stateless: Ray starts it again where it died, and repeats the call.
            kwargs: of the class.
        """
        is_async = asyncio.iscoroutinefunction(getattr(made, "health", None) or getattr(made, "score", None))
        more: dict[str, Any] = (
            {"max_concurrency": MAX_WAITING_GROUPS} if is_async else {"concurrency_groups": {"watch": 1}}
        )
        actor: Any = ray.remote(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_restarts=-1 if is_stateless else 0,
            max_task_retries=1 if is_stateless else 0,
            runtime_env={"env_vars": {**passed_variables(), **(env or {})}},
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=node
            ),
            **more,
        )(made)
        label = f"{role} on {self._labels[node]}"
        return RayPeer(handle=actor.remote(*args, **kwargs), name=label, host=self._hosts[node])

    def put(self, value: object) -> object:
        """Lay a value into the object store."""
        return ray.put(value)

    def free(self) -> None:
        """Give everything back and end what still runs in it."""
        remove_placement_group(self._group)


async def reserve(layout: Layout) -> Placement:
    """Reserve what a layout needs, on as many different nodes.

    Raises:
        PlacementError: it is in use by others and did not become free within `RESERVE_TIMEOUT_S`.
    """
    bundles = [dict(layout.bundle) for _ in range(layout.num_nodes)]
    group = placement_group(bundles, strategy="STRICT_SPREAD" if layout.num_nodes > 1 else "PACK")
    try:
        async with asyncio.timeout(RESERVE_TIMEOUT_S):
            await group.ready()
    except BaseException as error:
        remove_placement_group(group)
        if not isinstance(error, (TimeoutError, GetTimeoutError)):
            raise
        free = ", ".join(
            f"{name} {count:g}" for name, count in sorted(ray.available_resources().items()) if ":" not in name
        )
        raise PlacementError(
            f"the run asks for {layout.num_nodes} nodes with {layout.bundle} each; they exist, but are in "
            f"use: within {RESERVE_TIMEOUT_S:g} s only this was free: {free}. End other jobs, or ask for less"
        ) from None
    nodes = {node["NodeID"]: node for node in ray.nodes()}
    placed: Mapping[int, str] = placement_group_table(group)["bundles_to_node_id"]
    ids = [placed[index] for index in range(layout.num_nodes)]
    hosts = [nodes[node]["NodeManagerAddress"] for node in ids]
    labels = [f"{host} (node {node[:8]})" for host, node in zip(hosts, ids, strict=True)]
    return Placement(group, hosts=hosts, labels=labels)


def node_resources() -> list[NodeResources]:
    """Return the nodes that are alive."""
    return [
        NodeResources(
            name=f"{node['NodeManagerAddress']} (node {node['NodeID'][:8]})",
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def passed_variables() -> dict[str, str]:
    """Return the environment variables that every process of the run gets; what Ray itself sets is not among them."""
    return {
        name: value for name, value in os.environ.items() if name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES)
    }

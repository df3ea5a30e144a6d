"""Which part of a run lives on which node of a cluster: pure arithmetic, and the refusal of what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentenv.errors import PlacementError
from agentenv.trainers.config import ClusterConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeResources:
    """A node that is alive.

    Attributes:
        name: address, for people.
        cpus: that Ray counts on it, those in use included.
        gpus: likewise.
    """

    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where ranks and rollout workers go. A slot is one GPU, or the CPUs of one node where no GPUs are asked for.

    Attributes:
        rank_nodes: node of every rank, by index into the nodes of the placement group, never decreasing.
        rollout_nodes: node of every rollout worker (an engine replica with the runner beside it); empty where engines
            run elsewhere.
        shares_gpus: rollout worker i works on the GPU of rank i.
        gpus_per_node: GPUs of a node; 0 on CPUs.
        num_nodes: nodes that are taken.
    """

    rank_nodes: tuple[int, ...]
    rollout_nodes: tuple[int, ...]
    shares_gpus: bool
    gpus_per_node: int
    num_nodes: int

    @property
    def bundle(self) -> dict[str, float]:
        """What is reserved on every node."""
        slots = max(1, self.gpus_per_node)
        return {"CPU": float(slots), "GPU": float(self.gpus_per_node)} if self.gpus_per_node else {"CPU": float(slots)}


def make_layout(config: ClusterConfig, *, has_rollouts: bool = True) -> Layout:
    """Lay a run out: colocated has a rank and a rollout worker on every slot, split gives the first half to ranks.

    An odd slot goes to the ranks.

    Args:
        config: the run's cluster section.
        has_rollouts: False where the engines are servers that already run; then every slot trains.

    Raises:
        PlacementError: split needs two slots at least.
    """
    slots = [node for node in range(config.nodes) for _ in range(max(1, config.gpus_per_node))]
    if not has_rollouts or config.placement == "colocated":
        return Layout(
            rank_nodes=tuple(slots),
            rollout_nodes=tuple(slots) if has_rollouts else (),
            shares_gpus=has_rollouts,
            gpus_per_node=config.gpus_per_node,
            num_nodes=config.nodes,
        )
    if len(slots) < 2:
        what = "GPU" if config.gpus_per_node else "node without GPUs"
        raise PlacementError(
            f"cluster.placement is split over 1 {what}, but training and sampling need one each: raise cluster.nodes "
            "or cluster.gpus_per_node, or take placement colocated"
        )
    half = (len(slots) + 1) // 2
    return Layout(
        rank_nodes=tuple(slots[:half]),
        rollout_nodes=tuple(slots[half:]),
        shares_gpus=False,
        gpus_per_node=config.gpus_per_node,
        num_nodes=config.nodes,
    )


def check_fits(layout: Layout, nodes: Sequence[NodeResources]) -> None:
    """Refuse more than the cluster has, before anything starts.

    Raises:
        PlacementError: says what is asked, what the cluster has, and what to do.
    """
    need = layout.bundle
    fitting = [node for node in nodes if node.cpus >= need["CPU"] and node.gpus >= need.get("GPU", 0)]
    if len(fitting) >= layout.num_nodes:
        return
    asked = f"{layout.num_nodes} nodes with {need['CPU']:g} CPUs and {layout.gpus_per_node} GPUs each"
    found = "; ".join(f"{node.name} has {node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes) or "no node"
    raise PlacementError(
        f"the run asks for {asked}, and {len(fitting)} of the cluster's {len(nodes)} nodes offer that ({found}). Lower "
        "cluster.nodes or cluster.gpus_per_node, or add nodes with `ray start --address`"
    )

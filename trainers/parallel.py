"""Several processes that train one model: their layout, and how the model is sharded over them (FSDP2).

Ranks are laid out as replicas x shards x sequence: neighbours share the tokens of a pack, a replica's ranks hold one
copy of the model between them, and replicas hold copies. Gradients are sums over all ranks of losses that are divided
by global denominators already, so no rank's number of tokens matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from agentenv.config import Config
from agentenv.errors import UsageError
from agentenv.trainers.model import PackedModel
from agentenv.trainers.recomputation import Recomputation, recompute
from agentenv.trainers.sequence import SequenceGroup

T = TypeVar("T")

COLLECTIVE_TIMEOUT_S = 600.0
"""How long ranks wait for each other inside an update."""


class ParallelConfig(Config):
    """How the model is spread over the processes that torchrun starts, and how memory is saved."""

    replicas: int = Field(default=1, ge=1)
    """Whole copies of the sharded model (HSDP), e.g. one per node; 1 shards over all processes."""
    sequence: int = Field(default=1, ge=1)
    """Processes that share the tokens of one micro-batch (Ulysses); must divide the attention heads."""
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    """Precision of forward and backward pass over weights that stay in model.dtype; null computes in model.dtype.
    Gradients are added up in float32."""
    activation_checkpointing: Recomputation = "none"
    """full computes a layer again in the backward pass; selective keeps matrix products and attention and computes the
    rest again."""
    offload: bool = False
    """Keep parameters and optimizer in host memory and bring them to the device layer by layer."""
    compile: bool = False
    """Compile every decoder layer with torch.compile."""

    @model_validator(mode="after")
    def _compiled_layers_are_opaque(self) -> ParallelConfig:
        if self.compile and self.activation_checkpointing == "selective":
            raise ValueError(
                "compile: true and activation_checkpointing: selective exclude each other, because a compiled layer "
                "chooses by itself what it keeps; take activation_checkpointing full or none, or compile: false"
            )
        return self

    @property
    def needs_sharding(self) -> bool:
        """True where even a single process must hold the model as a shard."""
        return self.compute_dtype is not None or self.offload


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Where this process stands among those that train one model.

    Attributes:
        rank: of this process.
        world_size: number of processes.
        num_shares: ranks that take different micro-batches; ranks that share a sequence take the same ones.
        share: which share of the micro-batches this rank takes.
        device: where it computes.
        mesh: over which parameters are sharded.
        control: gloo group for plain objects.
        sequence: who shares the tokens of a pack; None where nobody does.
    """

    rank: int
    world_size: int
    num_shares: int
    share: int
    device: torch.device
    mesh: DeviceMesh
    control: ProcessGroup
    sequence: SequenceGroup | None

    def gather(self, value: T) -> list[T]:
        """Return every share's plain object, on every rank, in order of shares."""
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self.control)
        return values[:: self.world_size // self.num_shares]


def lay_out_ranks(config: ParallelConfig, *, device: torch.device, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> Ranks:
    """Lay out the ranks of the process group; all of them call this.

    Args:
        config: how many replicas, and how many ranks share a sequence.
        device: where this process computes.
        timeout_s: for exchanges of plain objects.

    Raises:
        UsageError: the number of processes does not fit; says what does.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    if world_size % (config.replicas * config.sequence):
        raise UsageError(
            f"{world_size} processes cannot be laid out as trainer.parallel.replicas {config.replicas} x sequence "
            f"{config.sequence} x shards; start a multiple of {config.replicas * config.sequence}, or change these keys"
        )
    if config.replicas == 1:
        mesh = init_device_mesh(device.type, (world_size,), mesh_dim_names=("shard",))
    else:
        shape = (config.replicas, world_size // config.replicas)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
    return Ranks(
        rank=rank,
        world_size=world_size,
        num_shares=world_size // config.sequence,
        share=rank // config.sequence,
        device=device,
        mesh=mesh,
        control=_new_group(list(range(world_size)), backend="gloo", timeout_s=timeout_s),
        sequence=_sequence_group(rank, size=config.sequence, world_size=world_size),
    )


def spread(model: PackedModel, *, config: ParallelConfig, ranks: Ranks | None) -> None:
    """Prepare a model in place: recomputation, compilation, and with ranks its sharding.

    Every decoder layer is one unit that is gathered, used and freed; the rest (embedding, last norm, output layer)
    belongs to the root. Without ranks the model stays whole.

    Args:
        model: with the same weights on every rank.
        config: what to do.
        ranks: over which it is sharded.

    Raises:
        UsageError: the attention heads cannot be shared out.
    """
    layers = decoder_layers(model)
    for layer in layers:
        if config.compile:
            layer.forward = torch.compile(layer.forward, dynamic=True)
        recompute(layer, config.activation_checkpointing)
    if ranks is None:
        return
    if ranks.sequence is not None:
        model.split_sequences(ranks.sequence)
    for layer in layers:
        _shard(layer, config=config, ranks=ranks, reshard_after_forward=True)
    heads: list[nn.Module] = [] if model.critic is None else [model.critic.head]
    for head in heads:  # by itself, because its precision may differ from the model's
        _shard(head, config=config, ranks=ranks, reshard_after_forward=False)
    _shard(model, config=config, ranks=ranks, reshard_after_forward=False)
    for module in (*layers, *heads, model):
        assert isinstance(module, FSDPModule)
        # gradients are sums: every loss is divided by global counts already
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def decoder_layers(model: PackedModel) -> list[nn.Module]:
    """Return the decoder layers, first to last."""
    body: Any = model.causal_lm.get_decoder()
    return list(body.layers)


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; all ranks call this. A plain tensor is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _shard(module: nn.Module, *, config: ParallelConfig, ranks: Ranks, reshard_after_forward: bool) -> None:
    compute = None if config.compute_dtype is None else getattr(torch, config.compute_dtype)
    reduce = None if compute is None else torch.float32
    is_cuda = ranks.device.type == "cuda"
    fully_shard(
        module,
        mesh=ranks.mesh,
        reshard_after_forward=reshard_after_forward,
        mp_policy=MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce),
        offload_policy=CPUOffloadPolicy(pin_memory=is_cuda) if config.offload else OffloadPolicy(),
    )


def _sequence_group(rank: int, *, size: int, world_size: int) -> SequenceGroup | None:
    """Make the groups of neighbours, which every rank must do for all groups, and return this rank's."""
    if size == 1:
        return None
    groups = [_new_group(list(range(start, start + size))) for start in range(0, world_size, size)]
    return SequenceGroup(group=groups[rank // size], size=size, index=rank % size)


def _new_group(ranks: list[int], *, backend: str | None = None, timeout_s: float | None = None) -> ProcessGroup:
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    group = distributed.new_group(ranks, backend=backend, timeout=timeout)
    assert isinstance(group, ProcessGroup)  # an int stands for a group without this rank
    return group

"""A process group of the trainer and the ranks of one engine, over which weights are broadcast."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from agentenv.engine.transfer import TensorInfo
from agentenv.errors import EngineError, describe

_group_count = itertools.count()


class WeightGroup:
    """A torch process group of this process, rank 0, and the ranks of one engine.

    Args:
        backend: `"gloo"` or `"nccl"`.
        num_ranks: of the engine.
        server_host: decides the address of ours that it can reach.
        timeout_s: for every step of the group.
    """

    def __init__(self, *, backend: str, num_ranks: int, server_host: str, timeout_s: float) -> None:
        self.backend = backend
        self.world_size = 1 + num_ranks
        self.name = f"agentenv-{os.getpid()}-{next(_group_count)}"
        self.address = _address_towards(server_host)
        self._timeout = datetime.timedelta(seconds=timeout_s)
        listener = socket.create_server((self.address, 0))
        self.port: int = listener.getsockname()[1]
        self._store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            self.address,
            self.port,
            self.world_size,
            is_master=True,
            wait_for_workers=False,
            timeout=self._timeout,
            master_listen_fd=listener.detach(),  # bound to one address; the store alone would listen on all of them
        )
        self._group: Any = None

    def join(self) -> None:
        """Wait until all ranks are here; the others must be told at the same time.

        Raises:
            EngineError: they did not come.
        """
        self._group = _joined(
            self._store, backend=self.backend, name=self.name, rank=0, size=self.world_size, timeout=self._timeout
        )

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Send tensors to all ranks, in order.

        Raises:
            EngineError: a rank went away.
        """
        _broadcast(self._group, [tensor.to(_device(self.backend)) for tensor in tensors])

    def leave(self) -> None:
        """Give the group up; idempotent."""
        group, self._group = self._group, None
        _leave(group)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAddress:
    """Where a group meets. Crosses processes as JSON.

    Attributes:
        backend: `"gloo"` or `"nccl"`.
        name: of the group.
        address: host of rank 0.
        port: of its store.
        world_size: ranks of the group.
    """

    backend: str
    name: str
    address: str
    port: int
    world_size: int


class GroupMember:
    """The other side of a `WeightGroup`: a rank that receives.

    Args:
        place: where the group meets.
        rank: ours, at least 1.
        timeout_s: for every step of the group.
    """

    def __init__(self, place: GroupAddress, *, rank: int, timeout_s: float) -> None:
        self.place = place
        self._rank = rank
        self._timeout = datetime.timedelta(seconds=timeout_s)
        self._group: Any = None

    def join(self) -> None:
        """Wait until all ranks are here.

        Raises:
            EngineError: they did not come.
        """
        place = self.place
        try:
            store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
                place.address, place.port, place.world_size, is_master=False, timeout=self._timeout
            )
        except Exception as error:  # torch raises errors of many kinds here
            raise EngineError(f"no sender of weights at {place.address}:{place.port}: {describe(error)}") from error
        self._group = _joined(
            store, backend=place.backend, name=place.name, rank=self._rank, size=place.world_size, timeout=self._timeout
        )

    def receive(self, infos: Sequence[TensorInfo]) -> dict[str, Tensor]:
        """Take tensors in the order in which rank 0 sends them.

        Raises:
            EngineError: the sender went away, or nothing came in time.
        """
        device = _device(self.place.backend)
        tensors = {i.name: torch.empty(i.shape, dtype=getattr(torch, i.dtype), device=device) for i in infos}
        _broadcast(self._group, list(tensors.values()))
        return tensors

    def leave(self) -> None:
        """Give the group up; idempotent."""
        group, self._group = self._group, None
        _leave(group)


def _joined(store: Any, *, backend: str, name: str, rank: int, size: int, timeout: datetime.timedelta) -> Any:
    make_group: Any = distributed_c10d._new_process_group_helper  # the one way to a group beside the default one
    prefixed = distributed_c10d.PrefixStore(name, store)
    try:
        group, _ = make_group(
            size, rank, [], distributed_c10d.Backend(backend), prefixed, group_name=name, timeout=timeout
        )
    except Exception as error:  # torch raises errors of many kinds here
        raise EngineError(f"no {backend} group with the engine came about: {describe(error)}") from error
    return group


def _broadcast(group: Any, tensors: list[Tensor]) -> None:
    """Send from rank 0, or take as another rank."""
    if group is None:
        raise EngineError("the group of trainer and engine was given up; weights cannot be broadcast")
    options = dist.BroadcastOptions()
    options.rootRank = 0
    try:
        # an empty tensor has nothing to send, and gloo refuses it
        for wait in [group.broadcast([tensor], options) for tensor in tensors if tensor.numel()]:
            wait.wait()
    except Exception as error:
        raise EngineError(f"weights could not be broadcast, the update is torn: {describe(error)}") from error


def _leave(group: Any) -> None:
    if group is not None:
        with contextlib.suppress(Exception):  # the others may be gone
            dist.destroy_process_group(group)


def _device(backend: str) -> str:
    return "cuda" if backend == "nccl" else "cpu"


def _address_towards(host: str) -> str:
    """Our address on the network that reaches `host`; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError as error:
            raise EngineError(f"no way to {host} for the weights: {describe(error)}") from error
        return str(probe.getsockname()[0])

"""Where a receiver takes the buckets of an update from: shared memory, a folder, a process group, or GPU handles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from agentenv.engine.bucket_files import STALL_TIMEOUT_S, read_buckets
from agentenv.engine.cuda_ipc import open_cuda_handle
from agentenv.engine.shared_weights import SharedWeightsInfo, shared_buckets
from agentenv.engine.transfer import TransferManifest
from agentenv.engine.weight_group import GroupAddress, GroupMember
from agentenv.errors import EngineError, describe


class WeightSources:
    """Opens what a sender announced, by its `kind`; a process group stays open from one update to the next.

    Args:
        rank: of this receiver in a process group, at least 1.
    """

    def __init__(self, *, rank: int = 1) -> None:
        self._rank = rank
        self._member: GroupMember | None = None

    def buckets(self, manifest: TransferManifest, announced: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
        """Yield the buckets in order, unchecked; blocks for at most `STALL_TIMEOUT_S` between two of them.

        Args:
            manifest: of the update.
            announced: what the sender's transport said: `kind` (shm, disk, group or ipc) and what belongs to it.

        Raises:
            EngineError: the announcement is broken, or the sender is gone or stalls.
        """
        kind = str(announced.get("kind"))
        try:
            if kind == "shm":
                return shared_buckets(SharedWeightsInfo(folder=str(announced["folder"]), manifest=manifest))
            if kind == "disk":
                # it is complete when it is announced
                return read_buckets(Path(announced["folder"]), manifest, is_alive=lambda: False)
            if kind == "group":
                return self._from_group(manifest, GroupAddress(**announced["group"]))
            if kind == "ipc":
                return _from_handles(manifest, announced["handles"])
        except (KeyError, TypeError) as error:
            raise EngineError(f"weights were announced by {kind}, but not where: {describe(error)}") from error
        raise EngineError(f"weights were announced by {kind!r}; shm, disk, group and ipc are known here")

    def close(self) -> None:
        """Leave the process group; idempotent."""
        member, self._member = self._member, None
        if member is not None:
            member.leave()

    def _from_group(self, manifest: TransferManifest, place: GroupAddress) -> Iterator[dict[str, Tensor]]:
        if self._member is None or self._member.place != place:
            self.close()
            member = GroupMember(place, rank=self._rank, timeout_s=STALL_TIMEOUT_S)
            member.join()
            self._member = member
        member = self._member
        try:
            for names in manifest.buckets:
                yield member.receive([manifest.by_name[name] for name in names])
        except BaseException:
            member.leave()  # a group that lost step is of no more use
            if self._member is member:
                self._member = None
            raise


def _from_handles(manifest: TransferManifest, handles: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    for names in manifest.buckets:
        yield {name: open_cuda_handle(handles[name], manifest.by_name[name]) for name in names}

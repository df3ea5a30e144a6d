"""What all engines of a pool were told, weights and pauses, so that a new engine can be told the same."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from agentenv.engine.kept_weights import KeptWeights
from agentenv.engine.protocol import Ack, Engine, EngineHealth, WeightManifest
from agentenv.errors import EngineError, describe

_log = logging.getLogger(__name__)


class Orders:
    """Weights and pauses that hold for every engine of a pool.

    Args:
        version: of the weights that all engines hold at first.
        keeps_weights: True copies what is sent, so that an engine which begins anew can be given it; False saves that
            memory where no engine will ever begin anew.

    Attributes:
        version: of the weights that may be served.
        is_paused: True between `pause` and `resume`.
    """

    def __init__(self, *, version: int, keeps_weights: bool) -> None:
        self.version = version
        self.is_paused = False
        self._kept = KeptWeights() if keeps_weights else None
        self._acks: dict[int, Ack] = {}

    async def accept(self, manifest: WeightManifest, ack: Ack) -> None:
        """Take note that these weights are served from now on. Their tensors are copied; they may change afterwards."""
        self.version = manifest.version
        if manifest.adapter is None:
            self._acks.clear()  # those of an adapter and of the model below it stand beside each other
        self._acks[manifest.version] = ack
        if self._kept is None:
            return
        try:
            await self._kept.keep(manifest)
        except BaseException as error:
            self._kept.drop()  # it may be torn
            if not isinstance(error, Exception):
                raise
            # no memory, a lost device: serving goes on, only replacing is over
            _log.warning("weights of version %d cannot be kept for replacements: %s", manifest.version, describe(error))

    async def catch_up(self, engine: Engine) -> None:
        """Bring an engine that holds the weights of its folder, or some earlier ones, to what all others were told.

        Raises:
            EngineError: it cannot be given these weights, or did not take them as the others did.
        """
        health = await engine.health()
        manifests = () if self._kept is None else self._kept.manifests
        missing = [manifest for manifest in manifests if manifest.version > health.version]
        if not missing and health.version != self.version:
            raise EngineError(
                f"it holds weights of version {health.version}; {self.version} was served, but is not kept"
            )
        if missing:
            await engine.pause("keep")
            for manifest in missing:
                check_same(await engine.update_weights(manifest), expected=self._acks[manifest.version])
            if not self.is_paused:
                await engine.resume()
        elif self.is_paused:
            await engine.pause("keep")
        self.check(await engine.health())

    def check(self, health: EngineHealth) -> None:
        """Refuse an engine that cannot serve, or serves other weights than it was told.

        Raises:
            EngineError: says which.
        """
        if not health.is_ready:
            raise EngineError("it says that it is not ready")
        if health.version != self.version:
            raise EngineError(
                f"it serves weights of version {health.version}, not {self.version}; did it begin anew, or does "
                "somebody else update it?"
            )


def check_same(ack: Ack, *, expected: Ack) -> None:
    """Refuse an acknowledgement that differs from another one of the same weights.

    Raises:
        EngineError: says what differs.
    """
    if ack != expected:
        raise EngineError(
            f"it acknowledged version {ack.version} with checksum {ack.checksum} {ack.dtype}, others version "
            f"{expected.version} with {expected.checksum} {expected.dtype}"
        )


def agreed(acks: Mapping[int, Ack], *, version: int) -> tuple[Ack | None, dict[int, str]]:
    """Find what most engines acknowledged.

    Args:
        acks: by replica.
        version: that was sent.

    Returns:
        The acknowledgement of the largest group that agrees on the version sent and on one checksum, or None where no
        group is the largest; and why each of the others cannot be trusted.
    """
    groups = Counter(ack for ack in acks.values() if ack.version == version).most_common(2)
    if not groups or (len(groups) > 1 and groups[0][1] == groups[1][1]):
        return None, {replica: f"acknowledged {ack}, and no majority agrees" for replica, ack in acks.items()}
    best = groups[0][0]
    return best, {replica: f"acknowledged {ack}, others {best}" for replica, ack in acks.items() if ack != best}

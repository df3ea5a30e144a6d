"""Low-rank adapters of a vLLM engine by version: new requests take the newest, old ones keep theirs to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agentenv.engine.protocol import WeightManifest
from agentenv.engine.shared_weights import AdapterFolder
from agentenv.errors import EngineError


@dataclass(kw_only=True, eq=False)
class Adapter:
    """One adapter that the engine has loaded.

    Attributes:
        name: by which requests ask for it.
        number: vLLM's id, at least 1.
        version: of the weights.
        folder: its files; vLLM may read them again as long as the adapter is in use.
        num_running: requests that use it.
    """

    name: str
    number: int
    version: int
    folder: AdapterFolder
    num_running: int = 0


class AdapterShelf:
    """Loads adapters, lends the newest to requests, and removes each once it is neither newest nor lent.

    Args:
        load: makes the engine load one.
        unload: makes the engine forget one.
    """

    def __init__(
        self, *, load: Callable[[Adapter], Awaitable[None]], unload: Callable[[Adapter], Awaitable[None]]
    ) -> None:
        self._load = load
        self._unload = unload
        self._newest: Adapter | None = None
        self._loaded: list[Adapter] = []

    async def put(self, manifest: WeightManifest) -> str:
        """Load the manifest's adapter and lend it from now on; returns the checksum of its matrices.

        Raises:
            EngineError: the matrices cannot be stored, or the engine refused them. The adapter before serves on.
        """
        assert manifest.adapter is not None
        folder = await asyncio.to_thread(AdapterFolder, manifest.tensors, manifest.adapter)
        number = manifest.version + 1  # ids begin at 1, versions at 0
        adapter = Adapter(name=f"agentenv-{manifest.version}", number=number, version=manifest.version, folder=folder)
        try:
            await self._load(adapter)
        except BaseException:
            folder.remove()
            raise
        self._loaded.append(adapter)
        await self._replace(adapter)
        return folder.checksum

    async def clear(self) -> None:
        """Lend none from now on: the whole model was replaced."""
        await self._replace(None)

    def take(self) -> Adapter | None:
        """Return the newest adapter, lent until `give_back`; None where requests go to the model itself."""
        if self._newest is not None:
            self._newest.num_running += 1
        return self._newest

    async def give_back(self, adapter: Adapter | None) -> None:
        """End a loan."""
        if adapter is not None:
            adapter.num_running -= 1
            await self._retire(adapter)

    def close(self) -> None:
        """Remove all files; the engine is gone."""
        for adapter in self._loaded:
            adapter.folder.remove()
        self._loaded.clear()
        self._newest = None

    async def _replace(self, newest: Adapter | None) -> None:
        previous, self._newest = self._newest, newest
        if previous is not None:
            await self._retire(previous)

    async def _retire(self, adapter: Adapter) -> None:
        if adapter is self._newest or adapter.num_running or adapter not in self._loaded:
            return
        self._loaded.remove(adapter)
        try:
            await self._unload(adapter)
        except EngineError:
            pass  # a dead engine has forgotten it; a living one evicts it when it needs the room
        finally:
            adapter.folder.remove()

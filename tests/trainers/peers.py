"""A peer that lives in this process: what carries calls to other processes is not what these tests are about."""

import asyncio
import inspect
from typing import Any

from agentenv.errors import PeerLost


class InlinePeer:
    """Calls an object's methods directly; after `kill` every call is lost, those under way included."""

    host = "127.0.0.1"

    def __init__(self, target: object, *, name: str) -> None:
        self.target, self.name = target, name
        self.calls: list[str] = []
        self._is_dead = asyncio.Event()

    def send(self, verb: str, *args: object) -> Any:
        self.calls.append(verb)
        return asyncio.ensure_future(self._call(verb, args))

    async def receive(self, ref: Any, *, verb: str, timeout_s: float | None) -> Any:
        death = asyncio.ensure_future(self._is_dead.wait())
        try:
            await asyncio.wait((ref, death), timeout=timeout_s or 30, return_when=asyncio.FIRST_COMPLETED)
            if self._is_dead.is_set():
                ref.cancel()
                raise PeerLost(f"{self.name} was lost during {verb}")
            assert ref.done(), f"{verb} hangs"
            return ref.result()
        finally:
            death.cancel()

    def kill(self) -> None:
        self._is_dead.set()

    async def _call(self, verb: str, args: tuple[object, ...]) -> Any:
        values = [await arg if isinstance(arg, asyncio.Future) else arg for arg in args]
        result = getattr(self.target, verb)(*values)
        return await result if inspect.isawaitable(result) else result

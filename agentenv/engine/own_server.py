"""An engine over a server process that belongs to it: closing the one ends the other."""

from __future__ import annotations

from agentenv.engine.forwarding import ForwardingEngine
from agentenv.engine.launch import ServerProcess
from agentenv.engine.protocol import Engine, EngineHealth
from agentenv.errors import EngineError


class OwnServer(ForwardingEngine):
    """Drives a server that we started.

    Args:
        engine: drives the server; owned.
        process: the server; owned.
    """

    def __init__(self, engine: Engine, *, process: ServerProcess) -> None:
        super().__init__(engine)
        self.process = process

    async def health(self) -> EngineHealth:
        """Say whether requests can be served.

        Raises:
            EngineError: the process has ended; with its last words.
        """
        if not self.process.is_running:
            words = " | ".join(self.process.log_tail(3))
            code, path = self.process.exit_code, self.process.log_path
            raise EngineError(f"its server ended with code {code}; the last lines of {path}: {words}")
        return await self.engine.health()

    async def close(self) -> None:
        """Let go of the server, then end it; idempotent."""
        try:
            await self.engine.close()
        finally:
            await self.process.stop()

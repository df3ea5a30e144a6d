"""The sessions of a served environment: each has an environment of its own, a bounded number live at once."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass, field

from agentenv.env import AgentEnv
from agentenv.errors import describe
from agentenv.offload import is_leaving, within

_log = logging.getLogger(__name__)
_CLOSE_TIMEOUT_S = 30.0


@dataclass(eq=False, kw_only=True)
class EnvSession:
    """One client's environment.

    Attributes:
        key: names the session; whoever knows it may play.
        env: nobody else's.
        lock: held by the request that is being answered.
        used: when the last request ended, by the monotonic clock.
    """

    key: str
    env: AgentEnv
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    used: float = field(default_factory=time.monotonic)


class EnvSessions:
    """Opens, finds and closes sessions.

    Args:
        max_sessions: that live at once.
        idle_timeout_s: seconds without a request after which a session is closed: its client is gone.

    Attributes:
        num_reaped: sessions that were closed for idleness.
    """

    def __init__(self, *, max_sessions: int, idle_timeout_s: float) -> None:
        self.max_sessions = max_sessions
        self.idle_timeout_s = idle_timeout_s
        self.num_reaped = 0
        self._sessions: dict[str, EnvSession] = {}
        self._reaper: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def is_full(self) -> bool:
        """True while no session can be opened."""
        return len(self._sessions) >= self.max_sessions

    def open(self, env: AgentEnv) -> EnvSession:
        """Begin a session; the environment is closed with it."""
        session = EnvSession(key=secrets.token_urlsafe(24), env=env)
        self._sessions[session.key] = session
        return session

    def find(self, key: str) -> EnvSession | None:
        """Return a session that lives."""
        return self._sessions.get(key)

    async def shut(self, session: EnvSession) -> None:
        """End a session, after the request that is being answered; idempotent."""
        if self._sessions.pop(session.key, None) is None:
            return
        async with session.lock:
            try:
                await within(session.env.close_async(), timeout_s=_CLOSE_TIMEOUT_S, side="env", where="close")
            except BaseException as error:
                if not isinstance(error, Exception) and is_leaving(error):
                    raise
                _log.warning("an environment could not be closed: %s", describe(error))

    def start_reaping(self) -> None:
        """Close idle sessions from now on, until `close`."""
        self._reaper = asyncio.create_task(self._reap(), name="reap environment sessions")

    async def close(self) -> None:
        """End every session; idempotent."""
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        await asyncio.gather(*(self.shut(session) for session in list(self._sessions.values())))

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(min(self.idle_timeout_s / 4, 10.0))
            oldest = time.monotonic() - self.idle_timeout_s
            idle = [s for s in self._sessions.values() if s.used < oldest and not s.lock.locked()]
            self.num_reaped += len(idle)
            await asyncio.gather(*map(self.shut, idle))

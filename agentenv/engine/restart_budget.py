"""How often something may begin anew within a stretch of time. Pure."""

from __future__ import annotations

from collections import deque


class RestartBudget:
    """A number of restarts per window of time; an old one no longer counts.

    Args:
        max_restarts: within the window.
        window_s: seconds.
    """

    def __init__(self, *, max_restarts: int, window_s: float) -> None:
        self.max_restarts = max_restarts
        self.window_s = window_s
        self._taken_s: deque[float] = deque()

    def take(self, *, now_s: float) -> bool:
        """Take one restart; False where the budget is spent.

        Args:
            now_s: of a clock that never goes back.
        """
        while self._taken_s and now_s - self._taken_s[0] >= self.window_s:
            self._taken_s.popleft()
        if len(self._taken_s) >= self.max_restarts:
            return False
        self._taken_s.append(now_s)
        return True

    def __str__(self) -> str:
        return f"{self.max_restarts} restarts within {self.window_s:g} s"

"""A server of the real openenv-core, for the Python that has it: `python openenv_server.py PORT`."""

import sys
from typing import Any

from openenv.core.env_server.http_server import create_fastapi_app  # pyright: ignore[reportMissingImports]
from openenv.core.env_server.interfaces import Environment  # pyright: ignore[reportMissingImports]
from openenv.core.env_server.types import Action, Observation, State  # pyright: ignore[reportMissingImports]


class Guess(Action):
    """A guess."""

    number: int


class Hint(Observation):
    """What is said to a guess."""

    text: str


class Numbers(Environment):
    """Find a number from 0 to 9."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 0
        self.count = 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Hint:
        self.hidden, self.count = (seed or 0) // 2 % 10, 0
        return Hint(text="Guess a number from 0 to 9.")

    def step(self, action: Guess, timeout_s: float | None = None, **kwargs: Any) -> Hint:
        self.count += 1
        if action.number == 13:
            raise RuntimeError("unlucky")
        if action.number == self.hidden:
            return Hint(text="found", reward=1.0, done=True)
        return Hint(text="higher" if self.hidden > action.number else "lower", reward=0.0)

    @property
    def state(self) -> State:
        return State(step_count=self.count)


if __name__ == "__main__":
    import uvicorn

    app = create_fastapi_app(Numbers, Guess, Hint, max_concurrent_envs=8)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")

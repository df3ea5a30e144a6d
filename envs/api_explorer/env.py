"""ApiExplorer: do a job through a web API that nobody documented, judged by the data that is left."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

import numpy as np

from agentenv.answer_env import checked_difficulty
from agentenv.env import ToolEnv, tool_turn
from agentenv.envs.api_explorer.jobs import Job, make_job
from agentenv.envs.api_explorer.service import Service, make_service
from agentenv.envs.drawing import pick, world_generator
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.tasks import Task
from agentenv.tool import tool

Method = Literal["GET", "POST", "PATCH", "PUT", "DELETE"]
_METHODS: tuple[Method, ...] = ("GET", "POST", "PATCH", "PUT", "DELETE")
_FIRST_WITH_LOGIN = 3
_MAX_PATH_CHARS = 200


class ApiExplorer(ToolEnv):
    """Do a job through a web API that must be discovered with the tool `request`; a turn without a call ends it.

    Paths, field names, methods, login and workflow are drawn anew for every episode; the answers of the service tell
    them to whoever asks. Reward: 1.0 if at the end the data of the service are exactly what the job asks for, else
    0.0: anything else that was made, changed or removed costs the reward.

    Args:
        difficulty: 1: change a field; 2: make an item; 3: remove several, with a login; 4: lead an item through a
            workflow; 5: make one and lead it through.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.02

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty)
        self.service: Service | None = None
        self.job: Job | None = None
        super().__init__(**{"max_turns": 40, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw a service and a job."""
        world = world_generator(rng, split=self.split)
        self.service = make_service(world, needs_login=self.difficulty >= _FIRST_WITH_LOGIN)
        self.job = make_job(world, self.service, difficulty=self.difficulty)
        key = f" Your key is {self.service.layout.key}." if self.service.layout.login else ""
        return (
            f"{self.job.text}\nThe service has no documentation; begin with GET /.{key} Change nothing else. "
            "When it is done, say: done."
        )

    @tool
    def request(self, method: Method, path: str, body: dict[str, Any] | None = None, token: str = "") -> str:
        """Send a request to the service.

        Args:
            method: of the request.
            path: from the root, with a query where one is needed, e.g. "/".
            body: JSON object, for requests that send data.
            token: what a login handed out, where the service asks for one.
        """
        assert self.service is not None
        if len(path) > _MAX_PATH_CHARS:
            return f"414 path too long; at most {_MAX_PATH_CHARS} characters are allowed"
        status, answer = self.service.handle(method, path, body=body or {}, token=token)
        return f"{status} {json.dumps(answer)}"

    @reward(low=0.0, high=1.0)
    def data_match(self) -> float:
        """1.0 if the data are as asked."""
        is_done = self.service is not None and self.job is not None and self.service.items == self.job.done.items
        return float(is_done)

    def fingerprint(self) -> str:
        """Return the job and all data."""
        return f"{self.job}"

    def oracle(self) -> str | Message:
        """Explore without detours, do the job, say so."""
        calls = () if self.job is None else self.job.calls
        return calls[self.num_turns].turn(self.num_turns) if self.num_turns < len(calls) else "done"

    def random_action(self, rng: np.random.Generator) -> str | Message:
        """Send any request to any path that exists."""
        if self.service is None or rng.random() < 0.05:
            return "done"
        collection = pick(rng, tuple(self.service.layout.collections.values()))
        path = self.service.layout.path(collection.name)
        item = pick(rng, ("", f"/{int(rng.integers(101, 112))}"))
        values = {collection.choice_field: pick(rng, collection.choices)}
        arguments = {"method": pick(rng, _METHODS), "path": path + item, "body": values}
        return self._turn(arguments)

    def cheat(self, rng: np.random.Generator) -> str | Message:
        """Claim success, post the job's own text, or remove everything that can be removed."""
        if self.service is None or self.job is None or self.num_turns >= 3:
            return "200 data_match: 1.0, done"
        layout = self.service.layout
        collection = pick(rng, tuple(layout.collections.values()))
        values = {
            collection.name_field: self.job.text[:100],
            collection.number_field: 1,
            collection.choice_field: collection.choices[0],
        }
        requests: tuple[dict[str, object], ...] = (
            {"method": "POST", "path": layout.path(collection.name), "body": values},
            {"method": "DELETE", "path": layout.path(collection.name)},
            {"method": "PUT", "path": "/", "body": {"data_match": 1.0}},
        )
        # the first request always leaves something behind, so that nothing later can hit the goal by chance
        chosen = requests[0] if self.num_turns == 0 else pick(rng, requests)
        return self._turn({**chosen, "token": layout.token})

    def _turn(self, arguments: dict[str, object]) -> Message:
        return tool_turn("request", arguments, call_id=f"call_{self.num_turns}_0")

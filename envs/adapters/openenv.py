"""The client's side of an OpenEnv server: reset, step and state over its WebSocket, one session per episode."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import httpx
import numpy as np

from agentenv.env import ToolEnv, random_arguments, tool_turn
from agentenv.errors import EpisodeError, ToolError, UsageError, boundary
from agentenv.messages import Message
from agentenv.offload import within
from agentenv.packages import EXTRAS, require
from agentenv.reward import reward
from agentenv.tasks import Task
from agentenv.tool import tool

_MAX_SEED = 2**30
_MAX_MESSAGE_BYTES = 16 * 2**20
_REFUSED = ("VALIDATION_ERROR",)


class OpenEnv(ToolEnv):
    """Play an environment behind an OpenEnv server (protocol of openenv-core 0.3), with the tool `act`.

    Reward: 1.0 if the server's rewards add up to at least `solved_at`, else 0.0; or, with `paid="return"`, the rewards
    of the server as they come. Sessions are reset with even seeds in train and odd ones in test; whether the server
    heeds them is its own affair.

    Args:
        url: of the server, e.g. `http://127.0.0.1:8000`.
        paid: `"solved"` or `"return"`.
        solved_at: sum of rewards of a solved episode.
        reset: further arguments of the server's reset.
        message_timeout_s: deadline of every answer of the server.
        **options: of `AgentEnv`.
    """

    random_threshold: ClassVar[float] = 0.5

    def __init__(
        self,
        *,
        url: str,
        paid: Literal["solved", "return"] = "return",
        solved_at: float = 1.0,
        reset: Mapping[str, object] | None = None,
        message_timeout_s: float = 60.0,
        **options: Any,
    ) -> None:
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in ("http", "https", "ws", "wss") or not rest:
            raise UsageError(f"url is {url!r}; write http://HOST:PORT or https://HOST")
        if paid not in ("solved", "return"):
            raise UsageError(f'paid is {paid!r}; allowed are "solved" and "return"')
        secure = scheme in ("https", "wss")
        rest = rest.rstrip("/")
        self.http_url, self.ws_url = f"http{'s' * secure}://{rest}", f"ws{'s' * secure}://{rest}/ws"
        self.paid, self.solved_at, self.message_timeout_s = paid, solved_at, message_timeout_s
        self._reset = dict(reset or {})
        self._socket: Any = None
        self.action_schema: Mapping[str, Any] = {}
        self.total = 0.0
        self._earned = 0.0
        super().__init__(**{"max_turns": 32, **options})

    async def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Open a session on the server and reset it."""
        require(EXTRAS["openenv"][0], extra="openenv")
        self.total = self._earned = 0.0
        if not self.action_schema:
            self.action_schema = await self._fetch_schema()
        await self._connect()
        seed = 2 * int(rng.integers(_MAX_SEED)) + (self.split == "test")
        answer = await self._ask({"type": "reset", "data": {"seed": seed, **self._reset}})
        told = self._take(answer)
        return f"{told}\n\nActions have these fields: {_fields(self.action_schema)}."

    async def teardown(self) -> None:
        """Close the session."""
        socket, self._socket = self._socket, None
        if socket is not None:
            leaving = _left(socket)
            await within(leaving, timeout_s=self.message_timeout_s, side="env", where="OpenEnv close")

    @tool(timeout_s=600.0)
    async def act(self, action: dict[str, object]) -> str:
        """Do one action.

        Args:
            action: its fields, by name.
        """
        return await self._step(action)

    async def answer(self, text: str) -> str:
        """Send a turn without a call as the action's text, where it has exactly one field for text."""
        field = _only_text_field(self.action_schema)
        if field is None:
            return f"Call act with the fields of an action: {_fields(self.action_schema)}."
        try:
            return await self._step({field: text})
        except ToolError as refused:
            return f"Error: {refused}"

    @reward(low=0.0, high=1.0)
    def solved(self) -> float:
        """1.0 if the server's rewards add up to `solved_at` and that is what is paid."""
        return float(self.paid == "solved" and self.total >= self.solved_at)

    @reward(when="turn")
    def server_reward(self) -> float:
        """What the server gave for the turn, where that is what is paid."""
        earned, self._earned = self._earned, 0.0
        return earned if self.paid == "return" else 0.0

    async def state(self) -> Mapping[str, Any]:
        """Return the state that the server tells of the running session; the agent never sees it."""
        return (await self._ask({"type": "state"})).get("data", {})

    def random_action(self, rng: np.random.Generator) -> Message:
        """Send fields of the right types."""
        fields = random_arguments(_own_fields(self.action_schema), rng)
        return tool_turn("act", {"action": fields}, call_id=f"call_{self.num_turns}_0")

    async def _step(self, action: Mapping[str, object]) -> str:
        return self._take(await self._ask({"type": "step", "data": dict(action)}))

    def _take(self, answer: Mapping[str, Any]) -> str:
        """Note what an observation earned and whether it is the last; returns what it says."""
        data = answer.get("data")
        if answer.get("type") != "observation" or not isinstance(data, Mapping) or "observation" not in data:
            raise EpisodeError(
                "env", "OpenEnv", f"the server answered {str(answer)[:200]}; an observation was expected"
            )
        value = data.get("reward")
        if value is not None:
            self._earned += float(value)
            self.total += float(value)
        if data.get("done"):
            self.finish()
        return _told(data["observation"])

    async def _ask(self, message: Mapping[str, object]) -> Mapping[str, Any]:
        """Send a message and return the answer.

        Raises:
            ToolError: the server refuses the action's fields.
            EpisodeError: the server failed, is gone, or is late.
        """
        with boundary("env", f"OpenEnv {message['type']}"):
            exchange = self._exchange(json.dumps(message))
            raw = await within(
                exchange, timeout_s=self.message_timeout_s, side="env", where=f"OpenEnv {message['type']}"
            )
            answer = json.loads(raw)
        if not isinstance(answer, dict):
            raise EpisodeError("env", "OpenEnv", f"the server answered {str(answer)[:200]}; a message was expected")
        if answer.get("type") == "error":
            data = answer.get("data") or {}
            if data.get("code") in _REFUSED and message["type"] == "step":
                raise ToolError(f"the action was refused: {_why(data)}. It has {_fields(self.action_schema)}")
            raise EpisodeError("env", "OpenEnv", f"the server reports {data.get('code')}: {data.get('message')}")
        return answer

    async def _exchange(self, text: str) -> str | bytes:
        await self._socket.send(text)
        return await self._socket.recv()

    async def _connect(self) -> None:
        client = importlib.import_module("websockets.asyncio.client")
        with boundary("env", f"OpenEnv at {self.ws_url}"):
            opening = client.connect(self.ws_url, max_size=_MAX_MESSAGE_BYTES, proxy=None, open_timeout=None)
            self._socket = await within(
                _opened(opening), timeout_s=self.message_timeout_s, side="env", where=f"OpenEnv at {self.ws_url}"
            )

    async def _fetch_schema(self) -> Mapping[str, Any]:
        with boundary("env", f"OpenEnv at {self.http_url}"):
            async with httpx.AsyncClient(timeout=self.message_timeout_s, trust_env=False) as client:
                answer = await client.get(f"{self.http_url}/schema")
                answer.raise_for_status()
                found = answer.json()
        schema = found.get("action") if isinstance(found, dict) else None
        if not isinstance(schema, Mapping):
            raise EpisodeError("env", "OpenEnv", f"{self.http_url}/schema names no action; is it an OpenEnv server?")
        return schema


async def _left(socket: Any) -> None:
    """Say that the session is over, where the connection still stands, and close it."""
    with contextlib.suppress(Exception):  # a connection that is gone has ended its session already
        await socket.send(json.dumps({"type": "close"}))
    await socket.close()


async def _opened(opening: Any) -> Any:
    return await opening


def _own_fields(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema without the field that every action has."""
    properties = {name: kind for name, kind in schema.get("properties", {}).items() if name != "metadata"}
    return {**schema, "properties": properties}


def _fields(schema: Mapping[str, Any]) -> str:
    properties = _own_fields(schema)["properties"]
    told = [f"{name} ({kind.get('type', 'any')})" for name, kind in properties.items()]
    return ", ".join(told) or "no fields"


def _only_text_field(schema: Mapping[str, Any]) -> str | None:
    texts = [name for name, kind in _own_fields(schema)["properties"].items() if kind.get("type") == "string"]
    required = [name for name in schema.get("required", ()) if name not in texts]
    return texts[0] if len(texts) == 1 and not required else None


def _told(observation: Any) -> str:
    """Return an observation as text: the text itself where it is one field, else its fields."""
    if isinstance(observation, Mapping) and len(observation) == 1:
        observation = next(iter(observation.values()))
    return observation if isinstance(observation, str) else json.dumps(observation, ensure_ascii=False)


def _why(data: Mapping[str, Any]) -> str:
    errors = data.get("errors")
    if not isinstance(errors, list):
        return str(data.get("message"))
    return "; ".join(f"{'.'.join(map(str, one.get('loc', ())))}: {one.get('msg')}" for one in errors)

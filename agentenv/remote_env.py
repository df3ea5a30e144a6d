"""`RemoteEnv`: an environment that lives in another process or on another machine, behind `agentenv serve-env`."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, cast

import numpy as np

from agentenv.engine.http import JsonClient, RefusedRequest
from agentenv.env import AgentEnv, Step
from agentenv.env_wire import (
    PROTOCOL,
    Body,
    generator_body,
    read_generator,
    read_messages,
    read_step,
    read_task,
    task_body,
)
from agentenv.errors import DataError, DeadlineExceeded, EngineError, EpisodeError, Side, UsageError, describe
from agentenv.messages import Message
from agentenv.reward import Reward, Rubric
from agentenv.spaces import MessageSpace
from agentenv.tasks import Task
from agentenv.trajectory import StopReason

TOKEN_VARIABLE = "AGENTENV_ENV_TOKEN"
"""Environment variable with the token of served environments; a token in a URL would end up in logs and records."""

_CLOSE_S = 10.0
_SIDES: tuple[Side, ...] = ("env", "tool", "sandbox", "engine", "reward")


class RemoteEnv(AgentEnv):
    """A served environment. It behaves as the one that is served; a server that is gone is a failure of side "env".

    Reward: whatever the served environment pays.

    Args:
        url: of the server, as `agentenv serve-env` prints it.
        request_timeout_s: seconds for one request, waiting for a free session included.
        render_mode: None or `"ansi"`.
        **env_kwargs: constructor arguments of the served environment.
    """

    def __init__(
        self, *, url: str, request_timeout_s: float = 150.0, render_mode: str | None = None, **env_kwargs: Any
    ) -> None:
        if request_timeout_s <= 0:
            raise UsageError(f"request_timeout_s is {request_timeout_s:g}; it must be positive")
        self.url = url.rstrip("/")
        self.request_timeout_s = request_timeout_s
        self.env_kwargs = env_kwargs
        self._specs: tuple[dict[str, object], ...] | None = None
        self._client: JsonClient | None = None
        self._session = ""
        super().__init__(render_mode=render_mode, split=env_kwargs.get("split", "train"))

    @property
    def tool_specs(self) -> tuple[dict[str, object], ...]:
        """Schemas of the tools that the model may call; before the first episode the server is asked for them."""
        if self._specs is None:
            facts = self._ask_now("/v1/env", {})
            if facts.get("protocol") != PROTOCOL:
                raise UsageError(
                    f"{self.url} speaks protocol {facts.get('protocol')!r}; this release speaks {PROTOCOL}"
                )
            self._note(facts)
        return self._specs or ()

    def offer_only(self, names: Sequence[str]) -> None:
        """Offer, for the rest of the episode, only these of the present tools."""
        self._note(self._ask_now(self._path("offer"), {"names": list(names)}))

    def oracle(self) -> str | Message:
        """Ask the served environment's oracle."""
        return self._ask_policy("oracle", np.random.default_rng(0))

    def demonstrate(self, rng: np.random.Generator) -> str | Message:
        """Ask the served environment's imperfect expert."""
        return self._ask_policy("demonstrate", rng)

    def random_action(self, rng: np.random.Generator) -> str | Message:
        """Ask the served environment's random policy."""
        return self._ask_policy("random_action", rng)

    async def reset_async(self, *, seed: int | None = None, task: Task | None = None) -> Step:
        """Start an episode in a session of one's own."""
        if self._state == "closed":
            raise UsageError(f"{type(self).__name__} was closed; make a new one")
        self._state, self._stop, self._num_turns = "failed", None, 0
        if not self._session:
            opened = await self._ask("/v1/sessions", {"env_kwargs": self.env_kwargs})
            self._session = str(opened["session"])
        body = await self._ask(self._path("reset"), {"seed": seed, "task": task_body(task)})
        self._note(body)
        step = self._read_step(body)
        shown = read_task(body["task"])
        assert shown is not None
        self.task = shown if task is None else replace(task, task_id=shown.task_id)
        self.conversation = list(step.messages)
        self._state = "open"
        return step

    async def step_async(self, turn: Message) -> Step:
        """Play one assistant turn."""
        self._require_open("step")
        self._state = "failed"
        self._num_turns += 1
        self.conversation.append(turn)
        step = self._read_step(await self._ask(self._path("step"), {"message": turn.to_dict()}))
        self.conversation.extend(step.messages)
        self._stop = step.stop_reason
        self._state = "open" if self._stop is None else "done"
        return step

    async def truncate_async(self, reason: StopReason) -> Step:
        """End the episode from outside; terminal rewards are still computed."""
        self._require_open("truncate")
        self._state = "failed"
        step = self._read_step(await self._ask(self._path("truncate"), {"reason": reason.value}))
        self._stop, self._state = reason, "done"
        return step

    async def close_async(self) -> None:
        """Close the session; a server that is gone closes it by itself, or is closed already."""
        self._state = "closed"
        client, self._client = self._client, None
        if client is None:
            return
        try:
            if self._session:
                await client.post(self._path("close"), {}, deadline_s=min(_CLOSE_S, self.request_timeout_s))
        except (EngineError, DeadlineExceeded):
            pass
        finally:
            await client.close()

    # Private.

    def _never_waits(self) -> bool:
        return False

    def _action_space(self) -> MessageSpace:
        return MessageSpace()

    def _path(self, verb: str) -> str:
        return f"/v1/sessions/{self._session}/{verb}"

    def _note(self, body: Body) -> None:
        """Take what the served environment shows of itself."""
        try:
            self._specs = tuple(cast("list[dict[str, object]]", body["tool_specs"]))
            self.max_turns = int(cast(int, body["max_turns"]))
            names = cast("list[str]", body["reward_names"])
            if tuple(names) != tuple(component.name for component in self.rubric.components):
                self.rubric = Rubric(components=tuple(Reward(name=name, function=_scored_elsewhere) for name in names))
        except (KeyError, TypeError, ValueError) as error:
            raise EpisodeError("env", self.url, f"is no environment server ({describe(error)})") from None

    def _read_step(self, body: Body) -> Step:
        try:
            return read_step(body)
        except (KeyError, TypeError, ValueError) as error:
            raise EpisodeError("env", self.url, f"answered with no step ({describe(error)})") from None

    def _ask_policy(self, name: str, rng: np.random.Generator) -> str | Message:
        body = self._ask_now(self._path("policy"), {"name": name, "rng": generator_body(rng)})
        # the caller's generator goes on where the policy left it, as it would in one process
        rng.bit_generator.state = read_generator(body["rng"]).bit_generator.state
        (message,) = read_messages([body["message"]])
        return message.content if body["is_text"] else message

    async def _ask(self, path: str, body: Body) -> dict[str, Any]:
        """Post from the event loop.

        Raises:
            EpisodeError: as the served environment raised it, or side "env" where the server is gone.
            UsageError: as the served environment raised it.
        """
        if self._client is None:
            self._client = JsonClient(self.url, headers=_headers(), busy_s=self.request_timeout_s, max_connections=1)
        try:
            return await self._client.post(path, body, deadline_s=self.request_timeout_s)
        except RefusedRequest as error:
            self._raise_fault(error.content, status=error.status)
        except DeadlineExceeded:
            raise DeadlineExceeded("env", self.url, f"no answer within {self.request_timeout_s:g} s") from None
        except (EngineError, TypeError, ValueError, RecursionError) as error:
            raise EpisodeError("env", self.url, describe(error)) from error

    def _ask_now(self, path: str, body: Body) -> dict[str, Any]:
        """Post from where nothing can be awaited; as `_ask`."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=json.dumps(body, default=str).encode(),
            headers={"Content-Type": "application/json", **_headers()},
        )
        try:
            with urllib.request.urlopen(request, timeout=self.request_timeout_s) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            self._raise_fault(error.read(), status=error.code)
        except (OSError, ValueError) as error:
            if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
                raise DeadlineExceeded("env", self.url, f"no answer within {self.request_timeout_s:g} s") from None
            raise EpisodeError("env", self.url, describe(error)) from error

    def _raise_fault(self, content: bytes, *, status: int) -> NoReturn:
        """Raise what the server told."""
        try:
            fault = cast("Mapping[str, Any]", json.loads(content))
            kind, message = str(fault["error"]), str(fault["message"])
        except (KeyError, TypeError, ValueError):
            raise EpisodeError("env", self.url, f"answered {status}: {content[:200]!r}") from None
        if kind in ("usage", "data") or status == 401:
            raise (DataError if kind == "data" else UsageError)(f"{self.url}: {message}")
        side = cast(Side, kind) if kind in _SIDES else "env"
        error_class = DeadlineExceeded if fault.get("type") == "DeadlineExceeded" else EpisodeError
        raise error_class(side, str(fault.get("where", self.url)), message)


def _headers() -> dict[str, str]:
    token = os.environ.get(TOKEN_VARIABLE, "")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _scored_elsewhere() -> float:
    raise AssertionError("the server computes the rewards")

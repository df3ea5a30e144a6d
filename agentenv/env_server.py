"""Serves one environment over HTTP: every session has a fresh environment, whose verbs are paths."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from agentenv.agent.gateway_http import Receive, Scope, Send, header, read_body
from agentenv.agent.http_listener import HttpListener
from agentenv.agent.model_request import RequestError
from agentenv.env import AgentEnv, group_rewards
from agentenv.env_sessions import EnvSession, EnvSessions
from agentenv.env_wire import (
    PROTOCOL,
    Body,
    generator_body,
    read_generator,
    read_messages,
    read_task,
    shown_task_body,
    step_body,
)
from agentenv.errors import DataError, EpisodeError, UsageError, describe
from agentenv.messages import Message
from agentenv.offload import is_leaving, within
from agentenv.registry import make_bare, registration
from agentenv.trajectory import StopReason

POLICIES = ("oracle", "demonstrate", "random_action")

_BUSY_STATUS = 503


class EnvServer:
    """Serves an environment in the event loop that started it.

    Args:
        env_id: registered id.
        env_kwargs: constructor arguments; a session may give others on top.
        host: address to listen on; one that other machines reach needs a token.
        port: 0 takes a free one.
        token: what clients must show; "" is none.
        max_sessions: environments that live at once; clients wait for a place.
        idle_timeout_s: seconds without a request after which a session is closed.
        request_timeout_s: seconds that the environment has for one request.
        max_body_bytes: longest request.

    Raises:
        UsageError: there is no such environment, or it cannot be served this way.
    """

    def __init__(
        self,
        env_id: str,
        *,
        env_kwargs: Mapping[str, object] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str = "",
        max_sessions: int = 512,
        idle_timeout_s: float = 900.0,
        request_timeout_s: float = 120.0,
        max_body_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        if max_sessions < 1 or idle_timeout_s <= 0 or request_timeout_s <= 0:
            raise UsageError(
                f"max_sessions is {max_sessions}, idle_timeout_s {idle_timeout_s:g} and request_timeout_s "
                f"{request_timeout_s:g}; all must be positive"
            )
        self.env_id = env_id
        self.env_kwargs = dict(env_kwargs or {})
        self.request_timeout_s = request_timeout_s
        self.max_body_bytes = max_body_bytes
        self.sessions = EnvSessions(max_sessions=max_sessions, idle_timeout_s=idle_timeout_s)
        self._facts = self._read_facts()
        self._listener = HttpListener(who="the environment server", host=host, port=port, token=token)

    @property
    def url(self) -> str:
        """What `agentenv.make` takes, on this machine."""
        return self._listener.root_url

    async def start(self) -> None:
        """Listen until `close`.

        Raises:
            UsageError: the port is taken, or the host is no address of this machine.
        """
        await self._listener.start(self._app())
        self.sessions.start_reaping()

    async def close(self) -> None:
        """Stop listening and close every environment; idempotent."""
        await self._listener.close()
        await self.sessions.close()

    # What the paths do.

    async def facts(self, body: Body) -> Body:
        """Say what is served."""
        return self._facts

    async def open(self, body: Body) -> Body:
        """Begin a session."""
        if self.sessions.is_full:
            raise RequestError(f"all {self.sessions.max_sessions} sessions are taken", status=_BUSY_STATUS)
        kwargs = body.get("env_kwargs") or {}
        if not isinstance(kwargs, Mapping):
            raise UsageError(f"env_kwargs is {type(kwargs).__name__}; expected an object")
        env = make_bare(self.env_id, **{**self.env_kwargs, **cast("Mapping[str, object]", kwargs)})
        return {"session": self.sessions.open(env).key, **_shown(env)}

    async def reset(self, session: EnvSession, body: Body) -> Body:
        """Start an episode."""
        seed = body.get("seed")
        if seed is not None and not isinstance(seed, int):
            raise UsageError(f"seed is {type(seed).__name__}; expected a whole number or null")
        env = session.env
        step = await env.reset_async(seed=seed, task=read_task(body.get("task")))
        return {**step_body(step), **_shown(env), "task": shown_task_body(env.task)}

    async def step(self, session: EnvSession, body: Body) -> Body:
        """Play a turn."""
        (turn,) = read_messages([body.get("message")])
        return step_body(await session.env.step_async(turn))

    async def truncate(self, session: EnvSession, body: Body) -> Body:
        """End the episode from outside."""
        return step_body(await session.env.truncate_async(StopReason(cast(str, body.get("reason")))))

    async def offer(self, session: EnvSession, body: Body) -> Body:
        """Offer only some of the tools."""
        names = body.get("names")
        if not isinstance(names, list):
            raise UsageError("names must be a list")
        session.env.offer_only([str(name) for name in names])
        return _shown(session.env)

    async def policy(self, session: EnvSession, body: Body) -> Body:
        """Ask one of the environment's own policies for the next turn."""
        name = body.get("name")
        if name not in POLICIES:
            raise UsageError(f"policy is {name!r}; allowed are {', '.join(POLICIES)}")
        rng = read_generator(body.get("rng"))
        said = session.env.oracle() if name == "oracle" else getattr(session.env, str(name))(rng)
        message = Message(role="assistant", content=said) if isinstance(said, str) else said
        return {"message": message.to_dict(), "is_text": isinstance(said, str), "rng": generator_body(rng)}

    async def shut(self, session: EnvSession, body: Body) -> Body:
        """End the session."""
        raise AssertionError("answered without the session's lock")

    # Private.

    def _read_facts(self) -> dict[str, object]:
        env_class = registration(self.env_id).load()
        if group_rewards(env_class):
            raise UsageError(f"{self.env_id} scores whole groups, which a session does not see; it cannot be served")
        env = make_bare(self.env_id, **self.env_kwargs)
        return {"protocol": PROTOCOL, "env_id": self.env_id, **_shown(env)}

    def _app(self) -> Any:
        from starlette.routing import Route, Router

        verbs = {"reset": self.reset, "step": self.step, "truncate": self.truncate}
        verbs |= {"offer": self.offer, "policy": self.policy, "close": self.shut}
        routes = [Route("/v1/env", _Answer(self, self.facts)), Route("/v1/sessions", _Answer(self, self.open))]
        routes += [Route(f"/v1/sessions/{{key}}/{name}", _Answer(self, verb)) for name, verb in verbs.items()]
        return Router(routes, redirect_slashes=False, default=_nothing_here)

    async def answer(self, verb: Callable[..., Any], scope: Scope, receive: Receive) -> Body:
        """Run what a path stands for."""
        if not self._listener.is_token(header(scope, b"authorization").removeprefix("Bearer ").strip()):
            raise RequestError("the token is missing or wrong; set AGENTENV_ENV_TOKEN", status=401)
        body = _object(await read_body(scope, receive, max_bytes=self.max_body_bytes))
        key = scope["path_params"].get("key")
        if key is None:
            return await verb(body)
        session = self.sessions.find(key)
        if session is None:
            raise RequestError("there is no such session: it was closed, or was idle for too long", status=404)
        if verb == self.shut:
            await self.sessions.shut(session)
            return {}
        if session.lock.locked():
            raise RequestError("the session is answering another request", status=409)
        async with session.lock:
            try:
                return await within(
                    verb(session, body), timeout_s=self.request_timeout_s, side="env", where=self.env_id
                )
            finally:
                session.used = time.monotonic()


class _Answer:
    """Answers one path with JSON; whatever goes wrong is told with its side."""

    def __init__(self, server: EnvServer, verb: Callable[..., Any]) -> None:
        self.server = server
        self.verb = verb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an ASGI request."""
        try:
            body, status = await self.server.answer(self.verb, scope, receive), 200
        except RequestError as error:
            body, status = _fault("request", str(error)), error.status
        except EpisodeError as error:
            body, status = {**_fault(error.side, str(error)), "where": error.where, "type": type(error).__name__}, 500
        except (UsageError, ValueError, TypeError) as error:
            kind = "data" if isinstance(error, DataError) else "usage"
            body, status = _fault(kind, str(error)), 400
        except BaseException as error:
            if not isinstance(error, Exception) and is_leaving(error):
                raise
            body, status = {**_fault("env", describe(error)), "where": self.server.env_id, "type": "EpisodeError"}, 500
        await _send(send, body, status=status)


def _shown(env: AgentEnv) -> dict[str, object]:
    """Return what a client's environment shows of this one."""
    return {
        "tool_specs": list(env.tool_specs),
        "max_turns": env.max_turns,
        "reward_names": [component.name for component in env.rubric.components],
    }


def _fault(kind: str, message: str) -> dict[str, object]:
    return {"error": kind, "message": message}


def _object(raw: bytes) -> Body:
    try:
        value = json.loads(raw) if raw else {}
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON ({describe(error)[:200]})") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body is {type(value).__name__}; expected a JSON object")
    return value


async def _send(send: Send, body: Body, *, status: int) -> None:
    raw = json.dumps(body, separators=(",", ":"), default=str).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


async def _nothing_here(scope: Any, receive: Any, send: Any) -> None:
    """Answer every other path."""
    if scope["type"] == "http":
        told = f"nothing is served at {scope['path'][:200]!r}; there are /v1/env and /v1/sessions"
        await _send(send, _fault("request", told), status=404)


def serve_in_terminal(env_id: str, *, echo: Callable[[str], object], **options: Any) -> None:
    """Serve until interrupted; see `EnvServer`."""

    async def run() -> None:
        server = EnvServer(env_id, **options)
        stop = asyncio.Event()
        for one in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(one, stop.set)
        await server.start()
        try:
            echo(f"serving {env_id} at {server.url}")
            await stop.wait()
        finally:
            await server.close()

    asyncio.run(run())

"""Any program that calls an OpenAI or Anthropic endpoint plays episodes, and is trained without a change to it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from agentenv.agent.endpoint import Endpoint
from agentenv.agent.gateway_server import Gateway
from agentenv.agent.program import Command, Function, PlayFunction, Program
from agentenv.agent.session import Session
from agentenv.episode import Episode
from agentenv.errors import EpisodeError, UsageError


class GatewayAgent:
    """Plays episodes by running a program against an endpoint of its own for each of them.

    The program gets base URLs and keys in the variables that OpenAI's and Anthropic's clients read, and its task as
    JSON in `AGENTENV_TASK`. It may use the environment's tools (`POST {OPENAI_BASE_URL}/tools/NAME`) or its own. What
    it answers, the last line `{"answer": ...}` that it prints or else the last turn of the model, is played in the
    environment; while that goes on, the program is run again with the longer conversation.

    The program is the user's own code. It runs with the rights of this process, outside any sandbox.

    Args:
        command: program and arguments, run anew for every episode.
        function: instead, an async function `play(base_url, api_key, task)`, or its import string `module:name`.
        host: address of the gateway.
        port: its port; 0 takes a free one.
        token: what clients must show; needed where `host` is no loopback address.
        max_body_bytes: longest request.
        request_timeout_s: seconds after which a turn that is not sampled is given up.
        grace_s: seconds that a program has to end by itself once its episode is over.

    Raises:
        UsageError: not exactly one of command and function was given, they cannot be run, the host needs a token, or a
            package is missing.
    """

    keeps_history: ClassVar[bool] = True
    """The program holds the conversation; shortening it is the program's business."""

    def __init__(
        self,
        command: Sequence[str] | None = None,
        function: str | PlayFunction | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str = "",
        max_body_bytes: int = 32 * 1024 * 1024,
        request_timeout_s: float = 600.0,
        grace_s: float = 5.0,
    ) -> None:
        if (command is None) == (function is None):
            raise UsageError("a gateway agent runs a command or a function; pass exactly one of them")
        self._program: Program = Command(command) if function is None else Function(function)  # type: ignore[arg-type]
        self._make_gateway = lambda: Gateway(
            host=host, port=port, token=token, max_body_bytes=max_body_bytes, request_timeout_s=request_timeout_s
        )
        self._make_gateway()  # what is wrong with its options is said now
        self._grace_s = grace_s
        self._starting: asyncio.Task[Gateway] | None = None
        self._is_closed = False

    async def play(self, episode: Episode) -> None:
        """Run the program until the environment ends or a budget is exhausted."""
        opening = await episode.reset()
        gateway = await self._serving()
        endpoint = gateway.open(Session(episode), opening=opening)
        try:
            while episode.stop_reason is None:
                await self._play_once(endpoint)
        finally:
            await gateway.shut(endpoint)

    async def close(self) -> None:
        """Stop the gateway; idempotent."""
        self._is_closed = True
        starting, self._starting = self._starting, None
        # one that another loop started ended with that loop
        if starting is not None and starting.get_loop() is asyncio.get_running_loop():
            gateway = await starting
            await gateway.close()

    async def __aenter__(self) -> GatewayAgent:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _serving(self) -> Gateway:
        """Return the gateway of this loop, started on first use."""
        if self._is_closed:
            raise UsageError("the gateway agent was closed; make a new one")
        starting = self._starting
        if starting is None or starting.get_loop() is not asyncio.get_running_loop():
            starting = self._starting = asyncio.create_task(self._start(), name="start gateway")
        return await asyncio.shield(starting)  # others wait for it too

    async def _start(self) -> Gateway:
        gateway = self._make_gateway()
        await gateway.start()
        return gateway

    async def _play_once(self, endpoint: Endpoint) -> None:
        """Run the program once and play what it answers."""
        episode, num_replies = endpoint.session.episode, endpoint.num_replies
        answer: str | None = None
        failure: EpisodeError | None = None
        try:
            answer = await _finished(self._program, endpoint, grace_s=self._grace_s)
        except EpisodeError as error:
            failure = error
        await endpoint.cancel_calls()
        await endpoint.desk.settle()
        if endpoint.broken is not None:
            raise endpoint.broken
        if episode.stop_reason is not None:
            return  # it does not matter how a program ends after its episode
        if endpoint.failure is not None:
            raise endpoint.failure
        if endpoint.refused is not None:
            await episode.truncate(endpoint.refused.reason)
            return
        if failure is not None:
            raise failure
        if endpoint.num_replies == num_replies:
            said = f"; its last request was refused: {endpoint.last_error}" if endpoint.last_error else ""
            raise EpisodeError(
                "env", "program", f"it ended without a turn of the model{said or '; is OPENAI_BASE_URL what it calls?'}"
            )
        await endpoint.answer(answer)


async def _finished(program: Program, endpoint: Endpoint, *, grace_s: float) -> str | None:
    """Run a program to its end. When the episode is over it gets a grace to end by itself."""
    running = asyncio.create_task(program.run(endpoint))
    over = asyncio.create_task(endpoint.is_over.wait())
    try:
        await asyncio.wait((running, over), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((running,), timeout=grace_s)
        return running.result() if running.done() else None
    finally:
        over.cancel()
        if not running.done():
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

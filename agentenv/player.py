"""Who is evaluated: scripted policies, models in the embedded engine, served engines, and endpoints, by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from agentenv.agent.policy import POLICIES, PolicyAgent, PolicyName
from agentenv.agent.protocol import Agent
from agentenv.agent.registry import make_agent
from agentenv.byte_tokenizer import vision_byte_tokenizer
from agentenv.engine.protocol import Engine
from agentenv.engine.scripted import ScriptedEngine
from agentenv.episode import Limits, Sampling
from agentenv.errors import UsageError, did_you_mean
from agentenv.renderer import Renderer
from agentenv.runner import Runner, RunnerConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agentenv.agent.openai_endpoint import EndpointAgent

PlayerKind = Literal["policy", "model", "openai", "vllm", "sglang"]

_FORMS = "oracle, demonstrate, random, model:FOLDER, openai:URL#MODEL, vllm:URL#FOLDER, sglang:URL#FOLDER"

# What does not come from an engine is recorded in bytes, so budgets in tokens are wide.
_BYTES = Limits(
    max_turn_tokens=100_000,
    max_episode_tokens=1_000_000,
    max_context_tokens=2_000_000,
    max_observation_tokens=100_000,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """One who can be evaluated.

    Attributes:
        label: as the user wrote it.
        kind: a scripted policy, a model in the embedded engine, or where it is served.
        url: of the endpoint or the server.
        model: the policy's name, the model's folder or Hub id, or its name at the endpoint.
    """

    label: str
    kind: PlayerKind
    model: str
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayerOptions:
    """How players play.

    Attributes:
        temperature: of models and endpoints; 0 is greedy.
        agent: how models play: a shipped agent or an import string.
        agent_kwargs: its arguments.
        api_key_env: environment variable that holds the key of endpoints.
        max_tokens: tokens of an endpoint's turn at most; None leaves that to it.
        limits: budgets of episodes that models play.
        max_requests: requests that an endpoint answers at once.
    """

    temperature: float = 1.0
    agent: str = "chat"
    agent_kwargs: Mapping[str, object] = field(default_factory=dict)
    api_key_env: str | None = None
    max_tokens: int | None = None
    limits: Limits = field(default_factory=Limits)
    max_requests: int = 64


def parse_player(text: str) -> Player:
    """Read a player as the command line names it.

    Raises:
        UsageError: says which forms there are.
    """
    if text in POLICIES:
        return Player(label=text, kind="policy", model=text)
    kind, colon, rest = text.partition(":")
    if colon and rest and kind == "model":
        return Player(label=text, kind="model", model=rest)
    if colon and kind in ("openai", "vllm", "sglang"):
        url, _, model = rest.partition("#")
        if url and model:
            return Player(label=text, kind=cast(PlayerKind, kind), model=model, url=url)
        raise UsageError(f"player {text!r}: write {kind}:URL#{'MODEL' if kind == 'openai' else 'FOLDER'}")
    known = [*POLICIES, "model", "openai", "vllm", "sglang"]
    raise UsageError(f"there is no player {text!r}.{did_you_mean(kind, known)} Players: {_FORMS}")


def parse_players(texts: Sequence[str]) -> tuple[Player, ...]:
    """Read players, each of which may come once."""
    twice = [text for index, text in enumerate(texts) if text in texts[:index]]
    if twice:
        raise UsageError(f"player {twice[0]!r} was given twice; with the same seeds it would play the same episodes")
    return tuple(map(parse_player, texts))


async def check_player(player: Player, *, options: PlayerOptions) -> None:
    """Find out, before anything is played, what would keep a player from playing.

    Raises:
        UsageError: its endpoint does not answer or refuses the key, or its model has no usable tokenizer.
    """
    if player.kind == "openai":
        agent = _endpoint(player, options)
        try:
            await agent.check()
        finally:
            await agent.close()
    elif player.kind != "policy":
        from agentenv.tokenizer import load_tokenizer

        load_tokenizer(player.model)
        make_agent(options.agent, **options.agent_kwargs)


@asynccontextmanager
async def open_player(player: Player, *, options: PlayerOptions | None = None) -> AsyncIterator[Runner]:
    """Give a runner whose episodes the player plays; what it holds is closed at the end."""
    options = PlayerOptions() if options is None else options
    async with AsyncExitStack() as stack:
        if player.kind == "policy":
            runner = byte_runner(PolicyAgent(cast(PolicyName, player.model)))
        elif player.kind == "openai":
            agent = _endpoint(player, options)
            stack.push_async_callback(agent.close)
            runner = byte_runner(agent, temperature=options.temperature, max_episodes=options.max_requests)
        else:
            runner = await _model_runner(player, options=options, stack=stack)
        stack.push_async_callback(runner.close)
        yield runner


def byte_runner(agent: Agent, *, limits: Limits = _BYTES, temperature: float = 1.0, max_episodes: int = 512) -> Runner:
    """Return a runner for an agent that speaks without an engine."""
    return Runner(
        engine=ScriptedEngine([()]),
        renderer=Renderer(vision_byte_tokenizer(), family="qwen3-vl"),
        agent=agent,
        config=RunnerConfig(limits=limits, max_tokens=10**9, max_episodes=max_episodes, max_retries=0),
        sampling=Sampling(temperature=temperature),
    )


async def _model_runner(player: Player, *, options: PlayerOptions, stack: AsyncExitStack) -> Runner:
    from agentenv.tokenizer import load_tokenizer

    renderer = Renderer(load_tokenizer(player.model))
    agent = make_agent(options.agent, **options.agent_kwargs)
    close = getattr(agent, "close", None)
    if close is not None:
        stack.push_async_callback(close)
    engine = await _engine(player)
    stack.push_async_callback(engine.close)
    return Runner(
        engine=engine,
        renderer=renderer,
        agent=agent,
        config=RunnerConfig(limits=options.limits),
        sampling=Sampling(temperature=options.temperature),
    )


async def _engine(player: Player) -> Engine:
    if player.kind == "model":
        from agentenv.engine.hf import HFEngine

        return HFEngine.from_pretrained(player.model)
    from agentenv.engine.server_config import ServerConfig

    assert player.kind in ("vllm", "sglang")
    open_engine: Any = importlib.import_module("agentenv.engine.open").open_engine
    return await open_engine(ServerConfig(name=player.kind, url=player.url), model=player.model)


def _endpoint(player: Player, options: PlayerOptions) -> EndpointAgent:
    from pydantic import ValidationError

    from agentenv.agent.openai_endpoint import EndpointAgent, EndpointConfig

    try:
        config = EndpointConfig(
            url=player.url, model=player.model, api_key_env=options.api_key_env, max_tokens=options.max_tokens
        )
    except ValidationError as error:
        told = "; ".join(str(item["msg"]).removeprefix("Value error, ") for item in error.errors())
        raise UsageError(f"player {player.label!r}: {told}") from None
    return EndpointAgent(config)

"""An episode behind a gateway, for tests that call it like a program."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from agentenv import make_bare
from agentenv.agent.endpoint import Endpoint
from agentenv.agent.gateway_server import Gateway
from agentenv.agent.session import Session
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.scripted import ScriptedEngine
from agentenv.env import tool_turn
from agentenv.episode import Episode, EpisodeSpec, Limits, Sampling
from agentenv.messages import Message, ToolCall
from agentenv.renderer import Renderer

RENDERER = Renderer(byte_tokenizer(), family="qwen3")
WIDE = Limits(max_turn_tokens=2048, max_episode_tokens=10**6, max_context_tokens=10**6)
ENV_ID = "agentenv/GuessNumber-v0"
LOOK: Any = {
    "name": "look",
    "description": "Look.",
    "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
}
CHAT_TOOLS: Any = [{"type": "function", "function": LOOK}]


def said(text: str) -> tuple[int, ...]:
    return RENDERER.turn_ids(Message(role="assistant", content=text))


def called(name: str, *, content: str = "", **arguments: object) -> tuple[int, ...]:
    return RENDERER.turn_ids(tool_turn(name, arguments, content=content))


def called_twice() -> tuple[int, ...]:
    calls = tuple(ToolCall(call_id=f"c{n}", name="look", arguments={"n": n}) for n in (1, 2))
    return RENDERER.turn_ids(Message(role="assistant", content="Both.", tool_calls=calls))


def written(text: str) -> tuple[int, ...]:
    """Return the ids of a turn as a model may write it, well formed or not."""
    return tuple(RENDERER.tokenizer.encode(text + "<|im_end|>"))


# a call whose arguments are a list, which no tool takes
MALFORMED = written('<tool_call>\n{"name": "look", "arguments": [1]}\n</tool_call>')


@dataclass(kw_only=True)
class Served:
    """An open episode, and what stands behind it."""

    gateway: Gateway
    endpoint: Endpoint
    engine: ScriptedEngine
    session: Session

    def recorded(self) -> list[list[int]]:
        """Return the ids of the sequences that would be trained on."""
        return [sequence.token_ids.tolist() for sequence in self.session.episode.recorder.sequences()]

    def seen(self) -> list[list[int]]:
        """Return prompt and completion of every request, as the engine has them."""
        return [[*e.request.prompt_ids, *e.completion.token_ids] for e in self.engine.exchanges]


async def new_session(engine: ScriptedEngine, *, seed: int = 0, limits: Limits = WIDE) -> tuple[Session, list[Message]]:
    """Return a session of a fresh episode, and its opening."""
    episode = Episode(
        EpisodeSpec(env_id=ENV_ID, seed=seed, group_id=str(seed)),
        env=make_bare(ENV_ID, max_guesses=8),
        engine=engine,
        renderer=RENDERER,
        limits=limits,
        sampling=Sampling(),
    )
    opening = await episode.reset()
    return Session(episode), list(opening)


@asynccontextmanager
async def served(
    script: Any, *, limits: Limits = WIDE, gateway: Gateway | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Serve one episode whose model follows a script."""
    engine = ScriptedEngine(script, keep_exchanges=True, **options)
    session, opening = await new_session(engine, limits=limits)
    gateway = Gateway() if gateway is None else gateway
    await gateway.start()
    try:
        endpoint = gateway.open(session, opening=opening)
        yield Served(gateway=gateway, endpoint=endpoint, engine=engine, session=session)
    finally:
        await gateway.close()

"""A person at the terminal as the agent, through the same loop as a model."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

from agentenv.agent.chat import ChatAgent
from agentenv.agent.policy import record_spoken
from agentenv.engine.protocol import Completion
from agentenv.episode import Episode
from agentenv.errors import UsageError
from agentenv.messages import Message, ToolCall
from agentenv.vision import described_content


class Left(BaseException):
    """The person left; like a keyboard interrupt it is nobody's failure and ends the game."""


class HumanAgent(ChatAgent):
    """Shows what the environment says and reads the next turn.

    A line that begins with a tool's name is a call: `guess 7`, `guess number=7` or `guess {"number": 7}`. Anything
    else is said as text.

    Args:
        ask: reads one line; gets the prompt to show. Raises `EOFError` when the person leaves, which raises `Left`.
        show: shows a text.
    """

    uses_engine: ClassVar[bool] = False

    def __init__(self, *, ask: Callable[[str], str], show: Callable[[str], None]) -> None:
        super().__init__()
        self.ask = ask
        self.show = show

    async def speak(self, episode: Episode) -> Completion:
        """Show what is new and read a turn."""
        self._show_new(episode)
        try:
            line = await asyncio.to_thread(self.ask, "you> ")
        except EOFError:
            raise Left from None
        return record_spoken(episode, read_line(line, tools=episode.tools))

    def _show_new(self, episode: Episode) -> None:
        spoken = [i for i, m in enumerate(episode.conversation) if m.role == "assistant"]
        if not spoken and episode.tools:
            self.show("tools: " + "; ".join(_usage(tool) for tool in episode.tools))
        for message in episode.conversation[spoken[-1] + 1 if spoken else 0 :]:
            self.show(f"{message.name or message.role}> {described_content(message)}")


def read_line(line: str, *, tools: tuple[Mapping[str, object], ...]) -> Message:
    """Turn a typed line into an assistant turn."""
    name, _, rest = line.strip().partition(" ")
    properties = {_function(tool)["name"]: _properties(tool) for tool in tools}
    if name not in properties:
        return Message(role="assistant", content=line)
    call = ToolCall(call_id="call_0", name=name, arguments=_arguments(rest.strip(), properties[name]))
    return Message(role="assistant", content="", tool_calls=(call,))


def _arguments(text: str, properties: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    if text.startswith("{"):
        try:
            value = json.loads(text)
        except ValueError as error:
            raise UsageError(f"not valid JSON: {error}") from None
        return cast("dict[str, object]", value)
    if len(properties) == 1 and "=" not in text:
        (only,) = properties
        return {only: _value(text, properties[only])} if text else {}
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    names = iter(properties)
    out: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (equals and key in properties):
            key, value = next((n for n in names if n not in out), "argument"), word
        out[key] = _value(value, properties.get(key, {}))
    return out


def _value(text: str, kind: Mapping[str, Any]) -> object:
    if kind.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _function(tool: Mapping[str, object]) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], tool["function"])


def _properties(tool: Mapping[str, object]) -> Mapping[str, Mapping[str, Any]]:
    return cast(Mapping[str, Mapping[str, Any]], _function(tool)["parameters"].get("properties", {}))


def _usage(tool: Mapping[str, object]) -> str:
    return " ".join([_function(tool)["name"], *(f"<{name}>" for name in _properties(tool))])

"""ReAct: thoughts, actions and observations as plain text, for models that have no tokens for tool calls.

The format of Yao et al. 2022 (https://arxiv.org/abs/2210.03629) in the wording that most prompts use today:
`Thought`, `Action`, `Action Input` (a JSON object), `Observation`, `Final Answer`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from agentenv.agent.chat import ChatAgent
from agentenv.agent.dialect import Spoken
from agentenv.context import DROPPED, Entry
from agentenv.errors import UsageError
from agentenv.messages import CallStatus, Message, ToolCall, decode_arguments, malformed_call
from agentenv.renderer import Renderer, ToolSpecs

INSTRUCTIONS = """You solve the task in steps that you write as plain text. These tools help you:

{tools}

To use a tool, write this, and then end your turn:
Thought: what you think
Action: the name of one tool ({names})
Action Input: its arguments, as one JSON object

The result comes back as "Observation: ...". Never write an observation yourself. When you are done, write:
Thought: what you think
Final Answer: your answer"""

HALLUCINATED = "hallucinated_observations"

ObservationRole = Literal["auto", "user", "tool"]

_LABEL = re.compile(
    r"^[ \t*#]*(thought|action(?:[ \t]+input)?|observation|final[ \t]+answer)[ \t*]*:\**[ \t]*", re.I | re.M
)
_AROUND_A_NAME = " \t`'\"*[]"
_MAX_RAW_CHARS = 2000
_ERRORS: Mapping[CallStatus, str] = {
    "invalid_json": "Action Input is not valid JSON. Write the arguments as one JSON object.",
    "malformed_structure": "Action Input is not a JSON object. Write the arguments as one JSON object.",
    "missing_name": 'there is no tool name after "Action:".',
}
_NO_ACTION = 'there is neither an "Action:" nor a "Final Answer:". Write one of them.'


@dataclass(frozen=True, slots=True, kw_only=True)
class ReActTurn:
    """What a text says in the ReAct format.

    Attributes:
        message: the turn as the environment plays it: thoughts as reasoning, actions as calls, or the final answer
            as content.
        kept: the text up to an observation that the model made up.
        is_hallucinating: the model wrote an observation itself.
    """

    message: Message
    kept: str
    is_hallucinating: bool


def parse_react(text: str, *, has_tools: bool = True, turn: int = 0) -> ReActTurn:
    """Read a turn; any text gives a message.

    What comes first counts, actions or a final answer. Everything from the first `Observation:` line on is left out:
    the model does not know it. Of several actions each becomes a call. A turn with neither action nor answer becomes a
    malformed call; where there are no tools it is an answer.

    Args:
        text: what the model wrote.
        has_tools: whether there is anything to call.
        turn: index of the turn; makes call ids unique within the episode.
    """
    kept, is_hallucinating = _before_observation(text)
    sections = list(_sections(kept))
    labels = [label for label, _, _ in sections]
    answer = labels.index("final answer") if "final answer" in labels else len(labels)
    is_action = has_tools and any(label in ("action", "action input") for label in labels[:answer])
    spoken = sections if is_action else sections[:answer]
    thoughts = [body for label, body, _ in spoken if label == "thought" and body]
    reasoning = "\n".join(thoughts)
    if is_action:
        message = Message(role="assistant", content="", tool_calls=_calls(sections, turn=turn), reasoning=reasoning)
    elif answer < len(labels):
        message = Message(role="assistant", content=kept[sections[answer][2] :].strip(), reasoning=reasoning)
    elif has_tools:
        raw = text.strip()[:_MAX_RAW_CHARS]
        call = malformed_call(call_id=f"call_{turn}_0", status="malformed_structure", raw=raw)
        message = Message(role="assistant", content="", tool_calls=(call,), reasoning=reasoning)
    else:
        message = Message(role="assistant", content=kept.strip())
    return ReActTurn(message=message, kept=kept.rstrip(), is_hallucinating=is_hallucinating)


def write_react(message: Message) -> str:
    """Return a turn as text that `parse_react` reads back."""
    thoughts = " ".join(part for part in (message.reasoning, message.content if message.tool_calls else "") if part)
    lines = [f"Thought: {thoughts}"] if thoughts else []
    for call in message.tool_calls:
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False, default=str)
        lines += [f"Action: {call.name}", f"Action Input: {arguments}"]
    if not message.tool_calls:
        lines.append(f"Final Answer: {message.content}")
    return "\n".join(lines)


class ReActDialect:
    """Turns as text in the ReAct format; tools are described in the system message.

    Args:
        instructions: text that is added to the system message; `{tools}` and `{names}` are filled in.
        observation_role: in which role observations are shown: `"user"`, `"tool"`, or `"auto"`: the user, unless the
            chat template rewrites history at a user's message (Qwen3) and shows a tool's without doing so.
    """

    def __init__(self, *, instructions: str = INSTRUCTIONS, observation_role: ObservationRole = "auto") -> None:
        if observation_role not in ("auto", "user", "tool"):
            raise UsageError(f'observation_role is {observation_role!r}; allowed are "auto", "user" and "tool"')
        self.instructions = instructions
        self.observation_role: ObservationRole = observation_role

    def opening(self, messages: Sequence[Message], *, tools: ToolSpecs) -> tuple[Message, ...]:
        """Return the messages with the tools and the format described in the system message."""
        if not tools:
            return tuple(messages)
        names = ", ".join(str(_function(tool)["name"]) for tool in tools)
        described = "\n".join(map(_described, tools))
        text = self.instructions.replace("{names}", names).replace("{tools}", described)
        if messages and messages[0].role == "system":
            return (replace(messages[0], content=f"{messages[0].content}\n\n{text}"), *messages[1:])
        return (Message(role="system", content=text), *messages)

    def shown_tools(self, tools: ToolSpecs) -> ToolSpecs:
        """Return none: the template does not know of tools."""
        return ()

    def read(self, token_ids: Sequence[int], *, renderer: Renderer, tools: ToolSpecs, turn: int) -> Spoken:
        """Read actions from the text of a turn."""
        said = renderer.parse(token_ids)
        read = parse_react(said.content, has_tools=bool(tools), turn=turn)
        reasoning = "\n".join(part for part in (said.reasoning, read.message.reasoning) if part)
        return Spoken(
            message=replace(read.message, reasoning=reasoning),
            shown=Message(role="assistant", content=read.kept, reasoning=said.reasoning),
            counts={HALLUCINATED: 1.0} if read.is_hallucinating else {},
        )

    def write(self, message: Message) -> Message:
        """Return the turn as text."""
        return Message(role="assistant", content=write_react(message))

    def replies(self, turn: Message, messages: Sequence[Message], *, renderer: Renderer) -> tuple[Entry, ...]:
        """Return the results of a turn's actions as one message, and what else the environment said after it."""
        results = [message for message in messages if message.role == "tool"]
        others = tuple(Entry(message=message, part="reply") for message in messages if message.role != "tool")
        if not results:
            return others
        calls = {call.call_id: call for call in turn.tool_calls}
        texts = [f"Observation: {_result(message, calls.get(message.tool_call_id))}" for message in results]
        message = self._observation("\n".join(texts), first=results[0], renderer=renderer)
        return (Entry(message=message, part="reply", stub=replace(message, content=f"Observation: {DROPPED}")), *others)

    def _observation(self, text: str, *, first: Message, renderer: Renderer) -> Message:
        role = self.observation_role
        if role == "auto":
            is_tool = not _is_appended("user", renderer=renderer) and _is_appended("tool", renderer=renderer)
            role = "tool" if is_tool else "user"
        if role == "user":
            return Message(role="user", content=text)
        return Message(role="tool", content=text, tool_call_id=first.tool_call_id, name=first.name)


class ReActAgent(ChatAgent):
    """The chat loop in the ReAct text format.

    The end of a turn is the model's own stop id: a stop text such as `Observation:` would cut between token ids. What
    the model writes after an observation of its own invention stays in the record, is trained like the rest of its
    turn, is not acted upon, and is counted in the metric `hallucinated_observations`.

    Args:
        instructions: as in `ReActDialect`.
        observation_role: as in `ReActDialect`.
    """

    def __init__(self, *, instructions: str = INSTRUCTIONS, observation_role: ObservationRole = "auto") -> None:
        super().__init__(dialect=ReActDialect(instructions=instructions, observation_role=observation_role))


def _is_appended(role: Literal["user", "tool"], *, renderer: Renderer) -> bool:
    """True where the chat template shows a message of this role after a turn and leaves what stands before it alone."""
    probe = Message(role=role, content="Observation: probe", tool_call_id="call_0_0" if role == "tool" else "")
    ids = renderer.continuation_ids((probe,), is_closed=True)
    return ids is not None and probe.content in renderer.decode(ids)


def _before_observation(text: str) -> tuple[str, bool]:
    """Return the text up to its first observation, and whether there was one."""
    start = next((match.start() for match in _LABEL.finditer(text) if _label(match) == "observation"), None)
    return (text, False) if start is None else (text[:start], True)


def _sections(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield label, body, and where the body begins; text before the first label is a thought."""
    matches = list(_LABEL.finditer(text))
    ends = [match.start() for match in matches] + [len(text)]
    if text[: ends[0]].strip():
        yield "thought", text[: ends[0]].strip(), 0
    for match, end in zip(matches, ends[1:], strict=True):
        yield _label(match), text[match.end() : end].strip(), match.end()


def _label(match: re.Match[str]) -> str:
    return " ".join(match.group(1).lower().split())


def _calls(sections: Sequence[tuple[str, str, int]], *, turn: int) -> tuple[ToolCall, ...]:
    """Pair every action with the input that follows it; an action without one has no arguments."""
    calls: list[ToolCall] = []
    pending: str | None = None
    for label, body, _ in [*sections, ("action", "", 0)]:
        if label not in ("action", "action input"):
            continue
        if label == "action input" or pending is not None:
            given = body if label == "action input" else ""
            calls.append(_call(pending or "", given, call_id=f"call_{turn}_{len(calls)}"))
        pending = body if label == "action" else None
    return tuple(calls)


def _call(name: str, given: str, *, call_id: str) -> ToolCall:
    first_line = name.strip().partition("\n")[0].strip(_AROUND_A_NAME)
    raw = f"Action: {name}\nAction Input: {given}"[:_MAX_RAW_CHARS]
    if not first_line:
        return malformed_call(call_id=call_id, status="missing_name", raw=raw)
    arguments, status = decode_arguments(_without_fence(given))
    return ToolCall(call_id=call_id, name=first_line, arguments=arguments, status=status, raw=raw)


def _without_fence(text: str) -> str:
    """Return what stands inside a Markdown code fence, where there is one."""
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        return text[text.index("\n") : -3].strip()
    return text


def _result(message: Message, call: ToolCall | None) -> str:
    """Return a tool's output; what the environment says of a malformed call is put in the words of this format."""
    if call is None or call.status == "ok":
        return message.content
    is_empty = call.status == "malformed_structure" and not call.name
    return f"Error: {_NO_ACTION if is_empty else _ERRORS.get(call.status, message.content)}"


def _function(tool: Mapping[str, object]) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], tool["function"])


def _described(tool: Mapping[str, object]) -> str:
    function = _function(tool)
    schema = json.dumps(function.get("parameters", {}), ensure_ascii=False)
    return f"- {function['name']}: {function.get('description', '')} Arguments: {schema}"

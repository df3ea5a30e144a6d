"""What the spans say: attributes by the names of the GenAI semantic conventions where they have one, else `agentenv.*`.

Conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/. They are still in development; the names here are
those of release 1.37 and later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from agentenv.engine.protocol import Completion
from agentenv.messages import Message, ToolCall, ToolResult
from agentenv.trajectory import Trajectory, Turn

if TYPE_CHECKING:
    from agentenv.episode import Episode, EpisodeSpec

Value = str | bool | int | float | Sequence[str] | Sequence[float]
Attributes = Mapping[str, Value]

MAX_CONTENT_CHARS = 4000
"""How much text one attribute carries."""
_CUT_MARK = " [cut]"
_INT64 = 2**63


def clean(attributes: Attributes) -> dict[str, Value]:
    """Return what every exporter can encode: no lone surrogates, no integer past 64 bits.

    One value that protocol buffers refuse would cost the whole batch.
    """
    return {_encodable(key): _plain(value) for key, value in attributes.items()}


def of_spec(spec: EpisodeSpec, *, agent: str) -> Attributes:
    """Describe an episode that begins. `agentenv.episode` is the same for its retries, the session is not."""
    return {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": agent,
        "gen_ai.conversation.id": spec.session_id(),
        "agentenv.episode": f"{spec.group_id}/{spec.member}",
        "agentenv.env_id": spec.env_id,
        "agentenv.task_id": spec.task.task_id if spec.task is not None else "",
        "agentenv.group_id": spec.group_id,
        "agentenv.member": spec.member,
        "agentenv.attempt": spec.attempt,
        "agentenv.seed": spec.seed,
        "agentenv.run_seed": spec.run_seed,
    }


def of_trajectory(trajectory: Trajectory) -> Attributes:
    """Describe an episode that ended."""
    components = {f"agentenv.reward_component.{name}": value for name, value in trajectory.reward_components.items()}
    spans = [span for turn in trajectory.turns for span in turn.weight_versions]
    return {
        "agentenv.task_id": trajectory.task_id,
        "agentenv.stop_reason": trajectory.stop_reason.value,
        "agentenv.is_scored": trajectory.is_scored,
        "agentenv.reward": trajectory.reward,
        **components,
        "agentenv.num_turns": len(trajectory.turns),
        "agentenv.num_tokens": trajectory.num_tokens,
        "agentenv.num_sampled_tokens": trajectory.num_sampled_tokens,
        "agentenv.history_breaks": int(trajectory.metrics.get("history_breaks", 0)),
        **_versions([span.version for span in spans]),
    }


def of_turn(turn: Turn) -> Attributes:
    """Describe a turn that was played."""
    return {
        "agentenv.num_sampled_tokens": turn.num_tokens,
        "agentenv.num_tool_calls": turn.num_tool_calls,
        "agentenv.num_malformed_calls": turn.num_malformed_calls,
        "agentenv.reward": turn.reward,
    }


def of_request(episode: Episode, *, model: str, num_prompt_tokens: int, max_tokens: int) -> Attributes:
    """Describe what the engine is asked."""
    sampling = episode.sampling
    named = {"gen_ai.request.model": model} if model else {}
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": type(episode.engine).__name__,
        **named,
        "gen_ai.conversation.id": episode.session_id,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.max_tokens": max_tokens,
        "gen_ai.usage.input_tokens": num_prompt_tokens,
    }


def of_completion(completion: Completion) -> Attributes:
    """Describe what the engine answered."""
    return {
        "gen_ai.usage.output_tokens": len(completion.token_ids),
        "gen_ai.usage.cache_read.input_tokens": completion.num_cached_tokens,
        "gen_ai.response.finish_reasons": (completion.finish_reason,),
        **_versions([span.version for span in completion.weight_versions]),
    }


def of_call(call: ToolCall, *, is_known: bool) -> Attributes:
    """Describe a tool call; a name that the model made up is not repeated."""
    return {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": call.name if is_known else "",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": call.call_id,
        "agentenv.tool.status": call.status if is_known or call.status != "ok" else "unknown_tool",
    }


def of_result(result: ToolResult) -> Attributes:
    """Describe a tool result. A refused call is the policy's doing, so it does not make the span an error."""
    return {"agentenv.tool.is_refused": result.is_error, "agentenv.tool.result_chars": len(result.content)}


def of_reward(name: str, value: float) -> Attributes:
    """Describe a weighted reward component."""
    return {"gen_ai.evaluation.name": name, "gen_ai.evaluation.score.value": value}


def prompt_text(messages: Sequence[Message]) -> Attributes:
    """Return the newest messages that fit, as the conventions write them."""
    room, kept = MAX_CONTENT_CHARS, list[object]()
    for message in reversed(messages):
        if room <= 0:
            break
        entry = _message(message, max_chars=room)
        kept.append(entry)
        room -= len(json.dumps(entry))
    return {"gen_ai.input.messages": json.dumps(kept[::-1], ensure_ascii=False)}


def output_text(completion: Completion, *, decode: Callable[[Sequence[int]], str]) -> Attributes:
    """Return what was sampled, special tokens included, as the conventions write it."""
    part = _text(decode(completion.token_ids), MAX_CONTENT_CHARS)
    said = {"role": "assistant", "parts": [part], "finish_reason": completion.finish_reason}
    return {"gen_ai.output.messages": json.dumps([said], ensure_ascii=False)}


def call_text(call: ToolCall) -> Attributes:
    """Return the arguments of a call; for a malformed one what the model wrote."""
    said = call.raw if call.status != "ok" else json.dumps(dict(call.arguments), ensure_ascii=False, default=str)
    return {"gen_ai.tool.call.arguments": cut(said)}


def result_text(result: ToolResult) -> Attributes:
    """Return what the model was told."""
    return {"gen_ai.tool.call.result": cut(result.content)}


def cut(text: str, max_chars: int = MAX_CONTENT_CHARS) -> str:
    """Shorten a text, with a mark."""
    return text if len(text) <= max_chars else text[:max_chars] + _CUT_MARK


def _versions(versions: Sequence[int]) -> Attributes:
    """Weight versions of sampled tokens; scripted turns have none (-1)."""
    sampled = [version for version in versions if version >= 0]
    if not sampled:
        return {}
    return {"agentenv.weight_version.first": min(sampled), "agentenv.weight_version.last": max(sampled)}


def _message(message: Message, *, max_chars: int) -> object:
    if message.role == "tool":
        response = {
            "type": "tool_call_response",
            "id": message.tool_call_id,
            "response": cut(message.content, max_chars),
        }
        return {"role": "tool", "parts": [response]}
    parts: list[object] = [_text(message.content, max_chars)] if message.content else []
    parts += [
        {"type": "tool_call", "id": call.call_id, "name": call.name, **_said(call)} for call in message.tool_calls
    ]
    return {"role": message.role, "parts": parts}


def _said(call: ToolCall) -> Mapping[str, object]:
    return {"arguments": next(iter(call_text(call).values()))}


def _text(text: str, max_chars: int) -> object:
    return {"type": "text", "content": cut(text, max_chars)}


def _plain(value: Value) -> Value:
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return value if -_INT64 <= value < _INT64 else str(value)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()

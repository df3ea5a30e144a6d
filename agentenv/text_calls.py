"""Tool calls written as text, for actions that arrive as strings: `<tool_call>{...}</tool_call>`.

It serves Gymnasium users whose actions are text, and models of no known family, whose turns are read as text.
"""

from __future__ import annotations

import json

from agentenv.messages import Message, ToolCall, decode_arguments, malformed_call

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def parse_turn(text: str, *, id_prefix: str = "call") -> Message:
    """Split an assistant's text into content and tool calls; malformed attempts are kept with their status.

    Args:
        text: one assistant turn.
        id_prefix: the calls are named `{id_prefix}_0`, `{id_prefix}_1`...; give one per turn to keep ids unique.
    """
    start = text.find(OPEN)
    if start < 0:
        return Message(role="assistant", content=text)
    content = text[:start].rstrip()
    calls: list[ToolCall] = []
    while start >= 0:
        body_start = start + len(OPEN)
        end = text.find(CLOSE, body_start)
        raw = text[body_start:] if end < 0 else text[body_start:end]
        calls.append(_read_call(raw, call_id=f"{id_prefix}_{len(calls)}", is_closed=end >= 0))
        start = -1 if end < 0 else text.find(OPEN, end)
    return Message(role="assistant", content=content, tool_calls=tuple(calls))


def bare_json_call(text: str) -> Message:
    """Read a turn that is nothing but a JSON object with a name, as some templates write calls."""
    stripped = text.strip()
    if stripped.startswith("{") and stripped.endswith("}"):
        try:
            body = json.loads(stripped)
        except (ValueError, RecursionError):
            body = None
        if isinstance(body, dict) and isinstance(body.get("name"), str):
            arguments, status = decode_arguments(body.get("arguments", body.get("parameters")))
            call = ToolCall(call_id="call_0", name=body["name"], arguments=arguments, status=status, raw=stripped)
            return Message(role="assistant", content="", tool_calls=(call,))
    return Message(role="assistant", content=text)


def _read_call(raw: str, *, call_id: str, is_closed: bool) -> ToolCall:
    if not is_closed:
        return malformed_call(call_id=call_id, status="unclosed_block", raw=raw)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return malformed_call(call_id=call_id, status="invalid_json", raw=raw)
    if not isinstance(body, dict):
        return malformed_call(call_id=call_id, status="malformed_structure", raw=raw)
    name = body.get("name")
    if not isinstance(name, str) or not name:
        return malformed_call(call_id=call_id, status="missing_name", raw=raw)
    arguments, status = decode_arguments(body.get("arguments"))
    return ToolCall(call_id=call_id, name=name, arguments=arguments, status=status, raw=raw)

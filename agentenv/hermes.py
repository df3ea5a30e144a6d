"""A quick reader of the most common call format: JSON objects between `<tool_call>` and `</tool_call>` tokens.

Half of the model families write calls this way. The packaged parsers scan and decode a completion several times; this
one decodes each part once. A renderer uses it only for a family whose own parser it agrees with on `PROBES`, and leaves
completions with reasoning or unusual structure to that parser.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from agentenv.messages import Message, ToolCall, decode_arguments, malformed_call
from agentenv.tokenizer import LeanTokenizer

PROBES: tuple[str, ...] = (
    "plain text",
    " outer space kept or stripped \n",
    '<tool_call>\n{"name": "look", "arguments": {"n": 3}}\n</tool_call>',
    'first\n<tool_call>\n{"name": "look", "arguments": {"n": 3}}\n</tool_call>\n'
    '<tool_call>\n{"name": "see", "arguments": {}}\n</tool_call>',
    '<tool_call>{"name": "look", "arguments": {"n": </tool_call>',
    '<tool_call>{"arguments": {}}</tool_call>',
    '<tool_call>{"name": "look", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "look", "arguments": "{\\"n\\": 3}"}</tool_call>',
    "<tool_call>[1]</tool_call>",
    '<tool_call>{"name": "look"}</tool_call> after',
    '<tool_call>{"name": "look", "arguments": {"n": 3}}',
)


class HermesReader:
    """Reads completions of one tokenizer.

    Args:
        tokenizer: decodes.
        stop_ids: end a completion.
    """

    def __init__(self, tokenizer: LeanTokenizer, *, stop_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)
        self._open = tokenizer.convert_tokens_to_ids("<tool_call>")
        self._close = tokenizer.convert_tokens_to_ids("</tool_call>")
        reasoning = map(tokenizer.convert_tokens_to_ids, ("<think>", "</think>"))
        self._foreign = frozenset(token for token in reasoning if token is not None)

    @property
    def is_usable(self) -> bool:
        """True when both markers are single tokens."""
        return self._open is not None and self._close is not None

    def read(self, token_ids: Sequence[int]) -> Message | None:
        """Return the message, or None where the family's own parser must look."""
        end = len(token_ids)
        while end and token_ids[end - 1] in self._stop_ids:
            end -= 1
        ids = list(token_ids[:end])
        if not (self._stop_ids.isdisjoint(ids) and self._foreign.isdisjoint(ids)):
            return None
        if self._open not in ids:
            text = self._tokenizer.decode(ids)
            return None if "<think>" in text or "</think>" in text else Message(role="assistant", content=text.strip())
        start = ids.index(self._open)
        content = self._tokenizer.decode(ids[:start]).strip() if start else ""
        calls: list[ToolCall] = []
        while start >= 0:
            close = _find(ids, self._close, start)
            body = ids[start + 1 : close if close >= 0 else end]
            calls.append(self._call(body, call_id=f"call_{len(calls)}", is_closed=close >= 0))
            start = _find(ids, self._open, close) if close >= 0 else -1
        return Message(role="assistant", content=content, tool_calls=tuple(calls))

    def _call(self, body: list[int], *, call_id: str, is_closed: bool) -> ToolCall:
        raw = self._tokenizer.decode(body).strip()
        if not is_closed:
            return malformed_call(call_id=call_id, status="unclosed_block", raw=raw)
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            return malformed_call(call_id=call_id, status="invalid_json", raw=raw)
        name = value.get("name", "") if isinstance(value, dict) else ""
        if not name:
            return malformed_call(call_id=call_id, status="missing_name", raw=raw)
        arguments, status = decode_arguments(value.get("arguments", {}))
        return ToolCall(call_id=call_id, name=str(name), arguments=arguments, status=status, raw=raw)


def _find(ids: list[int], token: int, start: int) -> int:
    try:
        return ids.index(token, start)
    except ValueError:
        return -1

"""Gymnasium spaces for language: `TextSpace` for observations, `MessageSpace` for an assistant's turn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import gymnasium
import numpy as np

Action = str | dict[str, object]
"""What an agent does: text, or a message dict that may carry `tool_calls`."""

_WORDS = (
    "yes",
    "no",
    "7",
    "-3.5",
    "hello world",
    "\n",
    "<tool_call>",
    "</tool_call>",
    "{}",
    '{"name": 1}',
    "ü漢🙂",
    "\x00",
    "",
)


class TextSpace(gymnasium.Space[str]):
    """Any Python string up to `max_length` characters.

    Gymnasium's own `Text` has neither space nor newline in its default character set, takes seconds with full
    Unicode, and its shared-memory form returns stale text; this space has a cheap `sample` and no flat form.
    """

    def __init__(self, max_length: int = 1_000_000, *, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(shape=None, dtype=None, seed=seed)
        self.max_length = max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Return a short garbage text; masks do not apply."""
        count = int(self.np_random.integers(0, 6))
        return " ".join(_WORDS[int(i)] for i in self.np_random.integers(0, len(_WORDS), size=count))[: self.max_length]

    def contains(self, x: Any) -> bool:
        """True for a `str` within the length."""
        return isinstance(x, str) and len(x) <= self.max_length

    @property
    def is_np_flattenable(self) -> bool:
        """False: text has no fixed-size array form."""
        return False

    def to_jsonable(self, sample_n: Iterable[str]) -> list[Any]:
        """Return the samples as a list."""
        return list(sample_n)

    def from_jsonable(self, sample_n: list[Any]) -> list[str]:
        """Inverse of `to_jsonable`."""
        return list(sample_n)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.max_length == cast(TextSpace, other).max_length

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.max_length))

    def __repr__(self) -> str:
        return f"TextSpace(max_length={self.max_length})"


class MessageSpace(gymnasium.Space[Action]):
    """One assistant turn: a string, or a dict with `role: "assistant"`, `content` and optional `tool_calls`.

    Args:
        tool_names: names that `sample` calls (beside unknown ones); membership does not depend on them, because a
            model may write any name and the environment answers it.
        max_length: bound on the characters of the content.
        seed: for `sample`.
    """

    def __init__(
        self,
        tool_names: Sequence[str] = (),
        *,
        max_length: int = 1_000_000,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(shape=None, dtype=None, seed=seed)
        self.tool_names = tuple(tool_names)
        self.text = TextSpace(max_length)
        if seed is not None:
            self.text.seed(int(self.np_random.integers(2**31)))

    def seed(self, seed: Any = None) -> Any:
        """Seed this space and its text."""
        out = super().seed(seed)
        if hasattr(self, "text"):
            self.text.seed(int(self.np_random.integers(2**31)))
        return out

    def sample(self, mask: Any = None, probability: Any = None) -> Action:
        """Return garbage text, a text tool call, or a message dict with calls of known and unknown tools."""
        kind = int(self.np_random.integers(0, 4))
        if kind == 0:
            return self.text.sample()
        name = str(self.np_random.choice([*self.tool_names, "no_such_tool"]))
        arguments: dict[str, object] = (
            {} if kind == 1 else {"text": self.text.sample(), "number": int(self.np_random.integers(100))}
        )
        if kind == 2:
            return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"
        call = {"id": "call_0", "type": "function", "function": {"name": name, "arguments": arguments}}
        return {"role": "assistant", "content": self.text.sample(), "tool_calls": (call,)}

    def contains(self, x: Any) -> bool:
        """True for text within the length, or an assistant message dict."""
        if isinstance(x, str):
            return self.text.contains(x)
        if not isinstance(x, Mapping) or x.get("role", "assistant") != "assistant":
            return False
        return self.text.contains(x.get("content", "")) and isinstance(x.get("tool_calls", ()), (tuple, list))

    @property
    def is_np_flattenable(self) -> bool:
        """False: messages have no fixed-size array form."""
        return False

    def to_jsonable(self, sample_n: Iterable[Action]) -> list[Any]:
        """Return the samples as JSON-plain values."""
        return json.loads(json.dumps(list(sample_n)))

    def from_jsonable(self, sample_n: list[Any]) -> list[Action]:
        """Inverse of `to_jsonable`; call lists become tuples, as Gymnasium asks of sequence values."""
        return [x if isinstance(x, str) else _with_tuple_calls(x) for x in sample_n]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return False
        other = cast(MessageSpace, other)
        return self.tool_names == other.tool_names and self.text == other.text

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.tool_names, self.text))

    def __repr__(self) -> str:
        return f"MessageSpace({', '.join(self.tool_names)})"


def _with_tuple_calls(value: Mapping[str, object]) -> dict[str, object]:
    out = dict(value)
    calls = out.get("tool_calls")
    if isinstance(calls, list):
        out["tool_calls"] = tuple(calls)
    return out

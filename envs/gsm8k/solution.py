"""The official solutions of GSM8K as calculator calls: each `<<a*b=c>>` annotation becomes one turn."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentenv.errors import ToolError
from agentenv.tools.calculator import evaluate

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
_OPERATOR = re.compile(r"[-+*/%]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A worked solution.

    Attributes:
        calls: for every calculator call the text before it and its expression.
        conclusion: the text after the last call; ends with `#### answer`.
    """

    calls: tuple[tuple[str, str], ...]
    conclusion: str


def read_solution(text: str, *, answer: str) -> Solution:
    """Split a solution at its annotations.

    Annotations without an operator, or that are not arithmetic, are dropped; the text around them stays.

    Args:
        text: the official solution; may be empty.
        answer: ground truth, which closes the conclusion.
    """
    body = text.rpartition("####")[0] or text
    calls: list[tuple[str, str]] = []
    said = ""
    pieces = _ANNOTATION.split(body)
    for piece, annotation in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        said += piece
        expression = annotation.partition("=")[0].strip()
        if _is_arithmetic(expression):
            calls.append((said.strip(), expression))
            said = ""
    return Solution(calls=tuple(calls), conclusion=f"{said.strip()}\n#### {answer}".strip())


def _is_arithmetic(expression: str) -> bool:
    if not _OPERATOR.search(expression):
        return False
    try:
        evaluate(expression)
    except ToolError:
        return False
    return True

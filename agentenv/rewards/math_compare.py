"""The part of `math_equal` that runs in a process of its own, where importing `math-verify` belongs to the start."""

from __future__ import annotations

from math_verify import parse, verify


def compare(pair: list[str]) -> bool | None:
    """Compare an answer with a reference; None where the reference holds no expression.

    The timers of math-verify are off: the deadline of the process is the caller's.
    """
    answer, reference = pair
    wanted = parse(reference, parsing_timeout=0) or parse(f"${reference}$", parsing_timeout=0)
    if not wanted:
        return None
    said = parse(answer, parsing_timeout=0)
    return bool(said) and bool(verify(wanted, said, timeout_seconds=0))

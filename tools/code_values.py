"""Compares what a candidate returned with what a test expects, outside of the sandbox and on exact plain types."""

from __future__ import annotations

import math
from typing import Any

from agentenv.tools.code_inside import Foreign, bare

_SHOWN = 200


def same(got: Any, expected: Any, *, tolerance: float | None = None) -> bool:
    """True when two values have the same types and values all the way down.

    1, 1.0 and True differ, a list differs from a tuple, NaN equals NaN. With a `tolerance`, int and float are both
    numbers and may differ by that much, absolutely or relative to the larger one.
    """
    if tolerance is not None and type(got) in (int, float) and type(expected) in (int, float):
        return _close(got, expected, tolerance)
    if type(got) is not type(expected):
        return False
    if type(got) in (list, tuple):
        return len(got) == len(expected) and all(
            same(a, b, tolerance=tolerance) for a, b in zip(got, expected, strict=True)
        )
    if type(got) is dict:
        return _keyed(got) == _keyed(expected) and all(
            same(value, expected[key], tolerance=tolerance) for key, value in got.items()
        )
    if type(got) in (set, frozenset):
        return _keyed(got) == _keyed(expected)
    if type(got) is float and math.isnan(got):
        return math.isnan(expected)
    return got is expected if type(got) is Foreign else bool(got == expected)


def equal(got: Any, expected: Any) -> bool:
    """True where Python's `==` says so of the plain data: 1 equals 1.0 and True, a Counter equals its dict."""
    return bool(bare(got) == expected)


def shown(value: object) -> str:
    """Return `repr`, cut; also of integers that Python refuses to print."""
    try:
        text = repr(value)
    except (ValueError, RecursionError) as error:
        text = f"<{type(value).__name__}: {error}>"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _close(got: float, expected: float, tolerance: float) -> bool:
    try:
        if math.isnan(got) or math.isnan(expected):
            return math.isnan(got) and math.isnan(expected)
        return math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an integer beyond float
        return got == expected


def _keyed(items: Any) -> set[tuple[str, Any]]:
    """Pair keys with their types, because 1, 1.0 and True are one key."""
    return {(_types(key), key) for key in items}


def _types(key: Any) -> str:
    inner = ",".join(sorted(_types(item) for item in key)) if type(key) in (tuple, frozenset) else ""
    return f"{type(key).__name__}({inner})"

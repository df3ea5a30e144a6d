"""Arguments drawn without skill: what a policy that only knows a tool's schema sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np


def random_arguments(schema: Mapping[str, object], rng: np.random.Generator) -> dict[str, object]:
    """Draw arguments that fit the types of a JSON schema object."""
    properties = cast(Mapping[str, Mapping[str, Any]], schema.get("properties", {}))
    return {name: _random_value(kind, rng) for name, kind in properties.items()}


def _random_value(kind: Mapping[str, Any], rng: np.random.Generator) -> object:
    if "enum" in kind:
        return kind["enum"][int(rng.integers(len(kind["enum"])))]
    name = kind.get("type")
    if name == "integer":
        return int(rng.integers(kind.get("minimum", 0), kind.get("maximum", 100) + 1))
    if name == "number":
        return round(float(rng.uniform(-100, 100)), 2)
    if name == "boolean":
        return bool(rng.integers(2))
    if name == "array":
        return [_random_value(kind.get("items", {}), rng) for _ in range(int(rng.integers(0, 3)))]
    if name == "object":
        return random_arguments(kind, rng)
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=5))

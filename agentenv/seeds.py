"""Seeds derived by name, so that no randomness depends on order or on a global generator."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a pure function of the parts, e.g. (run, group, member, turn).

    Different tuples give unrelated seeds (BLAKE2b over an unambiguous encoding).
    """
    text = "\x1f".join(map(repr, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

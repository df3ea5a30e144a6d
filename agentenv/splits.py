"""Train and test apart by content: a hash of what is asked decides, so the two never share a task."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal, TypeVar

from agentenv.errors import UsageError

Split = Literal["train", "test"]
T = TypeVar("T")

TEST_SHARE = 0.2
"""Part of all possible tasks that belongs to the test split."""
_MAX_DRAWS = 10_000


def split_of(content: str) -> Split:
    """Return the split that a task belongs to, by a hash of its content."""
    digest = hashlib.blake2b(content.encode(), digest_size=4).digest()
    return "test" if int.from_bytes(digest, "big") < TEST_SHARE * 2**32 else "train"


def draw_for(split: Split, draw: Callable[[], T], *, content: Callable[[T], str] = str) -> T:
    """Draw until a task of the split comes.

    Args:
        split: the wanted one.
        draw: draws a task of either split.
        content: what tells tasks apart: two tasks that ask the same must give the same text.

    Raises:
        UsageError: none came in 10,000 draws, because too few tasks exist to be parted.
    """
    for _ in range(_MAX_DRAWS):
        task = draw()
        if split_of(content(task)) == split:
            return task
    raise UsageError(f"no task of split {split!r} in {_MAX_DRAWS:,} draws; too few different tasks exist to part them")

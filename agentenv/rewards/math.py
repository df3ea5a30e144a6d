"""Whether a mathematical answer equals a reference, by `math-verify`, in a process that can be killed."""

from __future__ import annotations

import importlib.util
import threading

from agentenv.errors import DeadlineExceeded, EpisodeError, UsageError
from agentenv.worker_process import WorkerDied, WorkerFailed, WorkerPool, WorkerTimeout

MAX_CHARS = 20_000
"""Of an answer the end is read, where its conclusion stands."""

_pool: WorkerPool | None = None
_making = threading.Lock()


def math_equal(answer: str, reference: str, *, timeout_s: float = 10.0) -> float:
    """Return 1.0 when the last expression of an answer equals the reference, else 0.0.

    Reads LaTeX (a boxed expression counts first) and plain numbers; `1/2`, `0.5` and `\\frac{1}{2}` are equal. Blocks
    its thread for milliseconds, and for seconds at the first call; do not call it inline.

    Args:
        answer: the agent's text.
        reference: the ground truth, an expression or a text that ends with one.
        timeout_s: seconds, after which the work is killed.

    Raises:
        UsageError: the reference holds no expression, or math-verify is not installed.
        EpisodeError: side `"reward"`: the comparison took too long or broke.
    """
    try:
        outcome = _workers().call([answer[-MAX_CHARS:], reference], timeout_s=timeout_s)
    except WorkerTimeout as error:
        raise DeadlineExceeded("reward", "math_equal", str(error)) from error
    except (WorkerDied, WorkerFailed) as error:
        raise EpisodeError("reward", "math_equal", str(error)) from error
    if outcome is None:
        raise UsageError(f"the reference {reference[:200]!r} holds no mathematical expression")
    return float(outcome is True)


def _workers() -> WorkerPool:
    global _pool
    with _making:
        if _pool is None:
            if importlib.util.find_spec("math_verify") is None:
                raise UsageError('math_equal needs math-verify; run `pip install "agentenv[math]"`')
            _pool = WorkerPool("agentenv.rewards.math_compare:compare")
        return _pool

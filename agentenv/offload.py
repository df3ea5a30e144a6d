"""The one place where author code is called: inline, awaited, or in a worker thread, each with its deadline."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from agentenv.errors import DeadlineExceeded, Side

T = TypeVar("T")

MAX_WORKERS = 64

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()
_hung: set[asyncio.Future[object]] = set()

_WAITED = "an environment declared inline waited for something; set inline = False on its class"

_NO_KWARGS: Mapping[str, object] = {}


async def call_hook(
    function: Callable[..., object],
    *args: object,
    kwargs: Mapping[str, object] = _NO_KWARGS,
    inline: bool,
    timeout_s: float,
    side: Side,
    where: str,
) -> object:
    """Call a hook of an environment, tool or reward and return its value.

    Coroutine functions are awaited. Synchronous ones run here when `inline`, else in a worker thread.

    Args:
        function: what to call with `args` and `kwargs`.
        inline: the author's promise that a synchronous function returns within a millisecond.
        timeout_s: deadline in seconds; an inline function cannot be interrupted and has none.
        side: who is to blame when the deadline passes.
        where: name for the error.

    Raises:
        DeadlineExceeded: the deadline passed. A thread that hangs is abandoned, and replaced in the pool.
    """
    if is_async(function):
        return await _awaited(function(*args, **kwargs), timeout_s=timeout_s, side=side, where=where)  # type: ignore[arg-type]
    if inline:
        value = _contained(function, *args, **kwargs)
    else:
        value = await _in_thread(
            functools.partial(_contained, function, *args, **kwargs), timeout_s=timeout_s, side=side, where=where
        )
    # a synchronous wrapper around a coroutine function; text, the usual value, needs no look
    if type(value) is not str and inspect.isawaitable(value):
        return await _awaited(value, timeout_s=timeout_s, side=side, where=where)
    return value


def is_async(function: Callable[..., object]) -> bool:
    """True for coroutine functions, also behind `functools.partial` and bound methods."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    if code is not None:
        return bool(code.co_flags & inspect.CO_COROUTINE)
    return inspect.iscoroutinefunction(function)


async def within(awaitable: Awaitable[T], *, timeout_s: float, side: Side, where: str) -> T:
    """Wait for something, with a deadline in seconds.

    Raises:
        DeadlineExceeded: it did not come in time; what was waited for is cancelled.
    """
    scope = asyncio.timeout(timeout_s)
    try:
        async with scope:
            return await awaitable
    except TimeoutError:
        if not scope.expired():
            raise
        raise DeadlineExceeded(side, where, f"no answer within {timeout_s:g} s") from None


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code: the facade under Gymnasium's `reset` and `step`.

    A coroutine that never has to wait costs no event loop. One that waits runs on this thread's private loop; from
    inside a running loop it runs on a helper thread of this thread, so notebooks work too. The helper stays, because
    what `setup` tied to its loop must still work in later steps.
    """
    if not _is_in_loop():
        return _thread_loop_run(coroutine)
    helper: ThreadPoolExecutor | None = getattr(_local, "helper", None)
    if helper is None:
        helper = _local.helper = ThreadPoolExecutor(1, thread_name_prefix="agentenv-facade")
    return helper.submit(_thread_loop_run, coroutine).result()


def run_inline(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that is known not to wait, without an event loop.

    Raises:
        RuntimeError: it did wait; the coroutine is closed.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError(_WAITED)


def num_abandoned_threads() -> int:
    """Number of worker threads that ran past their deadline and have not come back."""
    return len(_hung)


def _contained(function: Callable[..., object], *args: object, **kwargs: object) -> object:
    """Call a hook; exceptions that would end a generator, or the program, become ordinary ones.

    A bare `next()` raises StopIteration, which no future can carry, and argument parsers raise SystemExit.
    """
    try:
        return function(*args, **kwargs)
    except (StopIteration, SystemExit) as error:
        raise RuntimeError(f"{type(error).__name__} was raised: {error}") from error


async def _awaited(awaitable: Any, *, timeout_s: float, side: Side, where: str) -> object:
    if not _is_in_loop():  # run_inline found no coroutine function, but this hook returned a coroutine all the same
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise RuntimeError(_WAITED)
    return await within(awaitable, timeout_s=timeout_s, side=side, where=where)


async def _in_thread(function: Callable[[], object], *, timeout_s: float, side: Side, where: str) -> object:
    future: asyncio.Future[object] = asyncio.get_running_loop().run_in_executor(_workers(), function)
    done, _ = await asyncio.wait((future,), timeout=timeout_s)
    if done:
        return future.result()
    _abandon(future)
    raise DeadlineExceeded(side, where, f"no answer within {timeout_s:g} s; its thread is abandoned")


def _abandon(future: asyncio.Future[object]) -> None:
    """Give the hung thread's place in the pool to a new one."""
    global _pool
    _hung.add(future)
    future.add_done_callback(_hung.discard)
    future.add_done_callback(lambda late: late.cancelled() or late.exception())
    with _pool_lock:
        if _pool is not None and len(_hung) >= MAX_WORKERS // 2:
            _pool.shutdown(wait=False)
            _pool = None


def _workers() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="agentenv-hook")
        return _pool


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_local = threading.local()


def _thread_loop_run(coroutine: Coroutine[Any, Any, T]) -> T:
    runner: asyncio.Runner | None = getattr(_local, "runner", None)
    if runner is None:
        runner = _local.runner = asyncio.Runner()
    return runner.run(coroutine)

"""The one place where author code is called: inline, awaited, or in a worker thread, each with its deadline."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError as FuturesCancelled
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from agentenv.errors import DeadlineExceeded, Side, describe
from agentenv.hook_threads import HookThreads

T = TypeVar("T")

MAX_WORKERS = 64

_threads = HookThreads(MAX_WORKERS)

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

    Coroutine functions are awaited. Synchronous ones run here when `inline`, else in a worker thread. What they raise
    comes through if it is an `Exception`; whatever else they raise (SystemExit, a CancelledError although nobody
    cancelled, a class of their own) becomes a RuntimeError, because it would end the program instead of the episode.

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


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines at once and return their results in order; the first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others were cancelled because of the first
    return [task.result() for task in running]


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
    return _threads.num_hung


def is_leaving(error: BaseException) -> bool:
    """True where an exception must pass: Ctrl-C, a coroutine that is closed, and cancellation of the running task.

    Author code can raise `CancelledError` by itself, or leak one of its own tasks'; nobody cancelled the episode then.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task() if _is_in_loop() else None
        return task is not None and task.cancelling() > 0
    if isinstance(error, KeyboardInterrupt):
        return threading.current_thread() is threading.main_thread()  # the only one that Ctrl-C reaches
    return isinstance(error, GeneratorExit)


def _contained(function: Callable[..., object], /, *args: object, **kwargs: object) -> object:
    """Call a hook; exceptions that would end a generator, or the program, become ordinary ones.

    A bare `next()` raises StopIteration, and argument parsers raise SystemExit.
    """
    try:
        return function(*args, **kwargs)
    except (StopIteration, FuturesCancelled) as error:
        raise _ordinary(error) from error  # asyncio's futures carry neither as it is
    except Exception:
        raise
    except BaseException as error:
        # nobody can close or cancel a synchronous function, so only Ctrl-C comes from outside
        if isinstance(error, KeyboardInterrupt) and is_leaving(error):
            raise
        raise _ordinary(error) from error


async def _contained_await(awaitable: Awaitable[object]) -> object:
    """Await a hook; as `_contained`."""
    task = asyncio.current_task()
    try:
        return await awaitable
    except Exception:
        raise
    except BaseException as error:
        # a coroutine is closed from outside of its task, so a GeneratorExit inside is the hook's own
        is_own = isinstance(error, GeneratorExit) and _is_in_loop() and asyncio.current_task() is task
        if is_leaving(error) and not is_own:
            raise
        raise _ordinary(error) from error


def _ordinary(error: BaseException) -> RuntimeError:
    return RuntimeError(f"{type(error).__name__} was raised: {describe(error)}")


async def _awaited(awaitable: Any, *, timeout_s: float, side: Side, where: str) -> object:
    if not _is_in_loop():  # run_inline found no coroutine function, but this hook returned a coroutine all the same
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise RuntimeError(_WAITED)
    return await within(_contained_await(awaitable), timeout_s=timeout_s, side=side, where=where)


async def _in_thread(function: Callable[[], object], *, timeout_s: float, side: Side, where: str) -> object:
    context = contextvars.copy_context()  # as `asyncio.to_thread` does; whatever a hook traces keeps its parent
    work = _threads.submit(functools.partial(context.run, function))
    future = asyncio.wrap_future(work)
    try:
        done, _ = await asyncio.wait((future,), timeout=timeout_s)
    except BaseException:
        _give_up(work, future)
        raise
    if done:
        return future.result()
    _give_up(work, future)
    raise DeadlineExceeded(side, where, f"no answer within {timeout_s:g} s; its thread is abandoned")


def _give_up(work: Future[object], future: asyncio.Future[object]) -> None:
    future.add_done_callback(lambda late: late.cancelled() or late.exception())  # nobody else will ask
    _threads.give_up(work)


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

"""Blocking work in a thread of its own, and steps that cancellation does not cut in half."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_NAME = "agentenv-background"


async def in_thread(function: Callable[[], T]) -> T:
    """Run a blocking function in a new daemon thread while the event loop goes on.

    A thread of its own, because an executor's are waited for when the interpreter ends: whoever gives up waiting must
    be able to leave at once. Cancellation stops the waiting, not the thread.
    """
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is None:
            result.set_result(value)  # pyright: ignore[reportArgumentType] - a value came
        else:
            result.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = context.run(function)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop was closed by somebody who gave up waiting
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, daemon=True, name=_NAME).start()
    return await result


async def whole(step: Coroutine[Any, Any, T]) -> T:
    """Run a step to its end even if the caller is cancelled meanwhile; the cancellation is raised after it.

    A second cancellation cuts the step, which then is not whole.
    """
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        try:
            await asyncio.wait({task})
        finally:
            if not task.done():
                task.cancel()
        if not task.cancelled():
            task.result()  # an error of the step is worth more than the cancellation
        raise


def is_busy() -> bool:
    """True while a thread of `in_thread` works; a program that ends now would tear it."""
    return any(thread.name == _NAME for thread in threading.enumerate())

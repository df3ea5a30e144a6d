"""How author code is called: inline, awaited, in a thread; with deadlines."""

import asyncio
import functools
import threading
import time

import pytest

from agentenv.errors import DeadlineExceeded
from agentenv.offload import call_hook, is_async, num_abandoned_threads, run_inline, run_now


async def call(function, *args, inline=False, timeout_s=5.0, **kwargs):
    return await call_hook(
        function, *args, kwargs=kwargs, inline=inline, timeout_s=timeout_s, side="tool", where="probe"
    )


async def test_an_inline_function_runs_on_the_thread_of_the_loop():
    assert await call(threading.get_ident, inline=True) == threading.get_ident()


async def test_a_function_that_promises_nothing_runs_on_another_thread():
    assert await call(threading.get_ident) != threading.get_ident()


async def test_a_coroutine_function_is_awaited_with_its_arguments():
    async def add(a, *, b):
        await asyncio.sleep(0)
        return a + b

    assert await call(add, 2, b=3) == 5


async def test_a_synchronous_wrapper_around_a_coroutine_function_is_awaited_too():
    async def seven():
        return 7

    assert await call(lambda: seven()) == 7
    assert await call(lambda: seven(), inline=True) == 7


async def test_a_hanging_thread_is_left_behind_when_its_deadline_passes():
    let_go = threading.Event()
    started = time.perf_counter()

    with pytest.raises(DeadlineExceeded, match=r"tool failure in probe: no answer within 0.05 s") as raised:
        await call(let_go.wait, 10, timeout_s=0.05)

    assert time.perf_counter() - started < 2
    assert raised.value.side == "tool"
    assert num_abandoned_threads() >= 1
    let_go.set()


async def test_a_hanging_coroutine_is_cancelled_when_its_deadline_passes():
    cancelled = []

    async def hang():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(DeadlineExceeded):
        await call(hang, timeout_s=0.02)
    assert cancelled == [True]


async def test_a_timeout_error_of_the_hook_itself_is_not_taken_for_our_deadline():
    async def own():
        raise TimeoutError("theirs")

    with pytest.raises(TimeoutError, match="theirs"):
        await call(own)


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("error", [StopIteration("dry"), SystemExit(2)])
async def test_exceptions_that_would_end_the_program_become_ordinary_errors(error, inline):
    # a bare StopIteration can be carried by no future: unconverted, the call would hang until its deadline
    def leave():
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__):
        await call(leave, inline=inline)


async def test_threads_run_side_by_side():
    both = threading.Barrier(2, timeout=5)
    await asyncio.gather(call(both.wait), call(both.wait))


async def test_the_pool_survives_more_hangs_than_it_has_workers():
    let_go = threading.Event()
    for _ in range(3):
        late = [call(let_go.wait, 20, timeout_s=0.05) for _ in range(32)]
        assert all(isinstance(r, DeadlineExceeded) for r in await asyncio.gather(*late, return_exceptions=True))
    assert await call(lambda: "still working") == "still working"
    let_go.set()


def test_coroutine_functions_are_seen_through_partial_and_methods():
    class Owner:
        async def method(self):
            pass

    assert is_async(functools.partial(Owner.method, Owner()))
    assert is_async(Owner().method)
    assert not is_async(print)


def test_run_now_works_where_no_loop_is_running():
    async def later():
        await asyncio.sleep(0)
        return "done"

    assert run_now(later()) == "done"


async def test_run_now_works_inside_a_running_loop_and_keeps_its_own_loop():
    async def loop_id():
        return id(asyncio.get_running_loop())

    first, second = run_now(loop_id()), run_now(loop_id())
    assert first == second != id(asyncio.get_running_loop())


def test_run_inline_refuses_a_coroutine_that_waits():
    async def yields_once():
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="set inline = False"):
        run_inline(yields_once())


def test_run_inline_names_the_remedy_where_a_hook_returns_a_coroutine():
    async def seven():
        return 7

    with pytest.raises(RuntimeError, match="set inline = False"):
        run_inline(call(lambda: seven(), inline=True))

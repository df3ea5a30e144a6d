"""SGLang inside this process: its `Engine` on an event loop and thread of its own, behind the verbs of the server."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from agentenv.engine.server_config import ServerConfig
from agentenv.engine.sglang_command import CPU_MODULES, cpu_environment, engine_arguments
from agentenv.engine.sglang_protocol import ServerFacts, SGLangLoad, read_facts, read_load
from agentenv.engine.sglang_verbs import CONTROL_TIMEOUT_S, SGLangVerbs
from agentenv.errors import DeadlineExceeded, EngineError, UsageError, describe
from agentenv.offload import within

T = TypeVar("T")

_WATCH_S = 0.25
_CLOSE_TIMEOUT_S = 10.0

# verb -> the class of its argument; the method has the verb's name, except for one
_VERBS = {
    "pause_generation": "PauseGenerationReqInput",
    "continue_generation": "ContinueGenerationReqInput",
    "begin_weight_update": "BeginWeightUpdateReqInput",
    "end_weight_update": "EndWeightUpdateReqInput",
    "update_weights_from_tensor": "UpdateWeightsFromTensorReqInput",
    "update_weights_from_distributed": "UpdateWeightsFromDistributedReqInput",
    "update_weights_from_disk": "UpdateWeightFromDiskReqInput",
    "init_weights_update_group": "InitWeightsUpdateGroupReqInput",
    "destroy_weights_update_group": "DestroyWeightsUpdateGroupReqInput",
    "weights_checker": "CheckWeightsReqInput",
}


class SGLangEngine(SGLangVerbs):
    """SGLang's own `Engine`, started and owned by this process; made by `open`.

    Its scheduler and model are processes of their own, which end with this one. What SGLang does to a process that
    holds an engine is undone where it would harm a trainer: a child that dies fails the requests instead of killing the
    whole process, and closing ends the engine's own children, not all of them.
    """

    @classmethod
    async def open(cls, model: str | Path, *, config: ServerConfig, version: int = 0) -> SGLangEngine:
        """Start an engine. Call it from the main thread of a program that is guarded by `if __name__ == "__main__"`.

        Args:
            model: folder or Hub id.
            config: limits, device, dtype, and how weights travel.
            version: of the weights that the model has.

        Raises:
            UsageError: SGLang is not installed here, or this is not the main thread.
            EngineError: it did not start.
            DeadlineExceeded: it did not start within `config.startup_timeout_s`.
        """
        if importlib.util.find_spec("sglang") is None:
            raise UsageError(
                "SGLang is not installed beside this interpreter; run `agentenv engines install sglang` and set "
                "engine.place: process, or run this program with the interpreter that has it"
            )
        if threading.current_thread() is not threading.main_thread():
            raise UsageError("SGLang must be opened in the main thread: its children report their end by a signal")
        arguments = {**engine_arguments(config, model=model), "weight_version": str(version), "log_level": "error"}
        host = _EngineHost(arguments)
        try:
            facts = await host.start(max_length=config.max_length, timeout_s=config.startup_timeout_s)
            return cls(_EngineTransport(host), facts=facts, config=config, host="127.0.0.1", is_own=True)
        except BaseException:
            await asyncio.to_thread(host.close)
            raise


class _EngineHost:
    """Owns the engine's thread, its event loop and its processes."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.failure = ""
        self.manager: Any = None
        self._arguments = dict(arguments)
        self._engine: Any = None
        self._processes: list[Any] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: set[concurrent.futures.Future[Any]] = set()
        self._started: concurrent.futures.Future[tuple[dict[str, Any], dict[str, Any]]] = concurrent.futures.Future()
        # SGLang's children ask to be killed when the thread that started them ends, so it lives as long as they do
        self._thread = threading.Thread(target=self._run, name="sglang engine", daemon=True)
        self._old_handler: Any = None
        self._is_closed = False

    async def start(self, *, max_length: int, timeout_s: float) -> ServerFacts:
        """Start the engine and return what it is."""
        self._old_handler = signal.signal(signal.SIGQUIT, self._on_child_failure)
        self._thread.start()
        wait = asyncio.wrap_future(self._started)
        model_info, server_info = await within(wait, timeout_s=timeout_s, side="engine", where="SGLang start")
        vocab_size = int(self.manager.model_config.vocab_size)
        return read_facts(model_info, server_info, vocab_size=vocab_size, max_length=max_length)

    async def call(self, make: Callable[[], Coroutine[Any, Any, T]], *, deadline_s: float, where: str) -> T:
        """Run a coroutine on the engine's loop and wait for it here.

        Raises:
            DeadlineExceeded: it took too long; it is cancelled.
            EngineError: the engine is dead, or the coroutine raised.
        """
        if self.failure or self._loop is None:
            raise EngineError(f"SGLang is gone: {self.failure or 'it was closed'}")
        future = asyncio.run_coroutine_threadsafe(make(), self._loop)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        try:
            return await within(asyncio.wrap_future(future), timeout_s=deadline_s, side="engine", where=where)
        except (DeadlineExceeded, EngineError):
            raise
        except asyncio.CancelledError:
            if self.failure and not _is_cancelling():
                raise EngineError(f"SGLang is gone: {self.failure}") from None
            raise
        except Exception as error:  # whatever SGLang raises is its refusal
            raise EngineError(f"SGLang refused {where}: {describe(error)}") from error

    def post(self, function: Callable[[], object]) -> None:
        """Run a function on the engine's loop; nobody waits for it."""
        if self._loop is not None and not self.failure:
            self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """End the engine's processes and its thread; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self.failure = self.failure or "it was closed"
        atexit.unregister(self.close)
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_CLOSE_TIMEOUT_S)
            if process.is_alive():
                process.kill()
                process.join(_CLOSE_TIMEOUT_S)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread.is_alive():
            self._thread.join(_CLOSE_TIMEOUT_S)

    def restore_signals(self) -> None:
        """Give SIGQUIT back to whoever had it; main thread only."""
        if threading.current_thread() is threading.main_thread() and self._old_handler is not None:
            if signal.getsignal(signal.SIGQUIT) == self._on_child_failure:
                signal.signal(signal.SIGQUIT, self._old_handler)
            self._old_handler = None

    def _run(self) -> None:
        """The thread: start the engine, then serve its loop until it is stopped."""
        before = set(multiprocessing.active_children())
        try:
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            self._launch()
            manager = self._engine.tokenizer_manager
            self.manager = manager
            model_info = self._engine.get_model_info()
            server_info = self._engine.get_server_info()  # runs the loop, which starts the manager's tasks
            model_info["has_image_understanding"] = manager.model_config.is_image_understandable_model
        except BaseException as error:
            self._processes = [child for child in multiprocessing.active_children() if child not in before]
            self._started.set_exception(EngineError(f"SGLang did not start: {describe(error)}"))
            return
        loop = self._loop = self._engine.loop
        assert loop is not None
        self._watch()
        self._started.set_result((model_info, server_info))
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._close_sockets()
        loop.close()

    def _launch(self) -> None:
        if self._arguments["device"] == "cpu":
            if str(CPU_MODULES) not in sys.path:
                sys.path.insert(0, str(CPU_MODULES))
            os.environ.update(cpu_environment(os.environ))
        start_method = multiprocessing.get_start_method(allow_none=True)
        sglang: Any = importlib.import_module("sglang")
        try:
            self._engine = sglang.Engine(**self._arguments)
        finally:
            multiprocessing.set_start_method(start_method, force=True)  # it had set its own, for everybody
        # at exit it would kill every child of this process, and its watchdog the process itself
        atexit.unregister(self._engine.shutdown)
        watchdog = self._engine.tokenizer_manager._subprocess_watchdog
        self._processes = list(watchdog._processes)
        watchdog.stop()
        atexit.register(self.close)

    def _close_sockets(self) -> None:
        """Close SGLang's sockets and forget what they still hold for its dead children.

        Left alone, the garbage collector would one day end their contexts, and wait in that for ever.
        """
        zmq: Any = importlib.import_module("zmq")
        for owner in (self.manager, self._engine):
            for value in list(vars(owner).values()):
                if isinstance(value, zmq.Socket):
                    value.context.destroy(linger=0)

    def _watch(self) -> None:
        """Notice children that died; on the engine's loop."""
        if self._is_closed:
            return
        dead = [process for process in self._processes if not process.is_alive()]
        if dead and not self.failure:
            self.failure = f"its process {dead[0].name} ended with code {dead[0].exitcode}"
        if self.failure:
            for call in list(self._calls):
                call.cancel()
            return
        if self._loop is not None:
            self._loop.call_later(_WATCH_S, self._watch)

    def _on_child_failure(self, *_: object) -> None:
        """SIGQUIT: one of the children says that it failed."""
        self.failure = self.failure or "a child process reported a failure"


class _EngineTransport:
    """`SGLangTransport` to an engine inside this process."""

    def __init__(self, host: _EngineHost) -> None:
        self._host = host

    async def generate(self, body: Mapping[str, object], *, deadline_s: float) -> Mapping[str, Any]:
        manager = self._host.manager

        async def answer() -> Mapping[str, Any]:
            return await anext(manager.generate_request(_requests().GenerateReqInput(**body), None))

        return await self._host.call(answer, deadline_s=deadline_s, where="generate")

    async def abort(self, request_id: str) -> None:
        manager = self._host.manager
        self._host.post(lambda: manager.abort_request(request_id, abort_all=not request_id))

    async def control(self, verb: str, body: Mapping[str, object], *, deadline_s: float) -> Mapping[str, Any]:
        argument = getattr(_requests(), _VERBS[verb])(**body)
        method = getattr(self._host.manager, "check_weights" if verb == "weights_checker" else verb)
        outcome = await self._host.call(lambda: method(argument), deadline_s=deadline_s, where=verb)
        if outcome is None:
            return {}
        is_success, message, *more = outcome
        if not is_success:
            raise EngineError(f"SGLang refused {verb}: {message}")
        return {"ranks": more[0]} if verb == "weights_checker" else {}

    async def flush_cache(self) -> bool:
        outcome = await self._host.call(
            self._host.manager.flush_cache, deadline_s=CONTROL_TIMEOUT_S, where="flush_cache"
        )
        return bool(outcome.success)

    async def weight_version(self) -> str:
        if self._host.failure:
            raise EngineError(f"SGLang is gone: {self._host.failure}")
        return str(self._host.manager.config_value("weight_version"))

    async def load(self) -> SGLangLoad | None:
        loads = await self._host.call(self._host.manager.get_loads, deadline_s=CONTROL_TIMEOUT_S, where="get_loads")
        names = ("num_running_reqs", "num_waiting_reqs", "token_usage")
        return read_load([{name: getattr(load, name, None) for name in names} for load in loads])

    async def close(self) -> None:
        with contextlib.suppress(EngineError):
            await asyncio.to_thread(self._host.close)
        self._host.restore_signals()


def _requests() -> Any:
    """SGLang's classes of requests."""
    return importlib.import_module("sglang.srt.managers.io_struct")


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

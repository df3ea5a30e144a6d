"""Environment servers for tests: one in a process of its own, one in a thread, and one that never answers."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from agentenv.env_server import EnvServer

ROOT = Path(__file__).resolve().parent.parent
START_S = 60.0


@contextmanager
def server_process(env_id, *options, token=""):
    """Run `agentenv serve-env`; gives its URL and the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "agentenv", "serve-env", env_id, *map(str, options)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "AGENTENV_ENV_TOKEN": token},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        watch = threading.Timer(START_S, process.kill)
        watch.start()
        line = process.stdout.readline()
        watch.cancel()
        assert line.startswith(f"serving {env_id} at http://"), line
        yield line.split()[-1], process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


@contextmanager
def served(env_id, **options):
    """Serve from a thread of this process, where environments of a test are registered; gives the server."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def begin():
        server = EnvServer(env_id, **options)
        await server.start()
        return server

    def wait(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout=START_S)

    try:
        server = wait(begin())
        try:
            yield server
        finally:
            wait(server.close())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=START_S)
        loop.close()


@contextmanager
def silent_server():
    """Accept connections and never answer; gives the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"

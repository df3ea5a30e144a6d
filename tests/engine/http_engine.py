"""A small engine in a process of its own, its adapter and its command, for tests that kill real processes."""

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentenv.engine.server_config import ServerCommand, ServerConfig

TOKENS = 5


def drawn(prompt: Sequence[int], seed: int) -> list[int]:
    """Ids that are a function of prompt and seed."""
    return [(sum(prompt) + seed + i) % 97 for i in range(TOKENS)]


class State:
    """Of the server."""

    version = 0
    checksum = ""
    num_running = 0
    is_open = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    latency_s = 0.0

    def do_GET(self) -> None:
        self._answer({"ok": True})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(getattr(self, "_" + self.path.strip("/"))(body))

    def _generate(self, body: Mapping[str, Any]) -> object:
        State.num_running += 1
        time.sleep(self.latency_s)
        State.is_open.wait(30)
        State.num_running -= 1
        return {"ids": drawn(body["prompt"], body["seed"]), "version": State.version}

    def _status(self, body: Mapping[str, Any]) -> object:
        return {"version": State.version, "running": State.num_running, "checksum": State.checksum, "pid": os.getpid()}

    def _pause(self, body: Mapping[str, Any]) -> object:
        State.is_open.clear()
        return {}

    def _resume(self, body: Mapping[str, Any]) -> object:
        State.is_open.set()
        return {}

    def _update(self, body: Mapping[str, Any]) -> object:
        State.version = body["version"]
        State.checksum = hashlib.sha256(json.dumps(body["tensors"], sort_keys=True).encode()).hexdigest()[:8]
        return self._status(body)

    def _answer(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main(model: str, *, host: str, port: int, latency_s: float) -> None:
    sys.stdout.write(f"loading {model}\n")
    sys.stdout.flush()
    if os.path.exists(os.path.join(model, "broken")):
        sys.exit("RuntimeError: this model is broken")
    Handler.latency_s = latency_s
    State.is_open.set()
    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    server.serve_forever()


def command(config: "ServerConfig", *, model: str, port: int, python: str) -> "ServerCommand":
    from agentenv.engine.server_config import ServerCommand

    latency = str(config.options.get("latency_s", 0.0))
    return ServerCommand(argv=(python, __file__, model, latency, "--host", "127.0.0.1", str(port)))


def make_adapter() -> Any:
    """Return where this engine's code is."""
    from agentenv.engine.open import Adapter

    here = "tests.engine.http_engine_client"
    return Adapter(
        in_process=f"{here}:InProcess", server=f"{here}:HttpEngine", command="tests.engine.http_engine:command"
    )


def make_model(folder: Path) -> str:
    """Make what looks like a model folder."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    return str(folder)


if __name__ == "__main__":
    main(sys.argv[1], latency_s=float(sys.argv[2]), host=sys.argv[4], port=int(sys.argv[5]))

"""A small server of its own process for tests of launching: answers /health, or fails in a chosen way."""

import os
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        key = os.environ.get("FAKE_KEY", "")
        status = 200 if not key or self.headers.get("Authorization") == f"Bearer {key}" else 401
        self.send_response(status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(mode: str, host: str, port: int) -> None:
    say(f"fake server starts in mode {mode}")
    if mode.startswith("say:"):
        say(mode.removeprefix("say:"))
        sys.exit(1)
    if mode == "never":
        time.sleep(300)
    if mode == "ghost":  # a worker in a session of its own, which nobody below us waits for
        worker = subprocess.Popen(["sleep", "300"], start_new_session=True)
        say(f"worker {worker.pid}")
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode.startswith("rival:"):  # whoever comes first takes the port away from the server itself
        marker = mode.removeprefix("rival:")
        if not os.path.exists(marker):
            with open(marker, "w") as file:
                file.write(str(port))
            rival = socket.create_server((host, port))
            HTTPServer((host, port), Handler)
            rival.close()
    server = HTTPServer((host, port), Handler)
    time.sleep(0.2)
    say("ready")
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

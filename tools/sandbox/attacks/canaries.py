"""Bait on the host: files, variables, sockets and a process that an attack must neither find nor change."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = "AGENTENV_CHECK_CANARY"

_UNTOUCHED = "nobody wrote here"
_SLEEPER = "import sys, time; kept = sys.argv[1] * 100; time.sleep(100_000)"


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Bait, and whether somebody took it.

    Attributes:
        secret: stands in a file, a variable, a database, and in the memory, command line and environment of a process.
        folder: where the files are; everybody may write there.
        listeners: sockets of the host that nobody inside may reach, by name.
        places: where everything is, by the name that attacks use; the secret is not among them.
    """

    secret: str
    folder: Path
    listeners: Mapping[str, socket.socket]
    places: Mapping[str, str]
    _known: list[str] = field(default_factory=list)

    def forget(self) -> None:
        """Set everything back."""
        self.heard()
        self.changes()

    def heard(self) -> list[str]:
        """Return the names of the sockets that somebody reached since the last call."""
        return [name for name, listener in self.listeners.items() if _was_reached(listener)]

    def changes(self) -> str:
        """Say what was changed in the folder since it was made, and set it back; empty when nothing was."""
        target = self.folder / "target.txt"
        new = sorted(set(os.listdir(self.folder)) - set(self._known))
        is_same = target.is_file() and target.read_text(errors="replace") == _UNTOUCHED
        for name in new:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        _write_target(target)
        if not is_same:
            return "a file of the host was changed"
        return f"files were made on the host: {', '.join(new)[:200]}" if new else ""


@contextmanager
def planted() -> Iterator[Canaries]:
    """Set bait out before a back end starts, so that whatever it hands down is seen, and remove it afterwards."""
    secret = f"canary-{secrets.token_hex(12)}"
    folder = Path(tempfile.mkdtemp(prefix="agentenv-check-"))
    folder.chmod(0o777)
    (folder / "secret.txt").write_text(secret)
    (folder / "secret.txt").chmod(0o644)
    _write_target(folder / "target.txt")
    with sqlite3.connect(folder / "host.sqlite") as database:
        database.execute("create table kept (word text)")
        database.execute("insert into kept values (?)", [secret])
    database.close()
    listeners = _listen(folder)
    descriptor = os.open(folder / "secret.txt", os.O_RDONLY)
    os.set_inheritable(descriptor, True)  # a careless parent
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = secret
    sleeper = subprocess.Popen([sys.executable, "-c", _SLEEPER, secret])
    places = {
        "folder": str(folder),
        "secret_file": str(folder / "secret.txt"),
        "target_file": str(folder / "target.txt"),
        "database": str(folder / "host.sqlite"),
        "unix_path": str(folder / "host.sock"),
        "abstract": listeners["abstract socket"].getsockname()[1:].decode(),
        "tcp_port": str(listeners["TCP"].getsockname()[1]),
        "udp_port": str(listeners["UDP"].getsockname()[1]),
        "sleeper_pid": str(sleeper.pid),
        "host_pid": str(os.getpid()),
        "secret_head": secret[:7],
    }
    try:
        yield Canaries(
            secret=secret, folder=folder, listeners=listeners, places=places, _known=sorted(os.listdir(folder))
        )
    finally:
        sleeper.kill()
        sleeper.wait()
        os.close(descriptor)
        for listener in listeners.values():
            listener.close()
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
        shutil.rmtree(folder, ignore_errors=True)


def _write_target(path: Path) -> None:
    if path.is_symlink() or path.is_dir():
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    path.write_text(_UNTOUCHED)
    path.chmod(0o666)


def _listen(folder: Path) -> dict[str, socket.socket]:
    tcp = socket.create_server(("127.0.0.1", 0), backlog=64)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(folder / "host.sock"))
    (folder / "host.sock").chmod(0o777)
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0agentenv-check-{secrets.token_hex(6)}")
    for listener in (unix, abstract):
        listener.listen(64)
    made = {"TCP": tcp, "UDP": udp, "unix socket": unix, "abstract socket": abstract}
    for listener in made.values():
        listener.setblocking(False)
    return made


def _was_reached(listener: socket.socket) -> bool:
    is_reached = False
    while True:  # all that wait, so that the next attack starts from silence
        try:
            if listener.type == socket.SOCK_DGRAM:
                listener.recv(65536)
            else:
                listener.accept()[0].close()
        except BlockingIOError:
            return is_reached
        is_reached = True

"""The process that all code of a sandbox back end is forked from: it has imported everything and runs nothing."""

from __future__ import annotations

import base64
import functools
import gc
import importlib
import os
import resource
import signal
import socket
import sys
from dataclasses import replace

from . import syscalls
from .confine import WORK, Confinement
from .frames import Channel
from .init import Init, enter_place, fork_init, open_own_table, serve_program
from .interpreter import warm_up
from .program import make_streams
from .session import serve_session

_NOBODY = 65_534
# the first entry is where our own code lies, which is no business of anybody else
_KEPT_PATHS = sys.path[1:]


def start() -> None:
    """Serve requests until the peer shuts its side; the only argument is the descriptor of the control socket.

    The first frame holds the settings: `path` and `env` for code, `modules` to import after saying that we are ready,
    `has_namespaces`, `filter` in base64, `readable` for Landlock. Not arguments: code can read those.
    """
    syscalls.set_dumpable(0)
    # ends with the process that started us, also when it is killed
    syscalls.die_with_parent()
    syscalls.share_arenas()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control = Channel(socket.socket(fileno=int(sys.argv[1])))
    settings = control.receive()
    if settings is None:
        return
    os.environ.clear()
    os.environ.update(settings["env"])
    sys.path[:] = settings["path"] + _KEPT_PATHS
    sys.dont_write_bytecode = True
    control.send({"ready": True})
    missing = _preload(settings["modules"])
    _add_usual_names()
    control.send({"loaded": True, "missing": missing})
    confinement = Confinement(
        has_namespaces=settings["has_namespaces"],
        filter=base64.b64decode(settings["filter"]),
        readable=tuple(settings["readable"]),
        code_uid=0,
        streams=make_streams(),
        base_bytes=_address_space(),
    )
    warm_up()
    # code finds no name of ours to import; kept alive, because giving memory back touches pages that forks share
    ours = [sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == __package__]
    gc.collect()
    gc.freeze()
    _serve(control, confinement)
    del ours


def _serve(control: Channel, confinement: Confinement) -> None:
    own_table = open_own_table() if confinement.has_namespaces else None
    serve = functools.partial(_serve_request, confinement)
    close = (control.sock.fileno(),)
    while control.receive() is not None:
        (peer,) = control.take_fds(1)
        try:
            fork_init(peer, serve, own_table=own_table, close=close)
        except OSError as error:
            with socket.socket(fileno=os.dup(peer)) as sock:
                Channel(sock).send({"failed": f"the zygote could not fork: {error}"})
        finally:
            os.close(peer)


def _serve_request(confinement: Confinement, channel: Channel) -> None:
    request = channel.receive()
    if request is None:
        return
    has_namespaces = confinement.has_namespaces
    folders = enter_place(request, has_namespaces=has_namespaces, is_fresh=True)
    work = WORK if has_namespaces else request["work"]
    if not has_namespaces and os.geteuid() == 0:
        # the owner of the folder; never 0, whatever we were given
        confinement = replace(confinement, code_uid=os.stat(work).st_uid or _NOBODY)
    init = Init(channel, confinement=confinement, limits=request["limits"], work=work, folders=folders)
    if request["op"] == "session":
        serve_session(init)
    else:
        serve_program(init, request)


def _preload(names: list[str]) -> list[str]:
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name}: {error}")
    return missing


def _add_usual_names() -> None:
    """Give code `exit`, `quit` and `help`, which come from the site module, without its search for packages."""
    import site

    site.setquit()
    site.sethelper()


def _address_space() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

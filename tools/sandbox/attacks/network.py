"""Attacks that reach the network or sockets of the host."""

from __future__ import annotations

import asyncio
import socket

from agentenv.tools.sandbox.attacks.attack import Arena, Attack, Broken, Kind, program, unheard

_KIND: Kind = "network"


async def _listens(arena: Arena) -> None:
    """A server inside must not answer at the host's addresses."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code = f"""
import socket, threading, time
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    server.bind(("0.0.0.0", {port}))
    server.listen()
    threading.Thread(target=lambda: [server.accept()[0].sendall(b"hello") for _ in range(9)], daemon=True).start()
except OSError:
    pass
"""
    async with arena.episode() as sandbox:
        await sandbox.python(code)
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0) as link:
                await asyncio.sleep(0)
                link.settimeout(2.0)
                if link.recv(16) == b"hello":
                    raise Broken("a server inside answers on the host")
        except OSError:
            return


def _socket(name: str, family: str, kind: str, more: str = "") -> Attack:
    code = f"""
import socket
try:
    opened = socket.socket({family}, {kind})
    print("GOT a socket of a family that no namespace covers")
    {more or "pass"}
except OSError:
    pass
"""
    return program(name, _KIND, code)


ATTACKS = (
    program(
        "connects to a server of the host by TCP",
        _KIND,
        """
import socket
for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "host.docker.internal"):
    try:
        link = socket.create_connection((host, <<tcp_port>>), timeout=1)
        print("GOT a connection")
    except OSError:
        pass
""",
        unheard,
    ),
    program(
        "sends a datagram to the host",
        _KIND,
        """
import socket
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello", ("127.0.0.1", <<udp_port>>))
except OSError:
    pass
""",
        unheard,
    ),
    program(
        "connects to a unix socket of the host by its path",
        _KIND,
        """
import socket
try:
    socket.socket(socket.AF_UNIX).connect("<<unix_path>>")
    print("GOT a connection")
except OSError:
    pass
""",
        unheard,
    ),
    program(
        "connects to an abstract unix socket of the host",
        _KIND,
        """
import socket
try:
    socket.socket(socket.AF_UNIX).connect("\\0<<abstract>>")
    print("GOT a connection")
except OSError:
    pass
""",
        unheard,
    ),
    _socket("opens a socket to the hypervisor", "40", "socket.SOCK_STREAM"),
    _socket("opens a packet socket", "17", "socket.SOCK_RAW"),
    _socket("opens a raw socket", "socket.AF_INET", "socket.SOCK_RAW, socket.IPPROTO_ICMP"),
    _socket("opens an audit socket", "16", "socket.SOCK_RAW, 9"),
    _socket("opens a key-management socket", "15", "socket.SOCK_RAW, 2"),
    _socket("opens a crypto socket", "38", "socket.SOCK_SEQPACKET"),
    _socket("opens a Bluetooth socket", "31", "socket.SOCK_RAW, 1"),
    program(
        "finds an interface or a route out",
        _KIND,
        """
import socket
for address in ("192.0.2.1", "8.8.8.8", "169.254.169.254"):
    try:
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        probe.connect((address, 80))
        print(f"GOT a route to {address} from {probe.getsockname()[0]}")
    except OSError:
        pass
try:
    if [name for _, name in socket.if_nameindex() if not name.startswith(("lo", "sit", "tunl", "ip6"))]:
        print("GOT an interface")
except OSError:
    pass
""",
    ),
    program(
        "finds proxies and tokens in variables",
        _KIND,
        """
import os
for name in os.environ:
    lower = name.lower()
    if lower.endswith("_proxy") or "token" in lower or "key" in lower or "canary" in lower or "secret" in lower:
        print(f"GOT {name}")
""",
    ),
    Attack(name="serves to the host and its network", kind=_KIND, play=_listens),
)

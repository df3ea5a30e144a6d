"""Healthy networks, the plan that describes them, and the faults that are put in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agentenv.envs.net_repair.network import Interface, Network, Node
from agentenv.envs.worlds.errand import Call
from agentenv.splits import Split, draw_for

_HOSTS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kite", "lynx")
_SERVERS = {"web": 80, "mail": 25, "files": 445, "wiki": 8080}
BLOCKED_PORT = 23
"""The only port that the plan blocks on servers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One change for the worse.

    Attributes:
        breaks: the call that makes it.
        mends: the call that undoes it.
        node: where it is.
    """

    breaks: Call
    mends: Call
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A healthy network.

    Attributes:
        network: as it should be.
        plan: the same in words.
        hosts: names of the nodes that people use.
        servers: name -> port of its service.
    """

    network: Network
    plan: str
    hosts: tuple[str, ...]
    servers: dict[str, int]


def draw_site(rnd: random.Random, *, split: Split, difficulty: int) -> Site:
    """Draw a healthy network of 2 to 4 local networks, each behind its router; the routers share a backbone."""
    num_lans = 2 + difficulty // 2
    base, names = draw_for(
        split,
        lambda: (f"10.{rnd.randrange(1, 250)}", tuple(rnd.sample(_HOSTS, min(2 * num_lans + difficulty, len(_HOSTS))))),
    )
    servers = rnd.sample(list(_SERVERS), min(1 + difficulty, len(_SERVERS)))
    network = Network()
    for lan in range(1, num_lans + 1):
        routes = {f"{base}.{other}": f"{base}.0.{other}" for other in range(1, num_lans + 1) if other != lan}
        interfaces = {"lan": Interface(address=f"{base}.{lan}.1"), "wan": Interface(address=f"{base}.0.{lan}")}
        network.nodes[f"r{lan}"] = Node(kind="router", interfaces=interfaces, routes=routes)
    for index, name in enumerate([*names, *servers]):
        lan = 1 + index % num_lans
        address, is_server = f"{base}.{lan}.{10 + index}", name in servers
        network.nodes[name] = Node(
            kind="server" if is_server else "host",
            interfaces={"eth0": Interface(address=address)},
            routes={"default": f"{base}.{lan}.1"},
            services={_SERVERS[name]: True} if is_server else {},
            blocked=frozenset({BLOCKED_PORT}) if is_server else frozenset(),
        )
        if is_server:
            network.names[name] = address
    return Site(
        network=network, plan=_plan(network, base), hosts=names, servers={name: _SERVERS[name] for name in servers}
    )


def draw_faults(rnd: random.Random, site: Site, *, count: int) -> tuple[list[Fault], list[tuple[str, str]]]:
    """Draw faults on different nodes, and for each a connection (host, server) that it breaks by itself."""
    faults: list[Fault] = []
    broken: list[tuple[str, str]] = []
    while len(faults) < count:
        fault = rnd.choice(_KINDS)(rnd, site)
        if any(fault.node == other.node for other in faults):
            continue
        sick = site.network.copy()
        name, arguments = fault.breaks
        getattr(sick, name)(**arguments)
        pairs = [pair for pair in _pairs(rnd, site) if pair not in broken]
        hit = next((pair for pair in pairs if sick.connect(*pair, site.servers[pair[1]])), None)
        if hit is not None:
            faults.append(fault)
            broken.append(hit)
    return faults, broken


def _pairs(rnd: random.Random, site: Site) -> Iterator[tuple[str, str]]:
    """Yield all connections that people use, in random order."""
    pairs = [(host, server) for host in site.hosts for server in site.servers]
    rnd.shuffle(pairs)
    return iter(pairs)


def _plan(network: Network, base: str) -> str:
    lines = [
        f"- {name} ({node.kind}): {', '.join(f'{key} {item.address}' for key, item in node.interfaces.items())}"
        + "".join(f", service on port {port}" for port in node.services)
        for name, node in network.nodes.items()
    ]
    return "\n".join(
        [
            "Plan of the network (all interfaces are up, all networks have 24 bits):",
            *lines,
            f"Hosts and servers send everything to the router of their network, e.g. {base}.1.1. A router has one "
            f"route for "
            "each local network behind another router, by way of that router's wan address. All services run. Servers "
            f"block port {BLOCKED_PORT} and nothing else. The name of a server means its address.",
        ]
    )


def _interface_down(rnd: random.Random, site: Site) -> Fault:
    name = rnd.choice(list(site.network.nodes))
    where = rnd.choice(list(site.network.nodes[name].interfaces))
    return _state_fault("set_interface", {"node": name, "interface": where}, bad="down", good="up")


def _wrong_gateway(rnd: random.Random, site: Site) -> Fault:
    name = rnd.choice([*site.hosts, *site.servers])
    right = site.network.nodes[name].routes["default"]
    wrong = f"{right.rpartition('.')[0]}.{rnd.randrange(200, 250)}"
    return _value_fault("set_route", {"node": name, "network": "default"}, key="via", bad=wrong, good=right)


def _missing_route(rnd: random.Random, site: Site) -> Fault:
    name, network, via = _some_route(rnd, site)
    where = {"node": name, "network": network}
    return Fault(breaks=("remove_route", where), mends=("set_route", {**where, "via": via}), node=name)


def _wrong_route(rnd: random.Random, site: Site) -> Fault:
    name, network, via = _some_route(rnd, site)
    wrong = f"{via.rpartition('.')[0]}.{rnd.randrange(100, 200)}"
    return _value_fault("set_route", {"node": name, "network": network}, key="via", bad=wrong, good=via)


def _wrong_address(rnd: random.Random, site: Site) -> Fault:
    name = rnd.choice([*site.hosts, *site.servers])
    right = site.network.nodes[name].interfaces["eth0"].address
    first, second, _, last = right.split(".")
    wrong = f"{first}.{second}.{rnd.randrange(100, 200)}.{last}"
    return _value_fault("set_address", {"node": name, "interface": "eth0"}, key="address", bad=wrong, good=right)


def _service_stopped(rnd: random.Random, site: Site) -> Fault:
    name = rnd.choice(list(site.servers))
    return _state_fault("set_service", {"node": name, "port": site.servers[name]}, bad="stopped", good="running")


def _port_blocked(rnd: random.Random, site: Site) -> Fault:
    name = rnd.choice(list(site.servers))
    return _state_fault("set_port", {"node": name, "port": site.servers[name]}, bad="blocked", good="open")


def _wrong_name(rnd: random.Random, site: Site) -> Fault:
    name = rnd.choice(list(site.servers))
    right = site.network.names[name]
    wrong = f"{right.rpartition('.')[0]}.{rnd.randrange(100, 200)}"
    return _value_fault("set_name", {"name": name}, key="address", bad=wrong, good=right)


_KINDS: tuple[Callable[[random.Random, Site], Fault], ...] = (
    _interface_down,
    _wrong_gateway,
    _missing_route,
    _wrong_route,
    _wrong_address,
    _service_stopped,
    _port_blocked,
    _wrong_name,
)


def _some_route(rnd: random.Random, site: Site) -> tuple[str, str, str]:
    name = rnd.choice([name for name, node in site.network.nodes.items() if node.kind == "router"])
    network, via = rnd.choice(list(site.network.nodes[name].routes.items()))
    return name, network, via


def _state_fault(call: str, where: dict[str, object], *, bad: str, good: str) -> Fault:
    return _value_fault(call, where, key="state", bad=bad, good=good)


def _value_fault(call: str, where: dict[str, object], *, key: str, bad: str, good: str) -> Fault:
    node = str(where.get("node", where.get("name")))
    return Fault(breaks=(call, {**where, key: bad}), mends=(call, {**where, key: good}), node=node)

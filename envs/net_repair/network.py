"""A simulated network: nodes with one interface per network, routes, services, blocked ports and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agentenv.envs.worlds.desk import find_row
from agentenv.errors import ToolError

MAX_HOPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An interface; all networks have 24 bits, so an address names its network by its first three parts."""

    address: str
    is_up: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A host, server or router.

    Attributes:
        kind: what it is; only routers forward.
        interfaces: by name.
        routes: network (`"10.1.2"`, or `"default"`) -> address of the next hop.
        services: port -> True if it runs.
        blocked: ports that its firewall refuses.
    """

    kind: str
    interfaces: Mapping[str, Interface]
    routes: Mapping[str, str]
    services: Mapping[int, bool] = field(default_factory=dict)
    blocked: frozenset[int] = frozenset()

    def shown(self) -> dict[str, object]:
        """Return the configuration as the tools show it."""
        return {
            "kind": self.kind,
            "interfaces": {
                name: f"{item.address} {'up' if item.is_up else 'down'}" for name, item in self.interfaces.items()
            },
            "routes": dict(self.routes),
            "services": {str(port): "running" if runs else "stopped" for port, runs in self.services.items()},
            "blocked_ports": sorted(self.blocked),
        }


@dataclass(kw_only=True)
class Network:
    """Nodes by name, and the names that the resolver knows."""

    nodes: dict[str, Node] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Network:
        """Return an independent copy; nodes are frozen."""
        return Network(nodes=dict(self.nodes), names=dict(self.names))

    def snapshot(self) -> object:
        """Return the whole configuration."""
        return dict(self.nodes), dict(self.names)

    def node(self, name: str) -> Node:
        """Return a node.

        Raises:
            ToolError: there is none of that name.
        """
        return find_row(self.nodes, name, kind="node")

    def reach(self, source: str, address: str) -> str:
        """Send a packet and its answer; returns an empty text, or where and why it was lost."""
        node = self.node(source)
        own = next((item.address for item in node.interfaces.values() if item.is_up), "")
        if not own:
            return f"{source}: all interfaces are down"
        lost, target = self._forward(source, address)
        if lost:
            return lost
        back, _ = self._forward(target, own)
        return f"no answer ({back})" if back else ""

    def connect(self, source: str, name: str, port: int) -> str:
        """Open a connection to a service by name; returns an empty text, or why it failed."""
        address = self.names.get(name)
        if address is None:
            return f"the name {name[:40]} is not known"
        lost = self.reach(source, address)
        if lost:
            return lost
        _, target = self._forward(source, address)
        node = self.nodes[target]
        if port in node.blocked:
            return f"{target}: port {port} is filtered"
        return "" if node.services.get(port) else f"{target}: port {port} refused the connection"

    def set_interface(self, node: str, interface: str, state: str) -> None:
        """Switch an interface up or down."""
        item = find_row(dict(self.node(node).interfaces), interface, kind="interface")
        self._put_interface(node, interface, replace(item, is_up=state == "up"))

    def set_address(self, node: str, interface: str, address: str) -> None:
        """Give an interface another address."""
        item = find_row(dict(self.node(node).interfaces), interface, kind="interface")
        self._put_interface(node, interface, replace(item, address=_checked(address)))

    def set_route(self, node: str, network: str, via: str) -> None:
        """Set the next hop for a network."""
        old = self.node(node)
        key = network.strip().removesuffix("/24").removesuffix(".0")
        if key != "default" and key.count(".") != 2:
            raise ToolError(f'{network[:40]!r} is no network; write "default" or one like "10.1.2.0/24"')
        self.nodes[node] = replace(old, routes={**old.routes, key: _checked(via)})

    def remove_route(self, node: str, network: str) -> None:
        """Remove the route for a network."""
        old = self.node(node)
        key = network.strip().removesuffix("/24").removesuffix(".0")
        find_row(dict(old.routes), key, kind="route to")
        self.nodes[node] = replace(old, routes={name: via for name, via in old.routes.items() if name != key})

    def set_service(self, node: str, port: int, state: str) -> None:
        """Start or stop a service."""
        old = self.node(node)
        if port not in old.services:
            raise ToolError(f"{node} has no service on port {port}; it has {sorted(old.services) or 'none'}")
        self.nodes[node] = replace(old, services={**old.services, port: state == "running"})

    def set_port(self, node: str, port: int, state: str) -> None:
        """Block or open a port in a node's firewall."""
        old = self.node(node)
        self.nodes[node] = replace(old, blocked=old.blocked | {port} if state == "blocked" else old.blocked - {port})

    def set_name(self, name: str, address: str) -> None:
        """Let a name mean another address."""
        find_row(self.names, name, kind="name")
        self.names[name] = _checked(address)

    def _put_interface(self, node: str, interface: str, item: Interface) -> None:
        old = self.nodes[node]
        self.nodes[node] = replace(old, interfaces={**old.interfaces, interface: item})

    def _forward(self, source: str, address: str) -> tuple[str, str]:
        """Follow a packet; returns (why it was lost or an empty text, the node that it reached)."""
        at, network = source, _network_of(address)
        for _ in range(MAX_HOPS):
            node = self.nodes[at]
            if any(item.is_up and item.address == address for item in node.interfaces.values()):
                return "", at
            if at != source and node.kind != "router":
                return f"{at}: does not forward", at
            linked = {_network_of(item.address) for item in node.interfaces.values() if item.is_up}
            hop = address if network in linked else node.routes.get(network) or node.routes.get("default")
            if hop is None:
                return f"{at}: no route to {network}.0/24", at
            following = self._owner(hop) if _network_of(hop) in linked else None
            if following is None:
                return f"{at}: next hop {hop} does not answer", at
            at = following
        return f"{at}: too many hops", at

    def _owner(self, address: str) -> str | None:
        for name, node in self.nodes.items():
            if any(item.is_up and item.address == address for item in node.interfaces.values()):
                return name
        return None


def _network_of(address: str) -> str:
    return address.rpartition(".")[0]


def _checked(address: str) -> str:
    parts = address.strip().split(".")
    if len(parts) == 4 and all(part.isascii() and part.isdigit() and int(part) < 256 for part in parts):
        return ".".join(str(int(part)) for part in parts)
    raise ToolError(f'{address[:40]!r} is no address; write one like "10.1.2.3"')

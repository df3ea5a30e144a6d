"""NetRepair: people cannot reach servers; find what differs from the plan, and mend that alone."""

from __future__ import annotations

import random
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import pydantic

from agentenv.envs.net_repair.faults import Site, draw_faults, draw_site
from agentenv.envs.net_repair.network import Network
from agentenv.envs.worlds.errand import Call, Errand, ErrandEnv
from agentenv.messages import Message
from agentenv.tool import tool

Port = Annotated[int, pydantic.Field(ge=1, le=65535)]


class NetRepair(ErrandEnv):
    """Mend a network in which interfaces, addresses, routes, services, ports or names are not as planned.

    Reward: 1.0 if in the end the whole configuration is as the plan says, else 0.0: every complaint solved by undoing
    its cause, and nothing else changed. Routing around a fault, or opening a port that the plan blocks, earns nothing.

    Args:
        difficulty: 1 to 5: number of faults, each on another node. Networks and nodes grow with it.
        **options: of `ToolEnv`.
    """

    preamble: ClassVar[str] = (
        "You look after a network. Find out why the following does not work and mend it, so that everything is as "
        "the plan "
        "says. Change nothing else, then say that you are done."
    )

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.site: Site | None = None
        super().__init__(difficulty=difficulty, **options)

    def draw_world(self, rnd: random.Random) -> tuple[Network, tuple[Errand, ...]]:
        """Draw the network, and what is wrong with it."""
        self.site = draw_site(rnd, split=self.split, difficulty=self.difficulty)
        faults, complaints = draw_faults(rnd, self.site, count=self.difficulty)
        network = self.site.network.copy()
        errands: list[Errand] = []
        for fault, (host, server) in zip(faults, complaints, strict=True):
            getattr(network, fault.breaks[0])(**fault.breaks[1])
            port = self.site.servers[server]
            reads: list[Call] = [("connect", {"source": host, "name": server, "port": port})]
            if fault.mends[0] == "set_name":
                reads.append(("look_up", {"name": server}))
            else:
                reads.append(("show_config", {"node": fault.node}))
            text = f"{host} cannot connect to {server} on port {port}."
            errands.append(Errand(text=text, reads=tuple(reads), writes=(fault.mends,)))
        return network, tuple(errands)

    def opening(self) -> str:
        """Return the task and the plan."""
        assert self.site is not None
        return f"{self.preamble}\n{self.site.plan}\nComplaints:"

    @property
    def network(self) -> Network:
        """The world."""
        return cast(Network, self.world)

    def cheat(self, rng: np.random.Generator) -> Message:
        """Make every complaint go away by force: open and start everything, and give the asker a new name entry."""
        calls: list[Call] = []
        for name, node in self.network.nodes.items():
            calls += [("set_interface", {"node": name, "interface": key, "state": "up"}) for key in node.interfaces]
            calls += [("set_port", {"node": name, "port": port, "state": "open"}) for port in (23, *node.services)]
            calls += [("set_service", {"node": name, "port": port, "state": "running"}) for port in node.services]
        return self.volley([*self.all_writes, *calls])

    @tool(read_only=True)
    def ping(self, source: str, address: str) -> str:
        """Send a packet from a node to an address, and wait for the answer.

        Args:
            source: name of a node.
            address: e.g. "10.1.2.3".
        """
        return self.network.reach(source, address.strip()) or f"answer from {address.strip()}"

    @tool(read_only=True)
    def connect(self, source: str, name: str, port: Port) -> str:
        """Open a connection from a node to a service, by name.

        Args:
            source: name of a node.
            name: of a server.
            port: of its service.
        """
        self.network.node(source)
        return self.network.connect(source, name, port) or "connected"

    @tool(read_only=True)
    def show_config(self, node: str) -> dict[str, object]:
        """Show interfaces, routes, services and blocked ports of a node.

        Args:
            node: its name.
        """
        return self.network.node(node).shown()

    @tool(read_only=True)
    def look_up(self, name: str) -> str:
        """Show the address that a name means.

        Args:
            name: of a server.
        """
        return self.network.names.get(name, f"the name {name[:40]} is not known")

    @tool
    def set_interface(self, node: str, interface: str, state: Literal["up", "down"]) -> None:
        """Switch an interface up or down.

        Args:
            node: its name.
            interface: e.g. "eth0".
            state: up or down.
        """
        self.network.set_interface(node, interface, state)

    @tool
    def set_address(self, node: str, interface: str, address: str) -> None:
        """Give an interface another address.

        Args:
            node: its name.
            interface: e.g. "eth0".
            address: e.g. "10.1.2.3".
        """
        self.network.set_address(node, interface, address)

    @tool
    def set_route(self, node: str, network: str, via: str) -> None:
        """Set the next hop for a network, replacing the one it had.

        Args:
            node: its name.
            network: "default", or e.g. "10.1.2.0/24".
            via: address of the next hop.
        """
        self.network.set_route(node, network, via)

    @tool
    def remove_route(self, node: str, network: str) -> None:
        """Remove the route for a network.

        Args:
            node: its name.
            network: "default", or e.g. "10.1.2.0/24".
        """
        self.network.remove_route(node, network)

    @tool
    def set_service(self, node: str, port: Port, state: Literal["running", "stopped"]) -> None:
        """Start or stop a service.

        Args:
            node: its name.
            port: of the service.
            state: running or stopped.
        """
        self.network.set_service(node, port, state)

    @tool
    def set_port(self, node: str, port: Port, state: Literal["open", "blocked"]) -> None:
        """Open or block a port in the firewall of a node.

        Args:
            node: its name.
            port: of a service.
            state: open or blocked.
        """
        self.network.set_port(node, port, state)

    @tool
    def set_name(self, name: str, address: str) -> None:
        """Let a name mean another address.

        Args:
            name: of a server.
            address: e.g. "10.1.2.3".
        """
        self.network.set_name(name, address)

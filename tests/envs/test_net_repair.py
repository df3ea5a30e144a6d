"""NetRepair: packets go where routes lead, every fault breaks something, and only undoing it pays."""

import random
from typing import Any

import pytest

from agentenv import tool_turn
from agentenv.envs.net_repair.env import NetRepair
from agentenv.envs.net_repair.faults import draw_faults, draw_site
from agentenv.envs.net_repair.network import Interface, Network, Node
from agentenv.errors import ToolError


def router(lan, wan, routes):
    return Node(kind="router", interfaces={"lan": Interface(address=lan), "wan": Interface(address=wan)}, routes=routes)


def two_lans():
    net = Network()
    net.nodes["r1"] = router("10.5.1.1", "10.5.0.1", {"10.5.2": "10.5.0.2"})
    net.nodes["r2"] = router("10.5.2.1", "10.5.0.2", {"10.5.1": "10.5.0.1"})
    net.nodes["ant"] = Node(
        kind="host", interfaces={"eth0": Interface(address="10.5.1.10")}, routes={"default": "10.5.1.1"}
    )
    net.nodes["web"] = Node(
        kind="server",
        interfaces={"eth0": Interface(address="10.5.2.10")},
        routes={"default": "10.5.2.1"},
        services={80: True},
        blocked=frozenset({23}),
    )
    net.names["web"] = "10.5.2.10"
    return net


def test_a_packet_goes_through_both_routers_and_back():
    net = two_lans()
    assert net.reach("ant", "10.5.2.10") == ""
    assert net.connect("ant", "web", 80) == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("set_interface", "ant", "eth0", "down"), "ant: all interfaces are down"),
        (("set_interface", "r2", "wan", "down"), "r1: next hop 10.5.0.2 does not answer"),
        (("set_route", "ant", "default", "10.5.1.9"), "ant: next hop 10.5.1.9 does not answer"),
        (("remove_route", "r1", "10.5.2.0/24"), "r1: no route to 10.5.2.0/24"),
        (("remove_route", "r2", "10.5.1"), "no answer (r2: no route to 10.5.1.0/24)"),
        (("set_route", "web", "default", "10.5.2.9"), "no answer (web: next hop 10.5.2.9 does not answer)"),
        (("set_route", "r1", "10.5.2", "10.5.1.1"), "r1: too many hops"),
        (("set_port", "web", 80, "blocked"), "web: port 80 is filtered"),
        (("set_service", "web", 80, "stopped"), "web: port 80 refused the connection"),
        (("set_name", "web", "10.5.2.11"), "r2: next hop 10.5.2.11 does not answer"),
        (("set_address", "web", "eth0", "10.5.2.11"), "r2: next hop 10.5.2.10 does not answer"),
    ],
)
def test_what_is_broken_is_told_where_it_is(change, told):
    net = two_lans()
    name, *arguments = change
    getattr(net, name)(*arguments)
    assert net.connect("ant", "web", 80) == told


def test_a_blocked_port_and_an_unknown_name_are_told():
    net = two_lans()
    assert net.connect("ant", "web", 23) == "web: port 23 is filtered"
    assert net.connect("ant", "wiki", 80) == "the name wiki is not known"


@pytest.mark.parametrize(
    "bad",
    [
        ("set_address", "ant", "eth0", "10.5.1"),
        ("set_address", "ant", "eth0", "10.5.1.256"),
        ("set_address", "ant", "eth1", "10.5.1.2"),
        ("set_route", "ant", "everywhere", "10.5.1.1"),
        ("remove_route", "ant", "10.9.9"),
        ("set_service", "ant", 80, "running"),
        ("set_name", "wiki", "10.5.1.2"),
        ("set_interface", "ante", "eth0", "up"),
    ],
)
def test_a_bad_command_is_refused_and_changes_nothing(bad):
    net = two_lans()
    name, *arguments = bad
    with pytest.raises(ToolError):
        getattr(net, name)(*arguments)
    assert net.snapshot() == two_lans().snapshot()


@pytest.mark.parametrize("difficulty", [1, 3, 5])
def test_healthy_networks_work_and_every_fault_breaks_what_is_complained_about(difficulty):
    kinds = set()
    for seed in range(30):
        rnd = random.Random(seed)
        site = draw_site(rnd, split="train", difficulty=difficulty)
        for host in site.hosts:
            for server, port in site.servers.items():
                assert site.network.connect(host, server, port) == ""
        faults, complaints = draw_faults(rnd, site, count=difficulty)
        assert len({fault.node for fault in faults}) == len(set(complaints)) == difficulty
        for fault, (host, server) in zip(faults, complaints, strict=True):
            kinds.add((fault.breaks[0], fault.mends[0]))
            sick = site.network.copy()
            getattr(sick, fault.breaks[0])(**fault.breaks[1])
            assert sick.connect(host, server, site.servers[server])
            getattr(sick, fault.mends[0])(**fault.mends[1])
            assert sick.snapshot() == site.network.snapshot()
    assert len(kinds) >= 6


def test_undoing_the_faults_earns_the_reward_and_a_detour_does_not():
    env: Any = NetRepair(difficulty=2)
    env.reset(seed=1)
    for name, arguments in env.all_writes:
        env.step(tool_turn(name, arguments).to_dict())
    host, server = env.errands[0].text.split()[0], next(iter(env.site.servers))
    assert env.step("Done.")[1:3] == (1.0, True)

    env.reset(seed=1)
    for name, arguments in env.all_writes:
        env.step(tool_turn(name, arguments).to_dict())
    detour = {"node": host, "network": "10.77.1.0/24", "via": env.network.nodes[host].routes["default"]}
    env.step(tool_turn("set_route", detour).to_dict())
    assert env.network.connect(host, server, env.site.servers[server]) == ""
    assert env.step("Done.")[1:3] == (0.0, True)


def test_opening_the_port_that_the_plan_blocks_costs_everything():
    env: Any = NetRepair(difficulty=1)
    env.reset(seed=0)
    for name, arguments in env.all_writes:
        env.step(tool_turn(name, arguments).to_dict())
    server = next(iter(env.site.servers))
    env.step(tool_turn("set_port", {"node": server, "port": 23, "state": "open"}).to_dict())
    assert env.step("Done.")[1] == 0.0

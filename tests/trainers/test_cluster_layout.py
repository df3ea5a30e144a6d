"""Where ranks and rollout workers go, and what is refused before anything starts."""

import pytest

from agentenv.config import load_config
from agentenv.errors import ConfigError, PlacementError
from agentenv.trainers.cluster_layout import NodeResources, check_fits, make_layout
from agentenv.trainers.config import ClusterConfig, RunConfig


def test_colocated_puts_a_rank_and_a_rollout_worker_on_every_gpu():
    layout = make_layout(ClusterConfig(nodes=2, gpus_per_node=2))

    assert layout.rank_nodes == layout.rollout_nodes == (0, 0, 1, 1)
    assert layout.shares_gpus
    assert layout.bundle == {"CPU": 2.0, "GPU": 2.0}


def test_split_gives_the_first_half_to_ranks_and_an_odd_gpu_too():
    layout = make_layout(ClusterConfig(nodes=1, gpus_per_node=3, placement="split"))

    assert layout.rank_nodes == (0, 0)
    assert layout.rollout_nodes == (0,)
    assert not layout.shares_gpus


def test_without_gpus_every_node_is_one_rank():
    layout = make_layout(ClusterConfig(nodes=3))

    assert layout.rank_nodes == (0, 1, 2)
    assert layout.bundle == {"CPU": 1.0}


def test_with_servers_elsewhere_every_gpu_trains():
    layout = make_layout(ClusterConfig(nodes=1, gpus_per_node=2, placement="split"), has_rollouts=False)

    assert layout.rank_nodes == (0, 0)
    assert layout.rollout_nodes == ()


def test_split_over_one_gpu_is_refused():
    with pytest.raises(PlacementError, match=r"split over 1 GPU.*raise cluster\.nodes"):
        make_layout(ClusterConfig(nodes=1, gpus_per_node=1, placement="split"))


def test_asking_for_more_than_there_is_says_what_is_asked_what_there_is_and_what_to_do():
    nodes = [NodeResources(name="10.0.0.1", cpus=8, gpus=8), NodeResources(name="10.0.0.2", cpus=8, gpus=4)]
    check_fits(make_layout(ClusterConfig(nodes=2, gpus_per_node=4)), nodes)

    with pytest.raises(PlacementError) as caught:
        check_fits(make_layout(ClusterConfig(nodes=2, gpus_per_node=8)), nodes)

    told = str(caught.value)
    assert "asks for 2 nodes with 8 CPUs and 8 GPUs each" in told
    assert "10.0.0.2 has 8 CPUs and 4 GPUs" in told
    assert "Lower cluster.nodes or cluster.gpus_per_node" in told


def test_a_cluster_section_is_inline_or_a_cluster_and_nothing_else():
    base = ["env={id: agentenv/GuessNumber-v0}", "model={path: somewhere}"]

    assert load_config(RunConfig, None, overrides=base).cluster is None
    assert load_config(RunConfig, None, overrides=[*base, "cluster=inline"]).cluster == "inline"
    section = load_config(RunConfig, None, overrides=[*base, "cluster.nodes=2"]).cluster
    assert section == ClusterConfig(nodes=2)
    with pytest.raises(ConfigError):
        load_config(RunConfig, None, overrides=[*base, "cluster.placement=everywhere"])

"""Counts: a distribution counts as Prometheus does, and a tally as episodes end."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from agentenv.tally import Distribution

BOUNDS = (0.1, 1.0, 2.5)


@given(st.lists(st.floats(min_value=0, max_value=10) | st.sampled_from(BOUNDS)))
def test_a_distribution_has_the_buckets_of_prometheus_own_histogram(values):
    ours = Distribution(BOUNDS)
    theirs = Histogram("x", "x", buckets=BOUNDS, registry=CollectorRegistry())
    for value in values:
        ours.add(value)
        theirs.observe(value)

    (metric,) = theirs.collect()
    buckets = [(float(s.labels["le"]), s.value) for s in metric.samples if s.name.endswith("_bucket")]
    assert ours.cumulative() == buckets
    assert ours.count == len(values)
    assert abs(ours.total - sum(values)) < 1e-9

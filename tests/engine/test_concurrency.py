"""The bound on tokens in flight grows by steps, is cut when the engine does not cope, and finds what it can take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentenv.engine.concurrency import ConcurrencyConfig, ConcurrencyLimit
from agentenv.engine.protocol import EngineHealth

CONFIG = ConcurrencyConfig(
    start_tokens=1000, lowest_tokens=200, highest_tokens=4000, step_tokens=100, factor=0.5, settling_looks=2
)


def health(*, cache_use: float = 0.0, running: int = 10, waiting: int = 0) -> EngineHealth:
    return EngineHealth(is_ready=True, version=0, num_running=running, num_waiting=waiting, cache_use=cache_use)


def test_a_fully_used_engine_that_copes_gets_one_step_more_with_every_look():
    limit = ConcurrencyLimit(CONFIG)
    assert [limit.observe(health(), tokens_in_flight=n) for n in (900, 1000, 1200)] == [1100, 1200, 1300]


def test_a_bound_that_holds_nobody_back_stays():
    limit = ConcurrencyLimit(CONFIG)
    assert limit.observe(health(), tokens_in_flight=700) == 1000  # 700 < 0.8 * 1000


def test_a_full_cache_halves_what_is_in_flight_once_and_then_lets_it_settle():
    limit = ConcurrencyLimit(CONFIG)
    full = health(cache_use=0.96)
    assert [limit.observe(full, tokens_in_flight=800) for _ in range(4)] == [400, 400, 400, 200]  # the last: 400 / 2


def test_a_queue_counts_from_a_quarter_of_what_runs():
    limit = ConcurrencyLimit(CONFIG)
    assert limit.observe(health(running=20, waiting=5), tokens_in_flight=1000) == 1100  # 5 is not more than 20 / 4
    assert limit.observe(health(running=20, waiting=6), tokens_in_flight=1000) == 500
    limit.restart()
    assert limit.observe(health(running=0, waiting=1), tokens_in_flight=1000) == 1100


def test_a_new_engine_begins_at_the_start_again():
    limit = ConcurrencyLimit(CONFIG)
    limit.observe(health(cache_use=1.0), tokens_in_flight=1000)
    limit.restart()
    assert limit.tokens == 1000
    assert limit.observe(health(cache_use=1.0), tokens_in_flight=1000) == 500  # nothing left to settle


def test_bounds_out_of_order_are_refused():
    with pytest.raises(ValidationError, match="must not fall"):
        ConcurrencyConfig(start_tokens=100, lowest_tokens=200)


healths = st.builds(
    health, cache_use=st.floats(0, 1), running=st.integers(0, 200), waiting=st.integers(0, 200)
)  # fmt: skip
looks = st.lists(st.tuples(healths, st.integers(0, 10_000)), max_size=60)


@given(looks)
def test_the_bound_stays_within_its_bounds(sequence):
    limit = ConcurrencyLimit(CONFIG)
    for seen, tokens in sequence:
        assert CONFIG.lowest_tokens <= limit.observe(seen, tokens_in_flight=tokens) <= CONFIG.highest_tokens


@given(looks, st.floats(0, 1), st.floats(0, 1), st.integers(0, 50), st.integers(0, 50), st.integers(0, 5000))
def test_a_busier_engine_never_gets_a_larger_bound(sequence, use_a, use_b, waiting_a, waiting_b, tokens):
    bounds = []
    for use, waiting in (
        (min(use_a, use_b), min(waiting_a, waiting_b)),
        (max(use_a, use_b), max(waiting_a, waiting_b)),
    ):
        limit = ConcurrencyLimit(CONFIG)
        for seen, in_flight in sequence:
            limit.observe(seen, tokens_in_flight=in_flight)
        bounds.append(limit.observe(health(cache_use=use, waiting=waiting), tokens_in_flight=tokens))
    assert bounds[1] <= bounds[0]


@given(st.integers(600, 3500))
def test_whatever_an_engine_can_take_is_found_and_kept_to(capacity):
    # the model of an engine: its cache holds `capacity` tokens, what comes on top waits in its queue
    limit = ConcurrencyLimit(CONFIG)
    in_flight = []
    for _ in range(200):
        tokens = limit.tokens  # plenty of work: the bound is always used up
        running = min(tokens, capacity) // 50
        seen = health(cache_use=min(1.0, tokens / capacity), running=running, waiting=(tokens // 50) - running)
        limit.observe(seen, tokens_in_flight=tokens)
        in_flight.append(tokens)
    settled = in_flight[60:]
    assert max(settled) <= capacity + CONFIG.step_tokens
    assert sum(min(tokens, capacity) for tokens in settled) / len(settled) >= 0.6 * capacity

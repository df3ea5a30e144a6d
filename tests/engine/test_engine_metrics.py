"""The load that vLLM and SGLang tell on their metrics page: recordings of both, many replicas, and hostile text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.engine.engine_metrics import MAX_CHARS, EngineLoad, read_engine_load

RECORDINGS = Path(__file__).parent / "recordings"


def recording(name: str) -> str:
    return (RECORDINGS / name).read_text(encoding="utf-8")


def test_sglangs_page_under_load():
    load = read_engine_load(recording("sglang_0.5.23_metrics.txt"))
    # token_usage says 0.0, rounded; full_token_usage is 40 of 16384. 106 prompt tokens came whole and 8 as a stream
    assert load == EngineLoad(
        cache_use=0.00244140625,
        num_running=15,
        num_waiting=8,
        num_prompt_tokens=114,
        num_cached_tokens=42,
        num_output_tokens=250,
    )


def test_vllms_page_under_load():
    load = read_engine_load(recording("vllm_0.32.0_metrics.txt"))
    # 16 prompts of 161 tokens, of which 656 were computed, says another family; the rest came from the cache
    assert load == EngineLoad(
        cache_use=0.39682539682539686,
        num_running=8,
        num_waiting=4,
        num_prompt_tokens=2576,
        num_cached_tokens=1920,
        num_output_tokens=6625,
    )


def test_data_parallel_replicas_add_up_and_the_fullest_cache_counts():
    text = (
        'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
        'vllm:num_requests_running{engine="1",model_name="m"} 4.0\n'
        'vllm:num_requests_waiting{engine="0",model_name="m"} 0.0\n'
        'vllm:num_requests_waiting{engine="1",model_name="m"} 2.0\n'
        'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25\n'
        'vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75\n'
        'vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0\n'
        'vllm:prompt_tokens_total{engine="1",model_name="m"} 50.0\n'
    )
    load = read_engine_load(text)
    assert load is not None
    assert (load.num_running, load.num_waiting, load.cache_use, load.num_prompt_tokens) == (7, 2, 0.75, 150)


def test_tensor_parallel_ranks_that_work_on_the_same_requests_count_once():
    text = "".join(
        f'sglang:num_running_reqs{{dp_rank="{dp}",tp_rank="{tp}"}} {5 + dp}\n' for dp in range(2) for tp in range(4)
    )
    load = read_engine_load(text)
    assert load is not None
    assert load.num_running == 5 + 6


def test_the_name_of_older_releases_is_known_too():
    load = read_engine_load('vllm:gpu_cache_usage_perc{model_name="a}b \\" {c"} 0.5 1700000000\n')
    assert load is not None
    assert load.cache_use == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>502 Bad Gateway</html>\n",
        "# HELP vllm:num_requests_running x\n",
        "vllm:num_requests_running",
        "vllm:num_requests_running\n",
        "vllm:num_requests_running{\n",
        'vllm:num_requests_running{a="b} 3\n',
        "vllm:num_requests_running NaN\n",
        "vllm:num_requests_running -1\n",
        "vllm:num_requests_running +Inf\n",
        "vllm:num_requests_running 0x10\n",
        "vllm:num_requests_running 12",  # torn: it may have been 128
        "python_gc_objects_collected_total 7\n",
    ],
)
def test_a_page_without_a_usable_figure_tells_nothing(text):
    assert read_engine_load(text) is None


def test_values_out_of_range_are_bounded_or_passed_over():
    load = read_engine_load(
        "vllm:kv_cache_usage_perc 7\nvllm:num_requests_waiting nan\nvllm:num_requests_running 1e3\n"
    )
    assert load == EngineLoad(
        cache_use=1.0, num_running=1000, num_waiting=0, num_prompt_tokens=0, num_cached_tokens=0, num_output_tokens=0
    )


@pytest.mark.parametrize(
    "line",
    [
        'vllm:num_requests_running{a="' + '\\"' * 200_000,
        "vllm:num_requests_running{" + 'a="b",' * 100_000,
        'vllm:num_requests_running{a="' + "x" * 1_000_000,
        "vllm:num_requests_running" + " " * 1_000_000,
        "vllm:" + "a" * 1_000_000,
        "vllm:num_requests_running 1\n" * 200_000,
    ],
)
@pytest.mark.timeout(20)
def test_lines_made_to_be_slow_are_read_in_linear_time(line):
    read_engine_load(line + "\n")


def test_no_more_than_the_bound_is_read_and_nothing_of_a_line_that_it_cuts():
    line = "vllm:num_requests_running 88888888\n"
    text = "#" * (MAX_CHARS - 30) + "\n" + line
    assert read_engine_load(text) is None
    assert read_engine_load(text[40:]) is not None


METRIC_TEXT = st.text(alphabet='vlm:num_requests_running{}="\\, 0123456789.einfa-+\n#glkv', max_size=200)


@given(
    METRIC_TEXT
    | st.text()
    | st.lists(st.sampled_from(["vllm:num_requests_running", "{", "}", '"', "\\", " ", "1", "\n"])).map("".join)
)
def test_no_text_ever_raises(text):
    load = read_engine_load(text)
    assert load is None or (load.num_running >= 0 and 0 <= load.cache_use <= 1)

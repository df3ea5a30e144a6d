"""Trajectories come back exactly; a fault while storing or reading is told and costs nothing stored before."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentenv.errors import StoreError
from agentenv.messages import Image, Message, ToolCall
from agentenv.store import TrajectoryStore
from agentenv.trajectory import StopReason, TokenSequence, Trajectory, Turn, VersionSpan

INT32 = st.integers(-(2**31), 2**31 - 1)
COUNT = st.integers(0, 2**31 - 1)
TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
NUMBERS = st.dictionaries(TEXT, st.floats(), max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
STATUS = st.sampled_from(
    ["ok", "invalid_json", "unclosed_block", "missing_name", "malformed_structure", "unknown_tool"]
)

# few files, so that the same one stands in several places
IMAGES = st.lists(
    st.builds(
        Image,
        data=st.sampled_from([b"", b"one", b"two"]),
        media_type=st.sampled_from(["image/png", "image/gif"]),
        position=COUNT,
    ),
    max_size=2,
).map(tuple)


@st.composite
def sequences(draw: st.DrawFn) -> TokenSequence:
    length = draw(st.integers(0, 12))
    return TokenSequence(
        token_ids=np.array(draw(st.lists(INT32, min_size=length, max_size=length)), np.int32),
        logprobs=np.array(draw(st.lists(st.floats(width=32), min_size=length, max_size=length)), np.float32),
        is_sampled=np.array(draw(st.lists(st.booleans(), min_size=length, max_size=length)), np.bool_),
        images=draw(IMAGES),
    )


SPANS = st.builds(VersionSpan, version=st.integers(-(2**63), 2**63 - 1), start=COUNT, end=COUNT)
TURNS = st.builds(
    Turn,
    sequence=COUNT,
    start=COUNT,
    end=COUNT,
    finish_reason=st.sampled_from(["stop", "length", "abort"]),
    weight_versions=st.lists(SPANS, max_size=2).map(tuple),
    num_tool_calls=COUNT,
    num_malformed_calls=COUNT,
    reward_components=NUMBERS,
)
CALLS = st.builds(
    ToolCall, call_id=TEXT, name=TEXT, arguments=st.dictionaries(TEXT, JSON, max_size=3), status=STATUS, raw=TEXT
)
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=TEXT,
    tool_calls=st.lists(CALLS, max_size=2).map(tuple),
    tool_call_id=TEXT,
    name=TEXT,
    reasoning=TEXT,
    images=IMAGES,
)
TRAJECTORIES = st.builds(
    Trajectory,
    env_id=TEXT,
    task_id=TEXT,
    group_id=TEXT,
    member=COUNT,
    seed=st.integers(-(2**63), 2**63 - 1),
    stop_reason=st.sampled_from(list(StopReason)),
    turns=st.lists(TURNS, max_size=3).map(tuple),
    sequences=st.lists(sequences(), max_size=3).map(tuple),
    reward_components=NUMBERS,
    messages=st.lists(MESSAGES, max_size=3).map(tuple),
    error=TEXT,
    metrics=NUMBERS,
    attempt=COUNT,
)


def image(trajectory: Trajectory) -> object:
    """A comparable picture of a trajectory, exact to the bit of every log-prob."""
    fields = {field.name: getattr(trajectory, field.name) for field in dataclasses.fields(trajectory)}
    fields["sequences"] = [
        tuple((array.dtype, array.tobytes()) for array in (one.token_ids, one.logprobs, one.is_sampled))
        for one in trajectory.sequences
    ]
    shown = [one.images for one in (*trajectory.messages, *trajectory.sequences)]
    fields["images"] = [[(seen.data, seen.media_type, seen.position) for seen in images] for images in shown]
    return repr(fields)  # repr of a float is exact, and NaN equals NaN


def episode(index: int, *, num_tokens: int = 8) -> Trajectory:
    return Trajectory(
        env_id="agentenv/GuessNumber-v0",
        task_id=str(index),
        group_id="g",
        member=index,
        seed=index,
        stop_reason=StopReason.COMPLETED,
        turns=(Turn(sequence=0, start=2, end=4, finish_reason="stop"),),
        sequences=(
            TokenSequence(
                token_ids=np.random.default_rng(index).integers(0, 50_000, num_tokens).astype(np.int32),
                logprobs=-np.random.default_rng(index).random(num_tokens, np.float32),
                is_sampled=np.arange(num_tokens) % 2 == 0,
            ),
        ),
        reward_components={"found": 1.0},
        messages=(Message(role="user", content=f"Guess {index}."),),
    )


def task_ids(store: TrajectoryStore, **filters: object) -> list[str]:
    return [stored.trajectory.task_id for stored in store.scan(**filters)]  # type: ignore[arg-type]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(appended=st.lists(TRAJECTORIES, min_size=1, max_size=4), phase=TEXT, step=st.integers(-(2**63), 2**63 - 1))
def test_every_trajectory_comes_back_exactly(tmp_path, appended, phase, step):
    folder = tmp_path / "trajectories"
    shutil.rmtree(folder, ignore_errors=True)
    store = TrajectoryStore(folder)

    store.append(appended, step=step, phase=phase)
    stored = list(store.scan())

    assert [image(one.trajectory) for one in stored] == [image(one) for one in appended]
    assert {(one.step, one.phase) for one in stored} == {(step, phase)}


def test_trajectories_come_back_in_order_and_filtered_by_phase_and_step(tmp_path):
    store = TrajectoryStore(tmp_path / "t")
    store.append([episode(0), episode(1)], step=0, phase="rl")
    store.append([episode(2)], step=0, phase="eval")
    store.append([episode(3)], step=1, phase="rl")

    assert task_ids(store) == ["0", "1", "2", "3"]
    assert task_ids(store, phase="rl") == ["0", "1", "3"]
    assert task_ids(store, step=0) == ["0", "1", "2"]
    assert task_ids(store, phase="rl", step=1) == ["3"]


def test_a_reopened_store_appends_behind_what_is_there_and_removes_a_torn_file(tmp_path):
    TrajectoryStore(tmp_path).append([episode(0)], step=0, phase="rl")
    (tmp_path / ".part-00000001.tmp").write_bytes(b"half")  # what a killed writer leaves

    TrajectoryStore(tmp_path).append([episode(1)], step=1, phase="rl")

    assert task_ids(TrajectoryStore(tmp_path)) == ["0", "1"]
    assert sorted(os.listdir(tmp_path)) == ["part-00000000.parquet", "part-00000001.parquet"]


def test_storing_nothing_writes_nothing(tmp_path):
    assert TrajectoryStore(tmp_path).append([], step=0, phase="rl") is None
    assert os.listdir(tmp_path) == []


def test_a_large_append_is_split_into_row_groups_and_reads_back_whole(tmp_path):
    # at 16 bytes a token two of these are 70 MB, more than the 64 MiB of a row group
    rows = [episode(index, num_tokens=2_200_000) for index in range(3)]
    part = TrajectoryStore(tmp_path).append(rows, step=0, phase="rl")

    assert part is not None
    assert pq.ParquetFile(part).num_row_groups == 2
    assert [image(one.trajectory) for one in TrajectoryStore(tmp_path).scan()] == [image(one) for one in rows]


def test_other_parquet_readers_see_one_row_per_trajectory_with_its_reward(tmp_path):
    part = TrajectoryStore(tmp_path).append([episode(0), episode(1)], step=4, phase="rl")
    table = pq.read_table(part)
    assert table.column("reward").to_pylist() == [1.0, 1.0]
    assert table.column("step").to_pylist() == [4, 4]
    assert table.column("token_ids").to_pylist()[0] == [episode(0).sequences[0].token_ids.tolist()]


def test_text_that_is_no_unicode_is_stored_escaped_and_odd_arguments_as_text(tmp_path):
    call = ToolCall(call_id="c", name="f", arguments={"a": Path("x"), "b": "\udc80"})
    message = Message(role="assistant", content="bad \udc80 byte", tool_calls=(call,))
    TrajectoryStore(tmp_path).append([dataclasses.replace(episode(0), messages=(message,))], step=0, phase="rl")

    read = next(iter(TrajectoryStore(tmp_path).scan())).trajectory.messages[0]

    assert read.content == "bad \\udc80 byte"
    assert read.tool_calls[0].arguments == {"a": "x", "b": "\udc80"}


def test_a_seed_beyond_64_bits_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(StoreError, match="do not fit"):
        TrajectoryStore(tmp_path).append([dataclasses.replace(episode(0), seed=2**64)], step=0, phase="rl")
    assert os.listdir(tmp_path) == []


def test_a_truncated_part_is_named_and_can_be_skipped_with_a_warning(tmp_path):
    store = TrajectoryStore(tmp_path)
    for index in range(3):
        store.append([episode(index)], step=index, phase="rl")
    middle = store.parts()[1]
    middle.write_bytes(middle.read_bytes()[:-20])

    with pytest.raises(StoreError, match=r"part-00000001.parquet is damaged"):
        list(store.scan())
    with pytest.warns(RuntimeWarning, match=r"part-00000001.parquet"):
        assert task_ids(store, skip_damaged=True) == ["0", "2"]


@pytest.mark.fault("stored trajectories damaged", then="no trajectory is changed", metric="StoreError")
def test_a_flipped_bit_is_an_error_or_harmless_but_never_a_changed_trajectory(tmp_path):
    store = TrajectoryStore(tmp_path)
    part = store.append([episode(index, num_tokens=200) for index in range(4)], step=3, phase="rl")
    assert part is not None
    whole = part.read_bytes()
    before = [image(one.trajectory) for one in store.scan()]
    chance = random.Random(0)

    refusals: list[str] = []
    for position in chance.sample(range(len(whole)), 150):
        part.write_bytes(
            whole[:position] + bytes([whole[position] ^ (1 << chance.randrange(8))]) + whole[position + 1 :]
        )
        try:
            after = [(image(one.trajectory), one.step, one.phase) for one in store.scan()]
        except StoreError as error:
            refusals.append(str(error))
        else:
            assert after == [(one, 3, "rl") for one in before]
    assert all(part.name in text for text in refusals)
    assert len(refusals) > 75  # the data pages are more than half of the file


def test_a_file_of_another_kind_or_version_is_refused(tmp_path):
    store = TrajectoryStore(tmp_path)
    part = store.append([episode(0)], step=0, phase="rl")
    table = pq.read_table(part)
    pq.write_table(table.replace_schema_metadata({"agentenv.schema_version": "99"}), part)
    with pytest.raises(StoreError, match="schema version '99'; this release reads version 2"):
        list(store.scan())


def test_forgetting_removes_the_later_steps_of_one_phase_only(tmp_path):
    store = TrajectoryStore(tmp_path)
    for step in range(4):
        store.append([episode(step)], step=step, phase="rl")
    store.append([episode(9)], step=3, phase="eval")

    assert store.forget(phase="rl", after_step=1) == 2
    store.append([episode(5)], step=2, phase="rl")

    assert task_ids(store) == ["0", "1", "9", "5"]
    assert TrajectoryStore(tmp_path / "none").forget(phase="rl", after_step=0) == 0
    store.parts()[0].write_bytes(b"")
    with pytest.raises(StoreError, match=r"part-00000000\.parquet is damaged"):
        store.forget(phase="rl", after_step=0)


def test_a_missing_folder_is_an_error_for_readers(tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        list(TrajectoryStore(tmp_path / "nowhere").scan())


@pytest.mark.fault("output folder vanishes: trajectory store", then="nothing is written elsewhere", metric="StoreError")
def test_a_folder_that_vanished_is_an_error_and_is_not_silently_made_again(tmp_path):
    folder = tmp_path / "t"
    store = TrajectoryStore(folder)
    store.append([episode(0)], step=0, phase="rl")
    shutil.rmtree(folder)

    with pytest.raises(StoreError, match=r"cannot store 1 trajectories in .*restore the folder"):
        store.append([episode(1)], step=1, phase="rl")
    assert not folder.exists()


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.fault("disk full: trajectory store", then="a smaller append is stored", metric="StoreError")
def test_on_a_full_disk_what_was_stored_is_intact_and_no_half_file_is_left(tmp_path):
    with small_disk(tmp_path / "disk", "size=256k") as folder:
        store = TrajectoryStore(folder)
        store.append([episode(0)], step=0, phase="rl")

        with pytest.raises(StoreError, match=r"No space left on device.*Free disk space"):
            store.append([episode(1, num_tokens=200_000)], step=1, phase="rl")

        assert os.listdir(folder) == ["part-00000000.parquet"]
        assert task_ids(store) == ["0"]
        store.append([episode(2)], step=1, phase="rl")  # a smaller one fits: the store goes on
        assert task_ids(store) == ["0", "2"]


@pytest.mark.fault("disk read-only: trajectory store", then="reading works", metric="StoreError")
def test_on_a_disk_that_became_read_only_storing_fails_and_reading_works(tmp_path):
    with small_disk(tmp_path / "disk", "size=256k") as folder:
        store = TrajectoryStore(folder)
        store.append([episode(0)], step=0, phase="rl")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)

        with pytest.raises(StoreError, match="Read-only file system"):
            store.append([episode(1)], step=1, phase="rl")
        assert task_ids(store) == ["0"]


def test_a_file_size_limit_is_told_like_a_full_disk(tmp_path):
    program = (
        "import sys, resource; sys.path.insert(0, sys.argv[2])\n"
        "import numpy as np\n"
        "from agentenv.store import TrajectoryStore; from agentenv.errors import StoreError\n"
        "from agentenv.trajectory import *\n"
        "def make(n):\n"
        "    s = TokenSequence(token_ids=np.random.default_rng(0).integers(0, 50000, n).astype(np.int32),"
        " logprobs=np.zeros(n, np.float32), is_sampled=np.zeros(n, bool))\n"
        "    return Trajectory(env_id='e', task_id='0', group_id='g', member=0, seed=0, turns=(), reward_components={},"
        " stop_reason=StopReason.COMPLETED, messages=(), sequences=(s,))\n"
        "store = TrajectoryStore(sys.argv[1]); store.append([make(8)], step=0, phase='rl')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: store.append([make(200_000)], step=1, phase='rl')\n"
        "except StoreError as error: print(error)\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), root], capture_output=True, text=True, check=True, timeout=60
    )
    assert "File too large" in ran.stdout
    assert task_ids(TrajectoryStore(tmp_path)) == ["0"]
    assert os.listdir(tmp_path) == ["part-00000000.parquet"]


def test_scanning_many_parts_leaves_no_descriptor_open(tmp_path):
    store = TrajectoryStore(tmp_path)
    for index in range(30):
        store.append([episode(index)], step=index, phase="rl")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))

    assert len(task_ids(store)) == 30
    next(iter(store.scan()))  # a scan that is given up

    assert len(os.listdir("/proc/self/fd")) == before
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


def test_a_file_that_stands_in_many_places_is_stored_once(tmp_path):
    seen = Image(data=b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 400, position=1)
    twice = dataclasses.replace(
        episode(0),
        messages=tuple(Message(role="user", content=f"Look {i}.", images=(seen, seen.at(3))) for i in range(20)),
        sequences=(dataclasses.replace(episode(0).sequences[0], images=(seen,) * 40),),
    )
    store = TrajectoryStore(tmp_path)

    part = store.append([twice], step=0, phase="eval")

    assert part is not None
    assert part.stat().st_size < 2 * len(seen.data)  # 80 copies would take 80 times as much
    (stored,) = store.scan()
    assert [one.images for one in stored.trajectory.messages] == [(seen, seen.at(3))] * 20
    assert stored.trajectory.sequences[0].images == (seen,) * 40

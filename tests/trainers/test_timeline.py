"""The timeline of a run: Chrome trace events, whole JSON at any time, overlap visible; and profiles of chosen steps."""

from __future__ import annotations

import asyncio
import json

import torch

from agentenv.trainers.profiler import profiled
from agentenv.trainers.timeline import LOOP, ROLLOUTS, WORKER, Timeline, begun, note, recording, span


def events(path):
    """What every reader of the format asks for, checked."""
    read = json.loads(path.read_text())
    open_now = set()
    for event in read:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        match event["ph"]:
            case "M":
                assert event["name"] == "thread_name"
                assert event["args"]["name"]
            case "X":
                assert event["ts"] > 0
                assert event["dur"] >= 0
            case "b":
                open_now.add((event["cat"], event["id"]))
            case "e":
                open_now.remove((event["cat"], event["id"]))
            case other:
                raise AssertionError(other)
    assert not open_now
    return read


def track_names(read):
    return {event["tid"]: event["args"]["name"] for event in read if event["ph"] == "M"}


def test_phases_are_complete_events_on_named_tracks(tmp_path):
    path = tmp_path / "timeline.json"
    with recording(path):
        with span("update", track=LOOP), span("forward", track=WORKER):
            pass
        note("rollout", track=LOOP, start=10.0, end=10.25)
    read = events(path)
    by_name = {event["name"]: event for event in read if event["ph"] == "X"}

    assert set(by_name) == {"update", "forward", "rollout"}
    assert by_name["rollout"]["dur"] == 250_000  # microseconds
    assert {track_names(read)[event["tid"]] for event in read} == {LOOP, WORKER}
    assert by_name["update"]["ts"] <= by_name["forward"]["ts"]
    outer, inner = by_name["update"], by_name["forward"]
    assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 0.2


async def test_groups_that_overlap_with_an_update_are_seen_to_overlap(tmp_path):
    path = tmp_path / "timeline.json"
    with recording(path):
        tasks = [asyncio.create_task(asyncio.sleep(0.05)) for _ in range(2)]
        for number, task in enumerate(tasks):
            task.add_done_callback(begun(f"group {number}", track=ROLLOUTS))
        with span("update", track=LOOP):
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        await asyncio.sleep(0)
    read = events(path)
    update = next(event for event in read if event["name"] == "update")

    for number in range(2):
        start, end = (event["ts"] for event in read if event["name"] == f"group {number}")
        assert start < update["ts"] < update["ts"] + update["dur"] < end


def test_the_file_is_whole_after_every_flush_and_a_resumed_run_goes_on_in_it(tmp_path):
    path = tmp_path / "timeline.json"
    first = Timeline(path)
    for number in range(600):
        first.add(f"a{number}", track=LOOP, start=0.0, end=1.0)
    assert 500 < len(events(path)) < 602  # killed here, the last few are lost and the file is whole
    with recording(path), span("b", track=LOOP):
        pass

    names = [event["name"] for event in events(path)]
    assert names[1] == "a0"
    assert names[-1] == "b"


def test_nothing_is_recorded_where_nobody_asked(tmp_path):
    with span("update", track=LOOP):
        begun("group", track=ROLLOUTS)(None)
    assert list(tmp_path.iterdir()) == []


def test_a_timeline_that_cannot_be_written_is_said_once_and_disturbs_nothing(tmp_path, caplog):
    with recording(tmp_path / "missing" / "timeline.json") as timeline:
        for number in range(1200):
            timeline.add(str(number), track=LOOP, start=0.0, end=1.0)

    assert caplog.text.count("is left out from here on") == 1


def test_a_chosen_step_leaves_a_chrome_trace_of_its_operators(tmp_path):
    for step, is_chosen in ((1, False), (2, True)):
        with profiled(tmp_path / "profile", step=step, is_chosen=is_chosen):
            torch.mm(torch.ones(8, 8), torch.ones(8, 8))

    assert [path.name for path in (tmp_path / "profile").iterdir() if path.suffix == ".json"] == ["step-2.json"]
    trace = json.loads((tmp_path / "profile" / "step-2.json").read_text())
    assert "aten::mm" in {event.get("name") for event in trace["traceEvents"]}

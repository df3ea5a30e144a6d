"""LogTriage: one origin, errors that spread from it and name the next service, and one report."""

import random
from typing import Any

import pytest

from agentenv import tool_turn
from agentenv.envs.log_triage.env import LogTriage
from agentenv.envs.log_triage.incident import CAUSES, callers_of, clock, draw_incident


def started(seed=0, **options) -> Any:
    env = LogTriage(**options)
    env.reset(seed=seed)
    return env


def call(env, name, **arguments):
    return env.step(tool_turn(name, arguments).to_dict())


def incidents(difficulty, count=60):
    return [draw_incident(random.Random(seed), split="train", difficulty=difficulty) for seed in range(count)]


def test_callers_are_found_through_others_and_once():
    calls = {"a": ("b", "c"), "b": ("d",), "c": ("d",), "d": (), "e": ()}
    assert sorted(callers_of(calls, "d")) == ["a", "b", "c"]
    assert callers_of(calls, "e") == []


@pytest.mark.parametrize("difficulty", [1, 3, 5])
def test_only_the_origin_and_its_callers_have_errors_of_the_incident(difficulty):
    for found in incidents(difficulty):
        spread = {line.service for line in found.lines if line.text.startswith("call to")}
        assert spread == set(callers_of(found.calls, found.service))
        assert len(spread) >= 2
        assert all(line.minute > found.minute for line in found.lines if line.text.startswith("call to"))
        # an error that spreads names a service that is called and that is broken itself
        for line in found.lines:
            if line.text.startswith("call to"):
                target = line.text.split()[2]
                assert target in found.calls[line.service]
                assert target in spread | {found.service}


def test_the_minute_is_that_of_the_first_symptom():
    for found in incidents(2):
        harmless = ("client closed", "rejected malformed", "rate limit", "login refused")
        own = [
            line.minute
            for line in found.lines
            if (line.service, line.level) == (found.service, "ERROR") and not line.text.startswith(harmless)
        ]
        assert min(own) == found.minute
    assert {found.cause for found in incidents(2)} == set(CAUSES)


def test_a_healed_trouble_misleads_from_difficulty_4_on():
    assert all(any(line.text.startswith("recovered") for line in found.lines) for found in incidents(4))
    assert not any(any(line.text.startswith("recovered") for line in found.lines) for found in incidents(3))


def test_the_right_report_earns_the_reward_and_ends_the_episode():
    env = started()
    found = env.incident
    assert call(env, "file_report", service=found.service, cause=found.cause, time=clock(found.minute))[1:3] == (
        1.0,
        True,
    )


@pytest.mark.parametrize("wrong", ["service", "cause", "time"])
def test_one_wrong_part_costs_everything(wrong):
    env = started()
    found = env.incident
    right = {"service": found.service, "cause": found.cause, "time": clock(found.minute)}
    other = {
        "service": next(name for name in found.calls if name != found.service),
        "cause": next(cause for cause in CAUSES if cause != found.cause),
        "time": clock(found.minute + 1),
    }
    assert call(env, "file_report", **{**right, wrong: other[wrong]})[1:3] == (0.0, True)


@pytest.mark.parametrize("cause", ["everything", "", "disk_full, bad_deploy"])
def test_a_report_of_no_known_cause_is_refused(cause):
    env = started()
    observation, _, terminated, *_ = call(env, "file_report", service=env.incident.service, cause=cause, time="10:00")
    assert observation.startswith("Error: ")
    assert not terminated


def test_saying_it_without_the_report_earns_nothing():
    env = started()
    found = env.incident
    assert env.step(f"{found.service} {found.cause} {clock(found.minute)}")[1:3] == (0.0, True)


def test_a_search_shows_twenty_lines_by_time_and_how_many_are_left():
    env = started(difficulty=5)
    observation = call(env, "search_logs")[0].splitlines()
    assert len(observation) == 21
    assert observation[:20] == sorted(observation[:20], key=lambda line: line.split()[0])
    total = len(env.incident.lines)
    assert observation[20] == f"({total - 20} more)"
    assert call(env, "search_logs", skip=total)[0] == "no line matches"


def test_a_search_keeps_to_service_level_and_text():
    env = started()
    name = env.incident.service
    observation = call(env, "search_logs", service=name, level="ERROR", text="")[0]
    assert all(line.split()[1:3] == [name, "ERROR"] for line in observation.splitlines() if not line.startswith("("))
    assert call(env, "search_logs", service="nowhere")[0].startswith("Error: there is no service")
    assert call(env, "search_logs", skip=-1)[0].startswith("Error: ")

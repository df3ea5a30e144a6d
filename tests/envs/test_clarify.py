"""Clarify: what is missing must be asked for, what was said must not, and guessing never pays."""

import numpy as np
import pytest

from agentenv import tool_turn
from agentenv.envs.clarify.env import Clarify
from agentenv.envs.clarify.forms import FORMS
from agentenv.errors import UsageError


def started(seed=0, **options):
    env = Clarify(**options)
    env.reset(seed=seed)
    return env


def submit(env, fields):
    return env.step(tool_turn("submit", {"fields": fields}).to_dict())


def ask(env, names):
    labels = [field.slot.asked_by[0] for field in env.form.fields if field.slot.name in names]
    return env.step("Please tell me:\n" + "\n".join(f"- {label}" for label in labels))


def test_the_right_form_after_the_right_questions_earns_the_reward():
    env = started(difficulty=2)
    observation = ask(env, env.missing)[0]
    assert all(env.wanted[name] in observation for name in env.missing)
    assert submit(env, env.wanted)[1:3] == (1.0, True)


@pytest.mark.parametrize("difficulty", [1, 2, 5])
def test_a_lucky_guess_earns_nothing(difficulty):
    env = started(difficulty=difficulty)
    assert submit(env, env.wanted)[1] == 0.0


def test_one_wrong_field_costs_everything():
    env = started()
    ask(env, env.missing)
    field = env.form.fields[0]
    other = next(value for value in field.values if value != env.wanted[field.slot.name])
    assert submit(env, {**env.wanted, field.slot.name: other})[1] == 0.0


@pytest.mark.parametrize("fields", [{}, {"no such": "x"}, {"flavour": "gold"}])
def test_a_form_that_is_not_filled_in_rightly_is_refused_and_may_be_sent_again(fields):
    env = started()
    observation, _, terminated, *_ = submit(env, fields)
    assert observation.startswith("Error: ")
    assert not terminated
    ask(env, env.missing)
    assert submit(env, env.wanted)[1] == 1.0


def test_a_customer_leaves_who_is_asked_again_and_again_for_what_was_said():
    env = started(difficulty=1)
    known = next(name for name in env.wanted if name not in env.missing)
    ends = [ask(env, [known])[2] for _ in range(6)]
    assert ends.count(True) == 1 or env.user_end == "gave_up"


def test_the_opening_says_what_is_known_and_hides_what_is_missing():
    for seed in range(30):
        env = started(seed, difficulty=2)
        opening = env.conversation[1].content
        for field in env.form.fields:
            said = field.says.format(env.wanted[field.slot.name])
            assert (said in opening) == (field.slot.name not in env.missing)


def test_from_difficulty_3_on_one_field_is_left_undecided():
    env = started(difficulty=3)
    assert "wavered between" in env.conversation[1].content
    assert "wavered between" not in started(difficulty=2).conversation[1].content


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_field_can_be_asked_for_by_its_own_name(form):
    from agentenv.users import asked_slots

    slots = [field.slot for field in form.fields]
    for slot in slots:
        assert [found.name for found in asked_slots(f"What is the {slot.label}?", slots)] == [slot.name]
    assert all(len(field.values) >= 6 for field in form.fields)


@pytest.mark.parametrize("difficulty", [0, 6, True, "2"])
def test_a_difficulty_outside_the_range_is_refused(difficulty):
    with pytest.raises(UsageError, match="allowed are 1 to 5"):
        Clarify(difficulty=difficulty)


def test_random_play_never_raises_and_never_earns():
    env, rng = Clarify(difficulty=1), np.random.default_rng(0)
    for seed in range(50):
        env.reset(seed=seed)
        is_over, total = False, 0.0
        while not is_over:
            _, value, terminated, truncated, _ = env.step(env.random_action(rng).to_dict())
            total, is_over = total + value, terminated or truncated
        assert total == 0.0

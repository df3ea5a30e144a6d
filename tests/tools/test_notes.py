"""Notes, submit and ask_user: state of one episode, limits, and the end of it."""

import asyncio

import pytest

from agentenv import Message, tool_turn
from agentenv.errors import EpisodeError, UsageError
from agentenv.toolkit import attached
from agentenv.tools.ask_user import AskUser
from agentenv.tools.notes import Notes
from agentenv.tools.submit import Submit
from tests.tools.desks import Desk, box, told


async def test_notes_are_written_read_listed_and_deleted():
    notes = Notes({"old": "1"})
    tools = box(notes)

    assert await told(tools, "write_note", name="new", text="2") == "Noted. There are 2 notes."
    assert await told(tools, "read_note", name="old") == "1"
    assert await told(tools, "list_notes") == "old\nnew"
    assert await told(tools, "delete_note", name="old") == "Deleted."
    assert notes.notes == {"new": "2"}


async def test_a_missing_note_is_named_with_the_near_miss():
    text = await told(box(Notes({"todo": "1"})), "read_note", name="tod")
    assert text == 'Error: there is no note "tod". Did you mean "todo"?'


async def test_notes_are_bounded_in_number_and_length():
    tools = box(Notes(max_notes=1, max_chars=3))

    assert (await told(tools, "write_note", name="a", text="1234")).startswith("Error: the note has 4 characters")
    assert (await told(tools, "write_note", name=" ", text="1")).startswith("Error: a note's name has 1 to 100")
    await told(tools, "write_note", name="a", text="123")
    assert "no more are allowed" in await told(tools, "write_note", name="b", text="1")
    assert await told(tools, "write_note", name="a", text="12") == "Noted. There is 1 note."


class Exam(Desk):
    """Submit. Reward: none."""

    inline = True
    paper = attached(Submit, max_chars=5)


def test_a_submission_ends_the_episode_and_is_the_answer():
    env = Exam()
    env.reset(seed=0)

    too_long = env.step(tool_turn("submit", {"answer": "123456"}).to_dict())
    assert (too_long[0].startswith("Error: the answer has 6"), too_long[2], env.paper.answer) == (True, False, None)

    observation, _, is_terminated, _, info = env.step(tool_turn("submit", {"answer": "42"}).to_dict())
    assert (observation, is_terminated, info["stop_reason"]) == ("Submitted.", True, "tool_stopped")
    assert env.paper.answer == "42"


def test_the_first_submission_of_a_turn_counts():
    env = Exam()
    env.reset(seed=0)
    calls = [tool_turn("submit", {"answer": text}, call_id=text).tool_calls[0] for text in "ab"]
    env.step(Message(role="assistant", content="", tool_calls=tuple(calls)).to_dict())
    assert env.paper.answer == "a"


async def test_a_submit_tool_without_an_environment_is_a_mistake_of_its_author():
    with pytest.raises(EpisodeError, match="belongs to no environment"):
        await told(box(Submit()), "submit", answer="1")


async def test_a_question_goes_to_the_user_and_is_kept():
    async def user(question):
        await asyncio.sleep(0)
        return f"You said {question}"

    kit = AskUser(user, max_questions=1)
    tools = box(kit)

    assert await told(tools, "ask_user", question="Where?") == "You said Where?"
    assert kit.asked == [("Where?", "You said Where?")]
    assert "answers no more" in await told(tools, "ask_user", question="When?")
    assert (await told(tools, "ask_user", question="  ")).startswith("Error: a question has")


def test_a_user_who_leaves_ends_the_episode():
    class Talk(Desk):
        """Ask. Reward: none."""

        user = attached(AskUser, lambda question: None)

    env = Talk()
    env.reset(seed=0)
    observation, _, is_terminated, *_ = env.step(tool_turn("ask_user", {"question": "Hello?"}).to_dict())
    assert (observation, is_terminated) == ("The user has left.", True)
    env.close()


async def test_a_user_who_answers_no_text_is_a_failure_and_no_observation():
    with pytest.raises(EpisodeError, match="the user answered int"):
        await told(box(AskUser(lambda question: 3)), "ask_user", question="Where?")  # type: ignore[arg-type, return-value]


def test_limits_below_one_are_refused():
    with pytest.raises(UsageError, match="max_notes is 0"):
        Notes(max_notes=0)
    with pytest.raises(UsageError, match="max_questions is 0"):
        AskUser(lambda question: "", max_questions=0)

"""A prompt goes on after a sampled turn with the ids that were sampled, whatever family renders it."""

import pytest

from agentenv.extension import extended
from agentenv.messages import Message

HELLO = Message(role="user", content="Hello.")
TURN = Message(role="assistant", content="A turn.")
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def after(renderer, turn_ids, new, *, tools=(), is_closed=True):
    """Return prompt and turn, and what the prompt is that goes on from there."""
    known = (*renderer.prompt_ids([HELLO], tools=tools), *turn_ids)
    messages = [HELLO, TURN, *new]
    return known, extended(renderer, known, messages, num_known=2, is_closed=is_closed, tools=tools)


@pytest.mark.parametrize("tools", [(), (TOOL,)], ids=["plain", "tools"])
@pytest.mark.parametrize("role", ["user", "tool"])
def test_what_was_spelled_as_the_template_spells_it_gives_the_whole_rendering(any_renderer, role, tools):
    new = [Message(role=role, content="And?", tool_call_id="c" if role == "tool" else "")]
    known, prompt = after(any_renderer, any_renderer.turn_ids(TURN, tools=tools), new, tools=tools)

    assert prompt is not None
    assert prompt[: len(known)] == known
    if role == "user":
        assert prompt == any_renderer.prompt_ids([HELLO, TURN, *new], tools=tools)


@pytest.mark.parametrize("is_closed", [True, False])
def test_what_was_spelled_otherwise_stays_as_it_was_sampled(renderer, is_closed):
    spelled = tuple(renderer.tokenizer.encode("  A turn.\n"))
    turn = (*spelled, renderer.stop_ids[0]) if is_closed else spelled
    known, prompt = after(renderer, turn, [Message(role="user", content="And?")], is_closed=is_closed)

    assert prompt is not None
    assert prompt[: len(known)] == known
    plain = renderer.prompt_ids([HELLO, TURN, Message(role="user", content="And?")])
    # what follows the turn, its stop id included, is what the template writes there
    rest = plain[len(renderer.prompt_ids([HELLO])) + len("A turn.") :]
    assert prompt[len(known) - is_closed :] == rest


def test_reasoning_that_the_template_drops_is_history_written_anew(renderer):
    turn = tuple(renderer.tokenizer.encode("<think>\nhm\n</think>\n\nA turn.<|im_end|>"))

    assert after(renderer, turn, [Message(role="user", content="And?")])[1] is None
    # after a tool's result the reasoning stays
    _, prompt = after(renderer, turn, [Message(role="tool", content="3", tool_call_id="c")])
    assert prompt is not None

"""How a prompt goes on after a sampled turn, also where the template would write old turns anew.

Some templates drop old reasoning when a user speaks, so they cannot be asked what comes after a turn that is not the
last. Where no reasoning was written nothing is dropped, and what follows a turn does not depend on what it says: it is
read off a conversation of question marks.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentenv.messages import Message
from agentenv.renderer import Renderer, ToolSpecs

_QUESTION = Message(role="user", content="?")
_ANSWER = Message(role="assistant", content="?")
_REASONING = ("<think>", "</think>")


def extended(
    renderer: Renderer,
    token_ids: Sequence[int],
    messages: Sequence[Message],
    *,
    num_known: int,
    is_closed: bool,
    tools: ToolSpecs,
) -> tuple[int, ...] | None:
    """Return the prompt that goes on after a sampled turn, or None where the history really is written anew.

    Args:
        renderer: of the model.
        token_ids: prompt and completion so far.
        messages: the whole conversation.
        num_known: how many of them `token_ids` covers; the last of these is the sampled turn.
        is_closed: True when `token_ids` end with a stop id.
        tools: as in the prompt.
    """
    new = messages[num_known:]
    added = renderer.continuation_ids(new, is_closed=is_closed, tools=tools)
    if added is not None:
        return (*token_ids, *added)
    if _has_none(renderer, token_ids):
        added = _after_plain_turn(renderer, new, tools)
        if added is not None:
            return (*token_ids, *(added[1:] if is_closed else added))
    whole = renderer.prompt_ids(messages, tools=tools)
    return whole if whole[: len(token_ids)] == tuple(token_ids) else None


def _has_none(renderer: Renderer, token_ids: Sequence[int]) -> bool:
    """True where the family marks reasoning with tokens, and none of them was written."""
    marks = {renderer.tokenizer.convert_tokens_to_ids(mark) for mark in _REASONING} - {None}
    return bool(marks) and marks.isdisjoint(token_ids)


def _after_plain_turn(renderer: Renderer, messages: Sequence[Message], tools: ToolSpecs) -> tuple[int, ...] | None:
    """Return the stop id of a turn without reasoning and what follows it, where the template only appends then."""
    opening = renderer.prompt_ids((_QUESTION,), tools=tools)
    once = (_QUESTION, _ANSWER, _QUESTION)
    twice = (*once, _ANSWER, _QUESTION)
    rendered = renderer.prompt_ids(once, tools=tools)
    if rendered[: len(opening)] != opening:
        return None
    if renderer.prompt_ids(twice, tools=tools)[: len(rendered)] != rendered:
        return None
    whole = renderer.prompt_ids((_QUESTION, _ANSWER, *messages), tools=tools)
    if whole[: len(opening)] != opening:
        return None
    end = next((i for i in range(len(opening), len(whole)) if whole[i] in renderer.stop_ids), None)
    return None if end is None else whole[end:]

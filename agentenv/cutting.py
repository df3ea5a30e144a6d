"""Shortens what environments say to a budget of tokens: text at token borders, images whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from agentenv.content import Image, Segment, joined, segments
from agentenv.messages import Message
from agentenv.tokenizer import LeanTokenizer
from agentenv.vision import ImageTokens, image_name

CutSide = Literal["head", "tail", "middle"]

_CUT_MARK = "\n[... {} tokens omitted ...]\n"
_NUM_MARKERS = 2  # tokens that stand around the run of an image


def cut_text(text: str, tokenizer: LeanTokenizer, *, max_tokens: int, keep: CutSide) -> str:
    """Shorten a text to about `max_tokens` tokens, at token borders that are character borders, with a marker.

    Args:
        text: a tool's output, say.
        tokenizer: counts.
        max_tokens: tokens to keep, the marker not counted.
        keep: which side stays: the `"head"`, the `"tail"`, or both with the `"middle"` cut out.
    """
    start, end, mark = _cut(text, tokenizer, max_tokens=max_tokens, keep=keep)
    return text[:start] + mark + text[end:]


def cut_message(
    message: Message, tokenizer: LeanTokenizer, *, vision: ImageTokens, max_tokens: int, keep: CutSide
) -> Message:
    """Shorten a message with images to about `max_tokens` tokens.

    Images count with their tokens and come first: those that fit stay whole, the others leave a note in the text; what
    is left of the budget is the text's. With `keep="tail"` the last images have precedence, else the first.

    Raises:
        UsageError: an image is damaged, or such that the model does not take it.
    """
    kept, room = _fitting(message, vision=vision, max_tokens=max_tokens, keep=keep)
    text, images = joined(kept)
    start, end, mark = _cut(text, tokenizer, max_tokens=room, keep=keep)
    moved = tuple(image.at(_moved(image.position, start=start, end=end, mark=mark)) for image in images)
    return replace(message, content=text[:start] + mark + text[end:], images=moved)


def _moved(position: int, *, start: int, end: int, mark: str) -> int:
    """Return where a position lies after `[start, end)` gave way to a mark; inside, that is where the cut begins."""
    if position < end:
        return min(position, start)
    return position - end + start + len(mark)


def _fitting(message: Message, *, vision: ImageTokens, max_tokens: int, keep: CutSide) -> tuple[list[Segment], int]:
    """Return the content with a note for every image that does not fit, and the tokens left for text."""
    pieces = segments(message.content, message.images)
    order: Sequence[int] = range(len(pieces))
    room = max_tokens
    for index in reversed(order) if keep == "tail" else order:
        piece = pieces[index]
        if isinstance(piece, Image):
            num_tokens = vision.num_tokens(piece) + _NUM_MARKERS
            if num_tokens <= room:
                room -= num_tokens
            else:
                pieces[index] = f"[{image_name(piece)} omitted: {num_tokens} tokens]"
    return pieces, room


def _cut(text: str, tokenizer: LeanTokenizer, *, max_tokens: int, keep: CutSide) -> tuple[int, int, str]:
    """Return which characters `[start, end)` are cut out, and the mark in their place; nothing for a short text."""
    whole = (len(text), len(text), "")
    if len(text.encode("utf-8", "replace")) <= max_tokens:  # a token covers at least one byte
        return whole
    ids, offsets = tokenizer.encode_with_offsets(text)
    if len(ids) <= max_tokens:
        return whole
    head = {"head": max_tokens, "tail": 0, "middle": (max_tokens + 1) // 2}[keep]
    tail = max_tokens - head
    start = offsets[head][0] if head else 0
    end = offsets[len(ids) - tail][0] if tail else len(text)
    return start, max(end, start), _CUT_MARK.format(len(ids) - max_tokens)

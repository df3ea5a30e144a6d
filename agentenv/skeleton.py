"""Renderings with holes: a template is rendered once per shape of conversation, then only contents are encoded.

Between two control tokens a template's text is encoded in one pass. A skeleton keeps the ids of the runs that never
change and, for each run with a content in it, the text around the content. It is believed only after it has reproduced
full renderings with other contents, id by id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from agentenv.tokenizer import LeanTokenizer

# contents that would show quoting, escaping, trimming inside, or a merge across a border
_LEARN = 'Qx{}"\n é{{y}} 7'
_MARKUP = re.compile(r"<\||\|>|</?(tool|think)")
_PROBES = ("a{}", "7{} 8.", '{{"k{}": [1, "é\\n"]}}', "- x{}\n\n\tend:", "<b>{}</b> & 'q'", "🙂{}漢")


@dataclass(frozen=True, slots=True)
class _Hole:
    """A run with a content in it."""

    before: str
    index: int
    after: str


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A rendering with holes.

    Attributes:
        pieces: constant ids, and holes.
    """

    pieces: tuple[tuple[int, ...] | _Hole, ...]

    def fill(self, contents: Sequence[str], tokenizer: LeanTokenizer) -> list[int]:
        """Return the ids of the rendering with these contents."""
        out: list[int] = []
        for piece in self.pieces:
            if isinstance(piece, _Hole):
                out.extend(tokenizer.encode(f"{piece.before}{contents[piece.index]}{piece.after}"))
            else:
                out.extend(piece)
        return out


def can_fill(contents: Sequence[str]) -> bool:
    """True for contents that templates put in as they are: not empty, without outer white space or markup."""
    return all(text and text == text.strip() and not _MARKUP.search(text) for text in contents)


def learn_skeleton(
    render: Callable[[Sequence[str]], list[int] | None],
    *,
    num_contents: int,
    tokenizer: LeanTokenizer,
    control_ids: Collection[int],
) -> Skeleton | None:
    """Find the skeleton of a rendering.

    Args:
        render: contents -> ids; None where the template cannot do it.
        num_contents: how many contents it takes.
        tokenizer: encodes the runs.
        control_ids: ids that text is never merged across.

    Returns:
        None when the rendering is not a constant text with holes.
    """
    marks = [_LEARN.format(index) for index in range(num_contents)]
    ids = render(marks)
    if ids is None:
        return None
    pieces: list[tuple[int, ...] | _Hole] = []
    for run in _runs(ids, control_ids):
        text = tokenizer.decode(run)
        found = [index for index, mark in enumerate(marks) if mark in text]
        if not found:
            pieces.append(tuple(run))
            continue
        (index, *others) = found
        if others or text.count(marks[index]) != 1 or tokenizer.encode(text) != run:
            return None
        before, _, after = text.partition(marks[index])
        pieces.append(_Hole(before, index, after))
    skeleton = Skeleton(_joined(pieces))
    if sorted(piece.index for piece in skeleton.pieces if isinstance(piece, _Hole)) != list(range(num_contents)):
        return None
    for probe in _PROBES:
        contents = [probe.format(index) for index in range(num_contents)]
        if skeleton.fill(contents, tokenizer) != render(contents):
            return None
    return skeleton


def _runs(ids: Sequence[int], control_ids: Collection[int]) -> list[list[int]]:
    """Cut ids into single control ids and the runs between them."""
    out: list[list[int]] = []
    is_open = False
    for token in ids:
        if token in control_ids:
            out.append([token])
            is_open = False
        elif is_open:
            out[-1].append(token)
        else:
            out.append([token])
            is_open = True
    return out


def _joined(pieces: Sequence[tuple[int, ...] | _Hole]) -> tuple[tuple[int, ...] | _Hole, ...]:
    """Merge neighbouring constants."""
    out: list[tuple[int, ...] | _Hole] = []
    for piece in pieces:
        if out and not isinstance(piece, _Hole) and not isinstance(out[-1], _Hole):
            out[-1] = (*out[-1], *piece)
        else:
            out.append(piece)
    return tuple(out)

"""What is kept of output, and how it is shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentenv.tools.sandbox.output import BoundedOutput, readable


def test_output_within_the_bound_is_kept_as_it_is():
    output = BoundedOutput(10)
    output.add(b"01234")
    output.add(b"56789")
    assert output.text() == "0123456789"


def test_of_longer_output_both_ends_are_kept_and_the_gap_is_counted():
    output = BoundedOutput(6)
    for piece in (b"abcd", b"efg", b"hij"):
        output.add(piece)
    assert output.text() == "abc\n[... 4 bytes omitted]\nhij"


def test_a_character_across_the_two_halves_is_not_torn():
    output = BoundedOutput(4)
    output.add("aäb".encode())
    assert output.text() == "aäb"


def test_control_codes_and_lone_surrogates_are_escaped_and_text_is_not():
    assert readable("a\tb\nü 猫 🙂") == "a\tb\nü 猫 🙂"
    assert readable("\x1b[31m\x00\x7f\x9b\r\n\r") == "\\x1b[31m\\x00\\x7f\\x9b\n\\x0d"
    assert readable("\ud800") == "\\ud800"


@given(st.lists(st.binary(max_size=300)), st.integers(2, 200))
def test_no_stream_makes_the_text_much_longer_than_the_bound(pieces, most_bytes):
    output = BoundedOutput(most_bytes)
    for piece in pieces:
        output.add(piece)
    # an escape has four characters at most for one byte, and the line about the gap has less than 60
    assert len(output.text()) <= 4 * most_bytes + 60
    output.text().encode("utf-8")

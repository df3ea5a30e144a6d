"""Messages across the border: whole or refused."""

from __future__ import annotations

import json
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.tools.sandbox.inside.frames import (
    MAX_FRAME_BYTES,
    Channel,
    FrameBuffer,
    FrameError,
    close_fds,
    encode,
    send_with_fds,
)


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers(-5, 5))), st.integers(1, 20))
def test_frames_come_out_whole_however_they_were_cut(sent, size):
    data = b"".join(encode(frame) for frame in sent)
    buffer = FrameBuffer()
    received = [frame for at in range(0, len(data), size) for frame in buffer.feed(data[at : at + size])]
    assert received == sent


@pytest.mark.parametrize(
    "body",
    [b"[1]", b"nope", b"\xff", b"null", b"[" * 100_000, b"{"],
    ids=["list", "word", "byte", "null", "deep", "cut"],
)
def test_what_is_no_object_is_refused(body):
    with pytest.raises(FrameError):
        FrameBuffer().feed(struct.pack("!I", len(body)) + body)


def test_a_frame_that_is_too_long_is_refused_before_it_is_read_or_sent():
    with pytest.raises(FrameError, match="announced"):
        FrameBuffer().feed(struct.pack("!I", MAX_FRAME_BYTES + 1))
    with pytest.raises(FrameError, match="at most"):
        encode({"x": "y" * MAX_FRAME_BYTES})


def test_descriptors_travel_with_a_frame_and_missing_ones_are_noticed():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_with_fds(ours, encode({"op": "x"}), (0,))
        channel = Channel(theirs)
        assert channel.receive() == {"op": "x"}
        close_fds(channel.take_fds(1))
        with pytest.raises(FrameError, match="1 descriptors were promised, 0 came"):
            channel.take_fds(1)


def test_lone_surrogates_survive_the_way():
    (frame,) = FrameBuffer().feed(encode({"x": "\ud800"}))
    assert json.dumps(frame) == '{"x": "\\ud800"}'

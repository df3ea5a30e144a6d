"""Messages with images: read from and written to chat interfaces exactly, and hostile input refused in words."""

import base64
import io
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from agentenv.content import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_IMAGES, Image, segments
from agentenv.errors import UsageError
from agentenv.messages import Message, Role, as_messages, images_of, message_from_dict
from agentenv.vision import described_content


def file(width: int = 4, height: int = 3, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Pillow.new("RGB", (width, height), (200, 30, 90)).save(out, kind)
    return out.getvalue()


PNG, JPEG, GIF, WEBP = (file(kind=kind) for kind in ("PNG", "JPEG", "GIF", "WEBP"))
FILES = {"image/png": PNG, "image/jpeg": JPEG, "image/gif": GIF, "image/webp": WEBP}


def url(data: bytes = PNG, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def user(*parts: object) -> dict[str, object]:
    return {"role": "user", "content": list(parts)}


@st.composite
def messages(draw: st.DrawFn) -> Message:
    text = draw(st.text(max_size=12))
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    kinds = [draw(st.sampled_from(sorted(FILES))) for _ in places]
    images = [
        Image(data=FILES[kind], media_type=kind, position=place) for kind, place in zip(kinds, places, strict=True)
    ]
    roles: list[Role] = ["system", "user", "tool"]
    role = draw(st.sampled_from(roles))
    return Message(role=role, content=text, images=tuple(images), tool_call_id="c" if role == "tool" else "")


@settings(deadline=None)
@given(message=messages())
def test_a_message_with_images_comes_back_exactly_from_the_chat_shape(message):
    value = message.to_dict()
    assert message_from_dict(value) == message
    assert message_from_dict(value).to_dict() == value


def test_an_image_stands_where_its_part_stood():
    message = message_from_dict(
        user(
            {"type": "text", "text": "before "},
            {"type": "image_url", "image_url": {"url": url(), "detail": "low"}},
            {"type": "text", "text": "after"},
        )
    )

    assert message.content == "before after"
    assert message.images == (Image(data=PNG, position=7),)
    assert segments(message.content, message.images) == ["before ", message.images[0], "after"]
    assert message.images[0].size == (4, 3)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": url(GIF, "image/gif")}},
        {"type": "image_url", "image_url": url(GIF, "image/gif")},
        {"type": "input_image", "image_url": url(GIF, "image/gif")},
        {"type": "image", "image": GIF},
        {"type": "image", "image": base64.b64encode(GIF).decode()},
        {"type": "image", "image": url(GIF, "image/gif")},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/gif", "data": base64.b64encode(GIF).decode()},
        },
    ],
)
def test_every_known_kind_of_image_part_is_read(part):
    assert message_from_dict(user(part)).images == (Image(data=GIF, media_type="image/gif"),)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "nothing is fetched"),
        ({"type": "image", "image": "http://169.254.169.254/latest"}, "nothing is fetched"),
        ({"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}, "nothing is fetched"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "expected data:"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "expected data:"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64"}}, "expected data:"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}, "not valid base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,Ünï"}}, "not valid base64"),
        ({"type": "image_url", "image_url": {"url": url(PNG, "image/svg+xml")}}, "allowed are image/png"),
        ({"type": "image_url", "image_url": {"url": url(JPEG, "image/png")}}, "its bytes are image/jpeg"),
        ({"type": "image_url", "image_url": {"url": url(b"<svg/>")}}, "none of the allowed"),
        ({"type": "image_url", "image_url": {"url": 7}}, "int; expected bytes"),
        ({"type": "image_url", "image_url": None}, "NoneType; expected bytes"),
        ({"type": "image_url"}, "NoneType; expected bytes"),
        ({"type": "image", "image": b""}, "allowed are image/png"),
        ({"type": "image", "image": [1, 2]}, "list; expected bytes"),
        ({"type": "image", "image": PNG, "media_type": 3}, "media type is int"),
        ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, "allowed: text, image_url"),
        ({"type": "text", "text": 3}, "allowed: text"),
        ({}, "allowed: text"),
        ("text", "expected an object"),
        (None, "expected an object"),
    ],
)
def test_a_part_that_cannot_be_read_is_refused_by_its_place(part, said):
    with pytest.raises(UsageError, match="message field 'content', part 1: ") as refused:
        message_from_dict(user({"type": "text", "text": "hi"}, part))
    assert said in str(refused.value)


@settings(deadline=None, max_examples=300)
@given(
    part=st.dictionaries(
        st.sampled_from(["type", "text", "image", "image_url", "source", "url", "media_type", "data"]),
        st.recursive(
            st.none()
            | st.integers()
            | st.binary(max_size=9)
            | st.text(max_size=9)
            | st.sampled_from(["image", "image_url", "base64", "data:image/png;base64,", url(), url()[:-9], PNG]),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["url", "data"]), inner),
            max_leaves=4,
        ),
    )
)
def test_whatever_a_part_holds_it_is_read_or_refused_but_never_crashes(part):
    try:
        message = message_from_dict(user(part))
    except UsageError:
        return
    assert message_from_dict(message.to_dict()) == message


def test_too_many_and_too_large_images_are_refused():
    part = {"type": "image", "image": PNG}
    assert len(message_from_dict(user(*[part] * MAX_IMAGES)).images) == MAX_IMAGES
    with pytest.raises(UsageError, match=f"has {MAX_IMAGES + 1} images; at most {MAX_IMAGES}"):
        message_from_dict(user(*[part] * (MAX_IMAGES + 1)))
    with pytest.raises(UsageError, match="at most 20,971,520 are allowed"):
        message_from_dict(user({"type": "image", "image": PNG + bytes(MAX_IMAGE_BYTES)}))
    with pytest.raises(UsageError, match="larger than 20,971,520 bytes"):
        message_from_dict(user({"type": "image", "image": "A" * (MAX_IMAGE_BYTES * 4 // 3 + 8)}))


def test_an_assistant_shows_no_images():
    with pytest.raises(UsageError, match="assistant message has images"):
        message_from_dict({"role": "assistant", "content": [{"type": "image", "image": PNG}]})


@pytest.mark.parametrize("media_type", sorted(FILES))
def test_the_size_of_every_format_is_read_without_decoding(media_type):
    assert Image(data=FILES[media_type], media_type=media_type).size == (4, 3)


def test_a_damaged_file_is_refused_when_its_size_is_asked_for():
    torn = bytearray(file(64, 64))
    torn[45] ^= 0xFF  # inside the compressed pixels, which a checksum guards
    for data in (PNG[:20], PNG[:40], bytes(torn), b"\x89PNG\r\n\x1a\n", GIF[:8], JPEG[:30]):
        kind = "image/png" if data.startswith(b"\x89") else "image/gif" if data.startswith(b"GIF") else "image/jpeg"
        with pytest.raises(UsageError, match="cannot be read"):
            _ = Image(data=data, media_type=kind).size


def test_a_file_whose_pixels_would_fill_the_memory_is_refused_unopened():
    header = io.BytesIO()
    Pillow.new("1", (1, 1)).save(header, "PNG")
    data = bytearray(header.getvalue())
    width, height = 2**14, 2**13  # 134 million pixels, said by the header alone
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    assert width * height > MAX_IMAGE_PIXELS
    with (
        pytest.warns(Pillow.DecompressionBombWarning),
        pytest.raises(UsageError, match="16384x8192 pixels; at most 67,108,864 are allowed"),
    ):
        _ = Image(data=bytes(data)).size


def test_an_image_moved_within_its_message_keeps_what_is_known_of_it():
    seen = Image(data=PNG)
    size, digest = seen.size, seen.digest
    moved = seen.at(5)
    assert moved == Image(data=PNG, position=5)
    assert moved.__dict__["size"] == size
    assert moved.__dict__["digest"] == digest


def test_the_images_of_a_conversation_come_in_reading_order():
    one, two, three = (Image(data=data, position=p) for data, p in ((PNG, 1), (file(5, 5), 0), (file(6, 6), 9)))
    conversation = (Message(role="user", content="ab", images=(one, two)), Message(role="user", content="c"))
    assert images_of((*conversation, Message(role="user", content="", images=(three,)))) == (two, one, three)


def test_a_prompt_may_mix_messages_and_chat_dicts_with_images():
    message = Message(role="user", content="a", images=(Image(data=PNG, position=1),))
    assert as_messages([message, message.to_dict()]) == (message, message)


def test_people_read_sizes_in_place_of_images():
    broken = Image(data=b"", position=2)
    message = Message(role="user", content="ab", images=(Image(data=PNG, position=1), broken))
    assert described_content(message) == "a[image 4x3]b[image]"


def test_errors_and_logs_do_not_show_the_bytes():
    assert "PNG" not in repr(Message(role="user", content="", images=(Image(data=PNG),)))

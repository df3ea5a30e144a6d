"""What a message says: text with images in it, and the content lists in which chat interfaces carry both."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from agentenv.errors import UsageError

MAX_IMAGES = 64
"""Images in one message."""
MAX_IMAGE_BYTES = 20 * 2**20
"""Bytes of one encoded image."""
MAX_IMAGE_PIXELS = 2**26
"""Width times height of one image: decoded as RGB it takes 192 MiB."""

_SIGNATURES: Mapping[str, tuple[bytes, ...]] = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
}
MEDIA_TYPES: tuple[str, ...] = tuple(_SIGNATURES)
"""Formats that every engine decodes."""

_IMAGE_PARTS = ("image_url", "input_image", "image")
_SHOWN_CHARS = 40


@dataclass(frozen=True, kw_only=True)
class Image:
    """A picture inside a message.

    Attributes:
        data: the encoded file: PNG, JPEG, WebP or GIF.
        media_type: e.g. `"image/png"`.
        position: the picture stands before this character of the message's content; 0 puts it first.
    """

    data: bytes = field(repr=False)
    media_type: str = "image/png"
    position: int = 0

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the encoded file, as hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; the pixels themselves are not decoded.

        Raises:
            UsageError: the file is damaged or larger than allowed, or Pillow is missing.
        """
        _check_file(self.data, self.media_type)
        return _read_size(self.data)

    def at(self, position: int) -> Image:
        """Return the same picture at another position."""
        if position == self.position:
            return self
        moved = replace(self, position=position)
        moved.__dict__.update({name: self.__dict__[name] for name in ("digest", "size") if name in self.__dict__})
        return moved


Segment = str | Image
"""A piece of a message's content."""


def segments(text: str, images: Iterable[Image]) -> list[Segment]:
    """Cut a content at its images: texts, never empty, and images in the order in which they are read."""
    out: list[Segment] = []
    start = 0
    for image in sorted(images, key=lambda image: image.position):
        position = min(max(image.position, 0), len(text))
        if position > start:
            out.append(text[start:position])
            start = position
        out.append(image)
    if start < len(text):
        out.append(text[start:])
    return out


def joined(pieces: Iterable[Segment]) -> tuple[str, tuple[Image, ...]]:
    """Put texts and images together again: the inverse of `segments`."""
    texts: list[str] = []
    images: list[Image] = []
    length = 0
    for piece in pieces:
        if isinstance(piece, Image):
            images.append(piece.at(length))
        else:
            texts.append(piece)
            length += len(piece)
    return "".join(texts), tuple(images)


def with_texts(text: str, images: Iterable[Image], *, change: Callable[[str], str]) -> tuple[str, tuple[Image, ...]]:
    """Change every text of a content; the images stay between the texts where they stood."""
    return joined(piece if isinstance(piece, Image) else change(piece) for piece in segments(text, images))


def content_parts(text: str, images: Iterable[Image]) -> list[dict[str, object]]:
    """Return a content as the part list of the OpenAI chat interface; images become data URLs."""
    return [
        {"type": "image_url", "image_url": {"url": _data_url(piece)}}
        if isinstance(piece, Image)
        else {"type": "text", "text": piece}
        for piece in segments(text, images)
    ]


def read_content(content: object) -> tuple[str, tuple[Image, ...]]:
    """Read the content of a message: text, or a list of text and image parts.

    Image parts are `image_url` (OpenAI chat), `input_image` (OpenAI Responses) and `image` with `image` (bytes, base64
    or a data URL) or `source` (Anthropic). Nothing is fetched: the bytes must be in the message.

    Raises:
        UsageError: names the part that is wrong and what was expected.
    """
    if content is None:
        return "", ()
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise UsageError(f"message field 'content' is {type(content).__name__}; expected text or a list of parts")
    pieces: list[Segment] = []
    for index, part in enumerate(content):
        try:
            pieces.append(_segment(part))
        except UsageError as error:
            raise UsageError(f"message field 'content', part {index}: {error}") from None
    text, images = joined(pieces)
    if len(images) > MAX_IMAGES:
        raise UsageError(f"a message has {len(images)} images; at most {MAX_IMAGES} are allowed")
    return text, images


def _segment(part: object) -> Segment:
    if not isinstance(part, Mapping):
        raise UsageError(f"it is {type(part).__name__}; expected an object with 'type'")
    part = cast(Mapping[str, object], part)
    kind, text = part.get("type"), part.get("text")
    if kind in _IMAGE_PARTS:
        return _read_image(part, kind="image" if kind == "image" else "image_url")
    if not isinstance(text, str):
        raise UsageError(f"its type is {str(kind)[:_SHOWN_CHARS]!r}; allowed: text, {', '.join(_IMAGE_PARTS)}")
    return text


def _read_image(part: Mapping[str, object], *, kind: str) -> Image:
    value = part.get(kind)
    if kind == "image" and value is None:
        value = part.get("source")
    media_type = part.get("media_type")
    if isinstance(value, Mapping):
        media_type = value.get("media_type")
        value = value.get("data") if value.get("type") == "base64" else value.get("url")
    if isinstance(value, str):
        if kind == "image_url" or value.startswith(("data:", "http:", "https:")):
            media_type, value = _split_data_url(value)
        data = _decode(value)
    elif isinstance(value, (bytes, bytearray)):
        data = bytes(value)
    else:
        raise UsageError(f"it holds no image but {type(value).__name__}; expected bytes, base64 or a data: URL")
    if media_type is None:
        media_type = _media_type_of(data)
    if not isinstance(media_type, str):
        raise UsageError(f"its media type is {type(media_type).__name__}; expected one of {', '.join(MEDIA_TYPES)}")
    _check_file(data, media_type)
    return Image(data=data, media_type=media_type)


def _split_data_url(url: str) -> tuple[str, str]:
    if url.startswith(("http:", "https:")):
        raise UsageError(
            "its URL would have to be fetched, and nothing is fetched here: a rollout must not depend on the network. "
            "Send the bytes as data:image/png;base64,..."
        )
    header, comma, payload = url.partition(",")
    if not (header.startswith("data:") and header.endswith(";base64") and comma):
        raise UsageError(f"its URL begins {url[:_SHOWN_CHARS]!r}; expected data:image/png;base64,...")
    return header[len("data:") :].partition(";")[0].lower(), payload


def _decode(payload: str) -> bytes:
    if len(payload) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise UsageError(f"the image is larger than {MAX_IMAGE_BYTES:,} bytes; make it smaller")
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise UsageError(f"the image is not valid base64 ({error})") from None


def _check_file(data: bytes, media_type: str) -> None:
    if len(data) > MAX_IMAGE_BYTES:
        raise UsageError(f"the image has {len(data):,} bytes; at most {MAX_IMAGE_BYTES:,} are allowed")
    if media_type not in MEDIA_TYPES:
        shown = media_type[:_SHOWN_CHARS]
        raise UsageError(f"the image's media type is {shown!r}; allowed are {', '.join(MEDIA_TYPES)}")
    found = _media_type_of(data)
    if found != media_type:
        raise UsageError(f"the image is said to be {media_type}, but its bytes are {found or 'none of the allowed'}")


def _media_type_of(data: bytes) -> str:
    """Return the format that the first bytes tell; empty for none that is known."""
    for media_type, signatures in _SIGNATURES.items():
        if data.startswith(signatures) and (media_type != "image/webp" or data[8:12] == b"WEBP"):
            return media_type
    return ""


def _read_size(data: bytes) -> tuple[int, int]:
    try:
        from PIL import Image as Pillow
    except ImportError as error:
        raise UsageError('images need Pillow; run `pip install "agentenv[vision]"`') from error
    try:
        with Pillow.open(io.BytesIO(data), formats=("PNG", "JPEG", "GIF", "WEBP")) as file:
            width, height = file.size
            if width * height <= MAX_IMAGE_PIXELS:
                file.verify()
    except Exception as error:  # a damaged file makes Pillow raise a dozen different kinds
        raise UsageError(f"the image cannot be read ({type(error).__name__}: {error}); is the file whole?") from error
    if not 0 < width * height <= MAX_IMAGE_PIXELS:
        raise UsageError(f"the image is {width}x{height} pixels; at most {MAX_IMAGE_PIXELS:,} are allowed")
    return width, height


def _data_url(image: Image) -> str:
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode('ascii')}"

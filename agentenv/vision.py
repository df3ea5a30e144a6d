"""How a vision-language model reads images: as runs of placeholder tokens whose length follows from the size.

The arithmetic is that of Qwen2-VL and its successors (Wang et al. 2024, https://arxiv.org/abs/2409.12191, section 2.1)
and needs neither torch nor torchvision. The reference is `smart_resize` in
`transformers/models/qwen2_vl/image_processing_qwen2_vl.py` (release 5.19), which vLLM (release 0.32,
`vllm/model_executor/models/qwen2_vl.py`) calls for its own counts.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from agentenv.content import Image, segments
from agentenv.errors import ModelError, UsageError
from agentenv.messages import Message

logger = logging.getLogger(__name__)

MAX_ASPECT_RATIO = 200
"""Longer images are refused by the processors of these models."""

SUPPORTED = (
    "models whose config.json has vision_config and image_token_id and whose image processor is Qwen2VLImageProcessor "
    "(Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5)"
)
_PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
# what the processor takes where its file is silent
_DEFAULTS: Mapping[str, int] = {
    "patch_size": 14,
    "merge_size": 2,
    "shortest_edge": 56 * 56,
    "longest_edge": 28 * 28 * 1280,
}

ReadFile = Callable[[str], Path | None]
"""Name of a model's file -> where it lies, or None where the model has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTokens:
    """The image processor of a model, as far as it decides about tokens.

    Attributes:
        token_id: the placeholder, one for every merged patch.
        patch_size: side of a patch in pixels.
        merge_size: this many patches squared become one token.
        min_pixels: smaller images are enlarged.
        max_pixels: larger images are shrunk.
    """

    token_id: int
    patch_size: int = _DEFAULTS["patch_size"]
    merge_size: int = _DEFAULTS["merge_size"]
    min_pixels: int = _DEFAULTS["shortest_edge"]
    max_pixels: int = _DEFAULTS["longest_edge"]

    def __post_init__(self) -> None:
        if min(self.patch_size, self.merge_size, self.min_pixels) < 1 or self.max_pixels < self.min_pixels:
            raise ModelError(f"{self}: sizes must be at least 1, and max_pixels at least min_pixels")

    def num_tokens(self, image: Image) -> int:
        """Return how many placeholder tokens the model reads an image as.

        Raises:
            UsageError: the image is damaged, too large or too long.
        """
        width, height = image.size
        resized_width, resized_height = self.resized(width, height)
        side = self.patch_size * self.merge_size
        return (resized_width // side) * (resized_height // side)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return the size to which the model's processor brings an image of this size, in pixels.

        Both sides become multiples of `patch_size * merge_size`, the area stays within bounds and the aspect ratio
        about what it was.

        Raises:
            UsageError: one side is more than `MAX_ASPECT_RATIO` times the other.
        """
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise UsageError(
                f"the image is {width}x{height} pixels; the model takes sides that differ by a factor of "
                f"{MAX_ASPECT_RATIO} at most"
            )
        side = self.patch_size * self.merge_size
        wide, high = round(width / side) * side, round(height / side) * side
        if wide * high > self.max_pixels:
            shrink = math.sqrt((height * width) / self.max_pixels)
            wide = max(side, math.floor(width / shrink / side) * side)
            high = max(side, math.floor(height / shrink / side) * side)
        elif wide * high < self.min_pixels:
            enlarge = math.sqrt(self.min_pixels / (height * width))
            wide = math.ceil(width * enlarge / side) * side
            high = math.ceil(height * enlarge / side) * side
        return wide, high

    def expand(self, token_ids: Sequence[int], images: Sequence[Image]) -> tuple[int, ...]:
        """Replace each placeholder of a rendering, one per image, by the run that the model reads.

        Raises:
            UsageError: the rendering has more or fewer placeholders than there are images, or an image is damaged.
            ModelError: two placeholders stand side by side, so that their runs could not be told apart.
        """
        places = [index for index, token in enumerate(token_ids) if token == self.token_id]
        if len(places) != len(images):
            raise UsageError(
                f"{len(images)} images came, but the chat template writes {len(places)} image placeholders; "
                "put images into user and tool messages, and see that the template renders them there"
            )
        if any(later == earlier + 1 for earlier, later in itertools.pairwise(places)):
            raise ModelError("the chat template writes image placeholders side by side; it must separate images")
        out: list[int] = []
        start = 0
        for place, image in zip(places, images, strict=True):
            out.extend(token_ids[start:place])
            out.extend([self.token_id] * self.num_tokens(image))
            start = place + 1
        out.extend(token_ids[start:])
        return tuple(out)


def read_image_tokens(read_file: ReadFile, *, name: str) -> ImageTokens | None:
    """Read how a model counts image tokens; None for a text model, and for one whose arithmetic is not known.

    Args:
        read_file: finds `config.json`, `processor_config.json` and `preprocessor_config.json`.
        name: of the model, for errors.

    Raises:
        ModelError: the files contradict each other or themselves.
    """
    config = _read_json(read_file("config.json"))
    vision, token_id = config.get("vision_config"), config.get("image_token_id")
    if not isinstance(vision, Mapping) or not isinstance(token_id, int):
        return None
    processor = _processor(read_file)
    kind = processor.get("image_processor_type")
    if kind not in _PROCESSORS:
        logger.info("%s: image processor %s; pictures work for %s", name, kind, SUPPORTED)
        return None
    if processor.get("do_resize", True) is False:
        raise ModelError(f"{name}: the image processor has do_resize false; images must be resized to whole patches")
    sizes = _sizes(processor, name=name)
    for ours, theirs in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size")):
        # engines count by the one and cut patches by the other
        if vision.get(theirs, sizes[ours]) != sizes[ours]:
            raise ModelError(
                f"{name}: vision_config.{theirs} is {vision[theirs]} and the image processor's {ours} {sizes[ours]}; "
                "they must be equal"
            )
    return ImageTokens(
        token_id=token_id,
        patch_size=sizes["patch_size"],
        merge_size=sizes["merge_size"],
        min_pixels=sizes["shortest_edge"],
        max_pixels=sizes["longest_edge"],
    )


def described_content(message: Message) -> str:
    """Return a message's content for people, with `[image 640x480]` where an image stands."""
    if not message.images:
        return message.content
    pieces = segments(message.content, message.images)
    return "".join(f"[{image_name(piece)}]" if isinstance(piece, Image) else piece for piece in pieces)


def image_name(image: Image) -> str:
    """Return `image 640x480`, or `image` where the size cannot be read."""
    try:
        width, height = image.size
    except UsageError:
        return "image"
    return f"image {width}x{height}"


def _processor(read_file: ReadFile) -> Mapping[str, object]:
    """Return the image processor's settings; newer models keep them inside the processor's, and those count first."""
    nested = _read_json(read_file("processor_config.json")).get("image_processor")
    if isinstance(nested, Mapping):
        return cast(Mapping[str, object], nested)
    return _read_json(read_file("preprocessor_config.json"))


def _sizes(processor: Mapping[str, object], *, name: str) -> dict[str, int]:
    given = processor.get("size")
    size = cast(Mapping[str, object], given) if isinstance(given, Mapping) else _DEFAULTS
    found: dict[str, object] = {key: processor.get(key, _DEFAULTS[key]) for key in ("patch_size", "merge_size")}
    for edge, bound in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        override = processor.get(bound)
        found[edge] = size.get(edge) if override is None else override
    for key, value in found.items():
        if not isinstance(value, int):
            raise ModelError(f"{name}: the image processor's {key} is {value!r}; a whole number is needed")
    return cast("dict[str, int]", found)


def _read_json(path: Path | None) -> Mapping[str, object]:
    if path is None or not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from error
    return cast(Mapping[str, object], value) if isinstance(value, dict) else {}

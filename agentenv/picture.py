"""Pictures that environments draw: a Pillow image becomes a message's image, the same bytes for the same picture."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING

from agentenv.content import Image

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage


def png(picture: PillowImage) -> Image:
    """Return a Pillow picture as a PNG without any metadata."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return Image(data=file.getvalue())


def missing_pillow() -> str:
    """Return why no picture can be drawn; empty where Pillow is installed."""
    if importlib.util.find_spec("PIL") is not None:
        return ""
    return 'it draws pictures with Pillow, which is missing; run `pip install "agentenv[vision]"`'

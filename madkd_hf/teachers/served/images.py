"""Images on their way to a server: PNG, never JPEG and never another size, and encoded once."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass

from PIL.Image import Image

from ...data.images import to_rgb


@dataclass(frozen=True)
class Encoded:
    """An image as it is sent.

    Attributes:
        key: of its pixels: the same image has the same.
        base64: its PNG.
    """

    key: bytes
    base64: bytes


def encode(image: Image) -> Encoded:
    """What the teacher is sent of an image, as every teacher sees it: upright, RGB."""
    file = io.BytesIO()
    rgb = to_rgb(image)
    rgb.save(file, "PNG", compress_level=1)  # of the time, most is compression, which saves little of a photograph
    return Encoded(key_of(rgb), base64.b64encode(file.getvalue()))


def key_of(image: Image) -> bytes:
    """The same for images with the same pixels."""
    content = hashlib.sha256(repr(image.size).encode())
    content.update(image.tobytes())
    return content.digest()

"""What becomes of an upload: an image as teacher and student see it, or a sentence."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable
from typing import Generic, TypeVar

from PIL import Image

from ..data.decoding import Room, opened
from ..data.images import to_rgb
from ..text import excerpt
from .limits import Limits, RefusedError


WANTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")  # the fewer decoders, the fewer holes
Image.init()
FORMATS = tuple(name for name in WANTED if name in Image.OPEN)  # a Pillow may be built without some
ADDRESSES = ("http:", "https:", "ftp:", "file:", "//")


Prepared = TypeVar("Prepared")


class ImageReader(Generic[Prepared]):
    """Decodes uploads, of an animation its start; however many threads ask, `limits.pixels` are in memory at once.

    Args:
        prepare: what is made of an RGB image before it is let go, which is much smaller.
    """

    def __init__(self, limits: Limits, prepare: Callable[[Image.Image], Prepared]):
        self.limits, self.prepare, self.room = limits, prepare, Room(limits.pixels)

    def read(self, content: bytes) -> Prepared:
        """What `prepare` makes of an image file.

        Raises:
            RefusedError: 413 or 422, in a sentence.
        """
        if not content:
            raise RefusedError(422, "The image is empty: send the bytes of an image file.")
        try:
            image = opened(io.BytesIO(content), FORMATS)
        except Image.DecompressionBombError:
            raise self._too_many("far more") from None
        except ValueError as error:
            raise RefusedError(422, f"The image cannot be read: {error}.") from None
        except Exception as error:  # decoders raise whatever they like
            raise _broken(error) from None
        pixels = image.width * image.height
        if pixels > self.limits.pixels:
            raise self._too_many(f"{pixels:,}, more")
        with self.room.reserved(pixels):
            try:
                rgb = to_rgb(image)
            except Exception as error:
                raise _broken(error) from None
            try:
                return self.prepare(rgb)
            except (ValueError, TypeError) as error:
                reason = excerpt(error, 100)
                raise RefusedError(422, f"The image cannot be prepared ({reason}): send another.") from None

    def _too_many(self, count: str) -> RefusedError:
        return RefusedError(
            413,
            f"The image has too many pixels, {count} than the {self.limits.pixels:,} taken here: send a smaller one.",
        )


def _broken(error: Exception) -> RefusedError:
    if isinstance(error, MemoryError):
        return RefusedError(503, "There is no memory left for this image: send it again later.", retry_after=5)
    reason = excerpt(error, 100) or type(error).__name__
    return RefusedError(422, f"The image cannot be read ({reason}): send a whole image file.")


def of_base64(text: str) -> bytes:
    """The bytes in base64 or in a data: address; nothing is ever fetched."""
    begins = text[:100].lstrip().lower()
    if begins.startswith(ADDRESSES):
        raise RefusedError(422, "The image is an address, and none is fetched here: send its bytes in base64.")
    if begins.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.lower().rstrip().endswith(";base64"):
            raise RefusedError(422, "The image is a data: address without base64: write data:image/png;base64,... .")
    try:
        return base64.b64decode(text if text.isascii() and text.isalnum() else "".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(422, "The image is not in base64: send the bytes of an image file in base64.") from None

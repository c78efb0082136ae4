"""The one way in which teacher and student see an image: upright, opaque, three channels of 8 bits."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
from PIL import Image

from .rgb import to_rgb


__all__ = ["load_image", "remedy_for", "to_rgb"]


def load_image(value: Any, column: str = "image") -> Image.Image:
    """The image of a row as teacher and student see it, RGB, see `to_rgb`; a message calls its place `column`.

    Args:
        value: a PIL image; what a column of `datasets.Image(decode=False)` holds, {"bytes", "path"}; or pixels, an
            array, a tensor or nested lists of integers 0..255, [H, W], [H, W, channels] or [channels, H, W].
    """
    if isinstance(value, Image.Image):
        return to_rgb(value)
    if isinstance(value, dict) and value.keys() >= {"bytes", "path"} and (value["bytes"] or value["path"]):
        return to_rgb(datasets.Image().decode_example(value))
    if isinstance(value, (list, tuple, np.ndarray)) or hasattr(value, "__array__"):
        return to_rgb(_from_pixels(np.asarray(value), column))
    raise ValueError(f"A row holds {_kind(value)} in the column {column!r}: {remedy_for(value, column)}.")


def _kind(value: Any) -> str:
    return "no image" if value is None or isinstance(value, dict) else f"{type(value).__name__}"


def remedy_for(value: Any, column: str) -> str:
    """What to do about a value that is no image, as the end of a sentence."""
    if isinstance(value, str):
        return f"if these are paths of images, dataset.cast_column({column!r}, datasets.Image()) makes images of them"
    if value is None or isinstance(value, dict):
        return "leave the row out, or give it an image"
    return "expected images; name their column with image_column"


def _from_pixels(pixels: np.ndarray, column: str) -> Image.Image:
    channels_first = pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4)
    pixels = pixels.transpose(1, 2, 0) if channels_first else pixels
    are_bytes = np.issubdtype(pixels.dtype, np.integer) and pixels.size and 0 <= pixels.min() and pixels.max() <= 255
    if not are_bytes or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4))):
        raise ValueError(
            f"A row holds {pixels.dtype} of shape {pixels.shape} in the column {column!r}: expected an image, or "
            "pixels [H, W, 3] as integers from 0 to 255."
        )
    pixels = np.ascontiguousarray(pixels.astype(np.uint8))
    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)

"""Whatever a row of a dataset may hold as its image, as a picture."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
from PIL import Image

from .images import to_rgb


def picture(value: Any, column: str = "image") -> Image.Image:
    """The image of a row, as teacher and student see it.

    Args:
        value: a PIL image; what a column of `datasets.Image(decode=False)` holds, {"bytes", "path"}; or pixels, an
            array, a tensor or nested lists of integers 0..255, [H, W], [H, W, channels] or [channels, H, W].
        column: what a message calls its place.

    Returns:
        An RGB image, see `to_rgb`.

    Raises:
        ValueError: something else.
        OSError: an image that cannot be read.
    """
    if isinstance(value, Image.Image):
        return to_rgb(value)
    if isinstance(value, dict) and value.keys() >= {"bytes", "path"} and (value["bytes"] or value["path"]):
        return to_rgb(datasets.Image().decode_example(value))
    if isinstance(value, (list, tuple, np.ndarray)) or hasattr(value, "__array__"):
        return to_rgb(_of_pixels(np.asarray(value), column))
    raise ValueError(f"A row holds {_named(value)} in the column {column!r}: {_remedy(value, column)}.")


def check_image_feature(feature: Any, column: str, name: str) -> None:
    """Refuses columns that hold no images, by their feature.

    Args:
        feature: of the column.
        column: its name.
        name: what the message calls the dataset.

    Raises:
        ValueError: text, as paths are, or something else that no image is.
    """
    if isinstance(feature, (datasets.Value, datasets.ClassLabel)):
        value = "" if getattr(feature, "dtype", "").endswith("string") else 0
        raise ValueError(f"The column {column!r} of {name} holds {feature.dtype}: {_remedy(value, column)}.")


def _named(value: Any) -> str:
    return "no image" if value is None or isinstance(value, dict) else f"{type(value).__name__}"


def _remedy(value: Any, column: str) -> str:
    if isinstance(value, str):
        return f"if these are paths of images, dataset.cast_column({column!r}, datasets.Image()) makes images of them"
    if value is None or isinstance(value, dict):
        return "leave the row out, or give it an image"
    return "expected images; name their column with image_column"


def _of_pixels(pixels: np.ndarray, column: str) -> Image.Image:
    channels_first = pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4)
    pixels = pixels.transpose(1, 2, 0) if channels_first else pixels
    whole = np.issubdtype(pixels.dtype, np.integer) and pixels.size and 0 <= pixels.min() and pixels.max() <= 255
    if not whole or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4))):
        raise ValueError(
            f"A row holds {pixels.dtype} of shape {pixels.shape} in the column {column!r}: expected an image, or "
            "pixels [H, W, 3] as integers from 0 to 255."
        )
    pixels = np.ascontiguousarray(pixels.astype(np.uint8))
    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)

"""The one way in which teacher and student see a picture: upright, opaque, three channels of 8 bits."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image, ImageOps


def to_rgb(image: Image.Image) -> Image.Image:
    """What a viewer would show of an image, as RGB.

    - Turned as its EXIF orientation says; an image that was turned before stays as it is.
    - What is transparent (alpha, a transparent colour, transparent palette entries) shows white; Pillow's own
      `convert("RGB")` would show whatever colour hides there, mostly black.
    - 16-bit greyscale is scaled to 8 bits, where Pillow cuts it off at 255.
    - Greyscale of 32-bit integers or floats states no range: taken as 0..1 (floats only), 0..255 or 0..65535, the
      first that holds all its values, else as its own lowest to highest; NaN is black.
    - CMYK, YCbCr, Lab and the rest as Pillow converts them.

    Args:
        image: of any mode and size.

    Returns:
        An RGB image; the argument itself where there is nothing to change. The argument is never altered.

    Raises:
        OSError: the file behind an image that was opened and not read yet is broken.
    """
    image.load()  # a PNG's EXIF may stand behind its pixels
    if _orientation(image) in range(2, 9):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return _grey(image, 0, 65535)
    if image.mode in ("I", "F"):
        return _grey(image, *_value_range(image))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever garbage in the metadata makes Pillow raise: the picture itself is good
        return 1


def _grey(image: Image.Image, low: float, high: float) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float32), nan=low)
    with np.errstate(over="ignore"):  # infinities are cut off like everything beyond low and high
        scaled = np.clip((values - low) * (255 / (high - low)), 0, 255)
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def _value_range(image: Image.Image) -> tuple[float, float]:
    values = np.asarray(image)
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    for limit in (1, 255, 65535) if image.mode == "F" else (255, 65535):
        if 0 <= low and high <= limit:
            return 0.0, float(limit)
    return low, high if high > low else low + max(1.0, abs(low))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow knows no direct way from here to RGBA
        image = image.convert("LA")
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas

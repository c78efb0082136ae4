"""Any image as RGB, as a viewer would show it. This file travels with Spaces, and needs Pillow and numpy alone."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps


ALPHA = {"RGBA": "RGB", "LA": "L"}  # mode -> mode of its colours


def to_rgb(image: Image.Image) -> Image.Image:
    """What a viewer would show of an image, as RGB.

    - Turned as its EXIF orientation says; an image that was turned before stays as it is.
    - What is transparent (alpha, a transparent colour, transparent palette entries) shows white; Pillow's own
      `convert("RGB")` would show whatever colour hides there, mostly black.
    - 16-bit greyscale is scaled to 8 bits, where Pillow cuts it off at 255.
    - Greyscale of 32-bit integers or floats states no range: taken as 0..1 (floats only), 0..255 or 0..65535, the
      first that holds all its values, else as its own lowest to highest; NaN is black.
    - Colours mean what the embedded ICC profile says (Display P3 of a phone, Adobe RGB, CMYK of a printer), as sRGB. A
      profile that cannot be read, or belongs to other channels, is passed over, as viewers do.
    - CMYK, YCbCr, Lab and the rest without a profile as Pillow converts them.

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
    if image.info.get("icc_profile"):
        image = _in_srgb(image)
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


def _in_srgb(image: Image.Image) -> Image.Image:
    """The same colours in sRGB, with their alpha; the image itself where that is what it holds."""
    profile, transparent = image.info["icc_profile"], "transparency" in image.info
    if image.mode == "P" or (transparent and image.mode in ("RGB", "L")):
        image = image.convert("LA" if image.mode == "L" else "RGBA" if transparent else "RGB")
    colours = ALPHA.get(image.mode, image.mode)
    transform = _transform(profile, colours) if colours in ("RGB", "L", "CMYK") else None
    if transform is None:
        return image
    converted = ImageCms.applyTransform(image.convert(colours) if image.mode in ALPHA else image, transform)
    converted.info.pop("icc_profile", None)
    if image.mode in ALPHA:
        converted.putalpha(image.getchannel("A"))
    return converted


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the colours of a profile to sRGB; None where they are the same, or the profile is of no use."""
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(embedded).lower():
            return None
        return ImageCms.buildTransform(embedded, ImageCms.createProfile("sRGB"), mode, "RGB")
    except Exception:  # ICC profiles are programs of a kind, and what they raise is as varied
        return None


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

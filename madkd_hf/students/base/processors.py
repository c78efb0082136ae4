"""What an image processor makes of an image: its size, and how to call it for crops that have their size already."""

from __future__ import annotations

from PIL import Image
from transformers import BaseImageProcessor


def output_size(processor: BaseImageProcessor) -> tuple[int, int]:
    """Height and width of what an image processor makes; ValueError where that is no image of three channels."""
    try:
        batch = processor(Image.new("RGB", (64, 64)), return_tensors="pt")
        shape = tuple(batch["pixel_values"].shape) if "pixel_values" in batch else sorted(batch)
    except (TypeError, ValueError) as error:
        shape = " ".join(str(error).split())
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[1] != 3:
        raise ValueError(
            f"{type(processor).__name__} makes no pixel_values [batch, 3, height, width] of an image, but {shape}: "
            "pass the image processor of an image classifier."
        )
    return shape[2:]


def options_without_resizing(processor: BaseImageProcessor, height: int, width: int) -> dict[str, bool]:
    """How to call an image processor such that it neither resizes nor crops what has its size already."""
    sized = Image.new("RGB", (width, height))
    for options in ({"do_resize": False, "do_center_crop": False}, {"do_resize": False}, {}):
        try:
            pixels = processor(sized, return_tensors="pt", **options)["pixel_values"]
        except (TypeError, ValueError):
            continue
        if tuple(pixels.shape[-2:]) == (height, width):
            return options
    raise ValueError(
        f"{type(processor).__name__} changes the size of {width} x {height} crops, which is its own: pass another "
        "image processor."
    )


def check_same_size(processor: BaseImageProcessor, images: list[Image.Image], error: Exception) -> None:
    """Raise ValueError, from the error that a batch of them gave, where images do not come out in one size."""
    shapes = {processor(image, return_tensors="np")["pixel_values"].shape[1:] for image in images}
    if len(shapes) > 1:
        first, second, *_ = sorted(shapes)
        raise ValueError(
            f"{type(processor).__name__} makes images of different sizes, {first} and {second}: give it one size for "
            'all, as size={"height": 224, "width": 224}.'
        ) from error

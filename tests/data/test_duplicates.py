"""The same picture, of another size or quality, and pictures that only look alike."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw

from madkd_hf.data.duplicates import same_pictures, signature


def photo(seed: int) -> Image.Image:
    """Something with structure at every scale."""
    noise = np.random.default_rng(seed).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((240, 180), Image.Resampling.BICUBIC)


def saved(image: Image.Image, quality: int) -> Image.Image:
    image.save(content := BytesIO(), "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def pairs(*images: Image.Image) -> list[tuple[int, int]]:
    return same_pictures(np.stack([signature(image) for image in images]))


def test_copies_of_another_size_or_quality_are_found():
    copies = [photo(0), photo(0).resize((120, 90)), saved(photo(0), 40)]
    assert pairs(*copies, photo(1), photo(2)) == [(0, 1), (0, 2), (1, 2)]


def test_pictures_that_differ_in_one_place_are_others():
    plain = Image.new("RGB", (64, 64), "white")
    shapes = []
    for draw in ("ellipse", "rectangle"):
        image = plain.copy()
        getattr(ImageDraw.Draw(image), draw)((20, 20, 34, 34), fill=(200, 30, 30))
        shapes.append(image)
    red, blue = shapes[0], Image.fromarray(np.asarray(shapes[0])[..., ::-1])
    assert pairs(plain, red, shapes[1], blue) == []
    assert pairs(plain, plain, red) == [(0, 1)]


def test_of_no_image_or_one_nothing_is_said():
    assert same_pictures(np.zeros((0, 32, 32, 3), np.uint8)) == [] == pairs(photo(0))

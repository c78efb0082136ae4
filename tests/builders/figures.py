"""What a picture must be."""

from __future__ import annotations

import numpy as np
from PIL import Image


def assert_picture(path, min_width=500, min_height=200):
    with Image.open(path) as image:
        image.load()
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] >= min_width and pixels.shape[0] >= min_height
    assert (pixels != 255).any(axis=2).mean() > 0.01, "the picture is all but white"
    return pixels

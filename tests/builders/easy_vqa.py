"""Images of easy-VQA."""

from __future__ import annotations

from PIL import Image


def load_from_easy_vqa() -> Image.Image:
    """One of its test images."""
    from recipes.easy_vqa.data import load_easy_vqa

    return load_easy_vqa()["test"][0]["image"]

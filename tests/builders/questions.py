"""Questions and pictures."""

from __future__ import annotations

from builders import tiny
from PIL import Image

from madkd_hf import Aspect, AspectBank


QUESTIONS = [  # of different lengths, with and without a common beginning, one the beginning of another
    "is there a red shape ?",
    "is there a big blue shape in the image at all ?",
    "is there a red shape",
    "shape ?",
    "is there a red shape ?",
    "is there a big blue shape in the image ?",
    "yes or no ? yes with a no or a yes is a no ?",
]


def pictures() -> list[Image.Image]:
    """Of several shapes: one twice and apart, one on its side, which takes as many patches in another grid."""
    sizes = [(16, 16), (40, 20), (23, 60), (16, 16), (20, 40)]
    return [image.resize(size) for image, size in zip(tiny.images(len(sizes), 64), sizes)]


def bank(questions: list[str] = QUESTIONS) -> AspectBank:
    distinct = [f"{question} {'?' * i}".strip() for i, question in enumerate(questions)]
    return AspectBank([Aspect(f"aspect-{i}", question) for i, question in enumerate(distinct)])

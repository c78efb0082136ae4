"""Teachers that are counted or sleep, and their shards."""

from __future__ import annotations

import io
from pathlib import Path

import PIL.Image
from builders import tiny

from madkd_hf import AspectTeacher
from madkd_hf.files import LOCK_FILE


def teacher(**settings) -> AspectTeacher:
    """One that is read without looking first which way is right, which takes longer than to read a few images."""
    return AspectTeacher(tiny.internvl(), tiny.processor(), **{"strategy": "full", **settings})


class Counting(AspectTeacher):
    """Counts the images that it reads."""

    count = 0

    def read(self, images, bank):
        self.count += len(images)
        return super().read(images, bank)


class Asleep(AspectTeacher):
    """Answers nothing any more."""

    def read(self, images, bank):
        raise AssertionError("the answers were there already")


def shards(folder: Path) -> list[str]:
    """Everything in the folder but the manifest and the lock."""
    ours = ("manifest.json", LOCK_FILE)
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name not in ours)


def encoded(image: PIL.Image.Image, kind: str = "PNG", **settings) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return {"bytes": buffer.getvalue(), "path": None}

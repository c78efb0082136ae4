"""Ask the teacher about the rows of a shard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from datasets import Dataset

from ..aspects import AspectBank
from ..teacher import AspectTeacher, UnreadableImage
from .columns import aspect_features
from .sources import decode, is_broken


@dataclass
class Reader:
    """How the images of a split become answers, and what happens to those that cannot be read."""

    split: str
    bank: AspectBank
    teacher: AspectTeacher
    image_column: str
    on_error: str

    def answers(self, rows: Dataset, start: int, images_per_call: int, tell: Callable[[int], Any]) -> pa.Table:
        """The new columns for a shard whose first row is `start`: the same rows always make the same calls."""

        def read(batch: dict[str, list[Any]], places: list[int]) -> dict[str, list[Any]]:
            answers = self._read(batch[self.image_column], [start + place for place in places])
            tell(len(places))
            return answers

        answers = rows.select_columns([self.image_column]).map(
            read,
            batched=True,
            batch_size=images_per_call,
            with_indices=True,
            remove_columns=[self.image_column],
            features=aspect_features(self.bank),
            new_fingerprint="shard",  # the teacher is not to be hashed
            keep_in_memory=True,
            load_from_cache_file=False,
        )
        return answers.data.table.combine_chunks()

    def _read(self, stored: list[dict[str, Any] | None], rows: list[int]) -> dict[str, list[Any]]:
        images, places = [], []
        for place, image in enumerate(stored):
            try:
                images.append(decode(image))
                places.append(place)
            except Exception as error:  # whatever a broken file makes the decoder raise, the row is what helps
                self._refuse(rows[place], "cannot be decoded", error)
        logits: list[Any] = [None] * len(rows)
        mass: list[Any] = [None] * len(rows)
        while images:
            try:
                reading = self.teacher.read(images, self.bank)
            except UnreadableImage as error:
                self._refuse(rows[places[error.index]], "is refused by the teacher's processor", error)
                del images[error.index], places[error.index]
                continue
            for place, z, m in zip(places, reading.logits.numpy(), reading.mass.numpy()):
                logits[place], mass[place] = z, m
            break
        return {"aspect_logits": logits, "aspect_mass": mass, "aspect_bank": [self.bank.fingerprint] * len(rows)}

    def _refuse(self, row: int, what: str, error: Exception) -> None:
        where = f"The image in row {row} of split {self.split!r}"
        if not is_broken(error):  # to skip it would make permanent what passes
            raise OSError(
                f"{where} cannot be read now ({_reason(error)}): that says nothing about the image; see to the disk, "
                "the network or the memory, and run the same command again."
            ) from error
        if self.on_error == "raise":
            raise ValueError(
                f"{where} {what} ({_reason(error)}): repair the file or drop the row, or pass on_error='skip' to "
                "leave its answers empty."
            ) from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__

"""Ask the teachers about the rows of a shard."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
from datasets import Dataset
from PIL.Image import Image

from ..data.decoding import count_cores, is_broken
from ..teachers import UnreadableImageError
from .labellers import Answer, Labeller, all_features
from .sources import Source, decode


MOST_AHEAD = 64  # images that are preprocessed before their turn, where a call does not have more

Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass(frozen=True)
class Unit:
    """What the teachers read: an image, or one object of it; two with the same key get one answer."""

    key: Hashable
    image: Image
    name: str


@dataclass
class Reader:
    """How the images of a split, or their objects, become answers, and what happens to those that cannot be read."""

    labellers: Sequence[Labeller]
    source: Source

    def read(self, rows: Dataset, start: int, images_per_call: int, on_progress: Callable[[int], Any]) -> pa.Table:
        """The new columns for a shard whose first row is `start`; `on_progress` is told of each row.

        Images wait until there are enough of them for a call, and objects that look the same are read once. So the
        same rows always make the same calls. Rows count as progress when their images are read.
        """
        keys_of_rows: list[list[Hashable] | None] = []  # of each row's units; None where the row cannot be read
        answers: dict[Hashable, list[Answer] | None] = {}
        table = zip(rows.select_columns(self.source.columns), itertools.count(start))
        cores = max(2, count_cores())
        images, calls = cores, 0  # that are made ahead of their turn
        if any(labeller.preprocesses for labeller in self.labellers):
            images = max(cores, min(images_per_call, MOST_AHEAD))
            calls = max(1, min(cores, MOST_AHEAD // images_per_call))
        with closing(in_order(lambda row: self._units(*row), table, cores, images)) as decoded:
            of_calls = self._calls(decoded, images_per_call, keys_of_rows)
            with closing(in_order(self._preprocessed, of_calls, calls, calls)) as prepared:
                for units, inputs, count in prepared:
                    answers |= self._read(units, inputs)
                    on_progress(count)
        return self._table([None if keys is None else [answers[key] for key in keys] for keys in keys_of_rows])

    def _calls(
        self, decoded: Iterable[list[Unit] | None], images_per_call: int, keys_of_rows: list[list[Hashable] | None]
    ) -> Iterator[tuple[list[Unit], int]]:
        """What one call of the teachers reads, and how many rows have come since the call before."""
        asked: set[Hashable] = set()
        waiting: deque[Unit] = deque()
        count = 0
        for units in decoded:
            keys_of_rows.append(None if units is None else [unit.key for unit in units])
            for unit in units or []:
                if unit.key not in asked:
                    asked.add(unit.key)
                    waiting.append(unit)
            count += 1
            while len(waiting) >= images_per_call:
                yield [waiting.popleft() for _ in range(images_per_call)], count
                count = 0
        yield list(waiting), count

    def _preprocessed(self, call: tuple[list[Unit], int]) -> tuple[list[Unit], list[dict[Hashable, Any]], int]:
        """The call, and between its parts what each labeller is to read, by key."""
        units, count = call
        images = [unit.image for unit in units]
        inputs = [one.preprocess(images) if one.preprocesses else images for one in self.labellers]
        return units, [dict(zip((unit.key for unit in units), of_one)) for of_one in inputs], count

    def _units(self, row: dict[str, Any], number: int) -> list[Unit] | None:
        """What to ask about in a row; None where it cannot be read and is to be skipped."""
        stored = row[self.source.image_column]
        place = self.source.name_of(number, stored and stored["path"])
        name = f"The image {place}" if stored and stored["path"] else f"The image in {place}"
        try:
            image = decode(stored, self.source.origin)
        except Exception as error:  # whatever a broken file makes the decoder raise, the row is what helps
            return self._refuse(name, "cannot be decoded", error)
        if self.source.boxes is None:
            return [Unit(number, image, name)]
        try:
            crops = self.source.boxes.crops(image, row[self.source.boxes.column])
        except ValueError as error:
            if self.source.on_error == "raise":
                raise ValueError(
                    f"In {place}, {str(error).removesuffix('.')}, or pass "
                    "on_error='skip' to leave the row's answers empty."
                ) from error
            return None
        in_image = name.replace("The", "the", 1)
        return [Unit(_pixels(crop), crop, f"Object {index} of {in_image}") for index, crop in enumerate(crops)]

    def _read(self, units: list[Unit], inputs: list[dict[Hashable, Any]]) -> dict[Hashable, list[Answer] | None]:
        """The answers of each labeller by key; None for what one of the teachers' processors refuses."""
        answers: dict[Hashable, list[Answer] | None] = {unit.key: [] for unit in units}
        for labeller, given in zip(self.labellers, inputs):
            units = [unit for unit in units if answers[unit.key] is not None]
            while units:
                try:
                    values = labeller.read([given[unit.key] for unit in units])
                except UnreadableImageError as error:
                    refused = units.pop(error.index)
                    answers[refused.key] = self._refuse(refused.name, "is refused by the teacher's processor", error)
                    continue
                for unit, value in zip(units, values):
                    answers[unit.key].append(value)
                break
        return answers

    def _table(self, rows: list[list[list[Answer] | None] | None]) -> pa.Table:
        """The columns; a row of which something could not be read has no answers at all."""
        schema = all_features(self.labellers).arrow_schema
        columns: dict[str, list[Any]] = {field.name: [] for field in schema}
        for row in rows:
            answered = row is not None and all(answers is not None for answers in row)
            for place, labeller in enumerate(self.labellers):
                for part, name in enumerate(labeller.columns[:-1]):
                    values = [answers[place][part] for answers in row] if answered else None
                    columns[name].append(values if values is None or self.source.boxes else values[0])
                columns[labeller.columns[-1]].append(labeller.source)
        return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema}, schema=schema)

    def _refuse(self, name: str, what: str, error: Exception) -> None:
        """Stop, or return None where it is to be skipped."""
        if not is_broken(error):  # to skip it would make permanent what passes
            raise OSError(
                f"{name} cannot be read now ({_reason(error)}): that says nothing about the image; see to the disk, "
                "the network or the memory, and run the same command again."
            ) from error
        if self.source.on_error == "raise":
            raise ValueError(
                f"{name} {what} ({_reason(error)}): repair the file or drop the row, or pass on_error='skip' to "
                "leave its answers empty."
            ) from error


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int, most: int) -> Iterator[Result]:
    """`function` of each item, in order, as `map` does it; by other threads ahead of time, `most` of them at once.

    An error is raised where `map` would raise it.
    """
    if not threads:
        yield from map(function, items)
        return
    pool, ahead, failed, items = ThreadPoolExecutor(threads), deque(), None, iter(items)
    try:
        while True:
            if len(ahead) == most:
                yield ahead.popleft().result()
            try:
                ahead.append(pool.submit(function, next(items)))
            except StopIteration:
                break
            except Exception as error:  # of the items: what came before is first
                failed = error
                break
        while ahead:
            yield ahead.popleft().result()
        if failed:
            raise failed
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(image: Image) -> Hashable:
    return image.size, hashlib.sha256(image.tobytes()).digest()


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__

"""What a labelling job reads: the rows of a dataset, or a stream; both are cut into shards of contiguous rows."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict
from datasets.table import embed_table_storage, table_cast
from PIL.Image import Image

from ..images import to_rgb
from .columns import ASPECT_COLUMNS


REORDERING = ("Filter", "Take", "Skip", "Repeat", "Mapped", "Step", "Sources", "Interleaved")  # the length is unknown


@dataclass
class Rows:
    """A split of a `Dataset`: its shards hold the new columns only.

    Attributes:
        split: its name.
        data: the rows.
        image_column: where their images are.
        labelled: whether the teacher is asked; otherwise the new columns are null.
    """

    split: str
    data: Dataset
    image_column: str
    labelled: bool = True

    @property
    def total(self) -> int:
        return len(self.data)

    @property
    def state(self) -> dict[str, Any]:
        """What the manifest says of this split."""
        return {"rows": self.total, "fingerprint": self.data._fingerprint}

    @cached_property
    def encoded(self) -> Dataset:
        """The images as they are stored, nothing decoded."""
        images = self.data.with_format(None).select_columns([self.image_column])
        return images.cast_column(self.image_column, datasets.Image(decode=False))

    def head(self) -> Iterator[dict[str, Any] | None]:
        """The stored images, from the first on."""
        return (row[self.image_column] for row in self.encoded)

    def shards(self, size: int, done: Container[int]) -> Iterator[tuple[int, Dataset]]:
        """The shards that are not done, by number; the images alone."""
        for index, start in enumerate(range(0, self.total, size)):
            if index not in done:
                yield index, self.encoded.select(range(start, min(start + size, self.total)))

    def stored(self, rows: Dataset, answers: pa.Table) -> pa.Table:
        """What a shard keeps of these rows and their answers."""
        return answers


@dataclass
class Stream:
    """A split of an `IterableDataset`: its shards hold all columns, images as bytes, so that they travel alone.

    Attributes: as those of `Rows`.

    Raises:
        ValueError: the stream does not say what its columns are.
    """

    split: str
    data: IterableDataset
    image_column: str
    labelled: bool = True

    def __post_init__(self) -> None:
        try:
            self.data = self.data._resolve_features()
        except (pa.ArrowException, TypeError) as error:
            raise ValueError(
                f"The stream of split {self.split!r} does not say what its columns are, and they cannot be guessed "
                f"({' '.join(str(error).split())}): declare them, as in IterableDataset.from_generator(..., "
                f"features=Features({{{self.image_column!r}: Image(), ...}}))."
            ) from error

    @property
    def total(self) -> int | None:
        """The number of rows, where the stream's card knows it."""
        known = (self.data.info.splits or {}).get(self.split)
        changed = any(word in step for step in self._steps for word in REORDERING)
        return None if changed or known is None else known.num_examples or None

    @property
    def state(self) -> dict[str, Any]:
        """What the manifest says of this split: a stream is known by its card, its steps and its first image."""
        info = self.data.info
        first = next(self.head(), None)
        content = [info.builder_name, info.dataset_name, str(self.data.split), str(self.data.features), self._steps]
        digest = hashlib.sha256(json.dumps(content).encode())
        digest.update(b"" if first is None else first["bytes"] or str(first["path"]).encode())
        return {"rows": None, "fingerprint": digest.hexdigest()[:16], "labelled": self.labelled}

    @property
    def _steps(self) -> list[str]:
        """The chain that makes the stream (take, skip, shuffle, ...): with another `take` it is another stream."""
        steps, link = [], self.data._ex_iterable
        while link is not None:
            settings = [f"{name}={link.__dict__[name]}" for name in ("n", "buffer_size") if name in link.__dict__]
            steps.append(" ".join([type(link).__name__, *settings]))
            link = getattr(link, "ex_iterable", None)
        return steps

    @cached_property
    def encoded(self) -> IterableDataset:
        """The rows as arrow tables, nothing decoded."""
        return self.data.cast_column(self.image_column, datasets.Image(decode=False)).with_format("arrow")

    def head(self) -> Iterator[dict[str, Any] | None]:
        """The stored images, from the first on."""
        return (table[self.image_column][0].as_py() for table in self.encoded.iter(1))

    def shards(self, size: int, done: Container[int]) -> Iterator[tuple[int, Dataset]]:
        """The shards that are not done, by number; all columns."""
        first = next(index for index in itertools.count() if index not in done)
        rest = self.encoded.skip(first * size) if first else self.encoded
        for index, table in enumerate(rest.iter(size), first):
            if index not in done:
                yield index, Dataset(table_cast(table, self.encoded.features.arrow_schema))

    @property
    def nothing(self) -> Dataset:
        """No rows, of these columns."""
        return Dataset(self.encoded.features.arrow_schema.empty_table())

    def stored(self, rows: Dataset, answers: pa.Table) -> pa.Table:
        """All columns and the answers, with everything that was a file elsewhere inside."""
        table = rows.data.table
        columns = {self.image_column: _embedded(table[self.image_column].combine_chunks())}
        if others := [name for name in table.column_names if name != self.image_column]:
            columns |= dict(zip(others, embed_table_storage(table.select(others)).columns))
        columns |= dict(zip(answers.column_names, answers.columns))
        features = Features({**self.data.features, **Features.from_arrow_schema(answers.schema)})
        return table_cast(pa.table({name: columns[name] for name in features}), features.arrow_schema)


def _embedded(images: pa.StructArray) -> pa.StructArray:
    """The images as bytes; null where the file cannot be read, which only a row without answers may be."""
    feature = datasets.Image()
    try:
        return feature.embed_storage(images)
    except OSError:
        return pa.concat_arrays([_embedded_one(feature, images[i : i + 1]) for i in range(len(images))])


def _embedded_one(feature: datasets.Image, image: pa.StructArray) -> pa.StructArray:
    try:
        return feature.embed_storage(image)
    except OSError:
        return pa.nulls(1, feature.pa_type)


def readable(stored: Iterable[dict[str, Any] | None]) -> Iterator[Image]:
    """Those of the stored images that can be decoded."""
    for image in stored:
        try:
            yield decode(image)
        except Exception:  # the labelling itself will name its row
            continue


def decode(stored: dict[str, Any] | None) -> Image:
    """A stored image as RGB; raises whatever a broken file makes the decoder raise."""
    if stored is None:
        raise ValueError("there is no image")
    return to_rgb(datasets.Image().decode_example(stored))


def sources_of(dataset: Any, splits: str | Iterable[str] | None, image_column: str) -> list[Rows | Stream]:
    """The splits to read, checked before anything is."""
    if isinstance(dataset, (Dataset, IterableDataset)):
        parts = {str(dataset.split or "train"): dataset}
        wanted = list(parts)
    elif isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        parts = dict(dataset)
        wanted = list(parts) if splits is None else [splits] if isinstance(splits, str) else list(splits)
    else:
        raise ValueError(
            "attach_aspects takes a Dataset or a DatasetDict, or an IterableDataset or a dict of these; received "
            f"{type(dataset).__name__}."
        )
    if missing := [split for split in wanted if split not in parts]:
        raise ValueError(f"There is no split {missing[0]!r}: the dataset has {list(parts)}.")
    sources = [
        (Rows if isinstance(rows, Dataset) else Stream)(split, rows, image_column, split in wanted)
        for split, rows in parts.items()
    ]
    for source in sources:
        _check(source.data.features, image_column)
    return sources


def _check(features: Features, image_column: str) -> None:
    if image_column not in features:
        raise ValueError(
            f"There is no column {image_column!r}: the dataset has {list(features)}; "
            "name the images with image_column."
        )
    if not isinstance(features[image_column], datasets.Image):
        raise ValueError(
            f"The column {image_column!r} holds {features[image_column]}, not images: "
            f"cast it with dataset.cast_column({image_column!r}, datasets.Image())."
        )
    if present := [name for name in ASPECT_COLUMNS if name in features]:
        raise ValueError(
            f"The dataset is labelled already, it has the columns {present}: "
            f"drop them with dataset.remove_columns({present}) to label it again."
        )

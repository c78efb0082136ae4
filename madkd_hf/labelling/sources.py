"""What a labelling job reads: the rows of a dataset, or a stream; both are cut into shards of contiguous rows."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict
from datasets.table import table_cast
from PIL.Image import Image

from ..data.columns import ASPECT_COLUMNS, about_objects
from ..data.embedding import check_own_files, embed_files, without_files
from ..data.images import to_rgb
from ..data.objects import Boxes
from ..data.origin import Origin, RefusedFileError, check_format
from ..data.rows import SPLIT_NAME, describe_row, file_name, split_name
from ..data.streams import digest, steps
from ..files import check_name
from ..text import as_list, terminal


# Parts of the names of steps that change how many rows a stream has.
CHANGE_LENGTH = ("Filter", "Take", "Skip", "Repeat", "Mapped", "Step", "Sources", "Interleaved")


@dataclass
class Source:
    """A split that a labelling job reads.

    Attributes:
        split: its name.
        data: the rows, or a stream of them.
        image_column: where their images are.
        labelled: whether the teacher reads it; otherwise the new columns are null.
        boxes: where the objects are, if the teacher reads each object and not the whole image.
        origin: which files the rows may name.
        on_error: what to do about a file that must not be read, or that is no image: "raise", or "skip".
    """

    split: str
    data: Any
    image_column: str
    labelled: bool = True
    boxes: Boxes | None = None
    origin: Origin = field(default_factory=Origin)
    on_error: str = "raise"

    @property
    def columns(self) -> list[str]:
        """What the teacher's reading needs of a row."""
        return [self.image_column, *([self.boxes.column] if self.boxes else [])]

    def name_of(self, row: int, path: str | None) -> str:
        """A row in messages."""
        return describe_row(path, row, self.split)


class Rows(Source):
    """A split of a `Dataset`: its shards hold the new columns only."""

    def check_files(self) -> None:
        """See that the rows name no other files than images of theirs; the teacher's reading decodes its own."""
        undecoded = [self.image_column] if self.labelled else []
        self.data = check_own_files(self.data, self.origin, self.split, self.on_error, undecoded)

    @property
    def total(self) -> int:
        return len(self.data)

    @property
    def state(self) -> dict[str, Any]:
        """What the manifest says of this split."""
        return {"rows": self.total, "fingerprint": self.data._fingerprint}

    @cached_property
    def encoded(self) -> Dataset:
        """The images as they are stored, nothing decoded, and the objects in them."""
        images = self.data.with_format(None).select_columns(self.columns)
        return images.cast_column(self.image_column, datasets.Image(decode=False))

    def name_of(self, row: int, path: str | None) -> str:
        """A row in messages; by its file alone where this is a selection, whose numbers its maker may not know."""
        return file_name(path) if path and self.data._indices is not None else super().name_of(row, path)

    def head(self) -> Iterator[dict[str, Any]]:
        """The stored images and their objects, from the first on."""
        return iter(self.encoded)

    def shards(self, size: int, done: Container[int]) -> Iterator[tuple[int, Dataset]]:
        """The shards that are not done, by number; what is read of them alone."""
        for index, start in enumerate(range(0, self.total, size)):
            if index not in done:
                yield index, self.encoded.select(range(start, min(start + size, self.total)))

    def fetched(self, rows: Dataset) -> Dataset:
        """The rows of a shard with what is to be stored of their images; here nothing is."""
        return rows

    def stored(self, rows: Dataset, answers: pa.Table, start: int) -> pa.Table:
        """What a shard, whose first row is `start`, keeps of these rows and their answers."""
        return answers

    def without_skipped(self, labelled: Dataset, rows: list[int]) -> Dataset:
        """The labelled rows, with null in place of files that the reading skipped because they are no images."""
        cells = (row[self.image_column] for row in self.encoded.select(rows))
        refused = {cell["path"] for cell in cells if cell is not None and self._is_refused(cell)}
        return without_files(labelled, refused) if refused else labelled

    def _is_refused(self, stored: dict[str, Any]) -> bool:
        try:
            fetch(stored, self.origin)
        except RefusedFileError:
            return True
        except OSError:  # gone, or not to be read now
            pass
        return False


@dataclass
class Stream(Source):
    """A split of an `IterableDataset`: its shards hold all columns, images as bytes, so that they travel alone.

    `name` stands for the functions that the stream is made by, see `attach_aspects`.
    """

    name: str | None = None

    def __post_init__(self) -> None:
        try:
            self.data = self.data._resolve_features()
        except (pa.ArrowException, TypeError) as error:
            raise ValueError(
                f"The stream of split {self.split!r} does not say what its columns are, and they cannot be guessed "
                f"({' '.join(str(error).split())}): declare them, as in IterableDataset.from_generator(..., "
                f"features=Features({{{self.image_column!r}: Image(), ...}})) or stream.map(..., features=...)."
            ) from error

    @property
    def total(self) -> int | None:
        """The number of rows, where the stream's card knows it."""
        split_info = (self.data.info.splits or {}).get(self.split)
        changed = any(word in type(step).__name__ for step in steps(self.data) for word in CHANGE_LENGTH)
        return None if changed or split_info is None else split_info.num_examples or None

    @cached_property
    def state(self) -> dict[str, Any]:
        """What the manifest says of this split: a stream is known by how it is made, and by its first image."""
        fingerprint = hashlib.sha256(digest(self.data, self.name).encode())
        first = next((row[self.image_column] for row in self.head()), None)
        fingerprint.update(b"" if first is None else first["bytes"] or str(first["path"]).encode())
        return {"rows": None, "fingerprint": fingerprint.hexdigest()[:16], "labelled": self.labelled}

    @cached_property
    def encoded(self) -> IterableDataset:
        """The rows as arrow tables, nothing decoded."""
        return self.data.cast_column(self.image_column, datasets.Image(decode=False)).with_format("arrow")

    def head(self) -> Iterator[dict[str, Any]]:
        """The stored images and their objects, from the first on."""
        return (table.select(self.columns).to_pylist()[0] for table in self.encoded.iter(1))

    def shards(self, size: int, done: Container[int]) -> Iterator[tuple[int, Dataset]]:
        """The shards that are not done, by number; all columns."""
        first = next(index for index in itertools.count() if index not in done)
        remaining = self.encoded.skip(first * size) if first else self.encoded
        for index, table in enumerate(remaining.iter(size), first):
            if index not in done:
                yield index, Dataset(table_cast(table, self.encoded.features.arrow_schema))

    @property
    def nothing(self) -> Dataset:
        """No rows, of these columns."""
        return Dataset(self.encoded.features.arrow_schema.empty_table())

    def fetched(self, rows: Dataset) -> Dataset:
        """The rows with their images' bytes, read once: what is stored is what the teacher saw.

        A file that is not there is left for the reading to name its row.
        """
        table, images = rows.data.table, []
        for image in table[self.image_column].to_pylist():
            with suppress(FileNotFoundError, ValueError):
                image = image and fetch(image, self.origin)
            images.append(image)
        place = table.column_names.index(self.image_column)
        column = pa.array(images, table.schema.field(place).type)
        return Dataset(table.set_column(place, table.schema.field(place), column))

    def stored(self, rows: Dataset, answers: pa.Table, start: int) -> pa.Table:
        """All columns and the answers, with everything that was a file elsewhere inside."""
        table = embed_files(
            rows.data.table,
            self.data.features,
            self.origin,
            lambda row: self.name_of(start + row, None),
            self.on_error,  # the labelling has refused or skipped its own files
        )
        for name in answers.column_names:
            table = table.append_column(answers.schema.field(name), answers[name])
        features = Features({**self.data.features, **Features.from_arrow_schema(answers.schema)})
        return table_cast(table.select(list(features)), features.arrow_schema)


def fetch(stored: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """A stored image with its bytes, from the file that it names."""
    if stored["bytes"] is not None or stored["path"] is None:
        return stored
    try:
        content = origin.read(stored["path"])
    except RefusedFileError as error:
        raise RefusedFileError(f"{terminal(stored['path'])}: {error}") from error
    return {"bytes": content, "path": os.path.basename(stored["path"])}


def readable_images(source: Rows | Stream) -> Iterator[Image]:
    """What the teacher reads, images or objects, of those rows that can be read."""
    for row in source.head():
        try:
            image = decode(row[source.image_column], source.origin)
            images = source.boxes.crops(image, row[source.boxes.column]) if source.boxes else [image]
        except Exception:  # the labelling itself will name its row
            continue
        yield from images


def decode(stored: dict[str, Any] | None, origin: Origin) -> Image:
    """A stored image as RGB; raises whatever a broken file makes the decoder raise."""
    if stored is None:
        raise ValueError("there is no image")
    stored = fetch(stored, origin)
    check_format(stored["bytes"])
    return to_rgb(datasets.Image().decode_example(stored))


def sources_of(
    dataset: Any,
    splits: str | Iterable[str] | None,
    image_column: str,
    boxes: Boxes | None = None,
    files_from: str | os.PathLike | None = None,
    on_error: str = "raise",
    stream_name: str | None = None,
    new_columns: Sequence[str] = ASPECT_COLUMNS,
) -> list[Rows | Stream]:
    """The splits to read, checked before anything is; none may have one of the new columns."""
    if isinstance(dataset, (Dataset, IterableDataset)):
        parts = {split_name(dataset): dataset}
    elif isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        parts = dict(dataset)
    else:
        raise ValueError(
            "Labelling takes a Dataset or a DatasetDict, or an IterableDataset or a dict of these; received "
            f"{type(dataset).__name__}."
        )
    selected = list(parts) if splits is None else as_list(splits)
    if missing := [split for split in selected if split not in parts]:
        raise ValueError(f"There is no split {missing[0]!r}: the dataset has {list(parts)}.")
    for split, rows in parts.items():
        check_name(split, "split")
        if isinstance(rows, IterableDataset) and not SPLIT_NAME.fullmatch(split):
            raise ValueError(
                f"The split name {split!r} is none that load_dataset would read back: rename the stream's split, with "
                "letters, digits, underscores and dots."
            )
    sources = []
    for split, rows in parts.items():
        origin = Origin.of(rows, files_from)
        settings = (split, rows, image_column, split in selected, boxes, origin, on_error)
        sources.append(Rows(*settings) if isinstance(rows, Dataset) else Stream(*settings, stream_name))
    for source in sources:
        _check(source.data.features, image_column, boxes, new_columns)
    return sources


def _check(features: Features, image_column: str, boxes: Boxes | None, new_columns: Sequence[str]) -> None:
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
    if boxes is not None:
        boxes.check(features)
    if present := [name for name in new_columns if name in features]:
        of_objects = about_objects(features)
        level = "" if of_objects == (boxes is not None) else f" by {'object' if of_objects else 'image'}"
        has = f"is labelled already{level}" if present[0] in ASPECT_COLUMNS else "has class targets already"
        raise ValueError(
            f"The dataset {has}, it has the columns {present}: "
            f"drop them with dataset.remove_columns({present}) to label it again."
        )

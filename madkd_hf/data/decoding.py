"""Images decoded before anything long or paid begins: in parallel, and each once, whatever dataset it is in."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import datasets
import pyarrow as pa
from datasets import Dataset, IterableDataset
from datasets.table import ConcatenationTable, MemoryMappedTable
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from .checked_images import CheckedImages, key_of, key_of_bytes, key_of_file
from .images import to_rgb
from .origin import STARTS_PROGRAMS, Origin
from .rows import describe_row, row_namer


CHUNK = 128  # images handed to the threads at once
SAVE_EVERY = 5_000  # images that have to be decoded again after a kill
LONGEST = 200  # times that one side may be as long as the other: image processors refuse more, or round to nothing
MOST_PIXELS = 1 << 26  # decoded side by side; a larger image is decoded alone
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
LARGEST_READ = 1 << 26  # bytes of a file that is also known by its content


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be used: its row in the dataset that was checked, its file or place, and why.

    `broken`: whether the image itself is broken or gone; otherwise the machine failed, not the image.
    """

    row: int
    name: str
    reason: str
    broken: bool = True


def check_images(
    dataset: Dataset,
    image_column: str = "image",
    split: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    disable_tqdm: bool = False,
) -> list[Unreadable]:
    """Decode all images, in parallel, and return those that cannot be read, in the order of their rows.

    Which ones are intact is remembered in `cache_dir`, by default `madkd_checked` beside the cached datasets: the same
    images, in whatever dataset, are decoded once. Images on the web are left for whoever reads them.
    """
    feature = dataset.features.get(image_column)
    if not isinstance(feature, datasets.Image):
        raise ValueError(
            f"The column {image_column!r} holds {feature or 'nothing'}, not images: the dataset has "
            f"{dataset.column_names}; name the images with image_column."
        )
    checked, dataset_key = CheckedImages(cache_dir), _dataset_key(dataset, image_column)
    if dataset_key is not None and dataset_key in checked:
        return []
    check = _Check(checked, datasets.Image(mode=feature.mode))
    names = row_namer(dataset, split or str(dataset.split or "train"))
    images = dataset.with_format(None).select_columns(image_column)
    images = images.cast_column(image_column, datasets.Image(decode=False)).with_format("arrow")
    unreadable, n_done = [], 0
    try:
        with (
            ThreadPoolExecutor(count_cores(), "images") as pool,
            warnings.catch_warnings(),
            tqdm(total=len(dataset), desc="looking at images", unit="img", delay=1, disable=disable_tqdm) as bar,
        ):
            warnings.simplefilter("ignore")  # of large images and odd metadata: whoever uses them will hear of it
            for table in images.iter(CHUNK):
                values = list(table[image_column])
                for row, (value, result) in enumerate(zip(values, pool.map(check, values)), n_done):
                    if result is not None:
                        path = value["path"].as_py() if value.is_valid else None
                        unreadable.append(Unreadable(row, names(row, path), *result))
                n_done += len(values)
                bar.update(len(values))
                if len(checked.new) >= SAVE_EVERY:
                    checked.save()
        if dataset_key is not None and not unreadable and check.only_bytes:
            checked.add([dataset_key])
    finally:
        checked.save()
    return unreadable


def check_first(
    stream: IterableDataset, image_column: str, split: str, origin: Origin | None = None, count: int = 16
) -> list[Unreadable]:
    """What cannot be read of the first images of a stream; files that the origin refuses are not read."""
    stored = stream._resolve_features().cast_column(image_column, datasets.Image(decode=False)).with_format("arrow")
    check, unreadable = _Check(CheckedImages(), datasets.Image()), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # see `check_images`
        for row, table in enumerate(itertools.islice(stored.iter(1), count)):
            value = table[image_column][0]
            path = value["path"].as_py() if value.is_valid else None
            refused = origin and path and not value["bytes"].is_valid and origin.refusal(path)
            result = (refused, True) if refused else check(value)
            if result is not None:
                unreadable.append(Unreadable(row, describe_row(path, row, split), *result))
    return unreadable


@dataclass
class _Check:
    """Checks one image: None where it is intact, else the reason and whether the image is to blame."""

    checked: CheckedImages
    feature: datasets.Image
    only_bytes: bool = True

    def __post_init__(self) -> None:
        self.room = Room(MOST_PIXELS)

    def __call__(self, value: pa.StructScalar) -> tuple[str, bool] | None:
        if not value.is_valid:
            return "there is no image", True
        content, path = value["bytes"], value["path"].as_py()
        try:
            if content.is_valid:
                return self._content(content.as_buffer())
            self.only_bytes = False
            if path is None:
                return "there is no image", True
            return None if "://" in path else self._file(path)
        except Exception as error:  # decoders raise whatever they like
            return _reason(error), is_broken(error)

    def _content(self, content: pa.Buffer) -> tuple[str, bool] | None:
        key = key_of_bytes(content, self.feature.mode)
        if key in self.checked:
            return None
        if problem := self._decode(BytesIO(content), len(content)):
            return problem, True
        self.checked.add([key])
        return None

    def _file(self, path: str) -> tuple[str, bool] | None:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            return "it is no file", True
        key = key_of_file(path, facts, self.feature.mode)
        if key in self.checked:
            return None
        with open(path, "rb") as file:
            if problem := self._decode(file, facts.st_size):
                return problem, True
            keys = [key]
            if facts.st_size <= LARGEST_READ:  # a labelled dataset will hold the same bytes
                file.seek(0)
                keys.append(key_of_bytes(file.read(), self.feature.mode))
        self.checked.add(keys)
        return None

    def _decode(self, file: BinaryIO, size: int) -> str | None:
        """What is wrong with an image file, unless the decoder says so; as `to_rgb(Image().decode_example(...))`."""
        if not size:
            return "the file is empty"
        image = opened(file)
        image.draft(None, (1, 1))  # a JPEG in its smallest scale: all its data are read, and damage is found the same
        with self.room.reserved(image.width * image.height):
            image.load()
            if image.getexif().get(ExifTags.Base.Orientation) is not None:
                image = ImageOps.exif_transpose(image)
            to_rgb(image.convert(self.feature.mode) if self.feature.mode else image)
        return None


def opened(file: BinaryIO, formats: Sequence[str] | None = None) -> Image.Image:
    """An image of which the head is read, and no pixels yet.

    Args:
        formats: those that Pillow may try; by default all.

    Raises:
        ValueError: what the file is instead, in a few words.
    """
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        file.seek(0)
        begins = file.read(200).lstrip().lower()
        text = begins.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg"))
        what = "it is a web page or other text, no image" if text else "it is no image that Pillow can read"
        raise ValueError(what) from None
    if image.format in STARTS_PROGRAMS:
        raise ValueError(f"it is {image.format}, which other programs would have to read")
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"it has {image.width} x {image.height} pixels, one side over {LONGEST} times the other")
    return image


class Room:
    """Limits how many pixels are in memory at once; a larger image is decoded alone."""

    def __init__(self, total: int):
        self.total = self.free = total
        self.changed = threading.Condition()

    @contextmanager
    def reserved(self, n_pixels: int) -> Iterator[None]:
        n_pixels = min(n_pixels, self.total)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= n_pixels)
            self.free -= n_pixels
        try:
            yield
        finally:
            with self.changed:
                self.free += n_pixels
                self.changed.notify_all()


def _dataset_key(dataset: Dataset, image_column: str) -> int | None:
    """A key for all images of a dataset that lies in files alone; None where some of it is in memory."""
    table = dataset.data
    blocks = table.blocks if isinstance(table, ConcatenationTable) else [[table]]
    if not all(isinstance(block, MemoryMappedTable) for row in blocks for block in row):
        return None
    facts = []
    for file in dataset.cache_files:
        file_stat = os.stat(file["filename"])
        facts += [os.path.abspath(file["filename"]), file_stat.st_size, file_stat.st_mtime_ns]
    mode = dataset.features[image_column].mode
    return key_of("dataset", dataset._fingerprint, len(dataset), image_column, mode, *facts)


def _reason(error: Exception) -> str:
    if getattr(error, "errno", None) in GONE:
        return "there is no such file"
    return " ".join(str(error).split()) or type(error).__name__


def is_broken(error: Exception) -> bool:
    """Whether an image that could not be read is broken or gone; otherwise the machine failed, not the image."""
    return not isinstance(error, MemoryError) and getattr(error, "errno", None) in (None, *GONE)


def count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Checks of a dataset before anything long or paid begins: unusable images and boxes, classes, room on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict
from PIL import ExifTags, Image

from ..aspects import AspectBank
from ..text import counted, get_logger, terminal
from .boxes import corners
from .columns import LOGITS, answered_rows, rows_with_class, skipped_rows, stored
from .decoding import Unreadable, check_images
from .image_columns import check_image_feature
from .images import load_image
from .objects import Boxes
from .problems import Problems
from .rows import row_names


logger = get_logger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """Rows of a split, as it was loaded, that nothing can be done with: their numbers and their images' names."""

    rows: list[int]
    names: list[str]
    total: int


def find_unusable(
    problems: Problems,
    splits: DatasetDict,
    names: Sequence[str],
    image_column: str,
    on_error: str,
    more: Callable[[Dataset, str], list[Unreadable]] | None = None,
    keep_rows: bool = False,
) -> tuple[dict[str, LeftOut], list[str]]:
    """Which rows of the splits nothing can be done with, and the splits that have a problem.

    With `on_error="skip"` the rows are left out, else they are a problem; rows that the labelling has skipped are left
    out in any case. `more` finds what else can be wrong with rows. With `keep_rows`, those that are left out stay in
    the dataset without answers, so that a split may have no others.
    """
    left_out, doubtful, reports, failed = {}, [], [], []
    for split in names:
        rows = splits[split]
        skipped = skipped_rows(rows)
        bad = problems.step(_unusable, rows, skipped, image_column, split, more) or []
        images = f"{counted(len(rows), 'image')} of split {split!r}"
        if not bad and not skipped:
            continue
        failed += [image for image in bad if not image.broken]
        broken = [image for image in bad if image.broken]
        if broken:
            reports.append(f"{len(broken)} of the {images}: {reasons(broken)}")
        skipped_names = row_names(rows, skipped, image_column, split)
        bad += [Unreadable(*pair, "the labelling could not read it") for pair in zip(skipped, skipped_names)]
        bad.sort(key=lambda image: image.row)
        if broken and on_error == "raise":
            doubtful.append(split)
            continue
        left_out[split] = LeftOut([image.row for image in bad], [image.name for image in bad], len(rows))
        outcome = "No answers for" if keep_rows else "Left out"
        logger.warning("%s %d of the %s: %s.", outcome, len(bad), images, reasons(bad))
        if len(bad) == len(rows) and not keep_rows:
            problems.add(f"None of the {images} can be used: {reasons(bad)}.")
    if reports and on_error == "raise":
        problems.add(
            f"Images cannot be used: {'; '.join(reports)}: repair or remove them, or pass --on_error skip to leave "
            "them out."
        )
    if failed:
        problems.add(
            f"{counted(len(failed), 'image')} cannot be read now: {reasons(failed)}: that says nothing about the "
            "images; see to the disk, the network or the memory, and run the same command again."
        )
    return left_out, doubtful


def _unusable(
    rows: Dataset, skipped: list[int], image_column: str, split: str, more: Callable | None
) -> list[Unreadable]:
    """What cannot be used of the rows, without those that were skipped before."""
    places = np.setdiff1d(np.arange(len(rows)), skipped)
    rows = drop_rows(rows, skipped)
    if isinstance(rows.features[image_column], datasets.Image):
        unusable = check_images(rows, image_column, split)
    else:  # pixels, of which nothing has to be decoded
        check_image_feature(rows.features[image_column], image_column, f"split {split!r}")
        unusable = []
    if more is not None:
        broken = {image.row for image in unusable}
        unusable += [image for image in more(rows, split) if image.row not in broken]
    moved = (Unreadable(int(places[image.row]), image.name, image.reason, image.broken) for image in unusable)
    return sorted(moved, key=lambda image: image.row)


def bad_boxes(rows: Dataset, image_column: str, boxes: Boxes, split: str) -> list[Unreadable]:
    """The images with a box that cannot be, whose answers the labelling leaves empty.

    Where there are columns `width` and `height`, no image is opened for its size.
    """
    has_sizes = {"width", "height"} <= set(rows.features)
    facts = rows.select_columns([*(("width", "height") if has_sizes else (image_column,)), boxes.column])
    is_file = isinstance(rows.features[image_column], datasets.Image)
    facts = facts.cast_column(image_column, datasets.Image(decode=False)) if is_file and not has_sizes else facts
    bad = []
    for index in range(len(facts)):
        try:
            row = facts[index]
            if has_sizes:
                size = row["width"], row["height"]
            else:
                size = upright_size(row[image_column]) if is_file else load_image(row[image_column]).size
            corners(boxes.of(row[boxes.column]), boxes.format, size)
        except Exception as error:  # decoders raise whatever they like
            bad.append((index, str(error).removesuffix(".")))
    names = row_names(rows, [index for index, _ in bad], image_column, split)
    return [Unreadable(index, name, reason) for name, (index, reason) in zip(names, bad)]


def rows_without_class(rows: Dataset, column: str, hides: bool = True) -> list[int]:
    """Rows whose class is not said: null, no class that the column names, and where it `hides` classes -1."""
    feature = rows.features[column]
    values = stored(rows, column).to_pylist()
    if isinstance(feature, ClassLabel):
        known = range(feature.num_classes)
        return [row for row, value in enumerate(values) if value not in known]
    return [row for row, value in enumerate(values) if value is None or (value == -1 and hides)]


def check_all_shown(shown: set[int], classes: Sequence[str]) -> None:
    """Raise ValueError where no image with a class shows some of the classes, which others cannot teach."""
    if missing := [name for index, name in enumerate(classes) if index not in shown]:
        raise ValueError(
            f"No training image with a class shows {listed([repr(name) for name in missing])}: images without a class "
            "cannot teach what a class is; give each class at least one image, or leave it out."
        )


def check_without_class(
    rows: Dataset, labelled: np.ndarray, column: str, classes: Sequence[str], targets: Sequence[str] | None
) -> None:
    """Raise ValueError where a student could not learn from training rows of which some have no class.

    Args:
        labelled: [n] which rows have one, see `columns.rows_with_class`.
        column: of the class indices.
        classes: their names.
        targets: the columns that it learns from beside the classes; None where it needs none.
    """
    if labelled.all():
        return
    if not labelled.any():
        raise ValueError(f"None of the {len(rows)} training images has a class: give some of each class theirs.")
    check_all_shown(set(np.asarray(rows[column][:], dtype=object)[labelled].tolist()), classes)
    if targets is None:
        return
    useless = ~labelled
    for name in set(targets) & set(rows.features):
        useless &= ~answered_rows(rows) if name == LOGITS else stored(rows, name).is_null().to_numpy()
    if useless.any():
        looked = f"nor anything in {' or '.join(targets)}" if targets else "and the student learns classes alone"
        raise ValueError(
            f"{useless.sum()} of the {len(rows)} training images have no class, {looked}: label them with madkd "
            "label, give them their class, or drop them."
        )


def check_scored(rows: Dataset, column: str, name: str) -> None:
    """Raise ValueError where rows to evaluate on have no class: null or -1, as datasets hide it."""
    if not getattr(rows.features[column], "dtype", "").startswith(("int", "uint", "null")):
        return
    if missing := int((~rows_with_class(rows, column)).sum()):
        raise ValueError(
            f"{missing} of the {counted(len(rows), 'image')} of {name} have no class to compare with: leave them out "
            "(dataset.filter), or give them theirs."
        )


def drop_rows(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    """The dataset without these rows; itself where there are none."""
    if not len(rows):
        return dataset
    return dataset.select(np.setdiff1d(np.arange(len(dataset)), np.asarray(rows)))


def upright_size(stored: dict[str, Any]) -> tuple[int, int]:
    """Width and height of a stored image as a viewer shows it; of most files, only the beginning is read."""
    with Image.open(stored["path"] if stored["bytes"] is None else BytesIO(stored["bytes"])) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation) in range(5, 9)
        return image.size[::-1] if turned else image.size


def loaded_images(rows: Dataset, image_column: str, split: str) -> list[Image.Image]:
    """All images of a few rows, as teacher and student see them.

    Raises:
        ValueError: one cannot be read, or Pillow would start another program for it; it is named.
    """
    bad = check_images(rows, image_column, split) if isinstance(rows.features[image_column], datasets.Image) else []
    if bad:
        raise ValueError(f"Images cannot be read: {reasons(bad)}: repair or remove them, or pass another --split.")
    return [load_image(image, image_column) for image in rows[image_column]]


def reasons(bad: Sequence[Unreadable]) -> str:
    """The first of them by name, each with what is wrong."""
    return listed([terminal(image.name) for image in bad], [image.reason for image in bad])


def listed(names: Sequence[str], reasons: Sequence[str] = (), most: int = 5) -> str:
    """The first of the names, with the reason of each where there are some: `a/03.jpg (the file is empty), ...`"""
    some = [f"{name} ({reason})" for name, reason in zip(names, reasons)] if reasons else names
    return ", ".join(some[:most]) + (", ..." if len(names) > most else "")


def encoded_bytes(dataset: Dataset, image_column: str) -> int:
    """How many bytes the files of all images take, wherever they lie; those on the web are not known."""
    images = dataset.with_format(None).select_columns(image_column)
    if not isinstance(dataset.features[image_column], datasets.Image):
        return images.data.nbytes
    images = images.cast_column(image_column, datasets.Image(decode=False)).with_format("arrow")
    total = 0
    for table in images.iter(1000):
        contents, paths = (pc.struct_field(table[image_column], name) for name in ("bytes", "path"))
        total += pc.sum(pc.binary_length(contents)).as_py() or 0
        for path in paths.filter(contents.is_null()).to_pylist():
            with suppress(OSError, TypeError, ValueError):
                total += os.stat(path).st_size
    return total


def check_labelled_room(
    splits: DatasetDict, image_column: str, bank: AspectBank | None, folder: str, times: int = 1
) -> None:
    """Raise ValueError where the disk has no room for these rows with their images and answers, so many times."""
    answers = 8 * len(bank or ()) * sum(map(len, splits.values()))
    needed = times * (answers + sum(encoded_bytes(rows, image_column) for rows in splits.values()))
    path = Path(folder).expanduser().absolute()
    there = next(parent for parent in (path, *path.parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(
            f"The labelled dataset takes about {needed / 1e9:.1f} GB and {there} has {free / 1e9:.1f} GB free: make "
            "room there, or pass another folder."
        )

"""A column of images as it may come: image files, bytes, or text that names files of the dataset's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value

from .columns import stored
from .images import remedy_for
from .walk import image_suffixes


def as_images(rows: Dataset | IterableDataset, column: str, folder: Path | None) -> Dataset | IterableDataset:
    """The rows with that column as images, where it holds bytes, or paths of files in the dataset's own folder."""
    feature = (rows.features or {}).get(column)
    if isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"):
        return rows.cast_column(column, Image())
    is_text = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    if not is_text or folder is None or isinstance(rows, IterableDataset):
        return rows
    names = stored(rows, column).to_pylist()
    if not any(name and Path(name).suffix.lower() in image_suffixes() for name in names):
        return rows
    root = folder.resolve()
    paths = [None if name is None else _inside(name, root, column, row) for row, name in enumerate(names)]
    cells = [path and {"bytes": None, "path": path} for path in paths]
    order = rows.column_names
    return rows.remove_columns(column).add_column(column, cells, feature=Image()).select_columns(order)


def check_image_column(features: Features | None, column: str) -> None:
    """Refuse, in the words of a command line, a column that is not there, or holds words or numbers."""
    feature = (features or {}).get(column)
    if features is None or (feature is not None and not isinstance(feature, (Value, ClassLabel))):
        return  # pixels may be images, too
    image_columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    remedy = f"pass --image_column {image_columns[0]}" if len(image_columns) == 1 else "pass --image_column"
    if not image_columns:
        remedy = "none of them holds images; put image files into a folder for each class, and pass that"
    if column not in features:
        raise ValueError(f"There is no column {column!r}: the dataset has {list(features)}; {remedy}.")
    raise ValueError(f"The column {column!r} holds {feature}, not images: {remedy}.")


def check_image_feature(feature: Any, column: str, name: str) -> None:
    """Refuse a column that holds no images, by its feature; the message calls the dataset `name`."""
    if isinstance(feature, (Value, ClassLabel)):
        value = "" if getattr(feature, "dtype", "").endswith("string") else 0
        raise ValueError(f"The column {column!r} of {name} holds {feature.dtype}: {remedy_for(value, column)}.")


def _inside(name: str, root: Path, column: str, row: int) -> str:
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise ValueError(
            f"Row {row} names the image {name!r} in column {column!r}, and there is no such file in {root}: put the "
            "images into the dataset's folder, or pass another --image_column."
        )
    return str(path)

"""Folders of images whose labels, boxes or captions stand in metadata.csv, .jsonl or .parquet, as on the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
from datasets import ClassLabel, DatasetDict, Features, Image

from .folders import Part, classes_of, from_columns, image_column, names_of_classes, split_parts
from .walk import File, Files, composed


FILE_NAME = "file_name"  # the column that names the image of a row
LISTS = "file_names"  # several images a row: such a folder is left to `load_dataset`


def tables_of(folder: Path, files: Files) -> dict[File, pa.Table]:
    """The metadata files that name images, read; the others are left out of the dataset."""
    tables = {}
    for file in files.metadata:
        table = _read(Path(folder, *file.parts))
        if any(name.endswith((FILE_NAME, LISTS)) for name in table.column_names):
            tables[file] = table
        else:
            files.left_out[f"metadata files without a column {FILE_NAME}"].append(file.name)
    return tables


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix == ".csv":
            return pa.Table.from_pandas(pd.read_csv(path), preserve_index=False)
        if path.suffix == ".parquet":
            return pq.read_table(path)
        return pyarrow.json.read_json(path)
    except (ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"Cannot read {path} ({reason}): mend it, or move it out of the folder.") from error


def read_with_metadata(folder: Path, files: Files, tables: dict[File, pa.Table]) -> DatasetDict:
    """The rows of the metadata files, each with its image; images that none of them names are left out.

    A column `label` is that of the files; where they have none, the class folders are the labels, if there are any.
    """
    images = {tuple(map(composed, image.parts)): image for image in files.images}
    columns = {FILE_NAME}.union(*(table.column_names for table in tables.values()))
    image_fields = [name for name in columns if name.endswith(FILE_NAME)]
    rows: list[dict[str, Any]] = []
    for file, table in tables.items():
        for number, row in enumerate(table.to_pylist(), 1):
            row_images = {name: _image(folder, file, number, row.get(name), images) for name in image_fields}
            if row_images[FILE_NAME] is None:
                raise ValueError(f"Row {number} of {folder / file.name} has no {FILE_NAME}: complete it, or drop it.")
            rows.append(row | row_images)
    used = {row[FILE_NAME] for row in rows} | {row[name] for row in rows for name in image_fields if row[name]}
    if unused := [image.name for image in files.images if image not in used]:
        files.left_out["images that the metadata does not name"] += unused
    parts = split_parts(folder, [row[FILE_NAME] for row in rows])
    schema = pa.unify_schemas([table.schema for table in tables.values()], promote_options="permissive")
    labels = {} if "label" in columns else _labels(folder, parts)
    split_of = {image: split for split, part in parts.items() for image in part.images}
    grouped: dict[str, list[dict[str, Any]]] = {split: [] for split in parts}
    for row in rows:
        grouped[split_of[row[FILE_NAME]]].append(row)
    return DatasetDict({split: _split(folder, split, rows, schema, labels) for split, rows in grouped.items()})


def _image(folder: Path, file: File, number: int, name: Any, images: dict[tuple[str, ...], File]) -> File | None:
    """The image that a row names, beside or below its metadata file."""
    if name is None:
        return None
    parts = os.path.normpath(os.path.join(*file.parts[:-1], str(name))).split(os.sep)
    if (image := images.get(tuple(map(composed, parts)))) is None:
        raise ValueError(
            f"Row {number} of {folder / file.name} names {str(name)!r}, and there is no such image in {folder}: bring "
            "it back, or drop that row."
        )
    return image


def _labels(folder: Path, parts: dict[str, Part]) -> dict[str, Any]:
    """image -> class by its folder, and the names of the classes; nothing where folders tell no classes."""
    try:
        classes = {split: classes_of(folder, part) for split, part in parts.items()}
        names = names_of_classes(folder, classes)
    except ValueError:  # the metadata is what counts here
        return {}
    if names is None or len(names) < 2:
        return {}
    class_of = {image: name for split, part in parts.items() for image, name in zip(part.images, classes[split] or ())}
    return {"names": names, "of": class_of}


def _split(folder: Path, split: str, rows: list[dict[str, Any]], schema: pa.Schema, labels: dict[str, Any]) -> Any:
    root, features, columns = folder.absolute(), Features(), {}
    stored = Features.from_arrow_schema(schema)
    for name in [FILE_NAME, *(name for name in stored if name != FILE_NAME)]:
        values = [row.get(name) for row in rows]
        if name.endswith(FILE_NAME):
            name = name.removesuffix(FILE_NAME).rstrip("_") or "image"
            columns[name] = image_column(value and root.joinpath(*value.parts) for value in values)
            features[name] = Image()
        else:
            columns[name], features[name] = pa.array(values, schema.field(name).type), stored[name]
    if labels:
        features["label"] = ClassLabel(names=labels["names"])
        names = (labels["of"].get(row[FILE_NAME]) for row in rows)
        columns["label"] = pa.array([None if n is None else labels["names"].index(n) for n in names], pa.int64())
    return from_columns(columns, features, split, [row[FILE_NAME] for row in rows])

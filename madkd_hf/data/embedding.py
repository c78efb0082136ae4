"""Files that rows name, put inside the rows: read under the rules of `Origin`, and of images alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features
from datasets.features.features import require_storage_embed

from ..text import terminal
from .checked_images import CheckedImages
from .origin import Origin, RefusedFileError
from .rows import row_number


CHUNK = 1000
REMEDY = "put the image itself into the dataset, or drop the row"
SKIP = "put the image itself into the dataset, drop the row, or leave it empty by on_error='skip' (--on_error skip)"
OTHER_MEDIA = "the column holds no images, and of files only images are read"


def embed_files(
    table: pa.Table, features: Features, origin: Origin, name_of: Callable[[int], str], on_error: str | None = None
) -> pa.Table:
    """Rows with the bytes of all files that they name, read as `origin` allows; of paths, the last part stays.

    What must not be read, or is not there, becomes null where `on_error` is "skip"; else it raises ValueError with
    what `name_of` calls its row. Without `on_error`, the caller has no such option.
    """
    for name, feature in _media_columns(features).items():
        if not any(_has_files_or_folders(chunk, feature) for chunk in table[name].chunks):
            continue  # as it is in the file: nothing is copied
        values, remedy = [], SKIP if on_error else REMEDY
        for row, value in enumerate(table[name].to_pylist()):
            try:
                values.append(_changed(value, feature, partial(_filled, origin, on_error)))
            except RefusedFileError as error:
                path, reason = error.args
                raise ValueError(_refusal(name_of(row), name, path, reason, remedy)) from error
        table = _with_column(table, name, values)
    return table


def check_own_files(
    rows: Dataset, origin: Origin, split: str, on_error: str = "raise", undecoded: Collection[str] = ()
) -> Dataset:
    """The rows, after a check that they name only image files, and only those that their origin allows.

    With `on_error="skip"`, what must not be read becomes null; of the columns `undecoded`, which somebody else will
    decode, only the names are looked at.
    """
    columns = _media_columns(rows.features)
    chunks = ((chunk, feature) for name, feature in columns.items() for chunk in rows.data.column(name).chunks)
    if not any(True for chunk, feature in chunks for _ in _named_files(chunk, feature)):
        return rows
    checked, start, refused = CheckedImages(), 0, []
    with ThreadPoolExecutor(thread_name_prefix="images") as pool:
        for table in rows.with_format("arrow").select_columns(list(columns)).iter(CHUNK):
            files = [
                (start + row, name, path, is_image)
                for name, feature in columns.items()
                for row, path, is_image in _named_files(table[name].combine_chunks(), feature)
            ]
            reasons = pool.map(lambda file: _problem(origin, *file[1:], undecoded, checked), files)
            refused += [(*file[:3], reason) for file, reason in zip(files, reasons) if reason]
            start += len(table)
    if not refused:
        return rows
    if on_error != "skip":
        row, column, path, reason = refused[0]
        row = row_number(rows, row)
        more = f" {len(refused) - 1} more are like it." if len(refused) > 1 else ""
        raise ValueError(_refusal(f"row {row} of split {split!r}", column, path, reason, SKIP) + more)
    return without_files(rows, {path for _, _, path, _ in refused})


def check_files_of_splits(
    splits: Mapping[str, Any], folder: str | os.PathLike | None, on_error: str = "raise"
) -> dict[str, Any]:
    """The splits, after a check that no row names a file outside the dataset, which may be of a `folder`."""
    checked = dict(splits)
    for split, rows in splits.items():
        if isinstance(rows, Dataset):
            origin = Origin.of(rows, folder)
            checked[split] = check_own_files(rows, origin, split, on_error, list(rows.features))
    return checked


def _media_columns(features: Features) -> dict[str, Any]:
    """The columns with images, sounds, videos or documents somewhere in them."""
    return {name: feature for name, feature in features.items() if require_storage_embed(feature)}


def _refusal(row: str, column: str, path: str, reason: str, remedy: str) -> str:
    """One sentence on a file that is not read."""
    return (
        f"The column {column!r} in {terminal(row)} names the file {terminal(path)!r}, which is not read ({reason}): "
        f"{remedy}."
    )


def _named_files(array: pa.Array, feature: Any, rows: np.ndarray | None = None) -> Iterator[tuple[int, str, bool]]:
    """(row, path, whether it is an image) of every cell with a path and no bytes; `rows` are those of the cells."""
    rows = np.arange(len(array)) if rows is None else rows
    if not require_storage_embed(feature):
        return
    if hasattr(feature, "embed_storage"):
        only = pc.and_(pc.struct_field(array, "bytes").is_null(), pc.struct_field(array, "path").is_valid())
        for place in pc.indices_nonzero(only).to_pylist():
            yield int(rows[place]), array[place]["path"].as_py(), isinstance(feature, datasets.Image)
    elif isinstance(feature, dict):
        for name, part in feature.items():
            yield from _named_files(pc.struct_field(array, name), part, rows)
    else:
        parents = pc.list_parent_indices(array).to_numpy()
        yield from _named_files(pc.list_flatten(array), _list_item(feature), rows[parents])


def without_files(rows: Dataset, paths: Collection[str]) -> Dataset:
    """The rows with null in place of files with these paths."""

    def cleared(cell: dict[str, Any], is_image: bool) -> dict | None:
        return None if cell["bytes"] is None and cell["path"] in paths else cell

    def clear(table: pa.Table) -> pa.Table:
        for name, feature in _media_columns(rows.features).items():
            values = [_changed(value, feature, cleared) for value in table[name].to_pylist()]
            table = _with_column(table, name, values)
        return table

    digest = datasets.fingerprint.Hasher.hash([rows._fingerprint, sorted(paths)])
    return (
        rows.with_format("arrow")
        .map(clear, batched=True, features=rows.features, new_fingerprint=digest)
        .with_format(**rows.format)
    )


def _with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.column_names.index(name), field, pa.array(values, field.type))


def _changed(value: Any, feature: Any, change: Callable[[dict[str, Any], bool], dict | None]) -> Any:
    """A value as Python, after a change of its cells with "bytes" and "path"; the change is told which are images."""
    if value is None or not require_storage_embed(feature):
        return value
    if isinstance(feature, dict):
        return {name: _changed(part, feature[name], change) for name, part in value.items()}
    if not hasattr(feature, "embed_storage"):
        return [_changed(part, _list_item(feature), change) for part in value]
    return change(value, isinstance(feature, datasets.Image))


def _filled(origin: Origin, on_error: str | None, cell: dict[str, Any], is_image: bool) -> dict[str, Any] | None:
    """A cell with the content of its file; a RefusedFileError has the path and the reason."""
    content, path = cell["bytes"], cell["path"]
    if content is None and path is not None:
        try:
            if not is_image:
                raise RefusedFileError(OTHER_MEDIA)
            content = origin.read(path)
        except (RefusedFileError, FileNotFoundError) as error:
            if on_error == "skip":
                return None
            missing = isinstance(error, FileNotFoundError)
            raise RefusedFileError(path, "there is no such file" if missing else str(error)) from error
    return {"bytes": content, "path": os.path.basename(path) if _has_folder(path) else path}


def _problem(
    origin: Origin, column: str, path: str, is_image: bool, undecoded: Collection[str], checked: CheckedImages
) -> str | None:
    if not is_image:
        return OTHER_MEDIA
    if reason := origin.refusal(path):
        return reason
    try:
        if column not in undecoded and not checked.has_file(path):
            origin.read(path)
    except RefusedFileError as error:
        return str(error)
    except FileNotFoundError:  # it harms nobody; whoever needs the image will say so
        pass
    except OSError as error:
        raise OSError(
            f"The file {terminal(path)} of column {column!r} cannot be read now ({error.strerror or error}): see to "
            "it, and run the same command again."
        ) from error
    return None


def _has_files_or_folders(column: pa.Array, feature: Any) -> bool:
    """Whether rows name files, or beside their bytes the folders of somebody's machine."""
    if next(_named_files(column, feature), None) is not None:
        return True
    return hasattr(feature, "embed_storage") and any(map(_has_folder, pc.struct_field(column, "path").to_pylist()))


def _has_folder(path: str | None) -> bool:
    return path is not None and "://" not in path and os.path.basename(path) != path


def _list_item(feature: Any) -> Any:
    """What a list holds; None for other things."""
    if isinstance(feature, (list, tuple)):
        return feature[0]
    return feature.feature if isinstance(feature, (datasets.List, datasets.LargeList)) else None

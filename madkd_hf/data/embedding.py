"""Files that rows name, put inside the rows: read under the rules of `Origin`, and of images alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features

from ..text import terminal
from .checked_images import CheckedImages
from .origin import Origin, RefusedFileError, datasets_of
from .rows import row_number


CHUNK = 1000
OTHER_MEDIA = "the column holds no images, and of files only images are read"


def media_columns(features: Features) -> dict[str, Any]:
    """The columns with images, sounds, videos or documents somewhere in them."""
    return {name: feature for name, feature in features.items() if _has_media(feature)}


def embedded(column: pa.ChunkedArray, feature: Any, read: Callable[[str, bool], bytes | None]) -> pa.ChunkedArray:
    """A column with the bytes of all files that its rows name, and of their paths the last part alone.

    `read` gives the content of a file by its path, and by whether an image is expected; None makes the cell null.
    """
    return pa.chunked_array([_embedded(chunk, feature, read) for chunk in column.chunks], column.type)


def read_image(origin: Origin, path: str, is_image: bool = True) -> bytes:
    """For `embedded`: the content of an image that the origin allows; raises as `Origin.read`."""
    if not is_image:
        raise RefusedFileError(OTHER_MEDIA)
    return origin.read(path)


def check_own_files(
    rows: Dataset, origin: Origin, split: str, on_error: str = "raise", undecoded: Collection[str] = ()
) -> Dataset:
    """The rows, after a check that they name only image files, and only those that their origin allows.

    With `on_error="skip"`, what must not be read becomes null; of the columns `undecoded`, which somebody else will
    decode, only the names are looked at.
    """
    columns = media_columns(rows.features)
    if not columns or not any(_names_files(rows.data, columns)):
        return rows
    checked, start, refused = CheckedImages(), 0, []
    with ThreadPoolExecutor(thread_name_prefix="images") as pool:
        for table in _stored(rows, columns).iter(CHUNK):
            files = [
                (start + row, name, path, is_image)
                for name, feature in columns.items()
                for row, path, is_image in named_files(table[name].combine_chunks(), feature)
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
        raise ValueError(refusal(f"row {row} of split {split!r}", column, path, reason) + more)
    return without_files(rows, {path for _, _, path, _ in refused})


def check_files_of_splits(
    splits: Mapping[str, Any], folder: str | os.PathLike | None, on_error: str = "raise"
) -> dict[str, Any]:
    """The splits, after a check that no row names a file outside the dataset, which may be of a `folder`."""
    checked = dict(splits)
    for split, rows in splits.items():
        if isinstance(rows, Dataset):
            origin = folder_origin(rows, folder) or Origin.of(rows)
            checked[split] = check_own_files(rows, origin, split, on_error, list(rows.features))
    return checked


def folder_origin(rows: Any, folder: str | os.PathLike | None) -> Origin | None:
    """The origin of rows that were loaded from a folder; None where we listed its images: the user's own names."""
    if folder is None:
        return None
    saved = any((Path(folder) / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
    listed = [part for part in datasets_of(rows) if isinstance(part, Dataset)]
    own_rows = listed and all(not part.cache_files and part.info.builder_name is None for part in listed)
    return None if own_rows and not saved else Origin.of_folder(folder)


def refusal(row: str, column: str, path: str, reason: str) -> str:
    """One sentence on a file that is not read."""
    return (
        f"The column {column!r} in {terminal(row)} names the file {terminal(path)!r}, which is not read ({reason}): "
        "put the image itself into the dataset, drop the row, or leave it empty by on_error='skip' (--on_error skip)."
    )


def named_files(array: pa.Array, feature: Any) -> Iterator[tuple[int, str, bool]]:
    """(row, path, whether it is an image) of every cell that has a path and no bytes."""
    rows = np.arange(len(array))
    yield from _walk(array, feature, rows)


def _walk(array: pa.Array, feature: Any, rows: np.ndarray) -> Iterator[tuple[int, str, bool]]:
    if not _has_media(feature):
        return
    if hasattr(feature, "embed_storage"):
        array = _cells(array)
        only = pc.and_(pc.struct_field(array, "bytes").is_null(), pc.struct_field(array, "path").is_valid())
        for place in pc.indices_nonzero(only).to_pylist():
            yield int(rows[place]), array[place]["path"].as_py(), isinstance(feature, datasets.Image)
    elif isinstance(feature, dict):
        for name, part in feature.items():
            yield from _walk(pc.struct_field(array, name), part, rows)
    else:
        parents = pc.list_parent_indices(array).to_numpy()
        yield from _walk(pc.list_flatten(array), _list_item(feature), rows[parents])


def _embedded(array: pa.Array, feature: Any, read: Callable[[str, bool], bytes | None]) -> pa.Array:
    if next(named_files(array, feature), None) is None and not hasattr(feature, "embed_storage"):
        return array
    if not hasattr(feature, "embed_storage"):
        return pa.array([_filled(value, feature, read) for value in array.to_pylist()], array.type)
    cells = _cells(array)
    paths = pc.struct_field(cells, "path").to_pylist()
    only = pc.struct_field(cells, "bytes").is_null().to_pylist()
    if not any(lacks and path is not None for lacks, path in zip(only, paths)) and not any(map(_has_folder, paths)):
        return array  # as it is in the file: nothing is copied
    filled = [_filled(value, feature, read) for value in cells.to_pylist()]
    return pa.array(filled, array.type if pa.types.is_struct(array.type) else cells.type)


def _filled(value: Any, feature: Any, read: Callable[[str, bool], bytes | None]) -> Any:
    """A value as Python with the bytes of its files."""
    if value is None or not _has_media(feature):
        return value
    if isinstance(feature, dict):
        return {name: _filled(part, feature[name], read) for name, part in value.items()}
    if not hasattr(feature, "embed_storage"):
        return [_filled(part, _list_item(feature), read) for part in value]
    content, path = value["bytes"], value["path"]
    if content is None and path is not None:
        content = read(path, isinstance(feature, datasets.Image))
        if content is None:
            return None
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


def without_files(rows: Dataset, paths: Collection[str]) -> Dataset:
    """The rows with null in place of files with these paths."""
    columns = media_columns(rows.features)

    def clear(table: pa.Table) -> pa.Table:
        for name, feature in columns.items():
            values = [_cleared(value, feature, paths) for value in table[name].to_pylist()]
            place = table.column_names.index(name)
            table = table.set_column(
                place, table.schema.field(place), pa.array(values, table.schema.field(place).type)
            )
        return table

    digest = datasets.fingerprint.Hasher.hash([rows._fingerprint, sorted(paths)])
    cleared = rows.with_format("arrow").map(clear, batched=True, features=rows.features, new_fingerprint=digest)
    return cleared.with_format(**rows.format)


def _cleared(value: Any, feature: Any, refused: Collection[str]) -> Any:
    if value is None or not _has_media(feature):
        return value
    if isinstance(feature, dict):
        return {name: _cleared(part, feature[name], refused) for name, part in value.items()}
    if not hasattr(feature, "embed_storage"):
        return [_cleared(part, _list_item(feature), refused) for part in value]
    return None if value["bytes"] is None and value["path"] in refused else value


def _names_files(table: Any, columns: Mapping[str, Any]) -> Iterator[bool]:
    """Chunk by chunk, whether a row of it names a file."""
    for name, feature in columns.items():
        for chunk in table.column(name).chunks:
            yield next(named_files(chunk, feature), None) is not None


def _stored(rows: Dataset, columns: Mapping[str, Any]) -> Dataset:
    """Those columns as arrow tables, nothing decoded."""
    return rows.with_format("arrow").select_columns(list(columns))


def _cells(array: pa.Array) -> pa.StructArray:
    """Bytes and path of each value; a column may hold the paths or the bytes alone."""
    if pa.types.is_struct(array.type):
        return array
    key = "path" if pa.types.is_string(array.type) or pa.types.is_large_string(array.type) else "bytes"
    nothing = pa.nulls(len(array), pa.binary() if key == "path" else pa.string())
    cells = {key: array, "path" if key == "bytes" else "bytes": nothing}
    return pa.StructArray.from_arrays([cells["bytes"], cells["path"]], ["bytes", "path"], mask=array.is_null())


def _has_folder(path: str | None) -> bool:
    return path is not None and "://" not in path and os.path.basename(path) != path


def _has_media(feature: Any) -> bool:
    if hasattr(feature, "embed_storage"):
        return True
    if isinstance(feature, dict):
        return any(map(_has_media, feature.values()))
    item = _list_item(feature)
    return item is not None and _has_media(item)


def _list_item(feature: Any) -> Any:
    """What a list holds; None for other things."""
    if isinstance(feature, (list, tuple)):
        return feature[0]
    return feature.feature if isinstance(feature, (datasets.List, datasets.LargeList)) else None

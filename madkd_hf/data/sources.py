"""Load a dataset as a user names it, and say what is in it and what was left out."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from ..files import check_files, check_name, read_json
from ..files.seals import is_whole
from ..text import one_line
from . import limits, summary
from .folders import read_folder
from .image_columns import as_images
from .metadata import FILE_NAME, read_with_metadata, tables_of
from .names import dataset_commit
from .walk import walk


INDEX, STREAMED = "dataset_dict.json", "manifest.json"
REMEDY = "run the command that saved the dataset again, such as `madkd label`"

Splits = DatasetDict | IterableDatasetDict


@dataclass
class Loaded:
    """A dataset: split -> rows or stream, reason -> files left out, and a summary of a few lines for its owner."""

    splits: Splits
    left_out: dict[str, list[str]]
    summary: str


def load(
    name: str,
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    limit: int | None = None,
    image_column: str = "image",
    label_column: str = "label",
    modules: Iterable[Path] = (),
) -> Loaded:
    """The dataset of this name.

    Args:
        name: a folder (of images, written by save_to_disk, or with Parquet, CSV, ... files), a dataset id of the Hub,
            or module:function.
        config, revision: of a dataset of the Hub.
        streaming: read it as a stream; what lies here gives the same rows as without.
        limit: keep this many rows of each split, see `limits.limited`, drawn over the classes in `label_column`.
        image_column: of text, it holds paths in the dataset's own folder and becomes images.
        modules: folders beside the working directory where module:function is looked for.
    """
    if not name:
        raise ValueError("No dataset given: pass --dataset with a Hub id, a folder, or module:function.")
    if limit is not None and limit < 0:
        raise ValueError(f"--limit {limit} keeps no rows: pass the number of rows to keep of each split.")
    path = Path(name).expanduser()
    left_out: dict[str, list[str]] = {}
    if path.exists():
        loaded = _local(path, config, streaming, left_out)
    elif re.fullmatch(r"[\w.]+:\w+", name):
        loaded = _call(name, modules)
    else:
        options = {"revision": revision or dataset_commit(name, revision), "streaming": streaming}
        loaded = _load(name, datasets.load_dataset, name, config, **options)
    splits = _checked(name, loaded, streaming)
    splits = {split: as_images(rows, image_column, path if path.is_dir() else None) for split, rows in splits.items()}
    notes = _notes(splits, left_out) + limits.notes(splits, limit, label_column)
    splits = {split: limits.limited(rows, limit, label_column) for split, rows in splits.items()}
    lines = summary.lines(name, splits, label_column, left_out, notes)
    if streaming:
        splits = {split: _stream(rows) for split, rows in splits.items()}
    return Loaded((IterableDatasetDict if streaming else DatasetDict)(splits), left_out, "\n".join(lines))


def _local(path: Path, config: str | None, streaming: bool, left_out: dict[str, list[str]]) -> Splits | Dataset:
    if not path.is_dir():
        raise ValueError(f"{path} is a file: pass the folder that holds the dataset; an archive has to be unpacked.")
    check_saved(path)
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return _load(path, datasets.load_from_disk, path)
    if "::" in str(path.absolute()):
        raise ValueError(
            f"The path {path.absolute()} holds ::, which datasets takes for an archive: rename that folder."
        )
    files = walk(path)
    of_hub = _is_hub_repo(path)
    parquet = [file for file in files.tables if file.parts[-1].endswith((".parquet", ".PARQUET"))]
    if files.images and parquet and not of_hub:
        raise ValueError(
            f"{path} holds {len(files.images)} images and {len(parquet)} Parquet files ({parquet[0].name}): "
            "either can be the dataset; move the others elsewhere."
        )
    if of_hub or not (files.images or files.undecodable):
        if not files.tables and not files.images:
            raise ValueError(f"There is no image in {path}{_others(files.left_out)}: pass the folder that has them.")
        return _load(path, datasets.load_dataset, str(path), config, streaming=streaming)
    if not files.images:
        raise ValueError(f"There is no image in {path} that can be read{_others(files.left_out)}.")
    if config is not None:
        raise ValueError(f"--dataset_config {one_line(config, 60)}: a folder of images has none; leave it out.")
    tables = tables_of(path, files)
    if tables and not all(FILE_NAME in table.column_names for table in tables.values()):
        return _load(path, datasets.load_dataset, "imagefolder", data_dir=str(path), streaming=streaming)
    splits = read_with_metadata(path, files, tables) if tables else read_folder(path, files)
    left_out |= files.left_out
    return splits


def check_saved(folder: Path) -> None:
    """See that a dataset, written by `save_to_disk` or by the labelling of a stream, is what was written."""
    _check_streamed(folder)
    if not any((folder / name).is_file() for name in (INDEX, "dataset_info.json", "state.json")):
        return
    parts = [folder]
    if (folder / INDEX).is_file():
        splits = read_json(folder / INDEX, "list of the splits of a dataset", REMEDY).get("splits")
        if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
            raise ValueError(f"{folder / INDEX} is damaged, it lists no splits of a dataset: {REMEDY}.")
        parts = [folder / split for split in splits]
    for part in parts:
        check_files(part, REMEDY)
        for name in ("state.json", "dataset_info.json"):
            read_json(part / name, "part of a saved dataset", REMEDY)


def _check_streamed(folder: Path) -> None:
    """The Parquet files that the labelling of a stream left; those of others have no checksum."""
    manifest = folder / STREAMED
    try:
        ours = manifest.is_file() and {"checksum", "shard_size", "splits"} <= set(read_json(manifest, "manifest", ""))
    except (OSError, ValueError):  # nothing that we need to load the files
        ours = False
    for path in sorted(folder.glob("data/*-[0-9][0-9][0-9][0-9][0-9].parquet")):
        intact = is_whole(path)
        if intact is False or (ours and intact is None):
            raise ValueError(f"{path} is damaged (it does not match its checksum): {REMEDY}.")


def _notes(splits: Mapping[str, Dataset | IterableDataset], left_out: Mapping[str, list[str]]) -> list[str]:
    """Where folders tell no classes, and a table beside the images may."""
    tables = [name for kind in (".csv", ".tsv", ".json", ".jsonl") for name in left_out.get(f"{kind} files", [])]
    features = (rows.features.get("label") for rows in splits.values())
    count = max((feature.num_classes for feature in features if isinstance(feature, ClassLabel)), default=0)
    if count > 1 or not tables:
        return []
    return [
        f"The folders tell {'one class' if count else 'no classes'} and {one_line(tables[0], 60)} is not read: if it "
        "has the labels, name it metadata.csv (or .jsonl), with the columns file_name and label."
    ]


def _others(left_out: dict[str, list[str]]) -> str:
    reasons = summary.left_out_lines(left_out)
    return f", only {'; '.join(reasons)}" if reasons else ", it is empty"


def _is_hub_repo(path: Path) -> bool:
    """Whether a folder is a Hub repo: its card lists data files, or they lie where `push_to_hub` puts them."""
    if any((path / "data").glob("*.parquet")):
        return True
    card = path / "README.md"
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8", errors="replace")
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        about = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return False
    return isinstance(about, dict) and bool(about.get("configs"))


def _load(name: str | Path, read, *args, **options) -> Splits | Dataset:
    """What `read` returns; its errors become one sentence that names the options of a command line."""
    try:
        return read(*args, **options)
    except IndexError as error:  # datasets writes a split without rows, and cannot read it back
        raise ValueError(f"The dataset {name} has a split without rows, which cannot be read: remove it.") from error
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowException) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"Cannot read the dataset {name} ({reason}): look at its files.") from error
    except ValueError as error:
        text = " ".join(str(error).split())
        if match := re.search(r"Config name is missing.*?available configs: \[(.*?)\]", text):
            raise ValueError(
                f"{name} has several configurations: pass --dataset_config, one of {match[1]}."
            ) from error
        if match := re.search(r"BuilderConfig '?(.*?)'? not found. Available: \[(.*?)\]", text):
            raise ValueError(
                f"{name} has no configuration {match[1]!r}: pass --dataset_config, one of {match[2]}."
            ) from error
        raise


def _call(name: str, modules: Iterable[Path]) -> Splits | Dataset:
    module_name, function_name = name.split(":", 1)
    for folder in (Path.cwd(), *modules):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"Cannot find {name!r} ({error}): expected module:function that returns a dataset."
        ) from error
    return function()


def _checked(name: str, loaded: object, streaming: bool) -> dict[str, Dataset | IterableDataset]:
    if isinstance(loaded, (Dataset, IterableDataset)):
        loaded = {"train": loaded}
    elif not isinstance(loaded, (DatasetDict, IterableDatasetDict)):
        raise ValueError(f"{name} gives {type(loaded).__name__}: expected a Dataset or a DatasetDict.")
    if not streaming and any(isinstance(rows, IterableDataset) for rows in loaded.values()):
        raise ValueError("The dataset is a stream, and this needs rows that stay: materialize it first.")
    return {check_name(str(split), "split"): rows for split, rows in loaded.items()}


def _stream(rows: Dataset | IterableDataset) -> IterableDataset:
    if isinstance(rows, IterableDataset):
        return rows
    if len(rows):
        return rows.to_iterable_dataset()
    schema = rows.features.arrow_schema  # an empty dataset cannot become a stream
    one_row = Dataset(pa.table({field.name: pa.nulls(1, field.type) for field in schema}, schema=schema))
    return one_row.to_iterable_dataset().take(0)

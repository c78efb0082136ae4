"""Datasets that a command saved, looked at before they are loaded: damaged Arrow files can end a process silently."""

from __future__ import annotations

from pathlib import Path

from ..files import check_files, read_json
from ..files.seals import is_whole


INDEX, STREAMED = "dataset_dict.json", "manifest.json"
REMEDY = "run the command that saved the dataset again, such as `madkd label`"


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
    except ValueError:  # nothing that we need to load the files
        ours = False
    for path in sorted(folder.glob("data/*-[0-9][0-9][0-9][0-9][0-9].parquet")):
        intact = is_whole(path)
        if intact is False or (ours and intact is None):
            raise ValueError(f"{path} is damaged (it does not match its checksum): {REMEDY}.")

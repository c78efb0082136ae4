"""The map job that writes a teacher's answers into dataset columns."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher
from PIL.Image import Image
from tqdm.auto import tqdm

from .aspects import AspectBank
from .teacher import AspectTeacher


READ_BATCH = 16  # images between two updates of the progress bar; a write every WRITE_BATCH images
WRITE_BATCH = 512

DatasetOrDict = TypeVar("DatasetOrDict", Dataset, DatasetDict)


def aspect_features(bank: AspectBank) -> Features:
    """The three columns that labelling adds, see `attach_aspects`."""
    answers = List(Value("float32"), length=len(bank))
    return Features({"aspect_logits": answers, "aspect_mass": answers, "aspect_bank": Value("string")})


def attach_aspects(
    dataset: DatasetOrDict,
    bank: AspectBank,
    teacher: AspectTeacher,
    image_column: str = "image",
    splits: str | Iterable[str] | None = None,
    work_dir: str | os.PathLike | None = None,
) -> DatasetOrDict:
    """Let a multimodal LLM answer the bank's questions about every image, and store the answers as columns.

    - `aspect_logits`: Q float32 log-odds `z_yes - z_no`, in the bank's order; the sigmoid is the target (paper
      section 3.2).
    - `aspect_mass`: Q float32, the probability of yes and no together: where it is low, the number is not to be
      trusted.
    - `aspect_bank`: the bank's fingerprint, so that rows and questions cannot be mixed up.

    The job is a `map` whose fingerprint covers teacher, prompt, bank and source, so that a second run costs nothing.

    Args:
        dataset: a `Dataset` or a `DatasetDict`.
        bank: the questions.
        teacher: who answers them.
        image_column: the column of images.
        splits: which splits of a `DatasetDict` to label; all by default. The others carry nulls, so that all splits
            keep one schema.
        work_dir: where answers are kept between runs; by default in the datasets cache.

    Returns:
        The same rows with the three columns added.

    Raises:
        ValueError: no such column or split, a column without images, an image that cannot be decoded (named by split
            and row), or a dataset that has aspect columns already.
    """
    if isinstance(dataset, Dataset):
        return _label_split(dataset, str(dataset.split or "train"), bank, teacher, image_column, work_dir)
    if not isinstance(dataset, DatasetDict):
        raise ValueError(f"attach_aspects takes a Dataset or a DatasetDict; received {type(dataset).__name__}.")
    wanted = list(dataset) if splits is None else [splits] if isinstance(splits, str) else list(splits)
    if missing := [split for split in wanted if split not in dataset]:
        raise ValueError(f"There is no split {missing[0]!r}: the dataset has {list(dataset)}.")
    for rows in dataset.values():
        _check(rows, image_column)
    return DatasetDict(
        {
            split: _label_split(rows, split, bank, teacher, image_column, work_dir)
            if split in wanted
            else _leave_split(rows, bank)
            for split, rows in dataset.items()
        }
    )


def _label_split(
    source: Dataset,
    split: str,
    bank: AspectBank,
    teacher: AspectTeacher,
    image_column: str,
    work_dir: str | os.PathLike | None,
) -> Dataset:
    """One split with its answers: a map that yields the new columns only, joined to the source."""
    _check(source, image_column)
    if not len(source):
        return _leave_split(source, bank)
    fingerprint = Hasher.hash([source._fingerprint, image_column, bank.fingerprint, teacher.identity])
    folder = Path(work_dir or Path(datasets.config.HF_DATASETS_CACHE) / "madkd_hf")
    folder.mkdir(parents=True, exist_ok=True)
    cache = folder / f"{split}-{fingerprint}.arrow"
    encoded = source.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    progress = {"total": len(source), "unit": " images", "desc": f"{split}: {len(bank)} questions an image"}
    with tqdm(**progress, disable=cache.exists()) as bar, _no_bars():

        def read(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
            answers: dict[str, list[Any]] = {name: [] for name in ("aspect_logits", "aspect_mass")}
            for start in range(0, len(rows), READ_BATCH):
                part = slice(start, start + READ_BATCH)
                images = [_decode(*item, split) for item in zip(batch[image_column][part], rows[part])]
                reading = teacher.read(images, bank)
                answers["aspect_logits"] += list(reading.logits.numpy())
                answers["aspect_mass"] += list(reading.mass.numpy())
                bar.update(len(images))
            return {**answers, "aspect_bank": [bank.fingerprint] * len(rows)}

        answers = encoded.map(
            read,
            batched=True,
            batch_size=WRITE_BATCH,
            with_indices=True,
            remove_columns=[image_column],
            features=aspect_features(bank),
            new_fingerprint=fingerprint,
            cache_file_name=str(cache),
            load_from_cache_file=True,
        )
    return _join(source, answers)


def _leave_split(source: Dataset, bank: AspectBank) -> Dataset:
    features = aspect_features(bank)
    if not len(source):  # concatenation would drop an empty dataset, columns included
        info = source.info.copy()
        info.features = Features({**source.features, **features})
        return Dataset.from_dict({name: [] for name in info.features}, info=info, split=source.split)
    schema = features.arrow_schema
    nulls = pa.table({name: pa.nulls(len(source), schema.field(name).type) for name in features}, schema=schema)
    return _join(source, Dataset(nulls))


def _join(source: Dataset, columns: Dataset) -> Dataset:
    """Columns beside the source's; a source that is a selection of rows gets them copied out by the concatenation."""
    with _no_bars():
        return concatenate_datasets([source, columns], split=source.split, axis=1)


def _check(rows: Dataset, image_column: str) -> None:
    if image_column not in rows.features:
        raise ValueError(
            f"There is no column {image_column!r}: the dataset has {rows.column_names}; "
            "name the images with image_column."
        )
    if not isinstance(rows.features[image_column], datasets.Image):
        raise ValueError(
            f"The column {image_column!r} holds {rows.features[image_column]}, not images: "
            f"cast it with dataset.cast_column({image_column!r}, datasets.Image())."
        )
    if present := [name for name in ("aspect_logits", "aspect_mass", "aspect_bank") if name in rows.features]:
        raise ValueError(
            f"The dataset is labelled already, it has the columns {present}: "
            f"drop them with dataset.remove_columns({present}) to label it again."
        )


def _decode(encoded: dict[str, Any] | None, row: int, split: str) -> Image:
    try:
        return datasets.Image().decode_example(encoded).convert("RGB")
    except Exception as error:  # whatever a broken file makes the decoder raise, the row is what helps
        raise ValueError(
            f"The image in row {row} of split {split!r} cannot be decoded ({error}): repair the file or drop the row."
        ) from error


class _no_bars:
    """Hides the map's own progress bars, which count examples: ours counts images."""

    def __enter__(self) -> None:
        self.were_enabled = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        if self.were_enabled:
            datasets.enable_progress_bars()

"""The columns that labelling adds, beside the source's."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, List, Value, concatenate_datasets

from ..aspects import AspectBank
from ..text import get_logger


logger = get_logger(__name__)


def aspect_features(bank: AspectBank, by_object: bool = False) -> Features:
    """The three columns that labelling adds, see `attach_aspects`; with `by_object`, answers for each object."""
    answers = List(Value("float32"), length=len(bank))
    answers = List(answers) if by_object else answers
    return Features({"aspect_logits": answers, "aspect_mass": answers, "aspect_bank": Value("string")})


def skipped_rows(labelled: Dataset | IterableDataset) -> list[int]:
    """The rows that could not be read, for their image or a box, and that `on_error="skip"` left without answers."""
    columns = labelled.select_columns(["aspect_logits", "aspect_bank"]).with_format("arrow")
    rows, start = [], 0
    for table in columns.iter(1000):
        skipped = pc.and_(table["aspect_logits"].is_null(), table["aspect_bank"].is_valid())
        rows += [start + row for row in pc.indices_nonzero(skipped).to_pylist()]
        start += len(table)
    return rows


def readable(dataset: Dataset, name: str = "the dataset") -> Dataset:
    """The rows without those whose image the labelling could not read, and a warning that says how many they were.

    Such a row names its bank and has no answers, where a row that was merely not labelled has neither. No image is
    looked at.

    Args:
        dataset: labelled or not.
        name: what the warning calls it.

    Returns:
        A selection of the rows; the dataset itself where there are no such rows.

    Raises:
        ValueError: no row is left.
    """
    if not {"aspect_logits", "aspect_bank"} <= set(dataset.features):
        return dataset
    columns = dataset.select_columns(["aspect_logits", "aspect_bank"]).with_format("arrow")
    kept = [
        (table["aspect_logits"].is_valid().to_numpy() | table["aspect_bank"].is_null().to_numpy())
        for table in columns.iter(batch_size=10_000)
    ]
    kept = np.concatenate([np.zeros(0, dtype=bool), *kept])
    if kept.all():
        return dataset
    if not kept.any():
        raise ValueError(
            f"The labelling could read none of the {len(kept)} images of {name}, or a box in each: repair the files, "
            "or see what box_format says, and label again."
        )
    logger.warning(
        "Left out %d of the %d rows of %s: the labelling could not read their images, or a box in them.",
        (~kept).sum(), len(kept), name,
    )  # fmt: skip
    return dataset.select(np.flatnonzero(kept))


def leave(source: Dataset, features: Features) -> Dataset:
    """A split that is not labelled: null in every column that labelling adds."""
    if not len(source):  # concatenation would drop an empty dataset, columns included
        info = source.info.copy()
        info.features = Features({**source.features, **features})
        return Dataset.from_dict({name: [] for name in info.features}, info=info, split=source.split)
    return join(source, Dataset(nulls(features, len(source))))


def nulls(features: Features, rows: int) -> pa.Table:
    """The columns of rows without answers."""
    schema = features.arrow_schema
    return pa.table({field.name: pa.nulls(rows, field.type) for field in schema}, schema=schema)


def join(source: Dataset, columns: Dataset) -> Dataset:
    """Columns beside the source's; a source that is a selection of rows gets them copied out by the concatenation."""
    with no_bars():
        return concatenate_datasets([source, columns], split=source.split, axis=1)


class no_bars:
    """Hides the map's own progress bars, which count examples: ours counts what is read."""

    def __enter__(self) -> None:
        self.were_enabled = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        if self.were_enabled:
            datasets.enable_progress_bars()

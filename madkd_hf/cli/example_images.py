"""The few images of a dataset on which an export is compared, and which a Space shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arguments import load_splits


if TYPE_CHECKING:
    from datasets import Dataset


def example_rows(args: Any, count: int) -> tuple[Dataset, str]:
    """At most `count` rows of the split that `args` names, by default its last, and the split's name.

    As many of each class as of others, where there is a column `label`; in an order that is the same each time.

    Raises:
        ValueError: there is no such split, its column holds no images, or there are fewer than two.
    """
    from ..data.image_columns import check_image_column
    from ..data.limits import limited

    splits = load_splits(args)
    name = args.split or list(splits)[-1]
    if name not in splits:
        raise ValueError(f"There is no split {name!r}: the dataset has {list(splits)}; pass --split.")
    rows = splits[name]
    check_image_column(rows.features, args.image_column)
    rows = limited(rows, count, "label")
    if len(rows) < 2:
        raise ValueError(f"The split {name!r} has {len(rows)} images: expected 2 or more to compare on.")
    return rows.shuffle(seed=0), name

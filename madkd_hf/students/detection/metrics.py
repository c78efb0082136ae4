"""Average precision of a detector, as COCO defines it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


STATISTICS = {
    "map": 0,
    "map_50": 1,
    "map_75": 2,
    "map_small": 3,
    "map_medium": 4,
    "map_large": 5,
    "mar_100": 8,
}


def coco_ap(
    predictions: Sequence[dict[str, Any]], references: Sequence[dict[str, Any]], num_classes: int | None = None
) -> dict[str, Any]:
    """Average precision and recall as COCO defines them (Lin et al., ECCV 2014), by pycocotools itself.

    Boxes are left, top, right, bottom in pixels of the original image; lists, arrays or CPU tensors.

    Args:
        predictions: for each image `boxes` [m, 4], `scores` [m], `labels` [m].
        references: for each image `boxes` [n, 4], `labels` [n], and where known `iscrowd` [n] and `area` [n] (pixels
            of the object; that of its box where missing).
        num_classes: C; by default up to the highest label.

    Returns:
        {"map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100": 0..1; "per_class": [C]}: AP over
        IoU 0.5 to 0.95, at 0.5 and at 0.75, for objects below 32 x 32, to 96 x 96 and above 96 x 96 pixels, recall
        with 100 boxes an image, and AP of each class. NaN where no reference counts.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: as many boxes as labels and scores were expected.
    """
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError('COCO metrics need pycocotools: pip install "madkd_hf[detection]"') from error
    predictions = [_listed(image, ("boxes", "scores", "labels")) for image in predictions]
    references = [_listed(image, ("boxes", "labels"), ("iscrowd", "area")) for image in references]
    if num_classes is None:
        labels = [label for image in (*predictions, *references) for label in image["labels"]]
        num_classes = max(labels, default=-1) + 1
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
        run = COCOeval(_coco(references, num_classes), _coco(predictions, num_classes), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    results: dict[str, Any] = {name: _nan_if_missing(run.stats[place]) for name, place in STATISTICS.items()}
    # [IoU, recall, class, object size, boxes an image]
    results["per_class"] = [_mean(values) for values in np.moveaxis(run.eval["precision"][..., 0, -1], 2, 0)]
    return results


def _listed(image: dict[str, Any], required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, list]:
    missing = [name for name in required if name not in image]
    if missing:
        raise ValueError(f"An image has no {' and no '.join(missing)}, only {sorted(image)}.")
    names = [name for name in (*required, *optional) if image.get(name) is not None]
    return {name: np.asarray(image[name]).tolist() for name in names}


def _coco(images: list[dict[str, list]], num_classes: int) -> Any:
    """pycocotools' own index of boxes: predictions where they have scores, else references."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": image_id} for image_id in range(len(images))],
        "categories": [{"id": label} for label in range(num_classes)],
        "annotations": [row for image_id, image in enumerate(images) for row in _annotations(image_id, image)],
    }
    for number, row in enumerate(coco.dataset["annotations"], start=1):  # COCOeval takes id 0 for "not matched"
        row["id"] = number
    coco.createIndex()
    return coco


def _annotations(image_id: int, image: dict[str, list]) -> Iterable[dict[str, Any]]:
    count = len(image["boxes"])
    for name, values in image.items():
        if len(values) != count:
            raise ValueError(
                f"Image {image_id} has {count} boxes, but {len(values)} {name}: expected one for each box."
            )
    for i, (left, top, right, bottom) in enumerate(image["boxes"]):
        width, height = right - left, bottom - top
        row = {
            "image_id": image_id,
            "category_id": image["labels"][i],
            "bbox": [left, top, width, height],
            "area": image["area"][i] if "area" in image else width * height,
            "iscrowd": image["iscrowd"][i] if "iscrowd" in image else 0,
        }
        yield {**row, "score": image["scores"][i]} if "scores" in image else row


def _nan_if_missing(value: float) -> float:
    """pycocotools says -1 where there is nothing to measure."""
    return float("nan") if value < 0 else float(value)


def _mean(values: np.ndarray) -> float:
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else float("nan")

"""Train a student that detects: classes and boxes alone, or with aspects of each object, or of each image.

The aspects come with the dataset (written by `madkd label`), or a teacher answers the bank's questions about the
training images first: about every object, cut out by its box, or with --aspect_level image about the whole image.
Leaves in --output_dir a student that `from_pretrained` and `pipeline` load, all_results.json, and what it found in the
test images.

    madkd train --config recipes/easy_vqa/detect.yaml --output_dir runs/detector
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from ...data.check import bad_boxes
from ...data.columns import stored
from ...data.decoding import Unreadable
from ...data.labels import class_label
from ...data.objects import CATEGORY, Boxes, count_objects, iter_field, object_fields, with_category
from ...data.problems import Problems
from ...students.base.fields import option
from ...students.tasks import TASKS
from ..arguments import ObjectArguments, SplitArguments
from .base import TaskCommand, TestUse, TrainArguments, load_arrays


DESCRIPTION = __doc__


@dataclass
class DetectorArguments(TrainArguments, SplitArguments):
    """A detector and its data."""

    detector: str = option("PekingU/rtdetr_r18vd", "Any query-based detector of transformers: a Hub id, or a folder.")
    aspect_level: Literal["object", "image"] = option(
        "object", "What questions are about: each object, or the whole image."
    )
    objects: ObjectArguments = field(default_factory=ObjectArguments, init=False)


class Detection(TaskCommand):
    """An image has objects, each with a box and a class."""

    task = TASKS["detection"]
    description = DESCRIPTION
    arguments = DetectorArguments
    more_arguments = {"objects": ObjectArguments}
    controls = {"base": "none", "image": "none", "image_shuffled": "shuffled", "object": "none"}
    controls |= {"shuffled": "shuffled", "constant": "constant"}
    about_images = ("image", "image_shuffled")
    shared_options = ("boxes_column", "box_format", "scenes")

    def check_model(self, args: DetectorArguments) -> None:
        self.task.check(args.detector, args.pretrained, aspect_level=args.aspect_level)
        for package in ("albumentations", "pycocotools"):
            if importlib.util.find_spec(package) is None:
                raise ImportError(f'Training detectors needs {package}: pip install "madkd_hf[detection]"')

    def unusable(self, rows: Dataset, args: Any, split: str) -> list[Unreadable]:
        column = args.objects.boxes_column
        if not object_fields(rows.features, column):
            return []  # which `with_classes` tells
        return bad_boxes(rows, args.image_column, Boxes(column, args.objects.box_format), split)

    def with_classes(
        self,
        problems: Problems,
        splits: DatasetDict,
        args: Any,
        used: Sequence[str],
        test: TestUse,
        doubtful: Sequence[str],
    ) -> DatasetDict | None:
        """The splits with classes of objects; a test split without a single object has no column for them any more."""
        from ...students.base.models import check_has_column
        from ...students.detection.checks import check_objects

        column, splits = args.objects.boxes_column, DatasetDict(splits)
        if args.test_split in used and object_fields((rows := splits[args.test_split]).features, column):
            if not count_objects(stored(rows, column)):
                if test == "scored":
                    problems.add(
                        f"No image of split {args.test_split!r} has an object, and the comparison needs a score: pass "
                        "another --test_split."
                    )
                else:
                    splits[args.test_split] = rows.remove_columns(column)
        with_objects = DatasetDict(
            {split: rows for split, rows in splits.items() if split != args.test_split or column in rows.features}
        )
        with_objects = problems.step(with_categories, with_objects, args.objects, args.train_split)
        if with_objects is None:
            return None
        for split in [split for split in used if split not in doubtful]:
            if split in with_objects:
                classes = SimpleNamespace(num_labels=self.classes(with_objects[split], args).num_classes)
                name, boxes = f"split {split!r}", (column, args.objects.box_format)
                problems.step(check_objects, with_objects[split], name, *boxes, classes, True)
            elif split != args.test_split or test == "scored":
                problems.step(check_has_column, splits[split].features, f"split {split!r}", column, "boxes_column")
        return DatasetDict({**splits, **with_objects})

    def drawn(self, args: Any) -> int | None:
        return args.objects.scenes

    def check_draw(self, rows: Dataset, args: Any) -> None:
        scenes = args.objects.scenes
        if scenes is not None and not 0 < scenes <= len(rows):
            raise ValueError(f"There are {len(rows)} training images and --scenes asks for {scenes}.")

    def draw(self, rows: Dataset, args: Any, seed: int) -> Dataset:
        if args.objects.scenes is None:
            return rows
        self.check_draw(rows, args)
        return rows.select(np.random.default_rng(seed).choice(len(rows), args.objects.scenes, replace=False))

    def classes(self, rows: Dataset, args: Any) -> ClassLabel:
        return object_fields(rows.features, args.objects.boxes_column)[CATEGORY]

    def shown_classes(self, rows: Dataset, args: Any) -> set[int]:
        fields = iter_field(rows, args.objects.boxes_column, CATEGORY)
        return {label for _, labels in fields for label in labels.unique().to_pylist()}

    def labelling_options(self, args: DetectorArguments) -> dict[str, Any]:
        return args.objects.boxes if args.aspect_level == "object" else {}

    def model_options(self, args: DetectorArguments) -> dict[str, Any]:
        return {"aspect_level": args.aspect_level}

    def trainer_options(self, args: Any) -> dict[str, Any]:
        columns = {"image_column": args.image_column, "boxes_column": args.objects.boxes_column}
        return {**columns, "box_format": args.objects.box_format}

    def predicted_arrays(self, output: Any) -> dict[str, np.ndarray]:
        return predicted_arrays(output.predictions)

    def student_options(self, args: Any, condition: str) -> list[str]:
        level = "image" if condition in self.about_images else "object"
        return ["--aspect_level", level, "--category_field", CATEGORY]


COMMAND = Detection()


def with_categories(splits: DatasetDict, objects: ObjectArguments, train_split: str) -> DatasetDict:
    """The splits with the classes of objects as ClassLabels in the field `category`."""
    column, name = objects.boxes_column, objects.category_field
    boxes = Boxes(*objects.boxes.values())
    for rows in splits.values():
        boxes.check(rows.features)
    fields = object_fields(splits[train_split].features, column)
    if name not in fields:
        raise ValueError(f"The objects have no field {name!r}, only {list(fields)}: pass --category_field.")
    feature = fields[name]
    if isinstance(feature, ClassLabel) and name == CATEGORY:
        return splits
    if isinstance(feature, ClassLabel):
        return DatasetDict({split: with_category(rows, column, name, feature) for split, rows in splits.items()})
    label = class_label(
        f"field {name!r} of {column!r}",
        feature,
        splits,
        lambda rows: (value for _, values in iter_field(rows, column, name) for value in values.to_pylist()),
        train_split,
    )
    return DatasetDict(
        {
            split: with_category(rows, column, name, label, lambda value: label.str2int(str(value)))
            for split, rows in splits.items()
        }
    )


def predicted_arrays(predictions: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """What was found in n images: `counts` [n], how many boxes in each, and then one after the other `boxes` [m, 4]
    (left, top, right, bottom in pixels), `scores` [m], `labels` [m], and where the student has aspects
    `aspect_logits` [m, Q] of the boxes or `image_aspect_logits` [n, Q]."""
    columns = {"counts": np.array([len(image["scores"]) for image in predictions], dtype=np.int64)}
    for name in [name for name in ("boxes", "scores", "labels", "aspect_logits") if name in predictions[0]]:
        arrays = [np.asarray(image[name]) for image in predictions]
        if name == "aspect_logits" and arrays[0].ndim == 1:
            columns["image_aspect_logits"] = np.stack(arrays)
        else:
            columns[name] = np.concatenate(arrays)
    return columns


def load_predictions(path: Path) -> list[dict[str, np.ndarray]]:
    """What stands in a file of `predicted_arrays`, image by image."""
    columns = load_arrays(path, "counts", "boxes", "scores", "labels")
    counts = columns.pop("counts")
    columns.pop("rows", None)
    images = [{} for _ in counts]
    for name, values in columns.items():
        parts = values if name == "image_aspect_logits" else np.split(values, counts.cumsum()[:-1])
        for image, part in zip(images, parts):
            image[name.removeprefix("image_")] = part
    return images

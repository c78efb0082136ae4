"""Train a student that detects: classes and boxes alone, or with aspects of each object, or of each image.

The aspects come with the dataset (written by attach_aspects.py), or a teacher answers the bank's questions about the
training images first: about every object, cut out by its box, or with --aspect_level image about the whole image.
Leaves in --output_dir a student that `from_pretrained` and `pipeline` load, all_results.json, and what it found in the
test images.

    accelerate launch recipes/train_detector.py --config recipes/easy_vqa/detect.yaml --output_dir runs/detector
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import set_seed

from ... import AspectBank, MadkdDetectionTrainer, MadkdForObjectDetection, MadkdTrainingArguments
from ...data.check import Unreadable, without
from ...data.labels import class_label
from ...data.objects import CATEGORY, Boxes, count_objects, iter_field, object_fields, with_category
from ...data.problems import Problems
from ...data.variants import control_answers
from ...files import whole_file, writing
from ...hub.cards.comparison import read_comparison
from ...metrics import OF_ASPECTS
from ...students.base.processors import load_image_processor
from ...students.detection.checks import check_detector, check_has_column, check_objects
from ...students.detection.metrics import STATISTICS
from ...text import get_logger, terminal
from ..arguments import ObjectArguments, RecipeParser, SplitArguments
from ..outputs import STUDENT, check_place, working_in
from ..preflight import Classes, Ready, Test, bad_boxes
from ..results import load_arrays
from ..splits import readable_splits, warn_of_absent, with_validation
from ..teachers import OwnTeacherArguments, attach
from ..train import find_checkpoint, fit_and_measure, look, publish, waits_for_hub, what_decides


logger = get_logger(__name__)

PREDICTIONS = "test_predictions.npz"  # see `save_predictions`


@dataclass
class DetectorArguments(OwnTeacherArguments, SplitArguments):
    """The student and its data."""

    _argument_group_name = "student and data"

    detector: str = field(
        default="PekingU/rtdetr_r18vd",
        metadata={"help": "Any query-based object detector of transformers: a Hub id, or a folder."},
    )
    pretrained: bool = field(
        default=True, metadata={"help": "Start from the detector's weights; false takes its architecture alone."}
    )
    aspect_level: Literal["object", "image"] = field(
        default="object", metadata={"help": "What the questions are about: each object by itself, or the whole image."}
    )
    aspect_control: Literal["none", "shuffled", "constant"] = field(
        default="none",
        metadata={
            "help": "Controls that a real gain must beat: aspects of other objects or images (shuffled), or each "
            "aspect's mean for all (constant)."
        },
    )
    comparison: str | None = field(
        default=None,
        metadata={"help": "Output folder of compare.py, whose results go into the card of a published student."},
    )
    objects: ObjectArguments = field(default_factory=ObjectArguments, init=False)


def parse(args: list[str] | None = None) -> tuple[DetectorArguments, MadkdTrainingArguments]:
    parser = RecipeParser(DetectorArguments, ObjectArguments, MadkdTrainingArguments, description=__doc__)
    detector, objects, training_args = parser.parse(args)
    detector.objects = objects
    return detector, training_args


def train(
    args: DetectorArguments, training_args: MadkdTrainingArguments, ready: Ready | None = None
) -> MadkdDetectionTrainer:
    """Train, evaluate and save one student, and publish nothing; see `train_student.train`."""
    ready = ready or look(TASK, args, training_args)
    set_seed(training_args.seed)
    checkpoint = find_checkpoint(training_args)
    splits, train_set, bank = prepare(args, training_args, ready)
    decides = what_decides(args, training_args, train_set, bank)
    waiting = waits_for_hub(training_args, decides)
    if waiting:
        model = MadkdForObjectDetection.from_pretrained(training_args.output_dir)
    else:
        model = MadkdForObjectDetection.from_detector(
            args.detector,
            id2label=dict(enumerate(categories(train_set, args.objects).names)),
            bank=bank,
            aspect_level=args.aspect_level,
            pretrained=args.pretrained,
        )
    if args.comparison:
        read_comparison(args.comparison, model.config)
    trainer = MadkdDetectionTrainer(
        model,
        training_args,
        train_dataset=train_set,
        eval_dataset=splits[args.eval_split],
        processing_class=load_image_processor(args.detector),
        image_column=args.image_column,
        boxes_column=args.objects.boxes_column,
        box_format=args.objects.box_format,
    )
    test_split = args.test_split if training_args.do_predict else None
    return fit_and_measure(trainer, None if waiting else decides, checkpoint, ready, test_split, predict)


def prepare(
    args: DetectorArguments, training_args: MadkdTrainingArguments, ready: Ready | None = None
) -> tuple[DatasetDict, Dataset, AspectBank | None]:
    """All splits, the rows to train on, and the bank that their answers belong to."""
    objects = args.objects
    splits = (ready or look(TASK, args, training_args)).splits
    with training_args.main_process_first(desc="preparing the data"):
        train_set = splits[args.train_split]
        if objects.scenes is not None:
            train_set = draw(train_set, objects.scenes, training_args.seed)
        fields = iter_field(train_set, objects.boxes_column, CATEGORY)
        found = {label for _, labels in fields for label in labels.unique().to_pylist()}
        warn_of_absent(categories(train_set, objects), found)
        boxes = objects.boxes if args.aspect_level == "object" else None
        train_set, bank = attach(train_set, args, training_args.aspect_alpha, boxes)
    if args.aspect_control != "none":
        train_set = control_answers(train_set, args.aspect_control, training_args.seed)
    return splits, train_set, bank


def prepare_splits(splits: DatasetDict, args: Any, seed: int) -> DatasetDict:
    """Images that can be read and objects with classes in every split, and a validation split.

    With on_error "skip", images with a box that cannot be are left out, with a warning: the labelling skips them, and
    students with and without aspects see the same images.

    Args:
        args: `DetectorArguments`, or others with `objects` and `on_error` that name the splits.
    """
    splits = with_categories(readable_splits(splits, args), args.objects, args.train_split)
    if args.on_error == "skip":
        splits = DatasetDict({split: with_boxes(rows, args, split) for split, rows in splits.items()})
    return with_validation(splits, args, seed)


def with_boxes(rows: Dataset, args: Any, split: str) -> Dataset:
    """The images all of whose boxes can be, as the labelling keeps them; the others are told in a warning."""
    found = TASK.unusable(rows, args, split)
    if found:
        logger.warning(
            "Left out %d of the %d images of split %r, first of all %s: %s",
            len(found), len(rows), split, found[0].name, found[0].reason,
        )  # fmt: skip
    return without(rows, [each.row for each in found])


class Objects(Classes):
    """What is looked at where an image has objects."""

    def check_model(self, args: Any) -> None:
        check_detector(args.detector, args.pretrained, aspect_level=args.aspect_level)
        for package in ("albumentations", "pycocotools"):
            if importlib.util.find_spec(package) is None:
                raise ImportError(f'Training detectors needs {package}: pip install "madkd_hf[detection]"')

    def stratify(self, args: Any) -> None:
        return None

    def unusable(self, rows: Dataset, args: Any, split: str) -> list[Unreadable]:
        column = args.objects.boxes_column
        if not object_fields(rows.features, column):
            return []  # which `labelled` tells
        return bad_boxes(rows, args.image_column, Boxes(column, args.objects.box_format), split)

    def labelled(
        self,
        problems: Problems,
        splits: DatasetDict,
        args: Any,
        used: Sequence[str],
        test: Test,
        doubtful: Sequence[str],
    ) -> DatasetDict | None:
        """The splits with classes of objects; a test split without a single object has no column for them any more."""
        column, splits = args.objects.boxes_column, DatasetDict(splits)
        if args.test_split in used and object_fields((rows := splits[args.test_split]).features, column):
            if not count_objects(rows.select_columns(column).with_format("arrow")[:][column]):
                if test == "scored":
                    problems.add(
                        f"No image of split {args.test_split!r} has an object, and the comparison needs a score: pass "
                        "another --test_split."
                    )
                else:
                    splits[args.test_split] = rows.remove_columns(column)
        having = DatasetDict(
            {split: rows for split, rows in splits.items() if split != args.test_split or column in rows.features}
        )
        having = problems.step(with_categories, having, args.objects, args.train_split)
        if having is None:
            return None
        for split in [split for split in used if split not in doubtful]:
            if split in having:
                classes = SimpleNamespace(num_labels=categories(having[split], args.objects).num_classes)
                name, boxes = f"split {split!r}", (column, args.objects.box_format)
                problems.step(check_objects, having[split], name, *boxes, classes, True)
            elif split != args.test_split or test == "scored":
                problems.step(check_has_column, splits[split].features, f"split {split!r}", column)
        return DatasetDict({**splits, **having})

    def most_drawn(self, students: Sequence[Any]) -> list[Any]:
        drawing = (each for each in students if each.objects.scenes is not None)
        return sorted(drawing, key=lambda each: each.objects.scenes)[-1:]

    def check_drawn(self, rows: Dataset, args: Any) -> None:
        """
        Raises:
            ValueError: there are fewer images than are to be drawn.
        """
        if args.objects.scenes is not None:
            check_scenes(rows, args.objects.scenes)


TASK = Objects((*STATISTICS, *OF_ASPECTS))


def with_categories(splits: DatasetDict, objects: ObjectArguments, train_split: str) -> DatasetDict:
    """The splits with the classes of objects as ClassLabels in the field `category`.

    Raises:
        ValueError: there are no boxes, no such field, or no classes in it.
    """
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


def categories(rows: Dataset, objects: ObjectArguments) -> ClassLabel:
    """The classes of the objects, once they are prepared."""
    return object_fields(rows.features, objects.boxes_column)[CATEGORY]


def draw(rows: Dataset, scenes: int, seed: int) -> Dataset:
    """So many of the rows, by seed."""
    check_scenes(rows, scenes)
    return rows.select(np.random.default_rng(seed).choice(len(rows), scenes, replace=False))


def check_scenes(rows: Dataset, scenes: int) -> None:
    """Raise ValueError where there are fewer rows."""
    if not 0 < scenes <= len(rows):
        raise ValueError(f"There are {len(rows)} training images and --scenes asks for {scenes}.")


def predict(trainer: MadkdDetectionTrainer, rows: Dataset, kept: np.ndarray | None) -> dict[str, float]:
    """Metrics on the test images; what was found in each stays beside the student. For `kept` see `train_student`."""
    output = trainer.predict(rows)
    if trainer.is_world_process_zero():
        save_predictions(Path(trainer.args.output_dir) / PREDICTIONS, output.predictions, kept)
    return output.metrics


def save_predictions(path: Path, predictions: Sequence[dict[str, Any]], kept: np.ndarray | None = None) -> None:
    """Write what was found in n images: `counts` [n], how many boxes in each, and then one after the other `boxes`
    [m, 4] (left, top, right, bottom in pixels), `scores` [m], `labels` [m], and where the student has aspects
    `aspect_logits` [m, Q] of the boxes or `image_aspect_logits` [n, Q]; `rows` [n] are the numbers of the images where
    some were left out (`kept`)."""
    columns = {"counts": np.array([len(each["scores"]) for each in predictions], dtype=np.int64)}
    for name in [name for name in ("boxes", "scores", "labels", "aspect_logits") if name in predictions[0]]:
        values = [np.asarray(each[name]) for each in predictions]
        if name == "aspect_logits" and values[0].ndim == 1:
            columns["image_aspect_logits"] = np.stack(values)
        else:
            columns[name] = np.concatenate(values)
    columns |= {} if kept is None else {"rows": kept}
    with writing(path), whole_file(path) as file:
        np.savez_compressed(file, **columns)


def load_predictions(path: Path) -> list[dict[str, np.ndarray]]:
    """What `save_predictions` wrote, image by image.

    Raises:
        ValueError: the file is missing or damaged.
    """
    columns = load_arrays(path, "counts", "boxes", "scores", "labels")
    counts = columns.pop("counts")
    columns.pop("rows", None)
    found = [{} for _ in counts]
    for name, values in columns.items():
        parts = values if name == "image_aspect_logits" else np.split(values, counts.cumsum()[:-1])
        for each, part in zip(found, parts):
            each[name.removeprefix("image_")] = part
    return found


def main() -> None:
    args, training_args = parse()
    place = (training_args.output_dir, args, "student", STUDENT)
    ready = look(TASK, args, training_args, partial(check_place, *place))
    with working_in(*place, training_args.process_index == 0):
        _train_and_publish(args, training_args, ready)


def _train_and_publish(args: DetectorArguments, training_args: MadkdTrainingArguments, ready: Ready) -> None:
    trainer = train(args, training_args, ready)
    if trainer.is_world_process_zero():
        task = "aspect-detection" if trainer.model.config.num_aspects else "object-detection"
        print(
            f"The student is in {training_args.output_dir}; its numbers in "
            f"{Path(training_args.output_dir) / 'all_results.json'}. Use it:\n"
            f'  pipeline("{task}", "{training_args.output_dir}", trust_remote_code=True)'
        )
    if training_args.push_to_hub and (url := publish(trainer, args)):
        print(f"Published: {terminal(url)}")

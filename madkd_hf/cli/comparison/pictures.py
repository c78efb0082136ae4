"""What `madkd compare` draws beside its table: what the student says, which classes gained, what the teacher saw."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from scipy.special import expit, softmax
from torch.utils.data import DataLoader

from ... import AspectBank, MadkdDetectionTrainer, MadkdForImageClassification
from ...data.columns import LOGITS, stored
from ...data.image_processors import load_image_processor
from ...data.images import load_image
from ...data.objects import CATEGORY, flatten_objects
from ...metrics import AspectAuroc
from ...report import figures
from ...report.classes import compared, summarise_classes, summarise_detected_classes, write_classes
from ...report.comparison import real_gain, terms_of
from ...report.scenes import plot_examples, plot_scenes
from ...selection.evidence import write_evidence
from ...students.classification.data import AspectCollator
from ...students.detection.data import DetectionCollator
from ...students.detection.evaluation import SizedCollator, detection_metrics, frames_of, references
from ...students.detection.metrics import coco_ap
from ...students.models.modeling_madkd_detection import MadkdForObjectDetection
from ...teachers import Teacher
from .. import train
from ..tasks.base import PREDICTIONS, load_arrays
from ..tasks.detection import load_predictions
from .conditions import student_argv
from .options import CompareArguments


EXAMPLES = 8
SCENES = 6
BATCH = 100
CAPTIONS = {
    "ap.png": "AP on the test images: every dot is one student.",
    "scenes.png": "Test images, and what the first student with aspects of each object finds in them: green boxes are "
    "right, orange ones are not; of boxes in the same place only the surest is shown. Behind each score stand the "
    "three aspects to which the student says yes most surely.",
    "accuracies.png": "Accuracy on the test images: every dot is one student.",
    "learning_curves.png": "The same on the validation images while the students learn.",
    "classes.png": "Which classes gained; the numbers are in [classes.md](classes.md).",
    "calibration.png": "How often the students are right when they are so sure.",
    "questions.png": "What the teacher's answer to each question tells about the class, beside what chance seems to "
    "tell, and how often it is yes; the numbers are in [questions.md](questions.md).",
    "teacher.png": "What the teacher sees: its mean probability of yes to each question, for each class.",
    "aspect_learning.png": "What the student learnt of each question: how well its answers rank validation images as "
    "the teacher's do (AUROC; 0.5 is chance).",
    "examples.png": "Test images, the student's class, and what teacher and student say of them.",
}
OF_CLASSIFIERS = {
    "classes.png": "Which classes gained; the numbers, and the confusions that went away, are in "
    "[classes.md](classes.md)."
}
OF_DETECTORS = {
    "aspect_learning.png": "What the first student with aspects of each object learnt of each question: how well its "
    "answers rank the objects in the validation images, each matched to a box, as the teacher's do (AUROC; 0.5 is "
    "chance)."
}


def draw_figures(
    args: CompareArguments,
    labelled: DatasetDict,
    bank: AspectBank,
    teacher: Teacher | None,
    cells: list[dict[str, Any]],
    summary: dict[str, Any],
    student: Path | None,
) -> tuple[dict[str, str], dict[str, Any] | None]:
    """Every picture of the run, as file name -> caption, and which classes gained, where that can be said.

    Args:
        summary: of the report; what the pictures of the aspects show is put into it.
        student: the one that is kept; None where none was distilled.
    """
    folder = Path(args.output_dir) / "figures"
    captions = CAPTIONS | (OF_DETECTORS if args.detects else OF_CLASSIFIERS)
    for name in captions:
        (folder / name).unlink(missing_ok=True)  # of what was compared here before
    scores = "ap.png" if args.detects else "accuracies.png"
    figures.plot_accuracies(summary, folder / scores)
    captions[scores] += f" {sentence}." if (sentence := real_gain(summary)) else ""
    if any(cell["curve"] for cell in cells):
        figures.plot_learning_curves(cells, folder / "learning_curves.png", summary["task"])
    if args.detects:
        captions["learning_curves.png"] += add_aspect_scores(summary, cells)
    rows, column, unit = labelled[args.train_split], args.label_column, terms_of(summary).about
    if args.detects:
        column = CATEGORY
        rows = flatten_objects(rows, args.objects.boxes_column, column)
    write_evidence(rows, bank, args.output_dir, column, unit)
    by_class = None
    if student is not None:
        summary["aspect_auroc"] = aspect_auroc(args, labelled, bank, student)
        if summary["aspect_auroc"]:
            auroc, place = list(summary["aspect_auroc"].values()), folder / "aspect_learning.png"
            figures.plot_aspect_learning(bank.ids, auroc, place, unit)
        if args.detects:
            by_class = draw_detected(args, labelled, bank, student)
        else:
            draw_examples(args, labelled, bank, teacher, student)
            by_class = class_by_class(args, labelled) if "base" in args.controls() else None
    return {name: caption for name, caption in captions.items() if (folder / name).is_file()}, by_class


def add_aspect_scores(summary: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    """Put the mean AUROC of the aspects of each student into the summary, by condition; a sentence on it."""
    auroc: dict[str, list[float]] = {}
    for cell in cells:
        if cell["metrics"].get("eval_aspect_auroc") is not None:
            auroc.setdefault(cell["condition"], []).append(cell["metrics"]["eval_aspect_auroc"])
    summary["aspects_learnt"] = auroc
    means = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in auroc.items())
    ranked = "How well their aspects rank what is in the validation images as the teacher's answers do"
    return f" {ranked} (mean AUROC; 0.5 is chance): {means or 'not known'}."


def aspect_auroc(
    args: CompareArguments, labelled: DatasetDict, bank: AspectBank, student: Path
) -> dict[str, float | None]:
    """Aspect -> how well a saved student's answers rank validation images, or objects, as the teacher's do."""
    rows = labelled.get(args.eval_split)
    if rows is None:
        return {}
    if args.detects:
        trainer = detector_trainer(
            args, labelled, student, lambda prediction: {"auroc": detection_metrics(prediction).get("per_aspect")}
        )
        per_aspect = trainer.predict(rows, metric_key_prefix="eval").metrics["eval_auroc"]
    else:
        rows = with_answers(rows)
        if not len(rows):
            return {}
        answers = student_logits(student, args, rows)[1]
        metric = AspectAuroc(keep_in_memory=True).compute(predictions=answers, references=rows["aspect_logits"])
        per_aspect = metric["per_aspect"]
    return dict(zip(bank.ids, per_aspect or []))


def with_answers(rows: Dataset) -> Dataset:
    """Those that somebody has answered: of a dataset that was labelled elsewhere, perhaps only some splits."""
    if LOGITS not in rows.features:
        return rows.select([])
    return rows.select(np.flatnonzero(stored(rows, LOGITS).is_valid().to_numpy()))


# Detectors


def detector_trainer(
    args: CompareArguments, labelled: DatasetDict, student: Path, compute_metrics: Any = None
) -> MadkdDetectionTrainer:
    """A Trainer of a saved detector as it was trained, to measure it."""
    argv = student_argv(args, args.treated, 0, str(student))
    return MadkdDetectionTrainer(
        MadkdForObjectDetection.from_pretrained(student),
        train.parse(argv)[1],
        eval_dataset=labelled[args.eval_split],
        processing_class=load_image_processor(student),
        compute_metrics=compute_metrics,
        image_column=args.image_column,
        boxes_column=args.objects.boxes_column,
        box_format=args.objects.box_format,
    )


def draw_detected(
    args: CompareArguments, labelled: DatasetDict, bank: AspectBank, student: Path
) -> dict[str, Any] | None:
    """A page of scenes, and which classes gained."""
    test = labelled[args.test_split]
    names = args.command.classes(labelled[args.train_split], args).names
    truth = objects_in(args, test, student)
    objects = [{name: image[name][image["iscrowd"] == 0] for name in ("boxes", "labels")} for image in truth]
    chosen = np.random.default_rng(0).permutation(len(test))[:SCENES].tolist()
    predicted = _predictions(args, args.treated, 0)
    plot_scenes(
        [load_image(test[i][args.image_column]) for i in chosen],
        [objects[i] for i in chosen],
        [predicted[i] for i in chosen],
        names,
        bank.ids,
        Path(args.output_dir) / "figures" / "scenes.png",
    )
    if "base" not in args.controls():
        return None
    ap = {
        name: np.array([class_ap(_predictions(args, name, seed), truth, len(names)) for seed in range(args.seeds)])
        for name in compared({"task": "detection"})
    }
    counts = Counter(label for image in objects for label in image["labels"].tolist())
    by_class = summarise_detected_classes(ap, [counts[label] for label in range(len(names))], names)
    write_classes(by_class, args.output_dir)
    return by_class


def _predictions(args: CompareArguments, condition: str, seed: int) -> list[dict[str, np.ndarray]]:
    folder = Path(args.output_dir) / "cells" / f"{condition}-{seed}"
    return load_predictions(folder / PREDICTIONS)


def objects_in(args: CompareArguments, rows: Dataset, student: Path) -> list[dict[str, np.ndarray]]:
    """What is in the images, as the students' evaluation counts it: see `references`."""
    objects = args.objects
    processor = load_image_processor(student)
    collate = DetectionCollator(processor, args.image_column, objects.boxes_column, objects.box_format)
    batches = DataLoader(rows, BATCH, collate_fn=SizedCollator(collate))
    return [image_objects for batch in batches for image_objects in references(batch["labels"], frames_of(batch))]


def class_ap(predicted: list[dict[str, np.ndarray]], truth: list[dict[str, np.ndarray]], classes: int) -> list[float]:
    """AP of each class in points, NaN where the images show none of it."""
    return [100 * value for value in coco_ap(predicted, truth, classes)["per_class"]]


# Classifiers


def student_logits(student: Path, args: CompareArguments, rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """What a saved student says of images: class logits [n, C] and aspect logits [n, Q]."""
    model = MadkdForImageClassification.from_pretrained(student).eval()
    processor = load_image_processor(student)
    collate = AspectCollator(processor, model.config.num_labels, args.image_column, args.label_column)
    rows = rows.select_columns([args.image_column, args.label_column])
    with torch.inference_mode():
        outputs = [
            model(collate([rows[i] for i in range(start, min(start + BATCH, len(rows)))])["pixel_values"])
            for start in range(0, len(rows), BATCH)
        ]
    return tuple(torch.cat([output[name] for output in outputs]).numpy() for name in ("logits", "aspect_logits"))


def draw_examples(
    args: CompareArguments, labelled: DatasetDict, bank: AspectBank, teacher: Teacher | None, student: Path
) -> None:
    """What a classifier says of some images, beside what the teacher says, or where there is none has said."""
    rows = labelled[args.test_split]
    names = labelled[args.train_split].features[args.label_column].names
    if teacher is None:
        rows = with_answers(rows)
    if not len(rows):
        return
    rows = rows.shuffle(seed=0).select(range(min(EXAMPLES, len(rows))))
    answers = teacher.read(rows[args.image_column], bank).logits.numpy() if teacher else np.array(rows[LOGITS][:])
    logits, aspects = student_logits(student, args, rows)
    plot_examples(
        rows[args.image_column],
        [names[label] for label in rows[args.label_column]],
        [names[index] for index in logits.argmax(axis=1)],
        expit(answers),
        expit(aspects),
        bank.ids,
        Path(args.output_dir) / "figures" / "examples.png",
        softmax(logits, axis=1).max(axis=1),
    )


def class_by_class(args: CompareArguments, labelled: DatasetDict) -> dict[str, Any]:
    """What the base and the distilled classifiers predicted for the test images, compared."""
    cells = Path(args.output_dir) / "cells"
    predicted = {
        name: [
            load_arrays(cells / f"{condition}-{seed}" / PREDICTIONS, "logits", "labels") for seed in range(args.seeds)
        ]
        for name, condition in zip(compared({"task": "classification"}), ("base", args.treated))
    }
    logits = {condition: [arrays["logits"] for arrays in runs] for condition, runs in predicted.items()}
    names = labelled[args.train_split].features[args.label_column].names
    summary = summarise_classes(logits, predicted["base"][0]["labels"], names)
    write_classes(summary, args.output_dir)
    return summary

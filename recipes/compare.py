"""Compare students over seeds: base, distilled, and two controls that a real gain must beat.

Of detectors (task: detection), two are distilled: with aspects of the image, and with aspects of each object.

A seed redraws both the training images and the initialisation. The teacher labels the images once; finished students
are kept, so that the same command goes on where it stopped. Leaves report.json, report.md, figures/, the labelled
dataset and one distilled student in --output_dir, and with --push_to_hub publishes that student, its card holding the
comparison. (The token is HF_TOKEN, or the one that `hf auth login` stored.)

    python recipes/compare.py --config recipes/easy_vqa/compare.yaml --output_dir runs/demo
    python recipes/compare.py --config recipes/easy_vqa/detect_compare.yaml --output_dir runs/detect
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import train_detector
import train_student
import transformers
from cells import Cell, run_cells
from common import ClassArguments, ObjectArguments, RecipeParser, run, source
from conditions import CompareArguments, TaskArguments, check, label, plan, points, read_grid, student_words
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard
from scipy.special import expit, softmax
from transformers import AutoImageProcessor

from madkd_hf import AspectBank, AspectTeacher, MadkdForImageClassification, report
from madkd_hf.boxes import corners
from madkd_hf.hub import HubRepo, push_student
from madkd_hf.hub.cards.results import Evaluation
from madkd_hf.hub.cards.student import StudentFacts
from madkd_hf.images import to_rgb
from madkd_hf.objects import one_row_an_object
from madkd_hf.report import figures
from madkd_hf.report.classes import calibration_sentence, summarise_classes, write_classes
from madkd_hf.report.comparison import terms
from madkd_hf.report.evidence import write_evidence
from madkd_hf.report.grid import grid_table, grid_verdict, write_grid
from madkd_hf.report.scenes import plot_scenes
from madkd_hf.student.data import AspectCollator
from madkd_hf.student.metrics import AspectAuroc
from madkd_hf.student.saved import ADAPTER


EXAMPLES = 8
SCENES = 6
CAPTIONS = {
    "ap.png": "AP on the test images: every dot is one student. A real gain lifts `object`, and neither of the two "
    "controls.",
    "scenes.png": "Test images, and what the first student with aspects of each object finds in them: green boxes are "
    "right, orange ones are not; of boxes in the same place only the surest is shown. Behind each score stand the "
    "three aspects to which the student says yes most surely.",
    "accuracies.png": "Accuracy on the test images: every dot is one student. A real gain lifts `madkd`, and neither "
    "of the two controls.",
    "learning_curves.png": "The same on the validation images while the students learn.",
    "classes.png": "Which classes gained; the numbers, and the confusions that went away, are in "
    "[classes.md](classes.md).",
    "calibration.png": "How often the students are right when they are so sure.",
    "questions.png": "What the teacher's answer to each question tells about the class, beside what chance seems to "
    "tell, and how often it is yes; the numbers are in [questions.md](questions.md).",
    "teacher.png": "What the teacher sees: its mean probability of yes to each question, for each class.",
    "aspect_learning.png": "What the student learnt of each question: how well its answers rank validation images as "
    "the teacher's do (AUROC; 0.5 is chance).",
    "examples.png": "Test images, the student's class, and what teacher and student say of them.",
}


def keep_student(args: CompareArguments) -> Path | None:
    """Copy the first distilled student to where users look for it."""
    treated = terms({"task": args.objects.task}).treated
    cell, kept = (Path(args.output_dir) / name for name in (f"cells/{treated}-0", "student"))
    if treated not in args.controls():
        return None
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(cell, kept, ignore=shutil.ignore_patterns("cell.json", "*.npz", "log.txt", "checkpoint-*"))
    return kept


def look(student: Path, args: CompareArguments, rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """What a saved student says of images: class logits [n, C] and aspect logits [n, Q]."""
    model = MadkdForImageClassification.from_pretrained(student).eval()
    processor = AutoImageProcessor.from_pretrained(student)
    collate = AspectCollator(processor, model.config.num_labels, args.image_column, args.label_column)
    rows = rows.select_columns([args.image_column, args.label_column])
    with torch.inference_mode():
        outputs = [
            model(collate([rows[i] for i in range(start, min(start + 100, len(rows)))])["pixel_values"])
            for start in range(0, len(rows), 100)
        ]
    return tuple(torch.cat([output[name] for output in outputs]).numpy() for name in ("logits", "aspect_logits"))


def draw_scenes(args: CompareArguments, labelled: DatasetDict, bank: AspectBank, student: Path | None) -> None:
    """What detectors have in place of examples: the evidence on objects, and a page of scenes."""
    objects, train, test = args.objects, labelled[args.train_split], labelled[args.test_split]
    answers = one_row_an_object(train, objects.boxes_column, train_detector.CATEGORY)
    write_evidence(answers, bank, args.output_dir, train_detector.CATEGORY, "object")
    if student is None:
        return
    found = train_detector.load_predictions(student.parent / "cells" / "object-0" / train_detector.PREDICTIONS)
    chosen = np.random.default_rng(0).permutation(len(test))[:SCENES].tolist()
    rows = [test[i] for i in chosen]
    images = [to_rgb(row[args.image_column]) for row in rows]
    stored = [row[objects.boxes_column] for row in rows]
    truths = [
        {
            "boxes": corners(train_detector.values(each, "bbox"), objects.box_format, image.size),
            "labels": train_detector.values(each, train_detector.CATEGORY),
        }
        for each, image in zip(stored, images)
    ]
    names = train_detector.categories(train, objects).names
    place = Path(args.output_dir) / "figures" / "scenes.png"
    plot_scenes(images, truths, [found[i] for i in chosen], names, bank.ids, place)


def aspects_learnt(cells: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Condition -> for each seed, how well the student's aspects rank validation images, or the objects in them, as
    the teacher's answers do: the mean AUROC."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        if cell["metrics"].get("eval_aspect_auroc") is not None:
            found.setdefault(cell["condition"], []).append(cell["metrics"]["eval_aspect_auroc"])
    return found


def draw_figures(
    args: CompareArguments,
    labelled: DatasetDict,
    bank: AspectBank,
    teacher: AspectTeacher,
    cells: list[dict[str, Any]],
    summary: dict[str, Any],
    student: Path | None,
) -> dict[str, str]:
    """Every picture of the run, and into the summary what one of them shows; returns file name -> caption."""
    folder = Path(args.output_dir) / "figures"
    captions = dict(CAPTIONS)
    figures.plot_learning_curves(cells, folder / "learning_curves.png", summary["task"])
    if args.detects:
        figures.plot_accuracies(summary, folder / "ap.png")
        draw_scenes(args, labelled, bank, student)
        summary["aspects_learnt"] = aspects_learnt(cells)
        means = [f"{name} {np.mean(values):.3f}" for name, values in summary["aspects_learnt"].items()]
        captions["learning_curves.png"] += (
            " How well their aspects rank what is in the validation images as the teacher's answers do (mean AUROC; "
            f"0.5 is chance): {', '.join(means) or 'not known'}."
        )
    else:
        figures.plot_accuracies(summary, folder / "accuracies.png")
        draw_examples(args, labelled, bank, teacher, summary, student)
    return {name: caption for name, caption in captions.items() if (folder / name).is_file()}


def draw_examples(
    args: CompareArguments,
    labelled: DatasetDict,
    bank: AspectBank,
    teacher: AspectTeacher,
    summary: dict[str, Any],
    student: Path | None,
) -> None:
    """The evidence on images, what the aspects taught a classifier, and what it says of some images."""
    folder = Path(args.output_dir) / "figures"
    train = labelled[args.train_split]
    names = train.features[args.label_column].names
    write_evidence(train, bank, args.output_dir, args.label_column)
    if student is not None:
        seen = labelled[args.eval_split]
        aspects = look(student, args, seen)[1]
        auroc = AspectAuroc(keep_in_memory=True).compute(predictions=aspects, references=seen["aspect_logits"])
        summary["aspect_auroc"] = dict(zip(bank.ids, auroc["per_aspect"]))
        figures.plot_aspect_learning(bank.ids, auroc["per_aspect"], folder / "aspect_learning.png")
        rows = labelled[args.test_split].shuffle(seed=0).select(range(min(EXAMPLES, len(labelled[args.test_split]))))
        logits, aspects = look(student, args, rows)
        figures.plot_examples(
            rows[args.image_column],
            [names[label] for label in rows[args.label_column]],
            [names[index] for index in logits.argmax(axis=1)],
            expit(teacher.read(rows[args.image_column], bank).logits.numpy()),
            expit(aspects),
            bank.ids,
            folder / "examples.png",
            softmax(logits, axis=1).max(axis=1),
        )


def class_by_class(args: CompareArguments, names: Sequence[str]) -> dict[str, Any] | None:
    """What the plain and the distilled students predicted for the test images, compared."""
    if not {"base", "madkd"} <= set(args.controls()):
        return None
    cells = Path(args.output_dir) / "cells"
    predicted = {
        condition: [np.load(cells / f"{condition}-{seed}" / train_student.PREDICTIONS) for seed in range(args.seeds)]
        for condition in ("base", "madkd")
    }
    logits = {condition: [each["logits"] for each in found] for condition, found in predicted.items()}
    found = summarise_classes(logits, predicted["base"][0]["labels"], names)
    write_classes(found, args.output_dir)
    return found


def compare_points(
    args: CompareArguments,
    planned: list[tuple[dict[str, Any], dict[tuple[str, int], Cell]]],
    results: dict[str, dict[str, Any]],
    about: dict[str, Any],
) -> None:
    """The report of a grid."""
    found = []
    for point, cells in planned:
        both = [
            report.summarise(
                [
                    {"condition": condition, "seed": seed, "accuracy": 100 * results[cell.name]["metrics"][metric]}
                    for (condition, seed), cell in cells.items()
                ]
            )
            for metric in ("test_accuracy", "eval_accuracy")
        ]
        found.append({"point": point, **both[0], "validation": both[1]["accuracy"]})
    written = write_grid({"points": found, **about}, args.output_dir)
    print(f"\n{grid_table(found)}\n\n{grid_verdict(found)}\nReport and pictures: {written}")


def about_teacher(teacher: AspectTeacher, labelled: DatasetDict, args: CompareArguments) -> dict[str, Any]:
    """The teacher's provenance, how far its answers are to be trusted, and what its card reports of it."""
    rows = labelled[args.train_split]
    mass = np.array((one_row_an_object(rows) if args.detects else rows)["aspect_mass"])
    about = {**teacher.provenance, "mean_mass": float(mass.mean()), "lowest_mass": float(mass.min())}
    card = Path(args.teacher) / "README.md"
    if card.is_file():
        results = ModelCard.load(card, ignore_metadata_errors=True).data.eval_results or []
        about["card"] = {f"{result.dataset_name}: {result.metric_name}": result.metric_value for result in results}
    return about


def check_publishing(args: CompareArguments) -> HubRepo | None:
    """Where the student goes; what would keep it from going there is told before anything starts."""
    if not args.push_to_hub:
        return None
    if args.detects:
        raise ValueError(
            "compare.py publishes no detectors: leave --push_to_hub out, and then publish one with this comparison in "
            f"its card by train_detector.py --push_to_hub --comparison {args.output_dir}."
        )
    if read_grid(args.grid):
        raise ValueError("A grid has no one student to publish: choose a point, and publish without --grid.")
    if "madkd" not in args.controls():
        raise ValueError(f"There is no distilled student to publish in {args.conditions}: add madkd to --conditions.")
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    to = {"private": args.hub_private_repo, "revision": args.hub_revision, "create_pr": args.hub_create_pr}
    return HubRepo(name, "model", **to).check(args.hub_license)


def publish(
    args: CompareArguments,
    repo: HubRepo,
    student: Path,
    metrics: dict[str, Any],
    summary: dict[str, Any],
    labelled: DatasetDict,
) -> str:
    """One commit with the student that is kept, and a card with its own numbers and the comparison's; where it is."""
    asked, training_args = train_student.parse(student_words(args, "madkd", 0, str(student)))
    evaluations = [
        Evaluation(
            name,
            {key.removeprefix(f"{prefix}_"): value for key, value in metrics.items() if key.startswith(f"{prefix}_")},
            len(labelled[split]),
            split,
            list(summary["aspect_auroc"].values()) if prefix == "eval" else None,
        )
        for name, prefix, split in (("validation", "eval", args.eval_split), ("test", "test", args.test_split))
    ]
    facts = StudentFacts(
        dataset=train_student.about_dataset(args, labelled[args.train_split]),
        evaluations=evaluations,
        comparison=args.output_dir,
        compared=True,
        hyperparameters=training_args.hyperparameters() | asked.lora.hyperparameters(),
        license=args.hub_license,
    )
    model = MadkdForImageClassification.from_pretrained(student)
    processor = AutoImageProcessor.from_pretrained(student)
    commit = push_student(
        model,
        processor,
        repo,
        facts,
        plain=args.push_plain,
        adapter=student / ADAPTER if (student / ADAPTER).is_dir() else None,
        commit_message="Upload a distilled student",
    )
    return commit.pr_url or commit.repo_url


def parse(args: list[str] | None = None) -> CompareArguments:
    """
    Raises:
        ValueError: a setting that says nothing about the task.
    """
    compared, compared.objects = RecipeParser(CompareArguments, TaskArguments, description=__doc__).parse(args)
    if compared.detects:
        of_others = [name for name in ClassArguments.__annotations__ if _changed(compared, name)]
        of_others += ["grid"] if _changed(compared, "grid") else []
    else:
        of_others = [name for name in ObjectArguments.__annotations__ if _changed(compared.objects, name)]
    if of_others:
        other = "classification" if compared.detects else "detection"
        raise ValueError(f"{of_others[0]} is for task: {other}, and this is {compared.objects.task}: leave it out.")
    return compared


def _changed(args: Any, name: str) -> bool:
    return getattr(args, name) != type(args).__dataclass_fields__[name].default


def main() -> None:
    args = parse()
    check(args)
    repo = check_publishing(args)
    datasets.disable_progress_bars()  # ours remain: images labelled, students trained
    transformers.utils.logging.disable_progress_bar()
    started = [time.perf_counter()]
    labelled, bank, teacher = label(args)
    started.append(time.perf_counter())
    planned = [(point, plan(args, point, labelled, bank)) for point in points(args)]
    results = run_cells(list({cell.name: cell for _, cells in planned for cell in cells.values()}.values()), args.jobs)
    train = labelled[args.train_split]
    classes = train_detector.categories(train, args.objects) if args.detects else train.features[args.label_column]
    about = {
        "dataset": args.dataset,
        "commit": source(args)["commit"],
        "classes": classes.num_classes,
        "bank": bank.fingerprint,
        "teacher": about_teacher(teacher, labelled, args),
        "command": shlex.join(["python", *sys.argv]),
    }
    if planned[0][0]:
        return compare_points(args, planned, results, about)
    student = keep_student(args)
    started.append(time.perf_counter())
    cells = [
        {**results[cell.name], "condition": condition, "seed": seed}
        for (condition, seed), cell in planned[0][1].items()
    ]
    summary = report.summarise(cells, args.objects.task)
    by_class = class_by_class(args, classes.names)
    pictures = draw_figures(args, labelled, bank, teacher, cells, summary, student)
    started.append(time.perf_counter())
    summary |= about | {
        "images_per_class": args.images_per_class,
        "scenes": args.objects.scenes,
        "seconds": dict(zip(("label", "train", "report"), np.diff(started).tolist())),
        "figures": pictures,
    }
    written = report.write_report(summary, args.output_dir)
    print(f"\n{report.table(summary)}\n")
    if "gain" in summary:
        print(f"{report.verdict(summary['gain'], terms(summary).score)}.")
    if by_class:
        print(calibration_sentence(by_class))
    print(f"Report and pictures: {written}")
    if repo:
        url = publish(args, repo, student, results["madkd-0"]["metrics"], summary, labelled)
        print(f"Published: {url}")
    if args.detects:
        return
    print("Next, your own photographs (one sub-folder a class) and any MLLM of the Hub:")
    print(
        "  python recipes/attach_aspects.py --dataset PHOTOS --bank aspects.json "
        "--teacher OpenGVLab/InternVL3-1B-hf --output_dir runs/labelled"
    )


if __name__ == "__main__":
    run(main)

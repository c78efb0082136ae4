"""Compare students over seeds: base, distilled, and two controls that a real gain must beat.

A seed redraws both the training images and the initialisation. The teacher labels the images once; finished students
are kept, so that the same command goes on where it stopped. Leaves report.json, report.md, figures/, the labelled
dataset and one distilled student in --output_dir, and with --push_to_hub publishes that student, its card holding the
comparison. (The token is HF_TOKEN, or the one that `hf auth login` stored.)

    python recipes/compare.py --config recipes/easy_vqa/compare.yaml --output_dir runs/demo
"""

from __future__ import annotations

import json
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
import train_student
import transformers
from cells import Cell, run_cells
from common import RecipeParser, run, source
from conditions import CompareArguments, label, plan, points, student_words
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard
from scipy.special import expit, softmax
from transformers import AutoImageProcessor

from madkd_hf import AspectBank, AspectTeacher, MadkdForImageClassification, report
from madkd_hf.hub import HubRepo, push_student
from madkd_hf.hub.cards.results import Evaluation
from madkd_hf.hub.cards.student import StudentFacts
from madkd_hf.report import figures
from madkd_hf.report.classes import calibration_sentence, summarise_classes, write_classes
from madkd_hf.report.evidence import write_evidence
from madkd_hf.report.grid import grid_table, grid_verdict, write_grid
from madkd_hf.student.data import AspectCollator
from madkd_hf.student.metrics import AspectAuroc
from madkd_hf.student.saved import ADAPTER


EXAMPLES = 8
CAPTIONS = {
    "accuracies.png": "Accuracy on the test images: every dot is one student. A real gain lifts `madkd`, and neither "
    "of the two controls.",
    "learning_curves.png": "Accuracy on the validation images while the students learn.",
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
    cell, kept = (Path(args.output_dir) / name for name in ("cells/madkd-0", "student"))
    if "madkd" not in args.conditions:
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
    train = labelled[args.train_split]
    names = train.features[args.label_column].names
    figures.plot_accuracies(summary, folder / "accuracies.png")
    figures.plot_learning_curves(cells, folder / "learning_curves.png")
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
    return {name: caption for name, caption in CAPTIONS.items() if (folder / name).is_file()}


def class_by_class(args: CompareArguments, names: Sequence[str]) -> dict[str, Any] | None:
    """What the plain and the distilled students predicted for the test images, compared."""
    if not {"base", "madkd"} <= set(args.conditions):
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
    mass = np.array(labelled[args.train_split]["aspect_mass"])
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
    if json.loads(args.grid):
        raise ValueError("A grid has no one student to publish: choose a point, and publish without --grid.")
    if "madkd" not in args.conditions:
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


def main() -> None:
    (args,) = RecipeParser(CompareArguments, description=__doc__).parse()
    for name in ("output_dir", "baseline", "distill"):
        if not getattr(args, name):
            raise ValueError(f"No {name} given: pass --{name} (see --help).")
    repo = check_publishing(args)
    datasets.disable_progress_bars()  # ours remain: images labelled, students trained
    transformers.utils.logging.disable_progress_bar()
    started = [time.perf_counter()]
    labelled, bank, teacher = label(args)
    started.append(time.perf_counter())
    planned = [(point, plan(args, point, labelled, bank)) for point in points(args)]
    results = run_cells(list({cell.name: cell for _, cells in planned for cell in cells.values()}.values()), args.jobs)
    about = {
        "dataset": args.dataset,
        "commit": source(args)["commit"],
        "classes": labelled[args.train_split].features[args.label_column].num_classes,
        "bank": bank.fingerprint,
        "teacher": about_teacher(teacher, labelled, args),
        "command": shlex.join(["python", *sys.argv]),
    }
    if json.loads(args.grid):
        return compare_points(args, planned, results, about)
    student = keep_student(args)
    started.append(time.perf_counter())
    cells = [
        {**results[cell.name], "condition": condition, "seed": seed}
        for (condition, seed), cell in planned[0][1].items()
    ]
    summary = report.summarise(cells)
    by_class = class_by_class(args, labelled[args.train_split].features[args.label_column].names)
    pictures = draw_figures(args, labelled, bank, teacher, cells, summary, student)
    started.append(time.perf_counter())
    summary |= about | {
        "images_per_class": args.images_per_class,
        "seconds": dict(zip(("label", "train", "report"), np.diff(started).tolist())),
        "figures": pictures,
    }
    written = report.write_report(summary, args.output_dir)
    print(f"\n{report.table(summary)}\n")
    if "gain" in summary:
        print(f"{report.verdict(summary['gain'])}.")
    if by_class:
        print(calibration_sentence(by_class))
    print(f"Report and pictures: {written}")
    if repo:
        url = publish(args, repo, student, results["madkd-0"]["metrics"], summary, labelled)
        print(f"Published: {url}")
    print("Next, your own photographs (one sub-folder a class) and any MLLM of the Hub:")
    print(
        "  python recipes/attach_aspects.py --dataset PHOTOS --bank aspects.json "
        "--teacher OpenGVLab/InternVL3-1B-hf --output_dir runs/labelled"
    )


if __name__ == "__main__":
    run(main)

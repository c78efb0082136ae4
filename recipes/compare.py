"""Compare students over seeds: base, distilled, and two controls that a real gain must beat.

A seed redraws both the training images and the initialisation. The teacher labels the images once; finished students
are kept, so that the same command goes on where it stopped. Leaves report.json, report.md, figures/, the labelled
dataset and one distilled student in --output_dir, and with --push_to_hub publishes that student, its card holding the
comparison. (The token is HF_TOKEN, or the one that `hf auth login` stored.)

    python recipes/compare.py --config recipes/easy_vqa/compare.yaml --output_dir runs/demo
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import attach_aspects
import datasets
import numpy as np
import torch
import train_student
import transformers
from cells import Cell, run_cells
from common import BankArguments, DatasetArguments, RecipeParser, SplitArguments, load_splits, run, source
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard
from scipy.special import expit, softmax
from transformers import AutoImageProcessor

from madkd_hf import AspectBank, AspectTeacher, MadkdForImageClassification, report
from madkd_hf.hub import HubRepo, push_student
from madkd_hf.hub.cards.results import Evaluation
from madkd_hf.hub.cards.student import StudentFacts
from madkd_hf.report import figures
from madkd_hf.report.evidence import write_evidence
from madkd_hf.student.data import AspectCollator
from madkd_hf.student.metrics import AspectAuroc


CONTROLS = {"base": "none", "madkd": "none", "shuffled": "shuffled", "constant": "constant"}
EXAMPLES = 8
CAPTIONS = {
    "accuracies.png": "Accuracy on the test images: every dot is one student. A real gain lifts `madkd`, and neither "
    "of the two controls.",
    "learning_curves.png": "Accuracy on the validation images while the students learn.",
    "questions.png": "What the teacher's answer to each question tells about the class, beside what chance seems to "
    "tell, and how often it is yes; the numbers are in [questions.md](questions.md).",
    "teacher.png": "What the teacher sees: its mean probability of yes to each question, for each class.",
    "aspect_learning.png": "What the student learnt of each question: how well its answers rank validation images as "
    "the teacher's do (AUROC; 0.5 is chance).",
    "examples.png": "Test images, the student's class, and what teacher and student say of them.",
}


@dataclass
class CompareArguments(BankArguments, SplitArguments):
    """What is compared, on what, how often."""

    _argument_group_name = "comparison"

    output_dir: str = field(default="", metadata={"help": "The folder for report, figures and students."})
    baseline: str = field(default="", metadata={"help": "YAML of train_student.py for the plain student."})
    distill: str = field(
        default="", metadata={"help": "YAML of train_student.py for the distilled one and its controls."}
    )
    conditions: list[str] = field(
        default_factory=lambda: list(CONTROLS), metadata={"help": f"Which of {', '.join(CONTROLS)}."}
    )
    seeds: int = field(default=5, metadata={"help": "Students per condition; each redraws images and weights."})
    jobs: int | None = field(
        default=None, metadata={"help": "Students trained side by side, one thread each; one per core by default."}
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "Publish the distilled student that is kept, with what was found."}
    )
    hub_model_id: str | None = field(default=None, metadata={"help": "Where to: owner/name, or a name of your own."})
    hub_private_repo: bool = field(default=True, metadata={"help": "Whether a new repo is private."})
    hub_revision: str | None = field(default=None, metadata={"help": "The branch to commit to; main by default."})
    hub_create_pr: bool = field(default=False, metadata={"help": "Open a pull request."})
    hub_license: str | None = field(
        default=None, metadata={"help": "Licence of the published student, as the Hub calls it, such as apache-2.0."}
    )
    push_plain: bool = field(
        default=False,
        metadata={"help": "Publish the plain model: no remote code, the same class scores, no aspects."},
    )


def label(args: CompareArguments) -> tuple[DatasetDict, Any, AspectTeacher]:
    """The labelled dataset in the output folder: training images, and validation images for the aspects' curves."""
    names = DatasetArguments.__dataclass_fields__ | BankArguments.__dataclass_fields__
    shared = {name: getattr(args, name) for name in names}
    splits = train_student.prepare_splits(load_splits(args), args, seed=0)
    if args.test_split not in splits:
        raise ValueError(f"There is no split {args.test_split!r} for the last number: the dataset has {list(splits)}.")
    if "aspect_logits" in splits[args.train_split].features:
        raise ValueError(
            f"{args.dataset} is labelled already: pass the dataset that it was made from (answers read before come "
            "from the cache)."
        )
    attach = attach_aspects.AttachArguments(**shared, splits=[args.train_split, args.eval_split])
    labelled, bank, teacher = attach_aspects.label(attach, splits)
    attach_aspects.save(labelled, bank, Path(args.output_dir) / "labelled")
    return labelled, bank, teacher


def plan(args: CompareArguments) -> list[Cell]:
    """Every condition with every seed."""
    unknown = set(args.conditions) - set(CONTROLS)
    if unknown:
        raise ValueError(f"Unknown condition {unknown.pop()!r}: expected some of {list(CONTROLS)}.")
    return [
        Cell(f"{condition}-{seed}", tuple(student_words(args, condition, seed, folder)), folder)
        for seed in range(args.seeds)
        for condition in dict.fromkeys(args.conditions)
        for folder in [str(Path(args.output_dir) / "cells" / f"{condition}-{seed}")]
    ]


def student_words(args: CompareArguments, condition: str, seed: int, folder: str) -> list[str]:
    """The command line of one student: its YAML, and over it what all students have in common."""
    labelled = str(Path(args.output_dir) / "labelled")
    words = ["--config", args.baseline if condition == "base" else args.distill]
    words += ["--dataset", labelled, "--bank", labelled, "--aspect_control", CONTROLS[condition]]
    words += ["--aspect_alpha", "0"] if condition == "base" else []
    words += ["--seed", str(seed), "--output_dir", folder, "--do_predict", "true"]
    words += ["--disable_tqdm", "true", "--report_to", "none", "--push_to_hub", "false"]
    for name in ("image_column", "label_column", "train_split", "eval_split", "test_split", "images_per_class"):
        if getattr(args, name) is not None:
            words += [f"--{name}", str(getattr(args, name))]
    return words


def keep_student(args: CompareArguments) -> Path | None:
    """Copy the first distilled student to where users look for it."""
    cell, kept = (Path(args.output_dir) / name for name in ("cells/madkd-0", "student"))
    if "madkd" not in args.conditions:
        return None
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(cell, kept, ignore=shutil.ignore_patterns("cell.json", "log.txt", "checkpoint-*"))
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
    words = student_words(args, "madkd", 0, str(student))
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
        hyperparameters=train_student.parse(words)[1].hyperparameters(),
        license=args.hub_license,
    )
    model = MadkdForImageClassification.from_pretrained(student)
    processor = AutoImageProcessor.from_pretrained(student)
    commit = push_student(
        model, processor, repo, facts, plain=args.push_plain, commit_message="Upload a distilled student"
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
    results = run_cells(plan(args), args.jobs)
    student = keep_student(args)
    started.append(time.perf_counter())
    cells = [
        {**result, "condition": name.rsplit("-", 1)[0], "seed": int(name.rsplit("-", 1)[1])}
        for name, result in results.items()
    ]
    summary = report.summarise(cells)
    pictures = draw_figures(args, labelled, bank, teacher, cells, summary, student)
    started.append(time.perf_counter())
    summary |= {
        "dataset": args.dataset,
        "commit": source(args)["commit"],
        "classes": labelled[args.train_split].features[args.label_column].num_classes,
        "bank": bank.fingerprint,
        "images_per_class": args.images_per_class,
        "seconds": dict(zip(("label", "train", "report"), np.diff(started).tolist())),
        "teacher": about_teacher(teacher, labelled, args),
        "figures": pictures,
        "command": shlex.join(["python", *sys.argv]),
    }
    written = report.write_report(summary, args.output_dir)
    print(f"\n{report.table(summary)}\n")
    if "gain" in summary:
        print(f"{report.verdict(summary['gain'])}.")
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

"""Which students are compared: conditions, seeds, and the points of a grid."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import attach_aspects
import train_student
from cells import Cell
from common import BankArguments, DatasetArguments, SplitArguments, load_splits
from datasets import DatasetDict

from madkd_hf import AspectBank, AspectTeacher
from madkd_hf.questions.subset import subset


CONTROLS = {"base": "none", "madkd": "none", "shuffled": "shuffled", "constant": "constant"}
OF_ASPECTS = ("aspect_alpha", "aspects")  # a plain student has neither


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
    grid: str = field(
        default="{}",
        metadata={
            "help": "Option of train_student.py, or `aspects` (the first so many questions), -> values; all "
            "conditions and seeds are trained at every point (JSON): '{\"images_per_class\": [5, 10, 20, 50]}'."
        },
    )
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


def points(args: CompareArguments) -> list[dict[str, Any]]:
    """The grid's points, option -> value; a single one without options where there is no grid."""
    grid = json.loads(args.grid)
    if wrong := [option for option, values in grid.items() if not isinstance(values, list) or not values]:
        raise ValueError(f"The grid's option {wrong[0]!r} needs a list of values; got {grid[wrong[0]]!r}.")
    return [dict(zip(grid, values)) for values in itertools.product(*grid.values())]


def plan(
    args: CompareArguments, point: dict[str, Any], labelled: DatasetDict, bank: AspectBank
) -> dict[tuple[str, int], Cell]:
    """(condition, seed) -> the student to train at a point of the grid."""
    unknown = set(args.conditions) - set(CONTROLS)
    if unknown:
        raise ValueError(f"Unknown condition {unknown.pop()!r}: expected some of {list(CONTROLS)}.")
    cells = {}
    for seed in range(args.seeds):
        for condition in dict.fromkeys(args.conditions):
            settings = {k: v for k, v in point.items() if condition != "base" or k not in OF_ASPECTS}
            name = "-".join([condition, *(f"{option}_{value}" for option, value in settings.items()), str(seed)])
            folder = str(Path(args.output_dir) / "cells" / name)
            words = student_words(args, condition, seed, folder)
            if (count := settings.pop("aspects", len(bank))) != len(bank):
                place = keep(labelled, bank, bank.ids[:count], args)
                words += ["--dataset", place, "--bank", place]
            words += [f"--{option}={value}" for option, value in settings.items()]
            cells[condition, seed] = Cell(name, tuple(words), folder)
    return cells


def keep(labelled: DatasetDict, bank: AspectBank, ids: Sequence[str], args: CompareArguments) -> str:
    """A folder of the labelled dataset with the answers to these questions alone."""
    rows, kept = subset(labelled, bank, ids)
    folder = Path(args.output_dir) / "sets" / kept.fingerprint
    attach_aspects.save(rows, kept, folder)
    return str(folder)


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

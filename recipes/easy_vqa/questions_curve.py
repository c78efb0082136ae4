"""How accurate a student becomes with how many questions, chosen by evidence, in the order of the list, or at random.

All candidates are answered once; each student is then trained with some of the answers. The choice by evidence sees
the training images of its own student, and no others; accuracies are on the validation images, and the test images
are not touched. Finished students are kept, so that the same command goes on where it stopped.

    python recipes/questions_curve.py --config recipes/easy_vqa/questions_curve.yaml --output_dir runs/questions
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import transformers
from datasets import Dataset, DatasetDict

from madkd_hf import AspectBank
from madkd_hf.cli.arguments import CommandParser
from madkd_hf.cli.comparison.cells import Cell, run_cells
from madkd_hf.cli.comparison.conditions import CompareArguments, check, label, load_checked, save_subset, student_cell
from madkd_hf.cli.outputs import COMPARING, COMPARISON, working_in
from madkd_hf.cli.preflight import Ready
from madkd_hf.cli.tasks.classification import drawn_rows
from madkd_hf.data.columns import read_answers, read_labels
from madkd_hf.data.problems import Problems
from madkd_hf.selection.choice import select_questions
from madkd_hf.students.base.fields import option
from recipes.easy_vqa.curve_report import METHODS, curve_verdict, summarise_curve, write_curve


CRITERIA = {"evidence": "cmim", "jmi": "jmi", "mrmr": "mrmr"}


@dataclass
class CurveArguments(CompareArguments):
    """`compare.py`'s, and what to compare."""

    methods: list[str] = option(
        ["evidence", "llm", "random"], f"Ways to choose questions, some of {', '.join(METHODS)}."
    )
    counts: list[int] = option([2, 4, 6, 8, 12, 16], "How many questions to choose.")
    first_seed: int = option(2000, "The seeds begin here; those of compare.py at 0, those of tune.py at 1000.")


def choose(method: str, count: int, seed: int, rows: Dataset, bank: AspectBank, args: CurveArguments) -> list[str]:
    """Ids of the questions that a method chooses; by evidence, they may be fewer than asked for.

    Args:
        rows: all labelled training images; by evidence, those that the student of this seed will see are looked at.
    """
    if method == "llm":
        return bank.ids[:count]
    if method == "random":
        return [bank.ids[q] for q in np.random.default_rng(seed).permutation(len(bank))[:count]]
    if args.images_per_class is not None:
        rows = rows.select(drawn_rows(rows, args.label_column, args.images_per_class, seed))
    logits, mass, _ = read_answers(rows, bank)
    labels, _ = read_labels(rows, args.label_column)
    return select_questions(logits, mass, labels, bank, count, CRITERIA[method]).bank.ids


def check_methods(args: CurveArguments) -> None:
    """Raise ValueError for ways to choose that there are not, and for more questions than there are."""
    if unknown := set(args.methods) - set(METHODS):
        raise ValueError(f"Unknown method {unknown.pop()!r}: expected some of {list(METHODS)}.")
    count = len(AspectBank.load(args.bank)) if args.bank else max(args.counts) + 1
    if wrong := [each for each in args.counts if not 0 < each < count]:
        raise ValueError(f"Cannot choose {wrong[0]} of {count} questions: expected 1 to {count - 1}.")


def plan(args: CurveArguments, labelled: DatasetDict, bank: AspectBank) -> dict[str, tuple[Cell, dict[str, Any]]]:
    """Cell name -> the student to train, and its place in the curve."""
    cells = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        points = [(method, count) for count in args.counts for method in args.methods]
        for method, count in [("base", 0), ("all", len(bank)), *points]:
            name = f"{method}-{count}-{seed}"
            more, ids = [], [] if method == "base" else bank.ids
            if method in args.methods:
                ids = choose(method, count, seed, labelled[args.train_split], bank, args)
                more = save_subset(labelled, bank, ids, args)
            point = {"method": method, "asked": count, "kept": len(ids), "seed": seed, "questions": ids}
            condition = "base" if method == "base" else "madkd"
            cells[name] = student_cell(args, condition, seed, name, more, is_tested=False), point
    return cells


def main() -> None:
    (args,) = CommandParser(CurveArguments, description=__doc__).parse()
    problems = Problems()
    students = problems.step(check, args)
    problems.step(check_methods, args)
    ready = load_checked(args, problems, students, "unused")
    with working_in(args.output_dir, args, COMPARING, COMPARISON):
        _draw_curve(args, ready)


def _draw_curve(args: CurveArguments, ready: Ready) -> None:
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    labelled, bank, _ = label(args, ready.splits)
    planned = plan(args, labelled, bank)
    results = run_cells([cell for cell, _ in planned.values()], args.jobs)
    points = [{**point, "accuracy": results[name]["accuracy"]} for name, (_, point) in planned.items()]
    about = {
        "candidates": len(bank),
        "dataset": args.dataset,
        "images_per_class": args.images_per_class,
        "validation_images": len(labelled[args.eval_split]),
        "left_out": ready.summary,
        "command": shlex.join(["python", *sys.argv]),
    }
    summary = summarise_curve(points) | about
    written, table = write_curve(summary, args.output_dir)
    print(f"\n{table}\n{curve_verdict(summary)}\nPicture and table: {written}")

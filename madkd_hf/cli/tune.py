"""Choose training arguments of base and distilled students, or of other conditions, on validation images.

Trains every point of the grid with every seed, writes the table of all cells, and names the winners; they go into the
YAML files by hand. The test images are not touched.

    madkd tune --config recipes/easy_vqa/tune.yaml --output_dir runs/tune
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.problems import Problems
from ..files import write_whole
from ..students.base.fields import option
from .arguments import CommandParser
from .comparison.options import CompareArguments, check_given
from .outputs import COMPARING, COMPARISON, working_in


if TYPE_CHECKING:
    from .comparison.cells import Cell
    from .preflight import Ready


@dataclass
class TuneArguments(CompareArguments):
    """`madkd compare`'s, and the grid."""

    conditions: list[str] = option(
        ["base", "madkd"], "Whose settings are chosen: any conditions of `madkd compare`, each for itself."
    )
    grid: str = option("{}", "Option of the training -> values to try, for all students that know the option (JSON).")
    distill_grid: str = option("{}", "More options, for the students of `madkd` alone (JSON).")


def plan(args: TuneArguments) -> dict[tuple[str, str], list[Cell]]:
    """(condition, settings) -> one cell a seed."""
    from .comparison.cells import cell_name
    from .comparison.conditions import of_condition, read_grid, student_cell

    cells = {}
    for condition in args.controls():
        grid = read_grid(args.grid)
        if condition == "madkd":
            grid |= read_grid(args.distill_grid, "distill_grid")
        grid = of_condition(args, grid, condition)
        for values in itertools.product(*grid.values()):
            point = {option: str(value) for option, value in zip(grid, values)}
            settings = ", ".join(map(" ".join, point.items()))
            more = [f"--{option}={value}" for option, value in point.items()]
            cells[condition, settings] = []
            for seed in range(args.seeds):
                name = cell_name(condition, *map("_".join, point.items()), seed)
                cell = student_cell(args, condition, 1000 + seed, name, more, is_tested=False)  # not `compare`'s seeds
                cells[condition, settings].append(cell)
    return cells


def main() -> None:
    (args,) = CommandParser(TuneArguments, description=__doc__).parse()
    check_given(args)
    if taught := set(args.controls()) & set(args.command.of_class_teacher):
        raise ValueError(
            f"The students of {min(taught)} need a class teacher that is trained already: tune those of posterior or "
            "madkd, and compare."
        )
    from . import train
    from .comparison.conditions import check, load_checked

    problems = Problems()
    problems.step(check, args)
    planned = problems.step(plan, args) or {}
    parsed = [problems.step(train.parse, list(cell.argv)) for cells in planned.values() for cell in cells]
    ready = load_checked(args, problems, [student for student in parsed if student], "unused")
    with working_in(args.output_dir, args, COMPARING, COMPARISON):
        _tune(args, planned, ready)


def _tune(args: TuneArguments, planned: dict[tuple[str, str], list[Cell]], ready: Ready) -> None:
    from statistics import fmean

    from ..report.comparison import drawn_sentence, left_out_sentence
    from .comparison.cells import run_cells
    from .comparison.conditions import label

    label(args, ready.splits)
    results = run_cells([cell for cells in planned.values() for cell in cells], args.jobs)
    lines = ["| student | settings | validation accuracy, % | over seeds |", "| --- | --- | ---: | --- |"]
    best: dict[str, tuple[float, str]] = {}
    for (condition, settings), cells in planned.items():
        accuracies = [results[cell.name]["accuracy"] for cell in cells]
        mean, over_seeds = fmean(accuracies), ", ".join(f"{value:.1f}" for value in accuracies)
        lines.append(f"| {condition} | {settings} | {mean:.2f} | {over_seeds} |")
        best[condition] = max(best.get(condition, (-1.0, "")), (mean, settings))
    lines += ["", *(f"Best {condition}: {settings} ({mean:.2f}%)." for condition, (mean, settings) in best.items())]
    lines += ["", left_out_sentence(ready.summary)] if ready.summary else []
    lines += ["", drawn_sentence({"drawn": drawn})] if (drawn := ready.drawn(args)) else []
    table = "\n".join(lines) + "\n"
    write_whole(Path(args.output_dir, "tune.md"), table)
    print(table)

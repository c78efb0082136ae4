"""Students that learn from the class scores of a larger one: it is trained first, on the same labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ... import AspectBank, ClassTeacher, attach_class_targets
from ...data.columns import CLASS_COLUMNS
from ...data.unlabelled import UNLABELLED
from ...data.variants import subset
from ...labelling.labellers import ClassLabeller
from .. import label as label_command
from ..arguments import files_from
from ..class_targets import facts_of_teacher
from .cells import Cell, run_cells
from .conditions import of_condition, points, targets_folder, teacher_cell
from .options import CompareArguments


@dataclass(frozen=True)
class TargetSet:
    """A dataset to make: the class targets of a class teacher, and `count` answers an image, in a folder."""

    teacher: Cell
    count: int
    folder: Path


def train_all(
    args: CompareArguments,
    planned: list[tuple[dict[str, Any], dict[tuple[str, int], Cell]]],
    labelled: DatasetDict,
    bank: AspectBank,
) -> dict[str, dict[str, Any]]:
    """The numbers of each student by its name, see `run_cells`: class teachers and those that need none first.

    The dataset of a class teacher's targets carries the digest of its weights: where it was trained again, and became
    another one, so are its students.
    """
    taught, others = {}, {}
    for _, cells in planned:
        for (condition, _), cell in cells.items():
            (taught if condition in args.command.of_class_teacher else others)[cell.name] = cell
    sets = target_sets(args, bank) if taught else []
    others |= {one.teacher.name: one.teacher for one in sets}
    results = run_cells(list(others.values()), args.jobs)
    for one in sets:
        save_targets(args, labelled, bank, one)
    return results | (run_cells(list(taught.values()), args.jobs) if taught else {})


def target_sets(args: CompareArguments, bank: AspectBank) -> list[TargetSet]:
    """Those that the students at all points of the grid need, each once."""
    sets = {}
    for point in points(args):
        for seed in range(args.seeds):
            for condition in [name for name in args.controls() if name in args.command.of_class_teacher]:
                count = of_condition(args, point, condition).get("aspects", len(bank))
                teacher = teacher_cell(args, point, seed)
                folder = targets_folder(args, teacher, count, bank)
                sets[folder] = TargetSet(teacher, count, folder)
    return list(sets.values())


def save_targets(args: CompareArguments, labelled: DatasetDict, bank: AspectBank, wanted: TargetSet) -> None:
    """Let the class teacher score all training images, those without a class, too, and save them with the scores."""
    rows, own_bank = (
        subset(labelled, bank, bank.ids[: wanted.count]) if wanted.count != len(bank) else (labelled, bank)
    )
    teacher = ClassTeacher.from_pretrained(wanted.teacher.folder)
    classes = args.command.classes(labelled[args.train_split], args).names
    scored = attach_class_targets(
        rows,
        teacher,
        args.image_column,
        splits=[split for split in (args.train_split, UNLABELLED) if split in rows],
        on_error=args.on_error,
        files_from=files_from(args),
        classes=classes,
    )
    train_set = scored[args.train_split].select_columns([*CLASS_COLUMNS, args.label_column])
    parts = {args.train_split: train_set}
    parts |= {UNLABELLED: scored[UNLABELLED].select_columns([*CLASS_COLUMNS])} if UNLABELLED in scored else {}
    facts = facts_of_teacher(parts, args.label_column, ClassLabeller(teacher, classes))
    label_command.save(scored, own_bank, wanted.folder, facts)

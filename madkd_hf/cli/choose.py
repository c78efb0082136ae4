"""Keep the questions that are worth asking, by the answers about a small sample of images.

From a dataset that `madkd label` labelled with all candidates. Leaves in --output_dir the kept questions as
aspects.json, in order of choice, and why each candidate was kept or dropped: selection.md, selection.json and
figures/selection.png. With --write_dataset, the dataset with the answers to the kept questions alone, so that nobody
labels twice:

    madkd choose --dataset runs/labelled --keep 12 --write_dataset --output_dir runs/selected

Or from images that no one has labelled: a teacher answers all candidates about a sample of each class first:

    madkd choose --config recipes/easy_vqa/select.yaml --output_dir runs/selected
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..aspects import BANK_FILE, AspectBank
from ..students.base.fields import option
from . import label as label_command
from .arguments import CommandParser, DatasetArguments, command_line, load_splits, split_names
from .outputs import DATASET, SELECTION, check_place, working_in
from .teachers import OwnTeacherArguments


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


HEAD = 15  # lines of the table that are printed


@dataclass
class ChooseArguments(OwnTeacherArguments, DatasetArguments):
    """What to choose from, and how many."""

    _argument_group_name = "selection"

    output_dir: str = option("", "The folder for the kept questions and the reasons.")
    keep: int = option(50, "Q, how many questions to keep; the paper's 50.")
    splits: list[str] = option(["train"], "Splits that the choice may see: never those that measure the student.")
    label_column: str = option("label", "The column of classes.")
    sample: int | None = option(None, "Look at this many images, evenly of all classes, and label them if need be.")
    criterion: Literal["cmim", "jmi", "mrmr"] = option(
        "cmim",
        "What a question adds to those chosen: at least (cmim), on average (jmi), or less what they share (mrmr).",
    )
    seed: int = option(0, "Draws the sample.")
    write_dataset: bool = option(False, "Leave the labelled dataset, too, with the kept answers alone.")


def check(args: ChooseArguments, splits: DatasetDict) -> bool:
    """Whether the dataset is labelled; refuses what cannot be done with it."""
    if missing := [split for split in args.splits if split not in splits]:
        raise ValueError(f"There is no split {missing[0]!r}: the dataset has {list(splits)}; pass --splits.")
    rows = splits[args.splits[0]]
    if args.label_column not in rows.features:
        raise ValueError(
            f"There is no column {args.label_column!r}, and choosing by evidence needs the class of each image: the "
            f"dataset has {rows.column_names}; pass --label_column."
        )
    if "aspect_logits" in rows.features:
        return True
    if args.bank is None or args.teacher is None or args.sample is None:
        raise ValueError(
            f"The dataset has no aspect columns: label it with madkd label --splits "
            f"{' '.join(args.splits)}, or pass --bank, --teacher and --sample to label some images now."
        )
    if args.write_dataset:
        raise ValueError(
            "Only a sample is to be labelled, and --write_dataset needs answers for the dataset: leave it out, and "
            "label the dataset with the kept questions afterwards."
        )
    return False


def answers(args: ChooseArguments, splits: DatasetDict, labelled: bool) -> tuple[Dataset, AspectBank]:
    """The rows to look at, without their images, and the bank of all candidates."""
    from datasets import DatasetDict, concatenate_datasets

    from ..data.columns import ASPECT_COLUMNS, stored
    from ..data.limits import draw_evenly
    from .preflight import check_sample

    names = [*ASPECT_COLUMNS, args.label_column]
    rows = concatenate_datasets([splits[split] for split in args.splits])
    name = args.splits[0] if len(args.splits) == 1 else "sample"  # messages name rows by the split
    if args.sample is not None:
        labels = [None if label == -1 else label for label in stored(rows, args.label_column).to_pylist()]
        rows = rows.select(draw_evenly(labels, args.sample, args.seed, without_class=False))
    if labelled:
        bank = AspectBank.load(args.bank or args.dataset, None if args.bank else args.dataset_revision)
    else:
        rows = check_sample(rows, args)
        shared = {name: getattr(args, name) for name in DatasetArguments.__dataclass_fields__}
        shared |= vars(args.teacher_arguments())
        label_args = label_command.LabelArguments(**shared, splits=[name], label_column=args.label_column)
        labelled_splits, bank, _ = label_command.label(label_args, DatasetDict({name: rows}))
        rows = labelled_splits[name]
    return rows.select_columns([name for name in names if name in rows.features]), bank


def next_step(args: ChooseArguments, labelled: bool) -> str:
    """The command that uses what was left in the output folder."""
    folder = shlex.quote(args.output_dir)
    if args.write_dataset:
        return f"madkd train --dataset {folder} --backbone microsoft/resnet-18 --output_dir runs/student"
    if labelled:
        return f"{command_line()} --write_dataset"
    return (
        f"madkd label --dataset {shlex.quote(args.dataset)} --bank {folder}/aspects.json "
        f"--teacher {shlex.quote(args.teacher)} --output_dir runs/labelled"
    )


def main() -> None:
    (args,) = CommandParser(ChooseArguments, description=__doc__).parse()
    args.splits = split_names(args.splits)
    names = (*(DATASET if args.write_dataset else [BANK_FILE]), *SELECTION)
    place = (args.output_dir, args, label_command.KIND, names)
    check_place(*place)
    if args.keep < 1:
        raise ValueError(f"Expected to keep at least 1 question; got keep={args.keep}.")
    if not args.write_dataset and (Path(args.output_dir) / "dataset_dict.json").exists():
        raise ValueError(
            f"{args.output_dir} holds a dataset, whose bank would be overwritten: pass --write_dataset to replace "
            "both, or another --output_dir."
        )
    with working_in(*place):
        _select(args)


def _select(args: ChooseArguments) -> None:
    from ..data.columns import read_answers, read_labels
    from ..data.variants import subset
    from ..selection.choice import select_questions
    from ..selection.page import selection_table, write_selection

    splits = load_splits(args)
    labelled = check(args, splits)
    if args.write_dataset:
        label_command.check_splits(splits, Path(args.output_dir))
    rows, bank = answers(args, splits, labelled)
    logits, mass, _ = read_answers(rows, bank)
    labels, _ = read_labels(rows, args.label_column)
    selection = select_questions(logits, mass, labels, bank, args.keep, args.criterion)
    if args.write_dataset:
        label_command.save(*subset(splits, bank, selection.bank.ids), args.output_dir)
    else:
        selection.bank.save(args.output_dir)
    written = write_selection(selection, args.output_dir)
    print(selection_table(selection, most=HEAD))
    if len(selection.choices) > HEAD:
        print(f"... and {len(selection.choices) - HEAD} more in {written}.")
    print(f"{selection.message}\nWhy each was kept or dropped, with a picture: {written}. Next:")
    print(f"  {next_step(args, labelled)}")

"""Make a page to look through a labelled dataset: images, answers, and the likeliest mistakes of the labels first.

Leaves in --output_dir an index.html that opens from a disk, without a server and without the web, with a thumbnail of
each image beside it; and suspects.jsonl, the rows whose label is doubtful:

    madkd view runs/labelled --output_dir runs/view

A regression from the answers to the classes, fitted without the image it judges, says how probable its label is. The
images of a split without answers are shown, too: a picture that is there twice with two labels is found in any split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..aspects import AspectBank
from ..students.base.fields import option
from ..text import counted, markdown
from ..viewer import KIND, NAMES, SUSPECTS
from .arguments import CommandParser, DatasetArguments, existing_folder, load_splits, split_names
from .options import check_paths
from .outputs import check_place, working_in


if TYPE_CHECKING:
    from datasets import DatasetDict

    from ..viewer.page import View


SMALLEST, LARGEST = 32, 1024  # pixels of a thumbnail
HEAD = 10  # lines of the table that are printed


@dataclass
class ViewArguments(DatasetArguments):
    """What to look through."""

    _argument_group_name = "view"

    output_dir: str = option("", "The folder for the page: a new one, or one that this command wrote.")
    bank: str | None = option(None, "The questions; by default the aspects.json beside the dataset.")
    splits: list[str] | None = option(None, "Splits to show; by default all.")
    label_column: str = option("label", "The column of classes; without it, images are shown in their order.")
    thumbnail_size: int = option(192, f"Pixels of the longer side of a thumbnail, {SMALLEST} to {LARGEST}.")


def check(args: ViewArguments) -> None:
    """Refuse what needs no loading to be seen."""
    if not SMALLEST <= args.thumbnail_size <= LARGEST:
        raise ValueError(
            f"--thumbnail_size is {args.thumbnail_size}: expected {SMALLEST} to {LARGEST} pixels, as 192."
        )
    check_paths(["--dataset", args.dataset])
    check_place(args.output_dir, args, KIND, NAMES)


def selected(args: ViewArguments, splits: DatasetDict) -> DatasetDict:
    """The splits that are named, each with images and some with answers."""
    from datasets import DatasetDict

    from ..data.image_columns import check_image_column
    from ..viewer.page import check_splits

    names = split_names(args.splits) if args.splits else list(splits)
    if missing := [name for name in names if name not in splits]:
        raise ValueError(f"There is no split {missing[0]!r}: the dataset has {list(splits)}; pass --splits.")
    chosen = DatasetDict({name: splits[name] for name in names})
    for rows in chosen.values():
        check_image_column(rows.features, args.image_column)
    check_splits(chosen)
    return chosen


def tell(view: View, folder: str) -> None:
    """Print what was found, and where the page is."""
    from ..report.comparison import markdown_table

    judged, rows = view.judged, []
    for row in view.suspects[:HEAD]:
        said = view.classes[judged.suggested[row]] if judged.suggested[row] >= 0 else ""
        others = [next(iter({*pair} - {row})) for pair in view.contradictions if row in pair]
        said = f"same picture: {view.classes[view.labels[others[0]]]}" if others else said
        chances = [f"{100 * p:.1f}" if p == p else "" for p in (judged.p_label[row], judged.p_suggested[row])]
        chances = ["", ""] if others else chances
        label = view.classes[view.labels[row]]
        rows.append([markdown(text, 40) for text in (view.names[row], label, said)] + chances)
    if rows:
        head = ["Image", "Label", "Answers say", "Label, %", "That, %"]
        print(markdown_table([head, *rows], right=(3, 4)))
    suspects, pairs = len(view.suspects), len(view.contradictions)
    print(
        f"{counted(len(view.labels), 'image')}, {view.answered} with answers: {suspects} labels are doubtful; "
        f"{counted(pairs, 'picture')} with two labels."
        + (f" {counted(view.unreadable, 'image')} could not be read." if view.unreadable else "")
    )
    print(f"Open {view.path} in a browser; the doubtful rows are in {Path(folder) / SUSPECTS}.")


def main() -> None:
    (args,) = CommandParser(ViewArguments, description=__doc__, first="dataset").parse()
    check(args)
    splits = selected(args, load_splits(args))
    bank = AspectBank.load(args.bank or args.dataset, None if args.bank else args.dataset_revision)
    from ..viewer.page import write_view

    folder = existing_folder(args.dataset)
    title = args.dataset if folder is None else folder.resolve().name
    with working_in(args.output_dir, args, KIND, NAMES):
        view = write_view(
            splits, bank, args.output_dir, title, args.image_column, args.label_column, args.thumbnail_size
        )
    tell(view, args.output_dir)

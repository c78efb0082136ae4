"""What commands find out before anything long or paid begins; all that is wrong is told at once.

`student`, `comparison`, `labelling` and `sample` come first in the recipes. They return the rows that are left to work
with, and what --on_error skip left out of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Image, IterableDatasetDict

from .. import AspectBank, text
from ..data.boxes import corners
from ..data.check import (
    Unreadable,
    check_first,
    check_images,
    check_room,
    counted,
    encoded_bytes,
    listed,
    names_of,
    upright_size,
    without,
)
from ..data.columns import is_labelled, skipped_rows
from ..data.embedding import folder_of
from ..data.image_columns import check_image_column, check_image_feature
from ..data.images import load_image
from ..data.objects import Boxes
from ..data.origin import Origin
from ..data.problems import Problems
from ..files import check_output
from ..labelling import Workers
from ..labelling.sources import sources_of
from .arguments import SplitArguments, files_from, load_splits
from .splits import check_columns, check_test_split, with_validation
from .tasks.base import TaskCommand, TestUse
from .teachers import bank_of, check_control


logger = text.get_logger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """Rows of a split, as it was loaded, that nothing can be done with: their numbers and their images' names."""

    rows: list[int]
    names: list[str]
    total: int


@dataclass
class Ready:
    """Splits without the rows that were left out, with classes, and with one for validation."""

    splits: DatasetDict
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        """For reports: split -> how many images were left out, of how many, and the first by name."""
        return {
            split: {"images": len(found.rows), "of": found.total, "first": found.names[:5]}
            for split, found in self.left_out.items()
        }

    def kept_rows(self, split: str) -> np.ndarray | None:
        """The numbers of the rows that are left, as the dataset has them; None where all are."""
        found = self.left_out.get(split)
        return found and np.setdiff1d(np.arange(found.total), found.rows)


def student(command: TaskCommand, args: Any, training_args: Any, *checks: Callable[[], Any]) -> Ready:
    """Before a student is trained.

    Args:
        command: of the student's task.
        args: of the student.
        checks: more of them; each raises what it finds wrong.

    Raises:
        ValueError: in the first process, all that is wrong; in the others `FailedOnOtherRank`.
    """
    workers, here = Workers(training_args.process_index, training_args.world_size), []
    test: TestUse = "predicted" if training_args.do_predict else "unused"

    def look() -> dict[str, LeftOut]:
        problems = Problems()
        for check in checks:
            problems.step(check)
        problems.step(command.check_model, args)
        if args.bank and training_args.aspect_alpha:
            problems.step(AspectBank.load, args.bank)
        ready = rows_of(problems, command, args, training_args.seed, test)
        if ready is not None:
            train_set = ready.splits[args.train_split]
            problems.step(command.check_draw, train_set, args)
            problems.step(bank_of, train_set, args, training_args.aspect_alpha)
            problems.step(check_control, train_set, args, training_args.aspect_alpha)
        problems.tell()
        here.append(ready)
        return ready.left_out

    left_out = workers.from_main(look)
    if not here:  # another process than the first: the same rows, without a look at the images
        splits, problems = load_splits(args), Problems()
        used = _used(splits, args, test)
        here.append(_made(problems, command, splits, args, used, training_args.seed, test, left_out))
        problems.tell()
    return here[0]


def comparison(problems: Problems, command: TaskCommand, args: Any, students: Sequence[Any], test: TestUse) -> Ready:
    """Before students are compared: one dataset, labelled once, and many trainings.

    Args:
        problems: what was found already.
        args: of the comparison.
        students: the arguments of those that will be trained.
        test: what the test split is for.

    Raises:
        ValueError: all that is wrong.
    """
    problems.step(check_output, args.output_dir, args.dataset)
    for name in [name for name in ("bank", "teacher") if getattr(args, name) is None]:
        problems.add(f"No {name} given: pass --{name} (see --help).")
    bank = args.bank and problems.step(AspectBank.load, args.bank)
    for each in students:
        problems.step(command.check_model, each)
    ready = rows_of(problems, command, args, 0, test)
    if ready is not None:
        used = _used(ready.splits, args, test)
        ready.splits = DatasetDict({split: ready.splits[split] for split in used})  # no others are saved
        train_set = ready.splits[args.train_split]
        if "aspect_logits" in train_set.features:
            problems.add(
                f"{args.dataset} is labelled already: pass the dataset that it was made from (answers read before "
                "come from the cache)."
            )
        for each in command.largest_draw(students):
            problems.step(command.check_draw, train_set, each)
        problems.step(check_labelled_room, ready.splits, args.image_column, bank, args.output_dir)
    problems.tell()
    return ready


def labelling(args: Any, workers: Workers, *checks: Callable[[], Any]) -> DatasetDict | IterableDatasetDict:
    """Before a dataset is labelled: all its splits are looked at, since all are saved; of a stream, its beginning.

    Raises:
        ValueError: in the first process, all that is wrong; in the others `FailedOnOtherRank`.
    """
    here = []

    def look() -> None:
        problems = Problems()
        for check in checks:
            problems.step(check)
        for name in [name for name in ("bank", "teacher") if getattr(args, name) is None]:
            problems.add(f"No {name} given: pass --{name} (see --help).")
        bank = args.bank and problems.step(AspectBank.load, args.bank)
        boxes = Boxes(args.boxes_column, args.box_format) if args.boxes_column else None
        _tell_before_download(problems, args)
        splits = problems.step(load_splits, args, args.streaming)
        if splits is not None and problems.passes(_check_columns, splits, args, boxes):
            if args.streaming:
                _look_at_beginnings(problems, splits, args)
            else:

                def more(rows: Dataset, _: Any, split: str) -> list[Unreadable]:
                    return bad_boxes(rows, args.image_column, boxes, split) if boxes and split in args.splits else []

                look_at(problems, splits, args, list(splits), more, "No answers for")
                times = 2 if args.push_to_hub else 1  # what is published is prepared beside it
                problems.step(check_labelled_room, splits, args.image_column, bank, args.output_dir, times)
        problems.tell()
        here.append(splits)

    workers.from_main(look)
    return here[0] if here else load_splits(args, args.streaming)


def _tell_before_download(problems: Problems, args: Any) -> None:
    """A dataset of the Hub may be hours away: what is wrong already is told before it is fetched."""
    if ":" not in args.dataset and not os.path.exists(os.path.expanduser(args.dataset)):
        problems.tell()


def _check_columns(splits: DatasetDict | IterableDatasetDict, args: Any, boxes: Boxes | None) -> None:
    """Raise ValueError where the splits cannot be labelled, whatever their images are."""
    for rows in splits.values():
        check_image_column(rows.features, args.image_column)
    sources_of(splits, args.splits, args.image_column, boxes, files_from(args), args.on_error)


def _look_at_beginnings(problems: Problems, splits: IterableDatasetDict, args: Any) -> None:
    found = []
    for split, rows in splits.items():
        origin = folder_of(rows, files_from(args)) or Origin.of(rows)
        found += check_first(rows, args.image_column, split, origin)
    if found and args.on_error == "raise":
        problems.add(
            f"Images at the beginning of the stream cannot be used: {_reasons(found)}: repair or remove them, or pass "
            "--on_error skip to leave their answers empty."
        )
    if not problems.found:
        print("The first images of each split can be read; the rest of the stream is looked at as it comes.")


def sample(rows: Dataset, args: Any) -> Dataset:
    """Before a sample of images is labelled, to choose questions; returns those that are left.

    Raises:
        ValueError: all that is wrong.
    """
    problems, name = Problems(), "+".join(args.splits)
    problems.step(AspectBank.load, args.bank)
    left_out, _ = look_at(problems, {name: rows}, args, [name])
    problems.tell()
    return _left(DatasetDict({name: rows}), left_out)[name]


def check_labelled_room(
    splits: DatasetDict, image_column: str, bank: AspectBank | None, folder: str, times: int = 1
) -> None:
    """Raise ValueError where the disk has no room for these rows with their images and answers, so many times."""
    answers = 8 * len(bank or ()) * sum(map(len, splits.values()))
    images = sum(encoded_bytes(rows, image_column) for rows in splits.values())
    check_room(folder, times * (images + answers), "The labelled dataset")


def rows_of(problems: Problems, command: TaskCommand, args: Any, seed: int, test: TestUse) -> Ready | None:
    """What students are made from, looked at; None where something keeps it from being made.

    Args:
        args: of a student or of a comparison.
        seed: of the split into training and validation images.
    """
    _tell_before_download(problems, args)
    splits = problems.step(load_splits, args)
    if splits is None or not problems.passes(check_columns, splits, args):
        return None
    if test != "unused":
        problems.step(check_test_split, splits, args)
    used = _used(splits, args, test)
    left_out, doubtful = look_at(problems, splits, args, used, command.unusable)
    return _made(problems, command, splits, args, used, seed, test, left_out, doubtful)


def _used(splits: DatasetDict, args: SplitArguments, test: TestUse) -> list[str]:
    names = [args.train_split, args.eval_split, *([args.test_split] if test != "unused" else [])]
    return [split for split in dict.fromkeys(names) if split in splits]


def _left(splits: DatasetDict, left_out: dict[str, LeftOut]) -> DatasetDict:
    return DatasetDict(
        {split: without(rows, left_out[split].rows if split in left_out else []) for split, rows in splits.items()}
    )


def _made(
    problems: Problems,
    command: TaskCommand,
    splits: DatasetDict,
    args: Any,
    used: list[str],
    seed: int,
    test: TestUse,
    left_out: dict[str, LeftOut],
    doubtful: Sequence[str] = (),
) -> Ready | None:
    splits = _left(splits, left_out)
    if empty := [split for split in used if not len(splits[split])]:
        if empty[0] not in left_out:  # else that is told already
            problems.add(f"The split {empty[0]!r} has no images: pass another one, or look at its files.")
        return None
    splits = command.with_classes(problems, splits, args, used, test, doubtful)
    if splits is None or not len(splits[args.train_split]):
        return None
    splits = problems.step(with_validation, splits, args, seed, command.stratify_by(args))
    return splits and Ready(splits, left_out)


def look_at(
    problems: Problems,
    splits: DatasetDict,
    args: Any,
    used: Sequence[str],
    more: Callable[[Dataset, Any, str], list[Unreadable]] | None = None,
    done: str = "Left out",
) -> tuple[dict[str, LeftOut], list[str]]:
    """Which rows of the splits nothing can be done with: with --on_error skip left out, else a problem.

    Rows that the labelling has skipped are left out in any case.

    Returns:
        What is left out of each split, and the splits that have a problem.

    Args:
        more: what else can be wrong with a row.
    """
    left_out, doubtful, told, now = {}, [], [], []
    for split in used:
        rows = splits[split]
        labelled = is_labelled(rows.features)
        skipped = skipped_rows(rows) if labelled else []
        bad = problems.step(_unusable, rows, skipped, args, split, more)
        if not bad and not skipped:
            continue
        now += [each for each in bad if not each.broken]
        broken = [each for each in bad if each.broken]
        if broken:
            told.append(f"{len(broken)} of the {counted(len(rows))} of split {split!r}: {_reasons(broken)}")
        gone = names_of(rows, skipped, args.image_column, split)
        bad += [Unreadable(*pair, "the labelling could not read it") for pair in zip(skipped, gone)]
        bad.sort(key=lambda each: each.row)
        if broken and args.on_error == "raise":
            doubtful.append(split)
            continue
        left_out[split] = LeftOut([each.row for each in bad], [each.name for each in bad], len(rows))
        logger.warning("%s %d of the %s of split %r: %s.", done, len(bad), counted(len(rows)), split, _reasons(bad))
        if len(bad) == len(rows) and done == "Left out":
            problems.add(f"None of the {counted(len(rows))} of split {split!r} can be used: {_reasons(bad)}.")
    if told and args.on_error == "raise":
        problems.add(
            f"Images cannot be used: {'; '.join(told)}: repair or remove them, or pass --on_error skip to leave them "
            "out."
        )
    if now:
        problems.add(
            f"{counted(len(now))} cannot be read now: {_reasons(now)}: that says nothing about the images; see to the "
            "disk, the network or the memory, and run the same command again."
        )
    return left_out, doubtful


def _unusable(rows: Dataset, skipped: list[int], args: Any, split: str, more: Callable | None) -> list[Unreadable]:
    """What cannot be used of the rows, without those that were skipped before."""
    places = np.setdiff1d(np.arange(len(rows)), skipped)
    rows = without(rows, skipped)
    if isinstance(rows.features[args.image_column], Image):
        found = check_images(rows, args.image_column, split)
    else:  # pixels, of which nothing has to be decoded
        check_image_feature(rows.features[args.image_column], args.image_column, f"split {split!r}")
        found = []
    if more is not None:
        broken = {each.row for each in found}
        found += [each for each in more(rows, args, split) if each.row not in broken]
    moved = (Unreadable(int(places[each.row]), each.name, each.reason, each.broken) for each in found)
    return sorted(moved, key=lambda each: each.row)


def bad_boxes(rows: Dataset, image_column: str, boxes: Boxes, split: str) -> list[Unreadable]:
    """The images with a box that cannot be, whose answers the labelling leaves empty.

    Columns `width` and `height` save a look at all images for their sizes.
    """
    told = {"width", "height"} <= set(rows.features)
    facts = rows.select_columns([*(("width", "height") if told else (image_column,)), boxes.column])
    is_file = isinstance(rows.features[image_column], Image)
    facts = facts.cast_column(image_column, Image(decode=False)) if is_file and not told else facts
    found = []
    for index in range(len(facts)):
        try:
            row = facts[index]
            if told:
                size = row["width"], row["height"]
            else:
                size = upright_size(row[image_column]) if is_file else load_image(row[image_column]).size
            corners(boxes.of(row[boxes.column]), boxes.format, size)
        except Exception as error:  # decoders raise whatever they like
            found.append((index, str(error).removesuffix(".")))
    names = names_of(rows, [index for index, _ in found], image_column, split)
    return [Unreadable(index, name, reason) for name, (index, reason) in zip(names, found)]


def _reasons(bad: Sequence[Unreadable]) -> str:
    return listed([text.terminal(each.name) for each in bad], [each.reason for each in bad])

"""What commands find out before anything long or paid begins; all that is wrong is told at once.

The functions `check_...` come first in the commands. They raise a ValueError with all that is wrong (in processes but
the first `FailedOnOtherRankError`), or return the rows that are left to work with, and what --on_error skip left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDatasetDict

from .. import AspectBank, text
from ..data.check import LeftOut, bad_boxes, check_labelled_room, drop_rows, find_unusable, reasons
from ..data.columns import CLASS_LOGITS, CLASS_TEACHER, LOGITS, is_labelled, warn_of_unanswered
from ..data.decoding import Unreadable, check_first
from ..data.image_columns import check_image_column
from ..data.limits import how_drawn
from ..data.objects import Boxes
from ..data.origin import Origin
from ..data.problems import Problems
from ..data.unlabelled import UNLABELLED
from ..files import check_output
from ..labelling import Workers
from ..labelling.sources import sources_of
from ..students.base.settings import check_unevaluated
from .arguments import SplitArguments, files_from, load_splits
from .class_targets import asks_questions, bank_beside, check_targets, new_columns
from .splits import check_columns, check_test_split, with_test, with_validation
from .tasks.base import TaskCommand, TestUse
from .teachers import bank_of, check_control
from .unlabelled import (
    answers_needed,
    check_class_scores,
    check_covered,
    check_fitted,
    check_learned_of,
    check_mix,
    check_not_scored,
    check_posterior,
    check_unlabelled,
    learned_columns,
    load_with_unlabelled,
    warn_of_repeated,
    without_copies,
)


logger = text.get_logger(__name__)


@dataclass
class Ready:
    """Splits without the rows that were left out, with classes, and with what was drawn for validation and test.

    `new` are those that were drawn just now.
    """

    splits: DatasetDict
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        """For reports: split -> how many images were left out, of how many, and the first by name."""
        return {
            split: {"images": len(left_out.rows), "of": left_out.total, "first": left_out.names[:5]}
            for split, left_out in self.left_out.items()
        }

    def drawn(self, args: SplitArguments) -> dict[str, str]:
        """How images were drawn for "validation" and "test", where they are no split of the dataset."""
        roles = {"validation": args.eval_split, "test": args.test_split}
        drawn = {role: how_drawn(self.splits.get(split)) for role, split in roles.items()}
        return {role: how for role, how in drawn.items() if how}

    def kept_rows(self, split: str) -> np.ndarray | None:
        """The numbers of the rows that are left, as the dataset has them; None where all are."""
        left_out = self.left_out.get(split)
        return left_out and np.setdiff1d(np.arange(left_out.total), left_out.rows)


def check_student(command: TaskCommand, args: Any, training_args: Any, *checks: Callable[[], Any]) -> Ready:
    """Before a student is trained; in the first process `checks`, too, which raise what they find wrong."""
    workers, results = Workers(training_args.process_index, training_args.world_size), []
    test: TestUse = "predicted" if training_args.do_predict else "unused"

    def run_checks() -> dict[str, LeftOut]:
        problems = Problems()
        for check in checks:
            problems.step(check)
        problems.step(command.check_model, args)
        if args.bank and training_args.aspect_alpha:
            problems.step(AspectBank.load, args.bank)
        ready = rows_of(problems, command, args, training_args.seed, test)
        if ready is not None:
            train_set = ready.splits[args.train_split]
            problems.step(_check_draw, command, ready, args, args)
            if problems.step(bank_of, train_set, args, answers_needed(args, training_args)):
                warn_of_unanswered(train_set, args.train_split)
            problems.step(check_control, train_set, args, training_args.aspect_alpha)
            learns = learned_columns(training_args, args, ready.splits)
            problems.step(check_not_scored, ready.splits, args)
            problems.step(check_unlabelled, ready.splits, args, learns)
            problems.step(check_covered, ready.splits, args, learns)
            if CLASS_LOGITS in learns:
                scored = [args.eval_split, *([args.test_split] if training_args.do_predict else [])]
                problems.step(check_fitted, ready.splits, args, [split for split in scored if split in ready.new])
            if getattr(args, "class_posterior", False):
                problems.step(check_posterior, train_set, args)
            if hasattr(args, "label_column"):
                classes = command.classes(train_set, args).names
                problems.step(check_class_scores, ready.splits, args, training_args, classes)
                problems.step(check_mix, ready.splits, args, training_args)
                problems.step(check_learned_of, command, ready.splits, args, training_args, training_args.seed)
                problems.step(warn_of_repeated, command, ready.splits, args, training_args.seed)
            if args.eval_split not in ready.splits:
                problems.step(check_unevaluated, training_args)
        problems.raise_all()
        results.append(ready)
        return ready.left_out

    left_out = workers.from_main(run_checks)
    if not results:  # not the first process: the same rows, without checking the images
        splits, problems = load_with_unlabelled(args), Problems()
        used = _used(splits, args, test)
        results.append(_prepared(problems, command, splits, args, used, training_args.seed, test, left_out))
        problems.raise_all()
    return results[0]


def check_comparison(
    problems: Problems, command: TaskCommand, args: Any, students: Sequence[tuple[Any, Any]], test: TestUse
) -> Ready:
    """Before students are compared: one dataset, labelled once, and many trainings.

    Args:
        students: the arguments of those that will be trained, and of their trainings.
        test: what the test split is for; where it is unused, the score that counts is that on validation images.
    """
    problems.step(check_output, args.output_dir, args.dataset)
    for student, _ in students:
        problems.step(command.check_model, student)
    ready = rows_of(problems, command, args, 0, test)
    train_set = ready.splits[args.train_split] if ready else None
    labelled = train_set is not None and is_labelled(train_set.features)
    bank = problems.step(bank_of, train_set, args, 1.0) if labelled else None
    if ready is not None and not labelled:
        bank = _load_bank(problems, args)
    if ready is not None:
        for student in command.extreme_draws([student for student, _ in students]):
            problems.step(_check_draw, command, ready, args, student)
        problems.step(check_not_scored, ready.splits, args)  # nor on images that another command is to score them on
        used = _used(ready.splits, args, test)
        ready.splits = DatasetDict({split: ready.splits[split] for split in used})  # no others are saved
        if labelled and args.objects.task == "detection":
            problems.add(
                f"{args.dataset} is labelled already, and detectors are compared with answers about images and about "
                "objects: pass the dataset that it was made from (answers read before come from the cache)."
            )
        if labelled and bank:
            warn_of_unanswered(train_set, args.train_split)
        if args.eval_split not in ready.splits:
            for _, training_args in students:
                problems.step(check_unevaluated, training_args)
            if test == "unused":
                problems.add("Validation images give the score here, and none are kept: raise --validation_fraction.")
        _check_without_class(problems, command, args, ready.splits, students)
        times = 1 + args.seeds * bool(set(args.controls()) & set(command.of_class_teacher))
        problems.step(check_labelled_room, ready.splits, args.image_column, bank, args.output_dir, times)
    problems.raise_all()
    return ready


def _check_without_class(
    problems: Problems, command: TaskCommand, args: Any, splits: DatasetDict, students: Sequence[tuple[Any, Any]]
) -> None:
    """Of a comparison, what its students are to learn from images without a class."""
    learned = args.learning_unlabelled
    learns = [CLASS_TEACHER] if set(learned) <= {*command.of_class_teacher} - {"kd_aspects"} else [LOGITS]
    if learned and UNLABELLED in splits:
        args.unlabelled = UNLABELLED  # where the students find those of the training split, too
    problems.step(check_unlabelled, splits, args, learns if learned else [])
    if learned:
        problems.step(check_covered, splits, args, learns)
        problems.step(warn_of_repeated, command, splits, args, 0)
    if {*learned} & {*command.of_unlabelled} and UNLABELLED not in splits and not args.rest_unlabelled:
        problems.add(
            f"The condition {learned[0]!r} learns from images without a class, and all training images have one: "
            "pass --unlabelled with a split or a dataset of them, or --rest_unlabelled true."
        )
        return
    draws = {}
    for student, training_args in students:
        problems.step(check_mix, splits, student, training_args)
        for seed in range(training_args.seed, training_args.seed + args.seeds) if learned else ():
            drawn = student.images_per_class, student.rest_unlabelled, student.unlabelled_images
            draws[(*drawn, training_args.labelled_fraction, seed)] = student, training_args
    for (*_, seed), (student, training_args) in draws.items():
        problems.step(check_learned_of, command, splits, student, training_args, seed)
    if any(getattr(student, "class_posterior", False) for student, _ in students):
        problems.step(check_posterior, splits[args.train_split], args)


def _check_draw(command: TaskCommand, ready: Ready, args: Any, student: Any) -> None:
    """As the task's `check_draw`, and the message says which images are not among those to draw from."""
    try:
        command.check_draw(ready.splits[args.train_split], student)
    except ValueError as error:
        kept = " and ".join(ready.drawn(args))
        raise ValueError(f"{error} The images kept for {kept} are not counted." if kept else str(error)) from error


def check_labelling(args: Any, workers: Workers, *checks: Callable[[], Any]) -> DatasetDict | IterableDatasetDict:
    """Before a dataset is labelled: all its splits are looked at, since all are saved; of a stream, its beginning."""
    results = []

    def run_checks() -> None:
        problems = Problems()
        for check in checks:
            problems.step(check)
        bank = _load_bank(problems, args) if asks_questions(args) else None
        boxes = Boxes(args.boxes_column, args.box_format) if args.boxes_column else None
        _raise_before_download(problems, args)
        splits = problems.step(load_splits, args, args.streaming)
        if splits is not None and problems.passes(_check_columns, splits, args, boxes):
            if args.streaming:
                _check_beginnings(problems, splits, args)
            else:

                def more(rows: Dataset, split: str) -> list[Unreadable]:
                    return bad_boxes(rows, args.image_column, boxes, split) if boxes and split in args.splits else []

                find_unusable(problems, splits, list(splits), args.image_column, args.on_error, more, keep_rows=True)
                times = 2 if args.push_to_hub else 1  # what is published is prepared beside it
                problems.step(check_labelled_room, splits, args.image_column, bank, args.output_dir, times)
        problems.raise_all()
        results.append(splits)

    workers.from_main(run_checks)
    return results[0] if results else load_splits(args, args.streaming)


def _load_bank(problems: Problems, args: Any) -> AspectBank | None:
    if getattr(args, "answers", None):  # they name their questions, and nobody is asked
        return None
    for name in [name for name in ("bank", "teacher") if getattr(args, name) is None]:
        problems.add(f"No {name} given: pass --{name} (see --help).")
    return problems.step(AspectBank.load, args.bank) if args.bank else None


def _raise_before_download(problems: Problems, args: Any) -> None:
    """Raise what is wrong already before a dataset of the Hub is downloaded, which may take hours."""
    if ":" not in args.dataset and not os.path.exists(os.path.expanduser(args.dataset)):
        problems.raise_all()


def _check_columns(splits: DatasetDict | IterableDatasetDict, args: Any, boxes: Boxes | None) -> None:
    """Raise ValueError where the splits cannot be labelled, whatever their images are."""
    for rows in splits.values():
        check_image_column(rows.features, args.image_column)
    sources_of(
        splits, args.splits, args.image_column, boxes, files_from(args), args.on_error, new_columns=new_columns(args)
    )
    if not asks_questions(args):
        bank_beside(splits, args)
    check_targets(splits, args)


def _check_beginnings(problems: Problems, splits: IterableDatasetDict, args: Any) -> None:
    bad = []
    for split, rows in splits.items():
        origin = Origin.of(rows, files_from(args))
        bad += check_first(rows, args.image_column, split, origin)
    if bad and args.on_error == "raise":
        problems.add(
            f"Images at the beginning of the stream cannot be used: {reasons(bad)}: repair or remove them, or pass "
            "--on_error skip to leave their answers empty."
        )
    if not problems.errors:
        print("The first images of each split can be read; the rest of the stream is looked at as it comes.")


def check_sample(rows: Dataset, args: Any) -> Dataset:
    """Before a sample of images is labelled, to choose questions; returns those that are left."""
    problems, name = Problems(), "+".join(args.splits)
    problems.step(AspectBank.load, args.bank)
    left_out, _ = find_unusable(problems, {name: rows}, [name], args.image_column, args.on_error)
    problems.raise_all()
    return _without_left_out(DatasetDict({name: rows}), left_out)[name]


def rows_of(problems: Problems, command: TaskCommand, args: Any, seed: int, test: TestUse) -> Ready | None:
    """What students are made from, looked at; None where something keeps it from being made."""
    _raise_before_download(problems, args)
    splits = problems.step(load_with_unlabelled, args)
    if splits is None or not problems.passes(check_columns, splits, args):
        return None
    if test != "unused":
        problems.step(check_test_split, splits, args)
    used = _used(splits, args, test)
    left_out, doubtful = find_unusable(
        problems,
        splits,
        used,
        args.image_column,
        args.on_error,
        lambda rows, split: command.unusable(rows, args, split),
    )
    return _prepared(problems, command, splits, args, used, seed, test, left_out, doubtful)


def _used(splits: DatasetDict, args: SplitArguments, test: TestUse) -> list[str]:
    names = [args.train_split, args.eval_split, *([args.test_split] if test != "unused" else []), UNLABELLED]
    return [split for split in dict.fromkeys(names) if split in splits]


def _without_left_out(splits: DatasetDict, left_out: dict[str, LeftOut]) -> DatasetDict:
    return DatasetDict(
        {split: drop_rows(rows, left_out[split].rows if split in left_out else []) for split, rows in splits.items()}
    )


def _prepared(
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
    """As `Ready` has them; None where something is wrong."""
    splits = _without_left_out(splits, left_out)
    if empty := [split for split in used if not len(splits[split])]:
        if empty[0] not in left_out:  # else that is told already
            problems.add(f"The split {empty[0]!r} has no images: pass another one, or look at its files.")
        return None
    splits = command.with_classes(problems, splits, args, used, test, doubtful)
    if splits is None or not len(splits[args.train_split]):
        return None
    there = list(splits)
    splits = problems.step(with_test, splits, args, command.stratify_by(args))
    splits = splits and problems.step(with_validation, splits, args, seed, command.stratify_by(args))
    if not splits:
        return None
    new = [split for split in splits if split not in there]
    splits = problems.step(without_copies, splits, new, args)
    return splits and Ready(splits, left_out, new)

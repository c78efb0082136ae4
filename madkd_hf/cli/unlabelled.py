"""Images without a class: where they come from, what is refused, and what the student learns from each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from ..data.check import check_all_shown, drop_rows
from ..data.class_targets import check_class_targets
from ..data.columns import BANK, CLASS_LOGITS, LOGITS, answered_rows, rows_with_class, stored
from ..data.duplicates import same_images, shown_in
from ..data.target_facts import TargetFacts
from ..data.unlabelled import LEARNED, UNLABELLED, check_fraction, concatenated, select_learned
from ..text import counted, get_logger
from .arguments import existing_folder, load_splits, split_names
from .class_targets import facts_of_posterior
from .splits import load_joined


if TYPE_CHECKING:
    from .tasks.base import TaskCommand


logger = get_logger(__name__)

SELF = "self_training"


def load_with_unlabelled(args: Any) -> DatasetDict:
    """The splits of the dataset, and those images that `--unlabelled` names as the split `UNLABELLED`.

    Raises:
        ValueError: it names a split that serves something else, or a dataset with several splits; a split of that
            name serves something else.
    """
    if UNLABELLED in (args.train_split, args.eval_split, args.test_split):
        raise ValueError(
            f"A split called {UNLABELLED!r} is for images without a class: rename it, or pass another one as "
            "--train_split, --eval_split or --test_split."
        )
    splits, name = load_joined(args), getattr(args, "unlabelled", None)
    if not name:
        splits.pop(UNLABELLED, None)
        return splits
    if name in split_names([args.train_split, args.eval_split, args.test_split]):
        raise ValueError(
            f"--unlabelled {name} is a split that serves something else: training images without a class are learned "
            "from in any case; pass another split, or another dataset."
        )
    if name not in splits:
        try:
            others = load_splits(args, name=name)
        except (OSError, ValueError) as error:
            raise ValueError(str(error).replace("--dataset ", "--unlabelled ")) from error
        if len(others) > 1 and args.train_split not in others:
            raise ValueError(f"{name} has the splits {list(others)}: save the one with the images by itself.")
        rows = others[args.train_split] if len(others) > 1 else next(iter(others.values()))
    else:
        rows = splits.pop(name)
    splits[UNLABELLED] = select_learned(rows, args.image_column)
    return splits


def check_unlabelled(splits: DatasetDict, args: Any, learns: list[str]) -> None:
    """Raise ValueError where nothing could be learned from the images without a class.

    Args:
        learns: the columns that a student learns from beside the classes.
    """
    if UNLABELLED not in splits:
        return
    rows, train_set = splits[UNLABELLED], splits[args.train_split]
    if not learns:
        raise ValueError(
            f"{counted(len(rows), 'training image')} without a class, and the students learn classes alone: pass "
            "--aspect_alpha or --class_posterior true or, to compare, unlabelled, posterior or both among "
            "--conditions; or drop them."
        )
    answered = [LOGITS in part.features for part in (train_set, rows)]
    if not any(answered) and args.bank and args.teacher:
        return  # the teacher looks at both
    if all(answered):
        known = [part for part in (train_set, rows) if BANK in part.features]
        banks = {bank for part in known for bank in stored(part, BANK).unique().to_pylist() if bank}
        if len(banks) > 1:
            raise ValueError(
                "The images without a class have answers to other questions than those with one (bank "
                f"{' and '.join(sorted(banks))}): label both with the same aspects.json."
            )
    has_targets = CLASS_LOGITS in learns and CLASS_LOGITS in rows.features
    has_targets = has_targets and not getattr(args, "class_posterior", False)
    if {LOGITS, CLASS_LOGITS} & set(learns) and not has_targets and not all(answered):
        which = "images without a class have" if answered[0] else "images with a class have"
        raise ValueError(
            f"The {which} no answers to learn from: label them with the same questions (madkd label --bank ...)."
        )


def check_not_scored(splits: DatasetDict, args: Any) -> None:
    """Raise ValueError where images that are learned from without a class are those that the student is scored on."""
    parts = [UNLABELLED, *([args.train_split] if getattr(args, "rest_unlabelled", False) else [])]
    for part in parts:
        for split in (args.test_split, args.eval_split):
            if not {part, split} <= set(splits):
                continue
            if count := same_images(splits[part], splits[split], args.image_column):
                which = f"{counted(len(splits[part]), 'image')} without a class"
                if part != UNLABELLED:
                    which = f"{counted(len(splits[part]), 'training image')}, which rest_unlabelled learns from"
                raise ValueError(
                    f"Of {which}, {count} {'is' if count == 1 else 'are'} also in the split {split!r}, byte for byte: "
                    "leave each image in one of the two, or the student is scored on what it has learned."
                )


def without_copies(splits: DatasetDict, drawn: Sequence[str], args: Any) -> DatasetDict:
    """The splits without those images without a class that were drawn, with their class, to be scored on."""
    for split in drawn if UNLABELLED in splits else ():
        rows, scored = splits[UNLABELLED], splits[split]
        copies = shown_in(rows, (scored, range(len(scored))), args.image_column)
        if copies.all():
            raise ValueError(
                f"All {counted(len(rows), 'image')} without a class are also kept for {split}, byte for byte: leave "
                "--unlabelled out, or pass other ones."
            )
        if copies.any():
            logger.warning(
                "%d of the %s without a class are left out: they repeat, byte for byte, an image that is kept for %s.",
                copies.sum(), counted(len(rows), "image"), split,
            )  # fmt: skip
            splits = DatasetDict({**splits, UNLABELLED: drop_rows(rows, np.flatnonzero(copies))})
    return splits


def check_class_scores(splits: DatasetDict, args: Any, training_args: Any, classes: list[str]) -> None:
    """Raise ValueError for class targets of other classes, and where what is kept of them cannot be read."""
    if getattr(args, "class_posterior", False) or not training_args.class_alpha:
        return  # nobody looks at them
    for split in (args.train_split, args.eval_split, UNLABELLED):
        if split in splits:
            check_class_targets(splits[split], classes)
            known_targets(args, splits[split])


def check_covered(splits: DatasetDict, args: Any, learns: list[str]) -> None:
    """Raise ValueError where images without a class have nothing that could be learned from them, and warn where some
    of them have no answers.

    Args:
        learns: see `check_unlabelled`.
    """
    if not {LOGITS, CLASS_LOGITS} & set(learns):
        return
    parts = {UNLABELLED: "images without a class"}
    if getattr(args, "rest_unlabelled", False):
        parts[args.train_split] = "training images, of which some are learned from without a class,"
    for split, name in parts.items():
        rows = splits.get(split)
        if rows is None or (LOGITS not in rows.features and args.bank and args.teacher):  # who looks at all
            continue
        unanswered = untaught = ~answered_rows(rows)
        if not getattr(args, "class_posterior", False):
            scored = CLASS_LOGITS in rows.features
            untaught = stored(rows, CLASS_LOGITS).is_null().to_numpy() if scored else np.ones(len(rows), dtype=bool)
        useless = np.ones(len(rows), dtype=bool)
        for column, missing in ((LOGITS, unanswered), (CLASS_LOGITS, untaught)):
            useless &= missing if column in learns else True
        if useless.any() and SELF not in learns:
            raise ValueError(
                f"{useless.sum()} of the {len(rows)} {name} have nothing that the student learns from, no answers or "
                "no class targets: label them, too (madkd label), or drop them."
            )
        if unanswered.any() and LOGITS in learns:
            logger.warning("%d of the %d %s have no answers, and teach no aspects.", unanswered.sum(), len(rows), name)


def warn_of_repeated(command: TaskCommand, splits: DatasetDict, args: Any, seed: int) -> None:
    """Say how many images without a class are left out because their image is learned from already."""
    repeated, total = command.count_repeated(splits, args, seed)
    if repeated:
        logger.warning(
            "%d of the %s without a class are left out: they repeat, byte for byte, an image that is learned from "
            "already.",
            repeated, counted(total, "image"),
        )  # fmt: skip


def check_mix(splits: DatasetDict, args: Any, training_args: Any) -> None:
    """Raise ValueError where options of images without a class find none, or a class only such images."""
    rows, there = splits[args.train_split], UNLABELLED in splits or getattr(args, "rest_unlabelled", False)
    for name in ("labelled_fraction", "self_training", "class_posterior", "unlabelled_images"):
        value = getattr(training_args, name, None) or getattr(args, name, None)
        if value and not there:
            raise ValueError(
                f"{name}={value} is about images without a class, and all {len(rows)} training images have one: leave "
                "it out, or pass --unlabelled, or --rest_unlabelled true with --images_per_class."
            )
    if training_args.self_training and training_args.mixup_alpha:
        raise ValueError("self_training and mixup_alpha do not go together: leave one of them out.")
    if there:
        check_all_shown(set(rows[args.label_column]), rows.features[args.label_column].names)


def check_learned_of(command: TaskCommand, splits: DatasetDict, args: Any, training_args: Any, seed: int) -> None:
    """Raise ValueError where no image without a class is left to learn from, or too few for the mix of a batch."""
    without_class = command.count_without_class(splits, args, seed)
    if training_args.labelled_fraction and without_class:
        rows, each = splits[args.train_split], args.images_per_class
        labelled = len(rows) if each is None else each * len(command.classes(rows, args).names)
        check_fraction(labelled, without_class, training_args.labelled_fraction)


def check_fitted(splits: DatasetDict, args: Any, drawn: Sequence[str]) -> None:
    """Raise ValueError where a student would be tested on images on whose classes its targets were fitted.

    Args:
        drawn: the splits that are scored and that were training images until now.
    """
    parts = [splits[split] for split in (args.train_split, UNLABELLED) if split in splits]
    known = [] if getattr(args, "class_posterior", False) else [known_targets(args, rows) for rows in parts]
    if not drawn or not any(facts is not None and facts.kind == "posterior" for facts in known):
        return
    what = "The class targets are a posterior, fitted on images of which some are now kept for"
    remedy = "--class_posterior true fits it anew, on those alone that are trained on"
    if args.test_split in drawn:
        raise ValueError(f"{what} the test: the score would be too good; {remedy}; or pass a --test_split of its own.")
    logger.warning("%s validation: that score may be too good; %s.", what, remedy)


def check_posterior(rows: Dataset, args: Any) -> None:
    """Raise ValueError where a regression from answers to classes would miss the answers about some of the images."""
    if LOGITS not in rows.features or not stored(rows, LOGITS).null_count:
        return
    raise ValueError(
        f"{stored(rows, LOGITS).null_count} of the {counted(len(rows), 'image')} of {args.train_split} have no "
        "answers, and the posterior of images without a class is fitted on the answers about those with one: label "
        f"them, too (madkd label --splits {' '.join(args.train_split.split('+'))})."
    )


def with_unlabelled(drawn: Dataset, others: list[Dataset], args: Any) -> Dataset:
    """The rows with a class, and after them those without one."""
    others = [rows for rows in others if len(rows)]
    if not others:
        return drawn
    names = [name for name in drawn.column_names if name in (args.image_column, args.label_column, *LEARNED)]
    return concatenated([drawn.select_columns(names), *others])


def with_posterior(rows: Dataset, label_column: str) -> tuple[Dataset, TargetFacts]:
    """The rows, of which those without a class have the class targets that their answers speak for; and from what.

    Raises:
        ValueError: see `selection.posterior.fit_posterior`.
    """
    from ..data.class_targets import class_teacher, count_targets, with_class_targets
    from ..data.columns import matrix
    from ..selection.posterior import fit_posterior

    feature: ClassLabel = rows.features[label_column]
    column = stored(rows, LOGITS)
    width = next(len(answers) for answers in column if answers.is_valid)  # lists may have no fixed length
    answers = matrix(column, LOGITS, width)
    labelled = rows_with_class(rows, label_column)
    labels = np.where(labelled, np.array([-1 if label is None else label for label in rows[label_column][:]]), -1)
    posterior = fit_posterior(answers[labelled], labels[labelled], feature.num_classes, feature.names)
    scores = np.full((len(rows), feature.num_classes), np.nan, dtype=np.float32)
    scores[~labelled] = posterior.class_logits(answers[~labelled])
    if np.isnan(scores).any(axis=1).all():
        raise ValueError(
            f"Each of the {counted(int((~labelled).sum()), 'image')} without a class lacks an answer, and so has no "
            "posterior: label them with all questions (madkd label), or leave --class_posterior out."
        )
    made = with_class_targets(rows, scores, "posterior", feature.names)
    name = class_teacher("posterior", feature.names)
    return made, facts_of_posterior(posterior, name, {"train": count_targets(made).total()})


def without_untaught(rows: Dataset, label_column: str) -> Dataset:
    """The rows without those that have neither a class nor class targets, since a teacher left out some answer."""
    untaught = ~rows_with_class(rows, label_column) & stored(rows, CLASS_LOGITS).is_null().to_numpy()
    if untaught.any():
        logger.warning(
            "%d of the %d images without a class are left out: of those, some answers are missing, so that they have "
            "no posterior.",
            untaught.sum(), (~rows_with_class(rows, label_column)).sum(),
        )  # fmt: skip
    return drop_rows(rows, np.flatnonzero(untaught))


def known_targets(args: Any, rows: Dataset) -> TargetFacts | None:
    """What was kept beside the dataset, or the one of images without a class, of the class targets in these rows."""
    from ..data.class_targets import count_targets, facts_of

    if not count_targets(rows):
        return None
    others = getattr(args, "unlabelled", None)
    known = [TargetFacts.load(args.dataset, args.dataset_revision)]
    known += [TargetFacts.load(others)] if others and existing_folder(others) else []
    return facts_of({"train": count_targets(rows)}, known)


def learned_columns(training_args: Any, args: Any, splits: DatasetDict) -> list[str]:
    """The columns that a student learns from beside the classes, those that are there, or to come; its own guesses are
    called SELF."""
    parts = [splits[split] for split in (args.train_split, UNLABELLED) if split in splits]
    targets = getattr(args, "class_posterior", False) or any(CLASS_LOGITS in rows.features for rows in parts)
    names = [LOGITS] if training_args.aspect_alpha else []
    names += [SELF] if training_args.self_training else []
    return names + ([CLASS_LOGITS] if training_args.class_alpha and targets else [])


def answers_needed(args: Any, training_args: Any) -> float:
    """The weight of the aspects, or anything but 0 where the answers are needed for a posterior alone."""
    return training_args.aspect_alpha or float(getattr(args, "class_posterior", False))

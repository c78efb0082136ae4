"""The options of `madkd label` for class targets, from a classifier or from the answers, and what is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..data.target_facts import TargetFacts
from ..students.base.fields import option


if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict, IterableDatasetDict

    from ..aspects import AspectBank
    from ..labelling import Workers
    from ..labelling.labellers import ClassLabeller
    from ..selection.posterior import Posterior
    from ..teachers.class_teacher import ClassTeacher

    Splits = DatasetDict | IterableDatasetDict


@dataclass
class ClassTargetArguments:
    """Class targets: scores of the classes to learn from beside, or in place of, the class itself."""

    class_teacher: str | None = option(
        None,
        "An image classifier of the dataset's classes, such as a larger student: Hub id or folder. Its scores become "
        "class targets; no --bank and --teacher are needed for that.",
    )
    class_teacher_revision: str | None = option(None, "Branch, tag or commit of the class teacher.")
    class_posterior: bool = option(
        False,
        "Give images without a class the classes that their answers speak for, by a logistic regression fitted on "
        "the images of the first of --splits that have one.",
    )


def asks_questions(args: Any) -> bool:
    """Whether this run asks somebody about aspects, or takes answers that were given elsewhere."""
    return bool(args.teacher or args.answers) or not (args.class_teacher or args.class_posterior)


def new_columns(args: Any) -> list[str]:
    """The columns that a run adds."""
    from ..data.columns import ASPECT_COLUMNS, CLASS_COLUMNS

    columns = list(ASPECT_COLUMNS) if asks_questions(args) else []
    return columns + (list(CLASS_COLUMNS) if args.class_teacher or args.class_posterior else [])


def check_options(args: Any) -> None:
    """Refuse options that say nothing together, and a class teacher whose configuration tells that it is none."""
    if not (args.class_teacher or args.class_posterior):
        if args.class_teacher_revision:
            raise ValueError("--class_teacher_revision says nothing without --class_teacher: leave it out.")
        return
    name = "class_teacher" if args.class_teacher else "class_posterior"
    if args.class_teacher and args.class_posterior:
        raise ValueError(
            "--class_teacher and --class_posterior both fill the column class_logits: leave one of them out."
        )
    if args.boxes_column:
        raise ValueError(f"--{name} is about the class of a whole image: leave out --boxes_column.")
    if args.class_posterior and args.streaming:
        raise ValueError(
            "--class_posterior needs all answers at once: leave out --streaming, or pass it to `madkd train`."
        )
    if args.push_to_hub and not asks_questions(args) and not args.bank and not _has_bank(args):
        raise ValueError(
            "--push_to_hub publishes a dataset with aspects, and none are asked: pass --bank and --teacher, too."
        )
    if args.class_teacher:
        from ..teachers.class_teacher import load_config

        load_config(args.class_teacher, args.class_teacher_revision)


def _has_bank(args: Any) -> bool:
    from ..aspects import AspectBank

    try:
        return bool(AspectBank.load(args.dataset, args.dataset_revision))
    except (OSError, ValueError):
        return False


def check_targets(splits: Splits, args: Any) -> None:
    """Refuse, before the first image, a class teacher of other classes, and a posterior that could not be fitted."""
    from ..data.check import check_all_shown
    from ..data.columns import is_labelled
    from ..labelling.attach import classes_to_score
    from ..labelling.labellers import class_order
    from ..teachers.class_teacher import load_config

    if not (args.class_teacher or args.class_posterior):
        kept_facts(splits, args)
    if args.class_teacher:
        own = load_config(args.class_teacher, args.class_teacher_revision)
        class_order(own, classes_to_score(splits, args.label_column, args.splits, own), args.class_teacher)
    if not args.class_posterior or args.streaming:  # which `check_options` refuses
        return
    first, others = args.splits[0], [split for split in args.splits if split in splits]
    if not asks_questions(args) and not all(is_labelled(splits[split].features) for split in others):
        raise ValueError(
            "--class_posterior is fitted on answers, and the dataset has none: pass --bank and --teacher, too."
        )
    classes = classes_of(splits, args)
    shown = class_indices(splits[first], args.label_column, classes)
    check_all_shown(set(shown[shown >= 0].tolist()), classes)
    if all((class_indices(splits[split], args.label_column, classes) >= 0).all() for split in others):
        raise ValueError(
            f"--class_posterior is for images without a class, and all of {', '.join(others)} have one: leave it out."
        )


def kept_facts(splits: Splits, args: Any) -> TargetFacts | None:
    """What is kept beside a dataset that has class targets already; ValueError where it is damaged."""
    from ..data.columns import CLASS_LOGITS

    there = any(CLASS_LOGITS in (rows.features or {}) for rows in splits.values())
    return TargetFacts.load(args.dataset, args.dataset_revision) if there else None


def classes_of(splits: Splits, args: Any) -> list[str]:
    """The classes in the order of the scores, those of the first of --splits."""
    from ..data.labels import class_names

    rows = splits[args.splits[0]]
    names = class_names(rows, args.label_column) if args.label_column in rows.features else None
    if not names or len(names) < 2:
        raise ValueError(
            f"--class_posterior is fitted on images of two classes or more, and the split {args.splits[0]!r} names "
            f"{len(names or ())} in the column {args.label_column!r}: pass --label_column, or put the split that has "
            "classes first in --splits."
        )
    return names


def class_indices(rows: Dataset, column: str, classes: list[str]) -> np.ndarray:
    """[n] the class of each row as a place among the classes, -1 where there is none."""
    import numpy as np

    from ..data.labels import class_indices as indices

    return indices(rows, column, classes) if column in rows.features else np.full(len(rows), -1)


def load_class_teacher(args: Any, workers: Workers) -> ClassTeacher:
    """The class teacher, on this process's own device where there are several."""
    from ..teachers.class_teacher import ClassTeacher

    device = args.device or (workers.device if workers.count > 1 else None)
    return ClassTeacher.from_pretrained(args.class_teacher, args.class_teacher_revision, device)


def bank_beside(splits: Splits, args: Any) -> AspectBank | None:
    """The bank of the answers that a dataset has already, where this run asks for none; None without answers."""
    from datasets import Dataset

    from ..aspects import AspectBank
    from ..data.columns import check_bank, is_labelled

    labelled = [rows for rows in splits.values() if is_labelled(rows.features)]
    if not labelled:
        return None
    bank = AspectBank.load(args.bank or args.dataset, None if args.bank else args.dataset_revision)
    for rows in labelled:
        if isinstance(rows, Dataset):
            check_bank(rows, bank.fingerprint, holder=f"{args.bank or args.dataset} holds")
    return bank


def with_posterior(labelled: DatasetDict, args: Any, bank: AspectBank) -> tuple[DatasetDict, TargetFacts]:
    """The splits, of which the rows without a class have the class targets that their answers speak for."""
    import numpy as np
    from datasets import DatasetDict

    from ..data.class_targets import class_teacher, with_class_targets
    from ..data.columns import read_answers
    from ..selection.posterior import fit_posterior

    classes, first = classes_of(labelled, args), args.splits[0]
    answers, labels = (
        read_answers(labelled[first], bank)[0],
        class_indices(labelled[first], args.label_column, classes),
    )
    posterior = fit_posterior(answers, labels, len(classes), classes)
    name, made, counts = f"posterior@{bank.fingerprint}", {}, {}
    for split, rows in labelled.items():
        scores = np.full((len(rows), len(classes)), np.nan, dtype=np.float32)
        if split in args.splits:
            unknown = class_indices(rows, args.label_column, classes) < 0
            scores[unknown] = posterior.class_logits(read_answers(rows, bank)[0][unknown])
        counts[split] = int((~np.isnan(scores).any(axis=1)).sum())
        made[split] = with_class_targets(rows, scores, name, classes)
    facts = facts_of_posterior(posterior, class_teacher(name, classes), counts)
    return DatasetDict(made), facts


def facts_of_posterior(posterior: Posterior, teacher: str, rows: Mapping[str, int]) -> TargetFacts:
    """What is kept of a regression."""
    accuracy, error = posterior.accuracy, posterior.calibration_error
    measured = {"tested": posterior.rows, "folds": posterior.folds} if accuracy is not None else {}
    return TargetFacts(
        teacher, "posterior", rows, fitted=posterior.rows, accuracy=accuracy, calibration_error=error, **measured
    )


def facts_of_teacher(parts: Mapping[str, Dataset], label_column: str, labeller: ClassLabeller) -> TargetFacts:
    """What is kept of a class teacher.

    Args:
        parts: the labelled splits, with class targets and, where they have them, classes.
    """
    import numpy as np

    from ..data.columns import CLASS_LOGITS, matrix, stored
    from ..metrics import CalibrationError

    classes = labeller.classes
    counts, scores, labels = {}, [np.empty((0, len(classes)))], [np.empty(0, dtype=np.int64)]
    for split, rows in parts.items():
        scores.append(matrix(stored(rows, CLASS_LOGITS), CLASS_LOGITS, len(classes)))
        labels.append(class_indices(rows, label_column, classes))
        counts[split] = int((~np.isnan(scores[-1]).any(axis=1)).sum())
    logits, truth = np.concatenate(scores), np.concatenate(labels)
    known = (truth >= 0) & ~np.isnan(logits).any(axis=1)
    measured = {}
    if known.any():
        error = CalibrationError(keep_in_memory=True).compute(predictions=logits[known], references=truth[known])
        accuracy = float((logits[known].argmax(axis=1) == truth[known]).mean())
        measured = {"tested": int(known.sum()), "accuracy": accuracy, **error}
    provenance = labeller.teacher.provenance
    return TargetFacts(labeller.source, "class teacher", counts, provenance=provenance, **measured)


def targets_text(facts: TargetFacts) -> str:
    """What came out, in sentences."""
    counts = ", ".join(f"{count:,} of {split}" for split, count in facts.rows.items() if count) or "none"
    if facts.kind == "posterior":
        return f"Class targets by the answers' posterior: {counts}; fitted on {facts.fitted:,} images. {facts.quality}"
    return f"Class targets by {facts.name}: {counts}. {facts.quality}"

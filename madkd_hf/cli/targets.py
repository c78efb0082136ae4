"""The answers that a student learns from: those of its dataset, those of a teacher now, or controls of them."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from .. import AspectBank, AspectTeacher, attach_aspects
from ..data.columns import LOGITS, check_bank, stored
from .teachers import LabellingArguments


def attach(
    rows: Dataset, args: LabellingArguments, alpha: float, boxes: dict[str, Any] | None = None
) -> tuple[Dataset, AspectBank | None]:
    """The training rows with their answers, and the bank they belong to; no bank for a student of classes alone.

    Args:
        args: which also name the dataset, its training split and its images.
        boxes: where the answers are about objects, what `attach_aspects` has to know of their boxes.
    """
    bank = bank_of(rows, args, alpha)
    if bank is None or "aspect_logits" in rows.features:
        return rows, bank
    teacher = AspectTeacher.from_pretrained(args.teacher, revision=args.teacher_revision)
    settings = {"work_dir": args.work_dir, "on_error": args.on_error, **(boxes or {})}
    rows = attach_aspects(rows, bank, teacher, args.image_column, **settings)
    return rows, AspectBank(bank.aspects, teacher.provenance)


def bank_of(rows: Dataset, args: LabellingArguments, alpha: float) -> AspectBank | None:
    """The bank that the answers belong to, those in the rows or those to come; None without aspects.

    Raises:
        ValueError: no answers and nobody who could give them, or answers to other questions.
    """
    if alpha == 0:
        return None
    labelled = "aspect_logits" in rows.features
    if not labelled and (args.bank is None or args.teacher is None):
        raise ValueError(
            f"The dataset has no aspect columns and aspect_alpha is {alpha}: label it with recipes/attach_aspects.py, "
            "or pass --bank and --teacher to label the training images now, or --aspect_alpha 0 for a plain student."
        )
    bank = AspectBank.load(args.bank) if args.bank else AspectBank.load(args.dataset, args.dataset_revision)
    if not labelled:
        return bank
    if stored(rows, LOGITS).null_count == len(rows):
        raise ValueError(
            f"The split {args.train_split!r} has aspect columns and no answers in them: label it with "
            f"recipes/attach_aspects.py --splits {args.train_split}, or pass --aspect_alpha 0 for a plain student."
        )
    check_bank(rows, bank.fingerprint, holder=f"{args.bank or args.dataset} holds")
    return bank


def check_control(rows: Dataset, args: Any, alpha: float) -> None:
    """Raise ValueError where there will be no answers to make a control of."""
    coming = alpha != 0 and args.bank and args.teacher
    if args.aspect_control != "none" and "aspect_logits" not in rows.features and not coming:
        raise ValueError(
            f"--aspect_control {args.aspect_control} needs a dataset with aspect columns, or --bank and --teacher."
        )

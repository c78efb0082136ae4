"""What `madkd label` tells when it is done."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import writing
from .class_targets import asks_questions, targets_text


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDatasetDict

    from ..data.target_facts import TargetFacts
    from .label import LabelArguments, Labelled

    Splits = DatasetDict | IterableDatasetDict


KEPT = "the answers are kept, none is asked twice"


def answers(args: LabelArguments, labelled: Splits, split: str) -> Dataset:
    """Answers and classes of a labelled split, without the images beside them."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    from ..data.columns import ASPECT_COLUMNS, CLASS_COLUMNS

    rows = labelled[split]
    names = [
        name
        for name in (*ASPECT_COLUMNS, *CLASS_COLUMNS, args.label_column, args.boxes_column)
        if name in rows.features
    ]
    if isinstance(rows, Dataset):
        return rows.select_columns(names)
    folder = Path(args.work_dir or args.output_dir).expanduser() / "data"
    files = sorted(file for file in folder.iterdir() if re.fullmatch(re.escape(split) + r"-\d+\.parquet", file.name))
    return Dataset(pa.concat_tables([pq.read_table(file, columns=names) for file in files]))


def count_not_answered(args: LabelArguments, labelled: Splits) -> dict[str, Any]:
    """How many answers the teacher did not give, and why, for provenance and card; nothing where it gave all."""
    from ..data.columns import count_missing

    counts = Counter()
    for split in args.splits:
        counts.update(count_missing(answers(args, labelled, split)))
    return {"not_answered": dict(counts)} if counts["refused"] or counts["without_yes_or_no"] else {}


def missing_sentence(counts: Mapping[str, int]) -> str:
    """What share of the answers was refused, or was neither yes nor no among the likeliest tokens."""
    parts = {"refused": "were refused", "without_yes_or_no": "came without yes or without no"}
    shares = [f"{counts[name]:,} ({counts[name] / counts['answers']:.2%}) {what}" for name, what in parts.items()]
    return f"Of {counts['answers']:,} answers, {' and '.join(shares)}: they are NaN, and teach nothing."


def tell(args: LabelArguments, labelled: Labelled, targets: TargetFacts | None) -> None:
    """Print what came out: what each question is worth, what was skipped, and what to do next."""
    parts = {split: answers(args, labelled.splits, split) for split in args.splits}
    tell_skipped(args, parts)
    if targets and (args.class_teacher or args.class_posterior):
        print(targets_text(targets))
    if asks_questions(args) and not tell_answers(args, parts, labelled):
        return
    if not args.boxes_column:
        student = "--backbone microsoft/resnet-18 --output_dir runs/student"
        alone = "" if labelled.bank else "--aspect_alpha 0 "
        print(f"Next:\n  madkd train --dataset {shlex.quote(args.output_dir)} {alone}{student}")


def tell_skipped(args: LabelArguments, parts: Mapping[str, Dataset]) -> None:
    """Print which images could not be read."""
    from ..data.columns import skipped_rows

    for split, rows in parts.items():
        if skipped := skipped_rows(rows):
            some = ", ".join(map(str, skipped[:5])) + (", ..." if len(skipped) > 5 else "")
            fault, doubt = "that cannot be read", ""
            if args.boxes_column:
                fault += ", or a box in them"
                many = 10 * len(skipped) > len(rows)
                doubt = f" So many: is --box_format {args.box_format} right?" if many else ""
            print(f"Skipped {len(skipped)} images of {split} {fault}: rows {some}.{doubt}")


def tell_answers(args: LabelArguments, parts: Mapping[str, Dataset], labelled: Labelled) -> bool:
    """Print what each question is worth; whether there are answers to say that by."""
    from datasets import concatenate_datasets

    from ..data.objects import flatten_objects
    from ..selection.evidence import write_evidence

    everything, unit = concatenate_datasets(list(parts.values())), "image"
    if args.boxes_column:
        everything, unit = flatten_objects(everything, args.boxes_column, args.label_column), "object"
    if not any(answer is not None for answer in everything["aspect_logits"]):
        print(
            f"No {unit} of {', '.join(args.splits)} has answers, so nothing can be said about the questions: the "
            f"{sum(map(len, parts.values()))} rows in {args.output_dir} are without."
        )
        return False
    with writing(args.output_dir, KEPT):
        evidence = write_evidence(everything, labelled.bank, args.output_dir, args.label_column, unit)
    print("\n".join([evidence.table, *(f"Warning: {warning}" for warning in evidence.warnings)]))
    if labelled.teacher.summary:
        print(labelled.teacher.summary)
    if missing := (labelled.bank.provenance or {}).get("not_answered"):
        print(missing_sentence(missing))
    print(
        f"{len(labelled.bank)} answers for each {unit} of {', '.join(args.splits)} are in {args.output_dir}; what "
        f"each question is worth, with pictures: {evidence.path}."
    )
    return True

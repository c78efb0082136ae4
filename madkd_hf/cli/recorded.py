"""The options of `madkd label` for answers that were given elsewhere, and their way into the columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .arguments import option


if TYPE_CHECKING:
    from datasets import DatasetDict

    from ..labelling.answer_files import RecordedAnswers


@dataclass
class RecordedArguments:
    """Answers that were given elsewhere: no teacher is loaded, and --teacher only names who answered."""

    answers: str | None = option(
        None, "A file with one record an image: JSONL, JSON, CSV or Parquet. Without --bank, questions have ids alone."
    )
    answers_kind: Literal["probability", "log_odds", "words"] = option(
        "probability", "What they are: probabilities of yes, log-odds of yes against no, or the words yes and no."
    )
    answers_field: str | None = option(None, "Field with the list of answers; by default a field an id.")
    answers_key: str | None = option(None, "Field that names the image; by default records stand as the rows do.")
    key_column: str | None = option(None, "The dataset's column of these names; by default, the image files' names.")
    on_missing: Literal["raise", "null"] = option("raise", "An image without a record: stop, or leave it unanswered.")
    on_unused: Literal["raise", "ignore"] = option("raise", "A record without an image: stop, or ignore it.")


def check_recorded(args: Any) -> RecordedAnswers | None:
    """The recorded answers, if any are given, read and checked.

    Raises:
        ValueError: no such file, answers that are none, or options that say nothing here.
    """
    if args.answers is None:
        given = [
            name
            for name, option in RecordedArguments.__dataclass_fields__.items()
            if getattr(args, name) != option.default
        ]
        if given:
            raise ValueError(
                f"--{given[0]} is about recorded answers: name their file with --answers, or leave it out."
            )
        return None
    if args.streaming or args.boxes_column:
        raise ValueError(
            "Recorded answers are about the images of whole splits: leave out --streaming and --boxes_column."
        )
    from ..aspects import AspectBank
    from ..labelling.answer_files import read_answers_file

    return read_answers_file(
        args.answers,
        AspectBank.load(args.bank) if args.bank else None,
        kind=args.answers_kind,
        field=args.answers_field,
        key=args.answers_key,
        model=args.teacher,
    )


def attach_recorded(args: Any, splits: DatasetDict, answers: RecordedAnswers) -> DatasetDict:
    """The splits with the columns; with --limit, records of images that were left out are ignored."""
    from ..labelling.recorded import attach_recorded_answers

    return attach_recorded_answers(
        splits,
        answers,
        key_column=args.key_column,
        splits=args.splits,
        on_missing=args.on_missing,
        on_unused="ignore" if args.limit is not None else args.on_unused,
    )

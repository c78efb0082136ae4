"""Label a dataset with the answers of a multimodal LLM to a bank of yes/no questions.

Leaves in --output_dir what `datasets.load_from_disk` reads, with the columns aspect_logits, aspect_mass and
aspect_bank, and the bank itself as aspects.json. Killed or stopped, the same command goes on where it was.

    madkd label --config recipes/easy_vqa/attach.yaml --output_dir runs/labelled

On several GPUs, or on several machines that share the folders (--work_dir, --output_dir), each with its own part:

    madkd label --num_processes 4 --config ... --output_dir ...

A dataset larger than the disk, as a stream; leaves Parquet files that `load_dataset(output_dir)` reads anywhere:

    madkd label --streaming --dataset ILSVRC/imagenet-1k --bank ... --teacher ... --output_dir ...

The objects of a detection dataset, each one cut out by its box:

    madkd label --dataset rishitdagli/cppe-5 --boxes_column objects --label_column category ...

The teacher behind a server (vLLM and others), which needs the package openai; --dry_run tells what it will take:

    madkd label --teacher http://localhost:8000/v1 --teacher_model Qwen/Qwen3-VL-8B-Instruct --dataset ...

Answers that were given elsewhere, in a file with one record an image (JSONL, JSON, CSV or Parquet):

    madkd label --dataset photos --answers answers.jsonl --answers_field yes --answers_key file --output_dir ...

Class targets beside the answers or without them, by an image classifier of the same classes, such as a larger student:

    madkd label --dataset photos --class_teacher runs/large-student --output_dir ...

For others, with a card that says what each question is worth (private, unless --hub_private_repo false):

    madkd label --config ... --output_dir ... --push_to_hub --hub_dataset_id you/birds-aspects
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..aspects import BANK_FILE, AspectBank
from ..data.problems import FailedOnOtherRankError
from ..data.target_facts import TARGETS_FILE, TargetFacts
from ..files import (
    MARK_FILE,
    check_name,
    check_removable,
    own_folder,
    remove_folder,
    remove_stale,
    replace_folder,
    temporary,
    write_checksums,
    writing,
)
from ..students.base.fields import option
from ..text import terminal
from .arguments import BoxArguments, CommandParser, DatasetArguments, HubArguments, files_from, source, split_names
from .class_targets import (
    ClassTargetArguments,
    asks_questions,
    bank_beside,
    check_options,
    facts_of_teacher,
    kept_facts,
    load_class_teacher,
    with_posterior,
)
from .dry_run import check_dry_run, dry_run
from .label_report import KEPT, answers, count_not_answered, tell
from .outputs import DATASET, check_place, working_in
from .recorded import RecordedArguments, attach_recorded, check_recorded
from .teachers import TeacherArguments, load_bank_and_teacher


if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict

    from ..labelling import Workers
    from ..labelling.answer_files import RecordedAnswers
    from ..labelling.labellers import ClassLabeller, Labeller
    from ..teachers import Teacher

    Splits = DatasetDict | IterableDatasetDict


KIND, SPLIT = "labelled dataset", "split of a dataset"  # folders that we write, as their marks say
CLASS_TARGETS = "class_targets"  # in --work_dir, the folder of the job for class targets


@dataclass
class LabelArguments(
    TeacherArguments, DatasetArguments, BoxArguments, RecordedArguments, ClassTargetArguments, HubArguments
):
    """What to label, and how to read the answers."""

    _argument_group_name = "labelling"

    output_dir: str = option("", "The folder for the labelled dataset.")
    splits: list[str] = option(["train"], "Splits to label; the others get null answers.")
    label_column: str = option(
        "label", "The classes, for the table about the questions; with --boxes_column their field in the objects."
    )
    boxes_column: str | None = option(
        None, "Ask about every object, not about the whole image: the column of objects with their bbox."
    )
    streaming: bool = option(
        False, "Read the dataset as a stream, and leave Parquet files with images and answers: memory stays flat."
    )
    shard_size: int | None = option(
        None,
        "Images between two saves: what a kill can cost, and the rows of a Parquet file. By default 512, or of more "
        "than half a million images, unless they come as a stream, a 1,000th.",
    )
    dry_run: bool = option(
        False,
        "Tell requests, tokens, price and time of a teacher behind a server, measured on three images.",
    )
    push_to_hub: bool = option(False, "Publish the labelled dataset, with its bank and a card.")
    hub_dataset_id: str | None = option(None, "Where: owner/name, or a name of your own.")
    hub_license: str | None = option(None, "A licence, as the Hub calls it; by default the source dataset's.")


def label(
    args: LabelArguments, splits: Splits, workers: Workers | None = None
) -> tuple[Splits, AspectBank | None, Teacher | RecordedAnswers | None]:
    """The labelled splits, the bank with its provenance, and who answered; None where there are no answers."""
    labelled = label_all(args, splits, workers)
    return labelled.splits, labelled.bank, labelled.teacher


@dataclass
class Labelled:
    """What a run has made, and by whom; None where nobody was asked for that."""

    splits: Splits
    bank: AspectBank | None
    teacher: Teacher | RecordedAnswers | None
    class_labeller: ClassLabeller | None


def label_all(args: LabelArguments, splits: Splits, workers: Workers | None = None) -> Labelled:
    """Answers and class targets as the options ask for them; the posterior is not among them."""
    from ..labelling import Workers

    workers = workers or Workers()
    recorded, bank, teacher = check_recorded(args), None, None
    if recorded:
        bank, teacher = AspectBank(recorded.bank.aspects, {**recorded.provenance, "dataset": source(args)}), recorded
        splits = attach_recorded(args, splits, recorded)
    elif not asks_questions(args):
        bank = workers.agree(lambda: bank_beside(splits, args))
    if args.output_dir:
        workers.agree(lambda: check_splits(splits, Path(args.output_dir)))
    labellers, class_labeller = [], None
    if asks_questions(args) and not recorded:
        bank, teacher = workers.agree(lambda: load_bank_and_teacher(args, workers))
        labellers = [_aspect_labeller(args, bank, teacher)]
    if args.class_teacher:
        class_labeller = workers.agree(lambda: _class_labeller(args, splits, workers))
        labellers.append(class_labeller)
    for together in [labellers] if args.streaming else [[labeller] for labeller in labellers]:
        splits = _attach(args, splits, together, workers)
    if asks_questions(args) and not recorded:
        box_settings = {"box_margin": args.box_margin, "box_padding": args.box_padding} if args.boxes_column else {}
        missing = count_not_answered(args, splits)
        bank = AspectBank(bank.aspects, {**teacher.provenance, **box_settings, **missing, "dataset": source(args)})
    return Labelled(splits, bank, teacher, class_labeller)


def _aspect_labeller(args: LabelArguments, bank: AspectBank, teacher: Teacher) -> Labeller:
    from ..labelling.attach import boxes_of
    from ..labelling.labellers import AspectLabeller

    boxes = boxes_of(*(getattr(args, name) for name in ("boxes_column", *BoxArguments.__dataclass_fields__)))
    return AspectLabeller(bank, teacher, boxes)


def _class_labeller(args: LabelArguments, splits: Splits, workers: Workers) -> ClassLabeller:
    from ..labelling.attach import classes_to_score
    from ..labelling.labellers import ClassLabeller

    teacher = load_class_teacher(args, workers)
    return ClassLabeller(teacher, classes_to_score(splits, args.label_column, args.splits, teacher.classes))


def _attach(args: LabelArguments, splits: Splits, labellers: list[Labeller], workers: Workers) -> Splits:
    """The splits with the columns of these labellers, by one job; class targets of rows are a job of their own, so
    that nobody is asked again for another class teacher."""
    from ..data.columns import CLASS_COLUMNS
    from ..labelling.attach import attach

    work_dir = args.work_dir or (args.output_dir if args.streaming else None)
    if args.work_dir and not args.streaming and labellers[0].columns == CLASS_COLUMNS:
        work_dir = Path(args.work_dir).expanduser() / CLASS_TARGETS
    return attach(
        splits,
        labellers,
        args.image_column,
        args.splits,
        work_dir,
        args.on_error,
        args.shard_size,
        workers.count > 1,
        files_from(args),
        args.dataset if args.streaming else None,
        boxes=getattr(labellers[0], "boxes", None),
    )


def class_targets(args: LabelArguments, labelled: Labelled) -> TargetFacts | None:
    """What is known of the class targets; the posterior, where it is asked for, is put into the splits."""
    from datasets import Dataset

    from ..data.class_targets import count_targets, facts_of

    if args.class_posterior:
        labelled.splits, facts = with_posterior(labelled.splits, args, labelled.bank)
        return facts
    if labelled.class_labeller:
        parts = {split: answers(args, labelled.splits, split) for split in args.splits}
        return facts_of_teacher(parts, args.label_column, labelled.class_labeller)
    facts = kept_facts(labelled.splits, args)
    if not all(isinstance(rows, Dataset) for rows in labelled.splits.values()):
        return facts
    return facts_of({split: count_targets(rows) for split, rows in labelled.splits.items()}, [facts])


def save(
    labelled: Splits, bank: AspectBank | None, output_dir: str | Path, targets: TargetFacts | None = None
) -> None:
    """Write dataset and bank; the bank comes last, so that a folder with a bank is complete.

    `targets` is what is known of the dataset's class targets.
    """
    from datasets import DatasetDict

    folder = Path(output_dir)
    check_splits(labelled, folder)
    with writing(output_dir, KEPT):
        own_folder(folder, KIND, DATASET)
        for name in (BANK_FILE, TARGETS_FILE):
            (folder / name).unlink(missing_ok=True)
        if isinstance(labelled, DatasetDict):  # a stream's Parquet files are there
            _save_rows(labelled, folder)
        if targets:
            targets.save(folder)
        if bank:
            bank.save(output_dir)


def check_splits(labelled: Splits, folder: Path) -> None:
    """Raise ValueError where the name of a split is no name of a folder, or a user's folder has that name."""
    from datasets import DatasetDict

    for split in labelled:
        check_name(split, "split")
        if isinstance(labelled, DatasetDict):
            check_removable(folder / split, SPLIT)


def _save_rows(labelled: DatasetDict, folder: Path) -> None:
    """`save_to_disk`, so that a kill leaves the old dataset or the new one or none, never some splits of each."""
    index, partial = "dataset_dict.json", temporary(folder / "dataset")
    remove_stale(folder)
    try:
        labelled.save_to_disk(partial)
        for split in labelled:
            write_checksums(partial / split)
        (folder / index).unlink(missing_ok=True)  # without it, nothing is loaded from the folder
        for split in labelled:
            replace_folder(partial / split, folder / split, SPLIT)
        os.replace(partial / index, folder / index)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for mark in folder.glob(f"*/{MARK_FILE}"):  # splits that the dataset has no more
        if mark.parent.name not in labelled:
            with contextlib.suppress(ValueError):  # of another kind, or with files of a user
                remove_folder(mark.parent, SPLIT)


def publish(args: LabelArguments, labelled: Splits, bank: AspectBank, targets: TargetFacts | None = None) -> None:
    """Push the dataset, prepared beside it: there is room where it was written."""
    from ..hub.dataset import push_aspect_dataset
    from ..hub.retries import HubError

    objects = {"boxes_column": args.boxes_column, "box_format": args.box_format} if args.boxes_column else {}
    try:
        pushed = push_aspect_dataset(
            labelled,
            bank,
            args.hub_dataset_id,
            image_column=args.image_column,
            label_column=args.label_column,
            license=args.hub_license,
            work_dir=args.output_dir,
            class_targets=targets,
            **args.repo_settings,
            **objects,
        )
    except HubError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise OSError(
            f"Cannot prepare what is to be published in {args.output_dir} ({reason}): nothing was sent, the labelled "
            "dataset there is complete; mend this, and run the same command again."
        ) from error
    print(f"Published: {terminal(pushed.pr_url or pushed.repo_url)}")


def check_hub(args: LabelArguments) -> None:
    """See that publishing can succeed before hours of labelling."""
    from ..hub.upload import HubRepo

    if not args.push_to_hub:
        return
    if args.hub_dataset_id is None:
        raise ValueError("No name for the dataset on the Hub given: pass --hub_dataset_id owner/name.")
    HubRepo(args.hub_dataset_id, "dataset", **args.repo_settings).check(args.hub_license)


def check(args: LabelArguments) -> None:
    """Refuse what needs no loading to be seen."""
    from ..labelling.shards import check_work_dir

    check_place(args.output_dir, args, KIND, DATASET)
    check_recorded(args)
    check_dry_run(args)
    check_options(args)
    folder, remedy = Path(args.work_dir or args.output_dir).expanduser(), "pass another folder, or delete that one."
    if args.streaming and (folder / "dataset_dict.json").exists():
        raise ValueError(f"{folder} holds a dataset that was labelled without --streaming: {remedy}")
    if not args.streaming and next(Path(args.output_dir).glob("data/*.parquet"), None):
        raise ValueError(f"{args.output_dir} holds a dataset that was labelled with --streaming: {remedy}")
    if args.streaming or args.work_dir:
        check_work_dir(folder, args.streaming)
    for split in [] if args.streaming else args.splits:
        check_removable(Path(args.output_dir) / check_name(split, "split"), SPLIT)


def main() -> None:
    (args,) = CommandParser(LabelArguments, description=__doc__).parse()
    args.splits = split_names(args.splits)
    from ..labelling import Workers
    from .preflight import check_labelling

    workers = Workers.of_launch()
    with contextlib.ExitStack() as stack:
        try:
            splits = check_labelling(args, workers, partial(check, args), partial(check_hub, args))
            if args.dry_run:
                workers.from_main(lambda: print(dry_run(args, splits)))
                return
            workers.from_main(lambda: stack.enter_context(working_in(args.output_dir, args, KIND, DATASET)) and None)
            labelled = label_all(args, splits, workers)
        except KeyboardInterrupt as stopped:
            raise (stopped if workers.is_main else FailedOnOtherRankError("The main process says so.")) from None
        if not workers.is_main:
            return
        targets = class_targets(args, labelled)
        save(labelled.splits, labelled.bank, args.output_dir, targets)
        tell(args, labelled, targets)
        if args.push_to_hub:
            publish(args, labelled.splits, labelled.bank, targets)

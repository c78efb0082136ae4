"""What a training does, once its options are read: look, prepare, train, measure, publish."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import IntervalStrategy

from .. import AspectBank, MadkdTrainingArguments
from ..data.class_targets import count_targets, without_class_targets
from ..data.columns import CLASS_LOGITS
from ..data.image_processors import load_image_processor
from ..data.labels import warn_of_missing_classes
from ..data.target_facts import TARGETS_FILE, TargetFacts
from ..data.variants import control_answers
from ..files import remove_folder, write_whole
from ..hub.cards.comparison import read_comparison
from ..hub.sources import DataSource
from ..labelling import FailedOnOtherRankError
from ..students.base import checkpoints
from ..students.base.distilling import DistillingTrainer
from ..students.base.finite import TrainingDivergedError
from ..students.base.publishing import UNPUBLISHED
from ..students.base.resuming import SavingError
from ..students.base.settings import check_metric
from ..text import get_logger
from . import preflight
from .arguments import DatasetArguments, source
from .class_targets import targets_text
from .preflight import Ready
from .tasks import command_of
from .tasks.base import PREDICTIONS, TaskCommand, TrainArguments, save_arrays
from .teachers import attach
from .unlabelled import answers_needed, known_targets, with_posterior, with_unlabelled, without_untaught


logger = get_logger(__name__)


def train(
    args: TrainArguments, training_args: MadkdTrainingArguments, ready: Ready | None = None
) -> DistillingTrainer:
    """Train, evaluate and save one student, and publish nothing; the trainer's `state.log_history` holds its curves.

    With --push_to_hub, it first looks whether publishing can succeed.
    """
    command, ready = command_of(args.task), ready or check(args, training_args)
    set_seed(training_args.seed)
    if getattr(args, "class_posterior", False) or not training_args.class_alpha:
        ready.splits = _without_targets(ready.splits, training_args)
    train_set, bank, posterior = prepare(args, training_args, ready)
    pretrained_model = getattr(args, command.task.starts_from)
    trainer_options = command.trainer_options(args)
    model = command.task.build(
        pretrained_model,
        id2label=dict(enumerate(command.classes(train_set, args).names)),
        bank=bank,
        pretrained=args.pretrained,
        **command.model_options(args),
    )
    if args.comparison:
        read_comparison(args.comparison, model.config)
    trainer = command.task.trainer(
        model,
        training_args,
        train_dataset=train_set,
        eval_dataset=ready.splits.get(args.eval_split),
        processing_class=load_image_processor(pretrained_model),
        **trainer_options,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.class_targets = posterior or known_targets(args, train_set)
    metrics = {"train": fit(trainer)}
    if args.eval_split in ready.splits:
        metrics["eval"] = trainer.evaluate()
    if training_args.do_predict:
        metrics["test"] = predict(trainer, command, ready, args.test_split)
    save_metrics(trainer, metrics, ready)
    return trainer


def _without_targets(splits: DatasetDict, training_args: MadkdTrainingArguments) -> DatasetDict:
    """The splits without class targets that nobody looks at: they may be of other classes."""
    without = without_class_targets(splits)
    if without is not splits and training_args.class_alpha and training_args.process_index == 0:
        print(f"The posterior takes the place of the {CLASS_LOGITS} that the dataset has.", flush=True)
    return without


def check(args: TrainArguments, training_args: MadkdTrainingArguments, *checks: Callable[[], Any]) -> Ready:
    """Refuse whatever can be known to be wrong before anything begins; returns the rows to work with.

    Without validation images, nothing is evaluated while the student learns, whatever `eval_strategy` says.
    """
    command = command_of(args.task)
    ready = preflight.check_student(
        command,
        args,
        training_args,
        lambda: check_metric(training_args, command.task.metrics),
        *checks,
        partial(check_publishing, args, training_args),
        partial(checkpoints.find_checkpoint, training_args.resume_from_checkpoint, training_args.output_dir),
    )
    if args.eval_split not in ready.splits and training_args.eval_strategy != "no":
        logger.warning("No images are kept for validation: the student is not evaluated while it learns.")
        training_args.eval_strategy, training_args.do_eval = IntervalStrategy.NO, False
    return ready


def prepare(
    args: TrainArguments, training_args: MadkdTrainingArguments, ready: Ready
) -> tuple[Dataset, AspectBank | None, TargetFacts | None]:
    """The rows to train on, the bank that their answers belong to, and what is known of their posterior, if any."""
    command = command_of(args.task)
    with training_args.main_process_first(desc="preparing the data"):
        train_set = command.draw(ready.splits[args.train_split], args, training_args.seed)
        warn_of_missing_classes(command.classes(train_set, args), command.shown_classes(train_set, args))
        others = command.without_class(ready.splits, args, training_args.seed)
        train_set = with_unlabelled(train_set, others, args)
        train_set, bank = attach(train_set, args, answers_needed(args, training_args), command.labelling_options(args))
    if args.aspect_control != "none":
        train_set = control_answers(train_set, args.aspect_control, training_args.seed)
        if count_targets(train_set):
            logger.warning(
                "--aspect_control %s changes aspects alone: the class targets that the dataset has stay those of each "
                "image; pass --class_alpha 0 to leave them out.",
                args.aspect_control,
            )
    facts = None
    if getattr(args, "class_posterior", False):
        train_set, facts = with_posterior(train_set, args.label_column)
        if not (training_args.aspect_alpha or training_args.self_training):
            train_set = without_untaught(train_set, args.label_column)
        if training_args.process_index == 0:
            print(targets_text(facts), flush=True)
    return train_set, bank if training_args.aspect_alpha else None, facts


def fit(trainer: DistillingTrainer) -> dict[str, float]:
    folder, is_first = Path(trainer.args.output_dir), trainer.is_world_process_zero()
    try:
        metrics = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics
        trainer.save_model(_internal_call=True)  # the Trainer would publish it here, before it is measured
    except (TrainingDivergedError, SavingError):
        if is_first:
            raise
        raise FailedOnOtherRankError from None  # all processes know, and one says it
    trainer.save_state()
    if is_first:
        # of an earlier student: numbers, to which save_metrics would add, and what was to be uploaded
        (folder / "all_results.json").unlink(missing_ok=True)
        (folder / TARGETS_FILE).unlink(missing_ok=True)
        if targets := trainer.learned_targets():
            targets.save(folder)
        remove_folder(folder / UNPUBLISHED, "student")
    return metrics


def predict(trainer: DistillingTrainer, command: TaskCommand, ready: Ready, split: str) -> dict[str, float]:
    """Metrics on the test images; what was predicted for each stays beside the student.

    With it stand the numbers `rows` [n] of these rows in the dataset, where images were left out.
    """
    output = trainer.predict(ready.splits[split])
    if trainer.is_world_process_zero():
        arrays, rows = command.predicted_arrays(output), ready.kept_rows(split)
        save_arrays(Path(trainer.args.output_dir) / PREDICTIONS, arrays | ({} if rows is None else {"rows": rows}))
    return output.metrics


def save_metrics(trainer: DistillingTrainer, metrics: dict[str, dict[str, float]], ready: Ready) -> None:
    """Log and save what was measured, by split, and with it which images were left out."""
    path, is_first = Path(trainer.args.output_dir) / "all_results.json", trainer.is_world_process_zero()
    for split, values in metrics.items():
        trainer.log_metrics(split, values)
        trainer.save_metrics(split, values)
    if ready.left_out and is_first:
        results = json.loads(path.read_text(encoding="utf-8")) | {"left_out": ready.summary}
        write_whole(path, json.dumps(results, indent=4, sort_keys=True))


def check_publishing(args: TrainArguments, training_args: MadkdTrainingArguments) -> None:
    """Refuse, before it is trained, a student that could not be published."""
    if args.comparison:
        read_comparison(args.comparison)
    if training_args.push_to_hub:
        training_args.hub_repo().check(training_args.hub_license)  # in one process: the others wait for its word


def publish(trainer: DistillingTrainer, args: TrainArguments) -> str | None:
    """One commit with the student and its card; returns where it is, in the first process."""
    commit = trainer.push_to_hub(comparison=args.comparison, dataset=about_dataset(args, trainer.train_dataset))
    return commit and (commit.pr_url or commit.repo_url)


def about_dataset(args: DatasetArguments, rows: Dataset) -> DataSource:
    """The dataset for a card; rows in a folder may still know from which dataset of the Hub they came."""
    origin = source(args)
    return DataSource.of(rows) or DataSource(origin["id"], origin["commit"], origin["config"])

"""Where a training starts, and what a user can go on from when it ends too early."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from uuid import uuid4

from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, TrainerState, TrainingArguments

from .checkpoints import STATE, checkpoint_fault, find_checkpoint, last_of_run, last_whole, recorded_entry


logger = logging.getLogger(__name__)


class SavingError(OSError):
    """A checkpoint or a student could not be written; what was there before is whole."""


def find_start(args: TrainingArguments, resume_from: str | bool | None) -> tuple[str | None, str]:
    """The checkpoint that a training goes on from, the same in all processes, see `checkpoints.find_checkpoint`.

    Returns:
        Its folder, None to start anew; and the `run` that this training's checkpoints note.
    """
    start: dict[str, Any] = {"run": uuid4().hex, "checkpoint": None, "error": None}
    if args.process_index == 0:
        try:
            checkpoint, passed_over = find_checkpoint(resume_from, args.output_dir)
            if checkpoint is not None:
                start |= {"checkpoint": str(checkpoint), "run": recorded_entry(checkpoint, "run")}
            _log_start(args, checkpoint, passed_over)
        except ValueError as error:
            start["error"] = str(error)
    if args.world_size > 1:
        start = broadcast_object_list([start])[0]
    if start["error"]:
        raise ValueError(start["error"])
    return start["checkpoint"], start["run"]


def _log_start(args: TrainingArguments, checkpoint: Path | None, passed_over: list[str]) -> None:
    for sentence in passed_over:
        logger.warning(sentence)
    if checkpoint is None:
        if args.should_save and (there := last_whole(args.output_dir, quick=True)[0]):
            logger.warning(
                "The training starts anew beside %s of an earlier one; to go on from there, stop it and pass "
                "resume_from_checkpoint.",
                there,
            )
        return
    logger.warning("The training goes on from %s.", checkpoint)
    before = recorded_entry(checkpoint, "processes")
    if before not in (None, args.world_size):
        logger.warning(
            "%s was written by %d processes and %d go on from it: chance falls otherwise than without the "
            "interruption.",
            checkpoint,
            before,
            args.world_size,
        )


def forget_lost_best(state: TrainerState, args: TrainingArguments, checkpoint: str | None, run: str) -> None:
    """Where the best checkpoint of a training that goes on is lost, the best of the steps to come counts."""
    if checkpoint is None or not args.load_best_model_at_end:
        return
    best = TrainerState.load_from_json(str(Path(checkpoint) / STATE)).best_model_checkpoint
    if best is None:
        return
    reason = "it is not there any more"
    beside = Path(checkpoint).parent / Path(best).name  # where the output folder was moved
    for place in dict.fromkeys([Path(best), beside]):
        if not place.is_dir():
            continue
        if damage := checkpoint_fault(place, student_only=True):
            reason = damage
        elif recorded_entry(place, "run") != run:
            reason = "another run wrote over it"
        else:
            state.best_model_checkpoint = str(place)
            return
    if args.process_index == 0:
        logger.warning(
            "The best checkpoint until now, %s, is lost: %s; the best of the steps to come is kept.", best, reason
        )
    state.best_metric = state.best_global_step = state.best_model_checkpoint = None


def resume_hint(args: TrainingArguments, run: str) -> str:
    """For a user who stopped a training."""
    checkpoint = last_of_run(args.output_dir, run)
    if checkpoint is None:
        return f"this run saved no checkpoint in {args.output_dir} yet (see save_strategy and save_steps)"
    return f"{checkpoint} is kept; to go on from it, run the same command with --resume_from_checkpoint true"


def saving_error(what: str, folder: Path, error: Exception, run: str) -> SavingError:
    """The error to raise where a checkpoint or a student could not be written."""
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    remedy = "make room there, and run the same command again"
    if (checkpoint := last_of_run(folder, run)) is not None:
        remedy += f" with --resume_from_checkpoint true: {checkpoint.name} is whole"
    return SavingError(f"Cannot save {what} in {folder} ({reason}): what was there before is kept; {remedy}.")


class EarlyStopping(EarlyStoppingCallback):
    """As that of transformers; and a training that goes on counts on from where it was interrupted."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        before = state.stateful_callbacks.get(type(self).__name__) or {}
        self.early_stopping_patience_counter = before.get("attributes", {}).get("early_stopping_patience_counter", 0)

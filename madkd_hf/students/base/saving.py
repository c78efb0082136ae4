"""A Trainer that writes checkpoints and students whole or not at all, and goes on from the last whole checkpoint."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch import nn
from transformers.trainer_callback import ExportableState, TrainerState

from ...files.whole import remove_stale, temporary
from .checkpoints import (
    STATE,
    fault,
    find_checkpoint,
    last_of_run,
    last_whole,
    noted,
    put_in_place,
    remove,
    rotate,
    steps,
    strange_file,
    write_record,
)
from .finite import FiniteTrainer, TrainingDiverged, not_finite
from .saved import put_student_in_place


logger = logging.getLogger(__name__)


class SavingError(OSError):
    """A checkpoint or a student could not be written; what was there before is whole."""


class SavingTrainer(FiniteTrainer):
    """A Trainer whose checkpoints are whole or not there, and whose student replaces an earlier one once it is whole.

    A checkpoint is written under another name and renamed when all processes have finished; older ones are removed
    only then. Weights that are not finite are not saved. `train(resume_from_checkpoint=True)` goes on from the last
    checkpoint that is whole, and says which later ones are not.
    """

    _writing: Path | None = None  # the folder in which a checkpoint is being written
    _resumed: str | None = None  # the checkpoint that the training went on from
    _run: str | None = ""  # what its checkpoints note; None where it goes on from one that notes none

    # Going on

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As that of `Trainer`.

        Raises:
            ValueError: no whole checkpoint to go on from, or a training that diverged.
            SavingError: a checkpoint could not be written.
        """
        self._resumed = self._find_checkpoint(resume_from_checkpoint)
        if self.args.should_save:
            remove_stale(self.args.output_dir)  # of a training that was killed
        try:
            return super().train(self._resumed, *args, **kwargs)
        except KeyboardInterrupt as stopped:
            if self.args.should_save and not stopped.args:
                stopped.args = (self._what_is_kept(),)
            raise
        finally:
            for callback in self.callback_handler.callbacks:  # what is said next begins on a line of its own
                if bar := getattr(callback, "training_bar", None):
                    bar.close()

    def _find_checkpoint(self, asked: str | bool | None) -> str | None:
        """The first process looks, and all go on from the same one."""
        told: list[Any] = [None, None, [], uuid4().hex]
        if self.args.process_index == 0:
            try:
                told[0], told[2] = find_checkpoint(asked, self.args.output_dir)
                told[3] = noted(told[0], "run") if told[0] else told[3]
            except ValueError as error:
                told[1] = str(error)
        if self.args.world_size > 1:
            broadcast_object_list(told)
        found, failed, passed, self._run = told
        if failed:
            raise ValueError(failed)
        if self.args.process_index == 0:
            self._tell_start(found, passed)
        return None if found is None else str(found)

    def _tell_start(self, found: Path | None, passed: list[str]) -> None:
        for sentence in passed:
            logger.warning(sentence)
        if found is None:
            if self.args.should_save and (there := last_whole(self.args.output_dir, quick=True)[0]):
                logger.warning(
                    "The training starts anew beside %s of an earlier one; to go on from there, stop it and pass "
                    "resume_from_checkpoint.",
                    there,
                )
            return
        logger.warning("The training goes on from %s.", found)
        before = noted(found, "processes")
        if before not in (None, self.args.world_size):
            logger.warning(
                "%s was written by %d processes and %d go on from it: chance falls otherwise than without the "
                "interruption.",
                found,
                before,
                self.args.world_size,
            )

    def _what_is_kept(self) -> str:
        kept = last_of_run(self.args.output_dir, self._run)
        if kept is None:
            return f"this run saved no checkpoint in {self.args.output_dir} yet (see save_strategy and save_steps)"
        return f"{kept} is kept; to go on from it, run the same command with --resume_from_checkpoint true"

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        started = super()._init_training_state(*args, **kwargs)
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):  # one that the interrupted training did not have
                self.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
        self._forget_lost_best()
        return started

    def _forget_lost_best(self) -> None:
        """Where the best checkpoint of a training that goes on is lost, the best of the steps to come counts."""
        if self._resumed is None or not self.args.load_best_model_at_end:
            return
        best = TrainerState.load_from_json(str(Path(self._resumed) / STATE)).best_model_checkpoint
        if best is None:
            return
        found, reason = self._find_best(Path(best), Path(self._resumed))
        if found is not None:
            self.state.best_model_checkpoint = str(found)
            return
        if self.args.process_index == 0:
            logger.warning(
                "The best checkpoint until now, %s, is lost: %s; the best of the steps to come is kept.", best, reason
            )
        self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None

    def _find_best(self, best: Path, resumed: Path) -> tuple[Path | None, str]:
        """Where it was noted, or beside the resumed one where the output folder was moved; or why it is lost."""
        reason = "it is not there any more"
        for place in dict.fromkeys([best, resumed.parent / best.name]):
            if not place.is_dir():
                continue
            if damage := fault(place, student_only=True):
                reason = damage
            elif noted(place, "run") != self._run:
                reason = "another run wrote over it"
            else:
                return place, ""
        return None, reason

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing) if self._writing else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(super()._get_output_dir(trial))
        partial = [temporary(folder / "checkpoint")]
        if self.args.world_size > 1:
            broadcast_object_list(partial)
        try:
            self._write_checkpoint(model, trial, folder, partial[0])
        finally:
            if self.args.should_save:
                shutil.rmtree(partial[0], ignore_errors=True)  # a full disk has room again

    def _write_checkpoint(self, model: nn.Module, trial: Any, folder: Path, partial: Path) -> None:
        name, best, failed = f"checkpoint-{self.state.global_step}", self.state.best_model_checkpoint, None
        self._writing = partial
        try:
            super()._save_checkpoint(model, trial)
        except (SavingError, TrainingDiverged):  # in all processes
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            failed = self._cannot_save(name, folder, error)
        finally:
            self._writing = None
        self._agree(failed)
        self.state.best_model_checkpoint = self._best_checkpoint(folder, best)
        if self.args.should_save:
            try:
                self._finish_checkpoint(partial / name, folder / name)
            except OSError as error:
                failed = self._cannot_save(name, folder, error)
        self._agree(failed)

    def _best_checkpoint(self, folder: Path, before: str | None) -> str | None:
        """As the Trainer notes it, by the name that it will have."""
        step = self.state.best_global_step
        if not step:
            return before
        place = folder / f"checkpoint-{step}"
        return str(place) if step == self.state.global_step or place.is_dir() else before

    def _finish_checkpoint(self, written: Path, place: Path) -> None:
        self.state.save_to_json(str(written / STATE))
        write_record(
            written,
            run=self._run,
            step=self.state.global_step,
            processes=self.args.world_size,
            save_only_model=self.args.save_only_model,
        )
        put_in_place(written, place)
        best = self.state.best_model_checkpoint
        rotate(place.parent, self.args.save_total_limit, {place, *([Path(best)] if best else [])})

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        limit = self.args.save_total_limit
        self.args.save_total_limit = None  # else the Trainer removes folders that it did not write
        try:
            output = super()._finalize_training(trial, *args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        best = self.state.best_model_checkpoint
        if self.args.should_save and limit == 1 and best:
            for path in steps(self._get_output_dir(trial)).values():
                if path.resolve() != Path(best).resolve() and strange_file(path) is None:
                    remove(path)
        return output

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        if reason := fault(best, student_only=True):
            raise ValueError(
                f"The best checkpoint {best} cannot be loaded: {reason}; run the same command with "
                "--resume_from_checkpoint true for the best of what is left."
            )
        super()._load_best_model()

    # Students

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder, error = Path(output_dir or self.args.output_dir), None
        try:
            if self.args.should_save and (reason := not_finite(self.model, state_dict)):
                self._diverged([reason], self.state.global_step)
            if self._writing or not self.args.should_save:
                super()._save(str(folder), state_dict)
            else:
                self._replace_student(folder, state_dict)
        except TrainingDiverged as diverged:
            error = diverged
        except (OSError, RuntimeError, SafetensorError) as failed:
            what = folder.name if self._writing else "the student"
            error = self._cannot_save(what, folder.parents[1] if self._writing else folder, failed)
        if self._writing:  # the others wait in it for the same
            self._agree(error)
        elif error:
            raise error

    def _replace_student(self, folder: Path, state_dict: dict | None) -> None:
        """Write a student beside the one that is there, and then put each file in its place.

        Where the two differ in their configuration, that is taken away first and comes last: no weights are ever read
        by another student's configuration.
        """
        written = temporary(folder / "student")
        try:
            super()._save(str(written), state_dict)
            put_student_in_place(written, folder)
        finally:
            shutil.rmtree(written, ignore_errors=True)

    # Several processes

    def _agree(self, error: Exception | None) -> None:
        """All processes raise the error of the first one that has one."""
        errors = [error] if self.args.world_size <= 1 else gather_object([error])
        if first := next((each for each in errors if each is not None), None):
            raise first

    def _cannot_save(self, what: str, folder: Path, error: Exception) -> SavingError:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        kept = last_of_run(folder, self._run)
        remedy = "make room there, and run the same command again"
        if kept is not None:
            remedy += f" with --resume_from_checkpoint true: {kept.name} is whole"
        return SavingError(f"Cannot save {what} in {folder} ({reason}): what was there before is kept; {remedy}.")

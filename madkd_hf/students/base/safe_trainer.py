"""A Trainer that stops where a number is not finite, and writes checkpoints and students whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput

from ...files.whole import remove_stale, temporary
from .checkpoints import (
    STATE,
    all_checkpoints,
    checkpoint_fault,
    is_ours,
    put_in_place,
    remove,
    rotate,
    write_record,
)
from .finite import GRADIENT, SKIPS, TrainingDivergedError, Watch, diverged, not_finite
from .resuming import SavingError, find_start, forget_lost_best, resume_hint, saving_error
from .saved import put_student_in_place


CANNOT_WRITE = (OSError, RuntimeError, SafetensorError)


class SafeTrainer(Trainer):
    """A Trainer that loses no finished work and keeps no spoilt student.

    It stops at the first step whose loss, part of the loss or gradient is not finite, all processes at the same step.
    No step waits for the device because of this: where `logging_nan_inf_filter` makes the Trainer wait for each loss,
    it looks at each step, otherwise whenever something is logged, measured or saved. With a gradient scaler (fp16),
    which leaves such steps out, it stops when that happens 32 times in a row.

    A checkpoint is written under another name and renamed when all processes have finished; older ones are removed
    only then. A saved student replaces an earlier one once it is whole. Weights that are not finite are not saved.
    `train(resume_from_checkpoint=True)` goes on from the last checkpoint that is whole, and says which later ones are
    not.
    """

    _watch = Watch()
    _last_inputs: dict[str, Any] | None = None
    _unfinished: Path | None = None  # the folder in which a checkpoint is being written
    _save_error: Exception | None = None  # of this process, while a checkpoint is being written
    _resumed_from: str | None = None  # the checkpoint that the training went on from
    _run = ""  # what the checkpoints of this training note

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As that of `Trainer`.

        Raises:
            ValueError: no whole checkpoint to go on from.
            TrainingDivergedError: a loss, a gradient or the trained student is not finite.
            SavingError: a checkpoint could not be written.
        """
        self._resumed_from, self._run = find_start(self.args, resume_from_checkpoint)
        self._watch = Watch(SKIPS if getattr(self.accelerator, "scaler", None) is not None else 1)
        if self.args.should_save:
            remove_stale(self.args.output_dir)  # of a training that was killed
        try:
            output = super().train(self._resumed_from, *args, **kwargs)
            self._check_trained()
        except KeyboardInterrupt as stopped:
            if self.args.should_save and not stopped.args:
                stopped.args = (resume_hint(self.args, self._run),)
            raise
        finally:
            self._last_inputs = None
            for callback in self.callback_handler.callbacks:  # the next output begins on a line of its own
                if bar := getattr(callback, "training_bar", None):
                    bar.close()
        return output

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        started = super()._init_training_state(*args, **kwargs)
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):  # one that the interrupted training did not have
                self.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
        forget_lost_best(self.state, self.args, self._resumed_from, self._run)
        return started

    # Finite numbers

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            loss = super().training_step(model, inputs, *args, **kwargs)
        except (ValueError, RuntimeError) as error:  # matching of objects that are nowhere, for instance
            self._refuse_outputs(inputs, error)
            if "more than 1 value per channel" in str(error):
                raise ValueError(
                    "A batch of one image was to be trained on, and this backbone's batch norm needs two: set another "
                    "per_device_train_batch_size, or dataloader_drop_last to leave a last batch of one out."
                ) from error
            raise
        self._watch.note(self.state.global_step + 1, {"loss": loss})
        if self.args.logging_nan_inf_filter:
            self._stop_if_diverged()
        return loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self._last_inputs = inputs
        return super()._prepare_inputs(inputs)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None:
            norm = norm if isinstance(norm, torch.Tensor) else torch.tensor(float(norm), device=self.args.device)
            self._watch.note(self.state.global_step + 1, {GRADIENT: norm})
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._stop_if_diverged(together=True)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        except (ValueError, RuntimeError) as error:  # metrics of what is no number, for instance
            if self._last_inputs is not None and not isinstance(error, TrainingDivergedError):
                self._refuse_outputs(self._last_inputs, error)
            raise
        finally:
            self._last_inputs = self._last_inputs if self.is_in_train else None
        name = f"{metric_key_prefix}_loss"
        loss = output.metrics.get(name)
        if loss is not None and not torch.isfinite(torch.tensor(float(loss))):
            raise self._diverged(f"{name} is {loss}", self.state.global_step)
        return output

    def _stop_if_diverged(self, together: bool = False) -> None:
        """Raise TrainingDivergedError, in all processes; see `Watch.first_failure`."""
        failure = self._watch.first_failure(self.state.global_step + 1, self.args.world_size, together)
        if failure:
            names, step = failure
            raise self._diverged(f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not finite", step)

    def _refuse_outputs(self, inputs: dict[str, Any], error: Exception) -> None:
        """Raise TrainingDivergedError in place of an error that comes from outputs that are no numbers."""
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = self._outputs(inputs)
        except Exception:  # then it is about something else
            return
        if not all(output.isfinite().all() for output in outputs if output is not None):
            training = self.model.training
            raise self._diverged("the student's outputs are not finite", self.state.global_step + training) from error

    def _outputs(self, inputs: dict[str, Any]) -> Iterable[torch.Tensor | None]:
        """What the student says of a batch; its labels are left out."""
        raise NotImplementedError

    def _check_trained(self) -> None:
        """The trained weights, and the loss of one batch with them: the last step may have spoiled both."""
        inputs, model, reason = self._last_inputs, self.model_wrapped, None
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # there each process has a part
            reason = not_finite(self.model)
        if reason is None and inputs is not None and self._watch.patience == 1:
            training = model.training
            model.eval()
            try:
                with torch.no_grad(), self.compute_loss_context_manager():
                    loss = self.compute_loss(model, self._prepare_inputs(inputs))
                reason = None if loss.isfinite().all() else "the loss is not finite after the last step"
            except (ValueError, RuntimeError) as error:
                self._refuse_outputs(inputs, error)
                raise
            finally:
                model.train(training)
        if self.args.world_size > 1:
            reason = next((failure for failure in gather_object([reason]) if failure), None)
        if reason:
            raise self._diverged(reason, self.state.global_step)

    def _diverged(self, reason: str, step: int) -> TrainingDivergedError:
        return diverged(reason, None if self.lr_scheduler is None else step, self.args.learning_rate)

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._unfinished) if self._unfinished else super()._get_output_dir(trial)

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
        self._unfinished = partial
        try:
            super()._save_checkpoint(model, trial)
        except (SavingError, TrainingDivergedError):  # in all processes
            raise
        except CANNOT_WRITE as error:
            failed = saving_error(name, folder, error, self._run)
        finally:
            self._unfinished = None
        self._agree(failed)
        self.state.best_model_checkpoint = self._best_checkpoint(folder, best)
        if self.args.should_save:
            try:
                self._finish_checkpoint(partial / name, folder / name)
            except OSError as error:
                failed = saving_error(name, folder, error, self._run)
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
        self._stop_if_diverged(together=True)
        limit = self.args.save_total_limit
        self.args.save_total_limit = None  # else the Trainer removes folders that it did not write
        try:
            output = super()._finalize_training(trial, *args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        best = self.state.best_model_checkpoint
        if self.args.should_save and limit == 1 and best:
            for path in all_checkpoints(self._get_output_dir(trial)).values():
                if path.resolve() != Path(best).resolve() and is_ours(path):
                    remove(path)
        return output

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        if reason := checkpoint_fault(best, student_only=True):
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
                raise self._diverged(reason, self.state.global_step)
            if self._unfinished or not self.args.should_save:
                super()._save(str(folder), state_dict)
            else:
                self._replace_student(folder, state_dict)
        except TrainingDivergedError as spoilt:
            error = spoilt
        except CANNOT_WRITE as failed:
            what = folder.name if self._unfinished else "the student"
            error = saving_error(what, folder.parents[1] if self._unfinished else folder, failed, self._run)
        if error and not self._unfinished:
            raise error
        self._save_error = error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._save_error = None
        super().save_model(output_dir, _internal_call)
        if self._unfinished:  # here, as only some releases of transformers call `_save` in all processes
            self._agree(self._save_error)

    def _replace_student(self, folder: Path, state_dict: dict | None) -> None:
        """Write a student beside the one that is there, and then put each file in its place."""
        written = temporary(folder / "student")
        try:
            super()._save(str(written), state_dict)
            put_student_in_place(written, folder)
        finally:
            shutil.rmtree(written, ignore_errors=True)

    def _agree(self, error: Exception | None) -> None:
        """All processes raise the error of the first one that has one."""
        errors = [error] if self.args.world_size <= 1 else gather_object([error])
        if first := next((raised for raised in errors if raised is not None), None):
            raise first

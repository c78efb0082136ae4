"""A Trainer that stops where what it computes is no finite number any more, and saves nothing of that."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput


GRADIENT = "the gradient norm"
SKIPS = 32  # a gradient scaler halves its scale at each step it skips: from 65,536 to nothing


class TrainingDiverged(ValueError):
    """A loss, a gradient, the weights or what a student says are no finite numbers any more."""


class Watch:
    """Since which step values are not finite; kept on the device, and read when somebody waits for it anyway.

    Args:
        patience: how many times in a row a value may be no finite number; 1 lets none be.
    """

    def __init__(self, patience: int = 1):
        self.patience = patience
        self._since: dict[tuple[str, ...], torch.Tensor] = {}

    def note(self, step: int, values: Mapping[str, torch.Tensor]) -> None:
        """Look at scalars of this step, without waiting for them."""
        names = tuple(values)
        bad = ~torch.stack([_local(value).detach().float().reshape(()) for value in values.values()]).isfinite()
        since = self._since.get(names)
        since = torch.full_like(bad, -1, dtype=torch.long) if since is None else since
        self._since[names] = torch.where(bad, torch.where(since < 0, step, since), -1 if self.patience > 1 else since)

    def read(self, step: int, *names: str) -> dict[str, int]:
        """Name -> the step since which it has not been finite, of those whose patience is over; waits for the device.

        Args:
            step: the present one.
            names: those to look at; all by default.
        """
        groups = [group for group in self._since if not names or set(names) & set(group)]
        if not groups:
            return {}
        since = torch.cat([self._since[group] for group in groups]).tolist()  # one wait
        found = {name: first for name, first in zip(itertools.chain(*groups), since) if first >= 0}
        return {name: first for name, first in found.items() if step - first + 1 >= self.patience}


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


class FiniteTrainer(Trainer):
    """A Trainer that stops at the first step whose loss, part of the loss or gradient is not finite.

    All processes stop at the same step. No step waits for the device because of this: where `logging_nan_inf_filter`
    makes the Trainer wait for each loss, it looks at each step, otherwise whenever something is logged, measured or
    saved. With a gradient scaler (fp16), which leaves such steps out, it stops when that happens 32 times in a row.
    """

    _watch = Watch()
    _last_inputs: dict[str, Any] | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As that of `Trainer`.

        Raises:
            TrainingDiverged: at the first step whose loss or gradient is not finite, or where the trained student's is
                not.
        """
        self._watch = Watch(SKIPS if getattr(self.accelerator, "scaler", None) is not None else 1)
        try:
            output = super().train(*args, **kwargs)
            self._check_trained()
        finally:
            self._last_inputs = None
        return output

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

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._stop_if_diverged(together=True)
        return super()._finalize_training(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._stop_if_diverged(together=True)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        except (ValueError, RuntimeError) as error:  # metrics of what is no number, for instance
            if self._last_inputs is not None and not isinstance(error, TrainingDiverged):
                self._refuse_outputs(self._last_inputs, error)
            raise
        finally:
            self._last_inputs = self._last_inputs if self.is_in_train else None
        name = f"{metric_key_prefix}_loss"
        loss = output.metrics.get(name)
        if loss is not None and not torch.isfinite(torch.tensor(float(loss))):
            self._diverged([f"{name} is {loss}"], self.state.global_step)
        return output

    def _stop_if_diverged(self, together: bool = False) -> None:
        """
        Args:
            together: all processes tell each other; otherwise each looks at what is the same in all.
        """
        alone, step = self.args.world_size <= 1, self.state.global_step
        found = self._watch.read(step + 1, *([] if alone or together else [GRADIENT]))
        if not alone and (together or found):
            told = gather_object([self._watch.read(step + 1)])
            found = {name: min(each[name] for each in told if name in each) for each in told for name in each}
        if not found:
            return
        first = min(found.values())
        names = [name for name, since in found.items() if since == first]
        # The loss is made of its parts, and the gradient of the loss.
        parts = [name for name in names if name not in ("loss", GRADIENT)]
        names = parts or [name for name in names if name != GRADIENT] or names
        self._diverged([f"{_list(names)} {'is' if len(names) == 1 else 'are'} not finite"], first)

    def _refuse_outputs(self, inputs: dict[str, Any], error: Exception) -> None:
        """Say so where an error comes from outputs that are no numbers.

        Raises:
            TrainingDiverged: in place of that error.
        """
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = self._outputs(inputs)
        except Exception:  # then it is about something else
            return
        if not all(each.isfinite().all() for each in outputs if each is not None):
            training = self.model.training
            self._diverged(["the student's outputs are not finite"], self.state.global_step + training, error)

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
            reason = next((each for each in gather_object([reason]) if each), None)
        if reason:
            self._diverged([reason], self.state.global_step)

    def _diverged(self, reasons: list[str], step: int, error: Exception | None = None) -> None:
        if self.lr_scheduler is None:
            raise TrainingDiverged(
                f"This student cannot be used: {_list(reasons)}; take one whose training did not diverge, or look for "
                "images that are no numbers."
            ) from error
        raise TrainingDiverged(
            f"The training diverged at step {step}: {_list(reasons)}, with learning_rate={self.args.learning_rate:g}. "
            "This student was not saved; lower learning_rate, or look for images or answers that are no numbers."
        ) from error


def not_finite(model: nn.Module, weights: Mapping[str, Any] | None = None) -> str | None:
    """What of a student's weights is not finite, in a few words; None where all are.

    Args:
        model: the student.
        weights: its state, where that is known already.
    """
    infinite = {name for name, _ in model.named_buffers() if not name.endswith(("running_mean", "running_var"))}
    weights = model.state_dict() if weights is None else weights
    flags = {}
    for name, value in weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.element_size() > 1:
            flags[name] = (
                value.isnan() if name in infinite else ~value.isfinite()
            ).any()  # a mask may hold infinities
    if not flags:
        return None
    device = next(iter(flags.values())).device
    found = torch.stack([each.to(device) for each in flags.values()]).tolist()
    bad = [name for name, each in zip(flags, found) if each]
    return f"{len(bad)} of its {len(flags)} weight tensors are not finite, first {bad[0]}" if bad else None


def _list(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

"""A Trainer whose loss also asks for the aspects."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from torch import nn
from transformers import BaseImageProcessor, EvalPrediction, Trainer, TrainerCallback

from .data import AspectCollator, readable
from .losses import madkd_loss
from .metrics import compute_metrics as student_metrics
from .modeling_madkd import MadkdForImageClassification
from .training_args import MadkdTrainingArguments


class MadkdTrainer(Trainer):
    """Trains a student on classes and aspects: cross-entropy plus alpha times the aspects' BCE (paper section 3.3).

    Takes datasets as `attach_aspects` leaves them: an image column, a class column, `aspect_logits`. Batches are made
    by `AspectCollator` (with augmentation for training, without for evaluation) unless a `data_collator` is given.
    A dataset without aspect columns, or a row without answers, trains and evaluates on its classes alone. Rows whose
    image the labelling could not read are left out, with a warning; `predict` then has no prediction for them.

    Args:
        model: a `MadkdForImageClassification`.
        args: `MadkdTrainingArguments`.
        data_collator: replaces ours; batches then need `pixel_values`, `labels` and, for the aspects,
            `aspect_logits` [B, Q], NaN where unknown.
        train_dataset, eval_dataset: labelled datasets.
        processing_class: the student's image processor; it is saved with the model.
        compute_metrics: receives class logits and labels; by default accuracy, top-5, macro-F1, calibration error and,
            where there are targets, the aspects' AUROC and BCE against the teacher.
        image_column, label_column: names of the columns.
        kwargs: of `Trainer`.

    Raises:
        ValueError: aspects that do not fit the model's bank, or labels that do not fit its classes.
    """

    def __init__(
        self,
        model: MadkdForImageClassification | None = None,
        args: MadkdTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: BaseImageProcessor | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        image_column: str = "image",
        label_column: str = "label",
        **kwargs: Any,
    ):
        if args is None:
            args = MadkdTrainingArguments(output_dir="tmp_trainer")
        if not isinstance(args, MadkdTrainingArguments):
            raise ValueError(f"MadkdTrainer needs MadkdTrainingArguments (for aspect_alpha); received {type(args)}.")
        if data_collator is None and processing_class is None:
            raise ValueError("Pass the student's image processor as processing_class, or a data_collator of your own.")
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics or student_metrics,
            **kwargs,
        )
        self.asks_aspects = compute_metrics is None
        self.label_column = label_column
        self.train_dataset = self._fitting(train_dataset, "the training dataset")
        if isinstance(eval_dataset, dict):
            named = {
                name: self._fitting(rows, f"the evaluation dataset {name!r}") for name, rows in eval_dataset.items()
            }
            self.eval_dataset = named
        else:
            self.eval_dataset = self._fitting(eval_dataset, "the evaluation dataset")
        self.train_collator = self.eval_collator = data_collator
        if data_collator is None:
            config = self.model.config
            make = functools.partial(
                AspectCollator,
                processing_class,
                config.num_labels,
                image_column,
                label_column,
                num_aspects=config.num_aspects,
            )
            self.train_collator = make(
                augment=True, crop_scale=args.crop_scale, horizontal_flip=args.horizontal_flip, seed=args.seed
            )
            self.eval_collator = make()
            self.add_callback(_TellEpoch(self.train_collator))
        self._components: dict[str, torch.Tensor] = {}
        self._components_count = 0

    def get_train_dataloader(self):
        self.data_collator = self.train_collator
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset=None):
        self.data_collator = self.eval_collator
        return super().get_eval_dataloader(self._fitting(eval_dataset, "the evaluation dataset"))

    def get_test_dataloader(self, test_dataset):
        self.data_collator = self.eval_collator
        return super().get_test_dataloader(self._fitting(test_dataset, "the test dataset"))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Class loss plus `aspect_alpha` times the aspect loss, see `losses.madkd_loss`; each is logged by name."""
        targets = inputs.get("aspect_logits")
        outputs = model(pixel_values=inputs["pixel_values"])
        losses = madkd_loss(
            outputs.logits,
            inputs["labels"],
            outputs.aspect_logits,
            targets if self.model.config.num_aspects else None,
            self.args.aspect_alpha,
            self.args.label_smoothing_factor,
        )
        if model.training:
            self._note(losses)
        return (losses["loss"], outputs) if return_outputs else losses["loss"]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As usual, and with the aspects beside classes and labels when our own metrics want them."""
        targets = inputs.get("aspect_logits") if self.model.config.num_aspects else None
        if "labels" not in inputs:
            inputs = {"pixel_values": inputs["pixel_values"]}
        wanted = targets is not None and self.asks_aspects and not prediction_loss_only
        loss, logits, labels = super().prediction_step(
            model, inputs, prediction_loss_only, ignore_keys=[] if wanted else ignore_keys
        )
        if wanted and labels is not None:
            labels = (labels, targets.to(labels.device))
        return loss, logits, labels

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_as_saved(resume_from_checkpoint, model or self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_as_saved(self.state.best_model_checkpoint, self.model):
            super()._load_best_model()

    def _load_as_saved(self, folder: str, model: nn.Module) -> bool:
        """Loads weights as `from_pretrained` does: transformers writes those of some architectures (ViT, ...) under
        other names than the model's, which the Trainer's own loading ignores, with a warning (its issue 48805)."""
        ours = isinstance(model, MadkdForImageClassification) and Path(folder).is_dir()
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not ours:
            return False
        model.load_state_dict(MadkdForImageClassification.from_pretrained(folder).state_dict())
        return True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each loss component since the last log."""
        if "loss" in logs and self._components_count:
            for name, total in self._components.items():
                mean = self.accelerator.gather(total / self._components_count).mean()
                logs[name] = mean.item()
            self._components, self._components_count = {}, 0
        super().log(logs, start_time)

    def _note(self, losses: dict[str, torch.Tensor]) -> None:
        for name in ("class_loss", "aspect_loss"):
            value = losses.get(name, losses["loss"].new_zeros(())).detach().reshape(1)
            self._components[name] = self._components.get(name, 0) + value
        self._components_count += 1

    def _fitting(self, dataset: Any, name: str) -> Any:
        """The dataset's readable rows, once it is known to fit the model; what is no `Dataset` stays as it is."""
        if not isinstance(dataset, Dataset):
            return dataset
        self._check(dataset)
        return readable(dataset, name)

    def _check(self, dataset: Dataset) -> None:
        """Refuses answers to other questions than the model's, and labels of other classes."""
        config = self.model.config
        labels = dataset.features.get(self.label_column)
        if isinstance(labels, ClassLabel) and labels.num_classes != config.num_labels:
            raise ValueError(
                f"The dataset has {labels.num_classes} classes and the model {config.num_labels}: "
                "build the model with the dataset's id2label."
            )
        if "aspect_logits" not in dataset.features or not config.num_aspects:
            return
        length = getattr(dataset.features["aspect_logits"], "length", -1)
        if length == -1:
            answers = dataset.select_columns("aspect_logits")["aspect_logits"]
            length = next((len(answer) for answer in answers if answer is not None), config.num_aspects)
        if length != config.num_aspects:
            raise ValueError(
                f"The dataset answers {length} questions and the model has {config.num_aspects} aspects: "
                "use the bank that the dataset was labelled with (aspects.json beside it)."
            )
        foreign = set(_distinct(dataset, "aspect_bank")) - {None, config.aspect_bank}
        if foreign:
            raise ValueError(
                f"The dataset was labelled with the bank {sorted(foreign)[0]} and the model was built for "
                f"{config.aspect_bank}: questions or their order differ; use the aspects.json beside the dataset."
            )


class _TellEpoch(TrainerCallback):
    """Tells the collator which epoch begins, or goes on after a checkpoint."""

    def __init__(self, collator: AspectCollator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.set_epoch(int(state.epoch or 0))


def _distinct(dataset: Dataset, column: str) -> list[Any]:
    """Without the other columns, and as stored: `Dataset.unique` would copy a selection of rows out first."""
    if column not in dataset.features:
        return []
    return dataset.select_columns(column).with_format("arrow")[:][column].unique().to_pylist()

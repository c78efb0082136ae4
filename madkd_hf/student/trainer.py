"""A Trainer whose loss also asks for the aspects."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import ClassLabel, Dataset
from torch import nn
from transformers import BaseImageProcessor, EvalPrediction, TrainerCallback

from .augmentation import mixup
from .data import AspectCollator, readable
from .image_batches import StoreCollator, StoredRows, store_collator
from .losses import madkd_loss
from .metrics import all_metrics
from .modeling_madkd import MadkdForImageClassification
from .publishing import PublishedTrainer
from .saved import forget_adapter, is_adapted, is_student, load_saved
from .steps import rows_per_batch, without_repeats
from .training_args import MadkdTrainingArguments


if TYPE_CHECKING:
    from peft import LoraConfig


class MadkdTrainer(PublishedTrainer):
    """Trains a student on classes and aspects: cross-entropy plus alpha times the aspects' BCE (paper section 3.3).

    Takes datasets as `attach_aspects` leaves them: an image column, a class column, `aspect_logits`. Batches are made
    by `AspectCollator` (with augmentation for training, without for evaluation) unless a `data_collator` is given.
    A dataset without aspect columns, or a row without answers, trains and evaluates on its classes alone. Rows whose
    image the labelling could not read are left out, with a warning; `predict` then has no prediction for them.

    With `push_to_hub=True`, the Hub is asked before training whether a push can succeed, and changed only by the push
    itself: one commit with the finished student and its card.

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
        peft_config: a `LoraConfig`: the backbone gets adapters (`target_modules`, by default all its linear layers),
            the head is trained in full. `trainer.model` is then a `LoraStudent` around the model given. What is saved
            and published is the merged student, an ordinary one, with the adapter beside it in `adapter/`;
            `trainer.model.merged()` is the same in memory.
        kwargs: of `Trainer`.

    Raises:
        ValueError: aspects that do not fit the model's bank, labels that do not fit its classes, a `hub_strategy`
            other than end, a `peft_config` that does not fit the backbone.
        ImportError: `peft_config` without peft.
        HubError: `push_to_hub=True`, and a push cannot succeed.
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
        peft_config: LoraConfig | None = None,
        **kwargs: Any,
    ):
        if args is None:
            args = MadkdTrainingArguments(output_dir="tmp_trainer")
        if not isinstance(args, MadkdTrainingArguments):
            raise ValueError(f"MadkdTrainer needs MadkdTrainingArguments (for aspect_alpha); received {type(args)}.")
        if data_collator is None and processing_class is None:
            raise ValueError("Pass the student's image processor as processing_class, or a data_collator of your own.")
        args.check_hub_strategy()
        if peft_config is not None:
            from .lora import adapt

            model = adapt(model, peft_config)
        elif hasattr(model, "merge_and_unload") and not is_adapted(model):
            raise ValueError(
                f"MadkdTrainer needs the student itself and its LoraConfig as peft_config; received {type(model)}, of "
                "which it could save the adapter alone."
            )
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics or all_metrics,
            **kwargs,
        )
        self._refuse_unfit()
        if args.channels_last:
            self.model.to(memory_format=torch.channels_last)
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
        self._stores: dict[tuple[str, bool], StoreCollator | None] = {}
        self._finish: Callable[[dict], None] | None = None

    def _refuse_unfit(self) -> None:
        """What this student cannot be trained with."""
        if is_adapted(self.model) and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError(
                "LoRA is trained with the whole student on each device; received a DeepSpeed or FSDP configuration: "
                "leave it out, the adapters need little memory."
            )
        if self.args.gradient_checkpointing and not self.model.supports_gradient_checkpointing:
            raise ValueError(
                f"The backbone {type(self.model.backbone).__name__} has no layers for gradient checkpointing: leave "
                "it out, or lower per_device_train_batch_size and raise gradient_accumulation_steps."
            )

    def get_train_dataloader(self):
        kept = self.train_dataset
        self.train_dataset, self.data_collator = self._stored(kept, self.train_collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = kept

    def get_eval_dataloader(self, eval_dataset=None):
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = self._fitting(self.eval_dataset[rows] if isinstance(rows, str) else rows, "the evaluation dataset")
        self.data_collator = self.eval_collator
        if self.is_in_train:  # and so again
            rows, self.data_collator = self._stored(rows, self.eval_collator)
        return super().get_eval_dataloader(rows)

    def get_test_dataloader(self, test_dataset):
        self.data_collator = self.eval_collator
        return super().get_test_dataloader(self._fitting(test_dataset, "the test dataset"))

    def _stored(self, rows: Any, collator: Callable) -> tuple[Any, Callable]:
        """What a data loader of these rows is made of: they and their collator themselves, or from an image store."""
        if not isinstance(rows, Dataset) or not isinstance(collator, AspectCollator) or not len(rows):
            return rows, collator
        name = rows._fingerprint, collator.augment
        if name not in self._stores:
            choice = self.args.image_store
            if not collator.augment and choice == "device":
                choice = "disk"
            device = self.args.device if collator.augment else torch.device("cpu")
            self._stores[name] = store_collator(collator, rows, choice, device, self.args.disable_tqdm)
        stored = self._stores[name]
        if stored is not None and (collator.augment or self._finish is None):
            self._finish = stored.finish  # of training batches, which may need the store; bytes are bytes
        return (rows, collator) if stored is None else (StoredRows(rows), stored)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared = super()._prepare_inputs(inputs)
        if "pixel_values" not in prepared:
            self._finish(prepared)
            inputs["pixel_values"] = prepared["pixel_values"]  # the Trainer counts operations by it
        inputs = prepared
        if self.args.channels_last:
            inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        return inputs

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """As the arguments say; with `lr_milestones`, steps down after these epochs."""
        if self.lr_scheduler is None and self.args.lr_milestones:
            steps_per_epoch = num_training_steps / self.args.num_train_epochs
            milestones = [round(epoch * steps_per_epoch) for epoch in self.args.lr_milestones]
            self.lr_scheduler = torch.optim.lr_scheduler.MultiStepLR(
                optimizer or self.optimizer, milestones, self.args.lr_gamma
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | None]:
        """The batches of a step, and how many rows of a batch count, on average over them and over all processes."""
        upcoming = itertools.islice(epoch_iterator, num_batches)
        batches = [without_repeats(batch, self.accelerator) for batch in upcoming]
        if not batches:
            return batches, None
        self._components_count += 1
        return batches, rows_per_batch(batches, self.accelerator)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Class loss plus `aspect_alpha` times the aspect loss, see `losses.madkd_loss`; each is logged by name.

        Means over the batch's rows, or in training, with `num_items_in_batch`, such that they add up to means over the
        rows of all accumulated batches and all processes.
        """
        pixel_values, parts = inputs["pixel_values"], [(1.0, inputs)]
        if model.training and self.args.mixup_alpha:
            pixel_values, parts = mixup(inputs, self.args.mixup_alpha)
        outputs = model(pixel_values=pixel_values)
        losses: dict[str, torch.Tensor] = {}
        for share, part in parts:
            found = madkd_loss(
                outputs.logits,
                part["labels"],
                outputs.aspect_logits,
                part.get("aspect_logits") if self.model.config.num_aspects else None,
                self.args.aspect_alpha,
                self.args.label_smoothing_factor,
                num_items_in_batch,
            )
            losses = {name: losses.get(name, 0) + share * value for name, value in found.items()}
        if model.training and num_items_in_batch is not None:
            self._note(losses)
        return (losses["loss"], outputs) if return_outputs else losses["loss"]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As usual, and with the aspects beside classes and labels when our own metrics want them."""
        inputs = without_repeats(inputs, self.accelerator)
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
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not (is_student(model) and Path(folder).is_dir()):
            return False
        load_saved(model, folder)
        return True

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            forget_adapter(output_dir or self.args.output_dir)
        super()._save(output_dir, state_dict)

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
            value = value / self.current_gradient_accumulation_steps
            self._components[name] = self._components.get(name, 0) + value

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

"""What training has in common for all students, whatever their task."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import BaseImageProcessor, EvalPrediction
from transformers.trainer_utils import EvalLoopOutput

from ...data.columns import BANK, LOGITS, check_answers, drop_skipped_rows
from ...data.image_processors import ordinary
from ...metrics import OF_ASPECTS
from ..losses.base import Loss
from .collator import TellEpoch
from .publishing import Publishing
from .resuming import EarlyStopping
from .safe_trainer import SafeTrainer
from .saved import is_student, load_saved
from .settings import check_metric
from .training_args import MadkdTrainingArguments


logger = logging.getLogger(__name__)


class DistillingTrainer(Publishing, SafeTrainer):
    """A Trainer that checks what it is given, names each part of the loss, counts each row once, and publishes.

    What differs from task to task, its subclass has:
        `_refuse_unfit()`: refuses arguments that such a student cannot be trained with.
        `_check_columns(dataset, name, with_labels)`: refuses rows of other columns or classes than the model's.
        `_collators()`: what makes batches to train on, to evaluate, and to predict for.
        `_without_repeats(batch)`: the batch, in which rows that only repeat those of other processes do not count.
        `_rows_per_batch(batches)`: what sums over rows are divided by, see `Loss`: name of a target -> how many rows
            have it, on average over the batches of a step and all processes; scalars.
        `default_loss()`: the `Loss` that the arguments ask for.
        `_losses(model, inputs, rows)`: the loss of a batch with its parts, see `Loss`, and the model's outputs.
        `_outputs(inputs)`: what the model says of a batch without its labels, to see whether it is finite.
        `_add_pixel_values(batch)`: where batches may come without them, as from an image store.
        `default_metrics`: the usual `compute_metrics`; `metrics`: the names of what it may give.

    Args:
        model, data_collator, compute_metrics: see the task's trainer.
        args: `MadkdTrainingArguments`.
        train_dataset, eval_dataset: labelled datasets.
        processing_class: the student's image processor; it is saved with the model.
        image_column: name of the column of images.
        loss: the one to minimise; by default that of `default_loss`.
        kwargs: of `Trainer`.

    Attributes:
        measures_batches: whether a `compute_metrics` may be given one evaluation batch after the other.
        splits_batches: whether a batch may be cut in parts for several devices of one process (nn.DataParallel).
        makes_batches, own_metrics: whether the user gave no `data_collator`, no `compute_metrics`.
        train_collator, eval_collator, test_collator: see `_collators`, or the user's.
    """

    metrics: tuple[str, ...] = ()
    default_metrics: Callable[[EvalPrediction], dict]
    measures_batches = False
    splits_batches = False
    _parameters: int | None = None  # of the model, once they are counted

    def __init__(
        self,
        model: nn.Module | None = None,
        args: MadkdTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: BaseImageProcessor | None = None,
        *,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        image_column: str = "image",
        loss: Loss | None = None,
        **kwargs: Any,
    ):
        args = args or MadkdTrainingArguments(output_dir="tmp_trainer")
        if not isinstance(args, MadkdTrainingArguments):
            raise ValueError(
                f"{type(self).__name__} needs MadkdTrainingArguments (for aspect_alpha); received {type(args)}."
            )
        if data_collator is None and processing_class is None:
            raise ValueError("Pass the student's image processor as processing_class, or a data_collator of your own.")
        args.check_hub_strategy()
        self.makes_batches, self.own_metrics = data_collator is None, compute_metrics is None
        if args.batch_eval_metrics and (self.own_metrics or not self.measures_batches):
            raise ValueError(
                f"The metrics of {type(self).__name__} need all evaluation images at once; received "
                "batch_eval_metrics=True: leave it out, and spare memory by eval_accumulation_steps=1."
            )
        self.image_column, self.loss, self._evaluations = image_column, loss, {}
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=ordinary(processing_class),
            compute_metrics=compute_metrics or self.default_metrics,
            **kwargs,
        )
        self._tell_epoch = TellEpoch()
        self.add_callback(self._tell_epoch)
        self._refuse_unfit()
        self._check_memory()
        self._in_its_format(self.model)
        self.train_dataset = self._checked_rows(train_dataset, "the training dataset")
        if isinstance(eval_dataset, dict):
            self.eval_dataset = {
                name: self._checked_rows(rows, f"the evaluation dataset {name!r}")
                for name, rows in eval_dataset.items()
            }
        else:
            self.eval_dataset = self._checked_rows(eval_dataset, "the evaluation dataset")
        self._check_settings()
        if args.early_stopping_patience:
            self.add_callback(EarlyStopping(args.early_stopping_patience, args.early_stopping_threshold))
        self.train_collator = self.eval_collator = self.test_collator = data_collator
        if self.makes_batches:
            self.train_collator, self.eval_collator, self.test_collator = self._collators()
            self._tell_epoch.listeners.append(self.train_collator)
            for collator in filter(None, (self.train_collator, self.eval_collator)):  # a prediction needs no targets
                getattr(collator, "collator", collator).sources = self._sources()
        self._logged_parts: dict[str, torch.Tensor] = {}  # sums of the loss's parts since the last log
        self._logged_steps = 0
        self._rows_of_loader: dict[str, Any] = {}  # what each evaluation data loader that is kept was made of

    def _check_memory(self) -> None:
        """Refuse ways to spare or to share memory that such a student does not know."""
        if self.args.n_gpu > 1 and not self.splits_batches:
            raise ValueError(
                f"{type(self).__name__} cannot share a batch between the {self.args.n_gpu} GPUs of one process: start "
                "one process for each with `accelerate launch`, or show it one with CUDA_VISIBLE_DEVICES=0."
            )
        names = ("activation_checkpointing", "gradient_checkpointing")  # the older goes in transformers 6
        asked = any(getattr(self.args, name, None) for name in names)
        if asked and not self.model.supports_gradient_checkpointing:
            inner = self.model.base_model_prefix  # "backbone" or "detector"
            raise ValueError(
                f"The {inner} {type(getattr(self.model, inner)).__name__} has no layers for activation checkpointing: "
                "leave it out, or lower per_device_train_batch_size and raise gradient_accumulation_steps."
            )

    def metric_names(self, rows: Any) -> list[str]:
        """What our own metrics are called that these evaluation rows can give."""
        answered = not isinstance(rows, Dataset) or "aspect_logits" in rows.features
        silent = () if self.model.config.num_aspects and answered else OF_ASPECTS
        return [name for name in self.metrics if name not in silent]

    def _check_settings(self) -> None:
        """Refuse batches that the rows cannot fill, and a metric for the best model that there will not be."""
        args, batch = self.args, self.args.train_batch_size * self.args.world_size
        if args.dataloader_drop_last and isinstance(self.train_dataset, Dataset) and len(self.train_dataset) < batch:
            raise ValueError(
                f"The training dataset has {len(self.train_dataset)} rows, and dataloader_drop_last leaves batches "
                f"out that are not full, of {batch}: leave it out, or lower per_device_train_batch_size."
            )
        strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
        if not self.own_metrics or strategy == "no" or self.eval_dataset is None:
            return
        if isinstance(self.eval_dataset, dict):
            of = {name: self.metric_names(rows) for name, rows in self.eval_dataset.items()}
            check_metric(args, [f"{name}_{metric}" for name, metrics in of.items() for metric in ("loss", *metrics)])
        else:
            check_metric(args, [] if args.prediction_loss_only else self.metric_names(self.eval_dataset))

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """As that of `Trainer`, which makes the model anew when training begins; in the arguments' memory format."""
        self._parameters = None
        return self._in_its_format(super().call_model_init(trial))

    def _in_its_format(self, model: nn.Module) -> nn.Module:
        return model.to(memory_format=torch.channels_last) if self.args.channels_last else model

    # Data

    def _sources(self) -> dict[str, tuple[str, str]]:
        """Whose targets the student learns, see `Collator`."""
        bank = self.model.config.aspect_bank
        return {LOGITS: (BANK, bank)} if bank and self.model.config.num_aspects else {}

    def _checked_rows(self, dataset: Any, name: str, with_labels: bool = True) -> Any:
        """The dataset's readable rows, once it is known to fit the model; what is no `Dataset` stays as it is."""
        if isinstance(dataset, IterableDataset) and dataset.features:
            self._check_columns(dataset, name, with_labels)
        if not isinstance(dataset, Dataset):
            return dataset
        if dataset.format["type"] not in (None, "custom"):  # a built-in one would make tensors of images
            dataset = dataset.with_format(None)
        if not len(dataset):
            raise ValueError(f"There are no rows in {name}: look at what fills it, or leave it out.")
        # before the check, which would refuse the boxes for which the labelling skipped rows
        rows, config = drop_skipped_rows(dataset, name), self.model.config
        self._check_columns(rows, name if rows is dataset else f"{name} (without the rows left out)", with_labels)
        by_object = getattr(config, "aspect_level", "image") == "object"
        check_answers(rows, config.aspect_bank, config.num_aspects, by_object)
        return rows

    def _stored(self, rows: Any, collator: Callable) -> tuple[Any, Callable]:
        """Rows and collator of a data loader; a subclass may take other ones in their place, from an image store."""
        return rows, collator

    def get_train_dataloader(self) -> Any:
        if self.train_dataset is None:
            raise ValueError("Training needs a train_dataset.")
        # the loader that the Trainer makes takes its collator from here, which differs from loader to loader
        rows, self.data_collator = self._stored(self.train_dataset, self.train_collator)
        return self._get_dataloader(rows, "Training", self._train_batch_size, self._get_train_sampler, True)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> Any:
        name = eval_dataset if isinstance(eval_dataset, str) else "eval"
        dataset = eval_dataset
        if eval_dataset is None or isinstance(eval_dataset, str):
            dataset = self.eval_dataset if eval_dataset is None else self.eval_dataset[name]
        if dataset is None:
            raise ValueError("Evaluation needs an eval_dataset.")
        loaders = getattr(self, "_eval_dataloaders", {})  # which the Trainer keeps where workers are persistent
        if name in loaders and self._rows_of_loader.get(name) is dataset:
            return loaders[name]
        self._rows_of_loader[name] = dataset
        rows, self.data_collator = self._checked_rows(dataset, "the evaluation dataset"), self.eval_collator
        if self.is_in_train:  # which evaluates these rows many times
            rows, self.data_collator = self._stored(rows, self.eval_collator)
        return self._get_dataloader(rows, "Evaluation", self.args.eval_batch_size, self._get_eval_sampler, False, name)

    def get_test_dataloader(self, test_dataset: Dataset) -> Any:
        self.data_collator = self.test_collator
        return super().get_test_dataloader(self._checked_rows(test_dataset, "the test dataset", with_labels=False))

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor] | None]:
        """The batches of a step, and how many rows of a batch have a target, see `_rows_per_batch`."""
        batches = [self._without_repeats(batch) for batch in itertools.islice(epoch_iterator, num_batches)]
        if not batches:
            return batches, None
        self._logged_steps += 1
        return batches, self._rows_per_batch(batches)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared = super()._prepare_inputs(inputs)
        if "pixel_values" not in prepared:
            self._add_pixel_values(prepared)
            inputs["pixel_values"] = prepared["pixel_values"]  # the Trainer counts operations by it
        if self.args.channels_last:
            prepared["pixel_values"] = prepared["pixel_values"].contiguous(memory_format=torch.channels_last)
        return prepared

    def _add_pixel_values(self, batch: dict[str, Any]) -> None:
        raise ValueError(f"The batches of this data_collator need `pixel_values`; they have {sorted(batch)}.")

    # Training

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As the Trainer estimates them; it counts the parameters anew at each step, which a small student notices."""
        if self._parameters is None:
            self._parameters = self.model.num_parameters(exclude_embeddings=True)
        return 6 * inputs["pixel_values"].numel() * self._parameters

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
        elif (warmup := self.args.get_warmup_steps(num_training_steps)) >= num_training_steps:
            logger.warning(
                "The learning rate still warms up when the training ends (%d of %d steps): lower warmup_steps.",
                warmup,
                num_training_steps,
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each loss component since the last log."""
        if "loss" in logs and self._logged_steps:
            for name, total in self._logged_parts.items():
                logs[name] = self.accelerator.gather(total / self._logged_steps).mean().item()
            self._logged_parts, self._logged_steps = {}, 0
        super().log(logs, start_time)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The loss of a batch, see `Loss`, whose rows are `num_items_in_batch`; in training, its parts are logged."""
        losses, outputs = self._losses(model, inputs, num_items_in_batch)
        if model.training and num_items_in_batch is not None:
            parts = {name: value for name, value in losses.items() if name != "loss"}
            self._watch.note(self.state.global_step + 1, parts)
            for name in dict.fromkeys([*(self.loss or self.default_loss()).parts, *parts]):
                value = parts.get(name, losses["loss"].new_zeros(())).detach().reshape(1)
                value = value / self.current_gradient_accumulation_steps
                self._logged_parts[name] = self._logged_parts.get(name, 0) + value
        return (losses["loss"], outputs) if return_outputs else losses["loss"]

    # Evaluation

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """As usual, and its numbers are kept for the card."""
        output = self._run_evaluation(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        self._keep_for_card(getattr(dataloader.dataset, "rows", dataloader.dataset), output, metric_key_prefix)
        return output

    def _run_evaluation(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The evaluation loop; `per_aspect` may be among its metrics, for the card alone."""
        return super().evaluation_loop(*args, **kwargs)

    # Saved students

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

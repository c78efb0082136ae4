"""What training has in common for all students, whatever they tell beside the aspects."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import BaseImageProcessor, EarlyStoppingCallback, EvalPrediction, TrainerCallback

from ...data.columns import drop_skipped_rows
from .publishing import PublishedTrainer
from .saved import is_student, load_saved
from .settings import check_metric
from .training_args import MadkdTrainingArguments


logger = logging.getLogger(__name__)


class DistillingTrainer(PublishedTrainer):
    """A Trainer that checks what it is given, names each part of the loss, and counts each row once.

    What differs from student to student is in the methods that raise `NotImplementedError`, and in `parts`.

    Attributes:
        parts: of the loss, by the names under which they are logged; 0 where a batch has none.
        measures_batches: whether `compute_metrics` may be given one evaluation batch after the other.
        splits_batches: whether a batch may be cut in parts for several devices of one process (nn.DataParallel).
        train_collator, eval_collator: make batches for training and for everything else; a subclass makes its own
            where the user gave none.
    """

    parts: tuple[str, ...] = ("aspect_loss",)
    measures_batches = False
    _own_metrics: Callable[[EvalPrediction], dict] | None = None  # what `compute_metrics` is by default
    splits_batches = False

    def __init__(
        self,
        model: nn.Module | None,
        args: MadkdTrainingArguments | None,
        data_collator: Callable | None,
        train_dataset: Dataset | None,
        eval_dataset: Dataset | dict[str, Dataset] | None,
        processing_class: BaseImageProcessor | None,
        compute_metrics: Callable[[EvalPrediction], dict],
        **kwargs: Any,
    ):
        if args is None:
            args = MadkdTrainingArguments(output_dir="tmp_trainer")
        if not isinstance(args, MadkdTrainingArguments):
            raise ValueError(
                f"{type(self).__name__} needs MadkdTrainingArguments (for aspect_alpha); received {type(args)}."
            )
        if data_collator is None and processing_class is None:
            raise ValueError("Pass the student's image processor as processing_class, or a data_collator of your own.")
        args.check_hub_strategy()
        if args.batch_eval_metrics and not self.measures_batches:
            raise ValueError(
                f"The metrics of {type(self).__name__} need all evaluation images at once; received "
                "batch_eval_metrics=True: leave it out; eval_accumulation_steps=1 is what spares the accelerator's "
                "memory."
            )
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        if args.n_gpu > 1 and not self.splits_batches:
            raise ValueError(
                f"{type(self).__name__} cannot share a batch between the {args.n_gpu} GPUs of one process: start one "
                "process for each with `accelerate launch`, or show it a single one with CUDA_VISIBLE_DEVICES=0."
            )
        self._refuse_unfit()
        self._in_its_format(self.model)
        self.train_dataset = self._fitting(train_dataset, "the training dataset")
        if isinstance(eval_dataset, dict):
            named = {
                name: self._fitting(rows, f"the evaluation dataset {name!r}") for name, rows in eval_dataset.items()
            }
            self.eval_dataset = named
        else:
            self.eval_dataset = self._fitting(eval_dataset, "the evaluation dataset")
        self._check_settings()
        if args.early_stopping_patience:
            self.add_callback(EarlyStopping(args.early_stopping_patience, args.early_stopping_threshold))
        self.train_collator = self.eval_collator = data_collator
        self._components: dict[str, torch.Tensor] = {}
        self._components_count = 0
        self._evaluated: dict[str, Any] = {}  # by the name under which a data loader is kept

    def _refuse_unfit(self) -> None:
        """What this student cannot be trained with.

        Raises:
            ValueError: in one sentence.
        """
        raise NotImplementedError

    def _check(self, dataset: Dataset, name: str, with_labels: bool) -> None:
        """Refuses what does not fit the model, where `with_labels` is False by its questions alone.

        Raises:
            ValueError: in one sentence.
        """
        raise NotImplementedError

    def _without_repeats(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, in which the rows that it only repeats for other processes' sake count for nothing."""
        raise NotImplementedError

    def _rows_per_batch(self, batches: list[dict[str, Any]]) -> torch.Tensor:
        """What sums over a batch's rows are divided by: how many count, on average over batches and processes."""
        raise NotImplementedError

    def metric_names(self, rows: Any) -> list[str]:
        """What our own metrics are called that these evaluation rows can give."""
        raise NotImplementedError

    def _check_settings(self) -> None:
        """What the arguments ask of these datasets.

        Raises:
            ValueError: a batch that the rows cannot fill, or a metric for the best model that there will not be.
        """
        args, batch = self.args, self.args.train_batch_size * self.args.world_size
        if args.dataloader_drop_last and isinstance(self.train_dataset, Dataset) and len(self.train_dataset) < batch:
            raise ValueError(
                f"The training dataset has {len(self.train_dataset)} rows, and dataloader_drop_last leaves batches "
                f"out that are not full, of {batch}: leave it out, or lower per_device_train_batch_size."
            )
        strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
        if self.compute_metrics is not self._own_metrics or strategy == "no" or self.eval_dataset is None:
            return
        if isinstance(self.eval_dataset, dict):
            of = {name: self.metric_names(rows) for name, rows in self.eval_dataset.items()}
            check_metric(args, [f"{name}_{metric}" for name, metrics in of.items() for metric in ("loss", *metrics)])
        else:
            check_metric(args, [] if args.prediction_loss_only else self.metric_names(self.eval_dataset))

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """As that of `Trainer`, which makes the model anew when training begins; in the arguments' memory format."""
        return self._in_its_format(super().call_model_init(trial))

    def _in_its_format(self, model: nn.Module) -> nn.Module:
        return model.to(memory_format=torch.channels_last) if self.args.channels_last else model

    # Data

    def _fitting(self, dataset: Any, name: str, with_labels: bool = True) -> Any:
        """The dataset's readable rows, once it is known to fit the model; what is no `Dataset` stays as it is."""
        if not isinstance(dataset, Dataset):
            return dataset
        if dataset.format["type"] not in (None, "custom"):  # a built-in one would make tensors of images
            dataset = dataset.with_format(None)
        if not len(dataset):
            raise ValueError(f"There are no rows in {name}: look at what fills it, or leave it out.")
        kept = drop_skipped_rows(
            dataset, name
        )  # before the check: a box that cannot be is why the labelling left a row out
        self._check(kept, name if kept is dataset else f"{name} (without the rows left out)", with_labels)
        return kept

    def _served(self, rows: Any, collator: Callable) -> tuple[Any, Callable]:
        """What a data loader of these rows is made of: they and their collator themselves, or others for them."""
        return rows, collator

    def get_train_dataloader(self):
        kept = self.train_dataset
        self.train_dataset, self.data_collator = self._served(kept, self.train_collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = kept

    def get_eval_dataloader(self, eval_dataset=None):
        kept, name = self.eval_dataset, eval_dataset if isinstance(eval_dataset, str) else "eval"
        given = kept if eval_dataset is None else kept[name] if isinstance(eval_dataset, str) else eval_dataset
        if self._evaluated.get(name) is not given:  # persistent workers go on with what they have, whatever is asked
            getattr(self, "_eval_dataloaders", {}).pop(name, None)
            self._evaluated[name] = given
        rows = self._fitting(given, "the evaluation dataset")
        self.data_collator = self.eval_collator
        if self.is_in_train:  # and so again
            rows, self.data_collator = self._served(rows, self.eval_collator)
        if name != eval_dataset:
            return super().get_eval_dataloader(rows)
        self.eval_dataset = {**kept, name: rows}
        try:
            return super().get_eval_dataloader(name)
        finally:
            self.eval_dataset = kept

    def get_test_dataloader(self, test_dataset):
        self.data_collator = self.eval_collator
        return super().get_test_dataloader(self._fitting(test_dataset, "the test dataset", with_labels=False))

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | None]:
        """The batches of a step, and how many rows of a batch count, on average over them and over all processes."""
        upcoming = itertools.islice(epoch_iterator, num_batches)
        batches = [self._without_repeats(batch) for batch in upcoming]
        if not batches:
            return batches, None
        self._components_count += 1
        return batches, self._rows_per_batch(batches)

    # Training

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
                "The learning rate still warms up when the training ends (%d of %d steps): it never becomes what "
                "learning_rate says; lower warmup_steps.",
                warmup,
                num_training_steps,
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each loss component since the last log."""
        if "loss" in logs and self._components_count:
            for name, total in self._components.items():
                mean = self.accelerator.gather(total / self._components_count).mean()
                logs[name] = mean.item()
            self._components, self._components_count = {}, 0
        super().log(logs, start_time)

    def _note(self, losses: dict[str, torch.Tensor]) -> None:
        self._watch.note(self.state.global_step + 1, {name: each for name, each in losses.items() if name != "loss"})
        for name in dict.fromkeys([*self.parts, *losses]):
            if name == "loss":
                continue
            value = losses.get(name, losses["loss"].new_zeros(())).detach().reshape(1)
            value = value / self.current_gradient_accumulation_steps
            self._components[name] = self._components.get(name, 0) + value

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


class EarlyStopping(EarlyStoppingCallback):
    """As that of transformers; and a training that goes on counts on from where it was interrupted."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        before = state.stateful_callbacks.get(type(self).__name__) or {}
        self.early_stopping_patience_counter = before.get("attributes", {}).get("early_stopping_patience_counter", 0)


class TellEpoch(TrainerCallback):
    """Tells the collator which epoch begins, or goes on after a checkpoint."""

    def __init__(self, collator: Any):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.set_epoch(int(state.epoch or 0))


def check_classes(found: int, config: Any) -> None:
    """Raise ValueError where the dataset's classes are not as many as the model's."""
    if found != config.num_labels:
        raise ValueError(
            f"The dataset has {found} classes and the model {config.num_labels}: "
            "build the model with the dataset's id2label."
        )

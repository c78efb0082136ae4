"""What training has in common for all students, whatever their task."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import CommitInfo
from torch import nn
from transformers import BaseImageProcessor, EvalPrediction
from transformers.trainer_utils import EvalLoopOutput

from ...data.columns import drop_skipped_rows
from ...hub.cards.results import Evaluation
from ...hub.cards.student import StudentFacts, write_card
from ...hub.retries import HubError
from ..losses.base import Loss
from .callbacks import EarlyStopping
from .publishing import check_repo, evaluation_for_card, push_saved, student_facts
from .safe_trainer import SafeTrainer
from .saved import is_adapted, is_student, load_saved
from .settings import check_metric
from .training_args import MadkdTrainingArguments


logger = logging.getLogger(__name__)


class DistillingTrainer(SafeTrainer):
    """A Trainer that checks what it is given, names each part of the loss, counts each row once, and publishes.

    It changes the Hub by nothing but a push, and a push is one commit with the finished student and its card.

    What differs from student to student is in the methods that raise `NotImplementedError`.

    Attributes:
        metrics: the names of all numbers that our own metrics may give.
        loss: the one to minimise; None for that of `default_loss`.
        measures_batches: whether `compute_metrics` may be given one evaluation batch after the other.
        splits_batches: whether a batch may be cut in parts for several devices of one process (nn.DataParallel).
        train_collator, eval_collator, test_collator: make batches to train on, to evaluate, and to predict for; a
            subclass makes its own where the user gave none.
    """

    metrics: tuple[str, ...] = ()
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
        loss: Loss | None = None,
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
        self.loss = loss
        self._evaluations: dict[tuple, Evaluation] = {}  # by step, name and dataset
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
        self._logged_parts: dict[str, torch.Tensor] = {}  # sums of the loss's parts since the last log
        self._logged_steps = 0
        self._rows_of_loader: dict[str, Any] = {}  # what each evaluation data loader that is kept was made of

    def _refuse_unfit(self) -> None:
        """Refuse arguments that such a student cannot be trained with.

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

    def default_loss(self) -> Loss:
        """What the arguments ask for."""
        raise NotImplementedError

    def _losses(
        self, model: nn.Module, inputs: dict[str, Any], rows: torch.Tensor | None
    ) -> tuple[dict[str, torch.Tensor], Any]:
        """The loss of a batch with its parts, see `Loss`, and the model's outputs."""
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

    def _checked_rows(self, dataset: Any, name: str, with_labels: bool = True) -> Any:
        """The dataset's readable rows, once it is known to fit the model; what is no `Dataset` stays as it is."""
        if not isinstance(dataset, Dataset):
            return dataset
        if dataset.format["type"] not in (None, "custom"):  # a built-in one would make tensors of images
            dataset = dataset.with_format(None)
        if not len(dataset):
            raise ValueError(f"There are no rows in {name}: look at what fills it, or leave it out.")
        # before the check, which would refuse the boxes for which the labelling skipped rows
        rows = drop_skipped_rows(dataset, name)
        self._check(rows, name if rows is dataset else f"{name} (without the rows left out)", with_labels)
        return rows

    def _stored(self, rows: Any, collator: Callable) -> tuple[Any, Callable]:
        """Rows and collator of a data loader; a subclass may take other ones in their place, from an image store."""
        return rows, collator

    def get_train_dataloader(self) -> Any:
        if self.train_dataset is None:
            raise ValueError("Training needs a train_dataset.")
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
        size, sampler = self.args.eval_batch_size, self._get_eval_sampler
        return self._get_dataloader(rows, "Evaluation", size, sampler, dataloader_key=name)

    def get_test_dataloader(self, test_dataset: Dataset) -> Any:
        self.data_collator = self.test_collator
        return super().get_test_dataloader(self._checked_rows(test_dataset, "the test dataset", with_labels=False))

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | None]:
        """The batches of a step, and how many rows of a batch count, on average over them and over all processes."""
        upcoming = itertools.islice(epoch_iterator, num_batches)
        batches = [self._without_repeats(batch) for batch in upcoming]
        if not batches:
            return batches, None
        self._logged_steps += 1
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
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The loss of a batch; in training, its parts are logged by name.

        Args:
            num_items_in_batch: what sums over rows are divided by, see `Loss`.
        """
        losses, outputs = self._losses(model, inputs, num_items_in_batch)
        if model.training and num_items_in_batch is not None:
            parts = {name: value for name, value in losses.items() if name != "loss"}
            self._watch.note(self.state.global_step + 1, parts)
            for name in dict.fromkeys([*(self.loss or self.default_loss()).parts, *parts]):
                value = parts.get(name, losses["loss"].new_zeros(())).detach().reshape(1)
                value = value / self.current_gradient_accumulation_steps
                self._logged_parts[name] = self._logged_parts.get(name, 0) + value
        return (losses["loss"], outputs) if return_outputs else losses["loss"]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._evaluations.clear()  # of other weights
        return super().train(*args, **kwargs)

    # Evaluation

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As usual, and its numbers are kept for the card."""
        output = self._run_evaluation(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        rows = getattr(dataloader.dataset, "rows", dataloader.dataset)
        evaluation = evaluation_for_card(rows, self.train_dataset, output, metric_key_prefix)
        if output.label_ids is not None:  # without labels there is no score, and it must not replace one
            self._evaluations[self._step, evaluation.name, evaluation.dataset] = evaluation
        return output

    def _run_evaluation(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The evaluation loop; `per_aspect` may be among its metrics, for the card alone."""
        return super().evaluation_loop(*args, **kwargs)

    @property
    def _step(self) -> int:
        """The training step of the weights as they are."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return self.state.global_step if best is None or self.is_in_train else best

    # The Hub

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """See whether a push can succeed; nothing is made on the Hub before the push itself.

        Raises:
            HubError: it cannot, in one sentence, in every process.
        """
        self._check_processor()
        self.hub_model_id = check_repo(self.args, token=token, private=private)
        self.push_in_progress = None

    def create_model_card(self, plain: bool | None = None, **facts: Any) -> None:
        """Write the card into output_dir; no network.

        Args:
            plain: for the plain model; by default as the arguments say.
            facts: what the trainer cannot know or knows otherwise, see `StudentFacts`: `license`, `comparison`,
                `dataset` (a Hub id as owner/name, another name, or a `DataSource`), `dataset_tags` (Hub ids),
                `dataset_args` (the configuration), `evaluations`, `language`, `tags`, `model_name`, `finetuned_from`.
                `tasks` is taken and changes nothing.
        """
        if self.is_world_process_zero():
            repo = self.args.hub_repo()
            repo = replace(repo, repo_id=self.hub_model_id or repo.repo_id)
            plain = self.args.push_plain if plain is None else plain
            model = self.accelerator.unwrap_model(self.model)
            write_card(self.args.output_dir, model, repo, self._facts(facts), plain)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        create_pr: bool | None = None,
        plain: bool | None = None,
        **facts: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save the student in output_dir and publish it: one commit of weights, code, image processor and card.

        Args:
            commit_message: the commit's title.
            blocking: False uploads in the background.
            token, revision, private, create_pr, plain: by default as the arguments say.
            facts: for the card, see `create_model_card`.

        Returns:
            The commit, or without `blocking` its Future; None in all processes but the first.

        Raises:
            HubError: it cannot be published; the repo is as it was.
        """
        self._check_processor()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.hub_model_id = check_repo(self.args, token=token, private=private, create_pr=create_pr)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        repo = self.args.hub_repo(token=token, revision=revision, private=private, create_pr=create_pr)
        repo, plain = replace(repo, repo_id=self.hub_model_id), self.args.push_plain if plain is None else plain
        return push_saved(self, repo, self._facts(facts), plain, commit_message or "End of training", blocking)

    def _facts(self, more: dict[str, Any]) -> StudentFacts:
        of_these_weights = [evaluation for (step, *_), evaluation in self._evaluations.items() if step == self._step]
        hyperparameters = self.hyperparameters(self.args)
        hyperparameters |= self.model.hyperparameters() if is_adapted(self.model) else {}
        return student_facts(more, self.train_dataset, of_these_weights, hyperparameters, self.args.hub_license)

    @staticmethod
    def hyperparameters(args: MadkdTrainingArguments) -> dict[str, Any]:
        """What decides a student, for its card."""
        return args.hyperparameters()

    def _check_processor(self) -> None:
        if self.processing_class is None:
            raise HubError(
                "There is no image processor to publish with the student: pass it as processing_class, beside your "
                "data_collator."
            )

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

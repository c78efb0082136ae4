"""The Trainer of classifiers: its loss has a term for the aspects."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from torch import nn
from transformers import BaseImageProcessor, EvalPrediction
from transformers.trainer_utils import EvalLoopOutput

from ...data.check import check_scored, check_without_class
from ...data.class_targets import check_class_targets, class_teacher, count_targets, facts_of
from ...data.columns import CLASS_LOGITS, CLASS_TEACHER, LOGITS, answered_rows, rows_with_class, stored
from ...data.image_columns import check_image_feature
from ...data.target_facts import TargetFacts
from ...data.unlabelled import check_fraction
from ...metrics import OF_ASPECTS, OF_CLASSES, TOP, all_metrics
from ...text import get_logger
from ..base.augmentation import mixup, strong_view
from ..base.distilling import DistillingTrainer
from ..base.models import check_classes, check_has_column
from ..base.saved import is_adapted
from ..base.steps import rows_per_batch, without_repeats
from ..base.training_args import MadkdTrainingArguments
from ..losses import NO_CLASS, TARGET_LOSSES, UNCOUNTED, Loss, MadkdLoss
from ..losses.self_training import self_training_loss
from ..models.modeling_madkd import MadkdForImageClassification
from .data import AspectCollator
from .image_batches import StoreCollator, StoredRows, store_collator
from .sampling import MixedSampler


if TYPE_CHECKING:
    from peft import LoraConfig


logger = get_logger(__name__)


class MadkdTrainer(DistillingTrainer):
    """Trains a student on classes and aspects: cross-entropy plus alpha times the aspects' BCE (paper section 3.3).

    Takes datasets as `attach_aspects` leaves them: an image column, a class column, `aspect_logits`. Batches are made
    by `AspectCollator` (with augmentation for training, without for evaluation) unless a `data_collator` is given.
    A dataset without aspect columns, or a row without answers, trains and evaluates on its classes alone; a training
    row without a class (null, or -1) on its answers and `class_logits`, if it has some of them alone. Rows whose
    image the labelling could not read are left out, with a warning; `predict` then has no prediction for them.

    Args, beside those of `DistillingTrainer`:
        model: a `MadkdForImageClassification`.
        data_collator: replaces ours; batches then need `pixel_values`, `labels` and, for the aspects,
            `aspect_logits` [B, Q], NaN where unknown.
        compute_metrics: receives class logits and labels; by default accuracy, top-5, macro-F1, calibration error and,
            where there are targets, the aspects' AUROC and BCE against the teacher.
        label_column: name of the column of classes.
        peft_config: a `LoraConfig`: the backbone gets adapters (`target_modules`, by default all its linear layers),
            the head is trained in full. `trainer.model` is then a `LoraStudent` around the model given. What is saved
            and published is the merged student, an ordinary one, with the adapter beside it in `adapter/`;
            `trainer.model.merged()` is the same in memory.
        loss: takes the place of cross-entropy and BCE, see `madkd_hf.students.losses.Loss`; aspect_alpha and
            label_smoothing_factor are those of the usual `MadkdLoss`.

    Raises:
        ValueError: aspects that do not fit the model's bank, labels that do not fit its classes, a `hub_strategy`
            other than end, a `peft_config` that does not fit the backbone, an image store for batches that are not
            made by `AspectCollator` of a `Dataset`, `batch_eval_metrics` without a `compute_metrics`.
        ImportError: `peft_config` without peft.
        HubError: `push_to_hub=True`, and a push cannot succeed.
    """

    metrics = (*OF_CLASSES, *OF_ASPECTS)
    default_metrics = staticmethod(all_metrics)
    measures_batches = True
    splits_batches = True  # the loss is computed over all rows, after the devices' outputs are gathered

    def __init__(
        self,
        model: MadkdForImageClassification | None = None,
        args: MadkdTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: BaseImageProcessor | None = None,
        *,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        image_column: str = "image",
        label_column: str = "label",
        peft_config: LoraConfig | None = None,
        loss: Loss | None = None,
        **kwargs: Any,
    ):
        if peft_config is not None:
            from .lora import adapt

            model = adapt(model, peft_config)
        elif hasattr(model, "merge_and_unload") and not is_adapted(model):
            raise ValueError(
                f"MadkdTrainer needs the student itself and its LoraConfig as peft_config; received {type(model)}, of "
                "which it could save the adapter alone."
            )
        self.label_column = label_column
        self._stores: dict[tuple[str, bool], StoreCollator | None] = {}
        self._finish: Callable[[dict], None] | None = None
        self._drawn = (0, -1)  # the step, and which of its batches was mixed last
        data = (data_collator, train_dataset, eval_dataset, processing_class)
        options = {"compute_metrics": compute_metrics, "image_column": image_column, "loss": loss}
        self._shares: dict[str, float] | None = None  # of the evaluation rows, how many have each target
        self._sampler: MixedSampler | None = None
        super().__init__(model, args, *data, **options, **kwargs)
        if self.train_dataset is not None:
            self._check_training_classes()
        self._check_targets()

    def _refuse_unfit(self) -> None:
        if self.args.image_store in ("disk", "device"):
            rows, expected = self.train_dataset, None
            if not self.makes_batches and not isinstance(self.data_collator, AspectCollator):
                expected = "an AspectCollator makes the batches of; received a data_collator of your own"
            elif rows is not None and not isinstance(rows, Dataset):
                expected = f"a datasets.Dataset has; received a train_dataset of {type(rows)}"
            if expected:
                raise ValueError(
                    f"image_store={self.args.image_store!r} keeps the images that {expected}: leave it at auto, or "
                    "set none."
                )
        if is_adapted(self.model) and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError(
                "LoRA is trained with the whole student on each device; received a DeepSpeed or FSDP configuration: "
                "leave it out, the adapters need little memory."
            )

    def _check_training_classes(self) -> None:
        """Refuse rows that nothing can be learned from; a sampler, where each batch is to have some with a class."""
        fraction, rows = self.args.labelled_fraction, self.train_dataset
        readable = isinstance(rows, Dataset) and self.label_column in rows.features
        kind = getattr(rows.features[self.label_column], "dtype", "") if readable else ""
        if readable and not kind.startswith(("int", "uint", "null")):
            return  # the collator says what it expects; one of the user's may take them
        if not readable:
            if fraction is not None:
                raise ValueError(
                    f"labelled_fraction={fraction} chooses rows by number; received a training dataset of "
                    f"{type(rows).__name__}: leave it out, and mix streams with datasets.interleave_datasets."
                )
            return
        classes = list(self.model.config.id2label.values())
        labelled = rows_with_class(rows, self.label_column)
        if self.args.self_training and (labelled.all() or self.args.mixup_alpha):
            lacking = "all training images have a class" if labelled.all() else "mixup blends them with others"
            raise ValueError(
                f"self_training={self.args.self_training} guesses the class of images without one, and {lacking}: "
                "leave one of them out."
            )
        learns = None if self.args.self_training else self._learns()
        check_without_class(rows, labelled, self.label_column, classes, learns)
        if fraction is None:
            return
        if labelled.all():
            raise ValueError(
                f"labelled_fraction={fraction}, and all {len(rows)} training images have a class: leave it out."
            )
        places, seed = (labelled.nonzero()[0], (~labelled).nonzero()[0]), self.args.data_seed
        seed = self.args.seed if seed is None else seed
        check_fraction(*map(len, places), fraction)
        if fraction < labelled.mean():
            logger.warning(
                "labelled_fraction=%s, and %.0f%% of the training images have a class: they are shown less often than "
                "the others; leave it out to show all alike.",
                fraction, 100 * labelled.mean(),
            )  # fmt: skip
        self._sampler = MixedSampler(*places, fraction, self.args.per_device_train_batch_size, seed)
        if self.args.dataloader_drop_last and len(self._sampler) < self.args.train_batch_size * self.args.world_size:
            raise ValueError(
                f"With labelled_fraction={fraction} an epoch has {len(self._sampler)} images, and "
                "dataloader_drop_last leaves out batches that are not full: leave it out, or take smaller batches."
            )
        self._tell_epoch.listeners.append(self._sampler)

    def _check_targets(self) -> None:
        """Refuse class targets that are scores of other classes, to learn from or to evaluate on."""
        several = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        for rows in (self.train_dataset, *several.values()) if self.args.class_alpha or self.loss else ():
            if isinstance(rows, Dataset):
                check_class_targets(rows, list(self.model.config.id2label.values()))

    def learned_targets(self) -> TargetFacts | None:
        if not isinstance(self.train_dataset, Dataset) or not (self.args.class_alpha or self.loss):
            return None
        return facts_of({"train": count_targets(self.train_dataset)}, [self.class_targets])

    def _learns(self) -> list[str]:
        """The columns of targets that the usual loss looks at, beside the classes."""
        names = [LOGITS] if self.model.config.num_aspects and (self.args.aspect_alpha or self.loss) else []
        return names + ([CLASS_LOGITS] if self.args.class_alpha or self.loss else [])

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        return self._sampler or super()._get_train_sampler(train_dataset)

    def _collators(self) -> tuple[AspectCollator, AspectCollator, AspectCollator]:
        config, args = self.model.config, self.args
        columns = self.processing_class, config.num_labels, self.image_column, self.label_column
        augmentation = {"crop_scale": args.crop_scale, "horizontal_flip": args.horizontal_flip, "seed": args.seed}
        augmentation |= {"num_aspects": config.num_aspects, "with_mass": args.by_mass}
        training = AspectCollator(*columns, augment=True, **augmentation)
        evaluating, predicting = (AspectCollator(*columns, num_aspects=config.num_aspects) for _ in range(2))
        return training, evaluating, predicting

    def _sources(self) -> dict[str, tuple[str, str]]:
        ending = class_teacher("", list(self.model.config.id2label.values()))
        of_classes = {CLASS_LOGITS: (CLASS_TEACHER, ending)} if self.args.class_alpha or self.loss else {}
        return super()._sources() | of_classes

    def _stored(self, rows: Any, collator: Callable) -> tuple[Any, Callable]:
        """What a data loader of these rows is made of: they and their collator themselves, or from an image store."""
        if not isinstance(rows, Dataset) or not isinstance(collator, AspectCollator) or not len(rows):
            return rows, collator
        name = rows._fingerprint, collator.augment
        training = collator.augment and rows is self.train_dataset
        if name not in self._stores:
            choice = self.args.image_store
            if not training and choice != "none":
                choice = "auto"  # found out at the first evaluation, too late to stop for
            device = self.args.device if training else torch.device("cpu")
            stored = store_collator(
                collator, rows, choice, device, self.args.disable_tqdm, self.args.image_store_scale
            )
            if stored is not None and not training:
                stored.defer = False  # crops are finished from the training images; bytes are bytes
            self._stores[name] = stored
        stored = self._stores[name]
        if stored is not None and (training or self._finish is None):
            self._finish = stored.finish
        return (rows, collator) if stored is None else (StoredRows(rows), stored)

    def _add_pixel_values(self, batch: dict[str, Any]) -> None:
        if not batch.keys() & {"pixels", "crops"}:
            super()._add_pixel_values(batch)
        self._finish(batch)

    def _without_repeats(self, batch: dict[str, Any]) -> dict[str, Any]:
        return without_repeats(batch, self.accelerator)

    def _rows_per_batch(self, batches: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return rows_per_batch(batches, self.accelerator)

    def default_loss(self) -> Loss:
        args, progress = self.args, self.state.global_step / max(self.state.max_steps, 1)
        weight = min(1.0, progress / args.target_ramp_up) if args.target_ramp_up and self.is_in_train else 1.0
        options = {"confidence": args.target_confidence, "unlabelled_weight": weight}
        target_loss = TARGET_LOSSES[args.class_target_loss](args.temperature, args.standardize_logits, **options)
        target_loss = target_loss if args.class_alpha else None
        return MadkdLoss(
            args.aspect_alpha, args.label_smoothing_factor, target_loss, args.class_alpha, by_mass=args.by_mass
        )

    def _losses(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], rows: dict[str, torch.Tensor] | None
    ) -> tuple[dict[str, torch.Tensor], Any]:
        loss, pixel_values, shares = self.loss or self.default_loss(), inputs["pixel_values"], [(1.0, inputs)]
        if model.training and self.args.mixup_alpha:
            pixel_values, shares = mixup(inputs, self.args.mixup_alpha, self._draw_of_batch())
        harder = self._harder_views(model, inputs)
        if harder is not None:  # one pass, so that batch norm sees both alike
            both = model(pixel_values=torch.cat([pixel_values, harder]))
            outputs = type(both)(**{name: value[: len(pixel_values)] for name, value in both.items()})
        else:
            outputs = model(pixel_values=pixel_values)
        if rows is None and self._shares:  # evaluation, whose mean over batches is that over all rows
            own = (inputs["labels"] != UNCOUNTED).sum()
            rows = {name: (share * own).clamp(min=1e-9) for name, share in self._shares.items()}
        losses: dict[str, torch.Tensor] = {}
        for share, targets in shares:
            for name, value in loss(outputs, targets, rows).items():
                losses[name] = losses.get(name, 0) + share * value
        if harder is not None:
            weak, strong = outputs.logits[inputs["labels"] == NO_CLASS], both.logits[len(pixel_values) :]
            count = (inputs["labels"] == NO_CLASS).sum() if rows is None else rows["no_class"]
            losses |= self_training_loss(weak, strong, self.args.self_training, count)
            losses["loss"] = losses["loss"] + self.args.class_alpha * losses["self_loss"]
        elif model.training and self.args.self_training:  # each process logs the same names
            losses |= dict.fromkeys(("self_loss", "self_sure"), losses["loss"].new_zeros(()))
        return losses, outputs

    def _harder_views(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """Of the images without a class, for self-training; None where there are none."""
        if not (model.training and self.args.self_training):
            return None
        pixels = inputs["pixel_values"][inputs["labels"] == NO_CLASS]
        return strong_view(pixels, self._draw_of_batch()) if len(pixels) else None

    def _run_evaluation(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        rows = getattr(dataloader.dataset, "rows", dataloader.dataset)
        if isinstance(rows, Dataset) and self.label_column in rows.features:
            names = {"labels": self.label_column, LOGITS: LOGITS, CLASS_LOGITS: CLASS_LOGITS}
            there = {
                name: stored(rows, column).is_valid() for name, column in names.items() if column in rows.features
            }
            there[LOGITS] = answered_rows(rows)  # of which some may be NaN from beginning to end
            self._shares = {name: float(np.mean(there.get(name, 0))) for name in names}
        try:
            return super()._run_evaluation(dataloader, *args, **kwargs)
        finally:
            self._shares = None

    def _outputs(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model(pixel_values=self._prepare_inputs(inputs)["pixel_values"])
        return outputs.logits, outputs.aspect_logits

    def _draw_of_batch(self) -> np.random.Generator:
        """Follows from the seed and the batch's place in the training: a run that goes on draws what it would have."""
        step, place = self.state.global_step, self._drawn[1] + 1
        self._drawn = (step, place if self._drawn[0] == step else 0)
        return np.random.default_rng([self.args.seed, *self._drawn, self.args.process_index])

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As usual, and with the aspects beside classes and labels when our own metrics want them."""
        inputs = without_repeats(inputs, self.accelerator)
        targets = inputs.get("aspect_logits") if self.model.config.num_aspects else None
        if "labels" not in inputs:
            inputs = {"pixel_values": inputs["pixel_values"]}
        with_aspects = targets is not None and self.own_metrics and not prediction_loss_only
        loss, logits, labels = super().prediction_step(
            model, inputs, prediction_loss_only, ignore_keys=[] if with_aspects else ignore_keys
        )
        if with_aspects and labels is not None:
            labels = (labels, targets.to(labels.device))
        return loss, logits, labels

    def metric_names(self, rows: Any) -> list[str]:
        silent = () if self.model.config.num_labels > TOP else ("top5_accuracy",)
        return [name for name in super().metric_names(rows) if name not in silent]

    def _check_columns(self, dataset: Dataset, name: str, with_labels: bool) -> None:
        if self.makes_batches:
            check_has_column(dataset.features, name, self.image_column, "image_column")
            check_image_feature(dataset.features[self.image_column], self.image_column, name)
            if with_labels:
                check_has_column(dataset.features, name, self.label_column, "label_column")
        labels = dataset.features.get(self.label_column)
        if isinstance(labels, ClassLabel):
            check_classes(labels.num_classes, self.model.config)
        if name.startswith("the evaluation") and self.makes_batches and isinstance(dataset, Dataset):
            check_scored(dataset, self.label_column, name)

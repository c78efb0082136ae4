"""The Trainer of detectors: its loss has a term for the aspects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from transformers import BaseImageProcessor, EvalPrediction
from transformers.trainer_utils import EvalLoopOutput, denumpify_detensorize

from ...data.image_columns import check_image_feature
from ...metrics import OF_ASPECTS
from ..base.distilling import DistillingTrainer
from ..base.models import check_has_column
from ..base.steps import own_rows
from ..base.training_args import MadkdTrainingArguments
from ..losses import Loss, MadkdDetectionLoss
from ..losses.madkd_detection import objects_of_all_processes
from ..models.modeling_madkd_detection import MadkdForObjectDetection
from .checks import check_objects
from .data import DetectionCollator
from .evaluation import SizedCollator, detection_metrics, detections, frames_of, matched_answers, references
from .metrics import STATISTICS


ZOOM = 0.25


class MadkdDetectionTrainer(DistillingTrainer):
    """Trains a detector on objects and aspects: its own loss plus alpha times the aspects' BCE.

    Takes datasets as `attach_aspects` leaves them: an image column, a column of objects, `aspect_logits`, one list for
    each object of an image or one for the image, as the model's `aspect_level` says. Batches are made by
    `DetectionCollator` (with augmentation for training, which needs albumentations, without for evaluation) unless a
    `data_collator` is given. Of the arguments, `horizontal_flip` is the probability of mirroring, and `crop_scale=1`
    turns zooming off. A dataset without aspect columns, or a row without answers, trains and evaluates on its objects
    alone. Rows whose image the labelling could not read are left out, with a warning; `predict` then has no prediction
    for them. Images are decoded in every epoch: there is no image store for images of many sizes.

    Logged beside `loss` are `detector_loss`, `aspect_loss`, and the parts of the detector's loss in its last layer,
    with or without their weights, as the detector tells them.

    What is a mean of what:
        The aspect loss is a mean over all answered objects (or images) of a step, over accumulated batches and all
        processes. The detector's loss is what transformers make of a batch, mostly sums divided by the number of its
        objects, and the step's is the mean over accumulated batches and processes, as in a plain `Trainer`:
        accumulated batches are one batch exactly where they have equally many objects. DETR, conditional and
        deformable DETR and YOLOS count the objects of all processes, RT-DETR and D-FINE those of each by itself; and
        the class loss of DETR and YOLOS is a weighted mean over the queries of one process's batch. So the same global
        batch has the same loss for any number of processes with conditional and deformable DETR (with at least one
        object for each process), and with the others where their batches have equally many objects.

    Evaluation tells COCO's metrics of the 100 best boxes an image, in pixels of the original image, and where there
    are targets AUROC and BCE of the aspects against the teacher: of objects, those of the queries that the detector's
    own matcher gives to them. Crowds (objects with `iscrowd`) are no targets of the training; a detection on one is
    neither right nor wrong, as COCO has it. `predict` returns as `predictions` a list with, for each image in order,
    `boxes` [m, 4] (left, top, right, bottom in pixels), `scores` [m], `labels` [m], and `aspect_logits` [m, Q] or [Q];
    where the rows have objects, `label_ids` is a list of what `evaluation.references` says of them.

    Args, beside those of `DistillingTrainer`:
        model: a `MadkdForObjectDetection`.
        data_collator: replaces ours; batches then need `pixel_values`, where images are padded `pixel_mask`, and
            `labels` as `DetectionCollator` makes them; for `predict` without labels also `orig_sizes` [B, 2].
        compute_metrics: receives an `EvalPrediction` of two lists, one entry for each image, see
            `evaluation.detection_metrics`, which it takes the place of.
        boxes_column: name of the column of objects.
        box_format: of the boxes, `coco`, `pascal_voc` or `yolo`.
        loss: takes the place of the detector's loss and BCE, see `madkd_hf.students.losses.Loss`; aspect_alpha is that
            of the usual `MadkdDetectionLoss`.

    Raises:
        ValueError: a model that is no detector of ours, answers that do not fit its bank or level, classes or boxes
            that do not fit, no objects at all, several GPUs in one process, arguments for what detectors do not have.
        ImportError: training without albumentations.
        HubError: `push_to_hub=True`, and a push cannot succeed.
    """

    metrics = (*STATISTICS, *OF_ASPECTS)
    default_metrics = staticmethod(detection_metrics)

    def __init__(
        self,
        model: MadkdForObjectDetection | None = None,
        args: MadkdTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: BaseImageProcessor | None = None,
        *,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        image_column: str = "image",
        boxes_column: str = "objects",
        box_format: str = "coco",
        loss: Loss | None = None,
        **kwargs: Any,
    ):
        self.boxes_column, self.box_format = boxes_column, box_format
        self._evaluated: list[list[tuple[dict, dict | None]]] = []  # by batch, by image: prediction and reference
        data = (data_collator, train_dataset, eval_dataset, processing_class)
        options = {"compute_metrics": compute_metrics, "image_column": image_column, "loss": loss}
        super().__init__(model, args, *data, **options, **kwargs)

    def _refuse_unfit(self) -> None:
        if not isinstance(self.model, MadkdForObjectDetection):
            raise ValueError(
                f"MadkdDetectionTrainer needs a MadkdForObjectDetection; received {type(self.model)}: make one of a "
                "detector with MadkdForObjectDetection.from_detector."
            )
        if self.args.image_store in ("disk", "device"):
            raise ValueError(
                f"An image store keeps images of one size, and those of detectors have many; received "
                f"image_store={self.args.image_store!r}: leave it at auto, or set none."
            )
        for name in ("mixup_alpha", "label_smoothing_factor", "labelled_fraction", "self_training"):
            if getattr(self.args, name):
                raise ValueError(
                    f"A detector's loss has no {name}; received {getattr(self.args, name)}: leave it at 0, it is for "
                    "classifiers."
                )

    def _collators(self) -> tuple[DetectionCollator | None, SizedCollator, SizedCollator]:
        config, args = self.model.config, self.args
        columns = self.processing_class, self.image_column, self.boxes_column, self.box_format
        settings = {
            "num_aspects": config.num_aspects,
            "aspects_per_object": config.aspect_level == "object",
            "num_classes": config.num_labels,
        }
        training = None
        if self.train_dataset is not None:  # evaluation alone does without albumentations
            augmentation = {"horizontal_flip": args.horizontal_flip, "zoom": _zoom(args), "seed": args.seed}
            training = DetectionCollator(
                *columns, **settings, pixel_mask=self.model.takes_mask, augment=True, **augmentation
            )
        evaluating = DetectionCollator(*columns, **settings)
        return training, SizedCollator(evaluating, with_labels=True), SizedCollator(evaluating)

    def _check_columns(self, dataset: Dataset, name: str, with_labels: bool) -> None:
        if self.makes_batches:
            check_has_column(dataset.features, name, self.image_column, "image_column")
            check_image_feature(dataset.features[self.image_column], self.image_column, name)
            check_objects(dataset, name, self.boxes_column, self.box_format, self.model.config, with_labels)

    def _without_repeats(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch without them. A batch of nothing else keeps an image, as every process takes part in each step."""
        rows = len(batch["pixel_values"])
        own = own_rows(rows, self.accelerator)
        if own == rows:
            return batch
        kinds = torch.Tensor, list
        batch = {name: part[: max(own, 1)] if isinstance(part, kinds) else part for name, part in batch.items()}
        if own == 0:
            batch["repeated"] = True
            if "labels" in batch:
                names = "class_labels", "boxes"
                batch["labels"] = [{name: label[name][:0] for name in names} for label in batch["labels"]]
        return batch

    def _rows_per_batch(self, batches: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """How many objects (or images) have answers, on average over a step's batches in all processes; a scalar."""
        for batch in batches:
            if "labels" not in batch:
                raise ValueError(
                    f"A batch to train on has no `labels`, only {sorted(batch)}: let data_collator add them as "
                    "DetectionCollator does."
                )
        labels = [label for batch in batches for label in batch["labels"] if "aspect_logits" in label]
        rows = [label["aspect_logits"].isfinite().any(dim=-1).sum() for label in labels]
        mean = torch.stack(rows).sum() / len(batches) if rows else torch.zeros(())
        mean = self.accelerator.gather(mean.reshape(1).to(self.accelerator.device)).mean()
        return {"aspect_logits": torch.where(mean > 0, mean, 1.0)}

    def _forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        names = ["pixel_values", "labels", *(["pixel_mask"] if self.model.takes_mask else [])]
        with objects_of_all_processes():
            return model(**{name: inputs[name] for name in names if name in inputs})

    def _outputs(self, inputs: dict[str, Any]) -> tuple[torch.Tensor | None, ...]:
        inputs = {name: value for name, value in self._prepare_inputs(inputs).items() if name != "labels"}
        outputs = self._forward(self.model, inputs)
        return outputs.logits, outputs.pred_boxes, outputs.aspect_logits

    def default_loss(self) -> Loss:
        return MadkdDetectionLoss(self.args.aspect_alpha, self.model.config.aspect_level)

    def _losses(
        self, model: nn.Module, inputs: dict[str, Any], rows: dict[str, torch.Tensor] | None
    ) -> tuple[dict[str, torch.Tensor], Any]:
        outputs = self._forward(model, inputs)
        return (self.loss or self.default_loss())(outputs, inputs, rows), outputs

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss of the batch in all processes; what was found and what is there is kept for `evaluation_loop`."""
        if not prediction_loss_only and not hasattr(self.processing_class, "post_process_object_detection"):
            raise ValueError(
                "Evaluation needs the detector's image processor, whose post_process_object_detection makes boxes of "
                f"its outputs; received {type(self.processing_class)} as processing_class: pass it beside your "
                "data_collator."
            )
        inputs = self._prepare_inputs(self._without_repeats(inputs))
        loss = None
        with torch.no_grad(), self.compute_loss_context_manager():
            if "labels" in inputs:
                rows = self._rows_per_batch([inputs])
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=rows)
                loss = self.accelerator.gather(loss.detach().reshape(1)).mean()
            else:
                outputs = self._forward(model, inputs)
        if not prediction_loss_only:
            self._evaluated.append([] if inputs.get("repeated") else self._predictions_and_references(inputs, outputs))
        return loss, None, None

    def _predictions_and_references(self, inputs: dict[str, Any], outputs: Any) -> list[tuple[dict, dict | None]]:
        frames, level = frames_of(inputs), self.model.config.aspect_level
        predictions = detections(outputs, self.processing_class, frames, level)
        if "labels" not in inputs:
            return [(image, None) for image in predictions]
        if level == "object":
            answers = matched_answers(outputs, inputs["labels"])
            predictions = [{**image, "matched_aspect_logits": answer} for image, answer in zip(predictions, answers)]
        truths = references(inputs["labels"], frames)
        if not self.model.config.num_aspects:  # whatever the answers are to
            truths = [{name: value for name, value in image.items() if name != "aspect_logits"} for image in truths]
        return list(zip(predictions, truths))

    def _run_evaluation(self, *args: Any, metric_key_prefix: str, **kwargs: Any) -> EvalLoopOutput:
        self._evaluated = []
        output = super()._run_evaluation(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        processes = gather_object([self._evaluated])  # the same steps in each, one batch beside the other
        pairs = [pair for step in zip(*processes) for batch in step for pair in batch]
        self._evaluated = []
        if not pairs:
            return output
        predicted, truths = (list(image) for image in zip(*pairs))
        if truths[0] is None:
            return output._replace(predictions=predicted)
        metrics = denumpify_detensorize(self.compute_metrics(EvalPrediction(predictions=predicted, label_ids=truths)))
        prefix = f"{metric_key_prefix}_"
        metrics = {name if name.startswith(prefix) else prefix + name: value for name, value in metrics.items()}
        for image in predicted:
            image.pop("matched_aspect_logits", None)
        return output._replace(predictions=predicted, label_ids=truths, metrics={**metrics, **output.metrics})

    @staticmethod
    def hyperparameters(args: MadkdTrainingArguments, class_targets: bool = False) -> dict[str, Any]:
        of_classifiers = "mixup_alpha", "label_smoothing_factor", "crop_scale"
        ours = {name: value for name, value in args.hyperparameters().items() if name not in of_classifiers}
        return ours | {"zoom": _zoom(args)}


def _zoom(args: MadkdTrainingArguments) -> float:
    """By which share training images grow or shrink at most."""
    return ZOOM if args.crop_scale < 1 else 0.0

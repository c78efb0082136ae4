"""The student that detects: a detector of transformers with an aspect head. This file travels with saved models."""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    AutoModelForObjectDetection,
    ObjectDetectionPipeline,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .aspects_of_madkd import AspectModel, answer_lines, build, printable, scored_answers
from .configuration_madkd_detection import MadkdDetectionConfig
from .queries_of_madkd import queries_of, record_first_matching


NO_STATES = "states of its queries", 'take a relative of "detr" or "yolos"'
NO_FEATURES = "features of the image", 'take aspect_level="object"'
REMEDY = 'pass the id, folder or configuration of a model for AutoModelForObjectDetection, as "PekingU/rtdetr_r18vd"'


@dataclass
class MadkdObjectDetectionOutput(ModelOutput):
    """
    Args:
        loss: the detector's own loss, when labels were given.
        loss_dict: its parts by name.
        logits: [B, N, C] or [B, N, C + 1] class scores of the N queries, as the detector has them.
        pred_boxes: [B, N, 4] boxes (center x, center y, width, height), in parts of the image.
        aspect_logits: aspect scores before the sigmoid, in the bank's order: [B, N, Q] of the queries, or [B, Q] of
            the images, by the configuration's `aspect_level`.
        matches: which query the detector's own matcher gave to which object in the last layer, when labels were given:
            B pairs of index tensors, into the N queries and into the image's objects. In training, detectors with
            groups of queries (`group_detr`) give each object one query of each group.
        others: those of them that the detector has, when they were asked for.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.FloatTensor | None = None
    pred_boxes: torch.FloatTensor | None = None
    aspect_logits: torch.FloatTensor | None = None
    matches: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    encoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    encoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    decoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


LAYER_OUTPUTS = [
    name for name in MadkdObjectDetectionOutput.__dataclass_fields__ if name.endswith(("_states", "attentions"))
]


class MadkdForObjectDetection(AspectModel):
    """A detector that also answers Q aspect questions, about each object or about the image.

    About objects, the aspect head reads what the class head reads: the last state of each query. About the image, it
    reads the mean over all positions (of all scales) of the encoder's output, padding left out; in a detector without
    an encoder of its own, whose queries run along with the patches (YOLOS), the mean over the patches. Classes and
    boxes are those of the detector, which `to_plain` gives back; queries that only training has are left out.
    """

    config_class = MadkdDetectionConfig
    base_model_prefix = "detector"
    pipelines = {
        "aspect-detection": {
            "impl": "modeling_madkd_detection.AspectDetectionPipeline",
            "pt": ["AutoModelForObjectDetection"],
        }
    }

    def __init__(self, config: MadkdDetectionConfig):
        super().__init__(config)
        self.detector = build(AutoModelForObjectDetection, config.detector_config)
        _check_outputs(self.detector, config.aspect_level)
        self.takes_mask = "pixel_mask" in inspect.signature(self.detector.forward).parameters
        self.aspect_head = nn.Linear(config.aspect_width, config.num_aspects)
        self.supports_gradient_checkpointing = self.detector.supports_gradient_checkpointing
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MadkdObjectDetectionOutput:
        """
        Args:
            pixel_values: [B, channels, height, width], as the image processor makes them.
            pixel_mask: [B, height, width], 1 where the image is and 0 where it was padded.
            labels: of each image `class_labels` [n] and `boxes` [n, 4], as the detector wants them. `aspect_logits`
                may be among them: they are for the aspect loss.
            kwargs: of any model of transformers: `output_hidden_states`, `output_attentions`, `return_dict` (False for
                a tuple without what is None), ...
        """
        options = self._options(kwargs)
        if labels is not None:
            labels = [{name: label[name] for name in label if name != "aspect_logits"} for label in labels]
        mask = {"pixel_mask": pixel_mask} if self.takes_mask and pixel_mask is not None else {}
        about_image = self.config.aspect_level == "image"
        encoder = getattr(self.detector.base_model, "encoder", None) if about_image and mask else None
        encoder_calls = nullcontext([]) if encoder is None else _record_encoder_mask(encoder)
        matcher_calls = nullcontext([]) if labels is None else record_first_matching(self.detector.training)
        with matcher_calls as matching, encoder_calls as encoder_mask:
            outputs = self.detector(pixel_values=pixel_values, labels=labels, return_dict=True, **mask, **options)
        if outputs.logits.shape[-1] - self.config.num_labels not in (0, 1):
            raise ValueError(
                f"{type(self.detector).__name__} has {outputs.logits.shape[-1]} outputs for {self.config.num_labels} "
                "classes: its configuration counts them in a way of its own; choose another detector."
            )
        rows, matches = matching[0] if matching else (outputs.logits.shape[1], None)
        if about_image:
            features = self._pooled(outputs, rows, pixel_values.shape[-2:], pixel_mask, encoder_mask)
        else:
            features = self._states(outputs)[:, -rows:]
        return MadkdObjectDetectionOutput(
            loss=outputs.loss,
            loss_dict=outputs.loss_dict,
            logits=outputs.logits[:, -rows:],
            pred_boxes=outputs.pred_boxes[:, -rows:],
            aspect_logits=self.aspect_head(features),
            matches=matches,
            **{name: outputs.get(name) for name in LAYER_OUTPUTS},
        )

    def _pooled(
        self,
        outputs: ModelOutput,
        rows: int,
        shape: tuple[int, int],
        pixel_mask: torch.Tensor | None,
        encoder_mask: list[torch.Tensor | None],
    ) -> torch.Tensor:
        """[B, width], the mean over the positions of the images.

        `rows` is N, the number of queries, `shape` the batch's height and width in pixels; the masks, [B, height,
        width] and at most one [B, positions of the encoder], say where the images are.
        """
        features = outputs.get("encoder_last_hidden_state")
        if features is None and not _joins_patches(self.detector.config):
            raise ValueError(_lacks(*NO_FEATURES, self.detector))
        if isinstance(features, torch.Tensor) and features.ndim == 3:
            positions, mask = features, next(iter(encoder_mask), None)
        else:
            maps = [self._patches(outputs, rows, shape)] if features is None else features
            positions = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
            mask = None
            if pixel_mask is not None:  # as detectors make their masks smaller
                pixel_mask = pixel_mask[:, None].float()
                masks = [nn.functional.interpolate(pixel_mask, size=level.shape[-2:]).flatten(1) for level in maps]
                mask = torch.cat(masks, dim=1)
        if mask is None:
            return positions.mean(dim=1)
        weights = mask.to(positions.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return (weights[:, None] @ positions)[:, 0]

    def _patches(self, outputs: ModelOutput, rows: int, shape: tuple[int, int]) -> torch.Tensor:
        """[B, width, height, width of the grid]: the patch tokens, which stand in front of the query tokens."""
        size = self.config.detector_config.patch_size
        sizes = (size, size) if isinstance(size, int) else size
        grid = [pixels // side for pixels, side in zip(shape, sizes)]
        tokens = self._states(outputs)[:, :-rows][:, -grid[0] * grid[1] :]
        return tokens.transpose(1, 2).unflatten(2, grid)

    def _states(self, outputs: ModelOutput) -> torch.Tensor:
        """[B, rows, width]: the last states, those of the queries at the end."""
        if outputs.get("last_hidden_state") is None:
            raise ValueError(_lacks(*NO_STATES, self.detector))
        return outputs.last_hidden_state

    @classmethod
    def from_detector(
        cls,
        detector: str | PretrainedConfig,
        id2label: dict[int, str],
        bank: Any = None,
        aspect_level: str = "object",
        pretrained: bool = True,
        **kwargs: Any,
    ) -> MadkdForObjectDetection:
        """A new student: the detector keeps its pretrained weights, save those whose shape the classes change.

        Args:
            detector: id of a detector on the Hub, a folder, or a configuration (then all weights are random). Of a
                student, the detector.
            id2label: the C classes. Where the detector has as many, its class head is kept.
            bank: an `AspectBank` of Q questions; without one the student is the plain detector.
            aspect_level: "object" or "image", what the questions are about.
            pretrained: False takes the architecture alone from the id or folder, as for training from scratch.
            kwargs: of `from_pretrained` (`revision`, `token`, `cache_dir`, ...).

        Returns:
            The student in evaluation mode, as `from_pretrained` gives it; a Trainer takes it out of there.

        Raises:
            ValueError: no detector, one with code of its own, or one that has nothing for the aspect head to read.
        """
        if isinstance(detector, PretrainedConfig):
            detector = copy.deepcopy(detector)
        elif Path(detector).is_dir() and not Path(detector, kwargs.get("subfolder") or "", "config.json").is_file():
            raise ValueError(f"Expected the folder of a detector; {detector} has no config.json: {REMEDY}.")
        start = cls._start(detector, bank, pretrained, kwargs)
        config = start.config
        check_architecture(config)
        is_student = config.model_type == MadkdDetectionConfig.model_type
        config.id2label = {int(index): name for index, name in id2label.items()}
        config.label2id = {name: index for index, name in config.id2label.items()}
        detector_config = config.detector_config if is_student else config
        model = cls(MadkdDetectionConfig(detector_config, aspect_level=aspect_level, **start.facts))
        if start.pretrained:
            source = (cls if is_student else AutoModelForObjectDetection).from_pretrained(detector, **start.options)
            weights = (source.detector if is_student else source).state_dict()
            new = model.detector.state_dict()  # where shapes differ, the classes do
            fitting = {name: value for name, value in weights.items() if value.shape == new[name].shape}
            model.detector.load_state_dict(new | fitting)
        return model.eval()

    def to_plain(self) -> PreTrainedModel:
        """The bare transformers detector: the same classes and boxes, no aspects, no code of ours.

        Returns:
            A copy of the detector, of its own class, in evaluation mode, as `from_pretrained` gives it.
        """
        plain = copy.deepcopy(self.detector)
        plain.zero_grad()
        return plain.eval()


class AspectDetections(dict):
    """What a student finds in one image; printed, a line for each object and each aspect: `striped wings: 0.93`."""

    def __str__(self) -> str:
        lines = []
        for detected in self["objects"]:
            place = ", ".join(str(side) for side in detected["box"].values())
            lines += [f"{printable(detected['label'])}: {detected['score']:.2f} ({place})"]
            lines += answer_lines(detected.get("aspects", []))
        lines += ["image", *answer_lines(self["aspects"])] if "aspects" in self else []
        return "\n".join(lines)


class AspectDetectionPipeline(ObjectDetectionPipeline):
    """Objects, and the answers to the aspect questions: `pipeline("aspect-detection", "you/student")`.

    A student that brings its code needs `trust_remote_code=True`. For one in memory, pass `model=` and
    `image_processor=` to this class, or, where madkd_hf is imported, to `pipeline("aspect-detection", ...)`.

    Takes what `ObjectDetectionPipeline` takes. Gives for each image an `AspectDetections`, a dictionary: `objects` is
    what that pipeline gives, a list of `label`, `score` and `box`. Where the questions are about objects, each has
    `aspects`, too, and where they are about images, the dictionary has: a list of `label` (the aspect's id),
    `question` and `score` (the probability of yes, 0..1) for all Q aspects, the most probable first.
    """

    def postprocess(self, model_outputs: ModelOutput, threshold: float = 0.5) -> AspectDetections:
        config, answers = self.model.config, model_outputs["aspect_logits"]
        objects = super().postprocess(model_outputs, threshold)
        if config.aspect_level == "image":
            return AspectDetections(objects=objects, aspects=scored_answers(config, answers[0]))
        queries = queries_of(self.image_processor, model_outputs["logits"], threshold)[0].tolist()
        for detected, query in zip(objects, queries):
            detected["aspects"] = scored_answers(config, answers[0, query])
        return AspectDetections(objects=objects)


def check_architecture(config: PretrainedConfig) -> None:
    """Raise ValueError where a model of this configuration is no detector."""
    if not isinstance(config, MadkdDetectionConfig) and type(config) not in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        received = config.name_or_path or type(config).__name__
        raise ValueError(f"Expected a detector; {received} is a model of type {config.model_type!r}: {REMEDY}.")


def _check_outputs(detector: nn.Module, level: str) -> None:
    """Raise ValueError where the class that the detector's forward says it returns has nothing for the aspect head."""
    annotation = inspect.signature(detector.forward).return_annotation
    for output_class in typing.get_args(annotation) or (annotation,):
        if not (inspect.isclass(output_class) and issubclass(output_class, ModelOutput)):
            continue
        fields = output_class.__dataclass_fields__
        if "last_hidden_state" not in fields or "pred_boxes" not in fields:
            raise ValueError(_lacks(*NO_STATES, detector))
        if level == "image" and "encoder_last_hidden_state" not in fields and not _joins_patches(detector.config):
            raise ValueError(_lacks(*NO_FEATURES, detector))


def _joins_patches(config: PretrainedConfig) -> bool:
    """Whether the queries run along with the patches (YOLOS)."""
    return hasattr(config, "num_detection_tokens")


def _lacks(what: str, remedy: str, detector: nn.Module) -> str:
    return f"{type(detector).__name__} gives no {what} for the aspect head to read: {remedy}."


@contextmanager
def _record_encoder_mask(encoder: nn.Module) -> Iterator[list[torch.Tensor | None]]:
    """The `attention_mask` over its positions that the encoder is given."""
    masks = []
    hook = encoder.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs.get("attention_mask")), with_kwargs=True
    )
    try:
        yield masks
    finally:
        hook.remove()


MadkdDetectionConfig.register_for_auto_class()
MadkdForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
# The names by which pipelines know the models that they support.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[MadkdDetectionConfig.model_type] = MadkdForObjectDetection.__name__

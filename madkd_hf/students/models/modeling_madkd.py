"""The student: any image classifier of transformers with a widened head. This file travels with saved models."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModelForImageClassification,
    ImageClassificationPipeline,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import ModelOutput, can_return_tuple

from .aspects_of_madkd import AspectModel, answer_lines, build, scored_answers
from .configuration_madkd import MadkdConfig


@dataclass
class MadkdImageClassifierOutput(ModelOutput):
    """
    Args:
        loss: cross-entropy over the classes, when labels were given.
        logits: [B, C] class scores before the softmax.
        aspect_logits: [B, Q] aspect scores before the sigmoid, in the bank's order.
        hidden_states, reshaped_hidden_states, attentions, cross_attentions: those of them that the backbone has, when
            they were asked for.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    aspect_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    reshaped_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


LAYER_OUTPUTS = ["hidden_states", "reshaped_hidden_states", "attentions", "cross_attentions"]


class MadkdForImageClassification(AspectModel):
    """An image classifier whose last layer also answers Q aspect questions (paper section 3.3).

    The backbone is an ordinary classifier of transformers built with C + Q outputs: the first C are the classes, the
    others the aspects. `logits` holds the classes alone, so every tool for image classifiers works as it is; the cost
    at test time is Q rows of one linear layer, and `to_plain` takes even those away.
    """

    config_class = MadkdConfig
    base_model_prefix = "backbone"
    pipelines = {
        "aspect-classification": {
            "impl": "modeling_madkd.AspectClassificationPipeline",
            "pt": ["AutoModelForImageClassification"],
        }
    }

    def __init__(self, config: MadkdConfig):
        super().__init__(config)
        check_architecture(config.backbone_config)
        self.backbone = build(AutoModelForImageClassification, config.backbone_config)
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> MadkdImageClassifierOutput:
        """
        Args:
            pixel_values: [B, channels, height, width], as the image processor makes them.
            labels: [B] class indices.
            kwargs: for the backbone: `output_hidden_states`, `output_attentions`, `interpolate_pos_encoding`, ...; and
                `return_dict` (False for a tuple without what is None).
        """
        options = self._options(kwargs)
        outputs = self.backbone(pixel_values=pixel_values, **options)
        sizes = [self.config.num_labels, self.config.num_aspects]
        if outputs.logits.shape[-1] != sum(sizes):
            raise ValueError(_wrong_head(self.backbone, outputs.logits.shape[-1], sum(sizes)))
        logits, aspect_logits = outputs.logits.split(sizes, dim=-1)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return MadkdImageClassifierOutput(
            loss=loss,
            logits=logits,
            aspect_logits=aspect_logits,
            **{name: outputs.get(name) for name in LAYER_OUTPUTS},
        )

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PretrainedConfig,
        id2label: dict[int, str],
        bank: Any = None,
        pretrained: bool = True,
        **kwargs: Any,
    ) -> MadkdForImageClassification:
        """A new student: the backbone keeps its pretrained weights, only the head is new. In evaluation mode.

        Args:
            backbone: id of an image model on the Hub, a folder, or a configuration (then all weights are random). Of a
                student, the backbone.
            id2label: the C classes.
            bank: an `AspectBank` of Q questions; without one the student is the plain classifier.
            pretrained: False takes the architecture alone from the id or folder, as for training from scratch.
            kwargs: of `from_pretrained` (`revision`, `token`, `cache_dir`, ...).

        Raises:
            ValueError: no image classifier, one with code of its own, or one whose head cannot be widened.
        """
        start = cls._start(backbone, bank, pretrained, kwargs)
        config = start.config
        check_architecture(config)
        is_student = config.model_type == MadkdConfig.model_type
        id2label = {int(index): name for index, name in id2label.items()}
        label2id = {name: index for index, name in id2label.items()}
        backbone_config = config.backbone_config if is_student else config
        model = cls(MadkdConfig(backbone_config, id2label=id2label, label2id=label2id, **start.facts))
        head = head_parameters(model.config.backbone_config)
        if start.pretrained:
            options = start.options
            if (getattr(config, "model_args", None) or {}).pop("num_classes", None):  # of timm, told by the head, too
                options["config"] = config
            source = (cls if is_student else AutoModelForImageClassification).from_pretrained(backbone, **options)
            weights = (source.backbone if is_student else source).state_dict()
            weights_kept = {name: value for name, value in weights.items() if name not in head}
            missing, unexpected = model.backbone.load_state_dict(weights_kept, strict=False)
            if unexpected or set(missing) - head:
                raise ValueError(
                    f"The weights of {backbone} do not fit its own configuration: unexpected {unexpected}, missing "
                    f"{sorted(set(missing) - head)}; load another revision, or pass pretrained=False."
                )
        return model.eval()

    def to_plain(self) -> PreTrainedModel:
        """The bare transformers classifier: the same class logits, no aspect rows, no code of ours.

        Returns:
            A model of the backbone's own class with C outputs, in evaluation mode; weights are copied.
        """
        config = MadkdConfig.backbone_config_for(
            self.config.backbone_config.to_dict(), list(self.config.id2label.values())
        )
        plain = type(self.backbone)(config).to(self.device, self.dtype)
        head = head_parameters(self.config.backbone_config)
        plain.load_state_dict(
            {
                name: value[: self.config.num_labels] if name in head else value
                for name, value in self.backbone.state_dict().items()
            }
        )
        return plain.eval()


class AspectAnswers(dict):
    """What a student sees in one image; printed, one line per class and per aspect: `striped wings: 0.93`."""

    def __str__(self) -> str:
        return "\n".join("\n".join([part, *answer_lines(self[part])]) for part in self)


class AspectClassificationPipeline(ImageClassificationPipeline):
    """Classes, and the answers to the aspect questions: `pipeline("aspect-classification", "you/student")`.

    A student that brings its code needs `trust_remote_code=True`. For one in memory, pass `model=` and
    `image_processor=` to this class, or, where madkd_hf is imported, to `pipeline("aspect-classification", ...)`.

    Takes what `ImageClassificationPipeline` takes. Gives for each image an `AspectAnswers`, a dictionary: `classes` is
    what that pipeline gives, a list of `label` and `score`; `aspects` is a list of `label` (the aspect's id),
    `question` and `score` (the probability of yes, 0..1) for all Q aspects, the most probable first. `top_k` and
    `function_to_apply` are about the classes alone.
    """

    def postprocess(self, model_outputs: ModelOutput, **kwargs: Any) -> AspectAnswers:
        aspects = scored_answers(self.model.config, model_outputs["aspect_logits"][0])
        return AspectAnswers(classes=super().postprocess(model_outputs, **kwargs), aspects=aspects)


def check_architecture(config: PretrainedConfig) -> None:
    """Raise ValueError for no image classifier, or one that wants more than pixels, or gives no class scores."""
    if isinstance(config, MadkdConfig):
        config = config.backbone_config
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"Expected an image classifier; received a model of type {config.model_type!r}: choose a backbone for "
            'AutoModelForImageClassification, as "microsoft/resnet-18".'
        )
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    for model_class in classes if isinstance(classes, tuple) else (classes,):
        signature = inspect.signature(model_class.forward)
        returned = signature.return_annotation
        outputs = [kind for kind in typing.get_args(returned) or (returned,) if inspect.isclass(kind)]
        fields = {name for kind in outputs if issubclass(kind, ModelOutput) for name in kind.__dataclass_fields__}
        wants = {"input_ids", "spatial_shapes"} & set(signature.parameters)
        if wants or "pixel_values" not in signature.parameters or (fields and "logits" not in fields):
            raise ValueError(
                f"{model_class.__name__} is no classifier from an image's pixels to class scores, which a student is "
                'built on: choose another backbone, as "microsoft/resnet-18".'
            )


def _wrong_head(backbone: nn.Module, received: int | str, expected: int) -> str:
    return (
        f"{type(backbone).__name__} has {received} outputs where {expected} were asked for (classes and aspects): its "
        "configuration counts them in a way of its own; choose another backbone."
    )


def head_parameters(config: PretrainedConfig) -> set[str]:
    """Names of the tensors with one row per output: those whose shape changes with the number of outputs."""
    shapes = []
    for extra in (0, 1):
        outputs = [str(i) for i in range(config.num_labels + extra)]
        with torch.device("meta"):
            model = build(AutoModelForImageClassification, MadkdConfig.backbone_config_for(config.to_dict(), outputs))
        shapes.append({name: value.shape for name, value in model.state_dict().items()})
    head = {name: shape for name, shape in shapes[0].items() if shape != shapes[1][name]}
    if not head or any(shape[0] != config.num_labels for shape in head.values()):
        received = next((shape[0] for shape in head.values()), "a fixed number of")
        raise ValueError(_wrong_head(model, received, config.num_labels))
    return set(head)


MadkdConfig.register_for_auto_class()
MadkdForImageClassification.register_for_auto_class("AutoModelForImageClassification")
# The names by which pipelines know the models that they support.
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[MadkdConfig.model_type] = MadkdForImageClassification.__name__

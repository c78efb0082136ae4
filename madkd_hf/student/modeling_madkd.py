"""The student: any image classifier of transformers with a widened head. This file travels with saved models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_madkd import MadkdConfig


@dataclass
class MadkdImageClassifierOutput(ModelOutput):
    """
    Args:
        loss: cross-entropy over the classes, when labels were given.
        logits: [B, C] class scores before the softmax.
        aspect_logits: [B, Q] aspect scores before the sigmoid, in the bank's order.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    aspect_logits: torch.FloatTensor | None = None


class MadkdForImageClassification(PreTrainedModel):
    """An image classifier whose last layer also answers Q aspect questions (paper section 3.3).

    The backbone is an ordinary classifier of transformers built with C + Q outputs: the first C are the classes, the
    others the aspects. `logits` holds the classes alone, so every tool for image classifiers works as it is; the cost
    at test time is Q rows of one linear layer, and `to_plain` takes even those away.
    """

    config_class = MadkdConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    # The loss is a mean over the batch: the Trainer has to divide it by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: MadkdConfig):
        super().__init__(config)
        self.backbone = AutoModelForImageClassification.from_config(config.backbone_config)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> MadkdImageClassifierOutput:
        """
        Args:
            pixel_values: [B, channels, height, width], as the image processor makes them.
            labels: [B] class indices.
        """
        outputs = self.backbone(pixel_values=pixel_values).logits
        logits, aspect_logits = outputs.split([self.config.num_labels, self.config.num_aspects], dim=-1)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return MadkdImageClassifierOutput(loss=loss, logits=logits, aspect_logits=aspect_logits)

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PretrainedConfig,
        id2label: dict[int, str],
        bank: Any = None,
        pretrained: bool = True,
        **kwargs: Any,
    ) -> MadkdForImageClassification:
        """A new student: the backbone keeps its pretrained weights, only the head is new.

        Args:
            backbone: id of an image model on the Hub, a folder, or a configuration (then all weights are random).
            id2label: the C classes.
            bank: an `AspectBank` of Q questions; without one the student is the plain classifier.
            pretrained: False takes the architecture alone from the id or folder, as for training from scratch.
            kwargs: of `from_pretrained` (`revision`, `token`, `cache_dir`, `trust_remote_code`, ...).
        """
        if isinstance(backbone, PretrainedConfig):
            backbone_config, pretrained = backbone, False
        else:
            backbone_config = AutoConfig.from_pretrained(backbone, **kwargs)
        aspects = {} if bank is None else _aspects_of(bank)
        id2label = {int(index): name for index, name in id2label.items()}
        label2id = {name: index for index, name in id2label.items()}
        model = cls(MadkdConfig(backbone_config, id2label=id2label, label2id=label2id, **aspects))
        if pretrained:
            weights = AutoModelForImageClassification.from_pretrained(backbone, **kwargs).state_dict()
            head = _head_parameters(model.config.backbone_config)
            kept = {name: value for name, value in weights.items() if name not in head}
            missing, unexpected = model.backbone.load_state_dict(kept, strict=False)
            if unexpected or set(missing) - head:
                raise ValueError(
                    f"The weights of {backbone} do not fit its own configuration: unexpected {unexpected}, missing "
                    f"{sorted(set(missing) - head)}; load another revision, or pass pretrained=False."
                )
        return model

    def to_plain(self) -> PreTrainedModel:
        """The bare transformers classifier: the same class logits, no aspect rows, no code of ours.

        Returns:
            A model of the backbone's own class with C outputs; weights are copied.
        """
        config = MadkdConfig.backbone_config_for(
            self.config.backbone_config.to_dict(), list(self.config.id2label.values())
        )
        plain = type(self.backbone)(config).to(self.device, self.dtype)
        head = _head_parameters(self.config.backbone_config)
        plain.load_state_dict(
            {
                name: value[: self.config.num_labels] if name in head else value
                for name, value in self.backbone.state_dict().items()
            }
        )
        return plain.train(self.training)


def _aspects_of(bank: Any) -> dict[str, Any]:
    return {"aspect_ids": bank.ids, "aspect_questions": bank.questions, "aspect_bank": bank.fingerprint}


def _head_parameters(config: PretrainedConfig) -> set[str]:
    """Names of the tensors with one row per output: those whose shape changes with the number of outputs."""
    shapes = []
    for extra in (0, 1):
        outputs = [str(i) for i in range(config.num_labels + extra)]
        with torch.device("meta"):
            model = AutoModelForImageClassification.from_config(
                MadkdConfig.backbone_config_for(config.to_dict(), outputs)
            )
        shapes.append({name: value.shape for name, value in model.state_dict().items()})
    return {name for name, shape in shapes[0].items() if shape != shapes[1][name]}


MadkdConfig.register_for_auto_class()
MadkdForImageClassification.register_for_auto_class("AutoModelForImageClassification")

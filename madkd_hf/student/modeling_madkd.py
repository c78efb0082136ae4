"""The student: any image classifier of transformers with a widened head. This file travels with saved models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    ImageClassificationPipeline,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput, cached_file

from .configuration_madkd import MadkdConfig


PIPELINES = {
    "aspect-classification": {
        "impl": "modeling_madkd.AspectClassificationPipeline",
        "pt": ["AutoModelForImageClassification"],
    }
}


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
    # The loss is a mean over the batch: the Trainer has to divide it by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: MadkdConfig):
        super().__init__(config)
        self.backbone = AutoModelForImageClassification.from_config(config.backbone_config)
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
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

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        """The backbone knows how: those of timm do it in a way of their own."""
        self.backbone._set_gradient_checkpointing(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As usual; the code that is saved along has the aspect pipeline, and the config announces it."""
        self.config.custom_pipelines = PIPELINES if self.config.num_aspects else None
        return super().save_pretrained(*args, **kwargs)

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
            kwargs: of `from_pretrained` (`revision`, `token`, `cache_dir`, `trust_remote_code`, ...).
        """
        origin = {} if bank is None else _aspects_of(bank)
        if isinstance(backbone, PretrainedConfig):
            config, pretrained = backbone, False
        else:
            if not Path(backbone).is_dir():
                kwargs["revision"] = commit = _commit_of(backbone, **kwargs)
                origin |= {"base_model": str(backbone), "base_model_revision": commit} if pretrained else {}
            config = AutoConfig.from_pretrained(backbone, **kwargs)
        is_student = config.model_type == MadkdConfig.model_type
        if is_student and pretrained and "base_model" not in origin:  # of a folder: what that student began with
            origin |= {"base_model": config.base_model, "base_model_revision": config.base_model_revision}
        id2label = {int(index): name for index, name in id2label.items()}
        label2id = {name: index for index, name in id2label.items()}
        backbone_config = config.backbone_config if is_student else config
        model = cls(MadkdConfig(backbone_config, id2label=id2label, label2id=label2id, **origin))
        if pretrained:
            source = AutoModelForImageClassification.from_pretrained(backbone, **kwargs)
            weights = (source.backbone if is_student else source).state_dict()
            head = _head_parameters(model.config.backbone_config)
            kept = {name: value for name, value in weights.items() if name not in head}
            missing, unexpected = model.backbone.load_state_dict(kept, strict=False)
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
        head = _head_parameters(self.config.backbone_config)
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
        parts = [f"{part}\n" + "\n".join(f"  {e['label']}: {e['score']:.2f}" for e in self[part]) for part in self]
        return "\n".join(parts)


class AspectClassificationPipeline(ImageClassificationPipeline):
    """Classes, and the answers to the aspect questions: `pipeline("aspect-classification", "you/student")`.

    A student that brings its code needs `trust_remote_code=True`. For one in memory, pass `model=` and
    `image_processor=` to this class, or, where madkd_hf is imported, to `pipeline("aspect-classification", ...)`.

    Takes what `ImageClassificationPipeline` takes. Gives for each image an `AspectAnswers`, a dictionary: `classes` is
    what that pipeline gives, a list of `label` and `score`; `aspects` is a list of `label` (the aspect's id),
    `question` and `score` (the probability of yes, 0..1) for all Q aspects, the most probable first. `top_k` and
    `function_to_apply` are about the classes alone.
    """

    def check_model_type(self, supported_models: Any) -> None:
        """The list of models is that of transformers, in which ours is not."""

    def postprocess(self, model_outputs: ModelOutput, **kwargs: Any) -> AspectAnswers:
        config = self.model.config
        scores = model_outputs["aspect_logits"][0].float().sigmoid().tolist()
        aspects = [
            {"label": name, "question": question, "score": score}
            for name, question, score in zip(config.aspect_ids, config.aspect_questions, scores)
        ]
        aspects.sort(key=lambda aspect: -aspect["score"])
        return AspectAnswers(classes=super().postprocess(model_outputs, **kwargs), aspects=aspects)


def _aspects_of(bank: Any) -> dict[str, Any]:
    groups = [aspect.group for aspect in bank]
    return {
        "aspect_ids": bank.ids,
        "aspect_questions": bank.questions,
        "aspect_bank": bank.fingerprint,
        "aspect_groups": groups if any(groups) else None,
        "aspect_teacher": _teacher_of(bank.provenance),
    }


def _teacher_of(provenance: dict[str, Any] | None) -> dict[str, str | None] | None:
    """Model and commit; of a folder only the name, which tells a stranger more than a path of another machine."""
    name = (provenance or {}).get("model")
    if not name:
        return None
    on_the_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists()
    commit = provenance.get("commit")
    if commit is None and re.fullmatch("[0-9a-f]{40}", provenance.get("revision") or ""):
        commit = provenance["revision"]
    return {"model": name if on_the_hub else Path(name).name, "commit": commit}


def _commit_of(repo: str, revision: str | None = None, **kwargs: Any) -> str | None:
    """The commit of the configuration that `from_pretrained` would take, or the revision as it came."""
    names = ("token", "cache_dir", "local_files_only", "force_download", "subfolder")
    options = {name: kwargs[name] for name in names if name in kwargs}
    path = cached_file(repo, "config.json", revision=revision, **options)
    found = re.search(r"/snapshots/([0-9a-f]{40})/", Path(path).as_posix())
    return found[1] if found else revision


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

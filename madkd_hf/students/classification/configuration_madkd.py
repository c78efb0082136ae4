"""Configuration of a student with aspect outputs. This file travels with saved models: it must stay self-contained."""

from __future__ import annotations

import copy
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig


class MadkdConfig(PretrainedConfig):
    """An image-classification architecture whose head has C + Q outputs: C classes, then Q aspects.

    Args:
        backbone_config: configuration (or its dictionary) of any image-classification architecture. Its labels are set
            from the C classes and the aspects here, so that its head gets C + Q outputs.
        aspect_ids: Q short names of the aspects, in the bank's order.
        aspect_questions: the Q yes/no questions, in the same order.
        aspect_bank: fingerprint of the bank that ids and questions come from.
        aspect_groups: what kind of aspect each is, in the same order; None where the bank does not say.
        aspect_teacher: who answered the questions, {"model": name or id, "commit": of the Hub or None}.
        base_model: the Hub id whose weights the student started from; None for random weights or those of a folder.
        base_model_revision: the commit of these weights.
        custom_pipelines: what the code beside a saved model offers to `pipeline`; `save_pretrained` of the model fills
            it in.
        kwargs: of `PretrainedConfig`, among them `id2label`: `num_labels` is C. Set later, it renames the backbone's
            outputs, too.
    """

    model_type = "madkd"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["aspect_logits"]

    def __init__(
        self,
        backbone_config: dict[str, Any] | PretrainedConfig | None = None,
        aspect_ids: list[str] | None = None,
        aspect_questions: list[str] | None = None,
        aspect_bank: str | None = None,
        aspect_groups: list[str] | None = None,
        aspect_teacher: dict[str, str | None] | None = None,
        base_model: str | None = None,
        base_model_revision: str | None = None,
        custom_pipelines: dict[str, dict[str, Any]] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.aspect_ids = list(aspect_ids or [])
        self.aspect_questions = list(aspect_questions or [])
        self.aspect_bank = aspect_bank
        self.aspect_groups = aspect_groups
        self.aspect_teacher = aspect_teacher
        self.base_model = base_model
        self.base_model_revision = base_model_revision
        self.custom_pipelines = custom_pipelines
        if len(self.aspect_ids) != len(self.aspect_questions):
            raise ValueError(
                f"Each aspect needs one id and one question; received {len(self.aspect_ids)} ids and "
                f"{len(self.aspect_questions)} questions."
            )
        if backbone_config is None:
            backbone_config = {"model_type": "resnet"}
        if isinstance(backbone_config, PretrainedConfig):
            backbone_config = backbone_config.to_dict()
        self.backbone_config = self.backbone_config_for(backbone_config, self._outputs())

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "id2label" and "backbone_config" in self.__dict__:
            value = {int(index): label for index, label in value.items()}
            super().__setattr__("label2id", {label: index for index, label in value.items()})
        super().__setattr__(name, value)
        if name == "id2label" and "backbone_config" in self.__dict__:
            self.backbone_config = self.backbone_config_for(self.backbone_config.to_dict(), self._outputs())

    def _outputs(self) -> list[str]:
        return [*self.id2label.values(), *(f"aspect: {name}" for name in self.aspect_ids)]

    @staticmethod
    def backbone_config_for(backbone_config: dict[str, Any], outputs: list[str]) -> PretrainedConfig:
        """A copy of the architecture's configuration whose head has these named outputs, one each."""
        kind = backbone_config["model_type"]
        if kind not in CONFIG_MAPPING:
            raise ValueError(
                f"The backbone's model type {kind!r} needs code of its own (trust_remote_code), which a student "
                "cannot carry: choose an architecture that transformers has."
            )
        dropped = ["model_type", "id2label", "label2id", "num_labels", "num_classes", "label_names"]
        dropped += ["_name_or_path"]  # a folder of this machine, maybe
        dropped += ["auto_map"]  # code that does not come along
        dropped += ["return_dict"]  # the student asks for the outputs by name
        settings = {name: value for name, value in backbone_config.items() if name not in dropped}
        if isinstance(settings.get("model_args"), dict):  # of timm, which would be told twice how many
            settings["model_args"] = {k: v for k, v in settings["model_args"].items() if k != "num_classes"}
        # Where a model type has two classifiers, as DeiT, the Auto class looks for a hint here and trips over None.
        settings["architectures"] = settings.get("architectures") or []
        names = {"id2label": dict(enumerate(outputs)), "label2id": {name: i for i, name in enumerate(outputs)}}
        config = AutoConfig.for_model(kind, **names, num_labels=len(outputs), **settings)
        if hasattr(config, "num_classes"):  # a count of its own, which would win over the names
            config.num_classes = len(outputs)
        return config

    @property
    def num_aspects(self) -> int:
        """Q."""
        return len(self.aspect_ids)

    @property
    def custom_pipelines(self) -> dict[str, dict[str, Any]]:
        """Tasks of `pipeline` beside the usual ones: a copy, because `pipeline` writes classes into what it gets."""
        return copy.deepcopy(self._custom_pipelines or {})

    @custom_pipelines.setter
    def custom_pipelines(self, value: dict[str, dict[str, Any]] | None) -> None:
        self._custom_pipelines = value

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        pipelines = content.pop("_custom_pipelines", None)
        return {**content, **({"custom_pipelines": pipelines} if pipelines else {})}

"""Configuration of a student with aspect outputs. This file travels with saved models."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from .aspects_of_madkd import AspectConfig, refuse_own_code


class MadkdConfig(AspectConfig):
    """An image-classification architecture whose head has C + Q outputs: C classes, then Q aspects.

    Args:
        backbone_config: configuration (or its dictionary) of any image-classification architecture. Its labels are set
            from the C classes and the aspects here, so that its head gets C + Q outputs.
        kwargs: of `AspectConfig`, among them `id2label`: `num_labels` is C. Set later, it renames the backbone's
            outputs, too.
    """

    model_type = "madkd"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["aspect_logits"]

    def __init__(
        self,
        backbone_config: dict[str, Any] | PretrainedConfig | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
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
        refuse_own_code(kind, "backbone")
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

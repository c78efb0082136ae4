"""Configuration of a detector with aspect outputs. It travels with saved models."""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from .aspects_of_madkd import AspectConfig, refuse_own_code


ASPECT_LEVELS = ("image", "object")


class MadkdDetectionConfig(AspectConfig):
    """An object-detection architecture with a head of Q aspects beside those of classes and boxes.

    Args:
        detector_config: configuration (or its dictionary) of any architecture of `AutoModelForObjectDetection` that
            gives the states of its queries.
        aspect_level: what the questions are about: "object", each object by itself, or "image", the image as a whole.
        kwargs: of `AspectConfig`, among them `id2label`: the C classes, by default those of the detector.
            `id2label` and `label2id` are the detector's too, whichever of the two configurations was given them.
    """

    model_type = "madkd_detection"
    sub_configs = {"detector_config": AutoConfig}
    keys_to_ignore_at_inference = ["aspect_logits", "matches"]

    def __init__(
        self,
        detector_config: dict[str, Any] | PretrainedConfig | None = None,
        aspect_level: str = "object",
        **kwargs: Any,
    ):
        if isinstance(detector_config, PretrainedConfig):
            kind, detector = detector_config.model_type, copy.deepcopy(detector_config)
        else:  # yolos: the only one whose default configuration asks for no other library
            kind, detector = (detector_config or {"model_type": "yolos"})["model_type"], None
        refuse_own_code(kind, "detector")
        detector = detector or AutoConfig.for_model(**(detector_config or {"model_type": kind}))
        detector._name_or_path = ""  # a folder of this machine, maybe
        detector.__dict__.pop("auto_map", None)  # code that does not come along
        if kwargs.get("id2label") is None and kwargs.get("num_labels") is None:
            kwargs["id2label"] = detector.id2label
        if kwargs.get("id2label") is not None:
            kwargs["id2label"] = {int(index): name for index, name in kwargs["id2label"].items()}
            kwargs["label2id"] = {name: index for index, name in kwargs["id2label"].items()}
        super().__init__(**kwargs)
        self.aspect_level = aspect_level
        self.detector_config = detector
        self.id2label, self.label2id = self.id2label, self.label2id  # the detector's, from here on
        if aspect_level not in ASPECT_LEVELS:
            raise ValueError(f'aspect_level is "object" or "image"; received {aspect_level!r}.')

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "id2label" and "detector_config" in self.__dict__:
            value = {int(index): label for index, label in value.items()}
            self.label2id = {label: index for index, label in value.items()}
        super().__setattr__(name, value)
        if name in ("id2label", "label2id") and "detector_config" in self.__dict__:
            setattr(self.detector_config, name, copy.copy(value))
            if hasattr(self.detector_config, "num_classes"):  # a count of its own, which would win over the names
                self.detector_config.num_classes = len(value)

    @property
    def aspect_width(self) -> int:
        """How wide what the aspect head reads is; some encoders are of another width than the queries."""
        names = ["d_model", "hidden_size"]
        if self.aspect_level == "image":
            names = ["encoder_hidden_dim", *names]
        return next(getattr(self.detector_config, name) for name in names if hasattr(self.detector_config, name))

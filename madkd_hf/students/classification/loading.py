"""A finished student, or a plain classifier, with its image processor, for those who use it and train nothing."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
)

from ...data.image_processors import load_image_processor
from ...text import excerpt
from ..models.modeling_madkd import MadkdForImageClassification


def load_classifier(source: str, use: str, **kwargs: Any) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A student, or a plain classifier, in float32, and its image processor; no code that comes with it is run.

    Args:
        source: a folder, or an id of the Hub.
        use: what is done with it, for messages: "exported", "served".
        kwargs: of `from_pretrained` (`revision`, `token`, ...).

    Raises:
        ValueError: a detector, or no image classifier.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **kwargs)
    except (OSError, ValueError) as error:
        here = os.path.exists(os.path.expanduser(source))
        also = "" if here else ", and there is no such folder here"
        raise ValueError(
            f"{source} is no student ({excerpt(error, 200)}){also}: pass the folder that `madkd train` wrote, or an "
            "id of the Hub."
        ) from error
    is_student = config.model_type == "madkd"
    if not is_student and type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"{source} is a {config.model_type} model, and only image classifiers are {use} so far, no detectors: "
            "pass a classifier."
        )
    processor = load_image_processor(source, **kwargs)
    model_class = MadkdForImageClassification if is_student else AutoModelForImageClassification
    try:
        model = model_class.from_pretrained(source, dtype=torch.float32, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} cannot be loaded as an image classifier ({excerpt(error, 200)}): pass a student."
        ) from error
    return model.eval(), processor

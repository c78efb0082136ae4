"""Image processors: loaded without code of their own, and those of timm as ordinary ones, which can be saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor, BaseImageProcessor, CLIPImageProcessorPil
from transformers.image_processing_base import ImageProcessingMixin


# What timm takes where a configuration says nothing.
TIMM = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def load_image_processor(source: str, **kwargs: Any) -> BaseImageProcessor:
    """The image processor of a model on the Hub or in a folder; no code that comes with it is run.

    Args:
        source: id or folder.
        kwargs: of `from_pretrained` (`revision`, `token`, `cache_dir`, ...).

    Raises:
        ValueError: there is none, or it needs code of its own.
    """
    kwargs["trust_remote_code"] = False
    try:
        content, _ = ImageProcessingMixin.get_image_processor_dict(
            source, image_processor_filename="config.json", **kwargs
        )
        if "pretrained_cfg" in content:  # timm's own needs torchvision
            return of_timm(content["pretrained_cfg"])
    except OSError:
        pass  # said below, if it matters
    try:
        return ordinary(AutoImageProcessor.from_pretrained(source, **kwargs))
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason = "it needs code of its own (trust_remote_code), which is not run"
        elif isinstance(error, OSError):
            reason = "no preprocessor_config.json can be read there"
        raise ValueError(
            f"{source} has no image processor that can be used ({reason}): save one there, as with "
            f'ViTImageProcessorPil(size={{"height": 224, "width": 224}}).save_pretrained(folder).'
        ) from error


def ordinary(processor: Any) -> Any:
    """The same image processor; of timm's wrapper an ordinary one that does the same, and can be saved."""
    if hasattr(processor, "data_config") and hasattr(processor, "val_transforms"):
        return of_timm(processor.data_config)
    return processor


def of_timm(settings: Mapping[str, Any]) -> BaseImageProcessor:
    """What timm does to an image for evaluation, by its data configuration, as an ordinary image processor.

    Raises:
        ValueError: a way to crop that ordinary image processors do not have.
    """
    config = {name: settings.get(name) or default for name, default in TIMM.items()}
    height, width = config["input_size"][-2:]
    resized = [math.floor(side / config["crop_pct"]) for side in (height, width)]
    if config["crop_mode"] == "squash":
        size = {"height": resized[0], "width": resized[1]}
    elif config["crop_mode"] == "center" and height == width:
        size = {"shortest_edge": resized[0]}
    else:
        raise ValueError(
            f"This timm model crops its {width} x {height} images in the way {config['crop_mode']!r}, which no "
            "ordinary image processor has: choose another backbone, or pass an image processor of your own."
        )
    return CLIPImageProcessorPil(
        size=size,
        crop_size={"height": height, "width": width},
        resample=Image.Resampling[config["interpolation"].upper()],
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
    )

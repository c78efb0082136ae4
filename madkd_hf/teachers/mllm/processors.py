"""Loading a model's processor, also where its video part cannot work, and how it is to see images."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import transformers
from PIL import Image
from transformers import AutoProcessor, BaseImageProcessor, ProcessorMixin, processing_utils
from transformers.models.auto import processing_auto
from transformers.models.auto.video_processing_auto import get_video_processor_config
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import is_torchvision_available


NOT_OF_IMAGES = {  # what a call returns, and where; and a number of tokens that no longer changes anything
    *("return_tensors", "data_format", "input_data_format", "device", "disable_grouping", "image_seq_length"),
}
_patching = threading.RLock()  # what is replaced for a moment is the whole process's


class NoVideoProcessor(BaseImageProcessor):
    """Stands where a video processor would: it has the settings of one, and needs no torchvision.

    Processors look settings up while they are built; what its file does not say is None.
    """

    model_input_names = ["pixel_values_videos"]

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **options: Any) -> NoVideoProcessor:
        return cls(**get_video_processor_config(name, **options))

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
        return None

    def preprocess(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("Videos need torchvision: install the one that matches torch.")


def load_processor(name: str | os.PathLike, **options: Any) -> ProcessorMixin:
    """`AutoProcessor.from_pretrained`; where torchvision is missing, without the video part that needs it.

    transformers has a variant of nearly all image processors that needs Pillow alone, and takes it by itself.
    """
    if processing_smolvlm.num2words is None:  # it spells out how many frames a video has
        processing_smolvlm.num2words = str
    if is_torchvision_available():
        return AutoProcessor.from_pretrained(name, **options)
    with _patching, _without_videos():
        return AutoProcessor.from_pretrained(name, **options)


def set_images_kwargs(processor: ProcessorMixin, given: Mapping[str, Any]) -> None:
    """Let a processor see images in another way than by default, both by itself and when it is called.

    A default of the processor as a whole goes before its image processor's own settings, and counts of image tokens
    are worked out from the latter: so they are set in both places.

    Raises:
        ValueError: it knows no such setting, or cannot see an image with it.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"images_kwargs are settings by name, such as {{'do_resize': True}}; received {given!r}.")
    own, name = processor.image_processor, type(processor.image_processor).__name__
    of_whole = _settings(getattr(processor, "valid_processor_kwargs", None)).get("images_kwargs")
    known = {*_settings(of_whole), *_settings(getattr(own, "valid_kwargs", None)), *_values(own)} - NOT_OF_IMAGES
    known = {setting for setting in known if not setting.endswith(("_type", "_class"))}
    if unknown := sorted(set(given) - known):
        raise ValueError(
            f"images_kwargs names {unknown[0]!r}, and {name} knows {', '.join(sorted(known))}: take one of these."
        )
    try:
        processor.image_processor = type(own).from_dict(_values(own), **given)
        defaults = {key: value for key, value in getattr(processor, "images_kwargs", {}).items() if key in known}
        processor.image_processor(Image.new("RGB", (64, 64)), return_tensors="pt", **{**defaults, **given})
    except Exception as error:  # whatever it raises, the settings are new
        raise ValueError(
            f"{name} cannot see an image with images_kwargs={dict(given)} ({' '.join(str(error).split())}): see its "
            "documentation for what it takes."
        ) from error
    processor.given_images_kwargs = dict(given)


def _settings(kind: type | None) -> dict[str, Any]:
    """The names that a typed dictionary may have."""
    return getattr(kind, "__annotations__", {})


def _values(image_processor: BaseImageProcessor) -> dict[str, Any]:
    return image_processor.to_dict() if hasattr(image_processor, "to_dict") else {}


def images_kwargs_of(processor: ProcessorMixin) -> dict[str, Any]:
    """What `set_images_kwargs` has set; empty by default."""
    return getattr(processor, "given_images_kwargs", {})


@contextmanager
def _without_videos() -> Iterator[None]:
    """Within, every processor that is loaded gets `NoVideoProcessor` for its video part, and no class is refused."""
    parts = processing_utils.MODALITY_TO_AUTOPROCESSOR_MAPPING._MAPPING_NAMES
    part_class, processor_class = ProcessorMixin.get_possibly_dynamic_module, processing_auto.processor_class_from_name
    video_part = parts["video_processor"]

    def part_without_videos(name: str) -> type:  # by the name of the part's class, or of its base class
        return NoVideoProcessor if "VideoProcessor" in name else part_class(name)

    def processor_without_torchvision(name: str) -> type | None:
        original_class = processor_class(name)
        return _hidden_class(original_class, name) if getattr(original_class, "is_dummy", False) else original_class

    try:
        parts["video_processor"] = (__name__, NoVideoProcessor.__name__)
        ProcessorMixin.get_possibly_dynamic_module = staticmethod(part_without_videos)
        processing_auto.processor_class_from_name = processor_without_torchvision
        yield
    finally:
        parts["video_processor"] = video_part
        ProcessorMixin.get_possibly_dynamic_module = staticmethod(part_class)
        processing_auto.processor_class_from_name = processor_class


def _hidden_class(refused: type, name: str) -> type:
    """The processor class that transformers hides where there is no torchvision (Pixtral's).

    Its module takes functions from the module of the image processor; the one for Pillow has them, too.
    """
    place = f"transformers.{transformers._class_to_module[name]}"
    package, _, model = place.rpartition(".processing_")
    images = f"{package}.image_processing_{model}"
    try:
        sys.modules[images] = importlib.import_module(f"{package}.image_processing_pil_{model}")
        return getattr(importlib.import_module(place), name)
    except ImportError:
        return refused
    finally:
        sys.modules.pop(images, None)

"""Loading a model's processor, also where its video part cannot work: the teacher is asked about images only."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from transformers import AutoProcessor, BaseImageProcessor, ProcessorMixin, processing_utils
from transformers.models.auto import processing_auto
from transformers.models.auto.video_processing_auto import get_video_processor_config
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import is_torchvision_available


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

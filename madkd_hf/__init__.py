"""Multi-aspect knowledge distillation for the Hugging Face ecosystem.

What is here is imported when it is used: `import madkd_hf` itself imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _on_import


if TYPE_CHECKING:
    from .aspects import Aspect, AspectBank
    from .hub.dataset import push_aspect_dataset
    from .labelling import attach_aspects, attach_class_targets
    from .students.base.training_args import MadkdTrainingArguments
    from .students.classification.trainer import MadkdTrainer
    from .students.detection.trainer import MadkdDetectionTrainer
    from .students.models.configuration_madkd import MadkdConfig
    from .students.models.configuration_madkd_detection import MadkdDetectionConfig
    from .students.models.modeling_madkd import MadkdForImageClassification
    from .students.models.modeling_madkd_detection import MadkdForObjectDetection
    from .teachers import Reading
    from .teachers.class_teacher import ClassTeacher
    from .teachers.mllm import AspectTeacher


__version__ = "0.1.0"
_MODULES = {  # what is public -> where it is
    "Aspect": "aspects",
    "AspectBank": "aspects",
    "AspectTeacher": "teachers.mllm",
    "ClassTeacher": "teachers.class_teacher",
    "MadkdConfig": "students.models.configuration_madkd",
    "MadkdDetectionConfig": "students.models.configuration_madkd_detection",
    "MadkdDetectionTrainer": "students.detection.trainer",
    "MadkdForImageClassification": "students.models.modeling_madkd",
    "MadkdForObjectDetection": "students.models.modeling_madkd_detection",
    "MadkdTrainer": "students.classification.trainer",
    "MadkdTrainingArguments": "students.base.training_args",
    "Reading": "teachers",
    "attach_aspects": "labelling",
    "attach_class_targets": "labelling",
    "push_aspect_dataset": "hub.dataset",
}
__all__ = [
    "Aspect",
    "AspectBank",
    "AspectTeacher",
    "ClassTeacher",
    "MadkdConfig",
    "MadkdDetectionConfig",
    "MadkdDetectionTrainer",
    "MadkdForImageClassification",
    "MadkdForObjectDetection",
    "MadkdTrainer",
    "MadkdTrainingArguments",
    "Reading",
    "attach_aspects",
    "attach_class_targets",
    "push_aspect_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_on_import.prepare()

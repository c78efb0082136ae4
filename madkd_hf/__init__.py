"""Multi-aspect knowledge distillation for the Hugging Face ecosystem."""

from . import _torchvision  # noqa: F401  # isort: skip  # before transformers looks for it

from transformers import AutoConfig, AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .aspects import Aspect, AspectBank
from .hub import push_aspect_dataset
from .labelling import attach_aspects
from .students.classification import MadkdConfig, MadkdForImageClassification, MadkdTrainer, MadkdTrainingArguments
from .students.detection import MadkdDetectionConfig, MadkdDetectionTrainer, MadkdForObjectDetection
from .students.models.modeling_madkd import AspectClassificationPipeline
from .teachers import Reading
from .teachers.mllm import AspectTeacher


__version__ = "0.1.0"
__all__ = [
    "Aspect",
    "AspectBank",
    "AspectTeacher",
    "MadkdConfig",
    "MadkdDetectionConfig",
    "MadkdDetectionTrainer",
    "MadkdForImageClassification",
    "MadkdForObjectDetection",
    "MadkdTrainer",
    "MadkdTrainingArguments",
    "Reading",
    "attach_aspects",
    "push_aspect_dataset",
]

AutoConfig.register("madkd", MadkdConfig, exist_ok=True)
AutoModelForImageClassification.register(MadkdConfig, MadkdForImageClassification, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "aspect-classification", AspectClassificationPipeline, pt_model=AutoModelForImageClassification, type="image"
)

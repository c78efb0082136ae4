"""Students that detect objects: any query-based detector of transformers, with yes/no aspects beside its classes."""

from transformers import AutoConfig, AutoModelForObjectDetection
from transformers.pipelines import PIPELINE_REGISTRY

from ..models.configuration_madkd_detection import MadkdDetectionConfig
from ..models.modeling_madkd_detection import AspectDetectionPipeline, MadkdForObjectDetection
from .trainer import MadkdDetectionTrainer


__all__ = ["MadkdDetectionConfig", "MadkdDetectionTrainer", "MadkdForObjectDetection"]

AutoConfig.register("madkd_detection", MadkdDetectionConfig, exist_ok=True)
AutoModelForObjectDetection.register(MadkdDetectionConfig, MadkdForObjectDetection, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "aspect-detection", AspectDetectionPipeline, pt_model=AutoModelForObjectDetection, type="image"
)

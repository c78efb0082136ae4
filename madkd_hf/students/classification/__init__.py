from ..base.training_args import MadkdTrainingArguments
from ..models.configuration_madkd import MadkdConfig
from ..models.modeling_madkd import MadkdForImageClassification
from .trainer import MadkdTrainer


__all__ = ["MadkdConfig", "MadkdForImageClassification", "MadkdTrainer", "MadkdTrainingArguments"]

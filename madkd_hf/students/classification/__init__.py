from ..base.training_args import MadkdTrainingArguments
from .configuration_madkd import MadkdConfig
from .modeling_madkd import MadkdForImageClassification
from .trainer import MadkdTrainer


__all__ = ["MadkdConfig", "MadkdForImageClassification", "MadkdTrainer", "MadkdTrainingArguments"]

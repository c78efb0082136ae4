from .configuration_madkd import MadkdConfig
from .modeling_madkd import MadkdForImageClassification
from .trainer import MadkdTrainer
from .training_args import MadkdTrainingArguments


__all__ = ["MadkdConfig", "MadkdForImageClassification", "MadkdTrainer", "MadkdTrainingArguments"]

"""What students minimise: one file a loss."""

from .base import NO_CLASS, UNCOUNTED, Loss, count_rows
from .madkd import MadkdLoss
from .madkd_detection import MadkdDetectionLoss
from .targets import TARGET_LOSSES, TargetLoss


__all__ = [
    "NO_CLASS",
    "TARGET_LOSSES",
    "UNCOUNTED",
    "Loss",
    "MadkdDetectionLoss",
    "MadkdLoss",
    "TargetLoss",
    "count_rows",
]

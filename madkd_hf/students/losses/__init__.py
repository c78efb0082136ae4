"""What students minimise: one file a loss."""

from .base import UNCOUNTED, Loss
from .madkd import MadkdLoss
from .madkd_detection import MadkdDetectionLoss


__all__ = ["UNCOUNTED", "Loss", "MadkdDetectionLoss", "MadkdLoss"]

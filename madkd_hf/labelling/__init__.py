from .job import attach_aspects
from .workers import FailedOnOtherRank, Workers


__all__ = ["FailedOnOtherRank", "Workers", "attach_aspects"]

from .job import attach_aspects
from .workers import FailedOnOtherRankError, Workers


__all__ = ["FailedOnOtherRankError", "Workers", "attach_aspects"]

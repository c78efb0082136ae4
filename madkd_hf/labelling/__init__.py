from .answer_files import read_answers_file
from .job import attach_aspects
from .recorded import attach_recorded_answers
from .workers import FailedOnOtherRankError, Workers


__all__ = ["FailedOnOtherRankError", "Workers", "attach_aspects", "attach_recorded_answers", "read_answers_file"]

from .answer_files import read_answers_file
from .attach import attach_aspects, attach_class_targets
from .recorded import attach_recorded_answers
from .workers import FailedOnOtherRankError, Workers


__all__ = [
    "FailedOnOtherRankError",
    "Workers",
    "attach_aspects",
    "attach_class_targets",
    "attach_recorded_answers",
    "read_answers_file",
]

from ..aspects import ASPECT_COLUMNS
from .columns import aspect_features, skipped_rows
from .job import attach_aspects
from .objects import one_row_an_object
from .workers import ToldElsewhere, Workers


__all__ = [
    "ASPECT_COLUMNS",
    "ToldElsewhere",
    "Workers",
    "aspect_features",
    "attach_aspects",
    "one_row_an_object",
    "skipped_rows",
]

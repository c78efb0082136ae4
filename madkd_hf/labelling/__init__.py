from ..aspects import ASPECT_COLUMNS
from ..data.columns import aspect_features, skipped_rows
from .job import attach_aspects
from .workers import ToldElsewhere, Workers


__all__ = [
    "ASPECT_COLUMNS",
    "ToldElsewhere",
    "Workers",
    "aspect_features",
    "attach_aspects",
    "skipped_rows",
]

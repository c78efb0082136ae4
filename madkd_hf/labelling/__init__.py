from .job import aspect_features, attach_aspects, skipped_rows
from .sources import ASPECT_COLUMNS
from .workers import ToldElsewhere, Workers


__all__ = ["ASPECT_COLUMNS", "ToldElsewhere", "Workers", "aspect_features", "attach_aspects", "skipped_rows"]

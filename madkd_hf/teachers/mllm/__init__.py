from .layout import UnreadableImage
from .teacher import AspectTeacher, Reading


__all__ = ["AspectTeacher", "Reading", "UnreadableImage"]

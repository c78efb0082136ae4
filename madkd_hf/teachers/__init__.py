from .base import Reading, Teacher, UnreadableImageError, load_teacher


__all__ = ["Reading", "Teacher", "UnreadableImageError", "load_teacher"]

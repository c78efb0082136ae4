from .base import Reading, Teacher, UnreadableImage, load_teacher


__all__ = ["Reading", "Teacher", "UnreadableImage", "load_teacher"]

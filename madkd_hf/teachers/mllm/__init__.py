from .teacher import AspectTeacher


__all__ = ["AspectTeacher"]

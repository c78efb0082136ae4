from .teacher import AspectTeacher, Reading


__all__ = ["AspectTeacher", "Reading"]

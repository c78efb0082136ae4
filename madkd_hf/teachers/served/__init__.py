"""Teachers behind a server."""

from .teacher import ServedTeacher


__all__ = ["ServedTeacher"]

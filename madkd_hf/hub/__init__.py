"""Aspect datasets and students on the Hub: prepared as a folder, checked, and pushed as one commit."""

from .dataset import push_aspect_dataset
from .student import push_student
from .upload import HubError, HubRepo


__all__ = ["HubError", "HubRepo", "push_aspect_dataset", "push_student"]

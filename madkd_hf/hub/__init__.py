"""Aspect datasets and students on the Hub: prepared as a folder, checked, and pushed as one commit."""

from .dataset import push_aspect_dataset
from .retries import HubError
from .student import push_student
from .upload import HubRepo


__all__ = ["HubError", "HubRepo", "push_aspect_dataset", "push_student"]

"""Aspect datasets and students on the Hub: prepared as a folder, checked, and pushed as one commit."""

from .dataset import push_aspect_dataset
from .upload import HubError, HubRepo


__all__ = ["HubError", "HubRepo", "push_aspect_dataset"]

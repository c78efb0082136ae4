"""Fields of the dataclasses that command lines are parsed into; light, since `--help` needs nothing else."""

from __future__ import annotations

from dataclasses import field
from typing import Any


CLASS_TARGET_LOSSES = ["soft", "kd", "dkd", "mlkd"]  # keys of `losses.TARGET_LOSSES`
IMAGE_STORES = ["auto", "disk", "device", "none"]


def option(default: Any, help: str, choices: list[str] | None = None) -> Any:
    """A field of a dataclass of options: its default (a list is copied for each instance) and its help."""
    metadata = {"help": help} | ({"choices": choices} if choices else {})
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)

"""What only a command line has to know of a task: one module each, named as the task is."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .base import TaskCommand


def command_of(task: str) -> TaskCommand:
    """What the commands know of a task in `madkd_hf.students.tasks.TASKS`."""
    return importlib.import_module(f"{__package__}.{task}").COMMAND

"""Where every command begins."""

from __future__ import annotations

import importlib

from . import interrupts


def run_command(module: str) -> None:
    """Import the module of a command, and call its `main`.

    Args:
        module: a name in this folder, or a whole one.
    """
    interrupts.watch()
    command = importlib.import_module(module if "." in module else f"{__package__}.{module}")
    from .arguments import run

    run(command.main)

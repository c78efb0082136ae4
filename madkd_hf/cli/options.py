"""What a command line means, before anything large is imported."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..students.tasks import TASKS


class OptionParser(ArgumentParser):
    """Takes some options off a command line."""

    def __init__(self, *options: str):
        super().__init__(add_help=False, allow_abbrev=False)
        for option in options:
            self.add_argument(option)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists all options.")


def task_of(argv: list[str]) -> str:
    """The task of a training: what its command line, or else its YAML, says, or follows from what it starts from.

    Raises:
        ValueError: there is no such task.
    """
    starts = {task.starts_from: name for name, task in TASKS.items()}
    given = vars(OptionParser("--config", "--task", *(f"--{option}" for option in starts)).parse_known_args(argv)[0])
    for options in (given, content_of(given["config"])):
        if name := options.get("task"):
            if name not in TASKS:
                raise ValueError(f"There is no task {name!r}: pass --task {' or '.join(TASKS)}.")
            return name
        for option, name in starts.items():
            if options.get(option):
                return name
    return next(iter(TASKS))


def content_of(config: str | None) -> dict[str, Any]:
    """What a YAML file says; nothing where it cannot be read, which the command itself tells."""
    try:
        content = yaml.safe_load(Path(config or "").expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}

"""What a command line means, before anything large is imported."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import NoReturn

import yaml


TASKS = {"classification": "train", "detection": "tasks.detection"}  # task -> the module that trains


class OptionParser(ArgumentParser):
    """Takes some options off a command line."""

    def __init__(self, *options: str):
        super().__init__(add_help=False, allow_abbrev=False)
        for option in options:
            self.add_argument(option)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists all options.")


def split_task(argv: list[str]) -> tuple[str, list[str]]:
    """The task that the command line of a training means, and its other words.

    Raises:
        ValueError: there is no such task.
    """
    given, others = OptionParser("--task").parse_known_args(argv)
    options, _ = OptionParser("--config", "--detector").parse_known_args(others)
    detects = options.detector is not None or (options.config and "detector" in keys_of(options.config))
    task = given.task or ("detection" if detects else "classification")
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}: pass --task {' or '.join(TASKS)}.")
    return task, others


def keys_of(config: str) -> list[str]:
    """The options in a YAML file; none where it cannot be read, which the command itself tells."""
    try:
        content = yaml.safe_load(Path(config).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return list(content) if isinstance(content, dict) else []

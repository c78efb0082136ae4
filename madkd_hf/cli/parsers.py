"""The parser of each command: which options it has, and which command has given options."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from .arguments import CommandParser


GROUPS = {  # command -> its groups of options, in its module
    "label": ("LabelArguments",),
    "ask": ("ClassNameArguments", "QuestionArguments", "LLMArguments"),
    "choose": ("ChooseArguments",),
    "compare": ("CompareArguments", "TaskArguments"),
    "tune": ("TuneArguments",),
}
TRAINING_OPTIONS = {"backbone", "detector", "aspect_alpha", "learning_rate", "num_train_epochs", "max_steps"}


def parser_of(command: str) -> CommandParser:
    """The parser of any command but `train`, whose options take seconds to import."""
    module = importlib.import_module(f"{__package__}.{command}")
    return CommandParser(*(getattr(module, name) for name in GROUPS[command]), description=module.__doc__)


def command_for(options: Iterable[str], known: Iterable[str]) -> str | None:
    """The command that has all these options, if there is one; two options of a training mean `train`.

    Args:
        known: the options of the command that was given these, and that does not have them all.
    """
    options = set(options)
    for command in GROUPS:
        if options <= {action.dest for action in parser_of(command)._actions}:
            return command
    return "train" if len(options & TRAINING_OPTIONS - set(known)) > 1 else None

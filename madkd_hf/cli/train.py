"""Train a student of any task: `--task` says which, or the options do; see `cli/tasks/` for what each task adds."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..students.tasks import TASKS
from ..text import terminal
from .arguments import CommandParser
from .options import task_of, training_options
from .outputs import STUDENT, check_place, working_in
from .tasks import command_of


if TYPE_CHECKING:
    from ..students.base.distilling import DistillingTrainer
    from ..students.base.training_args import MadkdTrainingArguments
    from .tasks.base import TrainArguments


def parse(argv: list[str] | None = None) -> tuple[TrainArguments, MadkdTrainingArguments]:
    """The options of a student, and of its training; `argv` is the command line, by default that of this process."""
    argv = sys.argv[1:] if argv is None else argv
    task = task_of(argv)
    if options := training_options():
        parser = parser_of(task, options)
        if {"-h", "--help"} & set(argv):
            parser.parse_args(["--help"])
        parser.check_names(argv)
    from ..students.base.training_args import MadkdTrainingArguments

    args, *groups, training_args = parser_of(task, MadkdTrainingArguments).parse(argv)
    args.task = task
    for name, group in zip(command_of(task).more_arguments, groups):
        setattr(args, name, group)
    return args, training_args


def parser_of(task: str, training_arguments: type) -> CommandParser:
    """The parser of a training of this task."""
    command = command_of(task)
    groups = (command.arguments, *command.more_arguments.values(), training_arguments)
    return CommandParser(*groups, description=command.description)


def main() -> None:
    args, training_args = parse()
    from .student import check, publish, train

    place = (training_args.output_dir, args, "student", STUDENT)
    ready = check(args, training_args, partial(check_place, *place))
    with working_in(*place, training_args.process_index == 0):
        trainer = train(args, training_args, ready)
        if trainer.is_world_process_zero():
            print_where(args.task, trainer)
        if training_args.push_to_hub and (url := publish(trainer, args)):
            print(f"Published: {terminal(url)}")


def print_where(task: str, trainer: DistillingTrainer) -> None:
    """Print where the student and its numbers are, and how to use it."""
    folder = trainer.args.output_dir
    pipeline = TASKS[task].pipelines[trainer.model.config.num_aspects > 0]
    print(
        f"The student is in {folder}; its numbers in {Path(folder) / 'all_results.json'}. Use it:\n"
        f'  pipeline("{pipeline}", "{folder}", trust_remote_code=True)'
    )

"""Writes docs/commands.md, the options of every command, from their parsers: python docs/make_commands.py"""

from __future__ import annotations

from argparse import SUPPRESS, Action
from dataclasses import fields
from pathlib import Path

from transformers import TrainingArguments

from madkd_hf import MadkdTrainingArguments
from madkd_hf.cli.arguments import CommandParser, parser_of
from madkd_hf.cli.main import COMMANDS, LAUNCHED
from madkd_hf.cli.tasks import command_of
from madkd_hf.students.tasks import TASKS


HEAD = """<!-- Written by `python docs/make_commands.py`. To change it, change the help of an option. -->

# Commands

Each option may also stand in a YAML file of `option: value` lines, given by `--config FILE.yaml`. The command line
wins over the file, and what the file names is looked for beside it first. `madkd COMMAND --help` shows the same with
examples.
"""
LAUNCH = """
`--num_processes N`, or `--config_file FILE` with a configuration of accelerate, starts several processes. Other
options of `accelerate launch` may follow.
"""
TRAINER = """
Beside these, every option of
[`TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments).
"""


def table(title: str, actions: list[Action]) -> str:
    """One line an option."""
    lines = [f"\n### {title}\n"] if title else [""]
    return "\n".join([*lines, "| option | what it says | default |", "| --- | --- | --- |", *map(_line, actions), ""])


def _line(action: Action) -> str:
    said = " ".join((action.help or "").replace("%%", "%").split())
    if action.choices and set(map(str, action.choices)) != {"True", "False"}:
        said += f" One of {', '.join(map(str, action.choices))}."
    default = action.default
    default = " ".join(map(str, default)) if isinstance(default, list) else default
    default = str(default).lower() if isinstance(default, bool) else default
    default = "" if default in (None, SUPPRESS, "") else f"`{default}`"
    return f"| `--{action.dest}` | {said} | {default} |".replace("<", "&lt;")


def options_of(parser: CommandParser) -> dict[str, Action]:
    """The options of a command, without `--help` and `--config`, and without `--no_x` beside `--x`."""
    actions = [action for action in parser._actions if not action.option_strings[0].startswith("--no_")]
    return {action.dest: action for action in actions if action.dest not in ("help", "config")}


def training() -> str:
    """What all trainings have, and what those of one task have."""
    of_trainer = {field.name for field in fields(TrainingArguments)}
    tasks = {}
    for task in TASKS:
        command = command_of(task)
        groups = (command.arguments, *command.more_arguments.values(), MadkdTrainingArguments)
        options = options_of(CommandParser(*groups, description=""))
        tasks[task] = {name: action for name, action in options.items() if name not in of_trainer}
    shared = set.intersection(*map(set, tasks.values()))
    text = table("", [action for name, action in next(iter(tasks.values())).items() if name in shared])
    for task, options in tasks.items():
        text += table(f"For {task}", [action for name, action in options.items() if name not in shared])
    return text + TRAINER


def reference() -> str:
    """The whole page."""
    text = HEAD
    for command, purpose in COMMANDS.items():
        text += f"\n## madkd {command}\n\n{purpose}\n"
        text += LAUNCH if command in LAUNCHED else ""
        text += training() if command == "train" else table("", list(options_of(parser_of(command)).values()))
    return text


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(reference(), encoding="utf-8")

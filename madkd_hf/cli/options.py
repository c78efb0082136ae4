"""What can be read off a command line before anything large is imported: the task, and paths that do not exist."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
from argparse import SUPPRESS, ArgumentParser
from dataclasses import field, make_dataclass
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from ..data.names import looks_like_path, similar
from ..students.base.fields import CLASS_TARGET_LOSSES, IMAGE_STORES, option
from ..students.tasks import TASKS


# options that name something here or on the Hub
NAMED = ("dataset", "student", "bank", "teacher", "class_teacher", "backbone", "detector")


class OptionParser(ArgumentParser):
    """Takes some options off a command line."""

    def __init__(self, *options: str):
        super().__init__(add_help=False, allow_abbrev=False)
        for name in options:
            self.add_argument(name)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists all options.")


def task_of(argv: list[str]) -> str:
    """The task of a training: --task, or else that of --backbone or --detector, by command line or YAML."""
    starts = {task.starts_from: name for name, task in TASKS.items()}
    given = vars(OptionParser("--config", "--task", *(f"--{option}" for option in starts)).parse_known_args(argv)[0])
    for options in (given, content_of(given["config"])):
        if name := options.get("task"):
            if name not in TASKS:
                raise ValueError(f"There is no task {name!r}: pass --task {' or '.join(TASKS)}.")
            return name
        for start, name in starts.items():
            if options.get(start):
                return name
    return next(iter(TASKS))


@functools.cache
def training_options() -> type | None:
    """A stand-in for `MadkdTrainingArguments`, whose import takes seconds: the same options, with types and help.

    They are read off its source, and what they name is made here; None where that is not as expected.
    """
    library = Path(importlib.util.find_spec("transformers").submodule_search_locations[0])
    own = Path(__file__).parents[1] / "students" / "base" / "training_args.py"
    levels = dict.fromkeys(("detail", "debug", "info", "warning", "error", "critical", "passive"))
    names = {"Any": Any, "Literal": Literal, "field": field, "option": option}
    names |= {"IMAGE_STORES": IMAGE_STORES, "CLASS_TARGET_LOSSES": CLASS_TARGET_LOSSES}
    names |= {"ExplicitEnum": Enum, "ParallelismConfig": Any, "trainer_log_levels": levels}
    names["default_optim"] = SUPPRESS  # it depends on torch: the help names no default
    options = {}
    try:
        files = (*(library / f"{name}.py" for name in ("debug_utils", "trainer_utils", "training_args")), own)
        for definition in chain.from_iterable(map(_classes, files)):
            if "ExplicitEnum" in map(ast.unparse, definition.bases):
                exec(ast.unparse(definition), names)
            elif definition.name in ("TrainingArguments", "MadkdTrainingArguments"):
                for line in (line for line in definition.body if isinstance(line, ast.AnnAssign)):
                    kind, default = (eval(ast.unparse(part), names) for part in (line.annotation, line.value))
                    options[line.target.id] = (line.target.id, kind, default)
    except Exception:  # another version of transformers may hold anything
        return None
    return make_dataclass("TrainingOptions", options.values()) if "output_dir" in options else None


def _classes(file: Path) -> list[ast.ClassDef]:
    return [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]


def content_of(config: str | None) -> dict[str, Any]:
    """The content of a YAML file; {} where it cannot be read, which the command itself reports."""
    try:
        content = yaml.safe_load(Path(config or "").expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def check_paths(argv: list[str]) -> None:
    """Refuse paths that do not exist, without asking the Hub for them; the message names a similar one."""
    for word in argv:
        value = word.partition("=")[2] if word.startswith("--") else word
        if value.startswith("~") and "/" in value and os.path.expanduser(value) == value:
            raise ValueError(f"There is no user whose folder {value.partition('/')[0]} is: pass the whole path.")
    given = vars(OptionParser(*(f"--{name}" for name in NAMED)).parse_known_args(argv)[0])
    for name, value in given.items():
        if (
            value
            and not value.endswith((".yaml", ".yml"))
            and ":" not in value
            and not Path(value).expanduser().exists()
            and looks_like_path(value)
        ):
            alternatives = "a Hub id, or module:function" if name == "dataset" else "or a Hub id"
            remedy = f"pass --{name} with a folder that exists, {alternatives}"
            raise ValueError(f"There is no folder {value} here{similar(Path(value))}: {remedy}.")

"""What can be read off a command line before anything large is imported: the task, and paths that do not exist."""

from __future__ import annotations

import ast
import functools
import importlib.util
from argparse import ArgumentParser
from contextlib import suppress
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..data.names import looks_like_path, similar
from ..students.base.fields import option
from ..students.tasks import TASKS


NAMED = ("dataset", "bank", "teacher", "backbone", "detector")  # options that name something here or on the Hub


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
    """A stand-in for `MadkdTrainingArguments`, whose import takes seconds: its options with their help and defaults.

    They are read off its source, and all of them are texts; None where that is not as expected.
    """
    folder = importlib.util.find_spec("transformers").submodule_search_locations[0]
    own = Path(__file__).parents[1] / "students" / "base" / "training_args.py"
    options = {}
    for name, file in ("TrainingArguments", Path(folder, "training_args.py")), ("MadkdTrainingArguments", own):
        try:
            nodes = ast.parse(file.read_text(encoding="utf-8")).body
        except (OSError, SyntaxError):
            return None
        fields = [line for node in nodes if getattr(node, "name", "") == name for line in node.body]
        options |= {line.target.id: _option(line.value) for line in fields if isinstance(line, ast.AnnAssign)}
        if not fields:
            return None
    return make_dataclass("TrainingOptions", [(name, str, one) for name, one in options.items()])


def _option(call: ast.expr | None) -> Any:
    """An option with the default and the help of `option(...)` or `field(...)`, where these are literals."""
    literals = {}
    positional = zip(("default", "help"), getattr(call, "args", []))
    for name, value in [*positional, *((keyword.arg, keyword.value) for keyword in getattr(call, "keywords", []))]:
        with suppress(ValueError):
            literals[name] = ast.literal_eval(value)
    help = literals.get("help") or literals.get("metadata", {}).get("help", "")
    return option(literals.get("default"), help)


def content_of(config: str | None) -> dict[str, Any]:
    """The content of a YAML file; {} where it cannot be read, which the command itself reports."""
    try:
        content = yaml.safe_load(Path(config or "").expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def check_paths(argv: list[str]) -> None:
    """Refuse paths that do not exist, without asking the Hub for them; the message names a similar one."""
    given = vars(OptionParser(*(f"--{name}" for name in NAMED)).parse_known_args(argv)[0])
    for name, value in given.items():
        if value and ":" not in value and not Path(value).expanduser().exists() and looks_like_path(value):
            alternatives = "a Hub id, or module:function" if name == "dataset" else "or a Hub id"
            remedy = f"pass --{name} with a folder that exists, {alternatives}"
            raise ValueError(f"There is no folder {value} here{similar(Path(value))}: {remedy}.")

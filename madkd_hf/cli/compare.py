"""Compare students over seeds: base, distilled, and two controls that a real gain must beat.

On request (--conditions ... smoothing) a third control is compared: the base student with smoothed labels.
Of detectors (task: detection), two are distilled: with aspects of the image, and with aspects of each object; each
has a shuffled control of its own.

A seed redraws both the training images and the initialisation. The teacher labels the images once; finished students
are kept, so that the same command goes on where it stopped. Leaves report.json, report.md, figures/, the labelled
dataset and one distilled student in --output_dir, and with --push_to_hub publishes that student, its card holding the
comparison. (The token is HF_TOKEN, or the one that `hf auth login` stored.)

    madkd compare --config recipes/easy_vqa/compare.yaml --output_dir runs/demo
    madkd compare --config recipes/easy_vqa/detect_compare.yaml --output_dir runs/detect

With a larger classifier as class teacher, the students of its scores (knowledge distillation) are rivals:

    madkd compare --config recipes/easy_vqa/compare.yaml --class_teacher larger.yaml --output_dir runs/rivals

Several files are compared after each other, each in a folder of its own, and end in one table; other options hold for
all of them:

    madkd compare --config recipes/dtd/compare.yaml recipes/cub200/compare.yaml --output_dir runs/compared
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.problems import Problems
from ..files import check_name
from .arguments import ClassArguments, CommandParser, ObjectArguments
from .comparison.options import CompareArguments, TaskArguments, check_given
from .options import OptionParser


OF_ONE = ("work_dir", "hub_model_id")  # options that no two comparisons share


def parse(args: list[str] | None = None) -> CompareArguments:
    """The options; those that say nothing about the task are refused."""
    compared, compared.objects = CommandParser(CompareArguments, TaskArguments, description=__doc__).parse(args)
    if compared.detects:
        unusable = [name for name in ClassArguments.__annotations__ if _changed(compared, name)]
        unusable += [name for name in ("grid", "smoothing", "class_teacher") if _changed(compared, name)]
    else:
        unusable = [name for name in ObjectArguments.__dataclass_fields__ if _changed(compared.objects, name)]
    if unusable:
        other = "classification" if compared.detects else "detection"
        raise ValueError(f"{unusable[0]} is for task: {other}, and this is {compared.objects.task}: leave it out.")
    return compared


def _changed(args: Any, name: str) -> bool:
    return getattr(args, name) != type(args).__dataclass_fields__[name].default


def split_configs(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files behind --config, and all other words of a command line."""
    parser = OptionParser()
    parser.add_argument("--config", nargs="*", action="extend", default=[])
    parsed, words = parser.parse_known_args(argv)
    return parsed.config, words


def folder_of(config: str) -> str:
    """The name of a comparison's folder, that of its file: recipes/dtd/compare.yaml is `dtd`, dtd/few.yaml `dtd-few`.

    It does not depend on the other files: with one more of them, the same command goes on.
    """
    path = Path(os.path.abspath(os.path.expanduser(config)))
    folder, name = path.parent.name, path.stem
    return check_name("-".join(filter(None, [folder, name if name != "compare" or not folder else ""])), "comparison")


def parse_all(configs: Sequence[str], words: Sequence[str]) -> tuple[list[tuple[str, CompareArguments]], str]:
    """The options of several comparisons, each with its file, and the folder for all of them.

    Raises:
        ValueError: all that is wrong with any of them, or two that would get into each other's way.
    """
    given, problems, parsed = OptionParser("--output_dir").parse_known_args(words)[0].output_dir, Problems(), []
    if not given:
        raise ValueError("No output_dir given: several comparisons need one folder for all, pass --output_dir.")
    output_dir = os.path.expanduser(given)
    for config in configs:
        with problems.noted():
            parsed.append((config, _parse_one(config, words, output_dir)))
    for option in ("output_dir", *OF_ONE):
        first: dict[str, str] = {}
        for config, args in parsed:
            value = getattr(args, option)
            if value and value in first:
                remedy = "rename a file" if option == "output_dir" else "leave it off the command line"
                problems.add(
                    f"{first[value]} and {config} have the same {option}, {value}: {remedy}, or compare one of them "
                    "in a command of its own."
                )
            first.setdefault(value, config)
    problems.raise_all()
    return parsed, output_dir


def _parse_one(config: str, words: Sequence[str], output_dir: str) -> CompareArguments:
    try:
        args = parse(["--config", config, *words, "--output_dir", os.path.join(output_dir, folder_of(config))])
        check_given(args)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if config in text else f"{config}: {text}") from error
    return args


def main() -> None:
    configs, words = split_configs(sys.argv[1:])
    if len(configs) > 1 and not {"-h", "--help"} & set(words):
        parsed, output_dir = parse_all(configs, words)
        from .comparison.several import compare_all

        return compare_all(parsed, output_dir)
    args = parse()
    check_given(args)
    from .comparison.run import compare

    compare(args)

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
"""

from __future__ import annotations

from typing import Any

from .arguments import ClassArguments, CommandParser, ObjectArguments
from .comparison.options import CompareArguments, TaskArguments, check_given


def parse(args: list[str] | None = None) -> CompareArguments:
    """The options; those that say nothing about the task are refused."""
    compared, compared.objects = CommandParser(CompareArguments, TaskArguments, description=__doc__).parse(args)
    if compared.detects:
        unusable = [name for name in ClassArguments.__annotations__ if _changed(compared, name)]
        unusable += [name for name in ("grid", "smoothing") if _changed(compared, name)]
    else:
        unusable = [name for name in ObjectArguments.__dataclass_fields__ if _changed(compared.objects, name)]
    if unusable:
        other = "classification" if compared.detects else "detection"
        raise ValueError(f"{unusable[0]} is for task: {other}, and this is {compared.objects.task}: leave it out.")
    return compared


def _changed(args: Any, name: str) -> bool:
    return getattr(args, name) != type(args).__dataclass_fields__[name].default


def main() -> None:
    args = parse()
    check_given(args)
    from .comparison.run import compare

    compare(args)

"""What a comparison is told: which students, of which task, on what, how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...students.base.fields import option
from ...students.tasks import TASKS
from ..arguments import ClassArguments, HubArguments, ObjectArguments
from ..tasks import command_of
from ..teachers import OwnTeacherArguments


if TYPE_CHECKING:
    from ..tasks.base import TaskCommand


@dataclass
class TaskArguments(ObjectArguments):
    """What the students do, and for detectors their objects."""

    _argument_group_name = "task"

    task: str = option(
        "classification", "What the students do; the options after this one are for detection.", list(TASKS)
    )


@dataclass
class CompareArguments(OwnTeacherArguments, ClassArguments, HubArguments):
    """What is compared, on what, how often."""

    _argument_group_name = "comparison"

    output_dir: str = option("", "The folder for report, figures and students.")
    baseline: str = option("", "YAML of a training of that task (`madkd train`) for the students without aspects.")
    distill: str = option("", "Likewise for the distilled ones and their controls; by default that of the baseline.")
    distill_unlabelled: str = option(
        "", "Likewise for those that learn from images without a class; by default that of the distilled ones."
    )
    class_teacher: str = option(
        "",
        "Likewise for a larger classifier, trained on the same labelled images: its class scores of all training "
        "images teach the students of kd (by the KD loss) and kd_aspects.",
    )
    conditions: list[str] = option(
        [],
        "For classification: base, madkd, shuffled, constant by default, and smoothing; with --unlabelled or "
        "--rest_unlabelled also unlabelled, posterior, both, each with _shuffled behind it, and selftrain; with "
        "--class_teacher also class_teacher, kd and kd_aspects; for "
        "detection: base, image, image_shuffled, object, shuffled, constant, all by default.",
    )
    smoothing: float = option(
        0.1, "Label smoothing of the condition `smoothing`: classes alone, with the settings of the base students."
    )
    seeds: int = option(5, "Students per condition; each redraws images and weights.")
    grid: str = option(
        "{}",
        "JSON: option of `madkd train`, or `aspects` (how many), -> values: '{\"images_per_class\": [5, 10, 20]}'; "
        "every condition and seed is trained at every point. With one value each, as in '{\"max_steps\": [500]}', "
        "they hold for all students that know the option.",
    )
    jobs: int | None = option(
        None, "Students trained side by side, one thread each; by default one per GPU, or without GPUs one per core."
    )
    push_to_hub: bool = option(False, "Publish the distilled student that is kept, with what was found.")
    hub_model_id: str | None = option(None, "Where to: owner/name, or a name of your own.")
    hub_license: str | None = option(None, "Licence of the published student, as the Hub calls it.")
    push_plain: bool = option(False, "Publish the plain model: no remote code, the same class scores, no aspects.")
    objects: TaskArguments = field(default_factory=TaskArguments, init=False)

    @property
    def detects(self) -> bool:
        return self.objects.task == "detection"

    @property
    def command(self) -> TaskCommand:
        """What the commands know of the students' task."""
        return command_of(self.objects.task)

    @property
    def learning_unlabelled(self) -> list[str]:
        """The conditions among those asked for whose students learn from images without a class."""
        there = self.unlabelled or self.rest_unlabelled or set(self.controls()) & set(self.command.of_unlabelled)
        kd = self.command.of_class_teacher if there else ()
        return [name for name in self.controls() if name in (*self.command.of_unlabelled, *kd)]

    @property
    def treated(self) -> str:
        """The condition whose gain counts: its students learn aspects, of detectors those of each object."""
        from ...report.comparison import TERMS

        return TERMS[self.objects.task].treated_among(self.controls())

    def controls(self) -> dict[str, str]:
        """The conditions that were asked for, each with the control that its students' aspects are."""
        known = self.command.controls
        if unknown := set(self.conditions) - set(known):
            raise ValueError(f"Unknown condition {unknown.pop()!r}: expected some of {list(known)}.")
        return {name: known[name] for name in self.conditions or self.command.default_conditions(self)}


def check_given(args: CompareArguments) -> None:
    """Refuse what is missing. Without `distill`, all students are trained by the YAML of the baseline."""
    args.distill = args.distill or args.baseline
    args.distill_unlabelled = args.distill_unlabelled or args.distill
    for name in ("output_dir", "baseline"):
        if not getattr(args, name):
            raise ValueError(f"No {name} given: pass --{name} (see --help).")
    for name in ("baseline", "distill", "distill_unlabelled", *(["class_teacher"] if args.class_teacher else [])):
        if not Path(getattr(args, name)).is_file():
            raise ValueError(
                f"There is no file {getattr(args, name)}: pass --{name} with the YAML of a training that exists."
            )

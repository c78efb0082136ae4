"""Which students are compared: conditions, seeds, and the points of a grid."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ... import AspectBank, MadkdTrainingArguments
from ...data.class_targets import without_class_targets
from ...data.columns import CLASS_LOGITS, is_labelled
from ...data.problems import Problems
from ...data.unlabelled import UNLABELLED
from ...data.variants import subset
from ...files import check_output, check_removable
from ...teachers import Teacher
from .. import label as label_command
from .. import train
from ..arguments import DatasetArguments, ObjectArguments
from ..outputs import COMPARING, COMPARISON, check_place
from ..preflight import Ready, check_comparison
from ..tasks.base import TestUse
from .cells import Cell, cell_name
from .options import CompareArguments, check_given


LABELLED, LABELLED_IMAGES = "labelled", "labelled_images"  # folders; the second one beside answers about objects
OF_UNLABELLED = (  # options of students that learn from images without a class
    *("unlabelled_images", "labelled_fraction", "self_training", "class_alpha", "class_target_loss", "temperature"),
    *("standardize_logits", "target_confidence", "target_ramp_up"),
)
OF_LABELLED = ("class_alpha", "temperature", "standardize_logits")  # which are no less about images with a class
DRAWS = ("images_per_class",)  # the one option of a grid that a class teacher knows
OF_ASPECTS = ("aspect_alpha", "aspects")  # a student without aspects has neither
DATA_OF_ALL = ("limit", "test_fraction")  # which images there are: the comparison applies its own for all students
COMPARED = {  # options of a student that the comparison sets itself
    *("config", "seed", "output_dir", "dataset", "bank", "teacher", "aspect_control", "do_predict", "teacher_options"),
    *("push_to_hub", "on_error", "image_column", "label_column", "train_split", "eval_split", "test_split"),
    *("validation_fraction", *DATA_OF_ALL, "unlabelled", "rest_unlabelled", "class_posterior"),
}


def load_checked(
    args: CompareArguments, problems: Problems, students: list[tuple[Any, Any]] | None, test: TestUse
) -> Ready:
    """The dataset, after all checks that need no teacher; see `preflight.check_comparison`."""
    for point in (problems.step(points, args) or []) if args.bank else []:
        if "aspects" in point:
            problems.step(lambda count: check_aspect_count(count, AspectBank.load(args.bank)), point["aspects"])
    return check_comparison(problems, args.command, args, students or [], test)


def label(args: CompareArguments, splits: DatasetDict) -> tuple[DatasetDict, AspectBank, Teacher | None]:
    """The labelled dataset in the output folder: training images, and validation images for the aspects' curves.

    One that is labelled already needs no teacher.
    Of detectors, the objects in them; a second dataset there has the images labelled, for the conditions about images.
    """
    splits = _without_class_targets(splits)
    if is_labelled(splits[args.train_split].features):
        bank = AspectBank.load(args.bank or args.dataset, None if args.bank else args.dataset_revision)
        label_command.save(splits, bank, Path(args.output_dir) / LABELLED)
        return splits, bank, None
    shared = {name: getattr(args, name) for name in DatasetArguments.__dataclass_fields__}
    shared |= vars(args.teacher_arguments())
    places = {LABELLED: {}}
    if args.detects:
        places = {LABELLED: args.objects.boxes}
        places |= {LABELLED_IMAGES: {}} if set(args.command.about_images) & set(args.controls()) else {}
    results, names = {}, [name for name in (args.train_split, args.eval_split, UNLABELLED) if name in splits]
    for place, boxes in places.items():
        if args.work_dir and place != LABELLED:
            shared["work_dir"] = f"{args.work_dir}_{place}"  # a job of its own
        label_args = label_command.LabelArguments(**shared, **boxes, splits=names)
        results[place] = label_command.label(label_args, splits)
        label_command.save(*results[place][:2], Path(args.output_dir) / place)
    return results[LABELLED]


def _without_class_targets(splits: DatasetDict) -> DatasetDict:
    """The splits without class targets that the dataset has: those of a comparison are of its own draws."""
    if (without := without_class_targets(splits)) is not splits:
        print(
            f"The {CLASS_LOGITS} that the dataset has are left out: each seed of a comparison has its own.", flush=True
        )
    return without


def read_grid(text: str, name: str = "grid") -> dict[str, list[Any]]:
    """Option -> values, of a JSON object; what reads as a number is one (YAML takes 1e-3 for a word)."""
    try:
        grid = json.loads(text)
    except ValueError:
        grid = None
    if not isinstance(grid, dict):
        raise ValueError(f"{name} is option -> values, as in '{{\"images_per_class\": [5, 10]}}'; received {text!r}.")
    for option, values in grid.items():
        if option in COMPARED:
            raise ValueError(f"The option {option!r} of {name} is the comparison's own business: leave it out.")
        if not isinstance(values, list) or not values or any(isinstance(v, (list, dict, type(None))) for v in values):
            raise ValueError(f"The option {option!r} of {name} needs a list of numbers or words; got {values!r}.")
        grid[option] = [_number(value) for value in values]
    return grid


def _number(value: Any) -> Any:
    for kind in (int, float) if isinstance(value, str) else ():
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def points(args: CompareArguments) -> list[dict[str, Any]]:
    """The grid's points, option -> value; a single one without options where there is no grid."""
    grid = {} if settings_of_all(args) else read_grid(args.grid)
    return [dict(zip(grid, values)) for values in itertools.product(*grid.values())]


def settings_of_all(args: CompareArguments) -> dict[str, Any]:
    """Options of a grid with one value each: they hold for all students, and there is no grid then.

    One that decides what the students see remains a grid, whose report says so.
    """
    grid = read_grid(args.grid)
    if any(len(values) > 1 for values in grid.values()) or grid.keys() & {*DRAWS, "aspects", "unlabelled_images"}:
        return {}
    return {option: value for option, (value,) in grid.items()}


def check(args: CompareArguments) -> list[tuple[Any, MadkdTrainingArguments]]:
    """The arguments of each student and of its training, at every point, of every condition; refuses what would fail
    after labelling. Sets `images_per_class` where all students have it from their YAML."""
    check_given(args)
    if args.seeds < 1 or (args.jobs is not None and args.jobs < 1):
        raise ValueError(f"At least one seed and one job are needed; received seeds={args.seeds}, jobs={args.jobs}.")
    check_class_teacher(args)
    given = [f"--{name}" for name in ("unlabelled", "rest_unlabelled", "unlabelled_images") if getattr(args, name)]
    if given and not args.learning_unlabelled:
        raise ValueError(
            f"None of the conditions {', '.join(args.controls())} learns from images without a class: leave "
            f"{' and '.join(given)} out, or add both, posterior or unlabelled to --conditions."
        )
    if args.class_posterior:
        raise ValueError("--class_posterior is what the conditions posterior and both are: leave it out.")
    if "smoothing" in args.controls() and not 0 < args.smoothing <= 1:
        raise ValueError(f"--smoothing must be above 0 and at most 1, mostly 0.1; received {args.smoothing:g}.")
    students, seen, trained = [], {}, list(args.controls())
    if set(trained) & set(args.command.of_class_teacher):  # who learn from it, whether or not it is compared itself
        trained = list(dict.fromkeys([*trained, args.command.class_teacher]))
    for point, condition in itertools.product(points(args), trained):
        settings = of_condition(args, point, condition)
        settings.pop("aspects", None)
        argv = student_argv(args, condition, 0, args.output_dir)
        student, training = train.parse([*argv, *(f"--{k}={v}" for k, v in settings.items())])
        check_unlabelled_settings(args, condition, training)
        if "smoothing" in args.controls() and condition == "base":
            check_smoothing(args, training)
        check_output(args.output_dir, getattr(student, args.command.task.starts_from))
        students.append((student, training))
        check_own_images(args, condition, student, seen.setdefault(str(point), {}))
    if not args.detects and "images_per_class" not in read_grid(args.grid):
        args.images_per_class = students[0][0].images_per_class  # which may be from the YAML of the students
    check_place(args.output_dir, args, COMPARING, COMPARISON)
    check_removable(Path(args.output_dir) / "student", "student")
    return students


def check_own_images(args: CompareArguments, condition: str, student: Any, seen: dict[str, dict[Any, str]]) -> None:
    """Raise ValueError where the YAML of these students names images that those compared with them do not see.

    Args:
        seen: of the students before at this point: option -> its values, each with the condition that has it first.
    """
    named = getattr(student, "unlabelled", None)
    if named and not (args.unlabelled and condition in args.learning_unlabelled):
        raise ValueError(
            f"The YAML of the students of {condition!r} sets unlabelled: {named}: leave it out there, and pass "
            "--unlabelled to the comparison, which says who learns from it."
        )
    values = {"scenes" if args.detects else "images_per_class": args.command.drawn(student)}
    values |= {option: getattr(student, option) for option in DATA_OF_ALL}
    for option, value in values.items():
        seen.setdefault(option, {}).setdefault(value, condition)
        if len(seen[option]) > 1:
            missing = "none" if option == "test_fraction" else "all"
            said = [f"{missing if value is None else value} by {name!r}" for value, name in seen[option].items()]
            raise ValueError(
                f"The students draw other images, {option} {' and '.join(said)}: pass --{option} to the comparison."
            )


def check_class_teacher(args: CompareArguments) -> None:
    """Raise ValueError for students of a class teacher without one, and the other way round."""
    taught = [name for name in args.controls() if name in (args.command.class_teacher, *args.command.of_class_teacher)]
    if taught and not args.class_teacher:
        raise ValueError(
            f"The condition {taught[0]!r} needs a class teacher: pass --class_teacher with the YAML of its training."
        )
    if args.class_teacher and not taught:
        raise ValueError(
            f"None of the conditions {', '.join(args.controls())} needs a class teacher: leave --class_teacher out, "
            "or add class_teacher, kd or kd_aspects to --conditions."
        )


def check_aspect_count(count: Any, bank: AspectBank) -> None:
    """Raise ValueError where a grid asks for more questions than there are, or for a part of one."""
    if count not in range(1, len(bank) + 1):
        raise ValueError(f"The grid asks for {count} aspects; the bank has {len(bank)}.")


def check_unlabelled_settings(args: CompareArguments, condition: str, training: MadkdTrainingArguments) -> None:
    """Raise ValueError for settings with which students of this condition could not be trained, or learn nothing."""
    of_unlabelled = condition in args.learning_unlabelled
    if training.labelled_fraction and not of_unlabelled:
        raise ValueError(
            f"labelled_fraction={training.labelled_fraction} is for students that learn from images without a class, "
            f"and those of {condition!r} do not: leave it out of their YAML, and put it into --distill_unlabelled."
        )
    name = condition.removesuffix("_shuffled")
    kd = args.command.of_class_teacher
    weights = {"aspect_alpha": ("unlabelled", "both", *kd[1:]), "class_alpha": ("posterior", "both", "selftrain", *kd)}
    for weight, names in weights.items():
        if name in names and not getattr(training, weight):
            file = "--distill_unlabelled" if of_unlabelled else "--distill"
            raise ValueError(f"With {weight} 0, {condition!r} is nothing new: set it in {file}.")
    if condition == "selftrain" and training.mixup_alpha:
        raise ValueError("self_training and mixup_alpha do not go together: leave selftrain out of --conditions.")


def check_smoothing(args: CompareArguments, of_base: MadkdTrainingArguments) -> None:
    """Raise ValueError where students with smoothed labels would be the base students once more."""
    if args.smoothing == of_base.label_smoothing_factor:
        raise ValueError(
            f"The base students have label_smoothing_factor {args.smoothing:g} already, as those of the condition "
            "smoothing: pass another --smoothing, or leave it out of --conditions."
        )


def of_condition(args: CompareArguments, point: dict[str, Any], condition: str) -> dict[str, Any]:
    """The point's options that are about these students."""
    if condition == args.command.class_teacher:
        return {option: value for option, value in point.items() if option in DRAWS}
    others = OF_ASPECTS if condition in args.command.without_aspects else ()
    if condition in args.command.of_class_teacher:
        others += ("class_target_loss", "self_training")  # which are given
        about = () if condition in args.learning_unlabelled else OF_UNLABELLED
        others += tuple(name for name in about if name not in OF_LABELLED)
    elif condition in args.command.of_unlabelled:
        others = others[:1]  # of fewer questions, a posterior knows the answers to these
        others += () if condition == "selftrain" else ("self_training",)
    else:
        others += OF_UNLABELLED
    others += ("label_smoothing_factor",) if condition == "smoothing" else ()
    return {option: value for option, value in point.items() if option not in others}


def plan(
    args: CompareArguments, point: dict[str, Any], labelled: DatasetDict, bank: AspectBank
) -> dict[tuple[str, int], Cell]:
    """(condition, seed) -> the student to train at a point of the grid."""
    cells = {}
    for seed in range(args.seeds):
        for condition in args.controls():
            settings = of_condition(args, point, condition)
            name = cell_name(condition, *(f"{option}_{value}" for option, value in settings.items()), seed)
            more, count = [], settings.pop("aspects", len(bank))
            if condition in args.command.of_class_teacher:
                folder = str(targets_folder(args, teacher_cell(args, point, seed), count, bank))
                more = ["--dataset", folder, "--bank", folder]
            elif count != len(bank):
                check_aspect_count(count, bank)
                more = save_subset(labelled, bank, bank.ids[:count], args)
            more += [f"--{option}={value}" for option, value in settings.items()]
            cells[condition, seed] = student_cell(args, condition, seed, name, more)
    return cells


def teacher_cell(args: CompareArguments, point: dict[str, Any], seed: int) -> Cell:
    """The class teacher of a seed at a point of the grid."""
    condition = args.command.class_teacher
    settings = of_condition(args, point, condition)
    name = cell_name(condition, *(f"{option}_{value}" for option, value in settings.items()), seed)
    return student_cell(args, condition, seed, name, [f"--{option}={value}" for option, value in settings.items()])


def targets_folder(args: CompareArguments, teacher: Cell, count: int, bank: AspectBank) -> Path:
    """The folder of the dataset with the class targets of a class teacher, and `count` answers an image."""
    return Path(args.output_dir) / "sets" / f"{teacher.name}{'' if count == len(bank) else f'-{count}'}"


def student_cell(
    args: CompareArguments, condition: str, seed: int, name: str, more: Sequence[str], is_tested: bool = True
) -> Cell:
    """A student to train, with `more` options; without a test, what counts is its score on validation images."""
    folder = str(Path(args.output_dir) / "cells" / name)
    argv = [*student_argv(args, condition, seed, folder), *more, *([] if is_tested else ["--do_predict", "false"])]
    return Cell(name, tuple(argv), folder, f"{'test' if is_tested else 'eval'}_{args.command.task.score}")


def save_subset(labelled: DatasetDict, bank: AspectBank, ids: Sequence[str], args: CompareArguments) -> list[str]:
    """Save the dataset with the answers to these questions alone; the options by which a student takes it."""
    rows, smaller_bank = subset(labelled, bank, ids)
    folder = Path(args.output_dir) / "sets" / smaller_bank.fingerprint
    label_command.save(rows, smaller_bank, folder)
    return ["--dataset", str(folder), "--bank", str(folder)]


def student_argv(args: CompareArguments, condition: str, seed: int, folder: str) -> list[str]:
    """The command line of one student: its YAML, and over it what all students have in common."""
    command = args.command
    about_image = condition in command.about_images
    labelled = str(Path(args.output_dir) / (LABELLED_IMAGES if about_image else LABELLED))
    no_aspects, config = condition in command.without_aspects, args.distill
    if condition in args.learning_unlabelled:
        config = args.distill_unlabelled
    elif condition == command.class_teacher:
        config = args.class_teacher
    elif condition in command.of_class_teacher:
        config = args.distill
    elif no_aspects:
        config = args.baseline
    argv = ["--task", command.task.name, "--config", config]
    argv += ["--dataset", labelled, "--bank", labelled, "--aspect_control", command.controls[condition]]
    argv += ["--aspect_alpha", "0"] if no_aspects else []
    argv += ["--on_error", args.on_error, "--seed", str(seed), "--output_dir", folder, "--do_predict", "true"]
    argv += ["--disable_tqdm", "true", "--report_to", "none", "--push_to_hub", "false"]
    argv += [] if args.validation_fraction else ["--validation_fraction", "0"]  # else a student draws its own
    argv += command.student_options(args, condition)
    for name in ("image_column", "train_split", "eval_split", "test_split", *command.shared_options):
        value = getattr(args.objects if name in ObjectArguments.__dataclass_fields__ else args, name)
        if value is not None:
            argv += [f"--{name}", str(value)]
    settings = of_condition(args, settings_of_all(args), condition)
    return argv + [f"--{option}={value}" for option, value in settings.items()]

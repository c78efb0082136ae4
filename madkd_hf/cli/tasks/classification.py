"""Train a student: classes alone, or classes and aspects.

The aspects come with the dataset (written by `madkd label`), or a teacher answers the bank's questions about the
training images first. Leaves in --output_dir a student that `from_pretrained` and `pipeline` load, and
all_results.json. With --task detection the student finds objects; `--task detection --help` shows its options.

    madkd train --config recipes/easy_vqa/distill.yaml --output_dir runs/student
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from ...data.check import drop_rows, listed, rows_without_class
from ...data.columns import stored
from ...data.duplicates import first_of_each
from ...data.labels import check_images_per_class, with_class_labels
from ...data.problems import Problems
from ...data.rows import row_names
from ...data.unlabelled import UNLABELLED, check_count, concatenated, draw_unlabelled, select_learned
from ...students.base.fields import option
from ...students.tasks import TASKS
from ...text import counted, get_logger
from ..arguments import ClassArguments
from .base import TaskCommand, TestUse, TrainArguments


logger = get_logger(__name__)

DESCRIPTION = __doc__


@dataclass
class LoraArguments:
    """Adapters in a backbone that stays as it is, in place of training it whole; needs peft."""

    _argument_group_name = "LoRA"

    lora_rank: int = option(0, "Rank of the adapters; the head is trained in full; 0 trains the whole student.")
    lora_alpha: int = option(16, "The adapters are scaled by lora_alpha / lora_rank.")
    lora_dropout: float = option(0.0, "Dropout before the adapters.")
    lora_target_modules: list[str] = option(
        ["all-linear"], "Layers with adapters, by the ends of their names: q_proj v_proj."
    )

    def peft_config(self) -> Any:
        """A `LoraConfig`, or None."""
        if self.lora_rank == 0:
            return None
        from ...students.classification.lora import ALL_LINEAR, LoraConfig

        targets = ALL_LINEAR if self.lora_target_modules == [ALL_LINEAR] else self.lora_target_modules
        return LoraConfig(
            r=self.lora_rank, lora_alpha=self.lora_alpha, lora_dropout=self.lora_dropout, target_modules=targets
        )


@dataclass
class StudentArguments(TrainArguments, ClassArguments):
    """A classifier and its data."""

    backbone: str = option("microsoft/resnet-18", "Any image classifier of transformers: a Hub id, or a folder.")
    lora: LoraArguments = field(default_factory=LoraArguments, init=False)


class Classification(TaskCommand):
    """An image has one class."""

    task = TASKS["classification"]
    description = DESCRIPTION
    arguments = StudentArguments
    more_arguments = {"lora": LoraArguments}
    controls = {"base": "none", "madkd": "none", "shuffled": "shuffled", "constant": "constant", "smoothing": "none"}
    controls |= {"unlabelled": "none", "unlabelled_shuffled": "shuffled", "posterior": "none"}
    controls |= {"posterior_shuffled": "shuffled", "both": "none", "both_shuffled": "shuffled", "selftrain": "none"}
    of_unlabelled = tuple(controls)[tuple(controls).index("unlabelled") :]
    class_teacher, of_class_teacher = "class_teacher", ("kd", "kd_aspects")
    controls |= dict.fromkeys((class_teacher, *of_class_teacher), "none")
    without_aspects = ("base", "smoothing", "posterior", "posterior_shuffled", "selftrain", "class_teacher", "kd")
    on_request = ("smoothing",)
    shared_options = ("label_column", "images_per_class")

    def check_model(self, args: StudentArguments) -> None:
        super().check_model(args)
        args.lora.peft_config()
        if args.rest_unlabelled and args.images_per_class is None:
            raise ValueError(
                "--rest_unlabelled learns from what images_per_class leaves over: pass --images_per_class, too."
            )

    def stratify_by(self, args: ClassArguments) -> str:
        return args.label_column

    def with_classes(
        self,
        problems: Problems,
        splits: DatasetDict,
        args: ClassArguments,
        used: Sequence[str],
        test: TestUse,
        doubtful: Sequence[str],
    ) -> DatasetDict | None:
        column, splits = args.label_column, DatasetDict(splits)
        feature = splits[args.train_split].features.get(column)
        is_number = getattr(feature, "dtype", "").startswith("int") and not isinstance(feature, ClassLabel)
        values = set(stored(splits[args.train_split], column).unique().to_pylist()) - {None} if is_number else set()
        hides = values != {-1, 1}  # these are two classes, not one and images without any
        for split in [split for split in used if split != UNLABELLED] if feature else []:
            rows = splits[split]
            if column not in rows.features:
                if split != args.test_split or test == "scored":
                    problems.add(f"The split {split!r} has no column {column!r}, only {rows.column_names}: add it.")
                continue
            if isinstance(feature, ClassLabel) and rows.features[column] != feature:
                problems.add(
                    f"The column {column!r} of split {split!r} is {rows.features[column]}, that of "
                    f"{args.train_split!r} {feature}: give both the same classes in the same order."
                )
                continue
            missing = rows_without_class(rows, column, hides)
            if split == args.train_split:
                splits, missing = self._moved(problems, splits, args, missing)
                rows = splits[split]
            if len(missing) == len(rows) and len(rows) and split == args.test_split and test == "predicted":
                splits[split] = rows.remove_columns(column)
                logger.warning("The split %r has no classes: it is predicted, and there is no score.", split)
            elif missing:
                names = row_names(rows, missing, args.image_column, split)
                remedy = "drop them, or give them their class"
                if split == args.test_split and test == "scored":
                    remedy = "the comparison needs a score: pass another --test_split, or give them their class"
                have = "has" if len(missing) == 1 else "have"
                problems.add(
                    f"{len(missing)} of the {counted(len(rows), 'image')} of split {split!r} {have} no class (null, "
                    f"-1, or none of those that column {column!r} names): {listed(names)}: {remedy}."
                )
                splits[split] = drop_rows(rows, missing)
        return problems.step(with_class_labels, splits, column, args.train_split)

    def _moved(
        self, problems: Problems, splits: DatasetDict, args: ClassArguments, missing: list[int]
    ) -> tuple[DatasetDict, list[int]]:
        """The training rows without a class (null or -1) are in a split of their own; and the rows that are left of
        those whose class is missing."""
        rows = splits[args.train_split]
        labels = stored(rows, args.label_column).to_pylist() if missing else []
        hidden = [row for row in missing if labels[row] in (None, -1)]
        if not hidden or len(hidden) == len(rows):
            return splits, missing
        others = select_learned(rows.select(hidden), args.image_column)
        parts = [splits[UNLABELLED], others] if UNLABELLED in splits else [others]
        moved = problems.step(concatenated, parts)
        splits = DatasetDict(splits) | ({UNLABELLED: moved} if moved is not None else {})
        splits = DatasetDict(splits) | {args.train_split: drop_rows(rows, hidden)}
        return DatasetDict(splits), rows_without_class(splits[args.train_split], args.label_column, hides=False)

    def drawn(self, args: ClassArguments) -> int | None:
        return args.images_per_class

    def check_draw(self, rows: Dataset, args: ClassArguments) -> None:
        if args.images_per_class is not None:
            check_images_per_class(rows, args.label_column, args.images_per_class)

    def draw(self, rows: Dataset, args: ClassArguments, seed: int) -> Dataset:
        if args.images_per_class is None:
            return rows
        return rows.select(drawn_rows(rows, args.label_column, args.images_per_class, seed))

    def without_class(self, splits: DatasetDict, args: ClassArguments, seed: int) -> list[Dataset]:
        others, _ = self._once(splits, args, seed)
        return others if args.unlabelled_images is None else [draw_unlabelled(others, args.unlabelled_images, seed)]

    def count_without_class(self, splits: DatasetDict, args: ClassArguments, seed: int) -> int:
        others, repeated = self._once(splits, args, seed)
        count = sum(map(len, others))
        if repeated and not count and not args.rest_unlabelled:
            raise ValueError(
                f"All {counted(repeated, 'image')} without a class are training images, too, byte for byte: leave "
                "--unlabelled out, or pass other ones."
            )
        if args.rest_unlabelled and not count:
            raise ValueError(
                f"--rest_unlabelled finds no image that images_per_class={args.images_per_class} leaves over: pass "
                "smaller numbers, or leave --rest_unlabelled out."
            )
        if args.unlabelled_images is None or not count:
            return count
        check_count(args.unlabelled_images, count)
        return args.unlabelled_images

    def count_repeated(self, splits: DatasetDict, args: ClassArguments, seed: int) -> tuple[int, int]:
        others, repeated = self._once(splits, args, seed)
        return repeated, sum(map(len, others)) + repeated

    def _once(self, splits: DatasetDict, args: ClassArguments, seed: int) -> tuple[list[Dataset], int]:
        """The rows without a class, none of which repeats an image that is learned from; how many rows would have."""
        rows, others, repeated = splits[args.train_split], [], 0
        learned = [(rows, range(len(rows)))]
        if args.images_per_class is not None and (args.rest_unlabelled or UNLABELLED in splits):
            drawn = drawn_rows(rows, args.label_column, args.images_per_class, seed)
            learned = [(rows, drawn)]
            if args.rest_unlabelled:
                rest = np.setdiff1d(np.arange(len(rows)), drawn)
                kept = first_of_each((rows, rest), learned, args.image_column)
                others, repeated = [select_learned(rows.select(rest[kept]), args.image_column)], int((~kept).sum())
                learned.append((rows, rest[kept]))
        if UNLABELLED in splits:
            loose = splits[UNLABELLED]
            kept = first_of_each((loose, range(len(loose))), learned, args.image_column)
            repeated += int((~kept).sum())
            others.append(drop_rows(loose, np.flatnonzero(~kept)))
        return [part for part in others if len(part)], repeated

    def classes(self, rows: Dataset, args: ClassArguments) -> ClassLabel:
        return rows.features[args.label_column]

    def shown_classes(self, rows: Dataset, args: ClassArguments) -> set[int]:
        return set(rows[args.label_column])

    def trainer_options(self, args: StudentArguments) -> dict[str, Any]:
        columns = {"image_column": args.image_column, "label_column": args.label_column}
        return {**columns, "peft_config": args.lora.peft_config()}

    def hyperparameters(self, args: StudentArguments) -> dict[str, Any]:
        lora = args.lora
        values = {**asdict(lora), "lora_target_modules": ", ".join(sorted(lora.lora_target_modules))}
        return values if lora.lora_rank else {}

    def student_options(self, args: Any, condition: str) -> list[str]:
        options = ["--label_smoothing_factor", str(args.smoothing)] if condition == "smoothing" else []
        with_targets = (*self.of_unlabelled, *self.of_class_teacher)
        if condition not in with_targets:  # nor those that the dataset may have from elsewhere
            options += ["--rest_unlabelled", "false"]  # whatever its YAML says
            return [*options, "--class_alpha", "0", "--class_posterior", "false", "--self_training", "0"]
        options += ["--unlabelled", UNLABELLED] if args.unlabelled else []
        options += ["--rest_unlabelled", str(args.rest_unlabelled).lower()]
        options += ["--unlabelled_images", str(args.unlabelled_images)] if args.unlabelled_images is not None else []
        if condition == "selftrain":
            return [*options, "--class_posterior", "false", "--self_training", str(FIXMATCH)]
        options += ["--self_training", "0"]
        if condition in self.of_class_teacher:
            return [*options, "--class_posterior", "false", "--class_target_loss", "kd"]
        return [*options, "--class_posterior", str(not condition.startswith("unlabelled")).lower()]

    def default_conditions(self, args: Any) -> list[str]:
        more = self.of_unlabelled if args.unlabelled or args.rest_unlabelled else ()
        more += (self.class_teacher, *self.of_class_teacher) if getattr(args, "class_teacher", "") else ()
        return [*super().default_conditions(args), *more]

    def predicted_arrays(self, output: Any) -> dict[str, np.ndarray]:
        """Class logits [n, C], and labels [n] where they are known."""
        from ...metrics import joined

        values = {"logits": output.predictions, "labels": output.label_ids}
        arrays = {name: joined(value) for name, value in values.items() if value is not None}
        return {name: array[0] if isinstance(array, tuple) else array for name, array in arrays.items()}


FIXMATCH = 0.95  # how sure self-training has to be, as its authors have it for most datasets
COMMAND = Classification()


def drawn_rows(rows: Dataset, label_column: str, images_per_class: int, seed: int) -> np.ndarray:
    """The numbers of as many rows of each class, by seed."""
    check_images_per_class(rows, label_column, images_per_class)
    labels = np.array(rows[label_column])
    generator = np.random.default_rng(seed)
    drawn = []
    for index in range(rows.features[label_column].num_classes):
        (of_class,) = np.nonzero(labels == index)
        drawn.append(generator.choice(of_class, images_per_class, replace=False))
    return np.concatenate(drawn)

"""What the commands ask of a task: its options, its checks of a dataset, what its trainer takes and leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...files import whole_file, writing
from ...students.base.fields import option
from ...students.tasks import TASKS, Task
from ..teachers import OwnTeacherArguments


if TYPE_CHECKING:
    from datasets import ClassLabel, Dataset, DatasetDict

    from ...data.decoding import Unreadable
    from ...data.problems import Problems


TestUse = Literal["scored", "predicted", "unused"]  # what the images of the test split are for
PREDICTIONS = "test_predictions.npz"  # beside a student; what is in it, each task says in `predicted_arrays`


@dataclass
class TrainArguments(OwnTeacherArguments):
    """The student and its data, whatever its task."""

    _argument_group_name = "student and data"

    task: str | None = option(
        None, "What the student does; by default detection where a detector is named.", list(TASKS)
    )
    pretrained: bool = option(True, "Start from the model's weights; false takes its architecture alone.")
    aspect_control: Literal["none", "shuffled", "constant"] = option(
        "none", "Controls: aspects of other images or objects (shuffled), or each aspect's mean for all (constant)."
    )
    comparison: str | None = option(None, "Output folder of `madkd compare`, for the card of a published student.")


class TaskCommand:
    """One task, as the commands see it. `args` are always its `arguments`, or a comparison's that name the same.

    Attributes:
        task: its row in `madkd_hf.students.tasks`.
        description: of `madkd train --help`.
        arguments: the dataclass of its options.
        more_arguments: name of a field of `arguments` -> dataclass of options that stand in a group of their own.
        controls: condition of a comparison -> the `aspect_control` of its students.
        without_aspects: those conditions whose students learn no aspects, and are trained by the baseline's YAML.
        on_request: those that are compared only where `--conditions` names them.
        of_unlabelled: those whose students learn from images without a class.
        class_teacher: that whose students give class targets to those of `of_class_teacher`; "" where there is none.
        of_class_teacher: those whose students learn from the class targets of a larger classifier.
        about_images: those conditions whose students learn answers about images where others learn of objects.
        shared_options: those of a comparison that all its students are given as they are.
    """

    task: Task
    description: str
    arguments: type
    more_arguments: Mapping[str, type] = {}
    controls: Mapping[str, str]
    without_aspects: Sequence[str] = ("base",)
    on_request: Sequence[str] = ()
    of_unlabelled: Sequence[str] = ()
    class_teacher: str = ""
    of_class_teacher: Sequence[str] = ()
    about_images: Sequence[str] = ()
    shared_options: Sequence[str] = ()

    # Before anything long or paid

    def check_model(self, args: Any) -> None:
        """Raise what building a student would fail at."""
        self.task.check(getattr(args, self.task.starts_from), args.pretrained)

    def stratify_by(self, args: Any) -> str | None:
        """The column of classes of which each part of the rows is to have some."""
        return None

    def unusable(self, rows: Dataset, args: Any, split: str) -> list[Unreadable]:
        """The rows with something wrong beside their image."""
        return []

    def with_classes(
        self,
        problems: Problems,
        splits: DatasetDict,
        args: Any,
        used: Sequence[str],
        test: TestUse,
        doubtful: Sequence[str],
    ) -> DatasetDict | None:
        """The splits with classes; a test split of which none is known loses the column for them.

        Args:
            used: those that are looked at.
            doubtful: those in which broken rows were found.
        """
        raise NotImplementedError

    def drawn(self, args: Any) -> int | None:
        """How many training images are drawn, of all or of each class; None where all are taken."""
        raise NotImplementedError

    def extreme_draws(self, students: Sequence[Any]) -> list[Any]:
        """The arguments of the students that draw fewest and most training images, if any draws."""
        drawing = sorted((student for student in students if self.drawn(student) is not None), key=self.drawn)
        return [drawing[0], drawing[-1]] if drawing else []

    def check_draw(self, rows: Dataset, args: Any) -> None:
        """Raise ValueError where there are fewer images than are to be drawn."""
        raise NotImplementedError

    # The training

    def draw(self, rows: Dataset, args: Any, seed: int) -> Dataset:
        """The rows to train on."""
        raise NotImplementedError

    def without_class(self, splits: DatasetDict, args: Any, seed: int) -> list[Dataset]:
        """Beside those, rows to train on whose class is not known, or not looked at."""
        return []

    def count_repeated(self, splits: DatasetDict, args: Any, seed: int) -> tuple[int, int]:
        """How many rows without a class are left out because their image is learned from already, and of how many."""
        return 0, 0

    def count_without_class(self, splits: DatasetDict, args: Any, seed: int) -> int:
        """How many these are; raises ValueError where more are asked for than there are."""
        return 0

    def classes(self, rows: Dataset, args: Any) -> ClassLabel:
        """The classes that the rows name."""
        raise NotImplementedError

    def shown_classes(self, rows: Dataset, args: Any) -> set[int]:
        """Those of them that the rows show."""
        raise NotImplementedError

    def labelling_options(self, args: Any) -> dict[str, Any]:
        """What `attach_aspects` has to know beside the rows."""
        return {}

    def model_options(self, args: Any) -> dict[str, Any]:
        """What `Task.build` is given beside classes and bank."""
        return {}

    def trainer_options(self, args: Any) -> dict[str, Any]:
        """What the trainer is given beside model, datasets and image processor."""
        raise NotImplementedError

    def hyperparameters(self, args: Any) -> dict[str, Any]:
        """For a card, those that the training arguments do not know."""
        return {}

    def predicted_arrays(self, output: Any) -> dict[str, np.ndarray]:
        """What stays of `trainer.predict` beside the student."""
        raise NotImplementedError

    # The comparison

    def default_conditions(self, args: Any) -> list[str]:
        """Those that are compared where `--conditions` names none."""
        others = (*self.on_request, *self.of_unlabelled, self.class_teacher, *self.of_class_teacher)
        return [name for name in self.controls if name not in others]

    def student_options(self, args: Any, condition: str) -> list[str]:
        """The words of a student's command line that follow from the condition and this task alone."""
        return []


def load_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """All arrays in a file of NumPy, which has a checksum for each; `names` have to be there."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if missing := [name for name in names if name not in arrays]:
            raise ValueError(f"there is no {missing[0]!r} in it")
    except Exception as error:  # whatever a damaged archive makes NumPy, zipfile and zlib raise
        raise ValueError(
            f"{path} cannot be read ({error}): delete the folder it lies in, and run the same command again."
        ) from error
    return arrays


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays into a file of NumPy, whole or not at all."""
    with writing(path), whole_file(path) as file:
        np.savez_compressed(file, **arrays)

"""What a labelling job asks about each image, whom, and the columns that it becomes: aspects, or class targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Features
from PIL.Image import Image

from ..aspects import AspectBank
from ..data.class_targets import class_features, class_teacher
from ..data.columns import ASPECT_COLUMNS, CLASS_COLUMNS, aspect_features
from ..data.objects import Boxes
from ..teachers import Teacher
from ..teachers.base import Preprocessed
from ..teachers.class_teacher import ClassTeacher
from ..text import terminal


READ_CLASSES = 32  # images in one forward pass of a class teacher

Answer = tuple[np.ndarray | None, ...]  # of one image or object, a value for each column but the last; None is null


class Labeller(ABC):
    """One kind of columns of a job.

    Attributes:
        columns: names of the new columns; the last one says whose answers they are, in rows that were read and in rows
            that could not be read, whose other columns are null.
        source: what stands in that last column.
        about: what it asks, for the progress bar, and `progress` what that has used up so far.
        plan: how it reads, see `prepare`; a job that goes on sets what it began with.
        preprocesses: whether `preprocess` is worth other threads.
    """

    columns: tuple[str, ...]
    source: str
    about: str
    progress = ""
    plan: dict[str, Any] | None = None
    preprocesses = False

    @property
    @abstractmethod
    def features(self) -> Features:
        """The new columns."""

    @property
    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What decides the answers, as entries of the job's manifest."""

    @property
    @abstractmethod
    def decides(self) -> list[Any]:
        """The same, without what is there for messages only."""

    @abstractmethod
    def read(self, images: Sequence[Image | Preprocessed]) -> list[Answer]:
        """The answers about each image; `UnreadableImageError` where one of them cannot be read."""

    @abstractmethod
    def preprocess(self, images: Sequence[Image]) -> Sequence[Image | Preprocessed]:
        """What `read` is given in place of these images, see `Teacher`."""

    def prepare(self, images: Sequence[Image]) -> dict[str, Any]:
        """Choose how to read, once for a job, on its first images."""
        return {}

    def images_per_call(self, plan: dict[str, Any]) -> int:
        """How many images one call of `read` should have."""
        return 1


def all_features(labellers: Sequence[Labeller]) -> Features:
    """The new columns of several."""
    return Features({name: kind for labeller in labellers for name, kind in labeller.features.items()})


@dataclass
class AspectLabeller(Labeller):
    """A teacher answers a bank's questions about each image, or each object; ValueError where nobody can be asked."""

    bank: AspectBank
    teacher: Teacher
    boxes: Boxes | None = None
    columns = ASPECT_COLUMNS

    def __post_init__(self) -> None:
        if self.bank.unpublished:
            raise ValueError(
                f"The text of the question {self.bank.unpublished[0]!r} is not known, so nobody can be asked it: pass "
                "a bank with the questions themselves."
            )

    @property
    def source(self) -> str:
        return self.bank.fingerprint

    @property
    def about(self) -> str:
        return f"{len(self.bank)} questions an {'object' if self.boxes else 'image'}"

    @property
    def progress(self) -> str:
        return self.teacher.progress

    @property
    def preprocesses(self) -> bool:
        return self.teacher.preprocesses

    @property
    def plan(self) -> dict[str, Any] | None:
        return self.teacher.plan

    @plan.setter
    def plan(self, value: dict[str, Any] | None) -> None:
        self.teacher.plan = value

    @property
    def features(self) -> Features:
        return aspect_features(self.bank, self.boxes is not None)

    @property
    def state(self) -> dict[str, Any]:
        bank = {"fingerprint": self.bank.fingerprint, "ids": self.bank.ids}
        return {"bank": bank, "teacher": self.teacher.identity, "prompts": self.teacher.prompts(self.bank)}

    @property
    def decides(self) -> list[Any]:
        prompts = self.teacher.prompts(self.bank)
        return [self.bank.fingerprint, self.teacher.identity, *([prompts["tokens"]] if prompts else [])]

    def prepare(self, images: Sequence[Image]) -> dict[str, Any]:
        return dict(self.teacher.prepare(images, self.bank))

    def images_per_call(self, plan: dict[str, Any]) -> int:
        pairs = plan.get("batch_size", 0)  # not the teacher's, which memory may have halved
        return -(-pairs // len(self.bank))

    def preprocess(self, images: Sequence[Image]) -> Sequence[Image | Preprocessed]:
        return self.teacher.preprocess(images, self.bank)

    def read(self, images: Sequence[Image | Preprocessed]) -> list[Answer]:
        """NaN only where the teacher says that it gave no answer; the mass is None where it is not known."""
        reading = self.teacher.read(images, self.bank)
        logits = np.asarray(reading.logits, dtype=np.float32)
        mass = None if reading.mass is None else np.asarray(reading.mass, dtype=np.float32)
        missing = False if reading.missing is None else np.asarray(reading.missing, dtype=bool)
        parts, expected = [logits] if mass is None else [logits, mass], (len(images), len(self.bank))
        right = all(part.shape == expected for part in parts) and np.shape(missing) in ((), expected)
        if not right or not all((np.isfinite(part) | (missing & np.isnan(part))).all() for part in parts):
            raise ValueError(
                f"The teacher gave log-odds of shape {logits.shape} and mass of shape {np.shape(mass)} for "
                f"{len(images)} images: expected finite numbers of shape {expected}, one for each question."
            )
        return list(zip(logits, [None] * len(images) if mass is None else mass))


class ClassLabeller(Labeller):
    """A class teacher scores the classes of each image.

    Args:
        teacher: who scores them.
        classes: by name, in the order that the scores are to have; the teacher's own, perhaps in another order.

    Raises:
        ValueError: the teacher knows other classes.
    """

    columns = CLASS_COLUMNS

    def __init__(self, teacher: ClassTeacher, classes: Sequence[str]):
        self.teacher, self.classes = teacher, list(classes)
        self.order = class_order(teacher.classes, self.classes, teacher.name)
        self.source = class_teacher(teacher.fingerprint, self.classes)
        self.about = f"scores of {len(self.classes)} classes"
        self.preprocesses = teacher.preprocesses

    @property
    def features(self) -> Features:
        return class_features(len(self.classes))

    @property
    def state(self) -> dict[str, Any]:
        return {"class_teacher": {**self.teacher.identity, "classes": self.classes}}

    @property
    def decides(self) -> list[Any]:
        return ["class_teacher", self.teacher.identity, self.classes]

    def images_per_call(self, plan: dict[str, Any]) -> int:
        return READ_CLASSES

    def preprocess(self, images: Sequence[Image]) -> Sequence[Image | Preprocessed]:
        return self.teacher.preprocess(images)

    def read(self, images: Sequence[Image | Preprocessed]) -> list[Answer]:
        return [(scores,) for scores in self.teacher.read(images).numpy()[:, self.order]]


def class_order(theirs: Sequence[str], ours: Sequence[str], name: str) -> list[int]:
    """For each of our classes, its place among those of the class teacher `name`.

    Raises:
        ValueError: they are not the same classes, or two have one name.
    """
    if list(theirs) == list(ours):
        return list(range(len(ours)))
    place = {label: index for index, label in enumerate(theirs)}
    missing = [label for label in ours if label not in place]
    others = [label for label in theirs if label not in set(ours)]
    if missing or others or len(place) != len(theirs):
        lacks = f"lacks {len(missing)} of them (first {terminal(repr(missing[0]))})" if missing else ""
        has = f"has {len(others)} others (first {terminal(repr(others[0]))})" if others else ""
        twice = "" if missing or others else "has the same name for two classes"
        raise ValueError(
            f"The class teacher {name} must know the {len(ours)} classes of the dataset by name; it "
            f"{' and '.join(filter(None, [lacks, has, twice]))}: train one on these classes (madkd train)."
        )
    return [place[label] for label in ours]

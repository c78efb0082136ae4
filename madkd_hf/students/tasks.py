"""The kinds of students: one row a task. A new task is a folder beside this file, its model, and a row in `TASKS`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """What every caller has to know of a kind of student. Classes are imported when they are asked for.

    Attributes:
        name: of the task, and of its folder here.
        model_class, trainer_class: module.class in `madkd_hf.students`.
        starts_from: what a student is made of ("backbone"): the name of the option that takes its Hub id or folder,
            and of the model's class method `from_backbone`.
        score: the metric that students are compared by.
        pipelines: the tasks of `transformers.pipeline` that a student serves, without and with aspects.
    """

    name: str
    model_class: str
    trainer_class: str
    starts_from: str
    score: str
    pipelines: tuple[str, str]

    @property
    def model(self) -> Any:
        """The class of its students."""
        return self._load(self.model_class)

    @property
    def trainer(self) -> Any:
        """The class of its trainer."""
        return self._load(self.trainer_class)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all numbers that an evaluation may give."""
        return self.trainer.metrics

    def build(self, pretrained_model: str, **options: Any) -> Any:
        """A new student, see `MadkdForImageClassification.from_backbone`."""
        return getattr(self.model, f"from_{self.starts_from}")(pretrained_model, **options)

    def check(self, pretrained_model: str, pretrained: bool = True, **options: Any) -> None:
        """Refuse a model that no such student can be made of, see `base.models.check_model`."""
        from .base.models import check_model

        check_model(self.model, pretrained_model, pretrained, **options)

    def _load(self, place: str) -> Any:
        module, _, name = place.rpartition(".")
        return getattr(importlib.import_module(f"{__package__}.{module}"), name)


TASKS = {
    task.name: task
    for task in (
        Task(
            "classification",
            model_class="models.modeling_madkd.MadkdForImageClassification",
            trainer_class="classification.trainer.MadkdTrainer",
            starts_from="backbone",
            score="accuracy",
            pipelines=("image-classification", "aspect-classification"),
        ),
        Task(
            "detection",
            model_class="models.modeling_madkd_detection.MadkdForObjectDetection",
            trainer_class="detection.trainer.MadkdDetectionTrainer",
            starts_from="detector",
            score="map",
            pipelines=("object-detection", "aspect-detection"),
        ),
    )
}

"""The card of a student: which of the two it is, how to use it, what it scored, and what the aspects did for it."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants
from transformers import PreTrainedModel

from ..report.comparison import CONDITIONS, code_span, markdown_table, table, verdict
from .upload import TAG, HubRepo


TEMPLATE = Path(__file__).parent / "cards" / "student.md"
FIGURES = {  # none of them shows an image of the dataset
    "accuracies.png": "Accuracy on the test images: every dot is one student.",
    "learning_curves.png": "Accuracy on the validation images while the students learn.",
    "aspect_learning.png": "How well the student's answers rank validation images as the teacher's do (AUROC).",
}
METRICS = {  # as the student's metrics are called: the Hub's type, the name in tables, whether it is a share
    "accuracy": ("accuracy", "Accuracy", True),
    "top5_accuracy": ("top5_accuracy", "Top-5 accuracy", True),
    "macro_f1": ("f1", "Macro F1", True),
    "calibration_error": ("expected_calibration_error", "Calibration error", True),
    "aspect_auroc": ("roc_auc", "Aspects: AUROC against the teacher", False),
    "aspect_bce": ("aspect_bce", "Aspects: BCE against the teacher, nats", False),
}
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class DataSource:
    """The images that a student learnt from, or was measured on.

    Attributes:
        name: a Hub id, or what else they are called; of a path only the last part is told.
        revision: the commit of the Hub dataset. Without one, the name is not taken for a Hub id.
        config: the configuration of the Hub dataset.
    """

    name: str
    revision: str | None = None
    config: str | None = None

    @classmethod
    def of(cls, rows: Any) -> DataSource | None:
        """Where rows were loaded from, as far as their cache files tell: from the Hub, at which commit."""
        for file in rows.cache_files if isinstance(rows, Dataset) else ():
            path = Path(file["filename"]).as_posix()
            if found := re.search(rf"/([\w.-]+)___[\w.-]+/[^/]+/[^/]+/({COMMIT.pattern})/[^/]+$", path):
                # The folder's name is not quite that of the dataset (OxfordPets is oxford_pets there).
                for download in Path(constants.HF_HUB_CACHE).glob(f"datasets--{found[1]}--*/snapshots/{found[2]}"):
                    name = download.parents[1].name.removeprefix("datasets--").replace("--", "/", 1)
                    config = rows.info.config_name
                    return cls(name, found[2], None if config == "default" else config)
        return None

    @property
    def id(self) -> str | None:
        """The Hub id, where it is one."""
        return self.name if self.revision and HUB_ID.fullmatch(self.name) else None

    @property
    def shown(self) -> str:
        return self.id or (Path(self.name).name if os.path.isabs(self.name) else self.name)


@dataclass(frozen=True)
class Evaluation:
    """What a student scored on some images.

    Attributes:
        name: "validation", "test", ...
        metrics: as `metrics.compute_metrics` names them, shares as 0..1.
        images: how many.
        split: of the dataset, where the images are one.
        aspect_auroc: one value for each of the Q aspects, against the teacher's answers; NaN where there is none.
        dataset: other images than those of the training dataset.
    """

    name: str
    metrics: Mapping[str, float]
    images: int | None = None
    split: str | None = None
    aspect_auroc: Sequence[float] | None = None
    dataset: DataSource | None = None


@dataclass(frozen=True)
class StudentFacts:
    """What the card tells beyond what the student knows of itself.

    Attributes:
        dataset: what it was trained on.
        evaluations: what it scored.
        comparison: the output folder of recipes/compare.py.
        hyperparameters: name -> value.
        license: one of the Hub's identifiers.
        language: of the labels and questions, as the Hub writes languages.
        tags: more tags.
        model_name: the card's title; by default the repo's name.
        finetuned_from: the Hub id of the weights it began with, where the student does not know it.
    """

    dataset: DataSource | None = None
    evaluations: Sequence[Evaluation] = ()
    comparison: str | os.PathLike | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    language: str | Sequence[str] | None = None
    tags: Sequence[str] = ()
    model_name: str | None = None
    finetuned_from: str | None = None


def write_card(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    repo: HubRepo,
    facts: StudentFacts | None = None,
    plain: bool = False,
) -> ModelCard:
    """README.md and the pictures of the comparison; arguments as `push_student` has them."""
    folder, facts = Path(folder), facts or StudentFacts()
    comparison = None if facts.comparison is None else read_comparison(facts.comparison)
    pictures = []
    for name in FIGURES if comparison else ():
        if (Path(facts.comparison) / "figures" / name).is_file():
            (folder / "figures").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(facts.comparison) / "figures" / name, folder / "figures" / name)
            pictures.append(name)
    card = student_card(model, repo, facts, plain, comparison, pictures)
    card.save(folder / "README.md")
    return card


def read_comparison(folder: str | os.PathLike) -> dict[str, Any]:
    """What compare.py found.

    Raises:
        ValueError: there is no finished comparison in the folder.
    """
    path = Path(folder) / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return {
            **report,
            "accuracy": {name: report["accuracy"][name] for name in CONDITIONS if name in report["accuracy"]},
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds no comparison ({error!r}): pass the output folder of a finished recipes/compare.py."
        ) from error


def student_card(
    model: PreTrainedModel,
    repo: HubRepo,
    facts: StudentFacts,
    plain: bool,
    comparison: Mapping[str, Any] | None = None,
    pictures: Sequence[str] = (),
) -> ModelCard:
    """The card; `comparison` is a report.json, `pictures` are names in `figures/`."""
    config = model.config
    name = facts.model_name or repo.repo_id.split("/")[-1]
    evaluations = [_said(each, config, plain) for each in facts.evaluations]
    shown = lambda repo_id, kind="": f"[{repo_id}]({constants.ENDPOINT}/{kind}{repo_id})"  # noqa: E731
    return ModelCard.from_template(
        _front_matter(config, facts, name, evaluations),
        template_path=str(TEMPLATE),
        name=_text(name),
        repo_id=repo.repo_id,
        revision=repo.revision,
        plain=plain,
        classes=config.num_labels,
        aspects=config.num_aspects,
        example=config.aspect_ids[0] if config.aspect_ids else "",
        backbone=type(model.backbone).__name__,
        teacher=_teacher(config, shown),
        dataset=facts.dataset
        and (shown(facts.dataset.id, "datasets/") if facts.dataset.id else code_span(facts.dataset.shown)),
        results=_results(evaluations),
        comparison=comparison,
        compared=comparison and _compared(comparison),
        verdict=comparison and comparison.get("gain") and verdict(comparison["gain"]),
        comparison_table=comparison and table(comparison),
        pictures={name: FIGURES[name] for name in pictures},
        questions=_questions(config, evaluations),
        measured=any(each.aspect_auroc for each in evaluations),
        provenance=_provenance(model, facts, shown),
        hyperparameters=_two_columns("Setting", facts.hyperparameters),
        license=facts.license,
    )


def _front_matter(config: Any, facts: StudentFacts, name: str, evaluations: Sequence[Evaluation]) -> ModelCardData:
    tags = ["image-classification", "knowledge-distillation", TAG, *facts.tags]
    data = facts.dataset
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        base_model=config.base_model or facts.finetuned_from,
        datasets=[data.id] if data and data.id else None,
        language=list(facts.language) if isinstance(facts.language, tuple) else facts.language,
        license=facts.license,
        tags=tags,
        model_name=name,
        eval_results=[result for each in evaluations for result in _eval_results(each, each.dataset or data)] or None,
    )


def _eval_results(evaluation: Evaluation, data: DataSource | None) -> list[EvalResult]:
    name = data.shown if data else "the dataset it was trained on"
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=(data and data.id) or re.sub(r"[^\w.-]+", "-", name).strip("-") or "local",
            dataset_name=name,
            dataset_config=data and data.config,
            dataset_split=evaluation.split or evaluation.name,
            dataset_revision=data.revision if data and data.id and COMMIT.fullmatch(data.revision) else None,
            metric_type=METRICS[metric][0],
            metric_name=METRICS[metric][1],
            metric_value=round(value, 4),
        )
        for metric, value in evaluation.metrics.items()
    ]


def _said(evaluation: Evaluation, config: Any, plain: bool) -> Evaluation:
    """What is worth telling of this model, in the order of METRICS."""
    silent = ["top5_accuracy"] if config.num_labels <= 5 else []
    silent += ["aspect_auroc", "aspect_bce"] if plain else []
    metrics = {name: evaluation.metrics.get(name) for name in METRICS if name not in silent}
    metrics = {name: float(value) for name, value in metrics.items() if value is not None and math.isfinite(value)}
    return replace(evaluation, metrics=metrics, aspect_auroc=None if plain else evaluation.aspect_auroc)


def _results(evaluations: Sequence[Evaluation]) -> str:
    """A table: a row for each metric, a column for each evaluation."""
    names = [name for name in METRICS if any(name in each.metrics for each in evaluations)]
    if not names:
        return ""
    head = [f"{each.name.capitalize()}{f' ({each.images} images)' if each.images else ''}" for each in evaluations]
    rows = [["Metric", *map(_text, head)]]
    for name in names:
        _, title, share = METRICS[name]
        values = [each.metrics.get(name) for each in evaluations]
        cells = ["" if value is None else f"{100 * value:.1f}%" if share else f"{value:.3f}" for value in values]
        rows.append([title, *cells])
    return markdown_table(rows, right=range(1, len(rows[0])))


def _questions(config: Any, evaluations: Sequence[Evaluation]) -> str:
    measured = next((each.aspect_auroc for each in evaluations if each.aspect_auroc), None)
    columns = {"Aspect": [code_span(name) for name in config.aspect_ids]}
    columns["Question"] = [_text(question) for question in config.aspect_questions]
    if config.aspect_groups:
        columns["Group"] = [_text(group) for group in config.aspect_groups]
    if measured:
        columns["AUROC"] = [f"{value:.2f}" if value is not None and math.isfinite(value) else "" for value in measured]
    rows = [list(columns), *(list(row) for row in zip(*columns.values()))]
    return markdown_table(rows, right=[3 if config.aspect_groups else 2]) if config.aspect_ids else ""


def _compared(report: Mapping[str, Any]) -> str:
    conditions, seeds = len(report["accuracy"]), len(report["seeds"])
    text = f"{conditions * seeds} students were trained for it: {conditions} conditions with {seeds} seeds each"
    if report.get("images_per_class"):
        text += f", on {report['images_per_class']} images per class"
    return text


def _teacher(config: Any, shown: Any) -> str:
    teacher = config.aspect_teacher or {}
    name = teacher.get("model")
    return shown(name) if teacher.get("commit") else code_span(name) if name else ""


def _provenance(model: PreTrainedModel, facts: StudentFacts, shown: Any) -> str:
    config, data = model.config, facts.dataset
    commit = lambda value: f" at {code_span(value)}" if value else ""  # noqa: E731
    base = config.base_model or facts.finetuned_from
    rows = {
        "Architecture": code_span(type(model.backbone).__name__),
        "Weights it began with": shown(base) + commit(config.base_model_revision) if base else "none of the Hub",
        "Dataset": data
        and (shown(data.id, "datasets/") if data.id else code_span(data.shown)) + commit(data.revision),
        "Teacher": _teacher(config, shown) + commit((config.aspect_teacher or {}).get("commit")),
        "Questions": f"{config.num_aspects}, fingerprint {code_span(config.aspect_bank)}"
        if config.num_aspects
        else None,
        "Versions": f"madkd_hf {importlib.import_module('madkd_hf').__version__}, transformers "
        f"{transformers.__version__}, torch {torch.__version__}",
    }
    return markdown_table([["What", "Which"], *([key, value] for key, value in rows.items() if value)])


def _two_columns(head: str, values: Mapping[str, Any]) -> str:
    rows = [[code_span(key), code_span(value)] for key, value in values.items()]
    return markdown_table([[head, "Value"], *rows]) if rows else ""


def _text(value: Any) -> str:
    """Plain text that stays text in a table cell."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(value).split()))

"""What a student scored: as a table for readers, and in the two forms that the Hub reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from ...report.comparison import markdown_table
from ...text import markdown, one_line
from ..sources import COMMIT, DataSource


METRICS = {  # as the student's metrics are called: the Hub's type, the name in tables, whether it is a share
    "accuracy": ("accuracy", "Accuracy", True),
    "top5_accuracy": ("top5_accuracy", "Top-5 accuracy", True),
    "macro_f1": ("f1", "Macro F1", True),
    "calibration_error": ("expected_calibration_error", "Calibration error", True),
    "map": ("map", "mAP (COCO), IoU 0.50 to 0.95", False),
    "map_50": ("map_50", "mAP, IoU 0.50", False),
    "map_75": ("map_75", "mAP, IoU 0.75", False),
    "map_small": ("map_small", "mAP, small objects", False),
    "map_medium": ("map_medium", "mAP, medium objects", False),
    "map_large": ("map_large", "mAP, large objects", False),
    "mar_100": ("mar_100", "Mean recall, 100 boxes an image", False),
    "aspect_auroc": ("roc_auc", "Aspects: AUROC against the teacher", False),
    "aspect_bce": ("aspect_bce", "Aspects: BCE against the teacher, nats", False),
}
OF_THE_RUN = ("loss", "epoch", "samples", "runtime", "samples_per_second", "steps_per_second")
OF_THE_RUN += ("model_preparation_time", "jit_compilation_time")


@dataclass(frozen=True)
class Evaluation:
    """What a student scored on some images.

    Attributes:
        name: "validation", "test", ...
        metrics: as `metrics.compute_metrics` names them, shares as 0..1; others keep their own names.
        images: how many.
        split: of the dataset, where the images are one.
        aspect_auroc: one value for each of the Q aspects, against the teacher's answers; NaN where there is none.
        dataset: where the images are not from the training dataset.
        drawn: how the images were chosen, where they are no split: "a random tenth of train, drawn with seed 0".
    """

    name: str
    metrics: Mapping[str, Any]
    images: int | None = None
    split: str | None = None
    aspect_auroc: Sequence[float] | None = None
    dataset: DataSource | None = None
    drawn: str | None = None


def published_evaluations(
    evaluations: Sequence[Evaluation], config: Any, plain: bool, data: DataSource | None
) -> list[Evaluation]:
    """What is worth telling of this model: numbers, those we know first; images that gave none are left out."""
    silent = [*OF_THE_RUN, *(["top5_accuracy"] if config.num_labels <= 5 else [])]
    silent += ["aspect_auroc", "aspect_bce"] if plain else []
    published = []
    for evaluation in evaluations:
        names = [name for name in dict.fromkeys([*METRICS, *evaluation.metrics]) if name not in silent]
        values = {name: evaluation.metrics.get(name) for name in names}
        numbers = {name: float(value) for name, value in values.items() if _is_number(value)}
        auroc = None if plain else evaluation.aspect_auroc
        if numbers:
            published.append(
                replace(evaluation, metrics=numbers, aspect_auroc=auroc, dataset=evaluation.dataset or data)
            )
    return published


def eval_results(evaluations: Sequence[Evaluation], task: str) -> list[EvalResult]:
    """The model-index, of a task as the Hub calls it, which wants type and name of a dataset: our own are "local"."""
    return [
        EvalResult(
            task_type=task,
            task_name=task.replace("-", " ").capitalize(),
            dataset_type=(data and data.id) or "local",
            dataset_name=one_line(data.shown) if data else "local images",
            dataset_config=one_line(data.config) if data and data.config else None,
            dataset_split=one_line(evaluation.split or evaluation.drawn or evaluation.name),
            dataset_revision=data.revision if data and data.id and COMMIT.fullmatch(data.revision or "") else None,
            metric_type=one_line(METRICS.get(metric, (metric,))[0]),
            metric_name=one_line(METRICS.get(metric, (None, metric))[1]),
            metric_value=round(value, 4),
        )
        for evaluation in evaluations
        for data in [evaluation.dataset]
        for metric, value in evaluation.metrics.items()
    ]


def leaderboard_file(evaluations: Sequence[Evaluation]) -> str | None:
    """`.eval_results/*.yaml`, by which the Hub lists a model beside the others of a dataset; None without any.

    Of each dataset on the Hub one number, accuracy or mAP: that on its test images, where there is one.
    """
    main: dict[str, tuple[Evaluation, str]] = {}
    for evaluation in sorted(evaluations, key=lambda evaluation: evaluation.name == "test"):
        metric = next((name for name in ("accuracy", "map") if name in evaluation.metrics), None)
        if metric and evaluation.dataset and evaluation.dataset.id:
            main[evaluation.dataset.id] = evaluation, metric
    if not main:
        return None
    entries = []
    for dataset, (evaluation, metric) in main.items():
        data = evaluation.dataset
        images = f", {evaluation.images} images" if evaluation.images else ""
        entries.append(
            EvalResultEntry(
                dataset_id=dataset,
                task_id=one_line(data.config or "default"),
                value=round(evaluation.metrics[metric], 4),
                dataset_revision=data.revision if COMMIT.fullmatch(data.revision or "") else None,
                notes=one_line(f"{metric}, {evaluation.split or evaluation.drawn or evaluation.name}{images}"),
            )
        )
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def results_table(evaluations: Sequence[Evaluation], escape: Any) -> str:
    """A row for each metric, a column for each evaluation; "" without any."""
    names = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.metrics))
    if not names:
        return ""
    rows = [["Metric", *(escape(_heading(evaluation, evaluations)) for evaluation in evaluations)]]
    for name in names:
        _, title, share = METRICS.get(name, (name, name, False))
        values = [evaluation.metrics.get(name) for evaluation in evaluations]
        rows.append([escape(title), *("" if value is None else _value_text(value, share) for value in values)])
    return markdown_table(rows, right=range(1, len(rows[0])))


def measured_on(evaluations: Sequence[Evaluation], link: Any, escape: Any) -> str:
    """One sentence, without its full stop, on whose images the numbers are from; "" where nobody knows."""
    drawn = dict.fromkeys(
        f"the {evaluation.name} images are {evaluation.drawn}" for evaluation in evaluations if evaluation.drawn
    )
    text = "; ".join(filter(None, [_measured_on(evaluations, link), *map(escape, drawn)]))
    return text[:1].upper() + text[1:]


def _measured_on(evaluations: Sequence[Evaluation], link: Any) -> str:
    names: dict[str, list[str]] = {}
    for evaluation in evaluations:
        if evaluation.dataset:
            names.setdefault(link(evaluation.dataset), []).append(markdown(evaluation.name))
    if len(names) == 1 and all(evaluation.dataset for evaluation in evaluations):
        return f"Measured on {next(iter(names))}"
    parts = [f"{' and '.join(dict.fromkeys(of))} on {dataset}" for dataset, of in names.items()]
    return f"Measured: {', '.join(parts)}" if parts else ""


def _heading(evaluation: Evaluation, among: Sequence[Evaluation]) -> str:
    alone = sum(another.name == evaluation.name for another in among) == 1
    dataset = "" if alone or not evaluation.dataset else f" of {evaluation.dataset.shown}"
    images = f"{evaluation.images} images" if evaluation.images else None
    text = "; ".join(filter(None, [evaluation.drawn, images]))
    return f"{evaluation.name.capitalize()}{dataset}{f' ({text})' if text else ''}"


def _value_text(value: float, share: bool) -> str:
    return f"{100 * value:.1f}%" if share and 0 <= value <= 1 else f"{value:.3f}"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)

"""Metrics of a student, as `evaluate` metrics that need no network."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.special import expit, softmax
from sklearn import metrics as sk
from transformers import EvalPrediction


TOP = 5  # where there are no more classes, the label is always among the five highest logits
OF_CLASSES = ("accuracy", "top5_accuracy", "macro_f1", "calibration_error")
OF_ASPECTS = ("aspect_auroc", "aspect_bce")
SCORES = datasets.Sequence(datasets.Value("float32"))


class _Metric(evaluate.Metric):
    """Shared by all: what goes in is logits and references, what comes out is a dictionary of floats."""

    citation = ""
    references = datasets.Value("int64")

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=self.citation,
            inputs_description="predictions: logits, one list per image; references: one per image.",
            features=datasets.Features({"predictions": SCORES, "references": self.references}),
        )


class Accuracy(_Metric):
    """Share of images whose highest class logit is the label: {"accuracy": 0..1}."""

    def _compute(self, predictions, references):
        return {"accuracy": float(sk.accuracy_score(references, np.argmax(predictions, axis=1)))}


class TopK(_Metric):
    """Share of images whose label is among the k highest class logits, k = 5: {"top5_accuracy": 0..1}."""

    def _compute(self, predictions, references, k=5):
        best = np.argsort(predictions, axis=1)[:, -k:]
        return {f"top{k}_accuracy": float(np.mean([label in row for label, row in zip(references, best)]))}


class MacroF1(_Metric):
    """F1 averaged over the classes that occur: {"macro_f1": 0..1}."""

    def _compute(self, predictions, references):
        return {"macro_f1": float(sk.f1_score(references, np.argmax(predictions, axis=1), average="macro"))}


class CalibrationError(_Metric):
    """Expected calibration error over equal-width confidence bins (Guo et al. 2017, eq. 3).

    Returns {"calibration_error": 0..1}.
    """

    citation = "Guo et al., On Calibration of Modern Neural Networks, ICML 2017"

    def _compute(self, predictions, references, bins=15):
        probabilities = softmax(np.asarray(predictions), axis=1)
        confidence = probabilities.max(axis=1)
        correct = probabilities.argmax(axis=1) == np.asarray(references)
        bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
        gaps = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
        return {"calibration_error": float(np.abs(gaps).sum() / len(correct))}


class AspectAuroc(_Metric):
    """How well aspect logits rank the images that the teacher answers yes (log-odds above 0).

    Returns {"aspect_auroc": mean, "per_aspect": [Q values]}; NaN for an aspect to which the teacher gives one answer.
    """

    references = SCORES

    def _compute(self, predictions, references):
        scores, yes = np.asarray(predictions), np.asarray(references) > 0
        per_aspect = [
            float(sk.roc_auc_score(yes[:, q], scores[:, q])) if 0 < yes[:, q].sum() < len(yes) else float("nan")
            for q in range(yes.shape[1])
        ]
        mean = float(np.nanmean(per_aspect)) if not np.isnan(per_aspect).all() else float("nan")
        return {"aspect_auroc": mean, "per_aspect": per_aspect}


class AspectBce(_Metric):
    """Binary cross-entropy of aspect logits against the teacher's probabilities, in nats: {"aspect_bce": mean}.

    References are the teacher's log-odds; the minimum is the entropy of the teacher's own answers.
    """

    references = SCORES

    def _compute(self, predictions, references):
        scores, targets = np.asarray(predictions, dtype=float), expit(np.asarray(references, dtype=float))
        per_aspect = (np.logaddexp(0, scores) - targets * scores).mean(axis=0)
        return {"aspect_bce": float(per_aspect.mean()), "per_aspect": per_aspect.tolist()}


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """All metrics of a student that are one number, for a Trainer. With five classes or fewer, there is no top-5."""
    return {name: value for name, value in all_metrics(prediction).items() if name != "per_aspect"}


def all_metrics(prediction: EvalPrediction) -> dict[str, float | list[float]]:
    """What `compute_metrics` returns, and `per_aspect`: the Q AUROCs behind `aspect_auroc`, where there are targets.

    Args:
        prediction: predictions are class logits [n, C], or the pair with aspect logits [n, Q]; label_ids are labels
            [n], or the pair with the teacher's log-odds [n, Q], NaN in rows without. Or, with
            `eval_do_concat_batches=False`, both are lists of these, one for each batch.

    Raises:
        ValueError: class logits that are not finite.
    """
    predictions, label_ids = joined(prediction.predictions), joined(prediction.label_ids)
    paired = isinstance(label_ids, tuple)
    logits, aspects = predictions if paired else (predictions, None)
    labels, targets = label_ids if paired else (label_ids, None)
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise ValueError(f"The class logits of {(~finite).sum()} of {len(logits)} images are not finite.")
    results = {}
    for metric in (Accuracy, *([TopK] if logits.shape[1] > TOP else []), MacroF1, CalibrationError):
        results.update(_run(metric, logits, labels))
    if paired:
        answered = np.isfinite(targets).all(axis=1)
        if answered.any():
            ranked = _run(AspectAuroc, aspects[answered], targets[answered])
            results |= {**ranked, **_run(AspectBce, aspects[answered], targets[answered])}
            results["per_aspect"] = ranked["per_aspect"]
    return results


def joined(batches: Any) -> np.ndarray | tuple[np.ndarray, ...] | None:
    """What an evaluation loop returns as one array or tuple of them [n, ...], also where it is a list of batches."""
    if not isinstance(batches, list):
        return batches
    if isinstance(batches[0], tuple):
        return tuple(np.concatenate(parts) for parts in zip(*batches))
    return np.concatenate(batches)


def _run(metric: type[_Metric], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Without the table of lists that `compute` makes of them, which takes gigabytes for 50,000 images."""
    return metric()._compute(predictions.astype(float), references)

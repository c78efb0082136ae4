"""Because: how much each aspect speaks for a class of an image, in a student's own last layer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from ...files import read_json, write_whole
from ..models.modeling_madkd import MadkdForImageClassification, head_parameters


BECAUSE_FILE = "because.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Reason:
    """What one aspect says about a class of one image.

    Attributes:
        aspect, question: its id and text.
        answer: the student's probability of yes, 0 to 1.
        weight: how much of the class's score, against the mean of all classes, goes with this answer, in log-odds;
            above 0 where it speaks for the class.
    """

    aspect: str
    question: str
    answer: float
    weight: float


@dataclass(frozen=True)
class Because:
    """How the aspects of a student speak for its classes: an attribution that is exact in the last layer.

    Classes c and aspects q are rows of one linear layer, with the weights w_c and v_q, on the same features f of an
    image. Let u_c = w_c - mean_k w_k, so that u_c . f is the score of c against the mean of all classes (the softmax
    knows no other). The smallest change of f that brings the answer a_q to the value b_q goes along v_q, and takes

        (u_c . v_q / |v_q|^2) (a_q - b_q)

    from that score. This is the weight of aspect q for class c: a directional derivative along a concept, as in TCAV
    (Kim et al. 2018), times the distance to b_q. It is exact for one aspect. Aspects share directions, so that weights
    of several do not add up to the change when all are moved at once, and their sum is not the score (for a
    decomposition see Zhou et al., Interpretable Basis Decomposition, 2018). It speaks of what the student computes
    with, not of causes in the world, and holds as far as the student's answers do.

    Attributes:
        effects: [C, Q] u_c . v_q / |v_q|^2.
        baseline: [Q] b_q, log-odds that an answer is compared with: those of an average image, or 0, undecided.
        classes, ids, questions: C names; Q ids and texts.
    """

    effects: np.ndarray
    baseline: np.ndarray
    classes: list[str]
    ids: list[str]
    questions: list[str]

    @classmethod
    def of_student(cls, model: MadkdForImageClassification, baseline: Sequence[float] | None = None) -> Because:
        """Read off a student's weights; no image is needed.

        Args:
            model: an image classifier with aspects.
            baseline: [Q] log-odds, see `mean_answers`; by default 0, an undecided answer.

        Raises:
            ValueError: a student without aspects, or with a head that is no linear layer.
        """
        config = model.config
        if not getattr(config, "num_aspects", 0) or not isinstance(model, MadkdForImageClassification):
            raise ValueError(
                f"{type(model).__name__} has no aspects that could speak for a class: expected an image classifier "
                "that was trained with aspects."
            )
        rows = _rows_of_head(model).double().cpu().numpy()
        classes, aspects = rows[: config.num_labels], rows[config.num_labels :]
        against_mean = classes - classes.mean(axis=0)
        length = np.maximum((aspects**2).sum(axis=1), np.finfo(float).tiny)
        given = np.zeros(config.num_aspects) if baseline is None else np.asarray(baseline, dtype=float)
        if given.shape != (config.num_aspects,) or not np.isfinite(given).all():
            raise ValueError(
                f"Expected a baseline of {config.num_aspects} finite log-odds, one for each aspect; got an array "
                f"{list(given.shape)}."
            )
        names = [config.id2label[index] for index in range(config.num_labels)]
        effects = against_mean @ aspects.T / length
        return cls(effects, given, names, list(config.aspect_ids), list(config.aspect_questions))

    def weights(self, aspect_logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """[n, Q] the weight of each aspect for one class of each image.

        Args:
            aspect_logits: [n, Q] the student's log-odds of yes.
            labels: [n] class indices.
        """
        answers = np.asarray(aspect_logits, dtype=float)
        if answers.ndim != 2 or answers.shape[1] != len(self.ids):
            raise ValueError(f"Expected aspect logits [n, {len(self.ids)}]; got an array {list(answers.shape)}.")
        return self.effects[np.asarray(labels)] * (answers - self.baseline)

    def reasons(self, aspect_logits: Sequence[float], label: int) -> list[Reason]:
        """All aspects of one image, what speaks most for the class first, what speaks most against it last.

        Args:
            aspect_logits: [Q] the student's log-odds of yes.
            label: the class index.
        """
        answers = np.asarray(aspect_logits, dtype=float)
        (weights,) = self.weights(answers[None], [label])
        return [
            Reason(self.ids[q], self.questions[q], float(expit(answers[q])), float(weights[q]))
            for q in np.argsort(-weights, kind="stable")
        ]

    def save(self, folder: str | os.PathLike) -> Path:
        """Write `because.json`, a file for pages and servers that have no weights at hand; returns its path."""
        content = {
            "format_version": FORMAT_VERSION,
            "classes": self.classes,
            "aspects": [{"id": name, "question": text} for name, text in zip(self.ids, self.questions)],
            "baseline": [float(f"{value:.6g}") for value in self.baseline],
            "effects": [[float(f"{value:.6g}") for value in row] for row in self.effects],
        }
        return write_whole(Path(folder) / BECAUSE_FILE, json.dumps(content, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Because:
        """Read what `save` wrote.

        Raises:
            ValueError: there is no such file, or it is another's or damaged.
        """
        path = Path(folder) / BECAUSE_FILE
        content = read_json(path, "reasons of a student", "export the student again")
        try:
            if content["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its format is {content['format_version']!r}, not {FORMAT_VERSION}")
            ids, questions = ([aspect[name] for aspect in content["aspects"]] for name in ("id", "question"))
            effects, baseline = (np.array(content[name], dtype=float) for name in ("effects", "baseline"))
            if effects.shape != (len(content["classes"]), len(ids)) or baseline.shape != (len(ids),):
                raise ValueError("its numbers do not fit its classes and aspects")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no reasons of a student ({error}): export the student again.") from error
        return cls(effects, baseline, list(content["classes"]), ids, questions)


@torch.inference_mode()
def mean_answers(model: MadkdForImageClassification, batches: Iterable[Any]) -> np.ndarray:
    """[Q] mean log-odds of a student's answers over images: the baseline of an average image.

    Args:
        batches: of pixel values, [B, channels, height, width] each, as the image processor makes them.
    """
    total, count = np.zeros(model.config.num_aspects), 0
    for pixel_values in batches:
        answers = model(pixel_values.to(model.device, model.dtype)).aspect_logits.double().cpu().numpy()
        total, count = total + answers.sum(axis=0), count + len(answers)
    if not count:
        raise ValueError("Expected images to take the mean over; got none.")
    return total / count


def _rows_of_head(model: MadkdForImageClassification) -> torch.Tensor:
    """[C + Q, features] the weights of the last layer; of several heads whose outputs are averaged, side by side."""
    parameters = dict(model.backbone.named_parameters())
    weights = [
        parameters[name] for name in sorted(head_parameters(model.config.backbone_config)) if name in parameters
    ]
    matrices = [weight.detach().flatten(1) for weight in weights if weight.ndim > 1]
    if not matrices or any(weight.ndim > 2 and weight[0, 0].numel() > 1 for weight in weights):
        raise ValueError(
            f"The head of {type(model.backbone).__name__} is no linear layer, and its aspects cannot be weighed: use "
            "another backbone."
        )
    return torch.cat(matrices, dim=1)

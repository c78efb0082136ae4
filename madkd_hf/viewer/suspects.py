"""Which labels are likely mistakes: what the answers say of the class against what the label says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from ..selection.posterior import held_out_logits


SAME_PICTURE = np.inf  # the score of an image that is there again with another label: one of the two must be wrong


@dataclass(frozen=True)
class Judged:
    """What answers say of labels, one row an image.

    Attributes:
        scores: [n] how likely the label is a mistake, see `judge`; NaN where nothing can be said.
        suggested: [n] the class that the answers speak for most; -1 where they say nothing.
        p_label, p_suggested: [n] the probabilities of these two classes by the answers, 0 to 1; NaN likewise.
        usual: [C, Q] mean probability of yes over the images of a class; NaN where it has no answers.
        unlike: [n] mean distance of an image's probabilities of yes from those of the other images of its class, 0 to
            1; NaN where there is none.
    """

    scores: np.ndarray
    suggested: np.ndarray
    p_label: np.ndarray
    p_suggested: np.ndarray
    usual: np.ndarray
    unlike: np.ndarray

    @property
    def order(self) -> list[int]:
        """The rows, the likeliest mistakes first; those of which nothing is known last."""
        return np.argsort(-np.nan_to_num(self.scores, nan=-np.inf, posinf=np.finfo(float).max), kind="stable").tolist()


def judge(
    answers: np.ndarray, labels: Sequence[int], num_classes: int, pairs: Sequence[tuple[int, int]] = ()
) -> Judged:
    """Score each label by a regression from answers to classes that has not seen that image.

    The score is the log-odds of the most probable other class against the label: above 0 where the answers speak for
    another class. It is the normalised margin of Kuan & Mueller (Model-agnostic label quality scoring to detect real-
    world label errors, 2022), with log-probabilities, so that no two images tie at 1.

    Args:
        answers: [n, Q] log-odds of yes; NaN in rows without.
        labels: [n] class indices; -1 where unknown.
        num_classes: C; where it is below 2, only duplicates are told.
        pairs: rows that show the same picture, see `data.duplicates.same_pictures`. Where their labels differ, both
            rows come first.
    """
    answers, labels = np.asarray(answers), np.asarray(labels, dtype=np.int64)
    n = len(labels)
    scores, p_label, p_suggested = (np.full(n, np.nan) for _ in range(3))
    suggested = np.full(n, -1)
    if num_classes > 1:
        logits = held_out_logits(answers, labels, num_classes)
        known = np.flatnonzero(~np.isnan(logits).any(axis=1))
        suggested[known] = logits[known].argmax(axis=1)
        p_suggested[known] = np.exp(logits[known].max(axis=1))
        own = logits[known, labels[known]]
        p_label[known] = np.exp(own)
        others = logits[known]
        others[np.arange(len(known)), labels[known]] = -np.inf
        scores[known] = others.max(axis=1) - own
    for pair in pairs:
        if labels[pair[0]] != labels[pair[1]] and labels[list(pair)].min() >= 0:
            scores[list(pair)] = SAME_PICTURE
    usual, unlike = _usual(expit(answers.astype(np.float64)), labels, num_classes)
    return Judged(scores, suggested, p_label, p_suggested, usual, unlike)


def _usual(p: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean answers of each class, and how far each image is from the others of its class."""
    usual, unlike = np.full((num_classes, p.shape[1]), np.nan), np.full(len(p), np.nan)
    answered = ~np.isnan(p).any(axis=1)
    for index in range(num_classes):
        rows = np.flatnonzero(answered & (labels == index))
        if len(rows):
            usual[index] = p[rows].mean(axis=0)
        if len(rows) > 1:
            without = (p[rows].sum(axis=0) - p[rows]) / (len(rows) - 1)
            unlike[rows] = np.abs(p[rows] - without).mean(axis=1)
    return usual, unlike

"""Entropy of answers, their information about the class, and questions that are worth nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import special


LOW_MASS = 0.5  # mean mass below which the teacher is not answering yes or no
SAME_ANSWER = 0.999  # share of images with one answer, from which a question is constant ...
HARDLY_VARIES = 0.05  # ... if the answer also tells less than so many bits about the image
SAME_QUESTION = 0.99  # correlation of log-odds above which two questions are one
FEW = 10  # images, below which log-odds may correlate by chance
SHUFFLES = 20  # of the classes, for what chance alone gives
ROWS = 10_000  # at a time


@dataclass(frozen=True)
class QuestionEvidence:
    """What the answers to one question are like; an answer is yes with the probability p = sigmoid(log-odds).

    Attributes:
        images: how many images have an answer.
        mass: mean probability that the teacher put on yes and no together, 0 to 1; None where unknown.
        yes: share of images with yes (log-odds above 0), 0 to 1.
        entropy: binary entropy of the mean p, in bits: how varied the answers are over images; the most that they can
            tell about anything.
        doubt: mean of the binary entropies of each image's p, in bits: how undecided the teacher is about an image;
            `entropy - doubt` is what the answer tells about the image at all.
        information: what the answer tells about the class, in bits, see `mutual_information`; None without classes.
        chance, chance_most: mean and highest of the same with shuffled classes, which `information` is to be read
            against: where images are few, chance seems to tell something.
        notes: what is wrong: "low mass", "constant", "no more than chance", "same as ID", "opposite of ID".
    """

    id: str
    question: str
    images: int
    mass: float | None
    yes: float
    entropy: float
    doubt: float
    information: float | None = None
    chance: float | None = None
    chance_most: float | None = None
    notes: tuple[str, ...] = ()


def binary_entropy(probabilities: np.ndarray | float) -> np.ndarray:
    """Entropy of yes and no, in bits, for each probability of yes."""
    p = np.asarray(probabilities, dtype=np.float64)
    return (special.entr(p) + special.entr(1 - p)) / math.log(2)


def class_entropy(labels: Sequence[Any]) -> float:
    """Entropy of the classes, in bits: all that there is to tell about them. None is no class."""
    codes = class_codes(labels)
    shares = np.bincount(codes[codes >= 0]) / max(1, (codes >= 0).sum())
    return float(special.entr(shares).sum() / math.log(2))


def mutual_information(probabilities: np.ndarray, labels: Sequence[Any]) -> np.ndarray:
    """What the answer to each question tells about the class of an image.

    The answer A is yes with the image's probability p. With P(c) the share of class c among the images, and H the
    binary entropy,

        I(A; class) = H(mean of p) - sum over c of P(c) H(mean of p over the images of class c).

    This is the plug-in estimate, which chance alone lifts above 0 where images are few: by about
    (C - 1) / (2 n ln 2) bits for hard answers that have nothing to do with the class (Miller 1955), by less for soft
    ones, by nothing where the class determines the answer. It is not corrected: compare it with `chance_information`.

    Args:
        probabilities: [n, Q] of yes; NaN where there is no answer.
        labels: [n] classes, all of one type; None where unknown.

    Returns:
        [Q] bits, between 0 and 1; NaN where no image has both answer and class.
    """
    return np.array([_information(p, codes) for p, codes in _usable(probabilities, labels)])


def chance_information(
    probabilities: np.ndarray, labels: Sequence[Any], shuffles: int = SHUFFLES, seed: int = 0
) -> np.ndarray:
    """`mutual_information` where the images swap their classes at random: [shuffles, Q] bits."""
    shuffled = []
    for p, codes in _usable(probabilities, labels):
        generator = np.random.default_rng(seed)
        shuffled.append([_information(p, generator.permutation(codes)) for _ in range(shuffles)])
    return np.array(shuffled).T


def class_codes(labels: Sequence[Any]) -> np.ndarray:
    """Class indices [n], in order of appearance; -1 where the label is None or NaN."""
    codes = pa.array(labels, from_pandas=True).dictionary_encode().indices
    return codes.fill_null(-1).to_numpy(zero_copy_only=False)


def _usable(probabilities: np.ndarray, labels: Sequence[Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each question, the probabilities and class indices of the images where both are known."""
    if len(labels) != len(probabilities):
        raise ValueError(
            f"Expected one label for each row of answers; got {len(labels)} labels and {len(probabilities)} rows."
        )
    codes = class_codes(labels)
    for column in np.asarray(probabilities).T:
        usable = ~np.isnan(column) & (codes >= 0)
        yield column[usable].astype(np.float64), codes[usable]


def _information(p: np.ndarray, codes: np.ndarray) -> float:
    return max(0.0, float(conditional_information(p[:, None], codes)[0])) if len(p) else math.nan


def conditional_information(p: np.ndarray, codes: np.ndarray, cells: np.ndarray | None = None) -> np.ndarray:
    """What soft answers tell about the class where the cell of an image is known, [N] bits, see `mutual_information`.

    `p` is [n, N], `codes` and `cells` are [n] class and cell indices; None: nothing is known beside the answers.
    """
    cells = np.zeros_like(codes) if cells is None else cells
    return _entropy_within(p, cells) - _entropy_within(p, cells * (codes.max() + 1) + codes)


def _entropy_within(p: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean entropy of the answers where the group of an image is known, in bits: [N]."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    counts = np.diff(starts, append=len(groups))
    means = np.add.reduceat(p[order], starts, axis=0) / counts[:, None]
    return (counts[:, None] * binary_entropy(means.clip(0, 1))).sum(axis=0) / len(groups)


def question_evidence(
    logits: np.ndarray,
    mass: np.ndarray | None,
    labels: Sequence[Any] | None,
    questions: Sequence[str],
    ids: Sequence[str],
) -> list[QuestionEvidence]:
    """Numbers and notes for each of Q questions, in the order of the columns.

    Args:
        logits: [n, Q] log-odds of yes, NaN where there is no answer.
        mass: [n, Q] probabilities of yes and no together, where known.
        labels: [n] classes, all of one type, None where unknown; None where there are no classes.

    Raises:
        ValueError: sizes that differ, or a question without any answer.
    """
    sizes = {"columns": logits.shape[1], "questions": len(questions), "ids": len(ids)}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Expected as many columns of answers as questions and ids; got {sizes}.")
    codes = None if labels is None else class_codes(labels)
    if codes is not None and len(codes) != len(logits):
        raise ValueError(
            f"Expected one label for each row of answers; got {len(codes)} labels and {len(logits)} rows."
        )
    rows = []
    for q, (name, question) in enumerate(zip(ids, questions)):
        answered = ~np.isnan(logits[:, q])
        if not answered.any():
            raise ValueError(f"No image has an answer to {name!r}: label the dataset first, with attach_aspects.")
        p = special.expit(logits[answered, q].astype(np.float64))
        row = QuestionEvidence(
            id=name,
            question=question,
            images=len(p),
            mass=None if mass is None else _mean(mass[answered, q]),
            yes=float((p > 0.5).mean()),
            entropy=float(binary_entropy(p.mean())),
            doubt=float(binary_entropy(p).mean()),
        )
        rows.append(row if codes is None else _with_information(row, p, codes[answered]))
    twins = _twins(logits, [_is_constant(row) for row in rows])
    return [replace(row, notes=_notes(row, ids, twins.get(q))) for q, row in enumerate(rows)]


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean(dtype=np.float64)) if len(values) else None


def _with_information(row: QuestionEvidence, p: np.ndarray, codes: np.ndarray) -> QuestionEvidence:
    p, codes = p[codes >= 0, None], codes[codes >= 0]
    if len(np.unique(codes)) < 2:
        return row
    chance = chance_information(p, codes)
    return replace(
        row,
        information=float(mutual_information(p, codes)[0]),
        chance=float(chance.mean()),
        chance_most=float(chance.max()),
    )


def _is_constant(row: QuestionEvidence) -> bool:
    return max(row.yes, 1 - row.yes) >= SAME_ANSWER and row.entropy - row.doubt < HARDLY_VARIES


def correlations(logits: np.ndarray) -> np.ndarray:
    """[N, N] of the log-odds, over rows without NaN; 0 where there is no variance, or too few rows to speak of."""
    complete = np.flatnonzero(~np.isnan(logits).any(axis=1))
    if len(complete) < FEW:
        return np.zeros((logits.shape[1],) * 2)
    # doubles of a large dataset may not fit
    parts = [complete[start : start + ROWS] for start in range(0, len(complete), ROWS)]
    mean = sum(_finite(logits[part]).sum(axis=0) for part in parts) / len(complete)
    products = np.zeros((logits.shape[1],) * 2)
    for part in parts:
        centred = _finite(logits[part]) - mean
        products += centred.T @ centred
    deviations = np.sqrt(np.diag(products))
    return products / np.maximum(np.outer(deviations, deviations), 1e-12)


def _finite(logits: np.ndarray) -> np.ndarray:
    return np.clip(logits.astype(np.float64), -100, 100)


def _twins(logits: np.ndarray, constant: Sequence[bool]) -> dict[int, tuple[int, float]]:
    """For each question that repeats an earlier one: which, and the correlation of their log-odds."""
    correlation, twins = correlations(logits), {}
    for q in range(len(constant)):
        for earlier in range(q):
            if constant[q] or constant[earlier] or earlier in twins:
                continue
            if abs(correlation[q, earlier]) > SAME_QUESTION:
                twins[q] = (earlier, float(correlation[q, earlier]))
                break
    return twins


def _notes(row: QuestionEvidence, ids: Sequence[str], twin: tuple[int, float] | None) -> tuple[str, ...]:
    notes = []
    if row.mass is not None and row.mass < LOW_MASS:
        notes.append("low mass")
    if _is_constant(row):
        notes.append("constant")
    elif row.information is not None and row.information <= row.chance_most:
        notes.append("no more than chance")
    if twin is not None:
        notes.append(f"{'same as' if twin[1] > 0 else 'opposite of'} {ids[twin[0]]}")
    return tuple(notes)

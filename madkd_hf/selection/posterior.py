"""What answers alone tell about the class: a logistic regression from log-odds to class probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ..data.limits import draw_evenly
from ..metrics import CalibrationError


STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # values of C to choose from; more of it is less regularisation
FIXED = 1.0  # scikit-learn's own, where no class has two rows
FOLDS = 5
MOST_CHOSEN_ON, MOST_FITTED = 10**6, 2 * 10**7  # rows times classes: about half a minute each on one core
MOST_NAMED = 5


@dataclass(frozen=True)
class Posterior:
    """A multinomial logistic regression from the answers about an image to its class, see `fit_posterior`.

    Attributes:
        model: standardises log-odds, then `LogisticRegression`.
        questions, classes: Q and C.
        rows: how many rows it was fitted on.
        C: inverse strength of the L2 regularisation, as scikit-learn calls it.
        folds: of the cross-validation; 0 where there was none, because no class has two rows, and C is fixed.
        accuracy: share of the held out rows whose class is the most probable, 0 to 1; None without cross-validation.
        calibration_error: expected calibration error of the probabilities of the held out rows, 0 to 1, see
            `metrics.CalibrationError`; None likewise.
    """

    model: Pipeline
    questions: int
    classes: int
    rows: int
    C: float
    folds: int
    accuracy: float | None
    calibration_error: float | None

    def class_logits(self, answers: np.ndarray) -> np.ndarray:
        """Log-probabilities of the classes, float32 [n, C], always finite; NaN in rows that lack an answer.

        Args:
            answers: [n, Q] log-odds of yes, to the questions that it was fitted on.
        """
        answers = np.asarray(answers)
        if answers.ndim != 2 or answers.shape[1] != self.questions:
            raise ValueError(
                f"Expected answers to the {self.questions} questions that were fitted, [n, {self.questions}]; got an "
                f"array {list(answers.shape)}."
            )
        logits = np.full((len(answers), self.classes), np.nan, dtype=np.float32)
        answered = ~np.isnan(answers).any(axis=1)
        if answered.any():
            logits[answered] = _log_posteriors(self.model, _finite(answers[answered]))
        return logits


def fit_posterior(
    answers: np.ndarray, labels: Sequence[int | None], num_classes: int, names: Sequence[str] = ()
) -> Posterior:
    """Fit a logistic regression from answers to classes; the same rows always give the same one.

    C is the one of `STRENGTHS` with the lowest cross-validated log loss on these rows: stratified, with as many folds
    as the rarest class that has two rows allows, at most 5. The only row of a class is always trained on. (The error
    and accuracy reported are of that C, so they are a little optimistic.) Of very many rows, C is chosen on some, and
    the regression fitted on some, drawn evenly of all classes.

    Args:
        answers: [n, Q] log-odds of yes; rows with a NaN have no answers and are left out.
        labels: [n] class indices; None or -1 where unknown, and left out.
        num_classes: C, each with at least one row.
        names: of the classes, for messages.

    Raises:
        ValueError: sizes that differ, fewer than two classes, no answers, or a class without a row.
    """
    x = np.asarray(answers)
    y = np.array([-1 if label is None else label for label in labels], dtype=np.int64)
    _check(x, y, num_classes)
    usable = ~np.isnan(x).any(axis=1) & (y >= 0)
    x, y = x[usable], y[usable]
    _check_classes(y, num_classes, names)
    x, y = _some(_finite(x), y, max(MOST_FITTED // num_classes, 2 * num_classes))
    best, folds, accuracy, error = _choose(*_some(x, y, max(MOST_CHOSEN_ON // num_classes, 2 * num_classes)))
    model = _fit(x, y, best)
    return Posterior(model, x.shape[1], num_classes, len(y), best, folds, accuracy, error)


def held_out_logits(answers: np.ndarray, labels: Sequence[int | None], num_classes: int) -> np.ndarray:
    """What the answers about each row say of its class, by a regression that was fitted without that row.

    The strength of the regression is chosen as in `fit_posterior`, and the folds are the same. Of very many rows, each
    regression is fitted on some.

    Args:
        answers, labels, num_classes: as in `fit_posterior`; here a class may have no row.

    Returns:
        Log-probabilities of the classes, float32 [n, C]; -inf for a class without rows. NaN in rows that lack an
        answer or a class, or are the only one of their class; in all, where fewer than two classes have two rows.

    Raises:
        ValueError: sizes that differ, or fewer than two classes.
    """
    x = np.asarray(answers)
    y = np.array([-1 if label is None else label for label in labels], dtype=np.int64)
    _check(x, y, num_classes)
    result = np.full((len(y), num_classes), np.nan, dtype=np.float32)
    usable = np.flatnonzero(~np.isnan(x).any(axis=1) & (y >= 0))
    present, codes = np.unique(y[usable], return_inverse=True)
    if (np.bincount(codes, minlength=1) > 1).sum() < 2:
        return result
    x = _finite(x[usable])
    few_x, few_codes = _some(x, codes, max(MOST_CHOSEN_ON // len(present), 2 * len(present)))
    _, held, logits = _hold_out(few_x, few_codes, STRENGTHS)
    best = _lowest_loss(logits, held, few_codes)
    if len(few_codes) < len(codes):
        _, held, logits = _hold_out(x, codes, (best,))
    result[usable[held]] = -np.inf
    result[np.ix_(usable[held], present)] = logits[best][held]
    return result


def _choose(x: np.ndarray, y: np.ndarray) -> tuple[float, int, float | None, float | None]:
    """C with the lowest log loss on rows held out, and the folds, accuracy and calibration error of it."""
    folds, held, logits = _hold_out(x, y, STRENGTHS)
    if not folds:
        return FIXED, 0, None, None
    best = _lowest_loss(logits, held, y)
    held_out = logits[best][held]
    error = CalibrationError(keep_in_memory=True).compute(predictions=held_out, references=y[held])
    return best, folds, float((held_out.argmax(axis=1) == y[held]).mean()), error["calibration_error"]


def _hold_out(
    x: np.ndarray, y: np.ndarray, strengths: Sequence[float]
) -> tuple[int, np.ndarray, dict[float, np.ndarray]]:
    """The folds, the rows that are held out in one of them, and for each strength the log-probabilities [n, C]."""
    counts = np.bincount(y)
    held = np.flatnonzero(counts[y] > 1)
    if not len(held):
        return 0, held, {}
    folds = int(min(FOLDS, counts[counts > 1].min()))
    logits = {strength: np.empty((len(y), len(counts))) for strength in strengths}
    for _, part in StratifiedKFold(folds, shuffle=True, random_state=0).split(held, y[held]):
        tested = held[part]
        trained = np.setdiff1d(np.arange(len(y)), tested)
        fitted_x, fitted_y = _some(x[trained], y[trained], max(MOST_FITTED // len(counts), 2 * len(counts)))
        for strength in strengths:
            logits[strength][tested] = _log_posteriors(_fit(fitted_x, fitted_y, strength), x[tested])
    return folds, held, logits


def _lowest_loss(logits: dict[float, np.ndarray], held: np.ndarray, y: np.ndarray) -> float:
    return min(logits, key=lambda strength: -logits[strength][held, y[held]].mean())


def _fit(x: np.ndarray, y: np.ndarray, strength: float) -> Pipeline:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # one row of each is no mistake here
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(x, y)


def _log_posteriors(model: Pipeline, x: np.ndarray) -> np.ndarray:
    scores = model.decision_function(x)
    if scores.ndim == 1:  # two classes: the log-odds of the second
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    return log_softmax(scores, axis=1)


def _finite(answers: np.ndarray) -> np.ndarray:
    return np.clip(answers.astype(np.float64), -100, 100)


def _some(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most so many rows, of all classes."""
    if len(y) <= most:
        return x, y
    rows = draw_evenly(y.tolist(), most)
    return x[rows], y[rows]


def _check(x: np.ndarray, y: np.ndarray, num_classes: int) -> None:
    if x.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f"Expected answers [n, Q] and a label for each row; got an array {list(x.shape)} and {len(y)} labels."
        )
    if num_classes < 2:
        raise ValueError(f"Expected two classes or more to tell apart; got {num_classes}.")
    if len(y) and not -1 <= y.min() <= y.max() < num_classes:
        raise ValueError(f"Expected labels 0 to {num_classes - 1}, or -1; got {y.min()} to {y.max()}.")


def _check_classes(y: np.ndarray, num_classes: int, names: Sequence[str]) -> None:
    if not len(y):
        raise ValueError("No row has both answers and a class: label images of each class first, with `madkd label`.")
    missing = np.setdiff1d(np.arange(num_classes), y).tolist()
    if missing:
        named = [repr(names[index]) if names else str(index) for index in missing[:MOST_NAMED]]
        more = f" and {len(missing) - MOST_NAMED} others" if len(missing) > MOST_NAMED else ""
        raise ValueError(
            f"No row with answers shows {len(missing)} of the {num_classes} classes ({', '.join(named)}{more}): label "
            "images of them, or leave those classes out."
        )

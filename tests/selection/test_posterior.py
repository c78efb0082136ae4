"""The logistic regression from answers to classes: what it finds, how it chooses, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from madkd_hf.selection import posterior
from madkd_hf.selection.posterior import STRENGTHS, fit_posterior, held_out_logits


def flowers(per_class: int, seed: int = 0, classes: int = 4, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds [n, 6] around a mean of each class, and the classes."""
    means = 3 * np.random.default_rng(99).normal(size=(classes, 6))
    labels = np.repeat(np.arange(classes), per_class)
    return np.float32(means[labels] + noise * np.random.default_rng(seed).normal(size=(len(labels), 6))), labels


def test_other_rows_get_log_probabilities_of_their_class():
    fitted = fit_posterior(*flowers(8), 4)
    answers, labels = flowers(50, seed=1)
    logits = fitted.class_logits(answers)
    assert logits.dtype == np.float32 and logits.shape == (200, 4) and np.isfinite(logits).all()
    np.testing.assert_allclose(logsumexp(logits, axis=1), 0, atol=1e-5)
    assert (logits.argmax(axis=1) == labels).mean() > 0.95
    assert (fitted.rows, fitted.folds, fitted.questions, fitted.classes) == (32, 5, 6, 4)
    assert fitted.accuracy > 0.9 and fitted.calibration_error < 0.1 and fitted.C in STRENGTHS


def test_answers_that_tell_nothing_are_held_down():
    generator = np.random.default_rng(0)
    fitted = fit_posterior(generator.normal(size=(200, 20)), np.arange(200) % 4, 4)
    assert fitted.C <= 0.01 and fitted.accuracy < 0.4
    assert np.exp(fitted.class_logits(generator.normal(size=(50, 20)))).max() < 0.4


def test_the_same_rows_give_the_same_regression_whatever_has_no_answers_or_no_class():
    answers, labels = flowers(6)
    one = fit_posterior(answers, labels, 4)
    none = np.full((1, 6), np.nan)
    half = np.array([[1, 2, np.nan, 4, 5, 6]])
    other = fit_posterior(np.vstack([answers, none, half, [[9] * 6] * 2]), [*labels, 0, 1, None, -1], 4)
    assert other.rows == 24 and (other.C, other.accuracy) == (one.C, one.accuracy)
    np.testing.assert_array_equal(one.class_logits(answers), other.class_logits(answers))
    logits = one.class_logits(np.vstack([answers[:1], none, half]))
    assert np.isnan(logits).all(axis=1).tolist() == [False, True, True]


def test_two_classes_and_an_answer_that_never_varies():
    answers, labels = flowers(10, classes=2)
    answers[:, 0] = 7
    logits = fit_posterior(answers, labels, 2).class_logits(answers)
    assert logits.shape == (20, 2) and (logits.argmax(axis=1) == labels).all()


def test_log_odds_without_end_stay_finite():
    answers = np.array([[np.inf, 1.0], [-np.inf, 1.0]] * 4)
    logits = fit_posterior(answers, [0, 1] * 4, 2).class_logits(answers)
    assert np.isfinite(logits).all() and logits.argmax(axis=1).tolist() == [0, 1] * 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("per_class", "folds"), [(1, 0), (2, 2), (3, 3), (9, 5)])
def test_the_rarest_class_limits_the_folds(per_class, folds):
    fitted = fit_posterior(*flowers(per_class), 4)
    assert fitted.folds == folds
    if folds == 0:
        assert (fitted.C, fitted.accuracy, fitted.calibration_error) == (1.0, None, None)
        answers, labels = flowers(50, seed=1)
        assert (fitted.class_logits(answers).argmax(axis=1) == labels).mean() > 0.8


def test_the_only_row_of_a_class_is_always_trained_on():
    answers, labels = flowers(6)
    keep = np.flatnonzero((labels != 3) | (np.arange(24) == 18))
    fitted = fit_posterior(answers[keep], labels[keep], 4)
    assert (fitted.rows, fitted.folds) == (19, 5) and fitted.accuracy > 0.8
    assert np.isfinite(fitted.class_logits(answers)).all()


def test_of_very_many_rows_some_of_each_class_are_taken(monkeypatch):
    monkeypatch.setattr(posterior, "MOST_FITTED", 4 * 40)
    answers, labels = flowers(30)
    fitted = fit_posterior(answers, labels, 4)
    assert fitted.rows == 40 and (fitted.class_logits(answers).argmax(axis=1) == labels).mean() > 0.9


def test_held_out_rows_are_told_by_regressions_that_have_not_seen_them():
    answers, labels = flowers(8)
    logits = held_out_logits(answers, labels, 4)
    np.testing.assert_allclose(logsumexp(logits, axis=1), 0, atol=1e-5)
    assert (logits.argmax(axis=1) == labels).mean() == pytest.approx(fit_posterior(answers, labels, 4).accuracy)
    changed = np.where(np.arange(32) == 5, 3, labels)  # the label of a row is not in what is said of it
    assert held_out_logits(answers, changed, 4)[5].argmax() == labels[5]


def test_of_what_cannot_be_held_out_nothing_is_said():
    answers, labels = flowers(6)
    answers[1] = np.nan
    labels = np.where(labels == 2, 3, labels)
    logits = held_out_logits(np.vstack([answers, answers[:2]]), [None, *labels[1:], 4, -1], 6)
    assert np.flatnonzero(np.isnan(logits).any(axis=1)).tolist() == [0, 1, 24, 25]  # 24 is the only one of its class
    assert (logits[2:24, [2, 5]] == -np.inf).all() and np.isfinite(logits[2:24][:, [0, 1, 3, 4]]).all()
    assert np.isnan(held_out_logits(answers, [0, 1, 2] + [None] * 21, 3)).all()


def test_of_very_many_rows_all_are_told_by_regressions_on_some(monkeypatch):
    monkeypatch.setattr(posterior, "MOST_CHOSEN_ON", 4 * 20)
    monkeypatch.setattr(posterior, "MOST_FITTED", 4 * 40)
    answers, labels = flowers(30)
    assert (held_out_logits(answers, labels, 4).argmax(axis=1) == labels).mean() > 0.9


@pytest.mark.parametrize(
    ("answers", "labels", "names", "expected"),
    [
        (np.zeros((3, 2)), [0, 1], (), r"an array \[3, 2\] and 2 labels"),
        (np.zeros(3), [0, 1, 2], (), r"Expected answers \[n, Q\]"),
        (np.zeros((3, 2)), [0, 1, 3], (), "Expected labels 0 to 2, or -1; got 0 to 3"),
        (np.full((3, 2), np.nan), [0, 1, 2], (), "No row has both answers and a class"),
        (np.zeros((0, 2)), [], (), "No row has both answers and a class"),
        (np.zeros((2, 2)), [0, 1], (), r"No row with answers shows 1 of the 3 classes \(2\): label images"),
        (np.array([[1.0], [np.nan]]), [1, 2], "abc", r"shows 2 of the 3 classes \('a', 'c'\): label"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_a_sentence(answers, labels, names, expected):
    with pytest.raises(ValueError, match=expected):
        fit_posterior(answers, labels, 3, names)


def test_one_class_and_other_questions_are_refused():
    with pytest.raises(ValueError, match="two classes or more to tell apart; got 1"):
        fit_posterior(np.zeros((2, 2)), [0, 0], 1)
    with pytest.raises(ValueError, match=r"answers to the 6 questions that were fitted.*got an array \[5, 3\]"):
        fit_posterior(*flowers(2), 4).class_logits(np.zeros((5, 3)))

"""Which labels are doubtful: those that were exchanged, and pictures that are there twice."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from madkd_hf.viewer.suspects import judge


def answers(per_class: int = 30, classes: int = 4, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds [n, 6] around a mean of each class, and the classes."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), per_class)
    means = 3 * generator.normal(size=(classes, 6))
    return np.float32(means[labels] + noise * generator.normal(size=(len(labels), 6))), labels


def test_exchanged_labels_come_first():
    x, labels = answers(noise=0.5)
    wrong = np.array([3, 40, 70, 100, 115])
    labels[wrong] = (labels[wrong] + 1) % 4
    judged = judge(x, labels, 4)
    assert set(judged.order[:5]) == set(wrong.tolist())
    assert (judged.scores[wrong] > 0).all() and (judged.suggested[wrong] == (labels[wrong] - 1) % 4).all()
    assert (judged.p_label[wrong] < judged.p_suggested[wrong]).all()
    assert set(np.argsort(-judged.unlike)[:5]) == set(wrong.tolist())


def test_an_image_is_judged_by_a_regression_that_has_not_seen_it():
    """Answers of pure chance, more questions than images: what was fitted on a row would know its label."""
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    judged = judge(generator.normal(size=(40, 200)), labels, 2)
    assert 0.2 < (judged.scores < 0).mean() < 0.8


def test_the_same_picture_with_two_labels_comes_before_everything_else_answers_or_none():
    x, labels = answers()
    labels[3] = 2
    x = np.vstack([x, np.full((3, 6), np.nan)])
    judged = judge(x, [*labels, 0, 1, 1], 4, [(120, 121), (121, 122), (0, 1)])
    assert set(judged.order[:2]) == {120, 121} and judged.order[2] == 3
    assert np.isnan(judged.scores[122]) and judged.order[-1] == 122 and judged.suggested[122] == -1


def test_usual_answers_are_the_mean_of_a_class_and_distance_is_from_the_others():
    x = np.array([[0.0, 100], [0, 100], [0, -100], [100, 100], [np.nan, np.nan]])
    judged = judge(x, [0, 0, 0, 1, 1], 2)
    np.testing.assert_allclose(judged.usual, [[0.5, 2 / 3], [1, 1]])
    np.testing.assert_allclose(judged.unlike, [0.25, 0.25, 0.5, np.nan, np.nan])


@pytest.mark.parametrize(
    ("labels", "classes"), [([0, 0, 0, 0], 1), ([-1] * 4, 0), ([-1] * 4, 3), ([0, 1, 2, -1], 3), ([0, 0, 1, -1], 2)]
)
def test_where_nothing_can_be_held_out_nothing_is_said(labels, classes):
    judged = judge(np.zeros((4, 2)), labels, classes)
    assert np.isnan(judged.scores).all() and (judged.suggested == -1).all() and judged.order == [0, 1, 2, 3]


def test_classes_without_rows_and_rows_without_class_do_no_harm():
    x, labels = answers()
    labels = np.where(np.arange(120) == 5, -1, labels + 1)
    judged = judge(x, labels, 6)
    assert np.isnan(judged.scores[5]) and (judged.scores[np.arange(120) != 5] < 0).mean() > 0.95
    assert not {0, 5} & set(judged.suggested.tolist())


def test_more_noise_is_found_less_well_but_better_than_by_chance():
    x, labels = answers(per_class=60, noise=4.0)
    generator = np.random.default_rng(1)
    wrong = generator.choice(len(labels), 12, replace=False)
    labels[wrong] = (labels[wrong] + generator.integers(1, 4, 12)) % 4
    auroc = roc_auc_score(np.isin(np.arange(len(labels)), wrong), judge(x, labels, 4).scores)
    assert 0.6 < auroc < 0.999

"""Each metric against its definition or scikit-learn; none needs a network."""

import socket

import evaluate
import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import f1_score, log_loss, roc_auc_score, top_k_accuracy_score
from transformers import EvalPrediction

from madkd_hf.metrics import (
    Accuracy,
    AspectAuroc,
    AspectBce,
    CalibrationError,
    MacroF1,
    TopK,
    compute_metrics,
)


N, C, Q = 40, 8, 3


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    return {
        "logits": random.normal(size=(N, C)).astype("float32"),
        "labels": random.integers(0, C, N),
        "aspects": random.normal(size=(N, Q)).astype("float32"),
        "targets": random.normal(size=(N, Q)).astype("float32") * 2,
    }


def value(metric, predictions, references, **settings):
    return metric().compute(predictions=predictions, references=references, **settings)


@pytest.mark.parametrize("metric", [Accuracy, TopK, MacroF1, CalibrationError, AspectAuroc, AspectBce])
def test_all_are_evaluate_metrics(metric):
    assert isinstance(metric(), evaluate.Metric)


def test_accuracy_is_the_share_of_highest_logits_that_are_right():
    logits = [[3, 1, 0], [0, 2, 1], [0, 1, 2], [5, 1, 4]]
    assert value(Accuracy, logits, [0, 1, 2, 2]) == {"accuracy": 0.75}


def test_top5_and_macro_f1_are_those_of_scikit_learn(data):
    logits, labels = data["logits"], data["labels"]
    top5 = top_k_accuracy_score(labels, logits, k=5, labels=range(C))
    assert value(TopK, logits, labels) == {"top5_accuracy": pytest.approx(top5)}
    assert value(TopK, logits, labels, k=2)["top2_accuracy"] < top5 < 1
    macro = f1_score(labels, logits.argmax(1), average="macro")
    assert value(MacroF1, logits, labels) == {"macro_f1": pytest.approx(macro)}


def test_top5_of_three_classes_is_always_right():
    assert value(TopK, [[3, 1, 0], [0, 2, 1]], [2, 2]) == {"top5_accuracy": 1.0}


def test_calibration_error_by_hand():
    """Two bins: four answers of confidence 0.9, three right; two of confidence 0.6, none right."""
    sure, unsure = np.log([0.9, 0.1]), np.log([0.6, 0.4])
    result = value(CalibrationError, [sure] * 4 + [unsure] * 2, [0, 0, 0, 1, 1, 1])
    assert result["calibration_error"] == pytest.approx(4 / 6 * (0.9 - 0.75) + 2 / 6 * 0.6, abs=1e-6)


def test_calibration_error_is_that_of_a_loop_over_bins(data):
    logits, labels = data["logits"] * 2, data["labels"]
    probabilities = softmax(logits, axis=1)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert value(CalibrationError, logits, labels)["calibration_error"] == pytest.approx(expected, abs=1e-6)


def test_certainty_falls_into_the_last_bin():
    assert value(CalibrationError, [[1000.0, 0.0]], [0])["calibration_error"] == 0


def test_auroc_of_each_aspect_is_that_of_scikit_learn(data):
    result = value(AspectAuroc, data["aspects"], data["targets"])
    expected = [roc_auc_score(data["targets"][:, q] > 0, data["aspects"][:, q]) for q in range(Q)]
    assert result["per_aspect"] == pytest.approx(expected)
    assert result["aspect_auroc"] == pytest.approx(np.mean(expected))


def test_a_constant_aspect_has_no_auroc_and_does_not_spoil_the_mean(data):
    data["targets"][:, 1] = 5.0
    result = value(AspectAuroc, data["aspects"], data["targets"])
    assert np.isnan(result["per_aspect"]).tolist() == [False, True, False]
    assert result["aspect_auroc"] == pytest.approx((result["per_aspect"][0] + result["per_aspect"][2]) / 2)


def test_constant_aspects_alone_give_nan_and_no_crash(data):
    result = value(AspectAuroc, data["aspects"], np.full((N, Q), -1.0))
    assert np.isnan(result["aspect_auroc"]) and np.isnan(result["per_aspect"]).all()


def test_bce_of_each_aspect_is_that_of_scikit_learn(data):
    result = value(AspectBce, data["aspects"], data["targets"])
    for q in range(Q):
        teacher, student = expit(data["targets"][:, q]), expit(data["aspects"][:, q])
        both = np.repeat([1, 0], N), np.tile(student, 2), np.concatenate([teacher, 1 - teacher])
        expected = log_loss(both[0], both[1], sample_weight=both[2])
        assert result["per_aspect"][q] == pytest.approx(expected, abs=1e-5)
    assert result["aspect_bce"] == pytest.approx(np.mean(result["per_aspect"]))


def test_bce_of_extreme_scores_is_finite():
    assert value(AspectBce, [[-500.0]], [[500.0]])["aspect_bce"] == pytest.approx(500)


def test_a_trainer_gets_all_of_them_as_numbers(data):
    prediction = EvalPrediction((data["logits"], data["aspects"]), (data["labels"], data["targets"]))
    results = compute_metrics(prediction)
    assert set(results) == {
        "accuracy", "top5_accuracy", "macro_f1", "calibration_error", "aspect_auroc", "aspect_bce",
    }  # fmt: skip
    assert all(type(result) is float for result in results.values())
    assert results["accuracy"] == pytest.approx((data["logits"].argmax(1) == data["labels"]).mean())


def test_rows_that_the_teacher_did_not_see_count_for_the_classes_alone(data):
    seen = np.arange(N) % 3 > 0
    targets = np.where(seen[:, None], data["targets"], np.nan)
    results = compute_metrics(EvalPrediction((data["logits"], data["aspects"]), (data["labels"], targets)))
    alone = value(AspectBce, data["aspects"][seen], data["targets"][seen])
    assert results["aspect_bce"] == pytest.approx(alone["aspect_bce"])
    assert results["accuracy"] == pytest.approx((data["logits"].argmax(1) == data["labels"]).mean())


@pytest.mark.parametrize("paired", [False, True], ids=["no aspects", "no targets"])
def test_without_targets_the_class_metrics_remain(data, paired):
    nothing = np.full((N, Q), np.nan)
    prediction = (
        EvalPrediction((data["logits"], data["aspects"]), (data["labels"], nothing))
        if paired
        else EvalPrediction(data["logits"], data["labels"])
    )
    assert set(compute_metrics(prediction)) == {"accuracy", "top5_accuracy", "macro_f1", "calibration_error"}


def test_no_metric_needs_a_network(data, monkeypatch):
    def refuse(*_):
        raise AssertionError("a metric asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    prediction = EvalPrediction((data["logits"], data["aspects"]), (data["labels"], data["targets"]))
    assert len(compute_metrics(prediction)) == 6

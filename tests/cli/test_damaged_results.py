"""What a command left and another one reads: checked, and named where it is damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from builders import damage

from madkd_hf.cli.tasks.base import load_arrays, save_arrays
from madkd_hf.cli.tasks.detection import load_predictions, predicted_arrays
from madkd_hf.hub.cards.comparison import read_comparison


REPORT = json.loads((Path(__file__).parents[2] / "recipes/easy_vqa/results/report.json").read_text(encoding="utf-8"))
BROKEN = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, bytes(100), json.dumps(REPORT).encode()[:-20]]


@pytest.mark.parametrize("content", BROKEN)
def test_a_report_that_is_none_is_named(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path} holds no comparison .*report.json.*: pass the output folder"):
        read_comparison(tmp_path)


def test_a_report_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT), encoding="utf-8-sig")
    assert read_comparison(tmp_path)["gain"] == REPORT["gain"]


GAIN = REPORT["gain"]
SEEDS = len(REPORT["seeds"])


@pytest.mark.parametrize(
    "changed",
    [
        {"accuracy": {**REPORT["accuracy"], "base": ["71.0"] * SEEDS}},
        {"accuracy": {**REPORT["accuracy"], "base": [float("nan")] * SEEDS}},
        {"accuracy": {**REPORT["accuracy"], "base": [10**400] * SEEDS}},
        {"accuracy": {**REPORT["accuracy"], "base": [True] * SEEDS}},
        {"accuracy": {**REPORT["accuracy"], "base": [[1.0]] * SEEDS}},
        {"accuracy": [1.0]},
        {"gain": {**GAIN, "mean": "1.0"}},
        {"gain": {**GAIN, "mean": float("inf")}},
        {"gain": {**GAIN, "ci95": [1.0]}},
        {"gain": {**GAIN, "ci95": [None, 1.0]}},
        {"gain": 1.0},
        {"gains": {"madkd": {"base": {"mean": 1.0}}}},
        {"controls": {"shuffled": 3}},
        {"seeds": "12345"[:SEEDS]},
        {"images_per_class": "many"},
        {"dataset": 7},
        {"aspect_auroc": {"a": "0.5"}},
        {"task": "regression"},
        {"task": ["detection"]},
    ],
)
def test_a_report_with_other_values_than_a_card_can_tell_is_refused(tmp_path, changed):
    (tmp_path / "report.json").write_text(json.dumps({**REPORT, **changed}))
    with pytest.raises(ValueError, match=f"{tmp_path} holds no comparison .*: pass the output folder of a finished"):
        read_comparison(tmp_path)


def test_damaged_predictions_are_never_believed(tmp_path):
    path, rng = tmp_path / "test_predictions.npz", np.random.default_rng(0)
    stored = {"logits": rng.normal(size=(50, 4)).astype(np.float32), "labels": rng.integers(4, size=50)}
    np.savez_compressed(path, **stored)
    whole, told = path.read_bytes(), 0
    for change in damage.BYTES * 10:
        path.write_bytes(change(whole, rng))
        try:
            found = load_arrays(path, "logits", "labels")
        except ValueError as error:
            assert f"{path} cannot be read" in str(error) and "run the same command again" in str(error)
            told += 1
        else:  # in what an archive does not need
            assert all(np.array_equal(found[name], values) for name, values in stored.items())
    assert told > 50
    with pytest.raises(ValueError, match="there is no 'counts' in it"):
        path.write_bytes(whole)
        load_predictions(path)


def test_predictions_of_detectors_are_read_back(tmp_path):
    found = [
        {"boxes": np.ones((n, 4)), "scores": np.ones(n), "labels": np.ones(n), "aspect_logits": np.ones((n, 2))}
        for n in (2, 0, 1)
    ]
    save_arrays(tmp_path / "found.npz", predicted_arrays(found))
    again = load_predictions(tmp_path / "found.npz")
    assert [{name: each.shape for name, each in row.items()} for row in again] == [
        {name: each.shape for name, each in row.items()} for row in found
    ]

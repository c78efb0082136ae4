"""What is kept of class targets: written, read again, and not believed where it can be no such thing."""

from __future__ import annotations

import json

import pytest

from madkd_hf.data.target_facts import LARGEST_FILE, TARGETS_FILE, TargetFacts


FACTS = TargetFacts("posterior@1:2", "posterior", {"train": 4, "test": 0}, 20, 20, 5, 0.85, 0.1, {"model": "m"})


def deep(levels: int) -> dict:
    return {"a": deep(levels - 1)} if levels else {}


def test_what_is_saved_is_loaded(tmp_path):
    assert TargetFacts.load(tmp_path) is None and TargetFacts.load(tmp_path / "nowhere") is None
    FACTS.save(tmp_path)
    assert TargetFacts.load(tmp_path) == FACTS and FACTS.name == "posterior@1"


def test_quality_is_a_sentence():
    assert FACTS.quality.startswith("It names the class of 85.0% of 20 images with a class, each left out of the fit")
    assert FACTS.quality.endswith("in turn (5 folds; calibration error 10.0%).")
    assert "nothing tells how good" in TargetFacts("a:1", "posterior", {}, fitted=3).quality
    larger = TargetFacts("m:1", "class teacher", {"train": 9}, tested=8, accuracy=0.5, calibration_error=0.25)
    assert larger.quality.startswith("They name the class of 50.0% of 8 images") and "25.0%" in larger.quality
    assert TargetFacts("m:1", "other", {"train": 9}).quality == "Nothing tells how good they are."


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"teacher": None},
        {"teacher": "x" * 501},
        {"teacher": "posterior\x1b[2J"},
        {"teacher": "a\u202eb"},
        {"kind": "oracle"},
        {"kind": ["posterior"]},
        {"rows": [1]},
        {"rows": {"train": -1}},
        {"rows": {"train": True}},
        {"rows": {"train": 10**15}},
        {"rows": {"\x07": 1}},
        {"fitted": "many"},
        {"folds": 2.5},
        {"accuracy": 1.5},
        {"accuracy": "1"},
        {"accuracy": float("nan")},
        {"calibration_error": -0.1},
        {"provenance": "me"},
        {"accuracy": 10**400},
        {"provenance": deep(100)},
    ],
    ids=lambda change: str(change)[:60],
)
def test_what_it_cannot_say_is_refused_in_one_sentence(tmp_path, change):
    FACTS.save(tmp_path)
    content = json.loads((tmp_path / TARGETS_FILE).read_text()) | change
    (tmp_path / TARGETS_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not say whose the class targets are .*delete it") as raised:
        TargetFacts.load(tmp_path)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (LARGEST_FILE + 1)]
)
def test_what_is_no_such_file_is_refused_in_one_sentence(tmp_path, content):
    (tmp_path / TARGETS_FILE).write_bytes(content)
    with pytest.raises(ValueError, match="does not say whose the class targets are.*delete it"):
        TargetFacts.load(tmp_path)

"""Class targets on the Hub: in the dataset, its card and a file beside it, and in the card of a student."""

from __future__ import annotations

import numpy as np
import pytest
from builders.commands import recipe
from builders.without_class import BANK, NAMES, hidden, rows, saved, trained
from datasets import DatasetDict, load_dataset, load_from_disk

from madkd_hf import AspectBank, push_aspect_dataset
from madkd_hf.data.class_targets import check_class_targets, with_class_targets
from madkd_hf.data.target_facts import TargetFacts


ID, REPO = "you/cows", ("you/cows", "dataset")
HIDDEN = (0, 4, 7, 20)


@pytest.fixture
def answered(tmp_path):
    splits = {"train": hidden(rows(24, 0), *HIDDEN), "validation": rows(12, 1)}
    return saved(tmp_path / "toys", **splits, test=rows(12, 2))


def card(hub, repo=REPO) -> str:
    return hub.files(*repo)["README.md"].decode()


def test_a_stranger_trains_on_what_the_command_published(hub, tmp_path, answered, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    words = ["--class_posterior", "true", "--output_dir", tmp_path / "out"]
    recipe("label", "--dataset", answered, *words, "--push_to_hub", "true", "--hub_dataset_id", ID)
    facts, content = TargetFacts.load(tmp_path / "out"), card(hub)
    assert TargetFacts.load(ID) == facts and facts.rows == {"train": 4, "validation": 0, "test": 0}
    loaded = load_dataset(ID, split="train", cache_dir=str(tmp_path / "cache"))
    check_class_targets(loaded, NAMES)
    ours = load_from_disk(tmp_path / "out")["train"]
    assert loaded["class_logits"][:] == ours["class_logits"][:] and loaded["label"][:] == ours["label"][:]
    assert "## Class targets" in content and "fitted on 20 images with a class" in content
    assert f"{facts.accuracy:.1%} of 20 images" in content and f"{facts.calibration_error:.1%}" in content
    assert "| train |" in " ".join(content.split()) and "`class_logits` | 3 float32" in content
    run = trained(tmp_path, "--dataset", ID, aspect_alpha=2.0)
    assert run.train_dataset["class_logits"][:].count(None) == 20
    assert TargetFacts.load(tmp_path / "student") == TargetFacts(
        **{**vars(facts), "rows": {"train": 4}}
    )  # what its own card says
    run.create_model_card()
    student = (tmp_path / "student" / "README.md").read_text()
    assert "Class targets of 4 training images: the classes that a multimodal LLM's answers speak for" in student
    assert "fitted on 20 images" in student and f"{facts.accuracy:.1%} of 20" in student
    assert "class_target_loss" in student


def test_a_dataset_without_them_has_no_such_section(hub, tmp_path, answered):
    splits = load_from_disk(answered)
    pushed = push_aspect_dataset(splits, BANK, ID)
    assert "class_logits" not in card(hub) and "class_targets.json" not in hub.files(*REPO)
    scored = {}
    for split, part in splits.items():
        scores = np.full((len(part), 3), np.nan) if split == "test" else np.zeros((len(part), 3))
        scored[split] = with_class_targets(part, scores, "`mine` <b>|", NAMES)
    push_aspect_dataset(DatasetDict(scored), BANK, ID)
    content = card(hub)
    assert "By `` `mine` <b>\\|:" in content and TargetFacts.load(ID).kind == "other"
    assert TargetFacts.load(ID).rows == {"train": 24, "validation": 12, "test": 0}
    again = push_aspect_dataset(splits, BANK, ID)  # what is gone is gone
    assert "class_targets.json" not in hub.files(*REPO) and again.oid != pushed.oid


def test_facts_about_other_targets_are_not_believed(hub, tmp_path, answered):
    part = load_from_disk(answered)["train"]
    scored = with_class_targets(part, np.zeros((24, 3)), "mine", NAMES)
    wrong = TargetFacts("posterior:1", "posterior", {"train": 999}, 10, 10, 5, 0.99, 0.01)
    push_aspect_dataset(scored, BANK, ID, class_targets=wrong)
    assert "99.0%" not in card(hub) and "999" not in card(hub) and "Nothing tells how good" in card(hub)


def test_the_posterior_of_a_training_is_on_the_student_s_card(tmp_path, answered):
    run = trained(tmp_path, "--dataset", answered, "--class_posterior", "true", aspect_alpha=0.0)
    facts = TargetFacts.load(tmp_path / "student")
    assert facts.rows == {"train": 4} and facts.fitted == 20 and facts.kind == "posterior"
    run.create_model_card()
    text = (tmp_path / "student" / "README.md").read_text()
    assert "## Class targets" in text and "trained on its classes and on [class targets]" in text
    assert f"{facts.accuracy:.1%} of 20 images" in text
    run = trained(tmp_path, "--dataset", answered, aspect_alpha=2.0)
    run.create_model_card()
    assert "Class targets" not in (tmp_path / "student" / "README.md").read_text()
    assert not (tmp_path / "student" / "class_targets.json").exists()


def test_a_damaged_file_beside_the_dataset_is_told_before_the_training(tmp_path, answered):
    recipe("label", "--dataset", answered, "--class_posterior", "true", "--output_dir", tmp_path / "out")
    (tmp_path / "out" / "class_targets.json").write_text('{"format_version": 1, "teacher": 3}')
    with pytest.raises(ValueError, match="does not say whose the class targets are .*delete it"):
        trained(tmp_path, "--dataset", tmp_path / "out", aspect_alpha=2.0)
    assert AspectBank.load(tmp_path / "out") is not None and not (tmp_path / "student" / "config.json").exists()

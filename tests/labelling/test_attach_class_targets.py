"""Class targets by the same job as aspects: each image once, in the dataset's order of classes, whatever happens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import labelling_jobs
from builders.class_teachers import NAMES, Counting, Killed, class_teacher, rows
from builders.labelled_rows import BANK, of_pictures, pictures
from builders.labelling import teacher
from datasets import Dataset, DatasetDict, load_dataset

from madkd_hf import ClassTeacher, attach_aspects, attach_class_targets
from madkd_hf.data.class_targets import check_class_targets
from madkd_hf.data.columns import skipped_rows
from madkd_hf.labelling.attach import attach
from madkd_hf.labelling.labellers import AspectLabeller, ClassLabeller


def scores(dataset) -> torch.Tensor:
    return torch.tensor([row["class_logits"] for row in dataset])


def expected(data: Dataset, of: ClassTeacher | None = None) -> torch.Tensor:
    return (of or class_teacher()).read(data["image"][:])


def assert_scores(dataset, values: torch.Tensor) -> None:
    torch.testing.assert_close(scores(dataset), values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_every_image_gets_its_scores_with_a_class_or_without(tmp_path, stream):
    data = rows(9, without_class=(2, 5))
    source = data.to_iterable_dataset() if stream else data
    labelled = attach_class_targets(source, class_teacher(), work_dir=tmp_path, shard_size=4)
    assert_scores(labelled, expected(data))
    features, made = labelled.features, list(labelled)
    assert features["class_logits"].length == 3 and features["class_logits"].feature.dtype == "float32"
    assert len({row["class_teacher"] for row in made}) == 1
    assert [row["label"] for row in made] == data["label"][:]


def test_classes_are_found_by_their_names(tmp_path):
    turned = ["cow", "cat", "dog"]
    other = class_teacher(turned)
    labelled = attach_class_targets(rows(), other, work_dir=tmp_path)
    own = expected(rows(), other)
    assert_scores(labelled, own[:, [turned.index(name) for name in NAMES]])
    check_class_targets(labelled, NAMES)
    with pytest.raises(ValueError, match="in another order"):
        check_class_targets(labelled, turned)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat", "dog"], "lacks 1 of them .first 'cow'."),
        (["cat", "dog", "cow", "pig"], "has 1 others .first 'pig'."),
        (["cat", "dog", "pig"], "lacks 1 .*'cow'.* and has 1 others .*'pig'"),
        (["cat", "dog", "cow", "cow"], "the same name for two classes"),
    ],
)
def test_other_classes_are_refused_before_the_first_image(tmp_path, names, said):
    counting = class_teacher(names, kind=Counting)
    with pytest.raises(ValueError, match=said):
        attach_class_targets(rows(), counting, work_dir=tmp_path)
    assert counting.count == 0


def test_text_and_numbers_are_classes_in_the_order_of_a_student(tmp_path):
    words = rows().remove_columns("label").add_column("label", ["dog", "cat", None, "dog", "cow", "cat", "dog"])
    labelled = attach_class_targets(words, class_teacher(), work_dir=tmp_path / "words")
    assert_scores(labelled, expected(rows())[:, [NAMES.index(name) for name in sorted(NAMES)]])
    numbers = rows().remove_columns("label").add_column("label", [10, 9, -1, 9, 10, 2, 2])
    labelled = attach_class_targets(numbers, class_teacher(["10", "2", "9"]), work_dir=tmp_path / "numbers")
    assert_scores(labelled, expected(rows(), class_teacher(["10", "2", "9"]))[:, [1, 2, 0]])


def test_images_without_any_classes_get_those_of_the_teacher(tmp_path):
    labelled = attach_class_targets(rows().remove_columns("label"), class_teacher(), work_dir=tmp_path)
    assert_scores(labelled, expected(rows()))


def test_aspects_stay_and_other_splits_get_nulls(tmp_path):
    splits = DatasetDict({"train": rows(5), "test": rows(3, seed=1)})
    answered = attach_aspects(splits, BANK, teacher(), splits="train", work_dir=tmp_path / "a")
    both = attach_class_targets(answered, class_teacher(), splits="train", work_dir=tmp_path / "b")
    assert both["train"]["aspect_logits"][:] == answered["train"]["aspect_logits"][:]
    assert both["test"]["class_logits"][:] == both["test"]["class_teacher"][:] == [None] * 3
    assert both["train"].features == both["test"].features
    with pytest.raises(ValueError, match="has class targets already.*drop them"):
        attach_class_targets(both, class_teacher(), work_dir=tmp_path / "c")


def test_one_pass_over_a_stream_asks_both_teachers_and_gives_what_two_give(tmp_path):
    labellers = [AspectLabeller(BANK, teacher()), ClassLabeller(class_teacher(), NAMES)]
    place = ("image", None, tmp_path / "both", "raise", 4, False, None, None)
    attach(rows(9).to_iterable_dataset(), labellers, *place)
    together = load_dataset("parquet", data_files=str(tmp_path / "both/data/*.parquet"), split="train")
    apart = attach_aspects(rows(9), BANK, teacher(), work_dir=tmp_path / "a")
    apart = attach_class_targets(apart, class_teacher(), work_dir=tmp_path / "b")
    assert set(together.column_names) == set(apart.column_names)
    assert_scores(together, scores(apart))
    np.testing.assert_allclose(together["aspect_logits"][:], apart["aspect_logits"][:], atol=1e-5)


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_a_stopped_job_goes_on_with_the_same_numbers_and_a_finished_one_costs_nothing(tmp_path, monkeypatch, stream):
    monkeypatch.setattr("madkd_hf.labelling.labellers.READ_CLASSES", 1)
    monkeypatch.setattr("madkd_hf.labelling.job.READ_BATCH", 1)
    data = rows(5).to_iterable_dataset() if stream else rows(5)
    with pytest.raises(KeyboardInterrupt, match="1 .*shards"):
        attach_class_targets(data, class_teacher(kind=Killed), work_dir=tmp_path, shard_size=1)
    counting = class_teacher(kind=Counting)
    labelled = attach_class_targets(data, counting, work_dir=tmp_path, shard_size=1)
    assert counting.count == 4
    assert_scores(labelled, expected(rows(5)))
    again = class_teacher(kind=Counting)
    assert_scores(attach_class_targets(data, again, work_dir=tmp_path), expected(rows(5)))
    assert again.count == 0


def test_another_class_teacher_is_another_job_and_another_column(cache):
    first = attach_class_targets(rows(), class_teacher(), work_dir=cache / "w")
    with pytest.raises(ValueError, match="its class_teacher weights is .* here .*; pass another work_dir"):
        attach_class_targets(rows(), class_teacher(seed=1), work_dir=cache / "w")
    with pytest.raises(ValueError, match="it asks for no answers to questions, here for answers to questions"):
        attach_aspects(rows(), BANK, teacher(), work_dir=cache / "w")
    second = attach_class_targets(rows(), class_teacher(seed=1))
    assert set(first["class_teacher"]).isdisjoint(second["class_teacher"])
    assert first._fingerprint != second._fingerprint


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_images_that_cannot_be_read_are_named_or_skipped(tmp_path, stream):
    bad = [name.startswith("bad") for name in pictures()]
    source = of_pictures().to_iterable_dataset() if stream else of_pictures()
    with pytest.raises(ValueError, match="cannot be decoded .*on_error='skip'"):
        attach_class_targets(source, class_teacher(), work_dir=tmp_path)
    labelled = attach_class_targets(source, class_teacher(), work_dir=tmp_path, on_error="skip")
    made = list(labelled.select_columns(["class_logits", "class_teacher"]))
    assert [row["class_logits"] is None for row in made] == bad
    assert None not in [row["class_teacher"] for row in made]
    assert skipped_rows(labelled) == [row for row, is_bad in enumerate(bad) if is_bad]


# Killed: the trials of tests/cli/test_resume.py, about scores of classes.


class Logging(ClassTeacher):
    """Notes in a file, which survives it, how many images it was asked about."""

    log: Path

    def read(self, images):
        with open(self.log, "a") as file:
            file.write(f"{len(images)}\n")
        return super().read(images)


def label(folder: Path, stream: bool = False):
    who = class_teacher(kind=Logging)
    who.log = folder / "log.txt"
    source = rows(labelling_jobs.ROWS).to_iterable_dataset() if stream else rows(labelling_jobs.ROWS)
    return attach_class_targets(source, who, work_dir=folder / "work", shard_size=labelling_jobs.SHARD)


@pytest.mark.parametrize(
    ("stream", "trials"), [(False, 2), pytest.param(True, 8, marks=pytest.mark.slow)], ids=["rows", "stream"]
)
def test_a_killed_job_goes_on_and_ends_with_the_same_bits(tmp_path, monkeypatch, stream, trials):
    monkeypatch.setattr(labelling_jobs, "label", label)
    columns = lambda labelled: list(labelled.remove_columns("image"))  # noqa: E731
    monkeypatch.setattr(labelling_jobs, "columns", columns)
    labelling_jobs.kill_trials(tmp_path, trials=trials, seed=3, stream=stream)

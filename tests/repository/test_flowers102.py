"""102 Flowers: its loader, on an archive of the original's form with a few pictures in it, and what questions tell."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest
from builders import tiny
from builders.commands import ROOT, recipe
from datasets import ClassLabel, Dataset, DatasetDict, Features, load_from_disk
from PIL import Image
from scipy.io import savemat

from madkd_hf import Aspect, AspectBank
from madkd_hf.data.columns import aspect_features
from recipes.flowers102 import prepare, questions, summary


@pytest.fixture
def archive(tmp_path):
    """12 photographs of classes 1 to 3; the last test image is the first training image, a little smaller."""
    folder = tmp_path / "flowers"
    (folder / "jpg").mkdir(parents=True)
    images = [image.resize((64, 64), Image.Resampling.BICUBIC) for image in tiny.images(11)]
    for number, image in enumerate([*images, images[0].resize((60, 60))], 1):
        image.save(folder / "jpg" / f"image_{number:05d}.jpg", quality=95)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 3] * 4])})
    savemat(folder / "setid.mat", {"trnid": [[1, 2, 3]], "valid": [[4, 5, 6]], "tstid": [list(range(7, 13))]})
    return folder


def test_the_official_splits_without_near_duplicates(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["prepare.py", "--photographs", str(archive), "--output_dir", str(tmp_path / "out")]
    )
    prepare.main()
    splits = load_from_disk(tmp_path / "out")
    assert {split: rows["file"][:] for split, rows in splits.items()} == {
        "train": [f"image_{number:05d}.jpg" for number in (1, 2, 3)],
        "validation": [f"image_{number:05d}.jpg" for number in (4, 5, 6)],
        "test": [f"image_{number:05d}.jpg" for number in range(7, 12)],
    }
    assert splits["test"]["label"][:] == [0, 1, 2, 0, 1] and splits["test"].features["label"].names[2] == "3"
    assert splits["train"][0]["image"].size == (64, 64)
    assert "near duplicates of the others: ['image_00012.jpg']" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        prepare.main()
    assert "is not empty: pass a new folder" in capsys.readouterr().err


def test_a_copy_in_parquet_gives_the_same_splits_with_names(archive, tmp_path):
    splits = prepare.of_archive(archive)
    for part, split in enumerate(("train", "validation", "test")):
        official = "val" if split == "validation" else split
        rows = splits[split].map(lambda row, official=official: {"official_split": official})
        rows = rows.add_column("label_name", [f"flower {label}" for label in rows["label"]])
        rows.cast_column("label", prepare.Value("int64")).to_parquet(tmp_path / "copy" / f"{part}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "CLASSES", 3)
        copied, left_out = prepare.prepare(tmp_path / "copy")
    assert left_out == ["image_00012.jpg"] and len(copied["test"]) == 5
    assert copied["train"].features["label"].names == ["flower 0", "flower 1", "flower 2"]


def test_a_missing_file_is_named(archive):
    (archive / "setid.mat").unlink()
    with pytest.raises(FileNotFoundError, match="no setid.mat in .*expected the folder jpg"):
        prepare.prepare(archive)


def test_the_documented_commands_leave_a_labelled_dataset(archive, tmp_path, monkeypatch):
    """Those of docs/experiments.md, on a few pictures and a file of the published answers' form."""
    page = (ROOT / "docs/experiments.md").read_text(encoding="utf-8").replace("\\\n", "")
    lines = re.findall(r"^(?:python recipes/flowers102/prepare.py|madkd label) .*flowers102.*$", page, re.MULTILINE)
    places = {"flowers": archive, "lavid": tmp_path / "lavid", "runs": tmp_path / "runs"}
    preparing, labelling = (
        [re.sub(r"^(flowers|lavid|runs)(?=/|$)", lambda match: str(places[match[0]]), word) for word in words]
        for words in map(shlex.split, lines)
    )
    monkeypatch.setattr("sys.argv", preparing[1:])
    prepare.main()
    answers = {f"image_{number:05d}.jpg": [0.25, 1 / (1 + number)] for number in (6, 5, 4, 3, 2, 1, 12)}
    file = tmp_path / "lavid/questions/flowers/logits/internvl2_img.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(answers, indent=4))
    recipe("attach_aspects", *labelling[2:])
    splits = load_from_disk(tmp_path / "runs/flowers102/labelled")
    for split, numbers in {"train": (1, 2, 3), "validation": (4, 5, 6)}.items():
        odds = np.array(splits[split]["aspect_logits"][:])
        np.testing.assert_allclose(odds, [[-np.log(3), -np.log(number)] for number in numbers], atol=1e-5)
    assert splits["test"]["aspect_logits"][:] == [None] * 5


# Questions by evidence against chance


@pytest.fixture
def answered(tmp_path):
    """8 classes by three answers, among five questions whose answers are noise."""
    bank = AspectBank([Aspect(f"q{k}", f"Is it {k}?") for k in range(8)])
    features = Features({"label": ClassLabel(names=list("abcdefgh")), **aspect_features(bank)})
    splits = {}
    for seed, split in enumerate(("train", "validation")):
        labels = np.tile(np.arange(8), 15)
        logits = np.random.default_rng(seed).normal(size=(120, 8)) * 3
        logits[:, [1, 2, 4]] = [[8 * (label >> bit & 1) - 4 for bit in range(3)] for label in labels]
        columns = {"label": labels, "aspect_logits": logits, "aspect_mass": np.ones((120, 8))}
        splits[split] = Dataset.from_dict({**columns, "aspect_bank": [bank.fingerprint] * 120}, features)
    DatasetDict(splits).save_to_disk(tmp_path / "labelled")
    bank.save(tmp_path / "labelled")
    return tmp_path / "labelled"


def test_questions_by_evidence_are_measured_against_random_ones(answered, tmp_path, monkeypatch, capsys):
    argv = ["questions.py", "--dataset", str(answered), "--output_dir", str(tmp_path / "out"), "--counts"]
    monkeypatch.setattr("sys.argv", [*argv, "3", "8", "--draws", "2"])
    questions.main()
    page = (tmp_path / "out" / "questions_curve.md").read_text()
    three, everything = ([cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()[6:8])
    drawn = [set(np.random.default_rng(seed).permutation(8)[:3]) for seed in range(2)]
    assert [len(draw & {1, 2, 4}) for draw in drawn] == [2, 1]
    assert three[:2] == ["3", "100.0"] and everything[:2] == ["8", "100.0 (3 kept)"]
    low, high = map(float, three[3].split(" to "))
    assert 15 < low < 35 and 40 < high < 60  # of 8 classes, one answer leaves four, two leave two
    assert everything[2].endswith("± 0.0") and "Of 8 questions, chosen and fitted on 120 train images" in page
    assert (tmp_path / "out" / "figures" / "questions_curve.png").is_file()
    assert "| q1 " in (tmp_path / "out" / "questions.md").read_text() and "| q1 " in capsys.readouterr().out
    for more, expected in ((["9"], "Cannot choose 9 of 8"), (["3", "--label_column", "kind"], "no column 'kind' of")):
        monkeypatch.setattr("sys.argv", [*argv, *more])
        with pytest.raises(SystemExit):
            questions.main()
        assert expected in capsys.readouterr().err


def test_reports_of_several_numbers_of_labels_become_one_table_and_picture(tmp_path):
    results = ROOT / "recipes/flowers102/results"
    paths = [results / "k10/report.json", results / "report.json"]
    page = summary.summarise(paths, tmp_path).read_text(encoding="utf-8")
    rows = [line.split("|")[1:4] for line in page.splitlines() if line.startswith("| ") and "±" in line]
    assert [int(row[0]) for row in rows] == [5] * 5 + [10] * 5  # in ascending order
    assert [row[1].strip() for row in rows[:2]] == ["base", "madkd"] and "32.3 ± 0.8" in rows[0][2]
    assert (tmp_path / "figures/against_images_per_class.png").is_file() and "3 to 5 seeds" in page
    with pytest.raises(ValueError, match="different numbers"):
        summary.summarise(paths[:1] * 2, tmp_path)

"""The loader of Oxford 102 Flowers, on an archive of the original's form with a few pictures in it."""

from __future__ import annotations

import numpy as np
import pytest
from builders import tiny
from datasets import load_from_disk
from PIL import Image
from scipy.io import savemat

from recipes.flowers102 import prepare


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

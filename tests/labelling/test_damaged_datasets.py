"""A saved dataset whose files are not what was written: named, with the remedy, before Arrow reads them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import damage, tiny
from datasets import Dataset, DatasetDict, Features, Image, load_from_disk

from madkd_hf import AspectTeacher
from madkd_hf import attach_aspects as label
from madkd_hf.cli import label as attach_aspects
from madkd_hf.cli.arguments import DatasetArguments, load_splits
from madkd_hf.data.sources import check_saved
from madkd_hf.files import CHECKSUM_FILE


SPLITS = DatasetDict(
    train=Dataset.from_dict({"label": range(50), "aspect_logits": [[0.5, 1.5]] * 50}),
    test=Dataset.from_dict({"label": [1], "aspect_logits": [None]}),
)


@pytest.fixture
def saved(tmp_path) -> Path:
    attach_aspects.save(SPLITS, tiny.bank(2), tmp_path / "out")
    check_saved(tmp_path / "out")
    assert load_from_disk(tmp_path / "out")["train"]["label"][:] == list(range(50))
    return tmp_path / "out"


def fuzz(saved: Path, rounds: int) -> int:
    """Damages one file at a time; returns how many were named."""
    files = sorted(path for path in saved.rglob("*") if path.parent != saved and not path.name.startswith("."))
    assert len(files) == 8  # arrow, info, state and checksums of two splits
    rng, named = np.random.default_rng(0), 0
    while named < rounds:
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        path.write_bytes(damage.BYTES[rng.integers(len(damage.BYTES))](whole, rng))
        if path.read_bytes() == whole:
            continue
        try:
            check_saved(saved)
        except ValueError as error:
            assert str(path) in str(error) or path.name == CHECKSUM_FILE, error
            assert str(path.parent) in str(error) and "madkd label" in str(error)
            named += 1
        else:  # a change that JSON does not mind, in the list of checksums
            assert path.name == CHECKSUM_FILE
        path.write_bytes(whole)
    return named


def test_damaged_files_are_named(saved):
    fuzz(saved, 60)


@pytest.mark.slow
def test_many_damaged_files_are_named(saved):
    print(f"files of saved datasets: {fuzz(saved, 600)} damaged and named, 0 believed")


def test_a_missing_file_is_named(saved):
    (path,) = (saved / "train").glob("*.arrow")
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} is missing: run the command that saved"):
        check_saved(saved)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"splits": [1]}', '{"splits": "train"}'])
def test_a_damaged_list_of_splits_is_named(saved, content):
    (saved / "dataset_dict.json").write_text(content)
    with pytest.raises(ValueError, match=f"{saved / 'dataset_dict.json'} .*: run the command that saved"):
        check_saved(saved)


def test_a_dataset_that_others_saved_is_looked_at_as_far_as_that_goes(tmp_path):
    SPLITS.save_to_disk(tmp_path / "theirs")
    check_saved(tmp_path / "theirs")
    SPLITS["train"].save_to_disk(tmp_path / "one")
    check_saved(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path / 'one' / 'state.json'} is damaged"):
        check_saved(tmp_path / "one")


def test_damaged_shards_of_a_stream_are_named(tmp_path):
    rows = Dataset.from_dict({"image": tiny.images(5, 20)}, features=Features({"image": Image()}))
    teacher = AspectTeacher(tiny.internvl(), tiny.processor(), "full")
    label(rows.to_iterable_dataset(), tiny.bank(2), teacher, work_dir=tmp_path, shard_size=2)
    check_saved(tmp_path)
    path = tmp_path / "data" / "train-00001.parquet"
    path.write_bytes(damage.flip_bits(path.read_bytes(), np.random.default_rng(0)))
    with pytest.raises(ValueError, match=f"{path} is damaged .*: run the command that saved"):
        load_splits(DatasetArguments(dataset=str(tmp_path)))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        check_saved(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")  # somebody else's
    check_saved(tmp_path)


def test_a_dataset_that_moved_is_the_same(saved, tmp_path):
    shutil.move(saved, tmp_path / "elsewhere")
    check_saved(tmp_path / "elsewhere")

"""Shards whose bytes are not what was written: seen before anything reads them, made again, and said."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from builders import damage, tiny
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_dataset

from madkd_hf import AspectTeacher, attach_aspects
from madkd_hf.files.seals import is_whole


BANK = tiny.bank(3)
SOURCE = Dataset.from_dict(
    {"image": tiny.images(11, 20), "label": range(11)}, features=Features({"image": Image(), "label": Value("int64")})
)
KINDS = pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])


class Counting(AspectTeacher):
    """Counts the images that it reads."""

    count = 0

    def read(self, images, bank):
        self.count += len(images)
        return super().read(images, bank)


TEACHER = Counting(tiny.internvl(), tiny.processor(), "full")


def label(folder: Path, stream: bool, bank=BANK, source: Dataset = SOURCE) -> tuple[pa.Table, int]:
    """All columns of a job in the folder, images as bytes, and how many images the teacher read."""
    TEACHER.count = 0
    source = source.to_iterable_dataset() if stream else source
    labelled = attach_aspects(source, bank, TEACHER, work_dir=folder, shard_size=3)
    if isinstance(labelled, IterableDataset):
        labelled = Dataset.from_list(list(labelled.decode(False)), features=labelled.features)
    table = labelled.with_format("arrow")[:]
    return table.take(list(range(len(table)))), TEACHER.count  # no longer mapped from files that are damaged next


def files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("shards/train-*"), *folder.glob("data/train-*")])


@pytest.fixture
def jobs(tmp_path, request) -> tuple[Path, Path]:
    """Two finished jobs that differ in their questions."""
    stream = request.node.callspec.params["stream"]
    label(tmp_path / "one", stream)
    label(tmp_path / "two", stream, tiny.bank(2))
    return tmp_path / "one", tmp_path / "two"


def fuzz(jobs: tuple[Path, Path], stream: bool, rounds: int, caplog) -> Counter:
    """Damage a finished job and run it again, so many times."""
    folder, other = jobs
    expected, _ = label(folder, stream)
    there, others = files(folder), files(other)
    rng, counts = np.random.default_rng(0), Counter(damaged=0, wrong=0, unsaid=0, unchanged=0)
    while counts["damaged"] < rounds:
        kind = damage.KINDS[rng.integers(len(damage.KINDS))]
        damaged = kind(there, others, rng)
        caplog.clear()
        found, read = label(folder, stream)
        counts["damaged"] += bool(damaged)
        counts["unchanged"] += not damaged
        counts["wrong"] += not found.equals(expected) or files(folder) != there
        counts["unsaid"] += not all(f"{path} " in caplog.text for path in damaged) or (read == 0) == bool(damaged)
    return counts


@KINDS
def test_a_few_damaged_shards(jobs, stream, caplog):
    counts = fuzz(jobs, stream, 25, caplog)
    assert (counts["wrong"], counts["unsaid"]) == (0, 0), counts


@pytest.mark.slow
@pytest.mark.parametrize(("stream", "rounds"), [(False, 400), (True, 200)], ids=["rows", "stream"])
def test_many_damaged_shards(jobs, stream, rounds, caplog):
    counts = fuzz(jobs, stream, rounds, caplog)
    print(damage.told(counts, f"shards of {'streams' if stream else 'rows'}"))
    assert (counts["wrong"], counts["unsaid"]) == (0, 0), counts


@KINDS
def test_what_is_wrong_with_a_shard_is_said_with_its_name_and_what_it_costs(jobs, stream, caplog):
    folder, other = jobs
    expected, _ = label(folder, stream)
    paths = files(folder)
    paths[0].write_bytes(damage.flip_bits(paths[0].read_bytes(), np.random.default_rng(0)))
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    paths[2].write_bytes(files(other)[2].read_bytes())
    paths[3].unlink()
    extra = paths[3].with_name(paths[3].name.replace("00003", "00007"))
    shutil.copy(files(other)[3], extra)
    assert not caplog.text
    found, read = label(folder, stream)
    assert found.equals(expected) and read == 11 and not extra.exists()
    for path, reason in zip(
        paths,
        [
            "is damaged (it does not match its checksum): its 3 images are read again.",
            "is damaged (it has no checksum): its 3 images are read again.",
            "belongs to another job or another place of this one: its 3 images are read again.",
            f"is missing: its {3 if stream else 2} images are read again.",
        ],
    ):
        assert f"{path} {reason}" in caplog.text
    assert f"{extra} belongs to another job" in caplog.text
    caplog.clear()
    assert label(folder, stream)[1] == 0 and not caplog.text


@KINDS
def test_a_shard_that_is_damaged_while_the_job_runs_is_not_believed(tmp_path, stream, monkeypatch):
    """By the time that the last shard is written, the first one may be hours old."""
    read = TEACHER.read

    def damaging(images, bank):
        if first := files(tmp_path):
            first[0].write_bytes(damage.flip_bits(first[0].read_bytes(), np.random.default_rng(1)))
        return read(images, bank)

    monkeypatch.setattr(TEACHER, "read", damaging, raising=False)
    with pytest.raises(ValueError, match="train-00000.* was damaged while the job ran: run the same command again"):
        label(tmp_path, stream)
    monkeypatch.setattr(TEACHER, "read", read)
    assert label(tmp_path, stream)[1] == 3


def test_every_byte_of_a_shard_is_watched(tmp_path):
    for stream in (False, True):
        label(tmp_path / str(stream), stream)
        path = files(tmp_path / str(stream))[0]
        content = path.read_bytes()
        assert is_whole(path)
        for place in range(0, len(content), 7):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert not is_whole(path)


def test_readers_of_parquet_see_shards_as_ever_and_no_copy_that_lies_beside_them(tmp_path):
    label(tmp_path / "out", True)
    first = files(tmp_path / "out")[0]
    shutil.copy(first, first.with_name("train-00000 (copy).parquet"))
    shutil.copy(first, first.with_name("train-0.parquet"))
    rows = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows["label"][:] == list(range(11))


@pytest.mark.parametrize(
    "change",
    [{"shard_size": 4}, {"plan": None}, {"splits": {"train": {"rows": 11, "fingerprint": "x"}}}, {"chekcsum": 1}],
)
def test_a_manifest_that_was_changed_is_not_believed(tmp_path, change):
    """What is damaged may be JSON still; then all shards would be taken for those of another job."""
    label(tmp_path, False)
    path = tmp_path / "manifest.json"
    content = path.read_text()
    path.write_text(json.dumps({**json.loads(content), **change}))
    with pytest.raises(ValueError, match=f"{path} .*no manifest .*does not match its checksum.*pass another work_dir"):
        label(tmp_path, False)
    path.write_text(content)
    assert label(tmp_path, False)[1] == 0


def test_shards_of_an_earlier_version_are_neither_believed_nor_removed(tmp_path):
    label(tmp_path, False)
    path, there = tmp_path / "manifest.json", files(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: content[name] for name in content if name not in ("checksum", "finished")}))
    with pytest.raises(ValueError, match="no manifest .*does not match its checksum.*pass another work_dir"):
        label(tmp_path, False)
    assert files(tmp_path) == there


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"[" * 100_000, b"NaN", b'{"splits": {}, "shard_size": 1e999}'])
def test_a_manifest_that_is_something_else_is_told_in_one_sentence(tmp_path, content):
    label(tmp_path, False)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match="no manifest of a labelling job .*pass another work_dir"):
        label(tmp_path, False)
    assert len(files(tmp_path)) == 4


def test_a_checksum_stands_behind_however_many_class_names(tmp_path):
    names = [f"a class whose name is not short {index}" for index in range(3_000)]  # over 64 KiB of footer
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    source = Dataset.from_dict({"image": tiny.images(4), "label": range(4)}, features=features)
    table, read = label(tmp_path, True, source=source)
    assert (len(table), read) == (4, 4)
    assert label(tmp_path, True, source=source)[1] == 0
    path = tmp_path / "data" / "train-00000.parquet"
    assert is_whole(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert is_whole(path) in (False, None)

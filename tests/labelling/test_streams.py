"""Which stream a job continues: files, datasets and steps are compared, and a name stands for functions."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import datasets
import pytest
from builders import tiny
from builders.labelling import Asleep, teacher
from builders.quick_python import quick_python
from datasets import Dataset, Features, Image, IterableDataset, Value, load_dataset

from madkd_hf import attach_aspects
from madkd_hf.data.streams import digest


BANK = tiny.bank(3)
FEATURES = Features({"image": Image(), "label": Value("int64")})


def rows(count: int = 5, seed: int = 0) -> Dataset:
    return Dataset.from_dict({"image": tiny.images(count, 20, seed=seed), "label": range(count)}, features=FEATURES)


SCRIPT = """
import sys
from builders import tiny
from datasets import Dataset, load_dataset
from madkd_hf.data.streams import digest

stream = Dataset.from_dict({"label": range(6)}).to_iterable_dataset()
streams = [
    stream,
    stream.shuffle(seed=3, buffer_size=2).take(4),
    stream.filter(lambda row: row["label"] in {"one", "two", "three"}),
    load_dataset(sys.argv[1], split="train", streaming=True),
    load_dataset(sys.argv[2], split="train", streaming=True).shuffle(seed=1).skip(1),
]
for stream in streams:
    first = digest(stream, "a name")
    list(stream)
    assert digest(stream, "a name") == first
    print(first)
"""


def test_a_stream_made_anew_in_another_process_is_the_same(tmp_path):
    (tmp_path / "parquet").mkdir()
    rows(6).to_parquet(tmp_path / "parquet" / "a.parquet")
    (tmp_path / "images").mkdir()
    for i, image in enumerate(tiny.images(3)):
        image.save(tmp_path / "images" / f"{i}.png")
    printed = []
    for seed in "12":
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{root}:{root / 'tests'}"}
        words = [quick_python(), "-c", SCRIPT, str(tmp_path / "parquet"), str(tmp_path / "images")]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.split())
    assert len(set(printed[0])) == 5 and printed[0] == printed[1]


def test_other_rows_steps_or_settings_are_another_stream():
    stream = rows(6).to_iterable_dataset()
    streams = [
        stream,
        rows(6, seed=1).to_iterable_dataset(),
        stream.take(2),
        stream.take(3),
        stream.skip(2),
        stream.shuffle(seed=1, buffer_size=2),
        stream.shuffle(seed=2, buffer_size=2),
        stream.rename_column("label", "class"),
        stream.map(lambda row, add: row, fn_kwargs={"add": 1}, features=FEATURES),
        stream.map(lambda row, add: row, fn_kwargs={"add": 2}, features=FEATURES),
        stream.filter(lambda row: row["label"] < 2),
    ]
    assert len({digest(stream, "a name") for stream in streams}) == len(streams)


def generated() -> IterableDataset:
    def make():
        yield from rows(4)

    return IterableDataset.from_generator(make, features=FEATURES)


@pytest.mark.parametrize(
    "make",
    [
        generated,
        lambda: rows().to_iterable_dataset().map(lambda row: row, features=FEATURES),
        lambda: rows().to_iterable_dataset().filter(lambda row: row["label"] > 1),
    ],
    ids=["from_generator", "map", "filter"],
)
def test_a_function_needs_a_name_and_the_name_stands_for_it(tmp_path, make):
    with pytest.raises(ValueError, match="made by the function .*: pass stream_name"):
        attach_aspects(make(), BANK, teacher(), work_dir=tmp_path)
    assert not any(tmp_path.iterdir())
    labelled = list(attach_aspects(make(), BANK, teacher(), work_dir=tmp_path, stream_name="first"))
    asleep = Asleep(tiny.internvl(), tiny.processor())
    again = list(attach_aspects(make(), BANK, asleep, work_dir=tmp_path, stream_name="first"))
    assert [row["aspect_logits"] for row in again] == [row["aspect_logits"] for row in labelled]
    with pytest.raises(ValueError, match="holds another labelling job"):
        attach_aspects(make(), BANK, asleep, work_dir=tmp_path, stream_name="second")


@pytest.mark.parametrize("change", ["a file more", "a file rewritten"])
def test_a_stream_over_changed_files_is_refused(tmp_path, change):
    (tmp_path / "source").mkdir()
    rows(5).to_parquet(tmp_path / "source" / "a.parquet")
    load = lambda: load_dataset(str(tmp_path / "source"), split="train", streaming=True)  # noqa: E731
    attach_aspects(load(), BANK, teacher(), work_dir=tmp_path / "work")
    attach_aspects(load(), BANK, Asleep(tiny.internvl(), tiny.processor()), work_dir=tmp_path / "work")
    both = datasets.concatenate_datasets([rows(1), rows(4, seed=3)])
    both.to_parquet(tmp_path / "source" / ("b.parquet" if change == "a file more" else "a.parquet"))
    with pytest.raises(ValueError, match="holds another labelling job"):
        attach_aspects(load(), BANK, teacher(), work_dir=tmp_path / "work")


def test_an_unseeded_shuffle_is_refused(tmp_path):
    stream = rows().to_iterable_dataset().shuffle(buffer_size=2)
    with pytest.raises(ValueError, match=r"shuffled without a seed.*pass shuffle\(seed=...\)"):
        attach_aspects(stream, BANK, teacher(), work_dir=tmp_path)

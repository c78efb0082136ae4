"""The map job: the same rows with three more columns, computed once."""

import json
import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from builders import tiny
from builders.labelled_rows import BANK, COLUMNS, assert_answers, expected, rows, splits
from builders.labelling import Asleep, Counting, shards, teacher
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    Value,
    load_dataset,
    load_from_disk,
)

from madkd_hf import Aspect, AspectBank, attach_aspects
from madkd_hf.labelling.shards import WorkDir


# What comes out


def test_a_dataset_gets_the_readings_of_its_images(tmp_path):
    source = rows()
    labelled = attach_aspects(source, BANK, teacher(), work_dir=tmp_path)
    reading = teacher().read(source["image"][:], BANK)
    assert isinstance(labelled, Dataset) and labelled.column_names == ["image", "label", *COLUMNS]
    assert np.array_equal(np.array(labelled["aspect_logits"][:], dtype="float32"), reading.logits.numpy())
    assert np.array_equal(np.array(labelled["aspect_mass"][:], dtype="float32"), reading.mass.numpy())
    assert labelled["aspect_bank"][:] == [BANK.fingerprint] * 5
    assert reading.logits.std() > 0.1


def test_columns_are_declared_with_their_length_and_type(tmp_path):
    features = attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path).features
    answers = List(Value("float32"), length=3)
    assert features == {
        **rows().features,
        "aspect_logits": answers,
        "aspect_mass": answers,
        "aspect_bank": Value("string"),
    }


def test_every_split_of_a_dict_is_labelled_by_default(tmp_path):
    source = splits()
    labelled = attach_aspects(source, BANK, teacher(), work_dir=tmp_path)
    assert isinstance(labelled, DatasetDict) and list(labelled) == ["train", "test"]
    for split in labelled:
        assert_answers(labelled[split], expected(source[split]))


def as_saved(labelled: DatasetDict, folder) -> DatasetDict:
    labelled.save_to_disk(folder / "saved")
    return load_from_disk(folder / "saved")


def as_parquet(labelled: DatasetDict, folder) -> DatasetDict:
    files = {split: str(folder / f"{split}.parquet") for split in labelled}
    for split, file in files.items():
        labelled[split].to_parquet(file)
    return load_dataset("parquet", data_files=files, cache_dir=str(folder / "cache"))


@pytest.mark.parametrize(
    "travel",
    [lambda labelled, _: labelled, lambda labelled, _: pickle.loads(pickle.dumps(labelled)), as_saved, as_parquet],
    ids=["as it is", "pickled", "saved to disk", "parquet"],
)
def test_unlabelled_splits_carry_nulls_in_one_schema_wherever_they_travel(tmp_path, travel):
    source = splits()
    labelled = travel(attach_aspects(source, BANK, teacher(), splits="train", work_dir=tmp_path), tmp_path)
    assert labelled["train"].features == labelled["test"].features
    assert labelled["train"].features["aspect_logits"] == List(Value("float32"), length=3)
    assert labelled["test"].num_rows == 3
    assert all(row[name] is None for row in labelled["test"] for name in COLUMNS)
    assert_answers(labelled["train"], expected(source["train"]))
    both = datasets.concatenate_datasets([labelled["train"], labelled["test"]])
    assert [row["aspect_logits"] is None for row in both] == [False] * 5 + [True] * 3


def test_source_columns_are_untouched(tmp_path):
    source = rows()
    labelled = attach_aspects(source, BANK, teacher(), work_dir=tmp_path)
    bytes_of = lambda dataset: dataset.cast_column("image", Image(decode=False))["image"][:]  # noqa: E731
    assert bytes_of(labelled) == bytes_of(source)
    assert labelled["label"][:] == source["label"][:]
    assert source.column_names == ["image", "label"]


def test_split_name_and_dataset_card_survive(cache):
    source = Dataset(rows().data, info=datasets.DatasetInfo(license="mit", features=rows().features), split="dev")
    for part in (source, source.shuffle(seed=1), source.select([])):
        labelled = attach_aspects(part, BANK, teacher())
        assert (str(labelled.split), labelled.info.license) == ("dev", "mit")


@pytest.mark.parametrize(
    "pick",
    [
        lambda dataset: dataset.select([4, 0, 2]),
        lambda dataset: dataset.shuffle(seed=3),
        lambda dataset: dataset.filter(lambda row: row["label"] == 1),
        lambda dataset: dataset.shuffle(seed=3).select(range(1, 4)),
    ],
    ids=["select", "shuffle", "filter", "both"],
)
def test_rows_and_answers_stay_aligned_under_an_indices_mapping(tmp_path, pick):
    source = pick(rows())
    labelled = attach_aspects(source, BANK, teacher(), work_dir=tmp_path)
    assert labelled["label"][:] == source["label"][:]
    assert_answers(labelled, expected(source))
    order = range(len(labelled))[::-1]
    chosen = labelled.select(order)
    assert_answers(chosen, expected(source.select(order)))


def test_images_that_are_files_and_have_another_name(tmp_path):
    for i, image in enumerate(tiny.images(3)):
        image.save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    source = Dataset.from_dict({"picture": paths}).cast_column("picture", Image())
    labelled = attach_aspects(source, BANK, teacher(), image_column="picture", work_dir=tmp_path / "work")
    assert_answers(labelled, teacher().read(tiny.images(3), BANK).logits)


def test_more_rows_than_a_batch_and_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr("madkd_hf.labelling.job.READ_BATCH", 2)
    source = rows(13)
    assert_answers(
        attach_aspects(source, BANK, teacher(batch_size=6), work_dir=tmp_path, shard_size=5), expected(source)
    )
    assert len(list((tmp_path / "shards").iterdir())) == 3


def test_an_empty_split_gets_empty_columns(tmp_path):
    labelled = attach_aspects(rows().select([]), BANK, teacher(), work_dir=tmp_path)
    assert labelled.num_rows == 0
    assert labelled.features == attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path).features


def test_the_progress_bar_counts_images(tmp_path, capsys):
    were_enabled = datasets.is_progress_bar_enabled()
    attach_aspects(rows(5).shuffle(seed=0), BANK, teacher(), work_dir=tmp_path)
    shown = capsys.readouterr().err
    assert "train: 3 questions an image" in shown and "5/5" in shown and "images/s" in shown
    assert "examples" not in shown
    assert datasets.is_progress_bar_enabled() == were_enabled
    attach_aspects(rows(5).shuffle(seed=0), BANK, teacher(), work_dir=tmp_path)
    assert "images" not in capsys.readouterr().err


# Once is enough


def test_a_second_run_costs_nothing(tmp_path):
    first = attach_aspects(splits(), BANK, teacher(), work_dir=tmp_path)
    again = attach_aspects(splits(), BANK, Asleep(tiny.internvl(), tiny.processor()), work_dir=tmp_path)
    for split in first:
        assert_answers(again[split], torch.tensor(first[split]["aspect_logits"][:]))


def test_another_strategy_takes_the_answers_that_are_there(tmp_path):
    attach_aspects(rows(), BANK, teacher(strategy="full"), work_dir=tmp_path)
    attach_aspects(rows(), BANK, Asleep(tiny.internvl(), tiny.processor(), "shared_vision"), work_dir=tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"prompt": "{question} yes or no ?"},
        {"answer_tokens": ("Yes", "No")},
        {"bank": AspectBank(reversed(list(BANK)))},
        {"bank": AspectBank([*tiny.bank(2), Aspect("new", "is there a blue shape ?")])},
        {"source": rows(seed=2)},
        {"source": rows().shuffle(seed=1)},
    ],
    ids=["weights", "prompt", "answer tokens", "order of questions", "a question", "images", "order of images"],
)
def test_whatever_changes_the_answers_labels_anew(cache, other):
    settings = dict(other)
    bank, source, seed = settings.pop("bank", BANK), settings.pop("source", rows()), settings.pop("seed", 0)
    attach_aspects(rows(), BANK, teacher())
    counting = Counting(tiny.internvl(seed), tiny.processor(), **settings)
    labelled = attach_aspects(source, bank, counting)
    assert counting.count == 5
    assert_answers(labelled, expected(source, counting, bank))
    assert labelled["aspect_bank"][0] == bank.fingerprint


def test_a_second_split_with_the_same_rows_is_no_second_split(tmp_path):
    """Two splits that hold the same images are labelled each for itself and keep their own rows."""
    labelled = attach_aspects(DatasetDict({"a": rows(), "b": rows()}), BANK, teacher(), work_dir=tmp_path)
    assert_answers(labelled["a"], expected(rows()))
    assert_answers(labelled["b"], expected(rows()))


def test_a_job_goes_on_with_its_own_shard_size_and_plan(tmp_path):
    attach_aspects(rows(8), BANK, teacher(strategy="full"), work_dir=tmp_path, shard_size=3)
    (tmp_path / "shards" / "train-00001.arrow").unlink()
    counting = Counting(tiny.internvl(), tiny.processor(), "auto")
    labelled = attach_aspects(rows(8), BANK, counting, work_dir=tmp_path)
    assert_answers(labelled, expected(rows(8), teacher(strategy="full")))
    assert counting.count == 3 and counting.plan["strategy"] == "full"


def test_the_plan_does_not_depend_on_what_the_teacher_read_before(tmp_path):
    experienced = teacher(strategy="auto")
    experienced.prepare(tiny.images(2, 20, seed=9), BANK)
    experienced.plan["batch_size"] = 1
    for who, folder in ((experienced, "one"), (teacher(strategy="auto"), "two")):
        attach_aspects(rows(), BANK, who, work_dir=tmp_path / folder)
    plans = [json.loads((tmp_path / name / "manifest.json").read_text())["plan"] for name in ("one", "two")]
    assert plans[0] == plans[1]


# What is refused


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (
            rows(),
            {"image_column": "img"},
            r"no column 'img': the dataset has \['image', 'label'\]; name .*image_column",
        ),
        (rows(), {"image_column": "label"}, r"'label' holds ClassLabel.*not images: cast it with .*datasets.Image"),
        (splits(), {"splits": ["train", "dev"]}, r"no split 'dev': the dataset has \['train', 'test'\]"),
        ({"train": rows()}, {}, "takes a Dataset or a DatasetDict.*received dict"),
        (rows(), {"on_error": "ignore"}, "Unknown on_error 'ignore': expected 'raise' or 'skip'"),
        (rows(), {"shard_size": 0}, "at least one image: received shard_size=0"),
        (rows().to_iterable_dataset(), {"work_dir": None}, "A stream needs a place .* pass work_dir"),
    ],
    ids=["no column", "no images", "no split", "dict", "on_error", "shard size", "stream without a place"],
)
def test_what_cannot_be_labelled_is_refused(tmp_path, source, settings, message):
    with pytest.raises(ValueError, match=message):
        attach_aspects(source, BANK, teacher(), **{"work_dir": tmp_path, **settings})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", ["train", "test"])
def test_one_bad_split_is_found_before_any_image_is_read(tmp_path, which):
    source = splits()
    source[which] = source[which].rename_column("image", "img")
    with pytest.raises(ValueError, match="no column 'image'"):
        attach_aspects(source, BANK, Asleep(tiny.internvl(), tiny.processor()), splits=["train"], work_dir=tmp_path)


def test_a_labelled_dataset_is_refused_with_the_way_to_drop_its_labels(tmp_path):
    labelled = attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
    with pytest.raises(ValueError, match=r"labelled already.*remove_columns\(\['aspect_logits'"):
        attach_aspects(labelled, BANK, teacher(), work_dir=tmp_path)
    attach_aspects(labelled.remove_columns(COLUMNS), BANK, teacher(), work_dir=tmp_path / "other")


# Streams


def test_a_stream_becomes_parquet_that_stands_alone(tmp_path):
    for i, image in enumerate(tiny.images(7)):
        image.save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(7)]
    source = Dataset.from_dict({"image": paths, "label": range(7)}).cast_column("image", Image())
    whole = Path(paths[0]).read_bytes()
    labelled = attach_aspects(source.to_iterable_dataset(), BANK, teacher(), work_dir=tmp_path / "out", shard_size=3)
    assert isinstance(labelled, IterableDataset)
    for path in paths:
        os.unlink(path)
    assert shards(tmp_path / "out") == ["README.md", *(f"train-0000{i}.parquet" for i in range(3))]
    read = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert read.features == labelled.features
    assert read.features["image"] == Image() and read.features["aspect_logits"] == List(Value("float32"), length=3)
    assert_answers(read, teacher().read(tiny.images(7), BANK).logits)
    assert read["label"][:] == [row["label"] for row in labelled] == list(range(7))
    assert read.cast_column("image", Image(decode=False))[0]["image"] == {"bytes": whole, "path": "0.png"}
    assert np.array_equal(np.array(next(iter(labelled))["image"]), np.array(tiny.images(7)[0]))


def test_a_stream_and_rows_get_the_same_answers(tmp_path):
    settings = {"bank": BANK, "shard_size": 4}
    stream = attach_aspects(rows(9).to_iterable_dataset(), teacher=teacher(), work_dir=tmp_path / "a", **settings)
    of_rows = attach_aspects(rows(9), teacher=teacher(), work_dir=tmp_path / "b", **settings)
    for name in ["label", *COLUMNS]:
        assert [row[name] for row in stream] == of_rows[name][:]


def test_splits_of_a_stream_keep_one_schema(tmp_path):
    source = IterableDatasetDict({name: part.to_iterable_dataset() for name, part in splits().items()})
    source["none"] = rows(3).to_iterable_dataset().take(0)
    labelled = attach_aspects(source, BANK, teacher(), splits=["train", "none"], work_dir=tmp_path, shard_size=2)
    assert list(labelled) == ["train", "test", "none"]
    assert labelled["train"].features == labelled["test"].features == labelled["none"].features
    assert len(list(labelled["train"])) == 5 and list(labelled["none"]) == []
    assert [[row[name] for name in COLUMNS] for row in labelled["test"]] == [[None] * 3] * 3
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        *(f"train-0000{i}.parquet" for i in range(3)),
        *(f"test-0000{i}.parquet" for i in range(2)),
        "none-00000.parquet",
    }


def test_splits_of_any_name_are_found_by_load_dataset(tmp_path):
    source = IterableDatasetDict({name: rows(3).to_iterable_dataset() for name in ("extra", "train", "train2")})
    attach_aspects(source, BANK, teacher(), splits="train", work_dir=tmp_path / "out", shard_size=2)
    BANK.save(tmp_path / "out")
    splits = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in splits.items()} == {"extra": 3, "train": 3, "train2": 3}


def test_a_finished_stream_costs_nothing_and_another_one_is_refused(tmp_path):
    stream = rows().to_iterable_dataset
    attach_aspects(stream(), BANK, teacher(), work_dir=tmp_path)
    asleep = Asleep(tiny.internvl(), tiny.processor())
    assert len(list(attach_aspects(stream(), BANK, asleep, work_dir=tmp_path))) == 5
    for other in (stream().take(2), rows(seed=1).to_iterable_dataset(), stream().rename_column("label", "class")):
        with pytest.raises(ValueError, match="holds another labelling job: its rows of split 'train' fingerprint"):
            attach_aspects(other, BANK, asleep, work_dir=tmp_path)
    with pytest.raises(ValueError, match="holds another labelling job"):
        attach_aspects(rows(), BANK, asleep, work_dir=tmp_path)


def test_a_stream_that_does_not_know_its_columns_is_told_how_to_say_them(tmp_path):
    def images():
        yield from ({"image": image} for image in tiny.images(2))

    source = IterableDataset.from_generator(images)
    with pytest.raises(ValueError, match=r"does not say what its columns are.*features=Features\(\{'image': Image"):
        attach_aspects(source, BANK, teacher(), work_dir=tmp_path)
    source = IterableDataset.from_generator(images, features=Features({"image": Image()}))
    assert len(list(attach_aspects(source, BANK, teacher(), work_dir=tmp_path, stream_name="two"))) == 2


@pytest.mark.parametrize("name", ["a b é", "fold-1.v2"])
def test_split_names_with_many_characters_go_on(tmp_path, name):
    attach_aspects(DatasetDict({name: rows()}), BANK, teacher(), work_dir=tmp_path)
    attach_aspects(DatasetDict({name: rows()}), BANK, Asleep(tiny.internvl(), tiny.processor()), work_dir=tmp_path)


def test_a_part_of_a_split_is_labelled_under_its_name(tmp_path):
    half = Dataset.from_dict({"image": tiny.images(4)}, features=Features({"image": Image()}), split="train[:50%]")
    assert len(attach_aspects(half, BANK, teacher(), work_dir=tmp_path)["aspect_logits"]) == 4
    assert (tmp_path / "shards" / "train-00000.arrow").is_file()
    attach_aspects(half, BANK, Asleep(tiny.internvl(), tiny.processor()), work_dir=tmp_path)


def test_split_names_that_cannot_be_written_are_refused_first(tmp_path):
    asleep = Asleep(tiny.internvl(), tiny.processor())
    for name in ("a/b", "..", "train[:*]", "a\0b"):
        with pytest.raises(ValueError, match="can be no file name"):
            attach_aspects(DatasetDict({name: rows()}), BANK, asleep, work_dir=tmp_path)
    for name, reason in {
        "my-split": "is none that load_dataset would read back",
        "a/b": "can be no file name",
    }.items():
        with pytest.raises(ValueError, match=reason):
            attach_aspects(IterableDatasetDict({name: rows().to_iterable_dataset()}), BANK, asleep, work_dir=tmp_path)
    with pytest.raises(ValueError, match="There is no split 'test'"):
        attach_aspects(rows(), BANK, asleep, splits=["test"], work_dir=tmp_path)


def test_an_unfinished_stream_is_not_taken_for_a_finished_one(tmp_path, monkeypatch):
    write, source = WorkDir.write, lambda: rows(6).to_iterable_dataset()

    def stop(self, split, index, table):
        if index == 2:
            raise KeyboardInterrupt
        write(self, split, index, table)

    monkeypatch.setattr(WorkDir, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        attach_aspects(source(), BANK, teacher(), work_dir=tmp_path / "out", shard_size=2)
    assert "not finished: run the same command again" in (tmp_path / "out" / "README.md").read_text()
    for streaming in (False, True):
        with pytest.raises(FileNotFoundError):
            load_dataset(str(tmp_path / "out"), streaming=streaming, cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(WorkDir, "write", write)
    attach_aspects(source(), BANK, teacher(), work_dir=tmp_path / "out", shard_size=2)
    assert len(load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]) == 6
    assert "not finished" not in (tmp_path / "out" / "README.md").read_text()

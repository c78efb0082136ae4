"""The map job: the same rows with three more columns, computed once."""

import json
import multiprocessing
import os
import pickle
import re
import threading
import time
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from builders import tiny
from builders.labelling import Asleep, Counting, encoded, shards, teacher
from datasets import (
    ClassLabel,
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
from tokenizers import normalizers

from madkd_hf import Aspect, AspectBank, AspectTeacher, attach_aspects, files
from madkd_hf.data.columns import skipped_rows
from madkd_hf.files import LOCK_FILE, read_record, remove_stale
from madkd_hf.labelling import Workers, reading
from madkd_hf.labelling.job import _Job
from madkd_hf.labelling.shards import WorkDir
from madkd_hf.labelling.sources import sources_of
from madkd_hf.teachers import UnreadableImageError


BANK = tiny.bank(3)
COLUMNS = ["aspect_logits", "aspect_mass", "aspect_bank"]


def rows(count: int = 5, seed: int = 0) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    columns = {"image": tiny.images(count, 20, seed), "label": [i % 2 for i in range(count)]}
    return Dataset.from_dict(columns, features=features)


def splits() -> DatasetDict:
    return DatasetDict({"train": rows(5), "test": rows(3, seed=1)})


def expected(dataset: Dataset, of: AspectTeacher | None = None, bank: AspectBank = BANK) -> torch.Tensor:
    return (of or teacher()).read(dataset["image"][:], bank).logits


def assert_answers(dataset: Dataset, values: torch.Tensor) -> None:
    answers = torch.tensor(dataset["aspect_logits"][:], dtype=torch.float32)
    torch.testing.assert_close(answers, values, atol=1e-5, rtol=0)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The datasets cache, empty."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    return tmp_path


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


# What the model reads


def dated(day: int, monkeypatch: pytest.MonkeyPatch, who: type = AspectTeacher, **settings) -> AspectTeacher:
    """A teacher whose chat template writes something else on each day, on that day."""

    class Today(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, day, tzinfo=tz)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Today)
    processor = tiny.processor()
    words = "{{ ['red', 'blue', 'big'][strftime_now('%d') | int % 3] }} "
    processor.chat_template = words + processor.chat_template
    return who(tiny.internvl(), processor, **settings)


class Killed(Counting):
    """Is stopped after the first call."""

    def read(self, images, bank):
        if self.count:
            raise KeyboardInterrupt
        return super().read(images, bank)


@pytest.mark.parametrize("where", [None, "work"])
def test_a_job_killed_before_midnight_is_found_and_goes_on_after_it(cache, monkeypatch, where):
    monkeypatch.setattr("madkd_hf.labelling.job.READ_BATCH", 1)
    folder = where and cache / where
    with pytest.raises(KeyboardInterrupt):
        attach_aspects(rows(4), BANK, dated(1, monkeypatch, Killed, batch_size=3), work_dir=folder, shard_size=1)
    counting = dated(2, monkeypatch, Counting, batch_size=3)
    labelled = attach_aspects(rows(4), BANK, counting, work_dir=folder, shard_size=1)
    assert counting.count == 3
    assert_answers(labelled, expected(rows(4), dated(3, monkeypatch)))


def test_other_prompts_are_another_job(cache, monkeypatch):
    attach_aspects(rows(), BANK, dated(1, monkeypatch), work_dir=cache / "work")
    with pytest.raises(ValueError, match=r"its prompts are others \('blue user : .*here 'big user.*another --date"):
        attach_aspects(rows(), BANK, dated(1, monkeypatch, Asleep, date="2026-01-02"), work_dir=cache / "work")
    attach_aspects(rows(), BANK, dated(1, monkeypatch))
    counting = dated(1, monkeypatch, Counting, date="2026-01-02")
    labelled = attach_aspects(rows(), BANK, counting)
    assert counting.count == 5
    assert_answers(labelled, expected(rows(), counting))


def test_a_tokenizer_changed_in_the_same_folder_is_another_job(tmp_path):
    attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
    for change in ("normalizer", "word"):
        processor = tiny.processor()
        if change == "normalizer":
            processor.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("red", "blue")
        else:
            processor.tokenizer.add_tokens(["blue ?"])
        with pytest.raises(ValueError, match="its teacher tokenizer is .*pass another work_dir"):
            attach_aspects(rows(), BANK, Asleep(tiny.internvl(), processor), work_dir=tmp_path)


# What is refused


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, 'its teacher weights is ".*", here ".*"; pass another work_dir'),
        ({"prompt": "{question} yes or no ?"}, "its teacher prompt is .*here .*yes or no"),
        ({"bank": AspectBank(reversed(list(BANK)))}, "its bank fingerprint is"),
        ({"source": rows(seed=2)}, "its rows of split 'train' fingerprint is"),
        ({"source": rows(4)}, r"its split 'train' has 5 rows, here 4 \(another --limit\?\)"),
        ({"image_column": "photo", "source": rows().rename_column("image", "photo")}, 'image_column is "image", here'),
    ],
    ids=["weights", "prompt", "bank", "images", "rows", "column"],
)
def test_another_job_in_the_same_work_dir_is_refused(tmp_path, other, message):
    settings = dict(other)
    bank, source, seed = settings.pop("bank", BANK), settings.pop("source", rows()), settings.pop("seed", 0)
    column = settings.pop("image_column", "image")
    attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
    asleep = Asleep(tiny.internvl(seed), tiny.processor(), **settings)
    with pytest.raises(ValueError, match=f"{tmp_path} holds another labelling job: .*{message}"):
        attach_aspects(source, bank, asleep, column, work_dir=tmp_path)
    attach_aspects(rows(), BANK, Asleep(tiny.internvl(), tiny.processor()), work_dir=tmp_path)


def test_another_split_of_the_same_job_joins_it(tmp_path):
    attach_aspects(splits(), BANK, teacher(), splits="train", work_dir=tmp_path)
    counting = Counting(tiny.internvl(), tiny.processor(), "full")
    labelled = attach_aspects(splits(), BANK, counting, work_dir=tmp_path)
    assert counting.count == 3
    assert_answers(labelled["train"], expected(splits()["train"]))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"format_version": 2}', "\x00\x00", None])
def test_a_manifest_that_is_none_is_told_in_one_sentence(tmp_path, content):
    attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(
        ValueError, match=r"(no manifest of a labelling job|holds shards/\S+ and no) .*pass another work_dir"
    ):
        attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)


def test_a_manifest_of_a_later_version_is_refused(tmp_path):
    attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "format_version": 3, "checksum": "another kind"}))
    with pytest.raises(ValueError, match="has format 3, this version of madkd_hf reads 2"):
        attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)


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


@pytest.mark.parametrize("damage", ["truncated", "no image", "gone"])
def test_an_image_that_cannot_be_decoded_is_named_and_leaves_nothing_half_written(tmp_path, damage):
    pictures, work = tmp_path / "pictures", tmp_path / "work"
    pictures.mkdir()
    paths = [pictures / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, tiny.images(5, 40)):
        image.save(path)
    whole = paths[3].read_bytes()
    source = Dataset.from_dict({"image": [str(path) for path in paths]}).cast_column("image", Image())
    source = DatasetDict({"train": source.select([0, 1]), "dev": source})

    if damage == "gone":
        paths[3].unlink()
    else:
        paths[3].write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"no image")
    with pytest.raises(ValueError, match=r"pictures/3.png \(row 3 of split 'dev'\) cannot be decoded.*repair the"):
        attach_aspects(source, BANK, teacher(), work_dir=work, shard_size=2)
    assert shards(work) == ["dev-00000.arrow", "train-00000.arrow"]

    paths[3].write_bytes(whole)
    labelled = attach_aspects(source, BANK, teacher(), work_dir=work)
    assert_answers(labelled["dev"], teacher().read(tiny.images(5, 40), BANK).logits)


def test_a_row_without_an_image_is_named(tmp_path):
    source = Dataset.from_dict({"image": [tiny.images(1)[0], None]}, features=Features({"image": Image()}))
    with pytest.raises(ValueError, match="image in row 1 of split 'train' cannot be decoded"):
        attach_aspects(source, BANK, teacher(), work_dir=tmp_path)
    assert shards(tmp_path) == []


# Real pictures


def pictures() -> dict[str, dict | None]:
    """Name -> what a dataset stores; those whose name starts with "bad" cannot be read."""
    colour = tiny.images(1, 40)[0]
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    deep = PIL.Image.fromarray((np.arange(1600).reshape(40, 40) * 40).astype(np.uint16))
    whole = encoded(colour)["bytes"]
    return {
        "colour": encoded(colour),
        "palette": encoded(colour.convert("P"), "GIF"),
        "bad: truncated": {"bytes": whole[: len(whole) // 2], "path": None},
        "alpha": encoded(colour.convert("RGBA")),
        "CMYK": encoded(colour.convert("CMYK"), "JPEG"),
        "bad: zero bytes": {"bytes": b"", "path": None},
        "16 bits": encoded(deep),
        "grey": encoded(colour.convert("L")),
        "turned": encoded(colour, "JPEG", exif=exif),
        "1 x 4000": encoded(colour.resize((1, 4000))),
        "bad: null": None,
        "bad: no file": {"bytes": None, "path": "nowhere.png"},
    }


class Choosy(AspectTeacher):
    """Its processor refuses narrow images."""

    def read(self, images, bank):
        for index, image in enumerate(images):
            if image.width == 1:
                raise UnreadableImageError(index, ValueError("absolute aspect ratio must be smaller than 200"))
        return super().read(images, bank)


def of_pictures() -> Dataset:
    return Dataset.from_dict({"image": list(pictures().values())}, features=Features({"image": Image()}))


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
@pytest.mark.parametrize("choosy", [False, True])
def test_what_can_be_read_is_read_and_the_rest_is_skipped(tmp_path, stream, choosy):
    source = of_pictures().to_iterable_dataset() if stream else of_pictures()
    who = (Choosy if choosy else AspectTeacher)(tiny.internvl(), tiny.processor(), "full")
    labelled = attach_aspects(source, BANK, who, work_dir=tmp_path, on_error="skip", shard_size=5)
    bad = [name.startswith("bad") or (choosy and name == "1 x 4000") for name in pictures()]
    assert skipped_rows(labelled) == [row for row, is_bad in enumerate(bad) if is_bad]
    for row, is_bad in zip(labelled.cast_column("image", Image(decode=False)), bad):
        assert (row["aspect_logits"] is None) == (row["aspect_mass"] is None) == is_bad
        assert row["aspect_bank"] == BANK.fingerprint


def test_images_that_look_the_same_get_the_same_answers(tmp_path):
    colour = tiny.images(1, 40)[0]
    clear = colour.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 20, 40))
    white = colour.copy()
    white.paste((255, 255, 255), (0, 0, 20, 40))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    turned = encoded(colour.transpose(PIL.Image.Transpose.ROTATE_90), exif=exif)
    images = [encoded(clear), encoded(white), turned, encoded(colour)]
    source = Dataset.from_dict({"image": images}, features=Features({"image": Image()}))
    logits = attach_aspects(source, BANK, teacher(), work_dir=tmp_path)["aspect_logits"][:]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    np.testing.assert_allclose(logits[2], logits[3], atol=1e-5)


def test_skipping_after_an_error_keeps_what_was_done_and_an_error_after_skipping_names_the_row(tmp_path):
    settings = {"work_dir": tmp_path, "shard_size": 2}
    with pytest.raises(ValueError, match=r"row 2 of split 'train' cannot be decoded .*or pass on_error='skip'"):
        attach_aspects(of_pictures(), BANK, teacher(), **settings)
    counting = Counting(tiny.internvl(), tiny.processor(), "full")
    attach_aspects(of_pictures(), BANK, counting, on_error="skip", **settings)
    assert counting.count == 6
    with pytest.raises(ValueError, match="row 2 of split 'train'"):
        attach_aspects(of_pictures(), BANK, teacher(), **settings)


def test_a_refusal_by_the_processor_names_the_row(tmp_path):
    source = of_pictures().select([0, 1, 9])
    choosy = Choosy(tiny.internvl(), tiny.processor(), "full")
    with pytest.raises(ValueError, match="row 2 of split 'train' is refused by the teacher's processor .*ratio"):
        attach_aspects(source, BANK, choosy, work_dir=tmp_path)


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


def test_workers_that_read_other_rows_stop(tmp_path):
    job = _Job(BANK, teacher(), "image", "raise", 2, False, Workers())
    (told,) = sources_of(rows(), None, "image")
    (other,) = sources_of(rows(seed=1), None, "image")
    manifest = {"splits": {"train": told.state}, "teacher": teacher().identity, "prompts": teacher().prompts(BANK)}
    job._compare(manifest, [told])
    with pytest.raises(
        ValueError,
        match="Worker 0 does not label what the main process labels: its rows of split 'train' .*shuffle a seed",
    ):
        job._compare(manifest, [other])
    job = _Job(BANK, teacher(system="it is red ."), "image", "raise", 2, False, Workers(1, 2))
    with pytest.raises(ValueError, match="Worker 1 .*: its teacher system is .*the same files"):
        job._compare(manifest, [told])
    manifest["prompts"] = {"tokens": "other", "example": "user : <image>C'est rouge ?"}
    job = _Job(BANK, teacher(), "image", "raise", 2, False, Workers(1, 2))
    with pytest.raises(ValueError, match="Worker 1 .*its prompts are others .*packages and locale"):
        job._compare(manifest, [told])


def test_shards_that_are_not_done_are_gone_before_the_workers_look(tmp_path):
    attach_aspects(of_pictures(), BANK, teacher(), on_error="skip", work_dir=tmp_path, shard_size=2)
    (tmp_path / "shards" / "train-00000.arrow").write_bytes(b"")
    (source,) = sources_of(of_pictures(), None, "image")
    job = _Job(BANK, teacher(), "image", "raise", 2, False, Workers())
    with ExitStack() as locks:
        _, done = job._begin(tmp_path, [source], locks)
    there = {path.name for path in (tmp_path / "shards").iterdir()}
    assert there == {f"train-{index:05d}.arrow" for index in done["train"]} and sorted(done["train"]) == [3, 4]


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_swapped_and_foreign_shards_are_made_again(tmp_path, stream):
    source = lambda: rows(6).to_iterable_dataset() if stream else rows(6)  # noqa: E731
    kinds = {"shard_size": 2, "teacher": teacher()}
    values = [row["aspect_logits"] for row in attach_aspects(source(), BANK, work_dir=tmp_path / "a", **kinds)]
    attach_aspects(source(), tiny.bank(2), work_dir=tmp_path / "b", **kinds)
    first, second, third = sorted(path for path in tmp_path.glob("a/*/train-*"))
    first.rename(tmp_path / "swap")
    second.rename(first)
    (tmp_path / "swap").rename(second)
    third.write_bytes((tmp_path / "b" / third.relative_to(tmp_path / "a")).read_bytes())
    counting = Counting(tiny.internvl(), tiny.processor(), "full")
    again = attach_aspects(source(), BANK, counting, work_dir=tmp_path / "a")
    assert [row["aspect_logits"] for row in again] == values and counting.count == 6


@pytest.mark.parametrize("moment", ["before the manifest", "after it"])
def test_of_two_jobs_that_begin_at_once_one_is_refused(tmp_path, monkeypatch, moment):
    begin, others = remove_stale, iter([teacher()])

    def meanwhile(folder):
        begin(folder)
        for other in others:
            attach_aspects(rows(), BANK, other, work_dir=tmp_path)

    monkeypatch.setattr("madkd_hf.labelling.shards.remove_stale", meanwhile)
    late = Asleep(tiny.internvl(1 if moment == "before the manifest" else 0), tiny.processor())
    if moment == "after it":  # the same job: it takes what is there
        attach_aspects(rows(), BANK, late, work_dir=tmp_path)
    else:
        with pytest.raises(ValueError, match="holds another labelling job: its teacher weights"):
            attach_aspects(rows(), BANK, late, work_dir=tmp_path)


def test_what_two_jobs_settle_adds_up(tmp_path):
    attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
    manifest = read_record(tmp_path / "manifest.json", "manifest", "")
    one, two = (WorkDir(tmp_path, {**manifest, "complete": {name: 1}}) for name in "ab")
    one.save()
    two.save()
    assert json.loads((tmp_path / "manifest.json").read_text())["complete"] == {"a": 1, "b": 1}


def test_a_stream_stores_the_bytes_that_were_read_and_no_null_in_place_of_a_file(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, image in zip(paths, tiny.images(4)):
        image.save(path)
    source = Dataset.from_dict({"image": list(map(str, paths))}).cast_column("image", Image())

    class Vanishing(AspectTeacher):
        def read(self, images, bank):
            paths[1].unlink(missing_ok=True)
            return super().read(images, bank)

    who = Vanishing(tiny.internvl(), tiny.processor(), "full")
    labelled = attach_aspects(source.to_iterable_dataset(), BANK, who, work_dir=tmp_path / "a")
    assert np.array_equal(np.array(list(labelled)[1]["image"]), np.array(tiny.images(4)[1]))
    both = IterableDatasetDict(train=rows(2).to_iterable_dataset(), test=source.to_iterable_dataset())
    with pytest.raises(
        ValueError, match=r"row 1 of split 'test' names the file '.*1.png', which is not read \(there is no such"
    ):
        attach_aspects(both, BANK, teacher(), splits="train", work_dir=tmp_path / "b")


@pytest.mark.parametrize("error", [MemoryError(), OSError(116, "Stale file handle"), PermissionError(13, "no")])
def test_what_passes_stops_the_job_and_is_not_skipped(tmp_path, monkeypatch, error):
    calls, decode_one = iter(range(100)), reading.decode

    def decode(stored, origin):
        if next(calls) == 3:
            raise error
        return decode_one(stored, origin)

    monkeypatch.setattr(reading, "decode", decode)
    with pytest.raises(OSError, match="row 3 of split 'train' cannot be read now .*run the same command again"):
        attach_aspects(rows(), BANK, teacher(), on_error="skip", work_dir=tmp_path)
    assert skipped_rows(attach_aspects(rows(), BANK, teacher(), on_error="skip", work_dir=tmp_path)) == []


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


def test_a_manifest_that_is_a_folder_is_told_in_one_sentence(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ValueError, match="manifest of a labelling job.*pass another work_dir"):
        attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)


# More than one at once


def at_once(calls: list) -> list[Dataset | Exception]:
    """What each call returns or raises, of threads that begin at the same moment."""
    barrier, results = threading.Barrier(len(calls)), [None] * len(calls)

    def run(place: int) -> None:
        barrier.wait(60)
        try:
            results[place] = calls[place]()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


@pytest.mark.parametrize("where", [None, "work"])
def test_a_finished_job_is_read_by_many_at_once(cache, where):
    work_dir, dataset = where and cache / where, rows()
    values = expected(dataset)
    attach_aspects(dataset, BANK, teacher(), work_dir=work_dir)
    asleep = [Asleep(tiny.internvl(), tiny.processor()) for _ in range(4)]
    for _ in range(4):
        for labelled in at_once([partial(attach_aspects, dataset, BANK, each, work_dir=work_dir) for each in asleep]):
            assert_answers(labelled, values)
    (lock,) = cache.rglob(LOCK_FILE)
    with files.locked(lock.parent):  # such as by a run that labels another split
        (labelled,) = at_once([lambda: attach_aspects(dataset, BANK, asleep[0], work_dir=work_dir)])
    assert_answers(labelled, values)


class Slow(Counting):
    """Takes long enough for others to come by."""

    def read(self, images, bank):
        if self.count == 0:
            time.sleep(1)
        return super().read(images, bank)


def test_of_several_on_one_job_in_the_cache_one_works_and_the_others_wait(cache, caplog):
    dataset = rows(6)
    slow = [Slow(tiny.internvl(), tiny.processor(), "full") for _ in range(3)]
    calls = [partial(attach_aspects, dataset, BANK, each, shard_size=2) for each in slow]
    for labelled in at_once(calls):
        assert_answers(labelled, expected(dataset))
    assert sorted(each.count for each in slow) == [0, 0, 6]
    assert caplog.text.count("this one waits until it is over") == 2


def _label(cache, begun):
    datasets.config.HF_DATASETS_CACHE = cache
    slow = Slow(tiny.internvl(), tiny.processor(), "full")
    begun.put(None)
    begun.put((attach_aspects(rows(), BANK, slow)["aspect_logits"][:], slow.count))


def test_of_two_processes_on_one_job_in_the_cache_one_waits_for_the_other(cache):
    fork = multiprocessing.get_context("fork")
    told = fork.Queue()
    jobs = [fork.Process(target=_label, args=(cache, told)) for _ in range(2)]
    for job in jobs:
        job.start()
    results = [result for result in (told.get(timeout=120) for _ in range(4)) if result]
    for job in jobs:
        job.join(60)
    assert sorted(count for _, count in results) == [0, 5] and results[0][0] == results[1][0]


def test_a_second_run_in_a_work_dir_is_refused_while_there_is_work_to_do(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    class Stopped(AspectTeacher):
        def read(self, images, bank):
            begun.set()
            assert go_on.wait(60)
            return super().read(images, bank)

    def second() -> Dataset:
        assert begun.wait(60)
        try:
            return attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
        finally:
            go_on.set()

    stopped = Stopped(tiny.internvl(), tiny.processor(), "full")
    first, refused = at_once([lambda: attach_aspects(rows(), BANK, stopped, work_dir=tmp_path), second])
    assert_answers(first, expected(rows()))
    assert isinstance(refused, ValueError)
    assert re.search(f"Another run is at work in {tmp_path}: it labels.* pass another work_dir", str(refused))
    assert_answers(second(), expected(rows()))

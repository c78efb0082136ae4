"""The map job: the same rows with three more columns, computed once."""

import pickle

import datasets
import numpy as np
import pytest
import tiny
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_dataset, load_from_disk

from madkd_hf import Aspect, AspectBank, AspectTeacher, attach_aspects


BANK = tiny.bank(3)
COLUMNS = ["aspect_logits", "aspect_mass", "aspect_bank"]


def rows(count: int = 5, seed: int = 0) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    columns = {"image": tiny.images(count, 20, seed), "label": [i % 2 for i in range(count)]}
    return Dataset.from_dict(columns, features=features)


def splits() -> DatasetDict:
    return DatasetDict({"train": rows(5), "test": rows(3, seed=1)})


def teacher(**settings) -> AspectTeacher:
    return AspectTeacher(tiny.internvl(), tiny.processor(), **settings)


class Counting(AspectTeacher):
    """Counts the images that it reads."""

    count = 0

    def read(self, images, bank):
        self.count += len(images)
        return super().read(images, bank)


class Asleep(AspectTeacher):
    """Answers nothing any more."""

    def read(self, images, bank):
        raise AssertionError("the answers were there already")


def expected(dataset: Dataset, of: AspectTeacher | None = None, bank: AspectBank = BANK) -> torch.Tensor:
    return (of or teacher()).read(dataset["image"][:], bank).logits


def assert_answers(dataset: Dataset, values: torch.Tensor) -> None:
    answers = torch.tensor(dataset["aspect_logits"][:], dtype=torch.float32)
    torch.testing.assert_close(answers, values, atol=1e-6, rtol=0)


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


def test_split_name_and_dataset_card_survive(tmp_path):
    source = Dataset(rows().data, info=datasets.DatasetInfo(license="mit", features=rows().features), split="dev")
    for part in (source, source.shuffle(seed=1), source.select([])):
        labelled = attach_aspects(part, BANK, teacher(), work_dir=tmp_path)
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


def test_more_rows_than_a_batch_of_reading_or_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("madkd_hf.labelling.READ_BATCH", 2)
    monkeypatch.setattr("madkd_hf.labelling.WRITE_BATCH", 5)
    source = rows(13)
    assert_answers(attach_aspects(source, BANK, teacher(), work_dir=tmp_path), expected(source))


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
def test_whatever_changes_the_answers_labels_anew(tmp_path, other):
    settings = dict(other)
    bank, source, seed = settings.pop("bank", BANK), settings.pop("source", rows()), settings.pop("seed", 0)
    attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
    counting = Counting(tiny.internvl(seed), tiny.processor(), **settings)
    labelled = attach_aspects(source, bank, counting, work_dir=tmp_path)
    assert counting.count == 5
    assert_answers(labelled, expected(source, counting, bank))
    assert labelled["aspect_bank"][0] == bank.fingerprint


def test_a_second_split_with_the_same_rows_is_no_second_split(tmp_path):
    """Two splits that hold the same images are labelled each for itself and keep their own rows."""
    labelled = attach_aspects(DatasetDict({"a": rows(), "b": rows()}), BANK, teacher(), work_dir=tmp_path)
    assert_answers(labelled["a"], expected(rows()))
    assert_answers(labelled["b"], expected(rows()))


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
        ({"train": rows()}, {}, "takes a Dataset or a DatasetDict; received dict"),
        (rows().to_iterable_dataset(), {}, "takes a Dataset or a DatasetDict; received IterableDataset"),
    ],
    ids=["no column", "no images", "no split", "dict", "iterable"],
)
def test_what_cannot_be_labelled_is_refused(tmp_path, source, settings, message):
    with pytest.raises(ValueError, match=message):
        attach_aspects(source, BANK, teacher(), work_dir=tmp_path, **settings)
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
    attach_aspects(labelled.remove_columns(COLUMNS), BANK, teacher(), work_dir=tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "no image", "gone"])
def test_an_image_that_cannot_be_decoded_is_named_and_leaves_nothing_half_written(tmp_path, damage, monkeypatch):
    monkeypatch.setattr("madkd_hf.labelling.WRITE_BATCH", 2)
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
    with pytest.raises(ValueError, match="image in row 3 of split 'dev' cannot be decoded.*repair the file or drop"):
        attach_aspects(source, BANK, teacher(), work_dir=work)
    assert [path.name.split("-")[0] for path in work.iterdir()] == ["train"]

    paths[3].write_bytes(whole)
    labelled = attach_aspects(source, BANK, teacher(), work_dir=work)
    assert_answers(labelled["dev"], teacher().read(tiny.images(5, 40), BANK).logits)


def test_a_row_without_an_image_is_named(tmp_path):
    source = Dataset.from_dict({"image": [tiny.images(1)[0], None]}, features=Features({"image": Image()}))
    with pytest.raises(ValueError, match="image in row 1 of split 'train' cannot be decoded"):
        attach_aspects(source, BANK, teacher(), work_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []

"""Labels for object detection: the same job asks about every object, cut out by its box."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
from builders import labelling_jobs as test_resume
from builders import tiny
from builders.children import be_quiet
from builders.commands import command
from builders.labelled_objects import BANK, COCO, STRUCT, attach, in_format, pictures, rows
from builders.labelling import Asleep, Counting, encoded, shards, teacher
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
    load_dataset,
    load_from_disk,
)
from PIL import ExifTags
from PIL import Image as Pillow

from madkd_hf.data.boxes import corners, grown
from madkd_hf.data.columns import skipped_rows
from madkd_hf.data.objects import Boxes, flatten_objects
from madkd_hf.labelling.shards import WorkDir
from madkd_hf.teachers import UnreadableImageError


COLUMNS = ["aspect_logits", "aspect_mass", "aspect_bank"]
CROPS = [  # left, top, right, bottom with a margin of a tenth, worked out by hand
    [(0, 0, 22, 11), (9, 2, 24, 28), (29, 19, 40, 30)],
    [],
    [(2, 3, 38, 27)],
    [(0, 0, 40, 30), (0, 1, 5, 7)],
]


def splits() -> DatasetDict:
    return DatasetDict({"train": rows(), "test": rows(COCO[:2])})


def by_hand(crops=CROPS) -> list[np.ndarray]:
    """What the teacher says of each crop alone."""
    who = teacher()
    return [
        np.array([who.read([image.crop(crop)], BANK).logits[0].numpy() for crop in of_image]).reshape(-1, 3)
        for image, of_image in zip(pictures(), crops)
    ]


def logits(labelled) -> list[np.ndarray]:
    return [np.array(row["aspect_logits"], dtype="float32").reshape(-1, 3) for row in labelled]


def assert_same(labelled, values: list[np.ndarray]) -> None:
    found = logits(labelled)
    assert [len(each) for each in found] == [len(each) for each in values]
    for each, value in zip(found, values):
        np.testing.assert_allclose(each, value, atol=1e-5)


# What comes out


@pytest.mark.parametrize("layout", ["struct", "list"])
@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_every_object_gets_the_reading_of_its_crop(tmp_path, layout, stream):
    source = rows(layout=layout)
    labelled = attach(source.to_iterable_dataset() if stream else source, tmp_path, shard_size=3)
    values = by_hand()
    assert isinstance(labelled, IterableDataset if stream else Dataset)
    assert_same(labelled, values)
    assert np.concatenate(values).std(axis=0).min() > 0.01
    found = list(labelled)
    assert found[1]["aspect_logits"] == found[1]["aspect_mass"] == []
    assert [len(row["aspect_mass"]) for row in found] == [3, 0, 1, 2]
    assert all(0 <= mass <= 1 for row in found for each in row["aspect_mass"] for mass in each)
    assert {row["aspect_bank"] for row in found} == {BANK.fingerprint}
    answers = List(List(Value("float32"), length=3))
    added = {"aspect_logits": answers, "aspect_mass": answers, "aspect_bank": Value("string")}
    assert labelled.features == {**source.features, **added}
    assert [row["objects"] for row in found] == source["objects"][:]


@pytest.mark.parametrize("name", ["pascal_voc", "yolo"])
def test_all_formats_show_the_same_pixels(tmp_path, name):
    assert_same(attach(rows(in_format(name)), tmp_path, box_format=name), by_hand())


def test_the_margin_is_what_is_asked_for(tmp_path):
    crops = [[(left, top, left + w, top + h) for left, top, w, h in each] for each in COCO]
    crops[0][1] = (10, 5, 23, 26)  # whole pixels
    assert_same(attach(rows(), tmp_path, box_margin=0), by_hand(crops))


def test_padding_puts_the_crop_in_the_middle_of_a_white_square():
    image = pictures(1)[0]
    plain, square, wide = (
        Boxes("objects", margin=0, padding=padding).crops(image, {"bbox": [[10, 5, 8, 4]]})[0]
        for padding in (None, 0, 1)
    )
    assert (plain.size, square.size, wide.size) == ((8, 4), (8, 8), (24, 24))
    for padded in (square, wide):
        left, top = (padded.width - 8) // 2, (padded.height - 4) // 2
        inside = (left, top, left + 8, top + 4)
        assert padded.crop(inside).tobytes() == plain.tobytes()
        padded.paste("white", inside)
        assert padded.getcolors() == [(padded.width**2, (255, 255, 255))]


def as_saved(labelled: DatasetDict, folder: Path) -> DatasetDict:
    labelled.save_to_disk(folder / "saved")
    return load_from_disk(folder / "saved")


def as_parquet(labelled: DatasetDict, folder: Path) -> DatasetDict:
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
    labelled = travel(attach(source, tmp_path, splits=["train"]), tmp_path)
    assert labelled["train"].features == labelled["test"].features
    assert labelled["train"].features["aspect_logits"] == List(List(Value("float32"), length=3))
    assert all(row[name] is None for row in labelled["test"] for name in COLUMNS)
    assert_same(labelled["train"], by_hand())
    both = datasets.concatenate_datasets([labelled["train"], labelled["test"]])
    assert [row["aspect_logits"] is None for row in both] == [False] * 4 + [True] * 2
    assert skipped_rows(both) == []


def test_rows_stay_aligned_under_an_indices_mapping(tmp_path):
    values = by_hand()
    labelled = attach(rows().select([3, 1, 0]), tmp_path)
    assert_same(labelled, [values[3], values[1], values[0]])


def test_an_empty_split_gets_empty_columns(tmp_path):
    for stream in (False, True):
        source = rows().to_iterable_dataset().take(0) if stream else rows().select([])
        labelled = attach(source, tmp_path / str(stream))
        assert list(labelled) == [] and labelled.features["aspect_mass"] == List(List(Value("float32"), length=3))


def test_a_split_without_any_object_and_one_without_annotations(tmp_path):
    assert attach(rows([[], []]), tmp_path / "a", Asleep(tiny.internvl(), tiny.processor()))["aspect_logits"][:] == [
        [],
        [],
    ]
    source = Dataset.from_dict({"image": pictures(2), "objects": [None, {"bbox": None, "category": None}]})
    source = source.cast(rows().features)
    assert attach(source, tmp_path / "b")["aspect_mass"][:] == [[], []]


def test_boxes_are_those_of_the_upright_image(tmp_path):
    exif = Pillow.Exif()
    exif[ExifTags.Base.Orientation] = 6
    lying = pictures()[0].transpose(Pillow.Transpose.ROTATE_90)
    source = rows(COCO[:1], images=[encoded(lying, exif=exif)])
    assert_same(attach(source, tmp_path), by_hand()[:1])


def test_crops_of_several_images_share_the_teacher_s_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("madkd_hf.labelling.job.READ_BATCH", 4)
    calls = []

    class Noting(Counting):
        def read(self, images, bank):
            calls.append(len(images))
            return super().read(images, bank)

    who = Noting(tiny.internvl(), tiny.processor(), batch_size=3)
    assert_same(attach(rows(), tmp_path, who), by_hand())
    assert calls == [4, 2]


def test_the_progress_bar_counts_images(tmp_path, capsys):
    attach(splits(), tmp_path, splits="train", shard_size=1)
    shown = capsys.readouterr().err
    assert "train: 3 questions an object" in shown and "4/4" in shown and "images/s" in shown
    (tmp_path / "shards" / "train-00002.arrow").unlink()
    attach(splits(), tmp_path, splits="train")
    shown = capsys.readouterr().err
    assert "3/4" in shown and "4/4" in shown


# Once is enough


def test_a_second_run_costs_nothing(cache):
    first = attach(splits(), None)
    again = attach(splits(), None, Asleep(tiny.internvl(), tiny.processor()))
    for split in first:
        assert again[split]["aspect_logits"][:] == first[split]["aspect_logits"][:]


@pytest.mark.parametrize(
    "other", [{"box_margin": 0.2}, {"box_padding": 0.0}, {"boxes_column": "things"}, {"boxes_column": None}]
)
def test_other_settings_are_other_work(cache, other):
    source = rows().add_column("things", rows()["objects"][:], feature=STRUCT)
    attach(source, None)
    counting = Counting(tiny.internvl(), tiny.processor(), "full")
    attach(source, None, counting, **other)
    assert counting.count == (6 if other.get("boxes_column", "") is not None else 4)


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_other_settings_are_refused_in_the_same_work_dir(tmp_path, stream):
    make = lambda: rows().to_iterable_dataset() if stream else rows()  # noqa: E731
    attach(make(), tmp_path / "objects")
    attach(make(), tmp_path / "images", boxes_column=None)
    for settings, folder, message in [
        ({"box_margin": 0.2}, "objects", "its boxes margin is 0.1, here 0.2; pass another work_dir"),
        ({"box_format": "yolo"}, "objects", 'its boxes format is "coco", here "yolo"'),
        ({"boxes_column": None}, "objects", "it asks about each object in 'objects', here about each image"),
        ({}, "images", "it asks about each image, here about each object in 'objects'"),
    ]:
        with pytest.raises(ValueError, match=f"holds another labelling job: {message}"):
            attach(make(), tmp_path / folder, Asleep(tiny.internvl(), tiny.processor()), **settings)


def test_what_looks_the_same_is_read_once(tmp_path):
    twice = [*COCO[0], COCO[0][1]]
    image = pictures()[0]
    source = rows([twice, COCO[0], COCO[2]], images=[image, image, pictures()[2]])
    counting = Counting(tiny.internvl(), tiny.processor(), "full")
    labelled = attach(source, tmp_path, counting)
    first, _, third, _ = by_hand()
    assert_same(labelled, [first[[0, 1, 2, 1]], first, third])
    assert counting.count == 4


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_an_interrupted_job_goes_on_and_ends_with_the_same_bits(tmp_path, monkeypatch, stream):
    source = lambda: rows().to_iterable_dataset() if stream else rows()  # noqa: E731
    expected = list(attach(source(), tmp_path / "undisturbed", shard_size=1).remove_columns("image"))
    write = WorkDir.write

    def stop_at_the_third(self, split, index, table):
        if index == 2:
            raise KeyboardInterrupt
        write(self, split, index, table)

    monkeypatch.setattr(WorkDir, "write", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt, match="shards of split 'train' are complete and kept in"):
        attach(source(), tmp_path / "work", shard_size=1)
    monkeypatch.setattr(WorkDir, "write", write)
    assert [name for name in shards(tmp_path / "work") if name.startswith("train")] == [
        name for name in shards(tmp_path / "undisturbed") if name.startswith("train")
    ][:2]
    counting = Counting(tiny.internvl(), tiny.processor(), "full")
    labelled = attach(source(), tmp_path / "work", counting)
    assert counting.count == 3
    assert list(labelled.remove_columns("image")) == expected


# Killed, and on two processes: the trials of test_resume.py, about objects. These are what they start and measure.


COUNT, SHARD = test_resume.ROWS, test_resume.SHARD  # rows; the trials count what the teacher is asked, twice as many


def busy_rows() -> Dataset:
    """As many rows as there, with two objects each that nothing else looks like."""
    boxes = [[[0, 0, 20 + i % 3, 10], [10.5, 5, 12, 20.25]] for i in range(COUNT)]
    return rows(boxes, images=pictures(COUNT)).add_column("label", list(range(COUNT)))


def label_objects(folder: Path, stream: bool = False):
    who = test_resume.Logging(tiny.internvl(), tiny.processor(), "full")
    who.log = folder / "log.txt"
    source = busy_rows().to_iterable_dataset() if stream else busy_rows()
    return attach(source, folder / "work", who, shard_size=SHARD)


def child(folder: Path, stream: bool, arrangement: tuple[str, int] | None) -> None:
    be_quiet()
    if arrangement:
        test_resume.dies(*arrangement)()
    label_objects(folder, stream)


@pytest.mark.slow  # tests/cli/test_resume.py shows it of images
@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_a_killed_job_goes_on_and_ends_with_the_same_bits(tmp_path, monkeypatch, stream):
    changed = {"child": child, "label": label_objects, "ROWS": 2 * COUNT, "SHARD": 2 * SHARD}
    for name, value in changed.items():
        monkeypatch.setattr(test_resume, name, value)
    monkeypatch.setattr(test_resume, "columns", lambda labelled: list(labelled.remove_columns("image")))
    test_resume.kill_trials(tmp_path, trials=4, seed=3, stream=stream)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    DatasetDict(train=busy_rows(), test=rows()).save_to_disk(tmp_path / "source")
    words = ["--dataset", tmp_path / "source", "--boxes_column", "objects", "--shard_size", SHARD, "--splits", "train"]
    for name, launch in (("one", ()), ("two", test_resume.TWO)):
        places = ["--output_dir", tmp_path / name, "--work_dir", tmp_path / f"work {name}"]
        done = test_resume.recipe(*words, *places, launch=launch)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("are in") == 1 and "40/40" in done.stderr
        assert done.stderr.count("questions an object:   0%") == 1
    first, second = (load_from_disk(tmp_path / name) for name in ("one", "two"))
    assert [len(each) for each in first["train"]["aspect_logits"][:]] == [2] * COUNT
    assert all(first[split][name][:] == second[split][name][:] for split in first for name in COLUMNS)
    manifests = [(tmp_path / f"work {name}" / "manifest.json").read_text() for name in ("one", "two")]
    assert json.loads(manifests[0]) == json.loads(manifests[1])


# What is refused


OUT = "expected coco boxes, .x, y, width, height. in pixels, in this image of 40 x 30 pixels"


@pytest.mark.parametrize(
    ("box", "settings", "message"),
    [
        ([30, 20, 20, 5], {}, f"reaches 10 pixels beyond the image: {OUT}; .*correct the box"),
        ([-5, 0, 10, 10], {}, "reaches 5 pixels beyond the image"),
        ([40, 0, 1, 10], {}, "lies outside the image"),
        ([5, 5, 0, 10], {}, "no width or no height, or a negative one"),
        ([5, 5, 10, -3], {}, "no width or no height, or a negative one"),
        ([5, 5, float("nan"), 3], {}, "is not finite"),
        (
            [25, 20, 38, 29],
            {},
            r"reaches 23 pixels .*; pass box_format='pascal_voc', which fits all its boxes, or corr",
        ),
        ([0.5, 0.5, 0.2, 0.3], {}, r"less than a pixel.*; pass box_format='yolo', which fits"),
        (
            [30, 20, 8, 5],
            {"box_format": "pascal_voc"},
            r"no height, or a negative one.*; pass box_format='coco', which",
        ),
        (
            [5, 5, 20, 10],
            {"box_format": "yolo"},
            r"beyond .*yolo.*; pass box_format='coco' or 'pascal_voc', which fits",
        ),
    ],
)
def test_a_box_that_cannot_be_is_named_with_its_remedy(tmp_path, box, settings, message):
    boxes = [COCO[0] if not settings else [], [box]]
    named = r"^In row 1 of split 'train', object 0 has the box \[.*\], .*"
    with pytest.raises(ValueError, match=f"{named}{message}.*, or pass on_error='skip' to leave the row's answers"):
        attach(rows(boxes), tmp_path, **settings)
    labelled = attach(rows(boxes), tmp_path, on_error="skip", **settings)
    assert skipped_rows(labelled) == [1] and len(labelled[0]["aspect_logits"]) == len(boxes[0])


def test_the_object_among_others_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"In row 2 of split 'train', object 1 has the box \[1.0, 2.0, 300.0, 4.0\]"):
        attach(rows([*COCO[:2], [COCO[0][0], [1, 2, 300, 4], COCO[0][1]]]), tmp_path)


def test_a_box_of_other_than_four_numbers(tmp_path):
    kinds = Features({"image": Image(), "objects": {"bbox": List(List(Value("float32")))}})
    objects = [{"bbox": [[1, 2, 3]]}, {"bbox": [None]}]
    for image, (each, text) in zip(pictures(2), zip(objects, [r"\[1.0, 2.0, 3.0\]", "None"])):
        source = Dataset.from_dict({"image": [image], "objects": [each]}, features=kinds)
        with pytest.raises(ValueError, match=f"In row 0 .* object 0 has the box {text}: expected 4 numbers; correct"):
            attach(source, tmp_path / text[:2])


def test_a_pixel_beyond_the_image_is_taken_for_rounding(tmp_path):
    boxes = [[[-1, -0.5, 10, 10], [35, 25, 6, 5.9]]]
    assert_same(attach(rows(boxes), tmp_path, box_margin=0), by_hand([[(0, 0, 9, 10), (35, 25, 40, 30)]])[:1])


@pytest.mark.parametrize(
    ("column", "settings", "message"),
    [
        (
            None,
            {"boxes_column": "boxes"},
            r"no column 'boxes': the dataset has \['image', 'objects'\]; name .*boxes_column",
        ),
        ("image", {}, "The column 'image' holds Image.*, no boxes: expected objects with a field 'bbox'"),
        ({"box": List(List(Value("float32")))}, {}, "'objects' holds {'box'.*no boxes: expected .*rename the field"),
        ({"bbox": List(Value("float32"))}, {}, "no boxes: expected objects with a field 'bbox' of 4 numbers each"),
        (List(List(Value("float32"))), {}, "no boxes: expected objects with a field 'bbox'"),
        (None, {"box_format": "xyxy"}, r"Unknown box_format 'xyxy': expected one of \['coco', 'pascal_voc', 'yolo'\]"),
        (None, {"box_margin": -0.1}, "box_margin=-0.1 is no margin: expected a part of the box's sides, 0 or more"),
        (None, {"box_padding": -0.1}, "box_padding=-0.1 is no padding: expected a part of the box's sides, 0 or more"),
        (None, {"boxes_column": None, "box_margin": 0.2}, "box_margin=0.2 and .* say nothing without boxes: .*boxes"),
        (None, {"boxes_column": None, "box_padding": 1}, "box_padding=1 say nothing without boxes: .*boxes_column"),
    ],
)
def test_what_has_no_boxes_is_refused_before_anything_is_read(tmp_path, column, settings, message):
    source = rows()
    if column == "image":
        settings = {"boxes_column": "image"}
    elif column is not None:
        source = Dataset.from_dict(
            {"image": pictures(1), "objects": [None]}, features=Features({"image": Image(), "objects": column})
        )
    with pytest.raises(ValueError, match=message):
        attach(source, tmp_path / "work", Asleep(tiny.internvl(), tiny.processor()), **settings)
    assert not (tmp_path / "work").exists()


def test_a_dataset_that_is_labelled_on_the_other_level_is_refused(tmp_path):
    by_object, by_image = attach(rows(), tmp_path / "a"), attach(rows(), tmp_path / "b", boxes_column=None)
    for source, settings, words in [
        (by_object, {"boxes_column": None}, "labelled already by object, it has"),
        (by_image, {}, "labelled already by image, it has"),
        (by_object, {}, "labelled already, it has"),
    ]:
        with pytest.raises(ValueError, match=rf"{words} .*drop them with dataset.remove_columns"):
            attach(source, tmp_path / "c", **settings)


@pytest.mark.parametrize("damage", ["no image", "a crop the processor refuses"])
def test_a_row_of_which_something_cannot_be_read_is_named_or_skipped(tmp_path, damage):
    class Choosy(Counting):
        def read(self, images, bank):
            for index, image in enumerate(images):
                if image.size == (5, 6):  # the small box of the last row
                    raise UnreadableImageError(index, ValueError("too small"))
            return super().read(images, bank)

    images = pictures()
    if damage == "no image":
        images[3], who, words = {"bytes": b"no", "path": None}, teacher(), "The image in row 3 .* cannot be decoded"
    else:
        who = Choosy(tiny.internvl(), tiny.processor(), "full")
        words = "Object 1 of the image in row 3 of split 'train' is refused by the teacher's processor .*too small"
    with pytest.raises(ValueError, match=words):
        attach(rows(images=images), tmp_path, who)
    labelled = attach(rows(images=images), tmp_path, who, on_error="skip")
    assert skipped_rows(labelled) == [3] and labelled["aspect_bank"][3] == BANK.fingerprint
    assert_same(labelled.select(range(3)), by_hand()[:3])


# Geometry


def test_corners_and_what_is_around_them():
    assert corners([], "coco", (40, 30)).shape == (0, 4) and grown(np.empty((0, 4)), 0.1, (40, 30)).shape == (0, 4)
    found = corners(np.array([[0.5, 0.5, 0.5, 1.0]], dtype="float32"), "yolo", (40, 30))
    assert found.tolist() == [[10, 0, 30, 30]]
    assert grown(found, 0.5, (40, 30)).tolist() == [[0, 0, 40, 30]]
    tiny_ones = np.array([[39.5, 29.9, 39.6, 30.0], [3.999, 4.0, 4.001, 4.004]])
    assert grown(tiny_ones, 0, (40, 30)).tolist() == [[39, 29, 40, 30], [4, 4, 5, 5]]


@pytest.mark.parametrize("side", [3, 7, 640, 1333, 4096])
def test_float32_does_not_add_a_pixel(side):
    dice = np.random.default_rng(side)
    low = dice.integers(0, side, (200, 2))
    high = low + 1 + dice.integers(0, side, (200, 2)) % (side - low)
    boxes = np.concatenate([(low + high) / 2, high - low], axis=1) / side
    found = grown(corners(boxes.astype(np.float32), "yolo", (side, side)), 0, (side, side))
    assert np.array_equal(found, np.concatenate([low, high], axis=1))


# One row an object


@pytest.mark.parametrize("layout", ["struct", "list"])
def test_one_row_an_object_has_its_class(tmp_path, layout):
    labelled = attach(rows(layout=layout), tmp_path).select([3, 1, 0])
    nothing = attach(rows(layout=layout).select([]), tmp_path / "none")
    found = flatten_objects(labelled, "objects", "category")
    assert found.features["aspect_logits"] == List(Value("float32"), length=3)
    assert found.features["category"] == ClassLabel(names=["cup", "fork"])
    assert found["category"][:] == [0, 1, 0, 1, 0]
    values = by_hand()
    np.testing.assert_allclose(found["aspect_logits"][:], np.concatenate([values[3], values[0]]), atol=1e-5)
    assert set(found["aspect_bank"][:]) == {BANK.fingerprint}
    assert flatten_objects(labelled, "objects", "label").column_names == COLUMNS
    assert flatten_objects(labelled, "image", "label").column_names == COLUMNS
    assert len(flatten_objects(nothing)) == 0


# The command


def test_the_recipe_labels_objects_and_says_what_each_question_is_worth(tmp_path):
    DatasetDict({"train": rows(COCO * 3, images=pictures(12)), "test": rows()}).save_to_disk(tmp_path / "source")
    words = ["--config", "recipes/easy_vqa/attach.yaml", "--dataset", tmp_path / "source", "--splits", "train"]
    words += ["--boxes_column", "objects", "--box_margin", "0.2", "--label_column", "category"]

    def recipe(*more):
        return command("recipes/attach_aspects.py", *words, *more)

    done = recipe("--output_dir", tmp_path / "out", "--work_dir", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    assert "11 answers for each object of train are in" in done.stdout and "Information" in done.stdout
    assert "train_student" not in done.stdout
    labelled = load_from_disk(tmp_path / "out")
    assert [len(each) for each in labelled["train"]["aspect_logits"][:]] == [3, 0, 1, 2] * 3
    assert labelled["test"]["aspect_logits"][:] == [None] * 4
    manifest = json.loads((tmp_path / "work" / "manifest.json").read_text())
    assert manifest["boxes"] == {"column": "objects", "format": "coco", "margin": 0.2}
    refused = recipe("--output_dir", tmp_path / "out", "--work_dir", tmp_path / "work", "--box_margin", "0.3")
    assert refused.returncode == 1 and "its boxes margin is 0.2, here 0.3" in refused.stderr
    stream = recipe("--output_dir", tmp_path / "stream", "--streaming")
    assert stream.returncode == 0, stream.stderr
    assert "11 answers for each object" in stream.stdout

"""Datasets as a user names them: folders of every shape, what is told of them, --limit, and names that are nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Image, load_from_disk
from PIL import Image as Pillow

from madkd_hf.cli import arguments as common
from madkd_hf.cli import compare, splits
from madkd_hf.cli.comparison import conditions
from madkd_hf.cli.tasks import classification
from madkd_hf.data import names, summary
from madkd_hf.data.image_columns import check_image_column
from madkd_hf.data.labels import with_class_labels
from madkd_hf.data.rows import describe_row, row_names, row_number
from madkd_hf.data.sources import Loaded, load


def picture(path: Path, seed: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = abs(hash(path.name)) % 1000 if seed is None else seed
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(path, {".webp": "WEBP", ".png": "PNG"}.get(path.suffix.lower(), "JPEG"))
    return path


def draw(root: Path, files: str | dict[str, str]) -> Path:
    """`"a 3, b/x.jpg 0"` are 3 images in the folder a, and one image of this name; of a dict, files with this text."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items() if isinstance(files, dict) else ():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for item in files.split(", ") if isinstance(files, str) else ():
        name, count = item.rsplit(" ", 1)
        if count == "0":
            picture(root / name)
        for i in range(int(count)):
            picture(root / name / f"{i:02d}.jpg", i)
    return root


def content(loaded: Loaded) -> dict[str, list[tuple[str, str | None]]]:
    """split -> (file, class) of each row."""
    found = {}
    for split, rows in loaded.splits.items():
        label = rows.features.get("label")
        rows = rows.cast_column("image", Image(decode=False))
        found[split] = [
            (row["image"]["path"], None if row.get("label") is None else label.names[row["label"]]) for row in rows
        ]
    return found


def counts(loaded: Loaded) -> dict[str, dict[str | None, int]]:
    found = {}
    for split, rows in content(loaded).items():
        names = [name for _, name in rows]
        found[split] = {name: names.count(name) for name in sorted(set(names), key=str)}
    return found


SHAPES = {  # name -> files, what is told
    "classes": ("a 2, b 3", "train: 5 images, 2 classes (a 2, b 3)"),
    "one nested": ("a 2, b 2, b/batch 2/x.jpg 0", "train: 5 images, 2 classes (a 2, b 3)"),
    "a class called train": ("bus 2, car 2, train 2", "train: 6 images, 3 classes (bus 2, car 2, train 2)"),
    "a split word in a file": (
        "cat 2, cat/cat on a train.jpg 0, dog/test.jpg 0",
        "2 classes (cat 3, dog 1)",
    ),
    "splits": ("train/a 2, train/b 2, test/a 1, test/b 1", "train: 4 images, test: 2 images"),
    "splits in capitals": (
        "Train/a 2, TEST/a 1, Validation/a 1",
        "train: 2, validation: 1, test: 1",
    ),
    "splits by other names": ("training_set/a 2, val2017/a 1, Testing/a 1", "train: 2 images, validation: 1, test: 1"),
    "a split alone": ("train/a 2, train/b 1", "train: 3 images, 2 classes (a 2, b 1)"),
    "a class that the test lacks": ("train/a 1, train/b 1, test/a 1", "test: 1 image, 1 class (a 1), none of b"),
    "a test without classes": ("train/a 1, train/b 1, test 3", "train: 2 images, test: 3 images, 3 without a class"),
    "no classes": (". 3", "train: 3 images, no column 'label'"),
    "splits without classes": ("train 3, test 1", "train: 3 images, no column, test: 1 image"),
    "one class": ("a 3", "train: 3 images, 1 class (a 3)"),
    "imagenet": ("train/n01440764/images 2, train/n01443537/images 2", "2 classes (n01440764 2, n01443537 2)"),
    "names": ("Käfer 1, Käfer/A B.JPG 0, Käfer/c.JPEG 0, 🐦/d.Png 0, 🐦/e.webp 0", "2 classes (Käfer 3, 🐦 2)"),
    "more names": (
        f"a/{'n' * 200}.jpg 0, a/50%#?.jpg 0, b/[1]*{{2}}.jpg 0, b/a&b=c;d'e.jpg 0",
        "2 classes (a 2, b 2)",
    ),
}
STRAY = {f"{c}/{i:02d}.{kind}": "{}" for c in "ab" for i in range(3) for kind in ("txt", "json", "xml", "csv")}
STRAY |= dict.fromkeys(
    ["a/Thumbs.db", "desktop.ini", "__MACOSX/a/x.jpg", ".DS_Store", ".git/x.jpg", "out/state.json"], "x"
)
STRAY |= dict.fromkeys(["a/film.webm", "a/scan.pdf", "b/photo.HEIC", "b/README", "notes.docx", "out/state.json"], "x")
STRAY |= {"a/empty.jpg": ""}
REASONS = [f"6 .{kind} files" for kind in ("txt", "json", "xml", "csv")] + ["3 files of the operating system"]
REASONS += ["2 hidden files or folders", "1 .webm files (a/film.webm)", "1 .pdf files", "1 .docx files"]
REASONS += ["1 empty image files (a/empty.jpg)", "1 .heic images, which Pillow cannot read here"]
REASONS += ["1 files without a suffix", "1 datasets written by save_to_disk (out)"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_is_read_as_its_owner_sees_it(tmp_path, shape):
    files, told = SHAPES[shape]
    root = draw(tmp_path / "birds", files)
    rows, stream = load(str(root)), load(str(root), streaming=True)
    assert all(part in rows.summary for part in told.split(", ")) and rows.summary == stream.summary
    assert content(stream) == content(rows) and list(stream.splits) == list(rows.splits)
    for split in rows.splits:
        assert stream.splits[split].features == rows.splits[split].features
        assert [row["image"].size for row in rows.splits[split]] == [(8, 8)] * len(rows.splits[split])
    names = [path for split in content(rows).values() for path, _ in split]
    assert set(names) == {str(path) for path in root.rglob("*") if path.is_file()} and len(set(names)) == len(names)
    for split in content(rows).values():
        assert all(name is None or f"/{name}/" in path for path, name in split)


def test_what_is_no_image_is_left_out_with_its_reason(tmp_path):
    root = draw(draw(tmp_path / "birds", "a 3, b 3"), STRAY)
    loaded = load(str(root))
    assert counts(loaded) == {"train": {"a": 3, "b": 3}} and content(load(str(root), streaming=True)) == content(
        loaded
    )
    told = "; ".join(summary.left_out_lines(loaded.left_out, 99))
    for reason in REASONS:
        assert reason in told
    assert sum(map(len, loaded.left_out.values())) == 24 + 3 + 2 + 3 + 1 + 1 + 1 + 1  # a hidden folder is one
    assert "6 .xml files (a/00.xml, ...)" in loaded.summary and "other reasons" in loaded.summary


AMBIGUOUS = {  # name -> files, what is told of both readings, with the remedy
    "images beside classes": ("a 2, b 2, x.jpg 0", "x.jpg beside the folders a, b|either these are classes|move"),
    "images beside splits": ("train/a 2, test/a 2, x.jpg 0", "x.jpg beside the split folders test, train|move"),
    "splits and others": ("train/a 2, test/a 2, extra/a 1", "extra, test, train|are splits|are classes|move extra"),
    "a split and others": ("train/a 2, raw 2", "either train are splits|or all are classes|move raw"),
    "loose splits and others": ("train 2, test 2, more 2", "either test, train are splits|are classes|move more"),
    "two names of one split": ("val/a 2, valid/a 2", "val, valid|'validation'|put their images"),
    "two spellings of one split": ("Train/a 2, train/a 2", "Train, train|'train'|put their images"),
    "two spellings of a class": ("Cat 2, cat 2", "'Cat' and 'cat'|one class or two|put all into one"),
    "two levels": (
        "animals/cat 2, animals/dog 2, cars/van 1",
        "2 classes (animals, cars)|3 classes (cat, dog, van)|metadata.csv",
    ),
    "sites": ("site1/cat 2, site1/dog 2, site2/cat 1", "2 classes (site1, site2)|2 classes (cat, dog)|metadata.csv"),
    "a wrapper": ("images/a 2, images/b 2", "1 class (images)|2 classes (a, b)|pass "),
    "splits below classes": (
        "cat/train 2, cat/test 2, dog/train 2",
        "test, train|splits or parts|put splits at",
    ),
    "a class that train lacks": ("train/a 2, train/b 2, test/x 2", "'test'|the class 'x', which 'train' lacks|rename"),
    "a class spelt otherwise": (
        "train/Cat 2, train/dog 2, test/cat 2",
        "'cat', which 'train' lacks (it has 'Cat')",
    ),
}


@pytest.mark.parametrize("shape", AMBIGUOUS)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_can_be_read_in_two_ways_is_refused_with_both(tmp_path, shape, streaming):
    files, readings = AMBIGUOUS[shape]
    with pytest.raises(ValueError) as refused:
        load(str(draw(tmp_path / "birds", files)), streaming=streaming)
    said = str(refused.value)
    assert all(reading in said for reading in readings.split("|")) and str(tmp_path) in said
    assert "\n" not in said and len(said.replace(str(tmp_path), "").split()) < 50


def test_a_folder_without_an_image_says_what_it_holds(tmp_path):
    for files, said in (
        ({}, "it is empty"),
        ({"a/x.heic": "x", "b/y.HEIC": "x"}, "2 .heic images, which Pillow cannot read"),
        ({"a/x.txt": "x"}, "only 1 .txt files (a/x.txt)"),
    ):
        with pytest.raises(ValueError, match="There is no image in .*birds") as refused:
            load(str(draw(tmp_path / str(len(said)) / "birds", files)))
        assert said in str(refused.value)
    with pytest.raises(ValueError, match="is a file: pass the folder"):
        load(str(picture(tmp_path / "x.jpg")))


def test_links_are_followed_and_lead_nowhere_twice(tmp_path):
    draw(tmp_path / "photos", ". 2")
    root = draw(tmp_path / "birds", "a 1")
    (root / "b").mkdir()
    (root / "b" / "1.jpg").symlink_to(tmp_path / "photos" / "00.jpg")
    (root / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "b" / "round").symlink_to(root)
    (root / "c").symlink_to(tmp_path / "photos")
    os.mkfifo(root / "a" / "pipe.jpg")
    loaded = load(str(root))
    assert counts(loaded) == {"train": {"a": 1, "b": 1, "c": 2}}
    for told in ("1 links to nothing (b/gone.jpg)", "1 links that lead back", "1 no regular files (a/pipe.jpg)"):
        assert told in loaded.summary


def test_names_in_two_spellings_or_in_none(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Möwe") for form in ("NFC", "NFD"))
    root = draw(tmp_path / "birds", f"train/{composed} 2, test/{apart} 1, train/b 1")
    assert counts(load(str(root))) == {"train": {"b": 1, composed: 2}, "test": {composed: 1}}
    (Path(os.fsdecode(os.fsencode(root / "train" / "b") + b"/\xff.jpg"))).write_bytes(b"x")
    loaded = load(str(root))
    assert len(loaded.splits["train"]) == 3 and "1 names that are no UTF-8: rename them (train/b/" in loaded.summary


def test_the_fingerprint_says_what_lies_there(tmp_path):
    code = "import sys; from madkd_hf.data.sources import load; print(load(sys.argv[1]).splits['train']._fingerprint)"
    root = draw(tmp_path / "birds", "a 2, b 2")

    def fingerprint(folder: Path = root) -> str:
        return load(str(folder)).splits["train"]._fingerprint

    first = fingerprint()
    assert subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True).stdout.strip() == first
    root.rename(tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == first
    (tmp_path / "moved").rename(root)
    facts = os.stat(root / "a/00.jpg")
    (root / "a/00.jpg").rename(root / "a/0.jpg")
    renamed = fingerprint()
    os.utime(root / "a/0.jpg", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    changed = fingerprint()
    (root / "b").rename(root / "c")
    assert len({first, renamed, changed, fingerprint()}) == 4


def test_what_is_saved_holds_the_images(tmp_path):
    root = draw(tmp_path / "birds", "a 2, b 2")
    load(str(root)).splits.save_to_disk(tmp_path / "saved")
    expected = [np.asarray(image) for image in load(str(root)).splits["train"]["image"]]
    root.rename(tmp_path / "elsewhere")
    for found, image in zip(load_from_disk(tmp_path / "saved")["train"]["image"], expected, strict=True):
        np.testing.assert_array_equal(np.asarray(found), image)
    assert counts(load(str(tmp_path / "saved"))) == {"train": {"a": 2, "b": 2}}


def test_metadata_names_images_and_labels_as_on_the_hub(tmp_path):
    objects = [{"bbox": [[1.0, 1.0, 3.0, 3.0]], "category": [0]}, {"bbox": [], "category": []}]
    lines = [{"file_name": f"{i}.jpg", "label": ["cat", "dog"][i], "objects": objects[i]} for i in range(2)]
    root = draw(tmp_path / "birds", "train/0.jpg 0, train/1.jpg 0, train/forgotten.jpg 0, Test/0.jpg 0")
    draw(
        root, {"train/metadata.jsonl": "\n".join(map(json.dumps, lines)), "Test/metadata.jsonl": json.dumps(lines[0])}
    )
    loaded = load(str(root))
    train = loaded.splits["train"]
    assert train["label"][:] == ["cat", "dog"] and train["objects"][:] == objects
    assert [len(rows) for rows in loaded.splits.values()] == [2, 1] and list(loaded.splits) == ["train", "test"]
    assert train[1]["image"].size == (8, 8) and train.features["image"] == Image()
    assert "1 images that the metadata does not name (train/forgotten.jpg)" in loaded.summary
    assert "2 classes (cat 1, dog 1)" in loaded.summary
    stream = load(str(root), streaming=True).splits["train"]
    assert [row["label"] for row in stream] == ["cat", "dog"] and stream.features == train.features


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "gone.jpg", ".hidden.jpg", "note.txt"])
def test_metadata_names_only_images_of_its_folder(tmp_path, name):
    picture(tmp_path / "secret.jpg")
    root = draw(tmp_path / "birds", "a.jpg 0, .hidden.jpg 0")
    draw(root, {"note.txt": "x", "metadata.csv": f"file_name,label\na.jpg,x\n{name},y\n"})
    with pytest.raises(ValueError, match=f"Row 2 of .*metadata.csv names '{name}', and there is no such image"):
        load(str(root))


def test_a_table_of_labels_beside_images_is_pointed_at(tmp_path):
    for images, told in ((". 2", "no classes"), ("images 2", "one class"), ("a 2, b 2", None)):
        root = draw(draw(tmp_path / images, images), {"labels.csv": "id,label\n00,x\n"})
        said = load(str(root)).summary
        assert "1 .csv files (labels.csv)" in said
        assert (f"The folders tell {told} and labels.csv is not read: if it has the labels" in said) == bool(told)


def test_names_that_datasets_takes_for_archives(tmp_path):
    loaded = load(str(draw(tmp_path / "birds", "a/x::y.jpg 0, a/z.jpg 0, b/s3:t.jpg 0")))
    assert counts(loaded) == {"train": {"a": 1, "b": 1}} and "1 names with ::, which datasets takes" in loaded.summary
    loaded.splits.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="holds ::, which datasets takes for an archive: rename that folder"):
        load(str(draw(tmp_path / "a::b", "a 1")))


def test_metadata_beside_class_folders(tmp_path):
    captions = "file_name,caption\na/00.jpg,one\nb/00.jpg,two\n"
    loaded = load(str(draw(draw(tmp_path / "with", "a 1, b 1"), {"metadata.csv": captions})))
    assert loaded.splits["train"]["caption"][:] == ["one", "two"] and counts(loaded) == {"train": {"a": 1, "b": 1}}
    loaded = load(str(draw(draw(tmp_path / "without", "a 1, b 1"), {"metadata.csv": "name,label\n00,x\n"})))
    assert counts(loaded) == {"train": {"a": 1, "b": 1}}
    assert "1 metadata files without a column file_name (metadata.csv)" in loaded.summary


def test_parquet_beside_images(tmp_path):
    root = draw(tmp_path / "both", "a 2, b 2")
    Dataset.from_dict({"x": [1]}).to_parquet(root / "answers.parquet")
    with pytest.raises(ValueError, match=r"4 images and 1 Parquet files \(answers.parquet\): either"):
        load(str(root))
    configs = "---\nconfigs:\n- config_name: default\n  data_files: x/*.parquet\n---\n"
    for card, place in (("", "data"), (configs, "x")):
        root = draw(draw(tmp_path / f"hub-{place}", "figures 1"), {"README.md": card})
        Dataset.from_dict({"x": [1, 2]}).to_parquet(root / place / "train-00000-of-00001.parquet")
        assert {split: len(rows) for split, rows in load(str(root)).splits.items()} == {"train": 2}


def test_text_that_names_images_of_the_folder_becomes_images(tmp_path):
    root = tmp_path / "table"
    picture(tmp_path / "secret.jpg")
    names = [str(picture(root / "pictures" / "0.jpg")), "pictures/1.jpg"]
    picture(root / "pictures" / "1.jpg")
    (root / "pictures").rename(root / ".pictures")
    names = [name.replace("pictures", ".pictures") for name in names]
    Dataset.from_dict({"image": names, "label": ["a", "b"]}).to_parquet(root / "train.parquet")
    rows = load(str(root)).splits["train"]
    assert rows.column_names == ["image", "label"] and [image.size for image in rows["image"]] == [(8, 8)] * 2
    Dataset.from_dict({"image": ["../secret.jpg"]}).to_parquet(root / "train.parquet")
    with pytest.raises(ValueError, match="Row 0 names the image '../secret.jpg' in .*pass another --image_column"):
        load(str(root))
    content = (tmp_path / "secret.jpg").read_bytes()
    Dataset.from_dict({"image": [content]}).to_parquet(root / "train.parquet")
    assert load(str(root)).splits["train"][0]["image"].size == (8, 8)


def test_limit_draws_evenly_of_all_classes_and_says_so(tmp_path):
    root = draw(tmp_path / "birds", "train/a 20, train/b 3, train/c 9, test/a 2, test/b 2")
    loaded = load(str(root), limit=9)
    assert counts(loaded) == {"train": {"a": 3, "b": 3, "c": 3}, "test": {"a": 2, "b": 2}}
    assert content(load(str(root), limit=9)) == content(loaded) == content(load(str(root), limit=9, streaming=True))
    names = [path for path, _ in content(loaded)["train"]]
    assert names == sorted(names) and "--limit 9: 9 rows of each split, drawn evenly of the classes" in loaded.summary
    assert counts(load(str(root), limit=16))["train"] == {"a": 7, "b": 3, "c": 6}
    assert counts(load(str(root), limit=500))["train"] == {"a": 20, "b": 3, "c": 9}
    assert content(load(str(root), limit=0)) == {"train": [], "test": []}
    assert content(load(str(root), limit=0, streaming=True)) == {"train": [], "test": []}
    with pytest.raises(ValueError, match="--limit -1"):
        load(str(root), limit=-1)


def test_a_folder_of_images_has_no_configuration(tmp_path):
    with pytest.raises(ValueError, match="--dataset_config full.*leave it out"):
        load(str(draw(tmp_path / "birds", "train/a 2")), "full")


def test_limit_of_rows_without_classes_and_of_streams(tmp_path):
    rows = Dataset.from_dict({"x": list(range(50))})
    DatasetDict(train=rows).save_to_disk(tmp_path / "saved")
    loaded = load(str(tmp_path / "saved"), limit=10)
    drawn = loaded.splits["train"]["x"][:]
    assert len(set(drawn)) == 10 and drawn == sorted(drawn) and drawn != list(range(10))
    assert "10 rows of each split, drawn at random (seed 0)" in loaded.summary
    assert [row["x"] for row in load(str(tmp_path / "saved"), limit=10, streaming=True).splits["train"]] == drawn
    rows.to_parquet(tmp_path / "table" / "train.parquet")
    loaded = load(str(tmp_path / "table"), limit=10, streaming=True)
    assert [row["x"] for row in loaded.splits["train"]] == list(range(10))
    assert "--limit 10: the first 10 rows of each split, as the stream brings them" in loaded.summary


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("birsd", "There is no folder birsd here (did you mean birds?), and the Hub"),
        ("Birds2/", "There is no folder Birds2/ here (did you mean birds?): pass --dataset"),
        ("./bird", "(did you mean birds?): pass --dataset"),
        ("runs/labeled", "There is no folder runs/labeled here (did you mean runs/labelled?): pass --dataset"),
        ("runs/labelled/trian", "(did you mean runs/labelled/train?)"),
        ("~/nothing/at/all", "There is no folder ~/nothing/at/all here: pass --dataset"),
        ("a\\b", "There is no folder a\\b here: pass"),
        ("birds.zip", "There is no folder birds.zip here (did you mean birds?): pass"),
        ("owner/a b", "and that is no Hub id: expected owner/name"),
        ("nobody/nothing", "There is no folder nobody/nothing here, and the Hub cannot be reached"),
    ],
)
def test_a_mistyped_folder_is_told_at_once(tmp_path, monkeypatch, name, said):
    draw(tmp_path, "birds/a 1, runs/labelled/train/a 1")
    monkeypatch.chdir(tmp_path)
    names._commit_on_hub.cache_clear()
    started = time.perf_counter()
    for streaming in (False, True):
        with pytest.raises(ValueError) as refused:
            load(name, streaming=streaming)
        assert said in str(refused.value)
    assert time.perf_counter() - started < 5


def test_the_hub_is_asked_once_and_both_readings_are_told(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(draw(tmp_path, "birds 1"))
    names._commit_on_hub.cache_clear()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no folder bird here \(did you mean birds\?\), and the Hub has no"):
            load("bird")
    assert len([request for request in hub.requests if "bird" in str(request)]) <= 1


def test_home_is_expanded(tmp_path, monkeypatch):
    draw(tmp_path / "birds", "a 1, b 1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert counts(load("~/birds")) == {"train": {"a": 1, "b": 1}}
    assert load("~/birds").splits["train"].features["label"] == ClassLabel(names=["a", "b"])


YAML = "max_steps: 1\n"


def test_what_a_yaml_names_is_looked_up_beside_it_and_then_from_here(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    draw(there, {"compare.yaml": "baseline: b.yaml\ndistill: d.yaml\nbank: q/a.json\ndataset: birds", "b.yaml": YAML})
    draw(draw(there, "birds/a 1"), {"q/a.json": "{}"})
    draw(here, {"d.yaml": YAML, "b.yaml": "other"})
    monkeypatch.chdir(here)
    for config in (there / "compare.yaml", Path("../there/compare.yaml")):
        args = compare.parse(["--config", str(config), "--output_dir", "~/out"])
        assert (Path(args.baseline).resolve(), args.distill) == (there / "b.yaml", "d.yaml")
        assert [Path(path).resolve() for path in (args.bank, args.dataset)] == [there / "q/a.json", there / "birds"]
        assert args.output_dir == os.path.expanduser("~/out")
    (here / "d.yaml").unlink()
    draw(there, {"D.yaml": ""})
    with pytest.raises(ValueError) as refused:
        compare.parse(["--config", "../there/compare.yaml"])
    said = str(refused.value)
    assert "../there/compare.yaml says `distill: d.yaml`" in said and "neither beside it nor in" in said
    assert "(did you mean ../there/D.yaml?)" in said and "--config" not in said
    args = compare.parse(["--config", "../there/compare.yaml", "--distill", "mine.yaml", "--output_dir", "out"])
    with pytest.raises(ValueError, match="There is no file mine.yaml: pass --distill with the YAML of a training"):
        conditions.check(args)
    with pytest.raises(
        ValueError, match=r"no config file ../there/compar.yaml \(did you mean ../there/compare.yaml\?"
    ):
        compare.parse(["--config", "../there/compar.yaml"])
    draw(there, {"compare.yaml": "teacher: ./teacher"})
    with pytest.raises(ValueError, match="says `teacher: ./teacher`, and that is neither beside it nor in .*here"):
        compare.parse(["--config", "../there/compare.yaml"])


def labelled_rows(labels: list, feature=None) -> DatasetDict:
    rows = Dataset.from_dict({"image": list(map(str, labels)), "label": labels})
    return DatasetDict(train=rows.cast_column("label", feature) if feature else rows)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "b"], ["a", "b"]),
        ([10, 9, 10], ["9", "10"]),
        ([True, False, True], ["false", "true"]),
        ([1.0, 0.0, 1.0], ["0", "1"]),
    ],
)
def test_words_numbers_and_truth_are_classes(labels, names):
    made = with_class_labels(labelled_rows(labels), "label", "train")["train"]
    assert made.features["label"] == ClassLabel(names=names) and made["label"][:] == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([["a", "b"], ["a"]], "holds lists, not classes: expected .*a single one each"),
        ([0.5, 1.0], "holds Value.'float64'.*not classes: expected"),
        (["a", None, None, "b"], "2 of the 4 rows of split 'train' have no class in the column 'label': label them"),
        ([1, None], "1 of the 2 rows of split 'train' have no class"),
    ],
)
def test_other_columns_are_no_classes(labels, said):
    with pytest.raises(ValueError, match=said):
        with_class_labels(labelled_rows(labels), "label", "train")


def test_hidden_labels_are_counted_and_stay_where_nobody_trains():
    rows = labelled_rows([0, -1, 1, -1], ClassLabel(names=["a", "b"]))
    with pytest.raises(ValueError, match="2 of the 4 rows of split 'train' have no class"):
        with_class_labels(rows, "label", "train")
    words = DatasetDict(train=labelled_rows(["a", "b"])["train"], test=labelled_rows(["b", None])["train"])
    assert with_class_labels(words, "label", "train")["test"]["label"][:] == [1, None]
    words = DatasetDict(train=labelled_rows(["a", "b"])["train"], test=labelled_rows(["b", "c"])["train"])
    with pytest.raises(ValueError, match="split 'test' has the label 'c', which is no class of 'train'"):
        with_class_labels(words, "label", "train")


def test_the_only_image_of_a_class_stays_in_training_and_is_named(tmp_path, caplog):
    args = common.SplitArguments(validation_fraction=0.2)
    root = draw(tmp_path / "birds", "a 12, b 12, rare 1, rarer 1")
    expected = load(str(draw(tmp_path / "without", "a 12, b 12"))).splits["train"]
    expected = expected.train_test_split(0.2, stratify_by_column="label", seed=3)
    loaded = load(str(root)).splits
    names = loaded["train"].features["label"].names
    parts = splits.with_validation(loaded, args, 3, "label")
    shown = {split: [names[label] for label in rows["label"]] for split, rows in parts.items()}
    assert shown["train"][-2:] == ["rare", "rarer"] and len(shown["train"]) == 21
    assert shown["train"][:-2] == [names[label] for label in expected["train"]["label"]]
    assert shown["validation"] == [names[label] for label in expected["test"]["label"]]
    assert "Only one image shows rare, rarer: it stays in the training part" in caplog.text
    assert row_names(parts["train"], [19], "image", "train") == ["birds/rare/00.jpg"]
    with pytest.raises(ValueError, match="None of the classes of 2 training images .*pass --eval_split"):
        splits.with_validation(load(str(draw(tmp_path / "few", "a 1, b 1"))).splits, args, 0, "label")


def test_a_fraction_that_is_too_small_is_told_with_one_that_is_not(tmp_path):
    rows, args = load(str(draw(tmp_path / "birds", "a 5, b 5"))).splits, common.SplitArguments()
    with pytest.raises(ValueError, match="some of each of 2 classes .*another --validation_fraction, such as 0.2"):
        splits.with_validation(rows, args, 0, "label")
    args.validation_fraction = 0.2
    assert sorted(splits.with_validation(rows, args, 0, "label")["validation"]["label"]) == [0, 1]


def test_classes_with_too_few_images_are_all_named(tmp_path):
    rows = load(str(draw(tmp_path / "birds", "a 5, b 1, c 2"))).splits["train"]
    with pytest.raises(ValueError) as refused:
        classification.drawn_rows(rows, "label", 3, seed=0)
    said = (
        "The class 'b' has 1 image and --images_per_class asks for 3; too few have 'c' (2) as well: ask for fewer, or"
    )
    assert str(refused.value).startswith(said)
    assert sorted(rows.select(classification.drawn_rows(rows, "label", 1, seed=0))["label"]) == [0, 1, 2]


def test_rows_are_named_by_their_file_and_the_number_that_the_user_knows(tmp_path):
    rows = load(str(draw(tmp_path / "birds", "a 5, b 5"))).splits["train"]
    assert row_names(rows, [7], "image", "train") == ["birds/b/02.jpg"]
    assert row_number(rows.select([9, 7]).select([1]), 0) == 7
    content = Dataset.from_dict({"image": [{"bytes": b"x", "path": None}] * 2}).cast_column("image", Image())
    assert row_names(content.select([1, 0]), [0], "image", "test") == ["row 1 of split 'test'"]
    assert describe_row("https://me:secret@host/a.png?token=1", 3) == "https:/***@host/a.png (row 3)"
    assert "\x1b" not in describe_row("a/\x1b[2J.jpg", 3)


def test_a_column_without_images_is_told_in_the_words_of_a_command_line():
    features = Dataset.from_dict({"a": ["x"], "b": [None]}).cast_column("b", Image()).features
    for column, said in (
        ("image", r"no column 'image': the dataset has \['a', 'b'\]"),
        ("a", "column 'a' holds Value"),
    ):
        with pytest.raises(
            ValueError, match=f"{said}.*; pass --image_column b|{said}.*, not images: pass --image_column b"
        ):
            check_image_column(features, column)
    check_image_column(features, "b")
    del features["b"]
    with pytest.raises(ValueError, match="none of them holds images; put image files into a folder for each class"):
        check_image_column(features, "image")

"""What is found out before anything long or paid begins, told at once and by the names of files."""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders.commands import EASY_VQA, command, recipe, refuse
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_from_disk
from PIL import Image as Pillow

from madkd_hf.data import decoding
from madkd_hf.data.check import drop_rows, listed
from madkd_hf.data.checked_images import CheckedImages
from madkd_hf.data.decoding import check_first, check_images
from madkd_hf.data.images import to_rgb
from madkd_hf.data.problems import Problems


def photo(path: Path, size: tuple[int, int] = (48, 40), cut: float = 1.0, seed: int = 0, **options) -> Path:
    """An image of noise; with `cut` less than 1, only the first part of its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(path, **options)
    if cut < 1:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * cut)])
    return path


def rows(*paths: Path) -> Dataset:
    return Dataset.from_dict({"image": [str(path) for path in paths]}).cast_column("image", Image())


@pytest.fixture(autouse=True)
def remembered(tmp_path, monkeypatch) -> Path:
    """Nothing is remembered of other tests."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    return tmp_path / "datasets_cache" / "madkd_checked"


def unusual(folder: Path) -> dict[str, tuple[Path, str | None]]:
    """Files of many kinds: name -> path, and what is said of it; None of those that are good."""
    made = {
        "good.jpg": (photo(folder / "good.jpg"), None),
        "good.PNG": (photo(folder / "good.PNG"), None),
        "schräg.webp": (photo(folder / "schräg.webp"), None),
    }
    for name in ("cut.jpg", "cut.png", "cut.bmp", "cut.tif", "cut.gif"):
        made[name] = photo(folder / name, cut=0.5), "truncated"
    made["cut.webp"] = photo(folder / "cut.webp", cut=0.5), ""
    made["last_byte.jpg"] = photo(folder / "last_byte.jpg", cut=0.9999), "truncated"
    made["progressive.jpg"] = photo(folder / "progressive.jpg", cut=0.7, progressive=True), "truncated"
    content = bytearray(photo(folder / "crc.png").read_bytes())
    content[60] ^= 255
    for name, data, reason in (
        ("crc.png", bytes(content), "broken data stream"),
        ("empty.jpg", b"", "empty"),
        ("page.jpg", b"\n<!DOCTYPE html><html><body>Not found", "web page"),
        ("noise.jpg", bytes(range(256)), "no image"),
    ):
        (folder / name).write_bytes(data)
        made[name] = folder / name, reason
    frames = [Pillow.new("P", (20, 20), i) for i in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    for mode in ("CMYK", "L", "LA", "RGBA", "I;16", "1", "P"):
        name = f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}"
        Pillow.new(mode, (30, 30)).save(folder / name)
        made[name] = folder / name, None
    Pillow.new("1", (14_000, 14_000)).save(folder / "bomb.png")
    Pillow.new("L", (1, 3000)).save(folder / "thin.png")
    turned = Pillow.Exif()
    turned[0x0112] = 6
    Pillow.new("RGB", (30, 20)).save(folder / "turned.jpg", exif=turned)
    return made | {
        "moving.gif": (folder / "moving.gif", None),
        "turned.jpg": (folder / "turned.jpg", None),
        "bomb.png": (folder / "bomb.png", "196000000 pixels"),
        "thin.png": (folder / "thin.png", "1 x 3000 pixels"),
        "missing.jpg": (folder / "missing.jpg", "no such file"),
        "in_a_file.jpg": (folder / "good.jpg" / "in_a_file.jpg", "no such file"),
        "zero": (Path("/dev/zero"), "no file"),
    }


def test_every_image_that_cannot_be_used_is_named_by_its_file(tmp_path):
    made = unusual(tmp_path / "photos")
    expected = {name: reason for name, (_, reason) in made.items() if reason is not None}
    of_files = rows(*(path for path, _ in made.values()))
    for _ in range(2):  # the second time from what is remembered
        found = {each.name.rpartition("/")[2]: each.reason for each in check_images(of_files)}
        assert list(found) == list(expected)
        assert all(reason in found[name] for name, reason in expected.items())
    assert check_images(of_files)[0].name.endswith("photos/cut.jpg")


def test_the_check_says_what_the_labelling_would_meet(tmp_path):
    """Whatever the shortcuts, an image is refused here where decoding it in full fails, and nowhere else."""
    generator = np.random.default_rng(0)
    contents = []
    for name, options in (
        ("a.jpg", {}),
        ("b.jpg", {"progressive": True}),
        ("c.png", {}),
        ("d.webp", {}),
        ("e.gif", {}),
    ):
        whole = photo(tmp_path / name, (40, 30), **options).read_bytes()
        contents += [whole[:length] for length in generator.integers(1, len(whole), 40)]
        for _ in range(40):
            changed = bytearray(whole)
            changed[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
            contents.append(bytes(changed))
    features = Features(image=Image())
    dataset = Dataset.from_dict({"image": [{"bytes": each, "path": None} for each in contents]}, features=features)
    expected = []
    for row, content in enumerate(contents):
        try:
            to_rgb(Image().decode_example({"bytes": content, "path": None}))
        except Exception:
            expected.append(row)
    assert 100 < len(expected) < len(contents)
    assert [each.row for each in check_images(dataset)] == expected


def test_rows_without_files_are_named_as_the_user_knows_them():
    good = io.BytesIO()
    Pillow.new("RGB", (8, 8)).save(good, "PNG")
    stored = [
        {"bytes": good.getvalue(), "path": None},
        None,
        {"bytes": b"x", "path": None},
        {"bytes": b"y", "path": "q.jpg"},
    ]
    dataset = Dataset.from_dict({"image": stored}, features=Features(image=Image()))
    found = check_images(dataset, split="val")
    assert listed([each.name for each in found], [each.reason for each in found], 2) == (
        "row 1 of split 'val' (there is no image), row 2 of split 'val' (it is no image that Pillow can read), ..."
    )
    drawn = check_images(dataset.select([3, 2, 0]), split="val")
    assert [(each.row, each.name) for each in drawn] == [(0, "q.jpg"), (1, "row 2 of split 'val'")]
    assert drop_rows(dataset, [each.row for each in drawn]).num_rows == 2
    assert drop_rows(dataset, []) is dataset


def count_decoded(monkeypatch) -> list[None]:
    decoded, decode = [], decoding._Check._decode
    monkeypatch.setattr(decoding._Check, "_decode", lambda *given: decoded.append(None) or decode(*given))
    return decoded


def test_what_was_seen_is_not_decoded_again_wherever_it_lies(tmp_path, monkeypatch, remembered):
    paths = [photo(tmp_path / "photos" / f"{i}.jpg", seed=i) for i in range(6)]
    decoded = count_decoded(monkeypatch)
    assert check_images(rows(*paths)) == [] and len(decoded) == 6
    assert check_images(rows(*paths[2:], paths[0])) == [] and len(decoded) == 6
    DatasetDict(train=rows(*paths)).save_to_disk(tmp_path / "saved")  # as attach_aspects.py does: with their bytes
    saved = load_from_disk(tmp_path / "saved")["train"]
    assert check_images(saved) == [] and len(decoded) == 6
    monkeypatch.setattr(decoding, "key_of_bytes", None)  # the dataset as a whole is remembered, nothing of it is read
    assert check_images(saved) == []
    monkeypatch.undo()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", remembered.parent)
    photo(paths[3], cut=0.5)
    assert [each.row for each in check_images(rows(*paths))] == [3]


@pytest.mark.parametrize("damage", ["random", "cut off", "empty", "a folder", "huge", "not ours"])
def test_whatever_is_remembered_wrongly_is_looked_at_again(tmp_path, monkeypatch, remembered, damage):
    good, broken = photo(tmp_path / "good.jpg"), photo(tmp_path / "broken.jpg", cut=0.5)
    assert len(check_images(rows(good, broken))) == 1
    (file,) = remembered.iterdir()
    content = file.read_bytes()
    if damage == "random":
        file.write_bytes(np.random.default_rng(0).bytes(80_000))
    elif damage == "cut off":
        file.write_bytes(content[:-3])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "a folder":
        file.unlink()
        file.mkdir()
    elif damage == "huge":
        monkeypatch.setattr("madkd_hf.data.checked_images.MOST", 1)
    else:
        file.unlink()
        remembered.rmdir()
        remembered.write_text("a file where a folder is expected")
    assert [each.row for each in check_images(rows(good, broken))] == [1]
    assert [each.row for each in check_images(rows(good, broken))] == [1]


def test_commands_side_by_side_keep_what_both_have_seen(tmp_path):
    caches = [CheckedImages(tmp_path) for _ in range(8)]
    for number, cache in enumerate(caches):
        cache.add(range(100 * number, 100 * number + 100))
        cache.save()
    assert all(key in CheckedImages(tmp_path) for key in range(800)) and 800 not in CheckedImages(tmp_path)


def test_large_photographs_are_not_decoded_side_by_side():
    room, inside, most = decoding.Room(100), [0], [0]

    def decode(pixels: int) -> None:
        with room.reserved(pixels):
            inside[0] += min(pixels, 100)
            most[0] = max(most[0], inside[0])
            inside[0] -= min(pixels, 100)

    threads = [threading.Thread(target=decode, args=(pixels,)) for pixels in [30, 60, 250, 100, 10] * 40]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < most[0] <= 100 and room.free == 100


def test_what_the_machine_refuses_is_not_blamed_on_the_image(tmp_path, monkeypatch):
    path = photo(tmp_path / "a.jpg")

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(decoding._Check, "_file", refuse)
    (found,) = check_images(rows(path))
    assert not found.broken and "Permission denied" in found.reason


def test_columns_without_images_are_refused():
    with pytest.raises(ValueError, match="'picture' holds nothing, not images.*\\['image'\\].*image_column"):
        check_images(Dataset.from_dict({"image": ["a"]}), "picture")


def test_the_first_images_of_a_stream_are_looked_at(tmp_path):
    stream = rows(photo(tmp_path / "a.jpg"), photo(tmp_path / "b.jpg", cut=0.5)).to_iterable_dataset()
    assert [each.name.rpartition("/")[2] for each in check_first(stream, "image", "train")] == [
        "b.jpg (row 1 of split 'train')"
    ]
    assert check_first(stream.take(0), "image", "train") == []


def test_everything_that_is_wrong_is_told_at_once():
    problems = Problems()
    problems.raise_all()
    with problems.noted():
        raise OSError("No room on the disk.")
    with pytest.raises(OSError, match="^No room on the disk.$"):
        problems.raise_all()
    for _ in range(2):
        problems.add("The class 'a' has 1 image.")
    with problems.noted():
        raise ImportError("Install\nthis.")
    with pytest.raises(ValueError) as told:
        problems.raise_all()
    assert str(told.value).splitlines() == [
        "3 things are wrong before we can begin:",
        " - No room on the disk.",
        " - The class 'a' has 1 image.",
        " - Install this.",
    ]


# What a user types, and reads


def pictures(
    folder: Path, classes: str = "ab", count: int = 6, splits: tuple = ("train", "validation", "test")
) -> Path:
    """A folder of images, a folder a class."""
    for number, split in enumerate(splits):
        for label in classes:
            for i in range(count):
                photo(folder / split / label / f"{i:02d}.jpg", seed=1000 * number + 10 * i + ord(label))
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("drawn") / "photos")


@pytest.fixture
def spoilt(drawn, tmp_path) -> Path:
    """The same, and images of validation and test that cannot be read."""
    shutil.copytree(drawn, tmp_path / "spoilt")
    for name, content in (("validation/a/03.jpg", b"\xff\xd8\xff\xe0 cut off"), ("test/b/01.jpg", b"<html>")):
        (tmp_path / "spoilt" / name).write_bytes(content)
    return tmp_path / "spoilt"


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict[str, str]:
    """The demo's students, trained for two steps, by the names that compare.py has for them."""
    folder, made = tmp_path_factory.mktemp("quick"), {}
    for name in ("baseline", "distill"):
        config = yaml.safe_load((EASY_VQA / f"{name}.yaml").read_text())
        config |= {"max_steps": 2, "eval_steps": 1, "logging_steps": 1, "images_per_class": 3, "image_store": "none"}
        made[name] = str(folder / f"{name}.yaml")
        Path(made[name]).write_text(yaml.safe_dump(config))
    return made


def words_of(command: str, quick: dict[str, str], dataset: Path, output: Path) -> list[str | Path]:
    argv = {
        "attach_aspects": ["--config", EASY_VQA / "attach.yaml"],
        "train_student": ["--config", quick["baseline"]],
        "select_questions": ["--config", EASY_VQA / "select.yaml", "--splits", "validation", "--sample", "12"],
        "compare": ["--config", EASY_VQA / "compare.yaml", "--images_per_class", "3"],
        "tune": ["--config", EASY_VQA / "tune.yaml", "--images_per_class", "3"],
        "questions_curve": ["--config", EASY_VQA / "questions_curve.yaml", "--images_per_class", "3"],
    }[command]
    if command in ("compare", "tune", "questions_curve"):
        argv += [word for name, path in quick.items() for word in (f"--{name}", path)]
    return [*argv, "--dataset", dataset, "--output_dir", output]


COMMANDS = ["attach_aspects", "train_student", "select_questions", "compare", "tune", "questions_curve"]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_image_that_cannot_be_read_is_named_before_a_teacher_is_loaded(command, quick, spoilt, tmp_path):
    teacher = [] if command == "train_student" else ["--teacher", tmp_path / "is_not_looked_for"]
    said = refuse(command, *words_of(command, quick, spoilt, tmp_path / "out"), *teacher)
    assert said.startswith("error: ") and "validation/a/03.jpg (" in said and "pass --on_error skip" in said
    assert "1 of the 12 images of split 'validation'" in said
    assert ("test/b/01.jpg (it is a web page" in said) == (command in ("attach_aspects", "train_student", "compare"))
    assert not (tmp_path / "out").exists()


def test_skip_leaves_images_out_of_evaluation_and_prediction_and_counts_them(quick, spoilt, tmp_path, caplog):
    recipe("train_student", *words_of("train_student", quick, spoilt, tmp_path / "out"), "--on_error", "skip")
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["left_out"] == {
        "validation": {"images": 1, "of": 12, "first": ["validation/a/03.jpg"]},
        "test": {"images": 1, "of": 12, "first": ["test/b/01.jpg"]},
    }
    assert "Left out 1 of the 12 images of split 'test': test/b/01.jpg (" in caplog.text
    predicted = np.load(tmp_path / "out" / "test_predictions.npz")
    assert predicted["rows"].tolist() == [*range(7), *range(8, 12)]  # of a: 6, then of b
    assert len(predicted["logits"]) == 11 and predicted["labels"].tolist() == [0] * 6 + [1] * 5


def test_a_labelled_dataset_with_a_broken_image_elsewhere_is_told_before_the_training(quick, spoilt, tmp_path, caplog):
    recipe("attach_aspects", *words_of("attach_aspects", quick, spoilt, tmp_path / "labelled"), "--on_error", "skip")
    assert "No answers for 1 of the 12 images of split 'validation': validation/a/03.jpg (" in caplog.text
    argv = [*words_of("train_student", quick, tmp_path / "labelled", tmp_path / "out"), "--aspect_alpha", "4"]
    assert "row 3 of split 'validation' (there is no image)" in refuse("train_student", *argv)
    recipe("train_student", *argv, "--on_error", "skip")
    assert set(json.loads((tmp_path / "out" / "all_results.json").read_text())["left_out"]) == {"validation", "test"}


def test_compare_leaves_images_out_of_everything_and_its_report_counts_them(quick, spoilt, tmp_path):
    argv = [*words_of("compare", quick, spoilt, tmp_path / "out"), "--on_error", "skip", "--seeds", "1"]
    done = command("recipes/compare.py", *argv, "--conditions", "base", "madkd")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["left_out"]["test"] == {"images": 1, "of": 12, "first": ["test/b/01.jpg"]}
    said = (tmp_path / "out" / "report.md").read_text()
    assert "Left out, since nothing can be done with them: 1 of the 12 images of validation (" in said
    assert len(np.load(tmp_path / "out" / "cells" / "madkd-0" / "test_predictions.npz")["logits"]) == 11


def test_all_that_is_wrong_is_told_at_once(quick, spoilt, tmp_path):
    (tmp_path / "bank.json").write_text("[")
    argv = words_of("train_student", quick, spoilt, tmp_path / "out.json") + ["--aspect_alpha", "4"]
    argv += ["--bank", tmp_path / "bank.json", "--backbone", tmp_path, "--images_per_class", "7"]
    said = refuse("train_student", *argv, "--resume_from_checkpoint", tmp_path / "nothing").splitlines()
    assert said[0] == f"error: {len(said) - 1} things are wrong before we can begin:"
    expected = [
        "out.json has the name",
        "no aspect bank",
        "no config.json",
        "asks for 7; too few have 'b' (6) as well",
    ]
    for found in [*expected, "validation/a/03.jpg", "nothing"]:
        assert any(found in line for line in said), found
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("command", ["compare", "tune", "questions_curve"])
def test_too_few_images_of_a_class_are_told_before_a_teacher_is_loaded(command, quick, drawn, tmp_path):
    argv = [*words_of(command, quick, drawn, tmp_path / "out"), "--teacher", tmp_path / "is_not_looked_for"]
    said = refuse(command, *argv, "--images_per_class", "7")
    assert "The class 'a' has 6 images and --images_per_class asks for 7" in said
    if command == "compare":
        said = refuse(command, *argv, "--grid", '{"images_per_class": [2, 9], "aspects": [3, 12]}')
        assert "has 6 images and --images_per_class asks for 9" in said and "asks for 12 aspects; the bank has" in said


def with_labels(values: list, feature, folder: Path, split: str = "test") -> Path:
    """A dataset whose labels in one split are these, with good images everywhere."""
    names = ClassLabel(names=["a", "b"])
    images = [str(photo(folder / "photos" / f"{i}.jpg", seed=i)) for i in range(12)]
    made = {}
    for name in ("train", "validation", "test"):
        labels, of_split = (values, feature) if name == split else ([0, 1] * 6, names)
        features = Features({"image": Image(), "label": of_split})
        made[name] = Dataset.from_dict({"image": images, "label": labels}, features=features)
    DatasetDict(made).save_to_disk(folder / "dataset")
    return folder / "dataset"


@pytest.mark.parametrize("hidden", [-1, None])
def test_hidden_labels_of_the_test_split_are_predicted_but_not_compared(quick, tmp_path, hidden, caplog):
    dataset = with_labels([hidden] * 12, ClassLabel(names=["a", "b"]), tmp_path)
    recipe("train_student", *words_of("train_student", quick, dataset, tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert "eval_accuracy" in results and "test_accuracy" not in results
    assert "The split 'test' has no classes: it is predicted, and there is no score" in caplog.text
    assert set(np.load(tmp_path / "out" / "test_predictions.npz").files) == {"logits"}
    said = refuse("compare", *words_of("compare", quick, dataset, tmp_path / "compared"))
    assert "12 of the 12 images of split 'test' have no class" in said
    assert "needs a score: pass another --test_split" in said


@pytest.mark.parametrize(
    ("split", "values", "feature", "expected"),
    [
        ("train", [None, 0] + [0, 1] * 5, ClassLabel(names=["a", "b"]), "1 image without a class"),
        ("validation", [-1, 0] + [0, 1] * 5, ClassLabel(names=["a", "b"]), "0.jpg"),
        ("test", [-1, 0] + [0, 1] * 5, ClassLabel(names=["a", "b"]), "split 'test' has no class"),
        ("test", [0, 1] * 6, ClassLabel(names=["b", "a"]), "give both the same classes in the same order"),
        ("train", [[0], [1]] * 6, List(Value("int64")), "not classes"),
        ("train", [0.5, 1.5] * 6, Value("float32"), "not classes"),
    ],
)
def test_labels_that_are_none_are_named_by_their_image(quick, tmp_path, split, values, feature, expected):
    dataset = with_labels(values, feature, tmp_path, split)
    for name in ("train_student", "compare"):
        said = refuse(name, *words_of(name, quick, dataset, tmp_path / "out"))
        assert expected in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["out.json", "a_file/out", "/proc/out", "n" * 300])
def test_outputs_that_cannot_be_are_told_before_anything(command, place, quick, drawn, tmp_path):
    (tmp_path / "a_file").write_text("a user's own")
    said = refuse(command, *words_of(command, quick, drawn, tmp_path / place))
    assert said.startswith("error: ") and (tmp_path / "a_file").read_text() == "a user's own"
    assert place.split("/")[0][:40] in said


def test_a_disk_that_is_too_small_is_told_before_the_labelling(quick, drawn, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type(usage)(usage.total, usage.total, 1000))
    for name in ("attach_aspects", "compare"):
        said = refuse(name, *words_of(name, quick, drawn, tmp_path / "out"))
        assert "The labelled dataset takes about 0.0 GB" in said and "make room there, or pass another folder" in said


def test_a_stream_is_looked_at_where_it_begins(quick, spoilt, tmp_path, capsys):
    argv = words_of("attach_aspects", quick, spoilt, tmp_path / "out") + ["--streaming"]
    said = refuse("attach_aspects", *argv)
    assert "at the beginning of the stream" in said and "validation/a/03.jpg (" in said
    recipe("attach_aspects", *argv, "--on_error", "skip")
    assert "the rest of the stream is looked at as it comes" in capsys.readouterr().out

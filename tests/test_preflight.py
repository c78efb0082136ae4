"""What is found out before anything long or paid begins, told at once and by the names of files."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, load_from_disk
from PIL import Image as Pillow

from madkd_hf.data import check
from madkd_hf.data.check import check_first, check_images, listed, without
from madkd_hf.data.problems import Problems
from madkd_hf.data.seen import Seen
from madkd_hf.images import to_rgb


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
    assert listed(check_images(dataset, split="val")).startswith(
        "3 images: row 1 of split 'val' (there is no image), "
    )
    drawn = check_images(dataset.select([3, 2, 0]), split="val")
    assert [(each.row, each.name) for each in drawn] == [(0, "q.jpg"), (1, "row 2 of split 'val'")]
    assert without(dataset, [each.row for each in drawn]).num_rows == 2
    assert without(dataset, []) is dataset


def count_decoded(monkeypatch) -> list[None]:
    decoded, decode = [], check._Check._decode
    monkeypatch.setattr(check._Check, "_decode", lambda *given: decoded.append(None) or decode(*given))
    return decoded


def test_what_was_seen_is_not_decoded_again_wherever_it_lies(tmp_path, monkeypatch, remembered):
    paths = [photo(tmp_path / "photos" / f"{i}.jpg", seed=i) for i in range(6)]
    decoded = count_decoded(monkeypatch)
    assert check_images(rows(*paths)) == [] and len(decoded) == 6
    assert check_images(rows(*paths[2:], paths[0])) == [] and len(decoded) == 6
    DatasetDict(train=rows(*paths)).save_to_disk(tmp_path / "saved")  # as attach_aspects.py does: with their bytes
    saved = load_from_disk(tmp_path / "saved")["train"]
    assert check_images(saved) == [] and len(decoded) == 6
    monkeypatch.setattr(check, "key_of_bytes", None)  # the dataset as a whole is remembered, nothing of it is read
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
        monkeypatch.setattr("madkd_hf.data.seen.MOST", 1)
    else:
        file.unlink()
        remembered.rmdir()
        remembered.write_text("a file where a folder is expected")
    assert [each.row for each in check_images(rows(good, broken))] == [1]
    assert [each.row for each in check_images(rows(good, broken))] == [1]


def test_commands_side_by_side_keep_what_both_have_seen(tmp_path):
    caches = [Seen(tmp_path) for _ in range(8)]
    for number, cache in enumerate(caches):
        cache.add(range(100 * number, 100 * number + 100))
        cache.save()
    assert all(key in Seen(tmp_path) for key in range(800)) and 800 not in Seen(tmp_path)


def test_large_photographs_are_not_decoded_side_by_side():
    room, inside, most = check._Room(100), [0], [0]

    def decode(pixels: int) -> None:
        with room.taken(pixels):
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

    monkeypatch.setattr(check._Check, "_file", refuse)
    (found,) = check_images(rows(path))
    assert not found.broken and "Permission denied" in found.reason


def test_columns_without_images_are_refused():
    with pytest.raises(ValueError, match="'picture' holds nothing, not images.*\\['image'\\].*image_column"):
        check_images(Dataset.from_dict({"image": ["a"]}), "picture")


def test_the_first_images_of_a_stream_are_looked_at(tmp_path):
    stream = rows(photo(tmp_path / "a.jpg"), photo(tmp_path / "b.jpg", cut=0.5)).to_iterable_dataset()
    assert [each.name.rpartition("/")[2] for each in check_first(stream, "image", "train")] == ["b.jpg"]
    assert check_first(stream.take(0), "image", "train") == []


def test_everything_that_is_wrong_is_told_at_once():
    problems = Problems()
    problems.tell()
    with problems.noted():
        raise OSError("No room on the disk.")
    with pytest.raises(OSError, match="^No room on the disk.$"):
        problems.tell()
    for _ in range(2):
        problems.add("The class 'a' has 1 image.")
    with problems.noted():
        raise ImportError("Install\nthis.")
    with pytest.raises(ValueError) as told:
        problems.tell()
    assert str(told.value).splitlines() == [
        "3 things are wrong before we can begin:",
        " - No room on the disk.",
        " - The class 'a' has 1 image.",
        " - Install this.",
    ]

"""Images that cannot be read, or that look like others."""

import threading
import time

import numpy as np
import PIL.Image
import pytest
from builders import tiny
from builders.labelled_rows import BANK, assert_answers, of_pictures, pictures, rows
from builders.labelling import Counting, encoded, shards, teacher
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDatasetDict,
)

from madkd_hf import AspectTeacher, attach_aspects
from madkd_hf.data.columns import skipped_rows
from madkd_hf.labelling import job, reading
from madkd_hf.teachers import UnreadableImageError


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


class Choosy(AspectTeacher):
    """Its processor refuses narrow images."""

    def read(self, images, bank):
        for index, image in enumerate(images):
            if image.width == 1:
                raise UnreadableImageError(index, ValueError("absolute aspect ratio must be smaller than 200"))
        return super().read(images, bank)


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


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_calls_at_once_change_nothing(tmp_path, monkeypatch, on_error):
    """On an accelerator other threads preprocess the next images while one computes."""
    monkeypatch.setattr(job, "READ_BATCH", 2)
    at_once, most, lock, found = [0], [0], threading.Lock(), []

    class Watched(Choosy):
        def read(self, images, bank):
            with lock:
                at_once[0] += 1
                most[0] = max(most[0], at_once[0])
            try:
                time.sleep(0.02)
                return super().read(images, bank)
            finally:
                with lock:
                    at_once[0] -= 1

    for count in (1, 4):
        who = Watched(tiny.internvl(), tiny.processor(), "full", batch_size=1)
        assert who.calls_at_once == 1
        who.calls_at_once = count
        settings = {"work_dir": tmp_path / str(count), "on_error": on_error}
        try:
            found.append(attach_aspects(of_pictures(), BANK, who, **settings).remove_columns("image")[:])
        except ValueError as error:
            found.append(str(error))
        assert most[0] == count or on_error == "raise"
    assert found[0] == found[1] and isinstance(found[0], dict if on_error == "skip" else str)


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

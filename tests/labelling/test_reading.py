"""Images that cannot be read, or that look like others."""

import threading

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
from madkd_hf.teachers.base import Preprocessed
from madkd_hf.teachers.mllm import layout


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


class Watched(AspectTeacher):
    """Counts what its own thread preprocesses, and what others do."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.by_others = self.read_at_once = 0

    def preprocess(self, images, bank):
        self.by_others += threading.current_thread() is not threading.main_thread()
        return super().preprocess(images, bank)

    def read(self, images, bank):
        self.read_at_once += sum(isinstance(image, Preprocessed) for image in images)
        assert threading.current_thread() is threading.main_thread()
        return super().read(images, bank)


@pytest.fixture
def no_narrow_images(monkeypatch):
    """The processor refuses them."""
    encode = layout.encode

    def refusing(processor, image, *args):
        if image.width == 1:
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return encode(processor, image, *args)

    monkeypatch.setattr(layout, "encode", refusing)


@pytest.mark.parametrize("on_error", ["skip", "raise"])
@pytest.mark.parametrize("strategy", ["full", "cascade"])
def test_preprocessing_ahead_changes_nothing(tmp_path, monkeypatch, no_narrow_images, strategy, on_error):
    """On an accelerator other threads preprocess the next images while it computes."""
    monkeypatch.setattr(job, "READ_BATCH", 2)
    found = []
    for ahead in (False, True):
        teacher = Watched(tiny.internvl(), tiny.processor(), strategy, batch_size=1)
        assert not teacher.preprocesses
        teacher.preprocesses = ahead
        settings = {"work_dir": tmp_path / str(ahead), "on_error": on_error}
        try:
            found.append(attach_aspects(of_pictures(), BANK, teacher, **settings).remove_columns("image")[:])
        except ValueError as error:
            found.append(str(error))
        assert bool(teacher.by_others) == ahead and bool(teacher.read_at_once) == ahead
    assert isinstance(found[0], dict if on_error == "skip" else str)
    assert str(found[0]) == str(found[1])


def test_the_first_error_is_raised_first(tmp_path, no_narrow_images):
    """An image that the processor refuses comes before a later one that cannot be decoded."""
    images = [{"bytes": encoded(image)["bytes"], "path": None} for image in tiny.images(30, 40)]
    images[0] = {"bytes": encoded(PIL.Image.new("RGB", (1, 400)))["bytes"], "path": None}
    images[20] = {"bytes": b"no image", "path": None}
    source = Dataset.from_dict({"image": images}, features=Features({"image": Image()}))
    for ahead in (False, True):
        teacher = Watched(tiny.internvl(), tiny.processor(), "cascade", batch_size=1)
        teacher.preprocesses = ahead
        with pytest.raises(ValueError, match="row 0 .*is refused by the teacher's processor"):
            attach_aspects(source, BANK, teacher, work_dir=tmp_path / str(ahead))


def test_what_is_made_ahead_is_bounded_and_in_order():
    made, drawn = [], []
    results = reading.in_order(
        lambda item: made.append(item) or 2 * item, (drawn.append(i) or i for i in range(20)), 3, 4
    )
    for item in range(20):
        assert next(results) == 2 * item
        assert len(drawn) <= item + 4
    assert list(results) == [] and sorted(made) == list(range(20))


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

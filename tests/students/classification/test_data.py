"""From rows to batches: evaluation as the image processor has it, training with crops and flips."""

import io
import itertools
import logging
import math

import numpy as np
import pytest
import torch
from builders import tiny
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import ConvNextImageProcessorPil, LevitImageProcessorPil, ViTImageProcessorPil

from madkd_hf.data.columns import drop_skipped_rows
from madkd_hf.students.base.augmentation import chances, random_crops
from madkd_hf.students.classification.data import AspectCollator


def processor(size: int = 16) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": size, "width": size})


def rows(count: int = 3, size: int = 24, **columns) -> list[dict]:
    rows = [{"image": image, "label": i % 4} for i, image in enumerate(tiny.images(count, size))]
    return [{**row, **{name: values[i] for name, values in columns.items()}} for i, row in enumerate(rows)]


def collator(**settings) -> AspectCollator:
    return AspectCollator(settings.pop("image_processor", processor()), num_labels=4, **settings)


# Batches


def test_an_evaluation_batch_is_what_the_image_processor_makes():
    batch = collator()(rows())
    expected = processor()([row["image"] for row in rows()], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)
    assert batch["labels"].tolist() == [0, 1, 2] and batch["labels"].dtype == torch.int64
    assert set(batch) == {"pixel_values", "labels"}


def test_aspect_targets_come_along_with_nan_where_a_row_has_none():
    batch = collator()(rows(aspect_logits=[[1.0, -2.0], None, [0.5, 3.0]], aspect_bank=["b", None, "b"]))
    assert batch["aspect_logits"].dtype == torch.float32
    assert torch.equal(batch["aspect_logits"].nan_to_num(9), torch.tensor([[1.0, -2.0], [9, 9], [0.5, 3.0]]))
    assert torch.isnan(batch["aspect_logits"][1]).all()


def test_a_batch_whose_rows_all_lack_targets_looks_like_any_other_of_its_dataset():
    batch = collator(num_aspects=2)(rows(aspect_logits=[None] * 3))
    assert batch["aspect_logits"].shape == (3, 2) and torch.isnan(batch["aspect_logits"]).all()


def test_a_dataset_without_aspects_makes_batches_without_targets():
    assert "aspect_logits" not in collator(num_aspects=2)(rows())


def test_rows_without_labels_make_a_batch_without_labels():
    assert set(collator()([{"image": image} for image in tiny.images(2)])) == {"pixel_values"}


def test_columns_may_have_other_names():
    batch = collator(image_column="img", label_column="fine")([{"img": tiny.images(1)[0], "fine": 3}])
    assert batch["labels"].tolist() == [3]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_any_mode_and_size_make_one_batch(augment, mode):
    images = [image.resize((20 + 5 * i, 30)).convert(mode) for i, image in enumerate(tiny.images(3))]
    batch = collator(augment=augment)([{"image": image, "label": 0} for image in images])
    assert batch["pixel_values"].shape == (3, 3, 16, 16)


@pytest.mark.parametrize("augment", [False, True])
def test_images_are_seen_as_the_teacher_sees_them(augment):
    """Transparent on white, 16-bit greys scaled, upright: see madkd_hf.data.images."""
    make = collator(augment=augment, crop_scale=1, horizontal_flip=0)
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    deep = Image.fromarray(np.full((16, 16), 65535, dtype=np.uint16))
    turned = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    turned.getexif()[0x0112] = 3
    pixels = make([{"image": image} for image in (clear, deep, turned)])["pixel_values"]
    white = make([{"image": Image.new("RGB", (16, 16), "white")}])["pixel_values"][0]
    assert torch.equal(pixels[0], white) and torch.equal(pixels[1], white)
    upright = make([{"image": turned.rotate(180)}])["pixel_values"][0]
    assert torch.equal(pixels[2], upright)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (1, 1), (3, 50)])
def test_an_image_may_be_a_line(augment, size):
    batch = collator(augment=augment)([{"image": Image.new("RGB", size, (200, 100, 50))}])
    expected = collator()([{"image": Image.new("RGB", (16, 16), (200, 100, 50))}])
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize(
    "image_processor",
    [
        processor(),
        ViTImageProcessorPil(size={"height": 16, "width": 24}),
        LevitImageProcessorPil(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}),
        ConvNextImageProcessorPil(size={"shortest_edge": 16}, crop_pct=0.875),
    ],
    ids=["square", "oblong", "resize and crop", "crop share"],
)
def test_training_batches_have_the_size_and_scale_of_evaluation_batches(image_processor):
    image = Image.new("RGB", (40, 30), (200, 100, 50))
    evaluated, trained = (
        collator(image_processor=image_processor, augment=augment)([{"image": image}])["pixel_values"]
        for augment in (False, True)
    )
    torch.testing.assert_close(trained, evaluated)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"label": 4}, "label 4 in column 'label' is none of the 4 classes: expected an integer from 0 to 3"),
        ({"label": -1}, "label -1 in column 'label' is none of the 4 classes"),
        ({"label": None}, "label None in column 'label' is none of the 4 classes"),
        ({"label": "cat"}, "label 'cat' in column 'label' is none of the 4 classes"),
        ({"label": 1.5}, "label 1.5 in column 'label' is none of the 4 classes"),
    ],
)
def test_a_label_outside_the_classes_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        collator()([*rows(2), {**rows(1)[0], **bad}])


def test_a_missing_image_column_is_refused():
    with pytest.raises(ValueError, match=r"no column 'img' .*\['image', 'label'\]: name the images with image_column"):
        collator(image_column="img")(rows())


# Rows whose image the labelling could not read


BROKEN = {"bytes": b"no image at all", "path": None}


def labelled(kinds: str, length: int = 2) -> Dataset:
    """A row for each letter: (a)nswered, (n)ot labelled, (s)kipped because its image is broken."""
    file = io.BytesIO()
    tiny.images(1)[0].save(file, "PNG")
    columns = {
        "image": [BROKEN if kind == "s" else {"bytes": file.getvalue(), "path": None} for kind in kinds],
        "position": list(range(len(kinds))),
        "aspect_logits": [[0.5, -1.0] if kind == "a" else None for kind in kinds],
        "aspect_bank": [None if kind == "n" else "bank" for kind in kinds],
    }
    answers = List(Value("float32"), length=length)
    features = {"image": ImageFeature(), "position": Value("int64"), "aspect_logits": answers}
    return Dataset.from_dict(columns, features=Features({**features, "aspect_bank": Value("string")}))


@pytest.mark.parametrize("length", [2, -1], ids=["fixed", "any length"])
def test_skipped_rows_are_left_out_and_counted(caplog, length):
    rows = drop_skipped_rows(labelled("asnsasn", length), "split 'train'")
    assert rows["position"][:] == [0, 2, 4, 6]
    assert [row["image"].size for row in rows] == [(16, 16)] * 4
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == (
        "Left out 3 of the 7 rows of split 'train': the labelling could not read their images, or a box in them."
    )
    caplog.clear()
    assert drop_skipped_rows(rows) is rows and not caplog.records


def test_skipped_rows_are_found_in_selections_and_under_any_format():
    rows = labelled("asnsa")
    assert drop_skipped_rows(rows.select([4, 3, 2, 1]))["position"][:] == [4, 2]
    assert drop_skipped_rows(rows.with_format("torch"))["position"][:].tolist() == [0, 2, 4]
    doubled = rows.with_transform(lambda batch: {"twice": [2 * value for value in batch["position"]]})
    assert [row["twice"] for row in drop_skipped_rows(doubled)] == [0, 4, 8]


@pytest.mark.parametrize("columns", [["aspect_logits"], ["aspect_bank"], ["aspect_logits", "aspect_bank"], []])
@pytest.mark.parametrize("kinds", ["aan", "nnn", ""])
def test_a_dataset_without_skipped_rows_stays_itself(columns, kinds, caplog):
    rows = labelled(kinds).remove_columns(columns)
    assert drop_skipped_rows(rows) is rows and not caplog.records


def test_finding_skipped_rows_looks_at_no_image(monkeypatch):
    monkeypatch.setattr(ImageFeature, "decode_example", None)
    assert len(drop_skipped_rows(labelled("asa"))) == 2


def test_a_dataset_of_skipped_rows_alone_is_refused():
    with pytest.raises(ValueError, match="could read none of the 2 images of split 'train', or a box in each: repair"):
        drop_skipped_rows(labelled("ss"), "split 'train'")


# Augmentation


def test_without_crop_and_flip_training_sees_the_whole_image():
    batch = collator(augment=True, crop_scale=1, horizontal_flip=0)(rows(size=16))
    torch.testing.assert_close(batch["pixel_values"], collator()(rows(size=16))["pixel_values"])


def test_a_flip_mirrors_the_image():
    batch = collator(augment=True, crop_scale=1, horizontal_flip=1)(rows(size=16))
    torch.testing.assert_close(batch["pixel_values"], collator()(rows(size=16))["pixel_values"].flip(-1))


def test_flips_come_as_often_as_asked():
    image = tiny.images(1)[0]
    make = collator(augment=True, crop_scale=1, horizontal_flip=0.3)
    flipped = []
    for epoch in range(2000):
        make.set_epoch(epoch)
        flipped.append(not np.array_equal(np.array(make._augment(image)), np.array(image)))
    assert np.mean(flipped) == pytest.approx(0.3, abs=0.04)


def augmented(seed: int = 0, epoch: int = 0, part: slice = slice(None)) -> torch.Tensor:
    make = collator(augment=True, seed=seed)
    make.set_epoch(epoch)
    torch.manual_seed(torch.seed())
    return make(rows()[part])["pixel_values"]


def test_augmentation_follows_seed_and_epoch_and_nothing_else():
    assert torch.equal(augmented(), augmented())
    assert not torch.equal(augmented(seed=1), augmented()) and not torch.equal(augmented(epoch=1), augmented())
    assert torch.equal(augmented(part=slice(1, 3)), augmented()[1:])  # nor on the rest of the batch


def test_every_image_of_a_batch_gets_a_crop_of_its_own():
    make = collator(augment=True, horizontal_flip=0)
    red = np.linspace(0, 255, 64, dtype=np.uint8)[None].repeat(64, 0)
    pictures = [Image.fromarray(np.stack([red, red, np.full_like(red, 60 * i)], -1)) for i in range(4)]
    reds = make([{"image": picture} for picture in pictures])["pixel_values"][:, 0]
    for one, other in itertools.combinations(reds, 2):
        assert not torch.equal(one, other)


def test_workers_that_live_on_see_the_epoch_change():
    make = collator(augment=True)
    loader = torch.utils.data.DataLoader(
        rows(), batch_size=3, collate_fn=make, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    for epoch in range(2):
        make.set_epoch(epoch)
        (batch,) = loader
        assert torch.equal(batch["pixel_values"], augmented(epoch=epoch))


@pytest.mark.parametrize("augment", [False, True])
def test_batches_draw_nothing_from_the_global_generator(augment):
    state = torch.get_rng_state()
    collator(augment=augment)(rows())
    assert torch.equal(torch.get_rng_state(), state)


def boxes(width: int, height: int, scale: float, count: int = 4000) -> np.ndarray:
    return random_crops(np.array([[width, height]] * count), np.arange(count), scale, flip=0.5)[0]


@pytest.mark.parametrize(("width", "height"), [(64, 64), (100, 60), (7, 9), (1, 1), (300, 4), (4, 300)])
def test_crops_lie_inside_the_image(width, height):
    left, top, right, bottom = boxes(width, height, 0.08, 500).T
    assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
    assert (right > left).all() and (bottom > top).all()


def test_crops_keep_shares_and_ratios_that_are_spread_as_promised():
    """Away from the border's influence, area shares are uniform and ratios are uniform on a log scale."""
    left, top, right, bottom = boxes(4000, 4000, 0.08).T
    share, ratio = (right - left) * (bottom - top) / 4000**2, np.log((right - left) / (bottom - top))
    assert share.min() == pytest.approx(0.08, abs=0.01) and ratio.min() == pytest.approx(math.log(3 / 4), abs=0.01)
    assert ratio.max() == pytest.approx(math.log(4 / 3), abs=0.01)
    small = share < 0.7  # always fits
    assert share[small].mean() == pytest.approx((0.08 + 0.7) / 2, abs=0.02)
    assert ratio[small].mean() == pytest.approx(0, abs=0.02)
    assert ratio[small].std() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), abs=0.01)


def test_crops_are_placed_anywhere_with_equal_chance():
    left, top, right, bottom = boxes(400, 400, 0.08).T
    x, y = left / np.maximum(400 - (right - left), 1), top / np.maximum(400 - (bottom - top), 1)
    roomy = np.minimum(400 - (right - left), 400 - (bottom - top)) > 100
    for place in (x[roomy], y[roomy]):
        assert place.mean() == pytest.approx(0.5, abs=0.02) and place.std() == pytest.approx(12**-0.5, abs=0.02)
    assert abs(np.corrcoef(x[roomy], y[roomy])[0, 1]) < 0.05


def test_an_image_too_long_for_any_crop_gives_its_centre():
    assert boxes(300, 3, 0.9, 1).tolist() == [[148, 0, 152, 3]]
    assert boxes(3, 300, 0.9, 1).tolist() == [[0, 148, 3, 152]]


def test_chances_are_uniform_and_independent():
    drawn = chances(0, 0, np.arange(4000), 8)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert drawn.mean(axis=0) == pytest.approx(0.5, abs=0.02) and drawn.std(axis=0) == pytest.approx(
        12**-0.5, abs=0.01
    )
    others = [chances(1, 0, np.arange(4000), 8), chances(0, 1, np.arange(4000), 8), np.roll(drawn, 1, axis=0)]
    beside = np.concatenate([drawn, *others], axis=1)
    assert np.abs(np.corrcoef(beside.T) - np.eye(32)).max() < 0.07  # 4.4 standard deviations of 496 chances


def test_chances_of_an_image_do_not_depend_on_the_others():
    assert np.array_equal(chances(3, 5, np.array([7, 8, 9]), 4)[1:2], chances(3, 5, np.array([8]), 4))

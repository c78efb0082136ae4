"""From rows with boxes to batches: what the image processor makes of them, augmented without losing track of a box."""

import sys

import numpy as np
import pytest
import torch
from builders import tiny
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import DetrImageProcessorPil, RTDetrImageProcessorPil, YolosImageProcessorPil

from madkd_hf.students.detection.data import DetectionCollator


Q = 3


def square(size: int = 48) -> RTDetrImageProcessorPil:
    return RTDetrImageProcessorPil(size={"height": size, "width": size})


def padding() -> DetrImageProcessorPil:
    return DetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})


def row(size=(40, 30), boxes=((4, 6, 10, 8), (20, 10, 12, 16)), index=0, **more) -> dict:
    image = tiny.images(index + 1, 24)[index].resize(size)
    return {"image": image, "objects": {"bbox": boxes, "category": [5, 2, 7][: len(boxes)]}, "image_id": index, **more}


def painted(size: int = 64) -> dict:
    """Two boxes painted red and blue on white, so that the picture itself tells where they went."""
    pixels = np.full((size, size, 3), 255, dtype=np.uint8)
    pixels[10:26, 8:28] = (255, 0, 0)
    pixels[36:56, 40:52] = (0, 0, 255)
    objects = {"bbox": [[8, 10, 20, 16], [40, 36, 12, 20]], "category": [0, 1]}
    return {"image": Image.fromarray(pixels), "objects": objects, "aspect_logits": [[1.0] * Q, [2.0] * Q]}


def collator(image_processor=None, **settings) -> DetectionCollator:
    return DetectionCollator(image_processor or square(), **settings)


# Batches


def test_a_batch_is_what_the_image_processor_makes():
    rows = [row(index=0), row((40, 20), [(0, 0, 40, 10)], index=1)]
    annotations = [
        {
            "image_id": r["image_id"],
            "annotations": [
                {"bbox": box, "category_id": category, "area": box[2] * box[3], "iscrowd": 0, "image_id": 0}
                for box, category in zip(r["objects"]["bbox"], r["objects"]["category"])
            ],
        }
        for r in rows
    ]
    expected = padding()([r["image"] for r in rows], annotations=annotations, return_tensors="pt")
    batch = collator(padding())(rows)
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["pixel_mask"], expected["pixel_mask"])
    for label, other in zip(batch["labels"], expected["labels"]):
        assert set(label) == set(other)
        for name, values in label.items():
            assert torch.equal(values, other[name]) and values.dtype == other[name].dtype, name


def test_boxes_are_parts_of_the_padded_image():
    """Both are padded to 64 x 48: the first box becomes half as high, the second two thirds as wide."""
    batch = collator(padding())([row((48, 32), [(0, 0, 48, 32)]), row((32, 64), [(0, 0, 32, 64)], index=1)])
    assert batch["pixel_values"].shape == (2, 3, 64, 48) and batch["pixel_mask"].shape == (2, 64, 48)
    assert [mask.sum().item() for mask in batch["pixel_mask"]] == [32 * 48, 64 * 32]
    assert batch["labels"][0]["boxes"].tolist() == [pytest.approx([0.5, 0.25, 1, 0.5])]
    assert batch["labels"][1]["boxes"].tolist() == [pytest.approx([1 / 3, 0.5, 2 / 3, 1])]


@pytest.mark.parametrize(
    ("box_format", "box"),
    [("coco", [10, 6, 20, 12]), ("pascal_voc", [10, 6, 30, 18]), ("yolo", [0.5, 0.4, 0.5, 0.4])],
)
def test_all_box_formats_mean_the_same(box_format, box):
    batch = collator(box_format=box_format)([row(boxes=[box])])
    assert batch["labels"][0]["boxes"].tolist() == [pytest.approx([0.5, 0.4, 0.5, 0.4])]


def test_images_without_objects_and_rows_without_boxes():
    label = collator(num_aspects=Q)([row(boxes=[], aspect_logits=[])])["labels"][0]
    assert label["boxes"].shape == (0, 4) and label["class_labels"].shape == (0,)
    assert set(collator()([{"image": row()["image"]}])) == {"pixel_values"}


def test_objects_may_be_a_list_of_structs_or_unknown():
    one = row()
    listed = [{"bbox": box, "category": c} for box, c in zip(one["objects"]["bbox"], one["objects"]["category"])]
    (first,), (second,) = (collator()([{**one, "objects": objects}])["labels"] for objects in (listed, one["objects"]))
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert collator()([{**one, "objects": None}])["labels"][0]["boxes"].shape == (0, 4)


def test_pixel_masks_can_be_left_out():
    processor = YolosImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})
    assert "pixel_mask" in collator(processor)([row()])
    assert "pixel_mask" not in collator(processor, pixel_mask=False)([row()])


def test_rows_come_from_a_dataset():
    features = Features(
        {
            "picture": ImageFeature(),
            "things": {"bbox": List(List(Value("float32"), length=4)), "category": List(Value("int64"))},
            "aspect_logits": List(List(Value("float32"), length=Q)),
        }
    )
    one = row()
    rows = {"picture": [one["image"]], "things": [one["objects"]], "aspect_logits": [[[1.0] * Q, None]]}
    dataset = Dataset.from_dict(rows, features=features)
    batch = collator(image_column="picture", boxes_column="things")([dataset[0]])
    assert batch["labels"][0]["class_labels"].tolist() == [5, 2]
    assert batch["labels"][0]["image_id"].tolist() == [0]


# Aspects


def test_answers_about_objects_stay_with_their_objects():
    """A crowd, which image processors leave out, takes its answers along."""
    one = row(boxes=[(0, 0, 9, 9), (1, 1, 9, 9), (2, 2, 9, 9)], aspect_logits=[[1.0] * Q, [2.0] * Q, [3.0] * Q])
    one["objects"] |= {"iscrowd": [0, 1, 0]}
    label = collator()([one])["labels"][0]
    assert label["class_labels"].tolist() == [5, 7]
    assert label["aspect_logits"].tolist() == [[1.0] * Q, [3.0] * Q]


def test_crowds_are_told_beside_the_targets_of_evaluation_batches_alone():
    one = row(boxes=[(0, 0, 9, 9), (1, 1, 9, 8), (2, 2, 9, 9)])
    one["objects"] |= {"iscrowd": [0, 1, None]}
    label = collator(padding())([one])["labels"][0]
    assert label["class_labels"].tolist() == [5, 7] and label["iscrowd"].tolist() == [0, 0]
    assert label["crowd_boxes"].tolist() == [[1, 1, 10, 9]] and label["crowd_labels"].tolist() == [2]
    (label,) = augmenting()([one])["labels"]
    assert label["class_labels"].tolist() == [5, 7] and not {"crowd_boxes", "crowd_labels"} & set(label)


def test_answers_about_images_come_one_row_an_image():
    rows = [row(aspect_logits=[1.0, -2.0, 0.5]), row(index=1, aspect_logits=None)]
    first, second = collator(augment=True)(rows)["labels"]
    assert first["aspect_logits"].tolist() == [1.0, -2.0, 0.5]
    assert second["aspect_logits"].shape == (Q,) and second["aspect_logits"].isnan().all()


def test_missing_answers_are_nan():
    rows = [row(aspect_logits=[[1.0] * Q, None]), row(index=1, aspect_logits=None)]
    first, second = collator()(rows)["labels"]
    assert first["aspect_logits"].isnan().tolist() == [[False] * Q, [True] * Q]
    assert second["aspect_logits"].shape == (2, Q) and second["aspect_logits"].isnan().all()


@pytest.mark.parametrize(("settings", "shape"), [({}, (Q,)), ({"aspects_per_object": True}, (2, Q))])
def test_a_batch_without_any_answer_looks_like_the_others(settings, shape):
    label = collator(num_aspects=Q, **settings)([row(aspect_logits=None)])["labels"][0]
    assert label["aspect_logits"].shape == shape and label["aspect_logits"].isnan().all()
    assert "aspect_logits" not in collator()([row(aspect_logits=None)])["labels"][0]


# Augmentation


def augmenting(**settings) -> DetectionCollator:
    pytest.importorskip("albumentations")
    return collator(square(64), augment=True, **settings)


@pytest.mark.parametrize("settings", [{"zoom": 0}, {}, {"zoom": 0.5, "horizontal_flip": 1.0}])
def test_boxes_follow_what_the_picture_shows(settings):
    collate = augmenting(brightness=0, **settings)
    for epoch in range(20):
        collate.set_epoch(epoch)
        batch = collate([painted()])
        label = batch["labels"][0]
        for category, (x, y, width, height) in zip(label["class_labels"].tolist(), label["boxes"].tolist()):
            shown = batch["pixel_values"][0, 2 if category == 0 else 0] < 0.5  # neither red nor white: blue, ...
            rows, columns = np.flatnonzero(shown.any(dim=1)), np.flatnonzero(shown.any(dim=0))
            expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            box = 64 * np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            assert np.abs(box - expected).max() <= 1.5


def test_flips_happen_as_often_as_asked():
    collate = augmenting(zoom=0, brightness=0)
    lefts = []
    for epoch in range(60):
        collate.set_epoch(epoch)
        lefts.append(collate([painted()])["labels"][0]["boxes"][0, 0].item() < 0.5)
    assert 18 < sum(lefts) < 42


def test_objects_that_leave_the_image_take_their_answers_along():
    lonely = []
    collate = augmenting(zoom=0.5)
    edge = painted()
    edge["objects"] = {"bbox": [[0, 0, 64, 2], [40, 36, 12, 20]], "category": [0, 1]}  # a thin stripe on top goes
    for epoch in range(40):
        collate.set_epoch(epoch)
        label = collate([edge])["labels"][0]
        assert len(label["aspect_logits"]) == len(label["boxes"]) == len(label["area"]) == len(label["class_labels"])
        assert (label["aspect_logits"][:, 0] == label["class_labels"] + 1).all()
        lonely.append(label["class_labels"].tolist() == [1])
    assert 0 < sum(lonely)


def test_images_without_objects_are_augmented_too():
    collate = augmenting(zoom=0.5)
    label = collate([row(boxes=[], aspect_logits=[])])["labels"][0]
    assert label["boxes"].shape == (0, 4)


def test_draws_follow_from_seed_epoch_and_image_alone():
    collate = augmenting()
    rows = [row(index=i) for i in range(4)]
    together = collate(rows)["pixel_values"]
    torch.manual_seed(7)
    np.random.seed(7)
    assert all(torch.equal(collate([r])["pixel_values"][0], pixels) for r, pixels in zip(rows[::-1], together.flip(0)))
    assert torch.equal(augmenting()(rows)["pixel_values"], together)
    assert not torch.equal(augmenting(seed=1)(rows)["pixel_values"], together)
    collate.set_epoch(1)
    assert not torch.equal(collate(rows)["pixel_values"], together)


def test_workers_see_the_same_draws_and_the_epoch():
    collate = augmenting()
    rows = [row(index=i) for i in range(4)]
    loader = torch.utils.data.DataLoader(rows, 2, collate_fn=collate, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        collate.set_epoch(epoch)
        expected = collate(rows)["pixel_values"]
        assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), expected)


def test_areas_shrink_with_their_boxes():
    collate = augmenting(zoom=0.5)
    one = painted()
    one["objects"]["area"] = [160.0, 120.0]  # half of their boxes
    for epoch in range(10):
        collate.set_epoch(epoch)
        label = collate([one])["labels"][0]
        width, height = (64 * label["boxes"][:, 2:]).T
        assert torch.allclose(label["area"], width * height / 2, rtol=1e-3)


# Errors


@pytest.mark.parametrize("category", [[None], ["cat"], [1.5], None])
def test_categories_that_are_no_integers_raise_with_the_image(category):
    one = row(boxes=[(0, 0, 5, 5)], index=3)
    one["objects"]["category"] = category
    with pytest.raises(ValueError, match="Image 3: its categories are .*, expected an integer for each object; cast"):
        collator()([one])


def test_bad_rows_raise_with_the_image():
    with pytest.raises(ValueError, match="Image 3: its objects have no bbox and no category"):
        collator()([row(index=3) | {"objects": [None]}])
    with pytest.raises(ValueError, match="Image 3.*object 1 has the box"):
        collator()([row(boxes=[(0, 0, 5, 5), (0, 0, 500, 5)], index=3)])
    with pytest.raises(ValueError, match="no column 'image' .*'img'.: name the images with image_column"):
        collator()([{"img": None}])
    with pytest.raises(ValueError, match="no column 'objects' .*'image'.: name the objects with boxes_column"):
        augmenting()([{"image": row()["image"]}])
    for objects in ({"bbox": [[0, 0, 9, 9]], "label": [1]}, [{"bbox": [0, 0, 9, 9], "label": 1}]):
        with pytest.raises(ValueError, match="no category, only .'bbox', 'label'.: rename their fields"):
            collator()([{**row(), "objects": objects}])
    with pytest.raises(ValueError, match="has the category 5, which is none of the 3 classes"):
        collator(num_classes=3)([row()])
    with pytest.raises(ValueError, match="2 boxes, but 1 values of 'category'"):
        collator()([{**row(), "objects": {"bbox": row()["objects"]["bbox"], "category": [1]}}])
    with pytest.raises(ValueError, match="2 objects, but answers about 1"):
        collator()([row(aspect_logits=[[1.0] * Q])])
    with pytest.raises(ValueError, match="box_format"):
        collator(box_format="voc")


def test_without_albumentations_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ImportError, match=r'pip install "madkd_hf\[detection\]"'):
        collator(augment=True)

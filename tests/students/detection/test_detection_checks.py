"""What a trainer of detectors refuses."""

from __future__ import annotations

import pytest
from builders import tiny
from builders.classifier_training import (
    OTHER,
    arguments,
    student,
)
from builders.detector_training import (
    BANK,
    PROCESSOR,
    detector,
    flat,
    rows,
    trainer,
)
from builders.measured_detectors import still
from datasets import ClassLabel, Features, List, Value
from transformers import (
    TrainingArguments,
)

from madkd_hf import MadkdDetectionTrainer, MadkdTrainer


# What is refused


OTHER_CLASSES = {**rows(4).features, "objects": {**rows(4).features["objects"], "category": List(Value("int64"))}}
FIVE = Features({**OTHER_CLASSES, "objects": {**OTHER_CLASSES["objects"], "category": List(ClassLabel(5))}})


def beyond(row: dict) -> dict:
    return {"objects": {**row["objects"], "category": [each + 2 for each in row["objects"]["category"]]}}


def without(row: dict) -> dict:
    return {"objects": {**row["objects"], "category": [None for _ in row["objects"]["category"]]}}


REFUSED = {
    "no category": (rows(8, objects=(0, 2)).map(without), "object in row 1 has no category: give it one"),
    "length": (rows(4, bank=tiny.bank(2)), "answers 2 questions and the model has 3 aspects: use the bank .*aspects"),
    "fingerprint": (rows(4, bank=OTHER), f"bank {OTHER.fingerprint} and the model was built for {BANK.fingerprint}"),
    "level": (
        rows(4, "image"),
        "answers about whole images and the model about each object: label it with boxes_column, or train a "
        'MadkdForObjectDetection with aspect_level="image"',
    ),
    "classes": (rows(4).cast(FIVE), "has 5 classes and the model 3: build the"),
    "category": (
        rows(4).cast(Features(OTHER_CLASSES)).map(beyond),
        r"An object of the \w+ dataset( 'bad')? has the category [34], which is none of the 3 classes: expected an "
        "integer from 0 to 2",
    ),
    "fields": (
        rows(4).map(lambda row: {"objects": {"box": row["objects"]["bbox"]}}, features=Features(
            {**rows(4).features, "objects": {"box": List(List(Value("float32")))}})),
        "expected objects with the fields 'bbox' and 'category'; rename",
    ),
}  # fmt: skip
MISSING = {
    "area": (
        rows(8, objects=(0, 2)).map(flat),
        "An object in row 1 of .* has the box .*, 0.0., which has no area: expected coco boxes, .*; correct the box",
    ),
    "column": (rows(4).remove_columns("objects"), "no column 'objects' in the .*, only .*name the objects with"),
    "objects": (rows(4, objects=(0,)), "None of the 4 images of the .* has an object in the column 'objects': there"),
}


@pytest.mark.parametrize("name", [*REFUSED, *MISSING])
def test_a_dataset_that_does_not_fit_the_model_is_refused(tmp_path, name):
    data, message = (REFUSED | MISSING)[name]
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, train=data)


@pytest.mark.parametrize("place", ["evaluate", "evaluate dict", "evaluate later", "predict later"])
@pytest.mark.parametrize("name", ["level", "column"])
def test_so_is_one_to_evaluate_or_to_predict(tmp_path, place, name):
    if place == "predict later" and name in MISSING:
        return
    data, message = (REFUSED | MISSING)[name]
    with pytest.raises(ValueError, match=message):
        if place == "evaluate":
            trainer(tmp_path, evaluate=data)
        elif place == "evaluate dict":
            trainer(tmp_path, evaluate={"good": rows(4), "bad": data})
        elif place == "evaluate later":
            trainer(tmp_path).evaluate(data)
        else:
            trainer(tmp_path).predict(data)


def test_answers_about_objects_are_refused_by_what_asks_about_images(tmp_path):
    message = "answers about each object and the model about whole images: label it without boxes_column, or train a"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, detector(level="image"))
    data = rows(4).add_column("label", [0, 1, 2, 3])
    with pytest.raises(ValueError, match=message):
        MadkdTrainer(student(), arguments(tmp_path), train_dataset=data, processing_class=PROCESSOR)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_store": "disk"}, "An image store keeps images of one size, .*received image_store='disk': leave it"),
        ({"mixup_alpha": 0.2}, "loss has no mixup_alpha; received 0.2: leave it at 0"),
        ({"label_smoothing_factor": 0.1}, "loss has no label_smoothing_factor; received 0.1: leave it at 0"),
    ],
)
def test_arguments_for_what_detectors_do_not_have_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **settings)


def test_a_model_a_processor_and_arguments_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="needs a MadkdForObjectDetection; received .*MadkdForImage.*from_detector"):
        trainer(tmp_path, student())
    with pytest.raises(ValueError, match="MadkdDetectionTrainer needs MadkdTrainingArguments .for aspect_alpha"):
        MadkdDetectionTrainer(detector(), TrainingArguments(str(tmp_path), use_cpu=True), processing_class=PROCESSOR)
    with pytest.raises(ValueError, match="Pass the student's image processor as processing_class"):
        trainer(tmp_path, processor=None)
    with pytest.raises(ValueError, match="Evaluation needs the detector's image processor, .*received .*NoneType"):
        trainer(tmp_path, evaluate=rows(4), collator=still(detector()), processor=None).evaluate()

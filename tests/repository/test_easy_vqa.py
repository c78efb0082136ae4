"""The easy-VQA recipe: its data, its aspects and its shipped teacher."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


pytest.importorskip("easy_vqa")

from madkd_hf.teachers.mllm.prompt import chat_text  # noqa: E402
from recipes.easy_vqa import data  # noqa: E402
from recipes.easy_vqa.teacher import evaluate_teacher, train_teacher  # noqa: E402


RECIPE = Path(data.__file__).parent
TEACHER = RECIPE / "teacher"


@pytest.fixture(scope="module")
def teacher():
    processor = AutoProcessor.from_pretrained(TEACHER)
    return processor, AutoModelForImageTextToText.from_pretrained(TEACHER, dtype=torch.float32)


def test_answers_determine_the_known_number_of_classes():
    assert data.counts() == {
        "train": {"determined": 3578, "undetermined": 422},
        "test": {"determined": 888, "undetermined": 112},
    }


@pytest.mark.parametrize(
    ("questions", "expected"),
    [
        ([("what is the blue shape?", "circle")], "blue circle"),
        ([("what color is the triangle?", "teal")], "teal triangle"),
        ([("is there a red shape?", "yes"), ("is no rectangle present?", "no")], "red rectangle"),
        ([("is a red shape present?", "yes"), ("is there a circle?", "no"), ("is no triangle present?", "yes")],
         "red rectangle"),
        ([("is there a red shape?", "yes"), ("is there a circle?", "no")], None),
        ([("what color is the shape?", "red")], None),
    ],
)  # fmt: skip
def test_class_follows_from_answers(questions, expected):
    assert data.derive_class(questions) == expected


@pytest.mark.parametrize(
    "questions",
    [
        [("what color is the shape?", "red"), ("is there a blue shape?", "yes")],
        [("what shape is present?", "circle"), ("is there not a circle?", "yes")],
        [(f"is there a {shape}?", "no") for shape in data.SHAPES],
    ],
)
def test_contradicting_answers_raise(questions):
    with pytest.raises(ValueError, match="contradict"):
        data.derive_class(questions)


def test_parts_are_disjoint_and_seeded():
    parts = data.parts()
    assert {name: len(ids) for name, ids in parts.items()} == {
        "teacher": 2400,
        "train": 1200,
        "validation": 400,
        "test": 888,
    }
    assert len({*parts["teacher"], *parts["train"], *parts["validation"]}) == 4000
    data.parts.cache_clear()
    assert data.parts() == parts


def test_dataset_has_balanced_classes_and_a_constant_fingerprint():
    dataset = data.load_easy_vqa()
    assert dataset["train"].features["label"].names == data.CLASSES
    assert len(set(data.CLASSES)) == 24
    assert set(Counter(dataset["train"]["label"]).values()) == {50}
    assert dataset["test"][0]["image"].size == (64, 64)
    again = data.load_easy_vqa()
    assert {k: v._fingerprint for k, v in dataset.items()} == {k: v._fingerprint for k, v in again.items()}


def test_questions_belong_to_their_part():
    questions = data.questions_of("all test")
    assert len(questions) == 7136
    assert {answer for _, _, answer in questions} == {"yes", "no"}
    assert all(path.is_absolute() for path, _, _ in questions)
    assert len(data.questions_of("all test", yes_no_only=False)) == 9673
    assert not {q[0] for q in data.questions_of("teacher")} & {q[0] for q in data.questions_of("train")}


def test_aspects_use_the_wording_of_the_dataset():
    aspects = json.loads((RECIPE / "aspects.json").read_text())["aspects"]
    assert [aspect["id"] for aspect in aspects] == [*data.COLORS, *data.SHAPES]
    assert {aspect["question"].lower() for aspect in aspects} <= {q for _, q, _ in data.questions_of("teacher")}


def test_shipped_teacher_is_small_and_names_no_local_path():
    assert (TEACHER / "model.safetensors").stat().st_size <= 2_000_000
    for file in TEACHER.glob("*.json"):
        assert "/work" not in file.read_text() and str(Path.home()) not in file.read_text()


def test_teacher_reads_capitals_and_keeps_yes_and_no_whole(teacher):
    processor, _ = teacher
    ids = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Yes", "yes", "No", "no")]
    assert ids[0] == ids[1] and ids[2] == ids[3] and all(len(i) == 1 for i in ids)
    text = chat_text(processor, "Is there a circle?")
    assert text.index("<image>") < text.index("Answer with yes or no. Is there a circle?")
    assert processor.tokenizer.unk_token_id not in processor.tokenizer(text)["input_ids"]


def test_teacher_answers_a_fixed_subset(teacher):
    processor, model = teacher
    questions = data.questions_of("all test")
    paths = list(dict.fromkeys(path for path, _, _ in questions))[:60]
    subset = [question for question in questions if question[0] in paths]
    correct, mass = evaluate_teacher.read_answers(model, processor, subset)
    assert sum(correct) / len(correct) >= 0.96
    assert mass > 0.98


def test_training_path_and_users_path_agree(teacher):
    processor, model = teacher
    questions = data.questions_of("validation", yes_no_only=False)[:30]
    prefix, rows = train_teacher.encode(processor, questions)
    path, group = next(iter(rows.items()))
    image = Image.open(path)
    pixel_values = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = train_teacher.image_features(model, pixel_values)
        shared = train_teacher.answer_logits(model, prefix, features, [group])
        for row, logits in zip(group, shared):
            ids = torch.tensor([[*prefix, *row.tokens]])
            torch.testing.assert_close(
                model(input_ids=ids, pixel_values=pixel_values).logits[0, -1], logits, atol=1e-4, rtol=1e-4
            )


def test_card_carries_the_measured_accuracy():
    card = ModelCard.load(TEACHER / "README.md")
    (result,) = card.data.eval_results
    assert card.data.pipeline_tag == "image-text-to-text"
    assert result.metric_type == "accuracy" and result.metric_value >= 0.98


@pytest.mark.slow
def test_card_agrees_with_a_new_measurement():
    measured = evaluate_teacher.evaluate(str(TEACHER), "all test")
    (result,) = ModelCard.load(TEACHER / "README.md").data.eval_results
    assert measured["questions"] == 7136
    assert measured["teacher"]["all"] == pytest.approx(result.metric_value, abs=1e-3)
    assert measured["majority"]["all"] < 0.85

"""Who can be a class teacher, and what it says of an image."""

from __future__ import annotations

import json

import pytest
import torch
from builders import tiny
from builders.class_teachers import NAMES, class_teacher, model, processor, saved
from transformers import AutoModelForImageClassification, BertConfig, BertForSequenceClassification, ResNetModel

from madkd_hf import ClassTeacher, MadkdForImageClassification
from madkd_hf.teachers import UnreadableImageError
from madkd_hf.teachers.class_teacher import load_config


IMAGES = tiny.images(5, 20)


def test_the_scores_are_the_model_s_own(tmp_path):
    teacher = ClassTeacher.from_pretrained(saved(tmp_path / "larger"))
    own = AutoModelForImageClassification.from_pretrained(tmp_path / "larger").eval()
    with torch.no_grad():
        expected = own(**processor()(IMAGES, return_tensors="pt")).logits
    torch.testing.assert_close(teacher.read(IMAGES), expected)
    assert teacher.classes == NAMES and teacher.name == "larger" and teacher.read([]).shape == (0, 3)


def test_our_own_students_are_class_teachers_with_their_classes_alone(tmp_path):
    student = MadkdForImageClassification.from_backbone(
        tiny.resnet(), id2label=dict(enumerate(NAMES)), bank=tiny.bank(3)
    )
    student.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    teacher = ClassTeacher.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = student.eval()(**processor()(IMAGES, return_tensors="pt")).logits
    torch.testing.assert_close(teacher.read(IMAGES), expected)
    assert teacher.read(IMAGES).shape == (5, 3)


def test_any_changed_weight_is_another_teacher():
    first, changed = class_teacher(), class_teacher()
    with torch.no_grad():
        changed.model.classifier[1].weight[-1, -1] += 1e-3
    assert first.fingerprint == class_teacher().fingerprint != changed.fingerprint


def test_images_of_several_sizes_are_scored_one_by_one():
    teacher = class_teacher()
    teacher.processor.do_resize = False
    pictures = [*tiny.images(1, 20), *tiny.images(1, 24, seed=1)]
    alone = torch.cat([teacher.read([picture]) for picture in pictures])
    torch.testing.assert_close(teacher.read(pictures), alone)


def test_an_image_that_the_processor_refuses_is_named_by_its_place():
    teacher = class_teacher()
    own = teacher.processor

    class Choosy:
        def __call__(self, image, **options):
            if image.size == (3, 3):
                raise ValueError("too small")
            return own(image, **options)

    teacher.processor = Choosy()
    with pytest.raises(UnreadableImageError) as raised:
        teacher.read([*IMAGES, *tiny.images(1, 3)])
    assert raised.value.index == 5


def test_scores_that_are_none_are_refused():
    teacher = class_teacher()
    with torch.no_grad():
        teacher.model.classifier[1].bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="gave scores of shape .* 3 finite ones"):
        teacher.read(IMAGES)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"problem_type": "multi_label_classification"}, "problem_type='multi_label_classification'"),
        ({"problem_type": "regression"}, "problem_type='regression'"),
        ({"id2label": {0: "bird"}, "label2id": {"bird": 0}}, "has 1 class "),
    ],
)
def test_models_without_one_class_an_image_are_refused(tmp_path, config, said):
    folder = saved(tmp_path / "other")
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    for load in (load_config, ClassTeacher.from_pretrained):
        with pytest.raises(ValueError, match="expected an image classifier with one class an image") as raised:
            load(folder)
        assert said in str(raised.value)


def test_a_text_model_a_headless_one_and_none_at_all_are_refused(tmp_path):
    text = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertForSequenceClassification(text).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="BertForSequenceClassification, which classifies no images"):
        load_config(tmp_path / "text")
    ResNetModel(model().config).save_pretrained(tmp_path / "headless")
    processor().save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="lack classifier.* would be random"):
        ClassTeacher.from_pretrained(tmp_path / "headless")
    with pytest.raises(FileNotFoundError, match="There is no folder ./nowhere"):
        load_config("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, OSError), match="configuration of .*empty cannot be loaded"):
        load_config(tmp_path / "empty")


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = saved(tmp_path / "other")
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "strange", "auto_map": {"AutoConfig": "strange.Strange"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "strange.py").write_text("raise SystemExit('it ran')")
    with pytest.raises((ValueError, OSError), match="configuration of .* cannot be loaded"):
        load_config(folder)

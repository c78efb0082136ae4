"""Detectors built of others, and saved ones in everybody else's tools."""

import json
import math
from functools import partial

import pytest
import torch
from builders import tiny
from builders.detector_outputs import labels, same
from builders.detectors import (
    ARCHITECTURES,
    CLASSES,
    DETR,
    PLAIN,
    N,
    Q,
    detector,
    grouped,
    pixels,
    processor,
)
from transformers import (
    AutoModelForObjectDetection,
    DetrConfig,
    PPOCRV5MobileDetConfig,
    ResNetConfig,
    Trainer,
    TrainingArguments,
    ViTConfig,
    pipeline,
)

from madkd_hf import MadkdDetectionConfig, MadkdForObjectDetection
from madkd_hf.students.base.models import check_model
from madkd_hf.students.losses.madkd_detection import aspect_loss


# Building


def test_new_students_and_plain_detectors_are_in_evaluation_mode_as_loaded_ones_are(tmp_path):
    model = MadkdForObjectDetection.from_detector(ARCHITECTURES["detr"](), CLASSES, tiny.bank(Q))
    assert not any(module.training for module in model.modules())
    model.train()
    plain = model.to_plain()
    assert not any(module.training for module in plain.modules()) and model.detector.training
    plain.save_pretrained(tmp_path)
    assert not MadkdForObjectDetection.from_detector(str(tmp_path), CLASSES, tiny.bank(Q)).training


@pytest.mark.parametrize("config", [ResNetConfig(), ViTConfig()])
@pytest.mark.parametrize("pretrained", [True, False])
def test_what_is_no_detector_is_refused_in_a_sentence(config, pretrained, tmp_path):
    config.save_pretrained(tmp_path)
    for given, received in ((config, type(config).__name__), (str(tmp_path), tmp_path), (tmp_path, tmp_path)):
        with pytest.raises(ValueError) as found:
            MadkdForObjectDetection.from_detector(given, CLASSES, pretrained=pretrained)
        assert str(found.value) == (
            f"Expected a detector; {received} is a model of type {config.model_type!r}: pass the id, folder or "
            'configuration of a model for AutoModelForObjectDetection, as "PekingU/rtdetr_r18vd".'
        )


def test_a_folder_without_a_model_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="^Expected the folder of a detector; .* has no config.json: pass the id, f"):
        MadkdForObjectDetection.from_detector(str(tmp_path), CLASSES)
    (tmp_path / "inside").mkdir()
    detector("yolos").to_plain().save_pretrained(tmp_path / "inside")
    assert MadkdForObjectDetection.from_detector(str(tmp_path), CLASSES, subfolder="inside").detector is not None


@pytest.mark.parametrize("classes", [3, 5], ids=["as many classes", "other classes"])
@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_a_pretrained_detector_keeps_every_weight_that_fits(name, classes, tmp_path):
    pretrained = detector(name).to_plain()
    pretrained.save_pretrained(tmp_path)
    names = {i: f"new {i}" for i in range(classes)}
    model = MadkdForObjectDetection.from_detector(str(tmp_path), names, tiny.bank(Q))
    assert model.config.id2label == names == model.detector.config.id2label
    old, new = pretrained.state_dict(), model.detector.state_dict()
    fresh = {key for key, value in new.items() if value.shape != old[key].shape}
    assert all(torch.equal(value, old[key]) for key, value in new.items() if key not in fresh)
    assert bool(fresh) == (classes == 5)
    assert all(torch.isfinite(new[key]).all() and new[key].abs().max() < 10 for key in fresh)
    assert model.config.base_model is None and str(tmp_path) not in json.dumps(model.config.to_dict())


def test_a_student_lends_its_detector_to_another(tmp_path):
    first = detector("detr", "image")
    first.config.base_model = "you/base"
    first.save_pretrained(tmp_path)
    second = MadkdForObjectDetection.from_detector(str(tmp_path), {0: "a", 1: "b"}, tiny.bank(2))
    assert second.config.base_model == "you/base" and second.config.aspect_level == "object"
    old = first.detector.state_dict()
    for key, value in second.detector.state_dict().items():
        assert value.shape[0] == 3 if "class_labels" in key else torch.equal(value, old[key]), key
    new = MadkdForObjectDetection.from_detector(str(tmp_path), CLASSES, tiny.bank(Q), pretrained=False)
    assert new.config.base_model is None
    assert not torch.equal(new.detector.class_labels_classifier.weight, first.detector.class_labels_classifier.weight)


def test_a_detector_of_the_hub_is_named_with_its_commit(hub, tmp_path):
    plain = detector("yolos").to_plain()
    plain.push_to_hub("you/yolos")
    model = MadkdForObjectDetection.from_detector("you/yolos", CLASSES, tiny.bank(Q), cache_dir=tmp_path)
    assert model.config.base_model == "you/yolos" and len(model.config.base_model_revision) == 40
    assert same(model.eval()(pixels()), plain(pixel_values=pixels()))


def test_the_configuration_given_is_left_as_it_was_and_tells_of_the_bank():
    config, bank = ARCHITECTURES["detr"](), tiny.bank(Q)
    before = config.to_dict()
    bank.provenance = {"model": "some/teacher", "commit": "abc"}
    model = MadkdForObjectDetection.from_detector(config, CLASSES, bank)
    assert config.to_dict() == before
    ours = model.config
    assert (ours.aspect_ids, ours.aspect_questions, ours.num_aspects) == (bank.ids, bank.questions, Q)
    assert ours.aspect_bank == bank.fingerprint and ours.aspect_groups == ["visual"] * Q
    assert ours.aspect_teacher == {"model": "some/teacher", "commit": "abc"}


@torch.no_grad()
def test_a_student_without_a_bank_is_the_plain_detector():
    for level in ("object", "image"):
        model = detector("yolos", level, questions=0)
        assert model(pixels()).aspect_logits.shape[-1] == 0 and same(model.to_plain()(pixels()), model(pixels()))
    assert aspect_loss(model(pixels()), [{}, {}], "image") == 0


def test_classes_are_the_same_in_both_configurations(tmp_path):
    config = MadkdDetectionConfig(DetrConfig(**DETR, **PLAIN, id2label=CLASSES, label2id={"cat": 0}))
    assert config.id2label == CLASSES and config.label2id == {"cat": 0, "dog": 1, "cow": 2} and config.num_labels == 3
    assert config.detector_config.label2id == config.label2id
    config.id2label = {0: "one"}
    assert config.detector_config.id2label == {0: "one"} and config.detector_config.num_labels == 1
    config = MadkdDetectionConfig(config.detector_config.to_dict(), id2label={"0": "a", "1": "b"})
    assert config.detector_config.id2label == config.id2label == {0: "a", 1: "b"}
    config.save_pretrained(tmp_path)
    again = MadkdDetectionConfig.from_pretrained(tmp_path, num_labels=4)
    assert again.num_labels == again.detector_config.num_labels == 4
    assert MadkdDetectionConfig().detector_config.model_type == "yolos"


def test_a_level_that_is_none_is_refused():
    with pytest.raises(ValueError, match='^aspect_level is "object" or "image"; received \'pixel\'.$'):
        MadkdDetectionConfig(aspect_level="pixel")
    with pytest.raises(ValueError, match="received 2 ids and 0 questions"):
        MadkdDetectionConfig(aspect_ids=["a", "b"])


def test_a_detector_that_has_nothing_to_read_is_refused_at_once():
    with pytest.raises(ValueError, match="^PPOCRV5MobileDetForObjectDetection gives no states of its queries"):
        MadkdForObjectDetection.from_detector(PPOCRV5MobileDetConfig(), CLASSES, tiny.bank(Q))
    with pytest.raises(ValueError, match='^LwDetrForObjectDetection gives no features of the image.*"object".$'):
        MadkdForObjectDetection.from_detector(grouped(), CLASSES, tiny.bank(Q), aspect_level="image")


def test_a_detector_that_gives_nothing_to_read_is_told_in_a_sentence():
    """Its `forward` may not say what it returns."""
    for level, lacking, remedy in (
        ("object", "last_hidden_state", "states of its queries .*detr"),
        ("image", "encoder_last_hidden_state", 'features of the image .*"object"'),
    ):
        model = detector("detr", level)
        forward = model.detector.forward

        def without(*args, forward=forward, lacking=lacking, **kwargs):
            outputs = forward(*args, **kwargs)
            return type(outputs)(**{name: value for name, value in outputs.items() if name != lacking})

        model.detector.forward = without
        with pytest.raises(ValueError, match=f"^DetrForObjectDetection gives no {remedy}"):
            model(pixels())


# Everybody else's tools


@pytest.mark.parametrize("name", ["detr", "rt_detr", "lw_detr"])
@torch.no_grad()
def test_what_every_model_can_be_asked_for_comes_from_the_detector(name):
    model = detector(name)
    model.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    out, theirs, usual = model(pixels(), **asked), model.detector(pixels(), **asked), model(pixels())
    layers = [key for key in theirs if key.endswith(("_attentions", "hidden_states")) or key == "attentions"]
    layers = [key for key in layers if not key.startswith("intermediate")]
    assert len(layers) >= 2 and set(out) == {*usual, *layers}
    for key in layers:
        assert len(out[key]) == len(theirs[key]) > 0
        torch.testing.assert_close(out[key][-1], theirs[key][-1])


@torch.no_grad()
def test_outputs_are_a_tuple_where_that_is_asked_for():
    model = detector("detr")
    usual, pair = model(pixels(), labels=labels()), model(pixels(), labels=labels(), return_dict=False)
    assert type(pair) is tuple and len(pair) == len(usual) == 6 and torch.equal(pair[0], usual.loss)
    model.config.return_dict = False
    assert torch.equal(model(pixels())[2], usual.aspect_logits)
    assert torch.equal(model(pixels(), return_dict=True).aspect_logits, usual.aspect_logits)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a student and its image processor, and the student's outputs for `pixels()`."""
    folder = tmp_path_factory.mktemp("detector")
    model = detector("detr")
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    with torch.no_grad():
        return folder, model(pixels())


def test_weights_travel_as_safetensors_with_their_code(saved):
    names = {path.name for path in saved[0].iterdir()}
    assert {"aspects_of_madkd.py", "configuration_madkd_detection.py", "modeling_madkd_detection.py"} <= names
    assert type(AutoModelForObjectDetection.from_pretrained(saved[0])) is MadkdForObjectDetection


def test_the_usual_pipeline_finds_what_the_plain_detector_finds(saved):
    image = tiny.images(1, size=48)[0]
    model = detector("detr")
    ours = pipeline("object-detection", model=model, image_processor=processor())(image, threshold=0.0)
    theirs = pipeline("object-detection", model=model.to_plain(), image_processor=processor())(image, threshold=0.0)
    loaded = pipeline("object-detection", model=str(saved[0]))(image, threshold=0.0)
    assert ours == theirs == loaded and len(ours) == N
    assert {answer["label"] for answer in ours} <= set(CLASSES.values())


@pytest.mark.parametrize("kind", ["detr", "rt_detr"])
def test_the_aspect_pipeline_tells_each_box_the_answers_of_its_query(kind):
    image, model, prepare = tiny.images(1, size=48)[0], detector(kind), processor()
    look = pipeline("aspect-detection", model=model, image_processor=prepare)
    seen = look([image, image], threshold=0.2, batch_size=2)
    assert seen[0] == seen[1] and set(seen[0]) == {"objects"}
    usual = pipeline("object-detection", model=model, image_processor=prepare)(image, threshold=0.2)
    for one, other in zip(seen[0]["objects"], usual, strict=True):
        assert (one["label"], one["box"]) == (other["label"], other["box"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)  # of a batch of two, and of one
    with torch.no_grad():
        out = model(prepare([image], return_tensors="pt")["pixel_values"])
    edges = out.pred_boxes[0].clone()
    edges = torch.cat([edges[:, :2] - edges[:, 2:] / 2, edges[:, :2] + edges[:, 2:] / 2], dim=1) * 48
    for each in seen[0]["objects"]:
        box = torch.tensor(list(each["box"].values()))
        queries = (edges.int() == box).all(dim=1).nonzero()[:, 0]  # several, where boxes are the same
        answers = {aspect["label"]: aspect["score"] for aspect in each["aspects"]}
        assert list(answers.values()) == sorted(answers.values(), reverse=True)
        told = torch.tensor([answers[name] for name in model.config.aspect_ids])
        assert (out.aspect_logits[0, queries].sigmoid() - told).abs().max(dim=1).values.min() < 1e-5
    assert {aspect["question"] for aspect in each["aspects"]} == set(model.config.aspect_questions)


def test_the_aspect_pipeline_answers_about_the_image():
    image, model = tiny.images(1, size=48)[0], detector("detr", level="image")
    seen = pipeline("aspect-detection", model=model, image_processor=processor())(image, threshold=0.0)
    assert len(seen["objects"]) == N and not any("aspects" in each for each in seen["objects"])
    with torch.no_grad():
        out = model(processor()([image], return_tensors="pt")["pixel_values"])
    told = {aspect["label"]: aspect["score"] for aspect in seen["aspects"]}
    assert [told[name] for name in model.config.aspect_ids] == pytest.approx(out.aspect_logits[0].sigmoid().tolist())
    assert f"aspect-0: {told['aspect-0']:.2f}" in str(seen)


def test_pipelines_know_the_student(capfd):
    for task in ("object-detection", "aspect-detection"):
        pipeline(task, model=detector("detr"), image_processor=processor())
    assert "is not supported" not in "".join(capfd.readouterr())


# Other names, other numbers, other arguments


def test_other_names_for_the_classes(saved):
    names = {i: f"new {i}" for i in range(len(CLASSES))}
    model = MadkdForObjectDetection.from_pretrained(saved[0], id2label={str(i): name for i, name in names.items()})
    assert model.config.id2label == names == model.to_plain().config.id2label
    assert model.config.label2id == {name: i for i, name in names.items()}
    assert model.detector.config.id2label == names
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixels()).logits, saved[1].logits)


def test_another_number_of_classes_needs_a_new_head(saved):
    for more in ({"num_labels": 2}, {"id2label": {0: "a", 1: "b"}}):
        with pytest.raises(ValueError, match="another number of classes .* ignore_mismatched_sizes=True"):
            MadkdForObjectDetection.from_pretrained(saved[0], **more)
        model = MadkdForObjectDetection.from_pretrained(saved[0], **more, ignore_mismatched_sizes=True)
        assert model(pixels()).logits.shape[-1] == 3 and model.config.num_labels == 2


def test_what_a_trainer_says_about_the_loss_does_not_reach_the_detector():
    out = detector("detr")(pixels(), num_items_in_batch=4, output_hidden_states=True)
    assert out.encoder_hidden_states and out.decoder_hidden_states


def test_code_of_a_detector_is_never_run(saved, tmp_path):
    detector("detr").to_plain().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    check_model(MadkdForObjectDetection, str(tmp_path))
    check_model(MadkdForObjectDetection, str(saved[0]))
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForObjectDetection": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps({**content, "auto_map": auto_map}))
    check_model(MadkdForObjectDetection, str(tmp_path))  # transformers has its architecture
    model = MadkdForObjectDetection.from_detector(str(tmp_path), CLASSES)
    assert not hasattr(model.to_plain().config, "auto_map")
    (tmp_path / "config.json").write_text(json.dumps({**content, "auto_map": auto_map, "model_type": "own"}))
    for refused in (
        partial(check_model, MadkdForObjectDetection),
        lambda name: MadkdForObjectDetection.from_detector(name, CLASSES),
    ):
        with pytest.raises(ValueError, match="code of its own"):
            refused(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_detector_that_cannot_become_a_student_is_told_before_it_is_loaded(tmp_path):
    plain = detector("detr").to_plain()
    plain.config.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no weights .*--pretrained false"):
        check_model(MadkdForObjectDetection, str(tmp_path))
    check_model(MadkdForObjectDetection, str(tmp_path), pretrained=False)
    tiny.resnet().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"Expected a detector; {tmp_path} is a model of type 'resnet'"):
        check_model(MadkdForObjectDetection, str(tmp_path), pretrained=False)


def test_a_plain_trainer_with_the_usual_metric_sees_an_ordinary_detector(tmp_path):
    model, seen = detector("detr"), []
    rows = [{"pixel_values": pixels(i)[0], "labels": labels(counts=(i,))[0]} for i in range(4)]

    def collate(batch):
        images = torch.stack([row["pixel_values"] for row in batch])
        return {"pixel_values": images, "labels": [row["labels"] for row in batch]}

    def metric(prediction):
        seen.extend((batch[1].shape, batch[2].shape) for batch in prediction.predictions)  # scores, boxes
        return {"batches": len(seen)}

    args = TrainingArguments(
        tmp_path,
        per_device_eval_batch_size=2,
        per_device_train_batch_size=2,
        num_train_epochs=1,
        eval_do_concat_batches=False,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    )
    trainer = Trainer(model, args, collate, train_dataset=rows, eval_dataset=rows, compute_metrics=metric)
    assert not trainer.model_accepts_loss_kwargs  # or it would not divide the loss by the accumulation steps
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert seen == [((2, N, 4), (2, N, 4))] * 2

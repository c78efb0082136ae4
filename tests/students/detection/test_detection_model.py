"""The student that detects: a detector of transformers as it is, and Q answers about its objects or its image."""

import json
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import tiny
from builders.detectors import (
    ARCHITECTURES,
    CLASSES,
    DETR,
    GROUPED,
    PLAIN,
    SIDE,
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
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import HungarianMatcher
from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from madkd_hf import MadkdDetectionConfig, MadkdForObjectDetection
from madkd_hf.students.base.models import check_model
from madkd_hf.students.losses.madkd_detection import aspect_loss


DENOISING = ["rt_detr", "rt_detr_v2", "d_fine"]
SIDES = {"detr": [2], "conditional_detr": [2], "deformable_detr": [8, 4, 2, 1], "rt_detr": [8, 4, 2], "yolos": [4]}
SIDES |= {"rt_detr_v2": [8, 4, 2], "d_fine": [8, 4, 2]}
RARER = ("rt_detr_v2", "deformable_detr, two stages")  # relatives of others, run before a release


def kinds(*more: str, of=ARCHITECTURES) -> list:
    return [*(pytest.param(name, marks=[pytest.mark.slow] if name in RARER else []) for name in of), *more]


def labels(level: str = "object", counts: tuple[int, ...] = (3, 0)) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "class_labels": torch.randint(len(CLASSES), (n,), generator=draw),
            "boxes": 0.3 + 0.2 * torch.rand(n, 4, generator=draw),
            "aspect_logits": 3 * torch.randn(*([n] if level == "object" else []), Q, generator=draw),
        }
        for n in counts
    ]


def same(first, second) -> bool:
    return torch.equal(first.logits, second.logits) and torch.equal(first.pred_boxes, second.pred_boxes)


def matcher(config) -> torch.nn.Module:
    if hasattr(config, "matcher_class_cost"):
        return RTDetrHungarianMatcher(config)
    kind = HungarianMatcher if config.model_type in ("detr", "yolos") else DeformableDetrHungarianMatcher
    return kind(config.class_cost, config.bbox_cost, config.giou_cost)


# Architectures


@pytest.mark.parametrize("level", ["object", pytest.param("image", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", kinds())
@torch.no_grad()
def test_every_architecture_answers_and_survives_saving_and_loses_nothing(name, level, tmp_path):
    model = detector(name, level)
    out = model(pixels())
    classes = len(CLASSES) + (name in ("detr", "yolos"))
    assert out.logits.shape == (2, N, classes) and out.pred_boxes.shape == (2, N, 4)
    assert out.aspect_logits.shape == ((2, N, Q) if level == "object" else (2, Q))
    assert out.loss is None and out.matches is None
    assert out.aspect_logits.std() > 1e-3  # or equality shows nothing

    plain = model.to_plain()
    assert type(plain).__module__.startswith("transformers.") and same(plain(pixel_values=pixels()), out)
    assert plain.config.id2label == CLASSES and not plain.training

    model.save_pretrained(tmp_path)
    loaded = MadkdForObjectDetection.from_pretrained(tmp_path)
    assert same(loaded(pixels()), out) and torch.equal(loaded(pixels()).aspect_logits, out.aspect_logits)
    weights = loaded.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert (loaded.config.aspect_level, loaded.config.aspect_ids) == (level, tiny.bank(Q).ids)
    assert loaded.detector.config.id2label == loaded.config.id2label == CLASSES


@pytest.mark.parametrize("name", kinds("lw_detr"))
@torch.no_grad()
def test_the_aspect_head_reads_what_the_class_head_reads(name):
    model, calls = detector(name), []
    for module in model.detector.modules():
        if type(module) is torch.nn.Linear or type(module).__name__.endswith("MLPPredictionHead"):
            module.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    out = model(pixels())
    widths = len(CLASSES), len(CLASSES) + 1
    read = [states for states, scores in calls if scores.shape[:2] == (2, N) and scores.shape[2] in widths]
    assert any(torch.equal(model.aspect_head(states), out.aspect_logits) for states in read)


@pytest.mark.parametrize("name", ["d_fine", *(pytest.param(name, marks=pytest.mark.slow) for name in RARER)])
def test_shared_heads_are_shared_again_after_loading(name, tmp_path):
    model = detector(name)
    model.save_pretrained(tmp_path)

    def shared(each) -> int:
        return len(list(each.named_parameters(remove_duplicate=False))) - len(list(each.parameters()))

    loaded = MadkdForObjectDetection.from_pretrained(tmp_path)
    loaded.tie_weights()
    assert shared(loaded) == shared(model) == shared(model.to_plain()) == shared(model.detector) > 0


@pytest.mark.parametrize("name", ["detr", "deformable_detr", "yolos"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model, grads = detector(name).train(), []
    for on in (False, True):
        if on:
            enable = getattr(model, "activation_checkpointing_enable", None)  # the name of newer releases
            (enable or model.gradient_checkpointing_enable)()
        model.zero_grad()
        out = model(pixels(), labels=labels())
        (out.loss + aspect_loss(out, labels(), "object")).backward()
        grads.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for key, value in grads[0].items():
        torch.testing.assert_close(grads[1][key], value, msg=key)


# Training


@pytest.mark.parametrize("name", [*ARCHITECTURES, "lw_detr"])
def test_matches_are_those_of_the_last_layer(name):
    model = detector(name).train()
    out = model(pixels(), labels=labels())
    rows = 2 * N if name == "lw_detr" else N  # in training it asks groups of queries, each for all objects
    assert out.logits.shape[:2] == out.pred_boxes.shape[:2] == out.aspect_logits.shape[:2] == (2, rows)
    if name == "lw_detr":
        queries, objects = out.matches[0]
        assert sorted(objects.tolist()) == [0, 0, 1, 1, 2, 2] and (queries < N).sum() == 3
    else:
        boxes = out.pred_boxes.clamp(0, 1) if name == "d_fine" else out.pred_boxes
        expected = matcher(model.detector.config)({"logits": out.logits, "pred_boxes": boxes}, labels())
        assert [[part.tolist() for part in pair] for pair in out.matches] == [
            [part.tolist() for part in pair] for pair in expected
        ]
        assert len(out.matches[0][0]) == 3 and len(out.matches[1][0]) == 0
    assert not torch.nn.modules.module._global_forward_hooks


@pytest.mark.parametrize("name", GROUPED)
def test_an_object_weighs_as_much_whether_one_query_or_one_of_each_group_answers(name):
    model, rows = detector(name).train(), labels()
    out = model(pixels(), labels=rows)
    queries, objects = out.matches[0]
    scores, targets = out.aspect_logits[0, queries].detach(), rows[0]["aspect_logits"][objects]
    assert objects.bincount().tolist() == [2, 2, 2]
    for divisor in (None, 3):
        loss = aspect_loss(out, rows, "object", rows=divisor).item()
        assert loss == pytest.approx(by_hand(scores, targets), rel=1e-5)
    rows[0]["aspect_logits"][1] = torch.nan
    expected = by_hand(scores[objects != 1], targets[objects != 1])
    assert aspect_loss(out, rows, "object").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", GROUPED)
@torch.no_grad()
def test_in_evaluation_there_is_one_group_of_queries(name):
    model = detector(name)
    out = model(pixels(), labels=labels())
    costs = model.detector.config
    one_to_one = LwDetrHungarianMatcher(costs.class_cost, costs.bbox_cost, costs.giou_cost)
    expected = one_to_one({"logits": out.logits, "pred_boxes": out.pred_boxes}, labels(), 1)
    assert out.logits.shape[1] == N and sorted(out.matches[0][1].tolist()) == [0, 1, 2]
    assert [[part.tolist() for part in pair] for pair in out.matches] == [
        [part.tolist() for part in pair] for pair in expected
    ]


@pytest.mark.parametrize("name", DENOISING)
def test_queries_that_only_training_has_are_left_out(name):
    model = detector(name).train()
    torch.manual_seed(0)
    ours = model(pixels(), labels=labels())
    model = detector(name).train()  # batch norms and noise as before
    torch.manual_seed(0)
    theirs = model.detector(pixel_values=pixels(), labels=labels())
    assert theirs.logits.shape[1] > N and torch.equal(theirs.loss, ours.loss)
    assert torch.equal(theirs.logits[:, -N:], ours.logits) and torch.equal(theirs.pred_boxes[:, -N:], ours.pred_boxes)
    assert torch.equal(model.aspect_head(theirs.last_hidden_state[:, -N:]), ours.aspect_logits)


@pytest.mark.parametrize("level", ["object", pytest.param("image", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", kinds())
def test_the_aspect_loss_reaches_the_head_and_all_that_is_before_it(name, level):
    model = detector(name, level).train()
    out = model(pixels(), labels=labels(level))
    assert torch.isfinite(out.loss) and out.loss_dict
    aspect_loss(out, labels(level), level).backward()
    reached = {key for key, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}
    assert {"aspect_head.weight", "aspect_head.bias"} <= reached
    early = "patch_embeddings" if name == "yolos" else "input_proj"  # behind the backbone, which some freeze
    assert any(early in key for key in reached)


@pytest.mark.parametrize("name", kinds())
def test_a_batch_without_objects_can_be_trained_on(name):
    model, empty = detector(name).train(), labels(counts=(0, 0))
    out = model(pixels(), labels=empty)
    loss = out.loss + aspect_loss(out, empty, "object")
    loss.backward()
    assert torch.isfinite(loss) and torch.count_nonzero(model.aspect_head.weight.grad) == 0


@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_the_detector_does_not_see_the_aspects(name):
    losses = []
    for given in (labels(), [{key: row[key] for key in ("class_labels", "boxes")} for row in labels()]):
        torch.manual_seed(0)
        losses.append(detector(name).train()(pixels(), labels=given).loss)
    torch.manual_seed(0)
    losses.append(detector(name).train().detector(pixel_values=pixels(), labels=labels()).loss)
    assert losses[0] == losses[1] == losses[2]


# Images as a whole


@pytest.mark.parametrize("masked", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", kinds(of=SIDES))
@torch.no_grad()
def test_an_image_is_the_mean_over_its_positions_without_the_padding(name, masked):
    """The second image fills the upper half of its frame."""
    model, mask = detector(name, "image"), torch.ones(2, SIDE, SIDE, dtype=torch.long)
    if masked:
        mask[1, SIDE // 2 :] = 0
    out = model(pixels(), pixel_mask=mask if masked else None)
    kwargs = {} if name == "yolos" else {"pixel_mask": mask}
    theirs = model.detector(pixel_values=pixels(), **kwargs)
    assert same(theirs, out)
    if name == "yolos":
        positions = theirs.last_hidden_state[:, 1:-N]
    elif torch.is_tensor(theirs.encoder_last_hidden_state):
        positions = theirs.encoder_last_hidden_state
    else:
        positions = torch.cat([each.flatten(2).mT for each in theirs.encoder_last_hidden_state], dim=1)
    upper = torch.cat([torch.arange(side).repeat_interleave(side) < max(side // 2, 1) for side in SIDES[name]])
    assert len(upper) == positions.shape[1]
    pooled = torch.stack([positions[0].mean(0), positions[1, upper if masked else slice(None)].mean(0)])
    torch.testing.assert_close(out.aspect_logits, model.aspect_head(pooled))


def test_an_image_that_is_all_padding_gives_numbers():
    out = detector("detr", "image")(pixels(), pixel_mask=torch.zeros(2, SIDE, SIDE, dtype=torch.long))
    assert torch.isfinite(out.aspect_logits).all()


# Loss


def by_hand(scores, targets) -> float:
    total, scores, targets = 0.0, np.asarray(scores), np.asarray(targets)
    for score, target in zip(scores.ravel(), targets.ravel(), strict=True):
        student, teacher = (1 / (1 + math.exp(-each)) for each in (score, target))
        total -= teacher * math.log(student) + (1 - teacher) * math.log(1 - student)
    return total / scores.size


def outputs(level: str) -> SimpleNamespace:
    """Two images; in the first, query 1 got object 2, 4 got 0 and 5 got 1; in the second, 0 got 0."""
    draw = torch.Generator().manual_seed(1)
    scores = torch.randn(*((2, N, Q) if level == "object" else (2, Q)), generator=draw).requires_grad_()
    pairs = [([1, 4, 5], [2, 0, 1]), ([0], [0])]
    return SimpleNamespace(
        aspect_logits=scores, matches=[tuple(torch.tensor(part) for part in pair) for pair in pairs]
    )


def test_the_loss_of_objects_is_a_mean_over_those_that_the_teacher_saw():
    out, rows = outputs("object"), labels(counts=(3, 1))
    scores, (first, second) = out.aspect_logits.detach(), (row["aspect_logits"].clone() for row in rows)
    expected = by_hand(torch.cat([scores[0, [4, 5, 1]], scores[1, [0]]]), torch.cat([first, second]))
    assert float(aspect_loss(out, rows, "object").detach()) == pytest.approx(expected, rel=1e-5)

    rows[0]["aspect_logits"][1] = torch.nan
    expected = by_hand(torch.cat([scores[0, [4, 1]], scores[1, [0]]]), torch.cat([first[[0, 2]], second]))
    loss = aspect_loss(out, rows, "object")
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    touched = out.aspect_logits.grad.abs().sum(-1).nonzero().tolist()
    assert touched == [[0, 1], [0, 4], [1, 0]] and torch.isfinite(out.aspect_logits.grad).all()
    assert float(aspect_loss(out, rows, "object", rows=6).detach()) == pytest.approx(expected / 2, rel=1e-5)

    del rows[0]["aspect_logits"]
    rows[1]["aspect_logits"] = rows[1]["aspect_logits"].tolist()
    expected = by_hand(scores[1, [0]], second)
    assert float(aspect_loss(out, rows, "object").detach()) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_images_is_a_mean_over_those_that_the_teacher_saw():
    out, rows = outputs("image"), labels("image")
    scores, targets = out.aspect_logits.detach(), torch.stack([row["aspect_logits"] for row in rows])
    assert float(aspect_loss(out, rows, "image").detach()) == pytest.approx(by_hand(scores, targets), rel=1e-5)
    rows[0]["aspect_logits"] = torch.full((Q,), torch.nan)
    expected = by_hand(scores[1], targets[1])
    assert float(aspect_loss(out, rows, "image").detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("level", ["object", "image"])
def test_where_the_teacher_saw_nothing_the_loss_is_zero_and_can_be_derived(level):
    out, rows = outputs(level), labels(level, counts=(3, 1))
    for row in rows:
        row["aspect_logits"].fill_(torch.nan)
    loss = aspect_loss(out, rows, level)
    loss.backward()
    assert loss.item() == 0 and torch.count_nonzero(out.aspect_logits.grad) == 0


def test_what_does_not_fit_is_said():
    out, rows = outputs("object"), labels(counts=(3, 1))
    with pytest.raises(ValueError, match="received 'pixel'"):
        aspect_loss(out, rows, "pixel")
    rows[0]["aspect_logits"] = torch.zeros(3, Q + 1)
    with pytest.raises(ValueError, match=r"should be \[3, 3\]; received \[3, 4\]"):
        aspect_loss(out, rows, "object")
    out.matches = None
    with pytest.raises(ValueError, match="give the model its labels"):
        aspect_loss(out, rows, "object")


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

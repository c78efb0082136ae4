"""The student that detects: a detector of transformers as it is, and Q answers about its objects or its image."""

import math

import numpy as np
import pytest
import torch
from builders import tiny
from builders.detector_outputs import labels, outputs, same
from builders.detectors import (
    ARCHITECTURES,
    CLASSES,
    GROUPED,
    SIDE,
    N,
    Q,
    detector,
    pixels,
)
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import HungarianMatcher
from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from madkd_hf import MadkdForObjectDetection
from madkd_hf.students.losses.madkd_detection import aspect_loss


DENOISING = ["rt_detr", "rt_detr_v2", "d_fine"]
SIDES = {"detr": [2], "conditional_detr": [2], "deformable_detr": [8, 4, 2, 1], "rt_detr": [8, 4, 2], "yolos": [4]}
SIDES |= {"rt_detr_v2": [8, 4, 2], "d_fine": [8, 4, 2]}
RARER = ("rt_detr_v2", "deformable_detr, two stages")  # relatives of others, run before a release


def kinds(*more: str, of=ARCHITECTURES) -> list:
    return [*(pytest.param(name, marks=[pytest.mark.slow] if name in RARER else []) for name in of), *more]


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

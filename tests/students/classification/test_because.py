"""How much each aspect speaks for a class: exact in the last layer, faithful when aspects go, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from builders import classifiers

from benchmarks.faithfulness import measure
from madkd_hf import AspectBank, MadkdForImageClassification
from madkd_hf.students.classification.because import BECAUSE_FILE, Because, mean_answers


CLASSES = {0: "cat", 1: "dog", 2: "cow", 3: "hen"}
BANK = AspectBank([f"Is it number {k}?" for k in range(6)])
ARCHITECTURES = ["resnet", "vit", "mobilenet_v2", "deit", "levit", "swiftformer"]  # the last have two heads, averaged


def student(name: str = "resnet", bank: AspectBank | None = BANK) -> MadkdForImageClassification:
    torch.manual_seed(0)
    return MadkdForImageClassification.from_backbone(classifiers.config(name), CLASSES, bank, pretrained=False)


def pixels(name: str = "resnet", n: int = 8) -> torch.Tensor:
    side = classifiers.SIDES.get(name, classifiers.SIDE)
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def moved_logits(model: MadkdForImageClassification, inputs: torch.Tensor, aspect: int, step: float):
    """The outputs when what goes into the heads is moved along the weights of an aspect."""
    heads = [
        module
        for name, module in model.backbone.named_modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == 4 + len(BANK)
    ]
    handles = [
        head.register_forward_pre_hook(lambda head, x: (x[0] + step * head.weight[4 + aspect].reshape(1, -1),))
        for head in heads
    ]
    with torch.no_grad():
        out = model(inputs)
    for handle in handles:
        handle.remove()
    assert heads
    return out


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_effect_is_what_the_last_layer_does_when_an_answer_moves(name):
    model, inputs = student(name), pixels(name)
    with torch.no_grad():
        before = model(inputs)
    for aspect in (0, 5):
        after = moved_logits(model, inputs, aspect, 0.7)
        answers = (after.aspect_logits - before.aspect_logits)[:, aspect]
        scores = after.logits - before.logits
        against_mean = scores - scores.mean(dim=1, keepdim=True)
        effect = against_mean / answers[:, None]
        expected = Because.of_student(model).effects[:, aspect]
        np.testing.assert_allclose(effect.numpy(), np.tile(expected, (8, 1)), atol=1e-3)


def test_removing_the_top_aspects_moves_the_class_more_than_removing_random_ones():
    rows = measure(student(), [pixels(n=40)])
    smallest = {row["removed"]: row for row in rows if row["name"] == "smallest change"}
    assert {*smallest} == {1, 3, 5}
    for count in (1, 3):
        assert smallest[count]["top"] < 2 * min(smallest[count]["random"], 0)
        assert smallest[count]["top"] < smallest[count]["random"] < smallest[count]["last"]
    varied = [row for row in rows if row["name"] == "as images vary" and row["removed"] < 5]
    assert all(row["top"] < row["random"] < row["last"] for row in varied)


def test_one_aspect_that_is_removed_takes_its_weight_away():
    model, inputs = student(), pixels(n=40)
    (row, *_) = measure(model, [inputs])
    baseline = mean_answers(model, [inputs])
    with torch.no_grad():
        out = model(inputs)
    weights = Because.of_student(model, baseline).weights(out.aspect_logits.numpy(), out.logits.argmax(dim=1).numpy())
    assert row["removed"] == 1 and row["top"] == pytest.approx(-weights.max(axis=1).mean(), abs=1e-4)


def test_reasons_are_sorted_and_named_and_against_the_baseline():
    because = Because.of_student(student(), baseline=[1.0] * 6)
    reasons = because.reasons([1, 2, 0, 1, 5, -3], 2)
    assert {reason.aspect for reason in reasons} == set(BANK.ids) and reasons[0].question.startswith("Is it number")
    assert [r.weight for r in reasons] == sorted((r.weight for r in reasons), reverse=True)
    weights = {reason.aspect: reason.weight for reason in reasons}
    assert weights[BANK.ids[0]] == weights[BANK.ids[3]] == 0  # as the average image
    assert weights[BANK.ids[4]] == pytest.approx(4 * because.effects[2, 4])
    assert next(r for r in reasons if r.aspect == BANK.ids[1]).answer == pytest.approx(0.880797)
    np.testing.assert_allclose(because.effects.sum(axis=0), 0, atol=1e-9)  # for one class is against the others


def test_a_file_holds_the_same_for_pages_and_servers(tmp_path):
    because = Because.of_student(student(), baseline=np.linspace(-2, 2, 6))
    assert because.save(tmp_path).name == BECAUSE_FILE
    loaded = Because.load(tmp_path)
    assert (loaded.classes, loaded.ids, loaded.questions) == (because.classes, because.ids, because.questions)
    np.testing.assert_allclose(loaded.effects, because.effects, rtol=1e-5)
    np.testing.assert_allclose(loaded.baseline, because.baseline, rtol=1e-5)


@pytest.mark.parametrize("damage", ["effects", "format_version", "aspects", "{"])
def test_a_damaged_file_is_told(damage, tmp_path):
    path = Because.of_student(student()).save(tmp_path)
    content = json.loads(path.read_text())
    path.write_text("{" if damage == "{" else json.dumps({**content, damage: [[1]]}))
    with pytest.raises(ValueError, match="because.json.*export the student again"):
        Because.load(tmp_path)


def test_what_has_no_reasons_is_refused():
    with pytest.raises(ValueError, match="has no aspects.*expected an image classifier"):
        Because.of_student(student(bank=None))
    with pytest.raises(ValueError, match="has no aspects"):
        Because.of_student(student().to_plain())
    with pytest.raises(ValueError, match=r"baseline of 6 finite log-odds.*\[2\]"):
        Because.of_student(student(), baseline=[0, 1])
    with pytest.raises(ValueError, match=r"aspect logits \[n, 6\]; got an array \[2, 3\]"):
        Because.of_student(student()).weights(np.zeros((2, 3)), [0, 0])
    with pytest.raises(ValueError, match="Expected images to take the mean over; got none"):
        mean_answers(student(), [])


def test_the_mean_is_that_of_all_images_whatever_the_batches():
    model, inputs = student(), pixels(n=6)
    one, parts = mean_answers(model, [inputs]), mean_answers(model, inputs.split([4, 2]))
    np.testing.assert_allclose(one, parts, atol=1e-6)

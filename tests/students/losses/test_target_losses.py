"""Losses of class targets: each equals its paper's equations, computed another way, and knows what a row lacks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from madkd_hf.students.base.fields import CLASS_TARGET_LOSSES
from madkd_hf.students.losses import NO_CLASS, TARGET_LOSSES, UNCOUNTED, MadkdLoss
from madkd_hf.students.losses.targets import standardized


N, C = 6, 5


def drawn(seed: int = 0):
    """Logits of student and teacher [N, C], and classes [N]."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(N, C, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher, torch.tensor([0, 3, 4, 1, 1, 2])


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * (np.log(p) - np.log(q))).sum())


def soft(s, t, label, temperature):
    return -(softmax(t / temperature) * log_softmax(s / temperature)).sum()


def kd(s, t, label, temperature):
    return temperature**2 * divergence(softmax(t / temperature), softmax(s / temperature))


def dkd(s, t, label, temperature):
    p, q = softmax(t / temperature), softmax(s / temperature)
    two_p, two_q = (np.array([x[label], 1 - x[label]]) for x in (p, q))
    others_p, others_q = (np.delete(x, label) / (1 - x[label]) for x in (p, q))
    return temperature**2 * (1.0 * divergence(two_p, two_q) + 2.0 * divergence(others_p, others_q))


def arrays(*tensors):
    return (tensor.detach().double().numpy() for tensor in tensors)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 2.5])
@pytest.mark.parametrize(("name", "by_hand"), [("soft", soft), ("kd", kd), ("dkd", dkd)])
def test_a_loss_equals_its_equations(name, by_hand, temperature):
    student, teacher, labels = drawn()
    loss = TARGET_LOSSES[name](temperature)
    values = loss(student, teacher, labels)[loss.name]
    expected = [by_hand(s, t, label, temperature) for s, t, label in zip(*arrays(student, teacher), labels.tolist())]
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    values.sum().backward()
    assert torch.isfinite(student.grad).all() and (student.grad != 0).any()


def test_mlkd_equals_its_equations():
    student, teacher, labels = drawn()
    loss = TARGET_LOSSES["mlkd"](4.0)
    values = loss(student, teacher, labels)
    s, t = arrays(student, teacher)
    expected = dict.fromkeys(("instance_loss", "batch_loss", "relation_loss"), 0.0)
    for temperature in (2, 3, 4, 5, 6):
        p, q = softmax(t / temperature, axis=1), softmax(s / temperature, axis=1)
        expected["instance_loss"] += temperature**2 * np.mean([divergence(*pair) for pair in zip(p, q)]) / 5
        expected["batch_loss"] += ((p @ p.T - q @ q.T) ** 2).sum() / N / 5
        expected["relation_loss"] += ((p.T @ p - q.T @ q) ** 2).sum() / C / 5
    for name, value in expected.items():
        assert values[name].mean().item() == pytest.approx(value, rel=1e-5)
    assert values["mlkd_loss"].mean().item() == pytest.approx(sum(expected.values()), rel=1e-5)


@pytest.mark.parametrize("name", TARGET_LOSSES)
def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn(name):
    _, teacher, labels = drawn()
    student = teacher.clone().requires_grad_()
    loss = TARGET_LOSSES[name](2.0)
    loss(student, teacher, labels)[loss.name].sum().backward()
    assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("name", TARGET_LOSSES)
def test_standardised_logits_are_compared_whatever_their_size_and_level(name):
    student, teacher, labels = drawn()
    loss = TARGET_LOSSES[name](2.0, standardize=True)
    value = loss(student, teacher, labels)[loss.name]
    torch.testing.assert_close(loss(student, 7 * teacher + 3, labels)[loss.name], value, rtol=1e-4, atol=1e-5)
    z = teacher.numpy()
    expected = (z - z.mean(axis=1, keepdims=True)) / (1e-7 + z.std(axis=1, ddof=1, keepdims=True))
    np.testing.assert_allclose(standardized(teacher).numpy(), expected, rtol=1e-5, atol=1e-6)
    raw = TARGET_LOSSES[name](2.0)(student, teacher, labels)[loss.name]
    assert (raw - value).abs().max() > 0.01


@pytest.mark.parametrize("name", TARGET_LOSSES)
def test_scores_of_any_level_are_the_same_classes(name):
    student, teacher, labels = drawn()
    near, far = (
        TARGET_LOSSES[name]().values(student, teacher - level, labels)[TARGET_LOSSES[name].name] for level in (0, 3e4)
    )
    torch.testing.assert_close(near, far, rtol=1e-3, atol=2e-3)  # of such numbers, float32 knows three decimals


def test_the_class_of_a_row_without_one_is_the_most_probable():
    student, teacher, _ = drawn()
    guessed = TARGET_LOSSES["dkd"]()(student, teacher, torch.full((N,), NO_CLASS))
    known = TARGET_LOSSES["dkd"]()(student, teacher, teacher.argmax(dim=1))
    torch.testing.assert_close(guessed["dkd_loss"], known["dkd_loss"])


def test_targets_that_are_not_sure_are_left_out_of_rows_without_a_class_alone():
    student, teacher, labels = drawn()
    labels[:3], teacher[0] = NO_CLASS, 0.0  # 1 / C everywhere
    everything = TARGET_LOSSES["soft"]()(student, teacher, labels)["soft_loss"]
    confidence = teacher.softmax(dim=1).amax(dim=1)
    values = TARGET_LOSSES["soft"](confidence=0.3, unlabelled_weight=0.5)(student, teacher, labels)["soft_loss"]
    assert confidence[0] < 0.3 < confidence[1:3].min()
    torch.testing.assert_close(values, everything * torch.tensor([0, 0.5, 0.5, 1, 1, 1]))


def test_classes_aspects_and_targets_are_learned_in_one_training():
    """All parts by name, their sum with their weights, each a mean over the rows that have it."""
    student, teacher, labels = drawn()
    aspects = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
    answers = torch.randn(N, 3, generator=torch.Generator().manual_seed(2))
    labels[0], labels[1], teacher[2], answers[3] = NO_CLASS, UNCOUNTED, torch.nan, torch.nan
    batch = {"labels": labels, "aspect_logits": answers, "class_logits": teacher}
    outputs = SimpleNamespace(logits=student, aspect_logits=aspects)
    losses = MadkdLoss(10.0, target_loss=TARGET_LOSSES["kd"](2.0), class_alpha=3.0)(outputs, batch)
    s, t, a, b = arrays(student, teacher, aspects, answers)
    classes = np.mean([-log_softmax(s[i])[labels[i]] for i in (2, 3, 4, 5)])
    seen = [0, 2, 4, 5]
    p, q = 1 / (1 + np.exp(-b[seen])), 1 / (1 + np.exp(-a[seen]))
    bce = np.mean(-p * np.log(q) - (1 - p) * np.log(1 - q))
    targets = np.mean([kd(s[i], t[i], None, 2.0) for i in (0, 3, 4, 5)])
    assert losses["class_loss"].item() == pytest.approx(classes, rel=1e-5)
    assert losses["aspect_loss"].item() == pytest.approx(bce, rel=1e-5)
    assert losses["kd_loss"].item() == pytest.approx(targets, rel=1e-5)
    assert losses["loss"].item() == pytest.approx(classes + 10 * bce + 3 * targets, rel=1e-5)
    losses["loss"].backward()
    assert torch.isfinite(student.grad).all() and (student.grad[1] == 0).all()


def test_the_options_name_all_losses():
    assert CLASS_TARGET_LOSSES == list(TARGET_LOSSES)

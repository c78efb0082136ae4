"""The loss: named parts, the sum of two means, and nothing from rows that the teacher did not see."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from madkd_hf.students.losses import NO_CLASS, UNCOUNTED, MadkdLoss


B, C, Q = 4, 3, 5


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits, aspects, targets = (torch.randn(B, n, generator=generator) for n in (C, Q, Q))
    return {
        "logits": logits.requires_grad_(),
        "labels": torch.tensor([0, 2, 1, 2]),
        "aspect_logits": aspects.requires_grad_(),
        "aspect_targets": 3 * targets,
    }


def madkd_loss(logits, labels, aspect_logits, aspect_targets, alpha, label_smoothing=0.0, rows=None):
    outputs, batch = SimpleNamespace(logits=logits, aspect_logits=aspect_logits), {"labels": labels}
    batch |= {} if aspect_targets is None else {"aspect_logits": aspect_targets}
    return MadkdLoss(alpha, label_smoothing)(outputs, batch, rows)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy_by_hand(batch) -> float:
    rows = batch["logits"].detach().double().numpy()
    return float(np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(rows, batch["labels"])]))


def aspects_by_hand(batch) -> np.ndarray:
    """[B, Q] binary cross-entropies, from the definition."""
    scores, targets = (batch[name].detach().numpy() for name in ("aspect_logits", "aspect_targets"))
    result = np.empty((B, Q))
    for place in np.ndindex(B, Q):
        p, t = sigmoid(scores[place]), sigmoid(targets[place])
        result[place] = -t * math.log(p) - (1 - t) * math.log(1 - p)
    return result


@pytest.mark.parametrize("alpha", [0.0, 1.0, 4.0])
def test_the_loss_is_class_loss_plus_alpha_times_aspect_loss(batch, alpha):
    losses = madkd_loss(**batch, alpha=alpha)
    ce, bce = cross_entropy_by_hand(batch), aspects_by_hand(batch).mean()
    assert set(losses) == {"loss", "class_loss", "aspect_loss"}
    assert losses["class_loss"].item() == pytest.approx(ce, abs=1e-5)
    assert losses["aspect_loss"].item() == pytest.approx(bce, abs=1e-5)
    assert losses["loss"].item() == pytest.approx(ce + alpha * bce, abs=1e-5)


def test_targets_are_not_rounded(batch):
    """Where the student says what the teacher says, the gradient vanishes: the optimum is its probability."""
    batch["aspect_targets"] = batch["aspect_logits"].detach().clone()
    madkd_loss(**batch, alpha=1.0)["loss"].backward()
    assert batch["aspect_logits"].grad.abs().max() < 1e-7


def test_without_targets_the_class_loss_is_all(batch):
    batch["aspect_targets"] = None
    losses = madkd_loss(**batch, alpha=4.0)
    assert set(losses) == {"loss", "class_loss"}
    assert (
        losses["loss"].item() == losses["class_loss"].item() == pytest.approx(cross_entropy_by_hand(batch), abs=1e-5)
    )


def test_rows_without_targets_keep_their_class_loss_and_skip_the_aspect_loss(batch):
    each = aspects_by_hand(batch)
    batch["aspect_targets"][[1, 3]] = torch.nan
    losses = madkd_loss(**batch, alpha=2.0)
    losses["loss"].backward()
    assert losses["class_loss"].item() == pytest.approx(cross_entropy_by_hand(batch), abs=1e-5)
    assert losses["aspect_loss"].item() == pytest.approx(each[[0, 2]].mean(), abs=1e-5)
    for name in ("logits", "aspect_logits"):
        assert torch.isfinite(batch[name].grad).all()
    assert (batch["aspect_logits"].grad[[1, 3]] == 0).all() and (batch["aspect_logits"].grad[[0, 2]] != 0).all()
    assert (batch["logits"].grad != 0).all()


def test_a_batch_without_any_target_has_no_aspect_loss_and_no_nan(batch):
    batch["aspect_targets"][:] = torch.nan
    losses = madkd_loss(**batch, alpha=2.0)
    losses["loss"].backward()
    assert losses["aspect_loss"].item() == 0
    assert torch.isfinite(batch["logits"].grad).all() and (batch["aspect_logits"].grad == 0).all()


def test_micro_batches_average_to_the_batch_whatever_rows_they_hold(batch):
    batch["aspect_targets"][0], batch["labels"][2] = torch.nan, NO_CLASS
    whole = madkd_loss(**batch, alpha=4.0)
    rows = {"labels": torch.tensor(3 / B), "aspect_logits": torch.tensor(3 / B)}  # on average in the B parts
    each = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(B)]
    parts = [madkd_loss(**part, alpha=4.0, rows=rows) for part in each]
    for name, value in whole.items():
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), value)


def test_a_row_without_a_class_has_its_aspect_loss_alone(batch):
    batch["labels"][[1, 3]] = NO_CLASS
    losses = madkd_loss(**batch, alpha=2.0)
    losses["loss"].backward()
    known = {"logits": batch["logits"].detach()[[0, 2]], "labels": batch["labels"][[0, 2]]}
    assert losses["class_loss"].item() == pytest.approx(cross_entropy_by_hand(known), abs=1e-5)
    assert losses["aspect_loss"].item() == pytest.approx(aspects_by_hand(batch).mean(), abs=1e-5)
    assert (batch["logits"].grad[[1, 3]] == 0).all() and (batch["logits"].grad[[0, 2]] != 0).all()
    assert (batch["aspect_logits"].grad != 0).all()


def test_a_batch_without_any_class_has_no_class_loss_and_no_nan(batch):
    batch["labels"][:] = NO_CLASS
    losses = madkd_loss(**batch, alpha=1.0)
    losses["loss"].backward()
    assert losses["class_loss"].item() == 0 and (batch["logits"].grad == 0).all()
    assert losses["loss"].item() == pytest.approx(aspects_by_hand(batch).mean(), abs=1e-5)


def test_an_answer_weighs_as_much_as_its_mass(batch):
    mass = torch.rand(B, Q, generator=torch.Generator().manual_seed(1))
    mass[0] = torch.nan  # not known
    outputs = SimpleNamespace(logits=batch["logits"], aspect_logits=batch["aspect_logits"])
    given = {"labels": batch["labels"], "aspect_logits": batch["aspect_targets"], "aspect_mass": mass}
    losses = MadkdLoss(1.0, by_mass=True)(outputs, given)
    expected = (aspects_by_hand(batch) * mass.nan_to_num(1.0).numpy()).mean()
    assert losses["aspect_loss"].item() == pytest.approx(expected, abs=1e-5)


def test_a_row_that_does_not_count_is_as_if_it_were_not_there(batch):
    three = madkd_loss(**{name: value[:3] for name, value in batch.items()}, alpha=2.0, label_smoothing=0.1)
    batch["labels"][3] = UNCOUNTED
    for name, value in madkd_loss(**batch, alpha=2.0, label_smoothing=0.1).items():
        torch.testing.assert_close(value, three[name])
    rows = dict.fromkeys(("labels", "aspect_logits"), torch.tensor(6))
    for name, value in madkd_loss(**batch, alpha=2.0, label_smoothing=0.1, rows=rows).items():
        torch.testing.assert_close(value, three[name] / 2)
    batch["labels"][:] = UNCOUNTED
    assert madkd_loss(**batch, alpha=2.0)["loss"].item() == 0


def test_extreme_log_odds_stay_finite(batch):
    batch["aspect_targets"] = torch.full((B, Q), 80.0)
    batch["aspect_logits"] = torch.full((B, Q), -80.0, requires_grad=True)
    losses = madkd_loss(**batch, alpha=1.0)
    losses["loss"].backward()
    assert losses["aspect_loss"].item() == pytest.approx(80)
    assert torch.isfinite(batch["aspect_logits"].grad).all()


def test_label_smoothing_touches_the_class_loss_alone(batch):
    plain, smooth = madkd_loss(**batch, alpha=1.0), madkd_loss(**batch, alpha=1.0, label_smoothing=0.1)
    uniform = -batch["logits"].log_softmax(-1).mean()
    torch.testing.assert_close(smooth["class_loss"], 0.9 * plain["class_loss"] + 0.1 * uniform)
    assert torch.equal(smooth["aspect_loss"], plain["aspect_loss"])


def test_half_precision_students_are_taught_by_full_precision_targets(batch):
    batch["logits"], batch["aspect_logits"] = (batch[name].detach().bfloat16() for name in ("logits", "aspect_logits"))
    losses = madkd_loss(**batch, alpha=1.0)
    assert losses["aspect_loss"].item() == pytest.approx(
        aspects_by_hand({**batch, "aspect_logits": batch["aspect_logits"].float()}).mean(), abs=0.02
    )

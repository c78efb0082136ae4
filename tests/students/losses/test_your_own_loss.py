"""docs/your_own_loss.md: its code is a loss, and a student is trained with it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.classifier_training import PROCESSOR, STILL, arguments, logged, rows, student

from madkd_hf.students.losses import MadkdDetectionLoss, MadkdLoss


PAGE = Path(__file__).parents[3] / "docs" / "your_own_loss.md"
LOSS, TRAINING = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run(folder, **settings) -> dict:
    """The names after the blocks of the page have run."""
    names = {"model": student(), "args": arguments(folder, **settings), "image_processor": PROCESSOR}
    data = rows(16, unlabelled=(1, 5))
    names["dataset"] = {"train": data, "validation": data}
    exec(LOSS, names)
    exec(TRAINING, names)
    return names


def test_the_page_s_loss_is_short_and_touches_one_file():
    assert len(LOSS.strip().splitlines()) <= 30 and "one file" in PAGE.read_text(encoding="utf-8")


def test_a_student_is_trained_and_evaluated_with_it(tmp_path, capsys):
    names = run(tmp_path, aspect_alpha=77.0)
    trainer = names["trainer"]
    loss, class_loss, brier = (np.array(logged(trainer, name)) for name in ("loss", "class_loss", "brier_loss"))
    assert len(loss) == 4 and (brier > 0).all()
    np.testing.assert_allclose(loss, class_loss + 5.0 * brier, atol=1e-4)  # and the arguments' alpha plays no part
    assert "brier_loss" in capsys.readouterr().out and not logged(trainer, "aspect_loss")
    model, data = trainer.model.eval(), names["dataset"]["validation"]
    batch = trainer.eval_collator([data[i] for i in range(8)])
    with torch.no_grad():
        expected = names["BrierLoss"](5.0)(model(batch["pixel_values"]), batch)["loss"]
    assert trainer.evaluate(data.select(range(8)))["eval_loss"] == pytest.approx(float(expected), abs=1e-5)


def test_small_batches_are_one_batch_with_it(tmp_path):
    settings = {"num_train_epochs": 2, **STILL}
    whole, parts = (
        run(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=16 // size, **settings)["trainer"]
        for size in (16, 4)
    )
    for name in ("loss", "class_loss", "brier_loss", "grad_norm"):
        assert logged(parts, name) == pytest.approx(logged(whole, name), abs=2e-4), name


def test_the_page_names_the_losses_that_there_are():
    text = PAGE.read_text(encoding="utf-8")
    assert MadkdLoss.__name__ in text and MadkdDetectionLoss.__name__ in text


def test_a_detector_learns_a_part_more(tmp_path):
    detection = pytest.importorskip("builders.detector_training")

    class Sparse(MadkdDetectionLoss):
        parts = (*MadkdDetectionLoss.parts, "size_loss")

        def __call__(self, outputs, batch, rows=None):
            losses = super().__call__(outputs, batch, rows)
            size_loss = outputs.pred_boxes[..., 2:].mean()
            return losses | {"loss": losses["loss"] + 3 * size_loss, "size_loss": size_loss}

    trainer = detection.trainer(tmp_path, max_steps=2)
    trainer.loss = Sparse(alpha=2.0, level="object")
    trainer.train()
    parts = {name: np.array(logged(trainer, name)) for name in ("loss", "detector_loss", "aspect_loss", "size_loss")}
    expected = parts["detector_loss"] + 2 * parts["aspect_loss"] + 3 * parts["size_loss"]
    np.testing.assert_allclose(parts["loss"], expected, atol=1e-3)

"""What does the Trainer add to the step of a student so small that its step takes ten milliseconds?

The demo's student learns from 120 images and made-up answers, by `MadkdTrainer` and by a bare loop over the same
batches: forward, loss, backward, clipped gradient, step and schedule. Both compute in one thread, and take turns. What
the Trainer's batches cost (draws, crops, collation), which the bare loop has at hand, is measured apart. Times are
processor seconds, so that other programs disturb less.

    python benchmarks/steps.py [--steps 300] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, TrainerCallback


sys.path.insert(0, str(Path(__file__).parents[1]))
from madkd_hf import AspectBank, MadkdForImageClassification, MadkdTrainer, MadkdTrainingArguments  # noqa: E402
from madkd_hf.data.columns import aspect_features  # noqa: E402
from madkd_hf.report import markdown_table  # noqa: E402
from recipes.easy_vqa.data import load_easy_vqa  # noqa: E402


RECIPE = Path(__file__).parents[1] / "recipes/easy_vqa"
ALPHA, WARM, BATCH = 40, 20, 24  # of the demo; the first steps do not count


class Timed(MadkdTrainer):
    """Notes the processor seconds in which batches are made."""

    batches = 0.0

    @contextmanager
    def _noted(self) -> Iterator[None]:
        begun = time.process_time()
        yield
        self.batches += (time.process_time() - begun) * (self.state.global_step >= WARM)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        with self._noted():
            return super().get_batch_samples(*args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        with self._noted():
            return super()._prepare_inputs(inputs)


class Clock(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARM:
            self.begun = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = time.process_time() - getattr(self, "begun", 0)


def labelled_rows(bank: AspectBank) -> datasets.Dataset:
    rows = load_easy_vqa()["train"].select(range(120)).select_columns(["image", "label"])
    draw = np.random.default_rng(0).normal(size=(len(rows), len(bank))).astype(np.float32)
    answers = {"aspect_logits": list(draw), "aspect_mass": list(np.ones_like(draw))}
    answers["aspect_bank"] = [bank.fingerprint] * len(rows)
    answers = datasets.Dataset.from_dict(answers, features=aspect_features(bank, False))
    return datasets.concatenate_datasets([rows, answers], axis=1)


def student(rows: datasets.Dataset, bank: AspectBank) -> MadkdForImageClassification:
    torch.manual_seed(0)
    names = dict(enumerate(rows.features["label"].names))
    return MadkdForImageClassification.from_backbone(AutoConfig.from_pretrained(RECIPE / "student"), names, bank)


def by_trainer(rows: datasets.Dataset, bank: AspectBank, steps: int, folder: str) -> tuple[float, float, list[dict]]:
    """Milliseconds of a step, and of its batch; and batches for the bare loop."""
    settings = MadkdTrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=WARM,
        aspect_alpha=ALPHA,
        crop_scale=0.5,
        image_store_scale=1.5,
        channels_last=True,
        logging_steps=200,
        save_strategy="no",
        dataloader_pin_memory=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    clock, processor = Clock(), AutoImageProcessor.from_pretrained(RECIPE / "student")
    data = {"train_dataset": rows, "processing_class": processor}
    trainer = Timed(student(rows, bank), settings, **data, callbacks=[clock])
    batches = [trainer._prepare_inputs(batch) for batch in trainer.get_train_dataloader()]
    trainer.batches = 0.0
    trainer.train()
    return 1000 * clock.seconds / (steps - WARM), 1000 * trainer.batches / (steps - WARM), batches


def bare(rows: datasets.Dataset, bank: AspectBank, steps: int, batches: list[dict]) -> float:
    """Milliseconds of a step of a plain loop."""
    model = student(rows, bank).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        if step == WARM:
            begun = time.process_time()
        batch = batches[step % len(batches)]
        outputs = model(pixel_values=batch["pixel_values"])
        targets = torch.sigmoid(batch["aspect_logits"])
        loss = F.cross_entropy(outputs.logits, batch["labels"])
        loss = loss + ALPHA * F.binary_cross_entropy_with_logits(outputs.aspect_logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return 1000 * (time.process_time() - begun) / (steps - WARM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of a training")
    parser.add_argument("--rounds", type=int, default=5, help="trainings of each kind, which take turns")
    args = parser.parse_args()
    if args.steps <= WARM:
        parser.error(f"--steps is {args.steps}: expected more than the {WARM} that do not count.")
    torch.set_num_threads(1)
    bank = AspectBank.load(RECIPE / "aspects.json")
    rows, taken = labelled_rows(bank), []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            whole, of_batch, batches = by_trainer(rows, bank, args.steps, folder)
            taken.append((bare(rows, bank, args.steps, batches), whole - of_batch, of_batch))
    plain, step, batch = (statistics.median(values) for values in zip(*taken))
    ratios = [statistics.median(part / row[0] for row, part in zip(taken, parts)) for parts in zip(*taken)]
    table = [
        ["What", "Milliseconds a step", "Times the bare loop"],
        ["a bare loop on the same batches", f"{plain:.1f}", "1.00"],
        ["MadkdTrainer, without making its batches", f"{step:.1f}", f"{ratios[1]:.2f}"],
        ["making its batches", f"{batch:.1f}", f"{ratios[2]:.2f}"],
    ]
    print(markdown_table(table, right=(1, 2)))


if __name__ == "__main__":
    main()

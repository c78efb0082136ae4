"""How much of a plain loop's speed does `MadkdTrainer` reach, and how long do the paper's 240 epochs take?

ResNet-18 at 224 pixels with 50 aspects on made-up photographs of 500 x 375 pixels. The plain loop goes over tensors of
the trainer's own batches, already on the device: no images, no crops, no logging. The trainer's first epoch does not
count: it warms up, or compiles. 240 epochs are extrapolated from the median of the others, with the time in which the
images were stored; without evaluation.

    python benchmarks/epochs.py --device cuda --batch_sizes 16 256 --variants float32 bfloat16 compile
    python benchmarks/epochs.py --device cpu --images 16 --batch_sizes 8 --epochs 2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.nn import functional as F
from transformers import TrainerCallback, ViTImageProcessorPil


sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.training import MEAN, SIZE, STD, photographs, student, synchronize  # noqa: E402
from madkd_hf import MadkdTrainer, MadkdTrainingArguments  # noqa: E402
from madkd_hf.report import markdown_table  # noqa: E402


EPOCHS = 240  # of the paper
VARIANTS: dict[str, dict[str, Any]] = {  # settings of MadkdTrainingArguments
    "float32": {},
    "bfloat16": {"bf16": True},
    "compile": {"torch_compile": True},
    "bfloat16, compile": {"bf16": True, "torch_compile": True},
    "bfloat16, channels_last": {"bf16": True, "channels_last": True},
}


class EpochTimes(TrainerCallback):
    """Seconds of each epoch; training ends with the one in which the time is up, but not before the second."""

    def __init__(self, device: str, seconds: float):
        self.device, self.limit, self.begun, self.epochs = device, seconds, time.perf_counter(), []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        synchronize(self.device)
        self.start = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        synchronize(self.device)
        self.epochs.append(time.perf_counter() - self.start)
        if len(self.epochs) > 1 and time.perf_counter() - self.begun > self.limit:
            control.should_training_stop = True


def make_trainer(rows: datasets.Dataset, variant: str, batch_size: int, args: argparse.Namespace, folder: str) -> Any:
    """With the settings of the paper; images are kept on the device, where there is one."""
    settings = MadkdTrainingArguments(
        folder,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=batch_size,
        optim="sgd",
        optim_args="momentum=0.9",
        learning_rate=0.01,
        weight_decay=1e-4,
        image_store="disk" if args.device == "cpu" else "device",
        use_cpu=args.device == "cpu",
        dataloader_pin_memory=args.device != "cpu",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **VARIANTS[variant],
    )
    processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD)
    return MadkdTrainer(student(True), settings, train_dataset=rows, processing_class=processor)


def plain_loop(trainer: MadkdTrainer, variant: str, args: argparse.Namespace) -> float:
    """Images/s of forward, loss, backward and step on whole batches of the trainer that are kept on the device."""
    batches = []
    for batch in trainer.get_train_dataloader():
        if len(batches) == args.plain_batches:
            break
        batches.append(trainer._prepare_inputs(batch))
    batches = [batch for batch in batches if len(batch["labels"]) == len(batches[0]["labels"])]
    settings = VARIANTS[variant]
    model = student(True).to(args.device).train()
    if settings.get("channels_last"):
        model = model.to(memory_format=torch.channels_last)
    forward = torch.compile(model) if settings.get("torch_compile") else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    alpha = trainer.args.aspect_alpha

    def step(batch: dict[str, torch.Tensor]) -> None:
        rounded = torch.autocast(args.device, torch.bfloat16) if settings.get("bf16") else contextlib.nullcontext()
        with rounded:
            outputs = forward(pixel_values=batch["pixel_values"])
            targets = torch.sigmoid(batch["aspect_logits"])
            loss = F.cross_entropy(outputs.logits.float(), batch["labels"])
            loss = loss + alpha * F.binary_cross_entropy_with_logits(outputs.aspect_logits.float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for batch in (batches * 3)[: max(3, args.plain_batches)]:
        step(batch)
    synchronize(args.device)
    start, images = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < args.plain_seconds or not images:
        for batch in batches:
            step(batch)
            images += len(batch["labels"])
        synchronize(args.device)
    return images / taken


def measure_one(rows: datasets.Dataset, variant: str, batch_size: int, args: argparse.Namespace) -> dict[str, Any]:
    torch.compiler.reset()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(rows, variant, batch_size, args, folder)
        start = time.perf_counter()
        trainer.get_train_dataloader()  # stores the images
        stored = time.perf_counter() - start
        times = EpochTimes(args.device, args.seconds)
        trainer.add_callback(times)
        trainer.train()
        epoch = statistics.median(times.epochs[1:] or times.epochs)
        plain, own = plain_loop(trainer, variant, args), len(rows) / epoch
    return {
        "name": f"batches of {batch_size}, {variant}",
        "ratio": own / plain,
        "images_per_second": own,
        "plain_images_per_second": plain,
        "epochs": len(times.epochs),
        "epoch_seconds": epoch,
        "first_epoch_seconds": times.epochs[0],
        "storing_seconds": stored,
        "minutes_of_240_epochs": (EPOCHS * epoch + stored) / 60,
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each batch size and variant; --json has those that are done after each of them."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        rows = photographs(args.images)
        for batch_size in args.batch_sizes:
            for variant in args.variants:
                try:
                    found.append(measure_one(rows, variant, batch_size, args))
                except Exception as error:  # such as no compiler; the others may work
                    reason = f"{type(error).__name__}: {str(error)[:500]}"
                    found.append({"name": f"batches of {batch_size}, {variant}", "failed": reason})
                if args.json:
                    args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def table(rows: list[dict[str, Any]], images: int) -> str:
    head = ["Training", "Images/s", "Plain loop, images/s", "Share", "Epochs timed", f"240 x {images:,} images, min"]
    lines = [head]
    for row in [row for row in rows if "failed" not in row]:
        rates = [f"{row[name]:.0f}" for name in ("images_per_second", "plain_images_per_second")]
        lines.append([row["name"], *rates, f"{row['ratio']:.2f}", str(max(1, row["epochs"] - 1))])
        lines[-1].append(f"{row['minutes_of_240_epochs']:.1f}")
    failed = [f"{row['name']} failed: {row['failed']}" for row in rows if "failed" in row]
    return "\n".join([markdown_table(lines, right=range(1, 6)), *failed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3680, help="photographs in an epoch")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[16, 256], help="images in a batch")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["float32"], help="settings to train with")
    parser.add_argument("--epochs", type=int, default=24, help="of each training, at most")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each training, then its epoch is last")
    parser.add_argument("--plain_batches", type=int, default=16, help="of the plain loop, kept on the device")
    parser.add_argument("--plain_seconds", type=float, default=3.0, help="of the plain loop, at least")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    print(table(measure(args), args.images))


if __name__ == "__main__":
    main()

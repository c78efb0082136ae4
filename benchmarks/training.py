"""How fast is the way of the images to the student, and what does the aspect loss cost?

Photographs of 500 x 375 pixels are made up and saved as JPEG. In turn, one round after the other:

  example     the pipeline of transformers' image-classification example: decode, crop and normalise in every epoch, in
              the data loader's workers (torchvision's transforms; by Pillow, step for step, where torchvision is not)
  reference   ours with --image_store none: the same, and crops that do not depend on workers and processes
  store       ours: decoded once, cropped from memory in every epoch, in as many threads as PyTorch works with
              and without workers; its building is timed beside it

`data_path` is images/s from the second epoch on, loading alone, by the example's. `waiting` is the share of a training
epoch in which the student waits for data. `distilled_step` is the time of a step with aspects by that without: each
moves by some 10% on a shared machine, so it takes many pairs.

    python benchmarks/training.py                                      # two CPU cores
    python benchmarks/training.py --device cuda --images 3680 --rounds 3
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import ResNetConfig, ViTImageProcessorPil

from madkd_hf import Aspect, AspectBank, MadkdForImageClassification, MadkdTrainer, MadkdTrainingArguments
from madkd_hf.report import markdown_table
from madkd_hf.report.comparison import mean_and_half_width


SIZE, CLASSES, QUESTIONS = 224, 37, 50  # OxfordPets, 50 questions
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATHS = ("example", "reference", "store")


def photographs(count: int) -> Dataset:
    """Noise with the spectrum of photographs (amplitude falls with frequency), as JPEG of about 50 kB."""
    draw = np.random.default_rng(0)
    fall = 1 / np.maximum(np.hypot(np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None]), 1 / 500)[..., None]

    def encoded() -> bytes:
        picture = np.fft.irfft2(np.fft.rfft2(draw.normal(size=(375, 500, 3)), axes=(0, 1)) * fall, (375, 500), (0, 1))
        picture = 128 + 50 * picture / picture.std()
        file = io.BytesIO()
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        return file.getvalue()

    different = [encoded() for _ in range(min(count, 200))]
    bank = questions()
    columns = {
        "image": [{"bytes": different[i % len(different)], "path": None} for i in range(count)],
        "label": [i % CLASSES for i in range(count)],
        "aspect_logits": list(draw.normal(size=(count, QUESTIONS))),
        "aspect_bank": [bank.fingerprint] * count,
    }
    features = {"image": datasets.Image(), "label": ClassLabel(CLASSES)}
    features |= {"aspect_logits": List(Value("float32"), length=QUESTIONS), "aspect_bank": Value("string")}
    return Dataset.from_dict(columns, features=Features(features))


def questions() -> AspectBank:
    return AspectBank([Aspect(f"aspect-{i}", f"Is aspect {i} there?") for i in range(QUESTIONS)])


def example_transforms():
    """Those of run_image_classification.py for training."""
    try:
        from torchvision import transforms as v1

        return v1.Compose(
            [v1.RandomResizedCrop(SIZE), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)]
        )
    except Exception:  # not there, or not for this build of torch
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

        def by_pillow(image: Image.Image) -> torch.Tensor:
            width, height = image.size
            for _ in range(10):
                area, ratio = width * height * random.uniform(0.08, 1), np.exp(random.uniform(-0.2877, 0.2877))
                w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
                if w <= width and h <= height:
                    break
            left, top = random.randint(0, max(width - w, 0)), random.randint(0, max(height - h, 0))
            image = image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            if random.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
            return pixels.to(torch.float32).div(255).sub_(mean).div_(std)

        return by_pillow


def student(aspects: bool) -> MadkdForImageClassification:
    torch.manual_seed(0)
    resnet18 = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    )
    return MadkdForImageClassification.from_backbone(
        resnet18, {i: str(i) for i in range(CLASSES)}, questions() if aspects else None
    )


class Loading:
    """The training data loader of each path."""

    def __init__(self, rows: Dataset, args: argparse.Namespace, folder: Path):
        self.rows, self.args, self.folder = rows, args, folder
        self.trainers = {"reference": self.trainer("none"), "store": self.trainer("auto", dataloader_num_workers=0)}
        self.loaders = {name: trainer.get_train_dataloader() for name, trainer in self.trainers.items()}
        transforms = example_transforms()

        def transform(batch: dict[str, list]) -> dict[str, list]:
            pixels = [transforms(image.convert("RGB")) for image in batch["image"]]
            return {"pixel_values": pixels, "labels": batch["label"], "aspect_logits": batch["aspect_logits"]}

        def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            return {
                "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
                "labels": torch.tensor([example["labels"] for example in examples]),
                "aspect_logits": torch.tensor([example["aspect_logits"] for example in examples]),
            }

        self.loaders["example"] = DataLoader(
            rows.with_transform(transform),
            batch_size=args.batch_size,
            shuffle=True,
            collate_fn=collate,
            num_workers=args.workers,
            pin_memory=args.device == "cuda",
        )

    def trainer(self, image_store: str, aspects: bool = True, **settings: Any) -> MadkdTrainer:
        settings = {
            "per_device_train_batch_size": self.args.batch_size,
            "dataloader_num_workers": self.args.workers,
            "aspect_alpha": 4.0 if aspects else 0.0,
            "image_store": image_store,
            "optim": "sgd",
            "bf16": self.args.bf16,
            "torch_compile": self.args.compile,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": self.args.device == "cpu",
            "dataloader_pin_memory": self.args.device == "cuda",
            **settings,
        }
        return MadkdTrainer(
            student(aspects),
            MadkdTrainingArguments(str(self.folder), **settings),
            train_dataset=self.rows,
            processing_class=ViTImageProcessorPil(
                size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD
            ),
        )

    def epoch(self, name: str) -> Iterator[dict[str, torch.Tensor]]:
        """Batches with their pixels where the student is."""
        trainer = self.trainers.get(name, self.trainers["reference"])
        for batch in self.loaders[name]:
            yield trainer._prepare_inputs(batch)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def loading(data: Loading, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds an epoch, loading alone; the first epoch of each path does not count."""
    times: dict[str, list[float]] = {name: [] for name in PATHS}
    for repetition in tqdm(range(args.rounds + 1), desc="loading", unit=" rounds"):
        for name in PATHS:
            start = time.perf_counter()
            for _ in data.epoch(name):
                pass
            synchronize(args.device)
            if repetition:
                times[name].append(time.perf_counter() - start)
    return times


def training(data: Loading, args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Images/s and the share of time in which the student waits for data, training for some steps on each path."""
    trainer, found = data.trainers["reference"], {}
    trainer.create_optimizer()
    trainer.model.train()
    for name in PATHS:
        waited = worked = 0.0
        batches = data.epoch(name)
        for step in tqdm(range(args.steps + 1), desc=f"training, {name}", unit=" steps"):
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                batches = data.epoch(name)
                batch = next(batches)
            loaded = time.perf_counter()
            one_step(trainer, batch)
            synchronize(args.device)
            if step:  # the first one starts the workers
                waited, worked = waited + loaded - start, worked + time.perf_counter() - loaded
        found[name] = args.steps * args.batch_size / (waited + worked), waited / (waited + worked)
        del batches
    return found


def one_step(trainer: MadkdTrainer, batch: dict[str, torch.Tensor]) -> None:
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def steps(data: Loading, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a step with and without aspects, on one batch."""
    trainers = {name: data.trainer("none", name == "distilled") for name in ("base", "distilled")}
    times: dict[str, list[float]] = {name: [] for name in trainers}
    batch = next(data.epoch("store"))
    batches = {"distilled": batch, "base": {key: batch[key] for key in ("pixel_values", "labels")}}
    for trainer in trainers.values():
        trainer.create_optimizer()
        trainer.model.train()
    for repetition in tqdm(range(args.pairs + 2), desc="steps", unit=" pairs"):
        for name in list(trainers)[:: 1 if repetition % 2 else -1]:
            start = time.perf_counter()
            one_step(trainers[name], batches[name])
            synchronize(args.device)
            if repetition > 1:
                times[name].append(time.perf_counter() - start)
    return times


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        rows = photographs(args.images)
        start = time.perf_counter()
        data = Loading(rows, args, Path(folder))
        built = time.perf_counter() - start
        epochs, trained, stepped = loading(data, args), training(data, args), steps(data, args)
        found = [
            {
                "name": "data_path" if name == "store" else name,
                "ratio": statistics.median(other / own for other, own in zip(epochs["example"], epochs[name])),
                "images_per_second": len(rows) / statistics.median(epochs[name]),
                "training_images_per_second": trained[name][0],
                "waiting": trained[name][1],
            }
            for name in PATHS
        ]
        found[-1]["building_seconds"] = built
        mean, half = mean_and_half_width(np.log(stepped["distilled"]) - np.log(stepped["base"]))
        ratio, *interval = np.exp([mean, mean - half, mean + half]).tolist()
        distilled = {"name": "distilled_step", "ratio": ratio, "ci95": interval}
        distilled |= {f"{name}_ms": 1000 * statistics.median(times) for name, times in stepped.items()}
        found.append(distilled)
    return found


def table(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    named = {row["name"]: row for row in rows}
    head = ["Images come by", "Loading, images/s", "Times the example's", "Training, images/s", "Waiting for data"]
    body = [
        [
            title,
            f"{row['images_per_second']:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['training_images_per_second']:.1f}",
            f"{row['waiting']:.1%}",
        ]
        for title, row in zip(["the example's pipeline", "our reference", "our store"], rows)
    ]
    step = named["distilled_step"]
    low, high = step["ci95"]
    return (
        f"{markdown_table([head, *body], right=range(1, 5))}\n"
        f"The store was built in {named['data_path']['building_seconds']:.1f} s. A step of {args.batch_size} images "
        f"takes {step['base_ms']:.1f} ms without and {step['distilled_ms']:.1f} ms with {QUESTIONS} aspects: "
        f"{step['ratio']:.3f} times (geometric mean of {args.pairs} pairs, 95% interval {low:.3f} to {high:.3f})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="photographs in an epoch")
    parser.add_argument("--batch_size", type=int, default=16, help="images in a batch")
    parser.add_argument("--workers", type=int, default=2, help="of the data loaders without a store")
    parser.add_argument("--rounds", type=int, default=3, help="timed epochs of each path, loading alone")
    parser.add_argument("--steps", type=int, default=10, help="timed training steps of each path")
    parser.add_argument("--pairs", type=int, default=40, help="timed steps with and without aspects, at least 2")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    if args.pairs < 2:
        parser.error(f"--pairs needs at least 2 for an interval; received {args.pairs}.")
    rows = measure(args)
    print(table(rows, args))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

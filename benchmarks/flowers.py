"""What do answers add on 102 Flowers, from scratch, in as many students as the time allows?

`madkd compare` with the paper's settings in recipes/flowers102, but fewer epochs in larger batches: ResNet-18 of
random weights at 224 pixels, all 2,040 labelled photographs. Base and distilled students are trained, a few seeds at a
time, until the time is up. `--labelled` is the folder that `madkd label` left, see docs/experiments.md.

    python benchmarks/flowers.py --labelled runs/flowers102/labelled --seconds 300 --jobs 4
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml


ROOT = Path(__file__).parents[1]
CONDITIONS = ("base", "madkd")
PAPER = {"epochs": 240, "milestones": (150, 180, 210)}
RESNET_18 = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet", "embedding_size": 64}
RESNET_18 |= {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
PROCESSOR = {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875}
PROCESSOR |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def write_settings(folder: Path, args: argparse.Namespace) -> Path:
    """A comparison, its trainings and their backbone, without anything to download."""
    backbone = folder / "resnet18"
    backbone.mkdir()
    (backbone / "config.json").write_text(json.dumps(RESNET_18), encoding="utf-8")
    processor = {**PROCESSOR, "size": {"shortest_edge": args.size}}
    (backbone / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    changed = {
        "dataset": str(args.labelled),
        "backbone": str(backbone),
        "pretrained": False,
        "validation_fraction": 0,
        "num_train_epochs": args.epochs,
        "lr_milestones": [epoch * args.epochs / PAPER["epochs"] for epoch in PAPER["milestones"]],
        "learning_rate": args.learning_rate,
        "weight_decay": args.weight_decay,
        "per_device_train_batch_size": args.batch_size,
        "per_device_eval_batch_size": 256,
        "eval_strategy": "no",
    }
    for name in ("baseline", "distill"):
        settings = yaml.safe_load((ROOT / f"recipes/flowers102/{name}.yaml").read_text(encoding="utf-8"))
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings | changed), encoding="utf-8")
    compared = {"train_split": "train+validation", "validation_fraction": 0, "conditions": list(CONDITIONS)}
    compared |= {name: str(folder / f"{name}.yaml") for name in ("baseline", "distill")}
    (folder / "compare.yaml").write_text(yaml.safe_dump(compared), encoding="utf-8")
    return folder / "compare.yaml"


def compare(settings: Path, seeds: int, seconds: float, args: argparse.Namespace) -> str | None:
    """Train what is not trained yet; the reason why it did not end well, if there is one."""
    command = [sys.executable, "-m", "madkd_hf", "compare", "--config", str(settings), "--dataset", str(args.labelled)]
    command += ["--output_dir", str(settings.parent / "compared"), "--seeds", str(seeds), "--jobs", str(args.jobs)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        code = process.wait(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it ends its students, and keeps those that are finished
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
        return "the time was up"
    return f"madkd compare ended with code {code}" if code else None


def results(folder: Path) -> list[dict[str, Any]]:
    """A row for each finished student."""
    rows = []
    for file in sorted(folder.glob("compared/cells/*/cell.json")):
        condition, _, seed = file.parent.name.rpartition("-")
        found = json.loads(file.read_text(encoding="utf-8"))["result"]
        row = {"name": file.parent.name, "condition": condition, "seed": int(seed), "accuracy": found["accuracy"]}
        rows.append({**row, "seconds": found["seconds"]})
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means in per cent, and the mean gain over the seeds of which both students are finished, in points."""
    scores = {name: {row["seed"]: row["accuracy"] for row in rows if row["condition"] == name} for name in CONDITIONS}
    row: dict[str, Any] = {"name": "mean"}
    row |= {name: statistics.fmean(values.values()) for name, values in scores.items() if values}
    gains = [scores["madkd"][seed] - scores["base"][seed] for seed in scores["base"] if seed in scores["madkd"]]
    return row | ({"gain": statistics.fmean(gains), "gains": gains} if gains else {})


def measure(args: argparse.Namespace) -> tuple[list[dict[str, Any]], str | None]:
    deadline, seeds, step = time.monotonic() + args.seconds, 0, max(1, args.jobs // len(CONDITIONS))
    with tempfile.TemporaryDirectory() as name:
        settings, rows = write_settings(Path(name), args), []
        while True:
            seeds, started = min(seeds + step, args.seeds), time.monotonic()
            problem = compare(settings, seeds, deadline - started, args)
            rows = results(Path(name))
            rows += [summary(rows)] if rows else []
            if args.json:
                args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
            now = time.monotonic()
            if problem or seeds >= args.seeds or deadline - now < now - started:  # another one would not end in time
                return rows, problem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", type=Path, required=True, help="the dataset with its answers")
    parser.add_argument("--seconds", type=float, default=300, help="for everything")
    parser.add_argument("--seeds", type=int, default=10, help="students of each kind, at most")
    parser.add_argument("--jobs", type=int, default=4, help="students trained side by side on the one card")
    parser.add_argument("--epochs", type=int, default=60, help="of each student (the paper: 240)")
    parser.add_argument("--batch_size", type=int, default=64, help="of the training (the paper: 16)")
    parser.add_argument("--learning_rate", type=float, default=0.04, help="the paper's 0.01, for larger batches")
    parser.add_argument("--weight_decay", type=float, default=1e-4, help="the paper's")
    parser.add_argument("--size", type=int, default=224, help="side of an image, in pixels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    args.labelled = args.labelled.expanduser().resolve()
    rows, problem = measure(args)
    for row in rows:
        print(json.dumps(row))
    if problem and (not rows or "time" not in problem):
        sys.exit(f"{problem}; {max(0, len(rows) - 1)} students are finished.")


if __name__ == "__main__":
    main()

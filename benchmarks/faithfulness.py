"""Are the reasons of a student (`Because`) those that it computes with? Aspects are removed; the class is looked at.

For each image, the features before the last layer are changed as little as possible so that some aspects answer as for
the average image; the last layer itself then gives the class scores. Printed is by how much the score of the class
that was predicted, against the mean of all classes, changes: for the aspects that speak most for it, for as many at
random, for those whose answers are farthest from the average image's (whatever class they speak for), and for those
that speak least for it. "As images vary" moves the features along the directions in which they vary over images,
instead of by the smallest change.

    python benchmarks/faithfulness.py --student runs/student --dataset runs/labelled --split validation [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_from_disk
from transformers import AutoImageProcessor

from madkd_hf import MadkdForImageClassification
from madkd_hf.data.images import load_image
from madkd_hf.report import markdown_table
from madkd_hf.students.classification.because import Because
from madkd_hf.students.models.modeling_madkd import head_parameters


COUNTS = (1, 3, 5, 10)
RANDOM = 5  # draws for each image
REMOVALS = ("smallest change", "as images vary")


@torch.inference_mode()
def look(model: MadkdForImageClassification, batches: list[torch.Tensor]) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The head, and what goes into it and comes out: features [n, D], class scores [n, C], answers [n, Q]."""
    names = {name.rpartition(".")[0] for name in head_parameters(model.config.backbone_config)}
    if len(names) != 1:
        raise ValueError(f"The backbone has several heads ({', '.join(sorted(names))}): choose another one.")
    head, features = model.backbone.get_submodule(names.pop()), []
    handle = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].flatten(1)))
    outputs = [model(batch) for batch in batches]
    handle.remove()
    parts = {"features": features}
    parts |= {"scores": [o.logits for o in outputs], "answers": [o.aspect_logits for o in outputs]}
    return head, {name: torch.cat(tensors).double().numpy() for name, tensors in parts.items()}


def removed(seen: dict[str, Any], head: torch.nn.Module, image: int, aspects: np.ndarray, spread: np.ndarray) -> float:
    """The change of the predicted class's score, by the head itself, when these aspects answer as on average."""
    directions = head.weight.detach().flatten(1).double().numpy()[seen["scores"].shape[1] :][aspects]
    distance = seen["answers"][image][aspects] - seen["answers"].mean(axis=0)[aspects]
    moved = spread @ directions.T @ np.linalg.lstsq(directions @ spread @ directions.T, distance, rcond=None)[0]
    features = torch.tensor(seen["features"][image] - moved, dtype=head.weight.dtype)
    scores = head(features.reshape(1, -1, *[1] * (head.weight.ndim - 2))).flatten()[: seen["scores"].shape[1]]
    before, after = seen["scores"][image], scores.detach().double().numpy()
    label = before.argmax()
    return float((after[label] - after.mean()) - (before[label] - before.mean()))


def measure(model: MadkdForImageClassification, batches: list[torch.Tensor], seed: int = 0) -> list[dict[str, Any]]:
    """A row for each way of removing and each number of aspects, with the mean change of each choice of them."""
    head, seen = look(model, batches)
    baseline, labels = seen["answers"].mean(axis=0), seen["scores"].argmax(axis=1)
    weights = Because.of_student(model, baseline).weights(seen["answers"], labels)
    distances = np.abs(seen["answers"] - baseline) / seen["answers"].std(axis=0)
    generator, (n, q) = np.random.default_rng(seed), weights.shape
    covariance = np.cov(seen["features"].T)
    spreads = {REMOVALS[0]: np.eye(len(covariance)), REMOVALS[1]: covariance}
    rows = []
    for removal, spread in spreads.items():
        for count in [count for count in COUNTS if count < q]:
            choices = {
                "top": [[np.argsort(-weights[i])[:count]] for i in range(n)],
                "random": [[generator.choice(q, count, replace=False) for _ in range(RANDOM)] for _ in range(n)],
                "unusual": [[np.argsort(-distances[i])[:count]] for i in range(n)],
                "last": [[np.argsort(-weights[i])[-count:]] for i in range(n)],
            }
            changes = {
                name: float(np.mean([removed(seen, head, i, one, spread) for i in range(n) for one in sets[i]]))
                for name, sets in choices.items()
            }
            rows.append({"name": removal, "removed": count, "images": n, **changes})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    head = ["Removed", "Aspects", "Speak most for it", "At random", "Most unusual", "Speak least for it"]
    lines = [
        [row["name"], str(row["removed"]), *(f"{row[name]:+.2f}" for name in ("top", "random", "unusual", "last"))]
        for row in rows
    ]
    return markdown_table([head, *lines], right=range(1, 6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="runs/student", help="a folder, or an id of the Hub")
    parser.add_argument("--dataset", default="runs/labelled", help="what `save_to_disk` wrote")
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    model = MadkdForImageClassification.from_pretrained(args.student).eval()
    processor = AutoImageProcessor.from_pretrained(args.student)
    images = load_from_disk(args.dataset)[args.split].shuffle(seed=0)
    images = [load_image(image) for image in images.select(range(min(args.images, len(images))))["image"]]
    batches = [
        processor(images[start : start + 32], return_tensors="pt")["pixel_values"]
        for start in range(0, len(images), 32)
    ]
    rows = measure(model, batches)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Does an export compute what PyTorch does? Tiny students with random weights, of every architecture of the tests.

Prints for ONNX the largest absolute difference of an output on 32 images, classes and answers together, beside how far
a class score varies over images (standard deviation); or why an architecture cannot be exported. A student of yours is
among them with --student.

    python benchmarks/exporting.py [--architectures resnet vit] [--student runs/student] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

from madkd_hf import AspectBank, MadkdForImageClassification
from madkd_hf.exporting.student import export_student, load_for_export, made_up_images
from madkd_hf.report import markdown_table
from madkd_hf.text import markdown


sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from builders import classifiers  # noqa: E402


BANK = AspectBank(["Is it red?", "Does it fly?", "Is it large?"])
CLASSES = {0: "cat", 1: "dog", 2: "cow", 3: "hen"}


def student(name: str) -> tuple[MadkdForImageClassification, Any]:
    torch.manual_seed(0)
    model = MadkdForImageClassification.from_backbone(classifiers.config(name), CLASSES, BANK, pretrained=False)
    processor = classifiers.processor(name)
    classifiers.settle(model, processor(made_up_images(16), return_tensors="pt")["pixel_values"])
    return model, processor


@torch.inference_mode()
def spread(model: Any, processor: Any) -> float:
    """How much a class score varies over images: what a difference is to be compared with."""
    return float(model(processor(made_up_images(16), return_tensors="pt")["pixel_values"]).logits.std(dim=0).mean())


def measure(name: str, model: Any, processor: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            exported = export_student(model, processor, folder, aspects=True)
        except (ValueError, ImportError) as error:
            return {"name": name, "difference": None, "reason": str(error)}
        size = exported.path.stat().st_size
    agreement = exported.agreement
    row = {"name": name, "difference": agreement.difference, "bytes": size, "images": agreement.images}
    row["spread"] = spread(model, processor)
    return {**row, "classes": agreement.classes, "answers": agreement.answers, "reason": ""}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [["Architecture", "Largest difference", "Spread of a score", "Same classes, %"]]
    for row in rows:
        if row["difference"] is None:
            lines.append([row["name"], markdown(row["reason"], 60), "", ""])
        else:
            numbers = f"{row['difference']:.0e}", f"{row['spread']:.0e}", f"{100 * row['classes']:.1f}"
            lines.append([row["name"], *numbers])
    return markdown_table(lines, right=(1, 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(classifiers.SETTINGS)
    parser.add_argument("--architectures", nargs="+", choices=names, default=names, help="by default all")
    parser.add_argument("--student", help="a student of yours, too: a folder, or an id of the Hub")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = [measure(name, *student(name)) for name in tqdm(args.architectures, unit=" architectures")]
    if args.student:
        rows.append(measure(Path(args.student).name, *load_for_export(args.student, aspects=True)))
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

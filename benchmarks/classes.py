"""What grows with the number of classes and of questions? Seconds and memory of each command, on made-up data.

Each class has eight images of one colour and its own yes/no for each question; a tenth of the answers is wrong. The
commands run one after the other, in processes of their own, and training takes the same 100 steps everywhere, so that
what differs is what classes and questions cost: the wide head, the regression behind the posterior, reports, pictures,
the page of `madkd view`. Memory is the most that any process of a command had.

    python benchmarks/classes.py [--classes 100 1000] [--questions 50 200]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from madkd_hf import Aspect, AspectBank, Reading, attach_aspects
from madkd_hf.cli.label import save
from madkd_hf.report import markdown_table
from madkd_hf.teachers import Teacher


ROOT = Path(__file__).resolve().parents[1]
EACH = {"train": 5, "validation": 1, "test": 2}  # images of a class
STUDENT = ROOT / "recipes/easy_vqa/student"
COMMANDS = {
    "madkd train": "train --backbone {student} --pretrained false --aspect_alpha 10 --max_steps 100",
    "with the posterior": "train --backbone {student} --pretrained false --aspect_alpha 10 --max_steps 100"
    " --images_per_class 2 --rest_unlabelled true --class_posterior true --labelled_fraction 0.5",
    "madkd compare, 2 students": "compare --baseline {base} --distill {distill} --conditions base madkd --seeds 1",
    "madkd view": "view --thumbnail_size 32",
}


class Code(Teacher):
    """Answers by the class, which the image's colour tells, one answer in ten the wrong way round."""

    identity = {"model": "code"}

    def read(self, images: Sequence[Image.Image], bank: AspectBank) -> Reading:
        answers = []
        for image in images:
            red, green, blue = image.getpixel((0, 0))
            own = np.random.default_rng([green // 8, blue // 8]).choice([-4.0, 4.0], len(bank))
            wrong = np.random.default_rng([red, green, blue]).random(len(bank)) < 0.1
            answers.append(np.where(wrong, -own, own))
        return Reading(torch.tensor(np.array(answers), dtype=torch.float32), torch.ones(len(images), len(bank)))


def made_up(classes: int) -> datasets.DatasetDict:
    """Images of 32 pixels: green and blue tell the class (1,024 at most), red the image."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"class {i}" for i in range(classes)])}
    )
    parts, first = {}, 0
    for split, count in EACH.items():
        rows = [(kind, number) for kind in range(classes) for number in range(first, first + count)]
        images = [Image.new("RGB", (32, 32), (30 * n, kind // 32 * 8, kind % 32 * 8)) for kind, n in rows]
        columns = {"image": images, "label": [kind for kind, _ in rows]}
        parts[split] = datasets.Dataset.from_dict(columns, features=features)
        first += count
    return datasets.DatasetDict(parts)


def run(line: str, folder: Path) -> dict[str, float]:
    """Seconds and memory of one command line."""
    paths = {"student": STUDENT, "base": folder / "base.yaml", "distill": folder / "distill.yaml"}
    words = [word.format(**paths) for word in line.split()]
    words += ["--dataset", str(folder / "labelled"), "--output_dir", str(folder / f"made{time.time()}")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    with open(folder / "printed", "w+b") as printed:
        command = [sys.executable, "-m", "madkd_hf", *words]
        child = subprocess.Popen(command, env=environment, stdout=printed, stderr=printed)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)  # or it would be waited for again
        if child.returncode:
            printed.seek(0)
            raise SystemExit(f"madkd {words[0]} failed: {printed.read()[-2000:].decode(errors='replace')}")
    return {"seconds": time.perf_counter() - started, "peak_mb": used.ru_maxrss * 1024 / 1e6}


def measure(classes: int, questions: int) -> list[dict[str, Any]]:
    """One row for each command."""
    rows = []
    bank = AspectBank([Aspect(f"question-{i}", f"Does it have the property {i}?") for i in range(questions)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(attach_aspects(made_up(classes), bank, Code(), work_dir=folder / "work"), bank, folder / "labelled")
        settings = f"backbone: {STUDENT}\npretrained: false\nmax_steps: 100\nreport_to: none\n"
        for kind, alpha in (("base", 0), ("distill", 10)):
            (folder / f"{kind}.yaml").write_text(f"{settings}aspect_alpha: {alpha}\n", encoding="utf-8")
        for what, command in COMMANDS.items():
            rows.append({"classes": classes, "questions": questions, "command": what, **run(command, folder)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 1000], help="how many, at most 1,024")
    parser.add_argument("--questions", type=int, nargs="+", default=[50, 200], help="as many numbers as of classes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    args = parser.parse_args()
    rows = [row for sizes in zip(args.classes, args.questions, strict=True) for row in measure(*sizes)]
    table = [["Classes", "Questions", "Command", "Seconds", "Highest memory, MB"]]
    for row in rows:
        sizes = [f"{row['classes']:,}", str(row["questions"])]
        table.append([*sizes, row["command"], f"{row['seconds']:.0f}", f"{row['peak_mb']:.0f}"])
    print(markdown_table(table, right=(0, 1, 3, 4)))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

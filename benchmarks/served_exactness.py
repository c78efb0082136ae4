"""Does a teacher behind a server give the numbers of the same teacher here, and how fast is it beside it?

Both answer the same questions about the same images of easy-VQA, one round after the other, so that other work on the
machine slows both; the ratio is the median over rounds. A round of the server's begins with images that it has not
seen. `--reference` computes the answers once more in float64, one pass a question: who differs from that, is it.

    vllm serve FOLDER --served-model-name tiny --dtype float32
    python benchmarks/served_exactness.py --teacher http://127.0.0.1:8000/v1 --teacher_model tiny --local FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from madkd_hf import AspectBank, AspectTeacher
from madkd_hf.report import markdown_table
from madkd_hf.teachers import Reading, Teacher, load_teacher


def images(count: int, first: int) -> list[Image.Image]:
    from recipes.easy_vqa.data import load_easy_vqa

    rows = load_easy_vqa()["test"]
    return [rows[(first + i) % len(rows)]["image"] for i in range(count)]


def timed(teacher: Teacher, pictures: Sequence[Image.Image], bank: AspectBank) -> tuple[Reading, float]:
    started = time.perf_counter()
    return teacher.read(pictures, bank), time.perf_counter() - started


def distance(one: Reading, other: Reading) -> dict[str, float | None]:
    """Largest differences: of log-odds, in standard deviations of all of them too, of probabilities, and of mass."""
    z, w = one.logits.double(), other.logits.double()
    dz = (z - w).abs()
    mass = None if one.mass is None or other.mass is None else float((one.mass - other.mass).abs().max())
    return {
        "dz": float(dz.max()),
        "dz_sd": float(dz.max() / z.std()),
        "dp": float((z.sigmoid() - w.sigmoid()).abs().max()),
        "mass": mass,
    }


def measure(local: Teacher, served: Teacher, bank: AspectBank, count: int, rounds: int) -> tuple[dict, Reading]:
    """A row of the table, and what the local teacher said in the first round."""
    for teacher in (local, served):  # its plan, and warm
        teacher.read(images(2, -2), bank)
    found, speeds, first = [], [], None
    for turn in range(rounds):
        pictures = images(count, turn * count)
        here, seconds_here = timed(local, pictures, bank)
        there, seconds_there = timed(served, pictures, bank)
        first = first or (here, there)
        found.append(distance(here, there))
        speeds.append((count / seconds_here, count / seconds_there))
    largest = {name: max(each[name] for each in found) if found[0][name] is not None else None for name in found[0]}
    row = {
        "name": f"served beside local, {served.provenance['dialect']}",
        **largest,
        "images_per_second_local": statistics.median(here for here, _ in speeds),
        "images_per_second": statistics.median(there for _, there in speeds),
        "ratio": statistics.median(there / here for here, there in speeds),
        "z_sd": float(first[0].logits.std()),
    }
    return row, first


def against_reference(folder: str, readings: dict[str, Reading], bank: AspectBank, count: int) -> list[dict]:
    exact = AspectTeacher.from_pretrained(folder, dtype="float64", strategy="full").read(images(count, 0), bank)
    return [{"name": f"{name} beside float64", **distance(exact, reading)} for name, reading in readings.items()]


def show(rows: Sequence[dict]) -> str:
    columns = {"dz": "Largest dz", "dz_sd": "In sd of z", "dp": "Largest dp", "mass": "Mass"}
    speeds = {"images_per_second": "Images/s", "images_per_second_local": "Local, images/s"}

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    head = ["Comparison", *columns.values(), *speeds.values(), "Ratio"]
    body = [
        [row["name"], *(cell(row.get(name), ".1e") for name in columns)]
        + [cell(row.get(name), ".2f") for name in (*speeds, "ratio")]
        for row in rows
    ]
    return markdown_table([head, *body], right=range(1, len(head)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="the address of the server")
    parser.add_argument("--teacher_model", required=True, help="the model's name there")
    parser.add_argument("--local", required=True, help="the same model, a folder or a Hub id")
    parser.add_argument("--bank", default="recipes/easy_vqa/aspects.json")
    parser.add_argument("--images", type=int, default=50, help="in one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--strategy", default="auto", help="how the local teacher reads; named, it checks none itself")
    parser.add_argument("--reference", action="store_true", help="compare both with float64, too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bank = AspectBank.load(args.bank)
    local = AspectTeacher.from_pretrained(args.local, strategy=args.strategy)
    served = load_teacher(args.teacher, model=args.teacher_model, timeout=600.0)  # the first answers take long
    row, (here, there) = measure(local, served, bank, args.images, args.rounds)
    rows = [row]
    if args.reference:
        rows += against_reference(args.local, {"local": here, "served": there}, bank, args.images)
    print(f"{args.images} images x {len(bank)} questions, {args.rounds} rounds, sd of z {row['z_sd']:.3g}")
    print(show(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
